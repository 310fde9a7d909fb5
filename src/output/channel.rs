// SPDX-License-Identifier: MIT OR Apache-2.0
//! A channel as an output: events may wait for room in it, or be lost.

use crate::config::WhenFull;
use crate::event::{CollectorEvent, LossPlace};
use crate::model::{Protocol, TcpState};
use crate::stats::LossTable;
use crossbeam_channel::{SendTimeoutError, Sender, TrySendError};
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A reader that waits for room in the channel checks this often whether it shall stop.
const SEND_SLICE: Duration = Duration::from_millis(10);
/// At the stop, a receiver that has taken nothing for this long gets no more.
const RECEIVER_PATIENCE: Duration = Duration::from_millis(25);
/// At most this many ends wait for room in the channel.
const MAX_LATE: usize = 65_536;

/// Counts of delivered and lost events, for the statistics.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Delivered to the handler.
    pub(crate) delivered: u64,
    /// Lost because the channel was full, or because a record could not be decoded.
    pub(crate) lost: LossTable,
}

impl Tally {
    fn lose(&mut self, event: &CollectorEvent) {
        if let Some(kind) = event.kind() {
            self.lost.add(kind, LossPlace::Channel, 1);
        }
    }
}

/// The sending end, and the ends of connections that wait for room.
pub(crate) struct Channel {
    tx: Sender<CollectorEvent>,
    when_full: WhenFull,
    /// Ends for which the channel had no room. No later event can repair their loss.
    late: VecDeque<CollectorEvent>,
    incomplete: Incomplete,
    is_receiver_gone: bool,
}

impl Channel {
    pub(crate) fn new(tx: Sender<CollectorEvent>, when_full: WhenFull) -> Self {
        let (late, incomplete) = (VecDeque::new(), Incomplete::default());
        Self { tx, when_full, late, incomplete, is_receiver_gone: false }
    }

    pub(crate) fn is_receiver_gone(&self) -> bool {
        self.is_receiver_gone
    }

    /// Do ends wait for room?
    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Sends an event. While there is no room, acts by [`WhenFull`].
    pub(crate) fn send(
        &mut self,
        mut event: CollectorEvent,
        tally: &mut Tally,
        is_stopping: impl Fn() -> bool,
    ) {
        self.incomplete.mark_end(&mut event);
        // Late ends go first. So new events do not take their room, and the ends of one connection keep their order.
        self.send_late(None, tally);
        if self.has_late() {
            return if is_end(&event) { self.put_off(event, tally) } else { self.lose(&event, tally) };
        }
        match self.tx.try_send(event) {
            Ok(()) => tally.delivered += 1,
            Err(refused) => self.refused(refused, tally, is_stopping),
        }
    }

    /// Sends a report of losses. False if there is no room; then the caller sends it again later.
    pub(crate) fn report(&mut self, report: CollectorEvent) -> bool {
        let sent = self.tx.try_send(report);
        self.is_receiver_gone |= matches!(sent, Err(TrySendError::Disconnected(_)));
        sent.is_ok()
    }

    #[cold]
    fn refused(
        &mut self,
        refused: TrySendError<CollectorEvent>,
        tally: &mut Tally,
        is_stopping: impl Fn() -> bool,
    ) {
        match self.wait_for_room(refused, is_stopping) {
            Ok(()) => tally.delivered += 1,
            Err(TrySendError::Full(event)) if is_end(&event) => self.put_off(event, tally),
            Err(TrySendError::Full(event)) => self.lose(&event, tally),
            Err(TrySendError::Disconnected(_)) => self.is_receiver_gone = true,
        }
    }

    fn lose(&mut self, event: &CollectorEvent, tally: &mut Tally) {
        tally.lose(event);
        self.incomplete.note(event);
    }

    /// With [`WhenFull::Wait`], waits for room until the collector is stopped.
    #[expect(clippy::result_large_err, reason = "the event goes back to the caller")]
    fn wait_for_room(
        &self,
        refused: TrySendError<CollectorEvent>,
        is_stopping: impl Fn() -> bool,
    ) -> Result<(), TrySendError<CollectorEvent>> {
        let mut refused = refused;
        loop {
            let event = match refused {
                TrySendError::Full(event) if self.when_full == WhenFull::Wait && !is_stopping() => event,
                refused => return Err(refused),
            };
            match self.tx.send_timeout(event, SEND_SLICE) {
                Ok(()) => return Ok(()),
                Err(e) => refused = no_room(e),
            }
        }
    }

    fn put_off(&mut self, event: CollectorEvent, tally: &mut Tally) {
        if self.late.len() < MAX_LATE { self.late.push_back(event) } else { tally.lose(&event) }
    }

    /// Sends late ends as far as there is room. With `patience`, waits for room for up to that time.
    pub(crate) fn send_late(&mut self, patience: Option<Duration>, tally: &mut Tally) {
        if self.late.is_empty() {
            return;
        }
        let deadline = patience.map(|time| Instant::now() + time);
        while let Some(event) = self.late.pop_front() {
            let sent = match deadline {
                Some(deadline) => self.tx.send_deadline(event, deadline).map_err(no_room),
                None => self.tx.try_send(event),
            };
            match sent {
                Ok(()) => tally.delivered += 1,
                Err(TrySendError::Full(event)) => return self.late.push_front(event),
                Err(TrySendError::Disconnected(_)) => return self.is_receiver_gone = true,
            }
            // A slow receiver, which takes ends one by one, must not keep the reader from the ring.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return;
            }
        }
    }

    /// Sends late ends at the stop, until `end`, as long as the receiver takes some. The remaining ends are lost.
    pub(crate) fn finish(&mut self, end: Instant, tally: &mut Tally) {
        let mut left = usize::MAX;
        while self.late.len() < left && !self.is_receiver_gone {
            left = self.late.len();
            let time = end.saturating_duration_since(Instant::now());
            self.send_late(Some(time.clamp(RECEIVER_PATIENCE, 2 * RECEIVER_PATIENCE)), tally);
            if left == 0 || time.is_zero() {
                break;
            }
        }
        std::mem::take(&mut self.late).iter().for_each(|event| tally.lose(event));
    }
}

/// UDP sockets of which transfers were lost. If nothing more moves, no later event has the total, so the end says so.
#[derive(Default)]
struct Incomplete {
    sockets: HashSet<u64>,
    /// There were more than are remembered.
    are_too_many: bool,
}

impl Incomplete {
    fn note(&mut self, lost: &CollectorEvent) {
        let Some(transfer) = lost.transfer().filter(|t| t.connection.key.protocol == Protocol::Udp) else {
            return;
        };
        if self.sockets.len() < MAX_LATE {
            self.sockets.insert(transfer.connection.socket);
        } else {
            self.are_too_many = true;
        }
    }

    fn mark_end(&mut self, event: &mut CollectorEvent) {
        if let CollectorEvent::Closed(closed) = event {
            let info = &mut closed.connection;
            let is_known = self.sockets.remove(&info.socket);
            info.is_partial |= is_known || (self.are_too_many && info.key.protocol == Protocol::Udp);
        }
    }
}

/// A timeout means that there was no room.
fn no_room(after: SendTimeoutError<CollectorEvent>) -> TrySendError<CollectorEvent> {
    match after {
        SendTimeoutError::Timeout(event) => TrySendError::Full(event),
        SendTimeoutError::Disconnected(event) => TrySendError::Disconnected(event),
    }
}

/// Is this an end, whose loss no later event can repair?
fn is_end(event: &CollectorEvent) -> bool {
    match event {
        CollectorEvent::Closed(_) | CollectorEvent::ConnectFailed(_) => true,
        CollectorEvent::TcpStateChange(change) => change.new_state == TcpState::Close,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Closed, ConnectionInfo, EventKind, StateChange, Totals, Transfer};
    use crate::model::{ConnectionKey, Direction, KernelTime};
    use crossbeam_channel::bounded;

    #[test]
    fn ends_wait_for_room() {
        let key = ConnectionKey::new(Protocol::Tcp, [127, 0, 0, 1].into(), 1, [127, 0, 0, 1].into(), 2);
        let info = ConnectionInfo::new(key, 1, KernelTime(1));
        let moved = || CollectorEvent::TcpSend(Transfer::new(info, Direction::Out, 5, 5));
        let change = StateChange::new(info, TcpState::LastAck, TcpState::Close);
        let ends = [
            CollectorEvent::TcpStateChange(change),
            CollectorEvent::Closed(Closed::new(info, Totals::default())),
        ];
        let (tx, rx) = bounded(1);
        let (mut channel, mut tally) = (Channel::new(tx, WhenFull::Drop), Tally::default());
        for event in [moved(), moved()].into_iter().chain(ends.clone()) {
            channel.send(event, &mut tally, || false);
        }
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [moved()]);
        for end in &ends {
            channel.send_late(None, &mut tally);
            assert_eq!(rx.try_iter().collect::<Vec<_>>(), std::slice::from_ref(end));
        }
        // The receiver makes no more room.
        [moved(), ends[1].clone()].into_iter().for_each(|event| channel.send(event, &mut tally, || false));
        channel.finish(Instant::now(), &mut tally);
        let lost = [EventKind::TcpSend, EventKind::Closed].map(|k| tally.lost.get(k, LossPlace::Channel));
        assert_eq!((tally.delivered, lost), (4, [1, 1]));
    }

    /// The end of a UDP socket has no totals that would make up for it.
    #[test]
    fn an_end_says_that_datagrams_were_lost() {
        let info = |socket| {
            let key = ConnectionKey::new(Protocol::Udp, [10, 0, 0, 9].into(), 1, [10, 0, 0, 1].into(), 2);
            ConnectionInfo::new(key, socket, KernelTime(1))
        };
        let (tx, rx) = bounded(1);
        let (mut channel, mut tally) = (Channel::new(tx, WhenFull::Drop), Tally::default());
        for socket in [1, 2] {
            let sent = Transfer::new(info(socket), Direction::Out, 5, 5);
            channel.send(CollectorEvent::UdpSend(sent), &mut tally, || false);
        }
        for (socket, is_partial) in [(1, false), (2, true)] {
            drop(rx.try_recv());
            let end = Closed::new(info(socket), Totals::default());
            channel.send(CollectorEvent::Closed(end), &mut tally, || false);
            let told = rx.try_recv().unwrap();
            assert_eq!(told.connection().map(|info| info.is_partial), Some(is_partial));
        }
    }
}
