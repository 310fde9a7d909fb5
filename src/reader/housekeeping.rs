// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the reader does from time to time: collecting pending reports, losses, statistics.

use crate::config::{Config, Granularity};
use crate::error::{Error, Result};
use crate::kernel::{Barrier, Session};
use crate::sink::Sink;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a reader that is awake leaves the ring alone: the delay of an event while there is traffic.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long it sleeps at most, and so how soon it sees that it shall stop.
const SLEEP: Duration = Duration::from_millis(50);
/// Losses, statistics, and whether state records wait: at least so often, however long the interval is.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// With an event per call only what no call reports (splice) and what found no room in the ring waits.
const PER_CALL_COLLECT: Duration = Duration::from_millis(100);
/// Programs that the kernel has skipped are no news that could not wait.
const LOOK_AT_HOOKS_EVERY: Duration = Duration::from_secs(1);

/// What the reader does from time to time.
pub(super) struct Housekeeping {
    /// Reports that wait.
    collect: Timer,
    /// Everything else, which must not wait for a long interval.
    counters: Timer,
    look_at_hooks: Timer,
    grace: Grace,
    /// The bank that was left can be collected when what is in the ring by then has been read: so many records at most.
    backlog: Option<usize>,
    ring_records: usize,
    /// How many state records have found no room in the ring, as of the last look. The kernel side counts one before it lets
    /// it wait: so one that is counted is in the bank that is in use, or will be when the programs that run have ended,
    /// which the collection waits for.
    set_aside: u64,
    /// Some of them have not been collected.
    states_wait: bool,
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
            states_wait: false,
        })
    }

    /// For how long there is nothing to do here.
    pub(super) fn pause(&self) -> Duration {
        if self.is_collecting() {
            return LOOK_EVERY;
        }
        let next = self.collect.next.min(self.counters.next);
        next.saturating_duration_since(Instant::now()).min(SLEEP)
    }

    /// A bank was left and has not been collected.
    pub(super) fn is_collecting(&self) -> bool {
        self.grace.is_running || self.backlog.is_some()
    }

    /// After a look at the ring: collects if nothing is left in it that is older than what waits. A reader that is behind
    /// would hand out a connection's reports before its begin.
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

    /// Does what is due.
    pub(super) fn run(&mut self, session: &mut Session, sink: &mut Sink) {
        if self.grace.is_over() {
            self.backlog = Some(self.ring_records);
        }
        let now = Instant::now();
        if self.counters.is_due(now) {
            self.look_at_counters(now, session, sink);
        }
        if !self.is_collecting() && (self.states_wait || self.collect.is_due(now)) {
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
        self.states_wait |= states > self.set_aside;
        self.set_aside = states;
    }

    /// State records that wait bring forward the collection of all that waits. So they come after the reports of their
    /// connection as ever; that some reports then come early, where the ring was full, is the lesser evil.
    fn leave_bank(&mut self, now: Instant, session: &mut Session, sink: &mut Sink) {
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

/// Takes the pending reports of the bank that the programs have left.
pub(super) fn collect(session: &mut Session, sink: &mut Sink) {
    session.collect_waiting(|record| sink.collected(record));
    sink.release_ends();
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
}
