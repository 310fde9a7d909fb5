// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reader: it takes records out of the ring buffer and hands them to the sink. It has a thread of its own, or runs
//! in the caller's loop.

mod housekeeping;

use crate::config::Config;
use crate::error::Result;
use crate::event::CollectorEvent;
use crate::kernel::{ReaderState, Ring, Session};
use crate::output::Output;
use crate::shared::{NOT_RUNNING, Shared};
use crate::sink::Sink;
use housekeeping::{Housekeeping, LOOK_EVERY, collect};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// For this long after a stop, the reader still delivers ends that wait for room. A stop takes 200 ms at most.
const STOP_PATIENCE: Duration = Duration::from_millis(130);
/// After this many looks at an empty ring the reader goes to sleep. More looks would cost more than the wake-ups that
/// they save.
const EMPTY_LOOKS: u32 = 10;

/// Reads the ring and the banks, and writes to the output. The owner decides when the reader looks.
pub(crate) struct Reader {
    session: Session,
    ring: Ring,
    sink: Sink,
    housekeeping: Housekeeping,
    empty_looks: u32,
    /// Records that the self-test has taken out of the ring.
    early: Vec<Vec<u8>>,
    end: End,
}

/// Marks the run as ended when the reader is dropped, also by a panic in the user's function.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        *self.0.holders() = Err(NOT_RUNNING.into());
        self.0.ended.store(true, Ordering::Release);
    }
}

impl Reader {
    pub(crate) fn new(
        session: Session,
        early: Vec<Vec<u8>>,
        config: &Config,
        output: Output,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let end = End(Arc::clone(&shared));
        let ring = session.ring()?;
        let housekeeping = Housekeeping::new(config, &session)?;
        session.announce(ReaderState::Looking);
        Ok(Self { session, ring, sink: Sink::new(output, shared), housekeeping, empty_looks: 0, early, end })
    }

    /// Reads until the collector is stopped or the receiver is gone.
    pub(crate) fn run(mut self) {
        self.deliver_early();
        while !self.end.0.stopping() && !self.sink.is_receiver_gone() {
            self.wait_and_look();
        }
        self.finish();
    }

    /// Delivers the records of the self-test's time, before the first look. The start does not do this, because the
    /// channel may have no room.
    pub(crate) fn deliver_early(&mut self) {
        std::mem::take(&mut self.early).iter().for_each(|record| self.sink.collected(record));
    }

    /// Returns the events since the last call, to the caller of a poller.
    pub(crate) fn take(&mut self) -> Vec<CollectorEvent> {
        self.sink.take()
    }

    pub(crate) fn has_events(&self) -> bool {
        self.sink.has_events()
    }

    /// Shall the reader look every few milliseconds? It does if the ring had records lately, or if ends wait for room
    /// in the channel.
    fn is_awake(&mut self) -> bool {
        self.empty_looks < EMPTY_LOOKS || self.sink.has_late()
    }

    /// How long to wait before the next look, unless the kernel side wakes the reader.
    pub(crate) fn pause(&mut self) -> Duration {
        match (self.ring.is_behind(), self.is_awake()) {
            (true, _) => Duration::ZERO,
            (_, true) => LOOK_EVERY,
            _ => self.housekeeping.pause(),
        }
    }

    fn wait_and_look(&mut self) {
        let pause = self.pause();
        let records = if self.is_awake() {
            self.sink.rest(pause);
            self.read()
        } else {
            let records = match self.read_and_ask_to_be_woken() {
                0 => {
                    self.ring.wait(pause);
                    self.read()
                }
                records => records,
            };
            self.session.announce(ReaderState::Looking);
            records
        };
        self.go_on(records);
    }

    /// Looks at the ring after the caller has waited, and does the housekeeping.
    pub(crate) fn look(&mut self) {
        self.session.announce(ReaderState::Looking);
        let records = match self.read() {
            0 if !self.is_awake() => self.read_and_ask_to_be_woken(),
            records => records,
        };
        self.go_on(records);
    }

    fn read(&mut self) -> usize {
        let Self { ring, sink, .. } = self;
        ring.look(|record| sink.record(record))
    }

    /// Tells the kernel side to wake the reader from now on. Then looks once more, for records that came in between.
    fn read_and_ask_to_be_woken(&mut self) -> usize {
        self.session.announce(ReaderState::Asleep);
        self.read()
    }

    fn go_on(&mut self, records: usize) {
        self.empty_looks = if records > 0 { 0 } else { self.empty_looks.saturating_add(1) };
        let Self { session, ring, sink, housekeeping, .. } = self;
        housekeeping.catch_up(records, ring.is_behind(), session, sink);
        housekeeping.run(session, sink);
    }

    /// Detaches all programs and delivers the records that they have left. Returns the events that the caller of a
    /// poller has not taken.
    ///
    /// It detaches first, so that no new records come. If the kernel takes too long for that, the reader stops at the
    /// first look that reaches the end of the ring.
    pub(crate) fn finish(self) -> Vec<CollectorEvent> {
        let end = Instant::now() + STOP_PATIENCE;
        let Self { mut session, mut ring, mut sink, housekeeping, .. } = self;
        session.detach();
        // A bank that was left earlier, and not collected yet, comes first.
        let left = usize::from(housekeeping.is_collecting());
        for bank in 0..left + 2 {
            if bank >= left {
                session.next_epoch();
            }
            session.barrier().wait();
            sink.keep_ends();
            while !sink.is_receiver_gone() {
                ring.look(|record| sink.record(record));
                sink.flush();
                if !ring.is_behind() {
                    break;
                }
            }
            collect(&mut session, &mut sink);
        }
        session.look_at_hooks();
        sink.finish(end);
        sink.set_deferred(session.set_aside().iter().sum());
        sink.report_losses(&session.losses());
        sink.flush();
        housekeeping.end();
        sink.take()
    }

    /// The descriptor that becomes readable when the kernel side wakes the reader.
    pub(crate) fn ring_fd(&self) -> BorrowedFd<'_> {
        self.session.ring_fd()
    }
}
