// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reader: from the ring buffer to the sink, on a thread of its own or in somebody's loop.

mod sweeps;

use crate::config::Config;
use crate::error::Result;
use crate::forks;
use crate::kernel::{Holders, ReaderState, Ring, Session};
use crate::sink::{Output, Sink};
use crate::stats::Stats;
use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sweeps::Sweeps;

/// How long a reader that is awake leaves the ring alone: the delay of an event while there is traffic.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// A stop takes 200 ms at most. So long after it was noticed the receiver gets ends that still wait.
const STOP_PATIENCE: Duration = Duration::from_millis(130);
/// After so many looks at an empty ring it goes to sleep. More would cost it more than the wake-ups that they spare.
const EMPTY_LOOKS: u32 = 10;

/// Why there is no iterator without a reader.
pub(crate) const NOT_RUNNING: &str = "the iterator is only there while the collector runs";

/// What the reader and the collector share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The process in which it was made.
    process: u64,
    /// The collector wants the thread to end.
    pub(crate) stop: AtomicBool,
    /// The thread has ended, or is about to.
    pub(crate) ended: AtomicBool,
    stats: Mutex<Stats>,
    /// There while the thread runs; else in words why not.
    holders: Mutex<Result<Holders, String>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            process: forks::this_process(),
            stop: AtomicBool::default(),
            ended: AtomicBool::default(),
            stats: Mutex::default(),
            holders: Mutex::new(Err(NOT_RUNNING.into())),
        }
    }
}

impl Shared {
    /// In a process that was forked from ours the lock may be held by a thread that does not exist there.
    pub(crate) fn stats(&self) -> Stats {
        if self.is_ours() {
            self.lock().clone()
        } else {
            self.stats.try_lock().map_or_else(|_| Stats::default(), |stats| stats.clone())
        }
    }

    /// Is this the process in which it was made, and not one that was forked from it?
    pub(crate) fn is_ours(&self) -> bool {
        self.process == forks::this_process()
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Plain counters: whatever a panicking holder left is as good as anything.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_kernel_memory(&self, bytes: u64) {
        self.lock().kernel_memory_bytes = bytes;
    }

    /// The iterator over the processes that hold sockets. Nobody panics while holding it.
    pub(crate) fn holders(&self) -> MutexGuard<'_, Result<Holders, String>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, stats: &Stats) {
        self.lock().clone_from(stats);
    }
}

/// Runs a thread's reader until it shall stop or the receiver is gone. `ready` is told once whether reading works.
pub(crate) fn run(
    session: Session,
    config: &Config,
    early: Vec<Vec<u8>>,
    output: Output,
    shared: Arc<Shared>,
    ready: impl FnOnce(Result<()>),
) {
    let mut reader = match Reader::new(session, config, output, shared) {
        Ok(reader) => reader,
        Err(e) => return ready(Err(e)),
    };
    ready(Ok(()));
    reader.deliver(early);
    while reader.is_wanted() {
        reader.wait_and_look();
    }
    reader.finish();
}

/// From the ring and the banks to the output. What it must be told is when to look.
pub(crate) struct Reader {
    session: Session,
    ring: Ring<'static>,
    sink: Rc<RefCell<Sink>>,
    sweeps: Sweeps,
    empty_looks: u32,
    end: End,
}

/// What is left to do when the reader ends, also by a panic in the user's function.
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
        config: &Config,
        output: Output,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let end = End(Arc::clone(&shared));
        let sink = Rc::new(RefCell::new(Sink::new(output, shared)));
        let into = Rc::clone(&sink);
        let ring = Ring::new(&session, move |record| {
            let mut sink = into.borrow_mut();
            sink.record(record);
            // What is in the ring when the collector stops is delivered too.
            !sink.is_receiver_gone()
        })?;
        let sweeps = Sweeps::new(config, &session)?;
        session.announce(ReaderState::Looking);
        Ok(Self { session, ring, sink, sweeps, empty_looks: 0, end })
    }

    /// Hands out what somebody else has taken out of the ring.
    pub(crate) fn deliver(&self, records: Vec<Vec<u8>>) {
        records.iter().for_each(|record| self.sink.borrow_mut().collected(record));
    }

    /// It was not told to stop, and there is somebody who receives.
    fn is_wanted(&self) -> bool {
        !self.end.0.stopping() && !self.sink.borrow().is_receiver_gone()
    }

    /// There was something in the ring lately, or the receiver may take something soon: so it is worth while to look every
    /// few milliseconds.
    fn is_awake(&self) -> bool {
        self.empty_looks < EMPTY_LOOKS || self.sink.borrow().has_late()
    }

    /// For how long there will be nothing to do, unless the kernel side wakes the reader.
    pub(crate) fn pause(&self) -> Duration {
        match (self.ring.is_behind(), self.is_awake()) {
            (true, _) => Duration::ZERO,
            (_, true) => LOOK_EVERY,
            _ => self.sweeps.pause(),
        }
    }

    fn wait_and_look(&mut self) {
        let records = if self.is_awake() {
            let pause = self.pause();
            self.sink.borrow_mut().rest(pause);
            self.ring.look()
        } else {
            let records = match self.look_and_ask_to_be_woken() {
                0 => self.ring.wait(self.pause()),
                records => records,
            };
            self.session.announce(ReaderState::Looking);
            records
        };
        self.go_on(records);
    }

    /// The same for who does the waiting elsewhere.
    pub(crate) fn look(&mut self) {
        self.session.announce(ReaderState::Looking);
        let records = match self.ring.look() {
            0 if !self.is_awake() => self.look_and_ask_to_be_woken(),
            records => records,
        };
        self.go_on(records);
    }

    /// Tells the kernel side that it must wake the reader from now on, and looks once more for what came in between.
    fn look_and_ask_to_be_woken(&self) -> usize {
        self.session.announce(ReaderState::Asleep);
        self.ring.look()
    }

    fn go_on(&mut self, records: usize) {
        self.empty_looks = if records > 0 { 0 } else { self.empty_looks.saturating_add(1) };
        let mut sink = self.sink.borrow_mut();
        self.sweeps.catch_up(records, self.ring.is_behind(), &mut self.session, &mut sink);
        self.sweeps.run(&mut self.session, &mut sink);
    }

    /// Detaches all programs and delivers everything that they have left behind. They are detached first, so that there
    /// is an end to it; where that takes the kernel too long, a look that has reached the end of the ring is the last
    /// one.
    pub(crate) fn finish(self) {
        let end = Instant::now() + STOP_PATIENCE;
        let Self { mut session, ring, sink, sweeps, .. } = self;
        session.detach();
        // A bank that was left before comes first.
        let left = usize::from(sweeps.is_collecting());
        for bank in 0..left + 2 {
            if bank >= left {
                session.next_epoch();
            }
            session.barrier().wait();
            sink.borrow_mut().keep_ends();
            while !sink.borrow().is_receiver_gone() {
                ring.look();
                sink.borrow_mut().flush();
                if !ring.is_behind() {
                    break;
                }
            }
            collect(&mut session, &mut sink.borrow_mut());
        }
        session.look_at_hooks();
        sink.borrow_mut().flush();
        sink.borrow_mut().hand_over_until(end);
        sink.borrow_mut().give_up();
        sink.borrow_mut().set_deferred(session.set_aside().iter().sum());
        sink.borrow_mut().report_losses(&session.losses());
        sink.borrow_mut().flush();
        sweeps.end();
    }

    /// What makes a descriptor readable when the kernel side wakes the reader.
    pub(crate) fn ring_fd(&self) -> BorrowedFd<'_> {
        self.session.ring_fd()
    }
}

/// Takes what waits in the bank that the programs have left.
fn collect(session: &mut Session, sink: &mut Sink) {
    session.collect_waiting(|record| sink.collected(record));
    sink.release_ends();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_iterator_is_only_there_with_a_reader() {
        let shared = Shared::default();
        assert!(shared.holders().as_ref().is_err_and(|why| why.contains("while the collector runs")));
    }
}
