// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sink: it decodes records into batches of events, and hands the batches to the output.

use crate::decode::{self, Undecodable};
use crate::event::{CollectorEvent, LossPlace};
use crate::output::{Output, Tally};
use crate::shared::Shared;
use crate::stats::{LossTable, Stats};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The size of a batch: this many events are still in the processor's cache when they are handed out.
const BATCH: usize = 256;

/// Takes the reader's records, and counts delivered and lost events.
pub(crate) struct Sink {
    output: Output,
    /// Events that were not handed out yet.
    batch: Vec<CollectorEvent>,
    shared: Arc<Shared>,
    /// Published from time to time, not at each event.
    stats: Stats,
    tally: Tally,
    /// The losses that were reported as events.
    reported: LossTable,
    /// A bank is about to be collected. It may have reports of connections whose ends are in the ring already, so the
    /// sink keeps these ends back.
    keeps_ends: bool,
    ends: Vec<Vec<u8>>,
}

impl Sink {
    pub(crate) fn new(output: Output, shared: Arc<Shared>) -> Self {
        Self {
            output,
            batch: Vec::with_capacity(2 * BATCH),
            stats: shared.stats(),
            shared,
            tally: Tally::default(),
            reported: LossTable::default(),
            keeps_ends: false,
            ends: Vec::new(),
        }
    }

    pub(crate) fn is_receiver_gone(&mut self) -> bool {
        self.output.channel().is_some_and(|channel| channel.is_receiver_gone())
    }

    /// Takes a record of the ring. It calls no handler, because the record occupies the ring until this returns.
    pub(crate) fn record(&mut self, record: &[u8]) {
        if self.keeps_ends && decode::is_end(record) {
            return self.ends.push(record.to_vec());
        }
        match decode::fast_event(record) {
            Some(event) => self.batch.push(event),
            None => self.any_record(record),
        }
    }

    #[inline(never)]
    fn any_record(&mut self, record: &[u8]) {
        match decode::full_event(record) {
            Ok(event) => {
                let derived = decode::derived_event(&event, record);
                self.stats.audit_mismatches += u64::from(decode::has_audit_mismatch(&event, record));
                self.batch.push(event);
                self.batch.extend(derived);
            }
            Err(Undecodable::UnknownKind) => self.stats.unknown_records += 1,
            Err(Undecodable::Malformed(kind)) => self.tally.lost.add(kind, LossPlace::Decode, 1),
        }
    }

    /// Takes a record that was pending in a bank, or was kept back. Many may come at once, so full batches are handed
    /// out.
    pub(crate) fn collected(&mut self, record: &[u8]) {
        self.record(record);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Keeps ends back from now on, because a bank is about to be collected.
    pub(crate) fn keep_ends(&mut self) {
        self.keeps_ends = true;
    }

    /// Hands on the ends that were kept back, because the bank has been collected.
    pub(crate) fn release_ends(&mut self) {
        self.keeps_ends = false;
        std::mem::take(&mut self.ends).iter().for_each(|record| self.collected(record));
    }

    /// Hands the batch to the handler. Late ends for which the channel has room now go first. With a poller, the caller
    /// takes the events by [`take`](Self::take) instead.
    pub(crate) fn flush(&mut self) {
        let Self { output, batch, tally, shared, .. } = self;
        if let Some(channel) = output.channel() {
            channel.send_late(None, tally);
            batch.drain(..).for_each(|event| channel.send(event, tally, || shared.stopping()));
        } else if let Some(handler) = output.function().filter(|_| !batch.is_empty()) {
            // The function may panic, and then has had the events. So they are counted before the call.
            tally.delivered += count(batch);
            handler.handle(batch);
            batch.clear();
        }
    }

    /// Returns the events since the last call, to the caller of a poller.
    pub(crate) fn take(&mut self) -> Vec<CollectorEvent> {
        self.tally.delivered += count(&self.batch);
        std::mem::take(&mut self.batch)
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Do ends wait for room in the channel?
    pub(crate) fn has_late(&mut self) -> bool {
        self.output.channel().is_some_and(|channel| channel.has_late())
    }

    /// Waits for this time. Late ends are sent meanwhile, as soon as the receiver makes room.
    pub(crate) fn rest(&mut self, pause: Duration) {
        match self.output.channel().filter(|channel| channel.has_late()) {
            Some(channel) => channel.send_late(Some(pause), &mut self.tally),
            None => thread::sleep(pause),
        }
    }

    /// Delivers the remaining events at the stop. Late ends may wait for room until `end`, as long as the receiver
    /// takes some.
    pub(crate) fn finish(&mut self, end: Instant) {
        self.flush();
        if let Some(channel) = self.output.channel() {
            channel.finish(end, &mut self.tally);
        }
    }

    pub(crate) fn set_deferred(&mut self, records: u64) {
        self.stats.deferred = records;
    }

    /// Publishes the counters, and reports new losses as events. If the channel has no room for a report, the next call
    /// makes it again.
    pub(crate) fn report_losses(&mut self, kernel_losses: &LossTable) {
        self.flush();
        self.stats.losses = self.tally.lost.plus(kernel_losses);
        for lost in decode::loss_reports(&self.reported, &self.stats.losses) {
            let event = CollectorEvent::Lost(lost);
            let is_told = match self.output.channel() {
                Some(channel) => channel.report(event),
                None => {
                    self.batch.push(event);
                    true
                }
            };
            if is_told {
                self.reported.add(lost.kind, lost.place, lost.count);
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.stats.events = self.tally.delivered;
        self.shared.publish(&self.stats);
    }
}

/// Publishes the counters also after a panic in the user's function, which has had its events.
impl Drop for Sink {
    fn drop(&mut self) {
        self.publish();
    }
}

/// Counts the events. Reports of losses do not count as events.
fn count(events: &[CollectorEvent]) -> u64 {
    events.iter().filter(|event| event.kind().is_some()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WhenFull;
    use crate::event::{EventKind, Lost};
    use crate::output::EventHandler;
    use crossbeam_channel::{Receiver, bounded};

    fn losses(count: u64) -> LossTable {
        let mut losses = LossTable::default();
        losses.add(EventKind::UdpSend, LossPlace::Ring, count);
        losses
    }

    fn lost(count: u64) -> CollectorEvent {
        CollectorEvent::Lost(Lost::new(EventKind::UdpSend, LossPlace::Ring, count))
    }

    fn sink(shared: &Arc<Shared>, when_full: WhenFull) -> (Sink, Receiver<CollectorEvent>) {
        let (tx, rx) = bounded(1);
        (Sink::new(tx.into_output(when_full), Arc::clone(shared)), rx)
    }

    #[test]
    fn a_loss_report_that_found_no_room_is_sent_again() {
        let shared = Arc::new(Shared::default());
        let (mut sink, rx) = sink(&shared, WhenFull::Drop);
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
    fn a_loss_report_without_a_receiver_shows_that_the_receiver_is_gone() {
        let shared = Arc::new(Shared::default());
        let (mut sink, rx) = sink(&shared, WhenFull::Wait);
        drop(rx);
        sink.report_losses(&losses(0));
        assert!(!sink.is_receiver_gone(), "there was nothing to send");
        sink.report_losses(&losses(1));
        assert!(sink.is_receiver_gone());
    }

    #[test]
    fn reports_of_losses_do_not_count_as_events() {
        let shared = Arc::new(Shared::default());
        let mut sink = Sink::new(Output::polled(), Arc::clone(&shared));
        sink.report_losses(&losses(3));
        assert_eq!(sink.take(), [lost(3)]);
        drop(sink);
        assert_eq!(shared.stats().events, 0);
    }
}
