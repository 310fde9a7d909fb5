// SPDX-License-Identifier: MIT OR Apache-2.0
//! Housekeeping: the reader collects pending reports, and publishes losses and statistics, from time to time.

use crate::config::{Config, Granularity};
use crate::error::{Error, Result};
use crate::kernel::{Barrier, Session};
use crate::sink::Sink;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time between two looks of a reader that is awake. While there is traffic, events are delayed by up to this time.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);
/// The longest sleep of the reader. A stop may wait this long before the reader sees it.
const SLEEP: Duration = Duration::from_millis(50);
/// Losses, statistics and deferred state records are looked at this often, or more often with a shorter interval.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// With an event per call, only two kinds of reports are pending: of bytes that no call reports (splice), and of bytes
/// for which the ring had no room.
const PER_CALL_COLLECT: Duration = Duration::from_millis(100);
/// The kernel's counts of skipped programs are read this often.
const LOOK_AT_HOOKS_EVERY: Duration = Duration::from_secs(1);

/// The timers of the reader, and the state of a collection.
pub(super) struct Housekeeping {
    /// When pending reports are collected next.
    collect: Timer,
    /// When the counters are looked at next. They do not wait for the end of a long interval.
    counters: Timer,
    look_at_hooks: Timer,
    grace: Grace,
    /// The grace period is over, and the left bank is collected after the records that were in the ring by then. At
    /// most this many of them are still to be read.
    backlog: Option<usize>,
    ring_records: usize,
    /// How many state records had found no room in the ring at the last look. The kernel side counts such a record
    /// first, and then puts it into the bank in use. So a counted record is in that bank at the latest when the running
    /// programs have ended. The collection waits for that.
    set_aside: u64,
    /// Some of these state records have not been collected yet.
    states_pending: bool,
}

impl Housekeeping {
    pub(super) fn new(config: &Config, session: &Session) -> Result<Self> {
        let interval = match config.granularity {
            Granularity::PerCall => PER_CALL_COLLECT,
            Granularity::Interval(every) => every,
        };
        let now = Instant::now();
        Ok(Self {
            collect: Timer::new(interval, now),
            counters: Timer::new(interval.min(HOUSEKEEPING), now),
            look_at_hooks: Timer::new(LOOK_AT_HOOKS_EVERY, now),
            grace: Grace::new(session.barrier())?,
            backlog: None,
            ring_records: session.ring_records(),
            set_aside: 0,
            states_pending: false,
        })
    }

    /// The time until the next housekeeping is due.
    pub(super) fn pause(&self) -> Duration {
        if self.is_collecting() {
            return LOOK_EVERY;
        }
        let next = self.collect.next.min(self.counters.next);
        next.saturating_duration_since(Instant::now()).min(SLEEP)
    }

    /// Was a bank left and not collected yet?
    pub(super) fn is_collecting(&self) -> bool {
        self.grace.is_running || self.backlog.is_some()
    }

    /// Collects the left bank if the looks have read all records that are older than its pending reports. If the reader
    /// collected earlier, it would hand out a connection's reports before its begin.
    pub(super) fn catch_up(
        &mut self,
        records: usize,
        is_behind: bool,
        session: &mut Session,
        sink: &mut Sink,
    ) {
        if let Some(backlog) = self.backlog {
            let backlog = backlog.saturating_sub(records);
            self.backlog = (is_behind && backlog > 0).then_some(backlog);
            if self.backlog.is_none() {
                collect(session, sink);
            }
        }
    }

    /// Does the housekeeping that is due.
    pub(super) fn run(&mut self, session: &mut Session, sink: &mut Sink) {
        if self.grace.is_over() {
            self.backlog = Some(self.ring_records);
        }
        let now = Instant::now();
        if self.counters.is_due(now) {
            self.look_at_counters(now, session, sink);
        }
        if !self.is_collecting() && (self.states_pending || self.collect.is_due(now)) {
            self.leave_bank(now, session, sink);
        }
        sink.flush();
    }

    pub(super) fn end(self) {
        self.grace.end();
    }

    fn look_at_counters(&mut self, now: Instant, session: &mut Session, sink: &mut Sink) {
        if self.look_at_hooks.is_due(now) {
            session.look_at_hooks();
        }
        let losses = session.losses();
        let [states, reports] = session.set_aside();
        sink.set_deferred(states + reports);
        sink.report_losses(&losses);
        self.states_pending |= states > self.set_aside;
        self.set_aside = states;
    }

    /// Begins a new epoch, if anything is pending. Pending state records do not wait for the end of the interval. They
    /// must come after the reports of their connection, so all pending reports are collected with them. Some of these
    /// reports then come early.
    fn leave_bank(&mut self, now: Instant, session: &mut Session, sink: &mut Sink) {
        self.collect.restart(now);
        self.states_pending = false;
        if session.has_pending() {
            session.next_epoch();
            if self.grace.begin() {
                sink.keep_ends();
            }
        }
    }
}

/// Takes the pending reports of the bank that the programs have left.
pub(super) fn collect(session: &mut Session, sink: &mut Sink) {
    session.collect_pending(|record| sink.collected(record));
    sink.release_ends();
}

/// The next time of a task, and its period.
#[derive(Clone, Copy, Debug)]
struct Timer {
    every: Duration,
    next: Instant,
}

impl Timer {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now + every }
    }

    /// Has the time come? If so, the next time is one period from now.
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

/// A thread that waits for the grace period after a change of the epoch. The wait takes milliseconds, and the reader
/// must read the ring meanwhile.
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
        let wait = move || {
            for () in asked {
                barrier.wait();
                if tell.send(()).is_err() {
                    break;
                }
            }
        };
        let thread = threads::spawn("tcptop-grace", wait).map_err(Error::Thread)?;
        Ok(Self { ask, over, thread, is_running: false })
    }

    /// Asks the thread to wait. False if the thread has ended, which does not happen.
    fn begin(&mut self) -> bool {
        self.is_running = self.ask.try_send(()).is_ok();
        self.is_running
    }

    /// Is the grace period over? True once for each [`begin`](Self::begin).
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
}
