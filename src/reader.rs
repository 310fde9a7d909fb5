// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reader thread: from the ring buffer to the sink.

use crate::config::{Config, Granularity};
use crate::error::{Error, Result};
use crate::event::{EventKind, LossPlace};
use crate::kernel::{Barrier, Iterators, Reader, Ring, Session};
use crate::sink::{Output, Sink};
use crate::stats::{LossTable, Stats};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a reader that is awake leaves the ring alone: the delay of an event while there is traffic.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long it sleeps at most, and so how soon it sees that it shall stop.
const SLEEP: Duration = Duration::from_millis(50);
/// What epoll_wait(2) may be asked for.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
/// After so many looks at an empty ring it goes to sleep.
const EMPTY_LOOKS: u32 = 50;
/// Losses, statistics, and whether state records wait: at least so often, however long the interval is.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// With an event per call only what no call reports (splice) and what found no room in the ring waits.
const PER_CALL_SWEEP: Duration = Duration::from_millis(100);
/// Programs that the kernel has skipped are no news that could not wait.
const LOOK_AT_HOOKS_EVERY: Duration = Duration::from_secs(1);

/// Why there are no iterators without a thread.
const NOT_RUNNING: &str = "iterators are only there while the collector runs";

/// What the reader thread and the collector share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The collector wants the thread to end.
    pub(crate) stop: AtomicBool,
    /// The thread has ended, or is about to.
    pub(crate) ended: AtomicBool,
    stats: Mutex<Stats>,
    /// There while the thread runs; else in words why not.
    iterators: Mutex<Result<Iterators, String>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            stop: AtomicBool::default(),
            ended: AtomicBool::default(),
            stats: Mutex::default(),
            iterators: Mutex::new(Err(NOT_RUNNING.into())),
        }
    }
}

impl Shared {
    pub(crate) fn stats(&self) -> Stats {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Plain counters: whatever a panicking holder left is as good as anything.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_kernel_memory(&self, bytes: u64) {
        self.lock().kernel_memory_bytes = bytes;
    }

    /// Iterators over what exists already. Nobody panics while holding them.
    pub(crate) fn iterators(&self) -> MutexGuard<'_, Result<Iterators, String>> {
        self.iterators.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, stats: &Stats) {
        self.lock().clone_from(stats);
    }
}

/// Runs until it shall stop or the receiver is gone; then detaches all programs and delivers what is left. `early` is
/// what somebody else has taken out of the ring. `ready` is told once whether reading works.
pub(crate) fn run(
    mut session: Session,
    config: &Config,
    early: Vec<Vec<u8>>,
    output: Output,
    shared: &Shared,
    ready: impl FnOnce(Result<()>),
) {
    let _end = End(shared);
    let sink = RefCell::new(Sink::new(output, shared));
    let ring = Ring::new(&session, |record| {
        let mut sink = sink.borrow_mut();
        sink.record(record);
        // What is in the ring when the collector stops is delivered too.
        !sink.is_receiver_gone()
    });
    let ring = match ring {
        Ok(ring) => ring,
        Err(e) => return ready(Err(e)),
    };
    let mut sweeps = match Sweeps::new(config, &session) {
        Ok(sweeps) => sweeps,
        Err(e) => return ready(Err(e)),
    };
    session.announce(Reader::Looking);
    ready(Ok(()));
    early.iter().for_each(|record| sink.borrow_mut().collected(record));
    drop(early);
    let mut empty_looks = 0;
    while !shared.stopping() && !sink.borrow().is_receiver_gone() {
        let records = if empty_looks < EMPTY_LOOKS {
            if !ring.is_behind() {
                thread::sleep(LOOK_EVERY);
            }
            ring.look()
        } else {
            let records = sleep(&session, &ring, sweeps.pause());
            session.announce(Reader::Looking);
            records
        };
        empty_looks = if records > 0 { 0 } else { empty_looks.saturating_add(1) };
        sweeps.catch_up(records, ring.is_behind(), &mut session, &mut sink.borrow_mut());
        sweeps.run(&mut session, &mut sink.borrow_mut());
    }
    finish(session, &ring, &sink, sweeps);
}

/// What is left to do when the thread ends, also by a panic in the user's function.
struct End<'s>(&'s Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.iterators() = Err(NOT_RUNNING.into());
        self.0.ended.store(true, Ordering::Release);
    }
}

/// Tells the kernel side that it must wake the reader from now on, looks once more for what came in between, and
/// sleeps.
fn sleep(session: &Session, ring: &Ring<'_>, time: Duration) -> usize {
    session.announce(Reader::Asleep);
    match ring.look() {
        0 => ring.wait(time),
        records => records,
    }
}

/// Everything that the programs have left behind. They are detached first, so that there is an end to it; where that
/// takes the kernel too long, a look that has reached the end of the ring is the last one.
fn finish(mut session: Session, ring: &Ring<'_>, sink: &RefCell<Sink<'_>>, sweeps: Sweeps) {
    session.detach();
    for _bank in 0..2 {
        session.next_epoch();
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
    sink.borrow_mut().report_losses(&session.losses());
    sink.borrow_mut().flush();
    sweeps.grace.end();
}

/// Takes what waits in the bank that the programs have left.
fn collect(session: &mut Session, sink: &mut Sink<'_>) {
    session.collect_waiting(|record| sink.collected(record));
    sink.release_ends();
}

/// What the reader does from time to time.
struct Sweeps {
    /// Reports that wait.
    collect: Timer,
    /// Everything else, which must not wait for a long interval.
    housekeeping: Timer,
    look_at_hooks: Timer,
    grace: Grace,
    /// The bank that was left can be collected when what is in the ring by then has been read: so many records at most.
    backlog: Option<usize>,
    ring_records: usize,
    /// How many state records have found no room in the ring, as of the last look.
    set_aside: u64,
    /// Some of them have not been collected.
    states_wait: bool,
}

impl Sweeps {
    fn new(config: &Config, session: &Session) -> Result<Self> {
        let interval = match config.granularity {
            Granularity::PerCall => PER_CALL_SWEEP,
            Granularity::Interval(every) => every,
        };
        let now = Instant::now();
        Ok(Self {
            collect: Timer::new(interval, now),
            housekeeping: Timer::new(interval.min(HOUSEKEEPING), now),
            look_at_hooks: Timer::new(LOOK_AT_HOOKS_EVERY, now),
            grace: Grace::new(session.barrier())?,
            backlog: None,
            ring_records: session.ring_records(),
            set_aside: 0,
            states_wait: false,
        })
    }

    /// For how long there is nothing to do here.
    fn pause(&self) -> Duration {
        if self.is_collecting() {
            return LOOK_EVERY;
        }
        let next = self.collect.next.min(self.housekeeping.next);
        next.saturating_duration_since(Instant::now()).clamp(SHORTEST_SLEEP, SLEEP)
    }

    /// A bank was left and has not been collected.
    fn is_collecting(&self) -> bool {
        self.grace.is_running || self.backlog.is_some()
    }

    /// After a look at the ring: collects if nothing is left in it that is older than what waits. A reader that is behind
    /// would hand out a connection's reports before its begin.
    fn catch_up(&mut self, records: usize, is_behind: bool, session: &mut Session, sink: &mut Sink<'_>) {
        if let Some(backlog) = self.backlog {
            let backlog = backlog.saturating_sub(records);
            self.backlog = (is_behind && backlog > 0).then_some(backlog);
            if self.backlog.is_none() {
                collect(session, sink);
            }
        }
    }

    /// Does what is due.
    fn run(&mut self, session: &mut Session, sink: &mut Sink<'_>) {
        if self.grace.is_over() {
            self.backlog = Some(self.ring_records);
        }
        let now = Instant::now();
        if self.housekeeping.is_due(now) {
            self.keep_house(now, session, sink);
        }
        if !self.is_collecting() && (self.states_wait || self.collect.is_due(now)) {
            self.leave_bank(now, session, sink);
        }
        sink.flush();
    }

    fn keep_house(&mut self, now: Instant, session: &mut Session, sink: &mut Sink<'_>) {
        if self.look_at_hooks.is_due(now) {
            session.look_at_hooks();
        }
        let losses = session.losses();
        sink.report_losses(&losses);
        let set_aside = set_aside(&losses);
        self.states_wait |= set_aside > self.set_aside;
        self.set_aside = set_aside;
    }

    /// State records that wait bring forward the collection of all that waits. So they come after the reports of their
    /// connection as ever; that some reports then come early, where the ring was full, is the lesser evil.
    fn leave_bank(&mut self, now: Instant, session: &mut Session, sink: &mut Sink<'_>) {
        self.collect.restart(now);
        self.states_wait = false;
        if session.anything_waits() {
            session.next_epoch();
            if self.grace.begin() {
                sink.keep_ends();
            }
        }
    }
}

/// The kernel side counts a state record as lost in the ring before it puts it aside. So one that is counted here is in
/// the bank that is in use, or will be when the programs that run have ended, which the collection waits for.
fn set_aside(losses: &LossTable) -> u64 {
    [EventKind::TcpStateChange, EventKind::Closed].map(|kind| losses.get(kind, LossPlace::Ring)).iter().sum()
}

/// Something that is due again and again.
#[derive(Clone, Copy, Debug)]
struct Timer {
    every: Duration,
    next: Instant,
}

impl Timer {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now + every }
    }

    /// If so, the next time is a period from now.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.next <= now;
        if is_due {
            self.restart(now);
        }
        is_due
    }

    fn restart(&mut self, now: Instant) {
        self.next = now + self.every;
    }
}

/// A thread that waits until the bank that was left at the last change of the epoch may be collected: the kernel takes
/// its time, and the ring must be read meanwhile.
struct Grace {
    ask: Sender<()>,
    over: Receiver<()>,
    thread: JoinHandle<()>,
    is_running: bool,
}

impl Grace {
    fn new(barrier: Barrier) -> Result<Self> {
        let (ask, asked) = bounded(1);
        let (tell, over) = bounded(1);
        let thread = thread::Builder::new()
            .name("tcptop-grace".into())
            .spawn(move || {
                for () in asked {
                    barrier.wait();
                    if tell.send(()).is_err() {
                        break;
                    }
                }
            })
            .map_err(Error::Thread)?;
        Ok(Self { ask, over, thread, is_running: false })
    }

    /// False if that thread has ended, which it does not.
    fn begin(&mut self) -> bool {
        self.is_running = self.ask.try_send(()).is_ok();
        self.is_running
    }

    /// True once for each [`begin`](Self::begin).
    fn is_over(&mut self) -> bool {
        let over = self.is_running && self.over.try_recv().is_ok();
        self.is_running &= !over;
        over
    }

    fn end(self) {
        drop(self.ask);
        drop(self.thread.join());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_once_per_period_and_can_be_put_off() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut timer = Timer::new(second, start);
        assert!(!timer.is_due(start) && !timer.is_due(start + second / 2));
        assert!(timer.is_due(start + 5 * second / 4) && !timer.is_due(start + 2 * second));
        timer.restart(start + 2 * second);
        assert!(!timer.is_due(start + 5 * second / 2) && timer.is_due(start + 3 * second));
    }

    #[test]
    fn state_records_that_found_no_room_were_set_aside_and_nothing_else_was() {
        let mut losses = LossTable::default();
        losses.add(EventKind::TcpSend, LossPlace::Ring, 1);
        losses.add(EventKind::Closed, LossPlace::Storage, 2);
        losses.add(EventKind::Opened, LossPlace::Channel, 4);
        assert_eq!(set_aside(&losses), 0);
        losses.add(EventKind::Closed, LossPlace::Ring, 8);
        losses.add(EventKind::TcpStateChange, LossPlace::Ring, 16);
        assert_eq!(set_aside(&losses), 24);
    }

    #[test]
    fn iterators_are_only_there_with_a_thread() {
        let shared = Shared::default();
        assert!(shared.iterators().as_ref().is_err_and(|why| why.contains("while the collector runs")));
    }
}
