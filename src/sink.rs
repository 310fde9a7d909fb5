// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where records go once they are read: decoded, into a channel or to a function.

use crate::config::WhenFull;
use crate::decode::{self, Undecodable};
use crate::event::{CollectorEvent, LossPlace};
use crate::model::TcpState;
use crate::reader::Shared;
use crate::stats::{LossTable, Stats};
use crossbeam_channel::{SendTimeoutError, Sender, TrySendError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for room in the channel before looking whether to stop.
const SEND_SLICE: Duration = Duration::from_millis(10);
/// That many events are still in the processor's cache when the function gets them.
const BATCH: usize = 256;
/// A receiver that has taken nothing for so long takes no more.
const RECEIVER_PATIENCE: Duration = Duration::from_millis(25);
/// So many ends wait for room in the channel.
const MOST_LATE: usize = 65_536;

/// Where events go.
pub(crate) enum Output {
    /// One by one.
    Channel { tx: Sender<CollectorEvent>, when_full: WhenFull },
    /// Many at once.
    Batches { handler: Handler, batch: Vec<CollectorEvent> },
}

type Handler = Box<dyn FnMut(&[CollectorEvent]) + Send>;

impl Output {
    pub(crate) fn batches(handler: impl FnMut(&[CollectorEvent]) + Send + 'static) -> Self {
        Self::Batches { handler: Box::new(handler), batch: Vec::with_capacity(2 * BATCH) }
    }
}

/// The output's end at the reader, with everything that can happen to an event on its way there.
pub(crate) struct Sink {
    output: Output,
    shared: Arc<Shared>,
    /// Shared from time to time, not at each event.
    stats: Stats,
    /// Lost here, in total: in the channel and by decoding.
    lost: LossTable,
    /// Lost anywhere, as far as events have told it.
    reported: LossTable,
    receiver_gone: bool,
    /// Ends of connections wait, for reports of theirs may be in the bank that is about to be collected.
    keeps_ends: bool,
    ends: Vec<Vec<u8>>,
    /// Ends for which the channel had no room. No later event would tell what they do.
    late: VecDeque<CollectorEvent>,
}

impl Sink {
    pub(crate) fn new(output: Output, shared: Arc<Shared>) -> Self {
        Self {
            output,
            stats: shared.stats(),
            shared,
            lost: LossTable::default(),
            reported: LossTable::default(),
            receiver_gone: false,
            keeps_ends: false,
            ends: Vec::new(),
            late: VecDeque::new(),
        }
    }

    pub(crate) fn is_receiver_gone(&self) -> bool {
        self.receiver_gone
    }

    /// Takes a record. Calls no function of the user's: it may panic, and libbpf may be among the callers.
    pub(crate) fn record(&mut self, record: &[u8]) {
        if self.keeps_ends && decode::is_end(record) {
            return self.ends.push(record.to_vec());
        }
        match (decode::simple_event(record), &mut self.output) {
            (Some(event), Output::Batches { batch, .. }) => {
                batch.push(event);
                self.stats.events += 1;
            }
            (Some(event), _) => self.send(event),
            (None, _) => self.any_record(record),
        }
    }

    #[inline(never)]
    fn any_record(&mut self, record: &[u8]) {
        match decode::any_event(record) {
            Ok(event) => {
                let milestone = decode::milestone(&event, record);
                self.stats.audit_mismatches += u64::from(decode::has_audit_mismatch(&event, record));
                self.send(event);
                if let Some(event) = milestone {
                    self.send(event);
                }
            }
            Err(Undecodable::UnknownKind) => self.stats.unknown_records += 1,
            Err(Undecodable::Malformed(kind)) => self.lost.add(kind, LossPlace::Decode, 1),
        }
    }

    /// Takes a record that waited; many of them may come in one go.
    pub(crate) fn collected(&mut self, record: &[u8]) {
        self.record(record);
        if matches!(&self.output, Output::Batches { batch, .. } if batch.len() >= BATCH) {
            self.flush();
        }
    }

    /// A bank is about to be collected.
    pub(crate) fn keep_ends(&mut self) {
        self.keeps_ends = true;
    }

    /// The bank has been collected.
    pub(crate) fn release_ends(&mut self) {
        self.keeps_ends = false;
        std::mem::take(&mut self.ends).iter().for_each(|record| self.collected(record));
    }

    /// Hands out what makes a batch by now, and ends for which there is room at last.
    pub(crate) fn flush(&mut self) {
        self.hand_over(None);
        if let Output::Batches { handler, batch } = &mut self.output {
            if !batch.is_empty() {
                handler(batch);
                batch.clear();
            }
        }
    }

    /// Ends wait for room in the channel.
    pub(crate) fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Waits so long, and hands over the ends that wait as fast as the receiver takes what is before them.
    pub(crate) fn rest(&mut self, pause: Duration) {
        if self.late.is_empty() { thread::sleep(pause) } else { self.hand_over(Some(pause)) }
    }

    /// At the stop: hands over ends as long as somebody takes them, until then, and waits a moment to see that.
    pub(crate) fn hand_over_until(&mut self, end: Instant) {
        let mut left = usize::MAX;
        while self.late.len() < left && !self.receiver_gone {
            left = self.late.len();
            let time = end.saturating_duration_since(Instant::now());
            self.hand_over(Some(time.clamp(RECEIVER_PATIENCE, 2 * RECEIVER_PATIENCE)));
            if left == 0 || time.is_zero() {
                break;
            }
        }
    }

    /// Hands over the ends that wait, as far as there is room, now or within this time.
    fn hand_over(&mut self, patience: Option<Duration>) {
        let Output::Channel { tx, .. } = &self.output else { return };
        if self.late.is_empty() {
            return;
        }
        let deadline = patience.map(|time| Instant::now() + time);
        while let Some(event) = self.late.pop_front() {
            let sent = match deadline {
                Some(deadline) => tx.send_deadline(event, deadline).map_err(refusal),
                None => tx.try_send(event),
            };
            match sent {
                Ok(()) => self.stats.events += 1,
                Err(TrySendError::Full(event)) => return self.late.push_front(event),
                Err(TrySendError::Disconnected(_)) => return self.receiver_gone = true,
            }
            // Who takes them one by one would keep the reader from the ring.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return;
            }
        }
    }

    fn send(&mut self, event: CollectorEvent) {
        // First those that wait: what comes takes no room from them, and the ends of one connection keep their order.
        if !self.late.is_empty() {
            self.hand_over(None);
            if !self.late.is_empty() {
                return if is_end(&event) { self.put_off(event) } else { self.lose(&event) };
            }
        }
        match self.try_send(event) {
            Ok(()) => self.stats.events += 1,
            Err(refused) => self.refused(refused),
        }
    }

    #[cold]
    fn refused(&mut self, refused: TrySendError<CollectorEvent>) {
        match self.wait_for_room(refused) {
            Ok(()) => self.stats.events += 1,
            Err(TrySendError::Full(event)) if is_end(&event) => self.put_off(event),
            Err(TrySendError::Full(event)) => self.lose(&event),
            Err(TrySendError::Disconnected(_)) => self.receiver_gone = true,
        }
    }

    fn put_off(&mut self, event: CollectorEvent) {
        if self.late.len() < MOST_LATE { self.late.push_back(event) } else { self.lose(&event) }
    }

    fn lose(&mut self, event: &CollectorEvent) {
        if let Some(kind) = event.kind() {
            self.lost.add(kind, LossPlace::Channel, 1);
        }
    }

    pub(crate) fn set_deferred(&mut self, records: u64) {
        self.stats.deferred = records;
    }

    /// There will be no more room: what still waits for it is lost.
    pub(crate) fn give_up(&mut self) {
        std::mem::take(&mut self.late).iter().for_each(|event| self.lose(event));
    }

    #[inline]
    #[expect(clippy::result_large_err, reason = "the event goes back to who has made it")]
    fn try_send(&mut self, event: CollectorEvent) -> Result<(), TrySendError<CollectorEvent>> {
        match &mut self.output {
            Output::Channel { tx, .. } => tx.try_send(event),
            Output::Batches { batch, .. } => {
                batch.push(event);
                Ok(())
            }
        }
    }

    /// As long as the user wants to wait.
    #[expect(clippy::result_large_err, reason = "the event goes back to who has made it")]
    fn wait_for_room(
        &self,
        refused: TrySendError<CollectorEvent>,
    ) -> Result<(), TrySendError<CollectorEvent>> {
        let mut result = Err(refused);
        let Output::Channel { tx, when_full: WhenFull::Wait } = &self.output else { return result };
        while let Err(TrySendError::Full(event)) = result {
            if self.shared.stopping() {
                return Err(TrySendError::Full(event));
            }
            result = tx.send_timeout(event, SEND_SLICE).map_err(refusal);
        }
        result
    }

    /// Shares the counters, and reports as events what was lost since the last time. A report that finds the channel
    /// full is made again the next time.
    pub(crate) fn report_losses(&mut self, kernel_losses: &LossTable) {
        self.stats.losses = self.lost.plus(kernel_losses);
        for lost in decode::loss_reports(&self.reported, &self.stats.losses) {
            match self.try_send(CollectorEvent::Lost(lost)) {
                Ok(()) => self.reported.add(lost.kind, lost.place, lost.count),
                Err(TrySendError::Disconnected(_)) => self.receiver_gone = true,
                Err(TrySendError::Full(_)) => {}
            }
        }
        self.shared.publish(&self.stats);
    }
}

/// Also where the user's function has panicked: what it was handed counts.
impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.publish(&self.stats);
    }
}

/// To have waited in vain is to have found no room.
fn refusal(after: SendTimeoutError<CollectorEvent>) -> TrySendError<CollectorEvent> {
    match after {
        SendTimeoutError::Timeout(event) => TrySendError::Full(event),
        SendTimeoutError::Disconnected(event) => TrySendError::Disconnected(event),
    }
}

/// Is there no later event that would tell the same?
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
    use crate::event::{Closed, ConnectionInfo, EventKind, Lost, StateChange, Totals, Transfer};
    use crate::model::{ConnectionKey, Direction, KernelTime, Protocol};
    use crossbeam_channel::bounded;

    fn losses(count: u64) -> LossTable {
        let mut losses = LossTable::default();
        losses.add(EventKind::UdpSend, LossPlace::Ring, count);
        losses
    }

    fn lost(count: u64) -> CollectorEvent {
        CollectorEvent::Lost(Lost::new(EventKind::UdpSend, LossPlace::Ring, count))
    }

    #[test]
    fn a_loss_for_which_the_channel_had_no_room_is_told_the_next_time() {
        let shared = Arc::new(Shared::default());
        let (tx, rx) = bounded(1);
        let mut sink = Sink::new(Output::Channel { tx, when_full: WhenFull::Drop }, Arc::clone(&shared));
        sink.report_losses(&losses(2));
        sink.report_losses(&losses(5));
        assert_eq!(shared.stats().lost_total(), 5, "the statistics know it at once");
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [lost(2)]);
        sink.report_losses(&losses(5));
        sink.report_losses(&losses(5));
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [lost(3)]);
        assert!(!sink.is_receiver_gone());
    }

    #[test]
    fn ends_wait_for_room_in_the_channel() {
        let key = ConnectionKey::new(Protocol::Tcp, [127, 0, 0, 1].into(), 1, [127, 0, 0, 1].into(), 2);
        let info = ConnectionInfo::new(key, 1, KernelTime(1));
        let moved = || CollectorEvent::TcpSend(Transfer::new(info, Direction::Out, 5, 5));
        let change = StateChange::new(info, TcpState::LastAck, TcpState::Close);
        let ends = [
            CollectorEvent::TcpStateChange(change),
            CollectorEvent::Closed(Closed::new(info, Totals::default())),
        ];
        let shared = Arc::new(Shared::default());
        let (tx, rx) = bounded(1);
        let mut sink = Sink::new(Output::Channel { tx, when_full: WhenFull::Drop }, Arc::clone(&shared));
        [moved(), moved()].into_iter().chain(ends.clone()).for_each(|event| sink.send(event));
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [moved()]);
        for end in &ends {
            sink.flush();
            assert_eq!(rx.try_iter().collect::<Vec<_>>(), std::slice::from_ref(end));
        }
        // Nobody makes room any more.
        [moved(), ends[1].clone()].into_iter().for_each(|event| sink.send(event));
        sink.flush();
        sink.give_up();
        sink.report_losses(&LossTable::default());
        let stats = shared.stats();
        assert_eq!((stats.events, stats.lost_total()), (4, 2));
        assert_eq!(
            [EventKind::TcpSend, EventKind::Closed].map(|k| stats.lost(k, LossPlace::Channel)),
            [1, 1]
        );
    }

    #[test]
    fn a_loss_that_nobody_receives_shows_that_the_receiver_is_gone() {
        let shared = Arc::new(Shared::default());
        let (tx, rx) = bounded(1);
        let mut sink = Sink::new(Output::Channel { tx, when_full: WhenFull::Wait }, Arc::clone(&shared));
        drop(rx);
        sink.report_losses(&losses(0));
        assert!(!sink.is_receiver_gone(), "there was nothing to send");
        sink.report_losses(&losses(1));
        assert!(sink.is_receiver_gone());
    }
}
