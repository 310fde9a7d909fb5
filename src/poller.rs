// SPDX-License-Identifier: MIT OR Apache-2.0
//! A collector for programs that have a loop of their own.

use crate::capabilities::Capabilities;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::CollectorEvent;
use crate::output::Output;
use crate::reader::Reader;
use crate::record::ConnectionRecord;
use crate::stats::Stats;
use crate::survey::Survey;
use crate::tracer::Tracer;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A collector without a reader thread, for programs with a loop of their own.
///
/// [`LinuxCollectorBuilder::open`](crate::LinuxCollectorBuilder::open) makes it. For privileges, signals and forks see
/// [`LinuxCollector`](crate::LinuxCollector).
///
/// Its descriptor ([`AsFd`]) is readable when [`poll`](Self::poll) has something to do: every 2 milliseconds under
/// load, and some twenty times per second on an idle machine. Not every wake-up brings an event. If you poll late,
/// events wait in the ring buffer, as far as it has room.
///
/// Drop the poller to detach every program. This blocks for up to 200 ms.
///
/// The library still has threads that hold the programs, or wait for the kernel for some milliseconds. They read no
/// events.
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
/// use tcptop::{ConnectionTable, LinuxCollector};
///
/// let mut poller = LinuxCollector::builder().open()?;
/// let mut table = ConnectionTable::new();
/// loop {
///     // Or whenever epoll_wait(2) says that the poller's descriptor is readable, with a timeout of zero.
///     for event in poller.poll(Duration::from_secs(1)) {
///         table.apply(&event);
///     }
/// #   break;
/// }
/// # Ok::<(), tcptop::Error>(())
/// ```
#[must_use = "dropping a poller stops it"]
pub struct Poller {
    tracer: Tracer,
    reader: Option<Reader>,
    /// The events that were left at the stop.
    last: Vec<CollectorEvent>,
    alarm: Alarm,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("running", &self.reader.is_some()).finish_non_exhaustive()
    }
}

impl Poller {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let mut tracer = Tracer::new(config);
        let mut reader = tracer.start(|start| start.reader(Output::polled()))?;
        reader.deliver_early();
        let refused = |e: Errno| Error::Kernel { what: "make a descriptor to wait for", source: e.into() };
        let alarm = Alarm::new(reader.ring_fd()).map_err(refused)?;
        alarm.set(reader.pause());
        Ok(Self { tracer, reader: Some(reader), last: Vec::new(), alarm })
    }

    /// Waits until there are events, at most for this time, and returns them. A signal ends the wait, too.
    ///
    /// It returns up to some 256 events, or more at the end of an interval. Without events it returns an empty vector.
    pub fn poll(&mut self, timeout: Duration) -> Vec<CollectorEvent> {
        let begin = Instant::now();
        let mut left = timeout;
        while !self.has_events() && self.tracer.is_ours() && self.alarm.wait(left) && self.look() {
            left = timeout.saturating_sub(begin.elapsed());
            if left.is_zero() {
                break;
            }
        }
        self.reader.as_mut().map_or_else(|| std::mem::take(&mut self.last), Reader::take)
    }

    fn has_events(&self) -> bool {
        self.reader.as_ref().map_or(!self.last.is_empty(), Reader::has_events)
    }

    /// Reads the ring. False after the stop.
    fn look(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        reader.look();
        self.alarm.set(reader.pause());
        true
    }

    /// Detaches every program. Blocks for up to 200 ms. The next [`poll`](Self::poll) returns the remaining events.
    pub fn stop(&mut self) {
        match self.reader.take() {
            Some(reader) if self.tracer.is_ours() => {
                self.last = reader.finish();
                self.alarm.set(Duration::ZERO);
            }
            // In a forked child the programs are not ours, so they must not be detached.
            reader => std::mem::forget(reader),
        }
    }

    /// The features that the backend sees. See [`LinuxCollector::capabilities`](crate::LinuxCollector::capabilities).
    #[expect(clippy::expect_used, reason = "there is no poller whose start has failed")]
    pub fn capabilities(&self) -> Capabilities {
        self.tracer.capabilities().expect("a poller has started")
    }

    /// The counters of this run. See [`LinuxCollector::stats`](crate::LinuxCollector::stats).
    pub fn stats(&self) -> Stats {
        self.tracer.stats()
    }

    /// Lists existing connections. See
    /// [`LinuxCollector::bootstrap_existing`](crate::LinuxCollector::bootstrap_existing).
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    pub fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        self.tracer.bootstrap_existing()
    }

    /// Lists the ids of all sockets that exist now. See [`LinuxCollector::survey`](crate::LinuxCollector::survey).
    ///
    /// # Errors
    /// [`Error::Kernel`] if no network namespace can be listed.
    pub fn survey(&self) -> Result<Survey> {
        self.tracer.survey()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop();
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.both.as_fd()
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.alarm.both.as_raw_fd()
    }
}

/// One descriptor for both reasons to look: the kernel side wakes the reader, or the timer has run out.
struct Alarm {
    both: OwnedFd,
    timer: OwnedFd,
}

impl Alarm {
    fn new(ring: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [ring, timer.as_fd()] {
            epoll::add(&both, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Self { both, timer })
    }

    /// Sets the timer to fire once, after this time.
    fn set(&self, after: Duration) {
        // Zero would disarm the timer.
        let value = timespec(after.max(Duration::from_nanos(1)));
        let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            log::warn!("cannot set a timer: {e}");
        }
    }

    /// Waits until the descriptor is readable, or for this time. False if a signal came first.
    fn wait(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(&self.both, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(timeout))) != Err(Errno::INTR)
    }
}

/// A time that is too long for the kernel becomes the longest possible time.
fn timespec(time: Duration) -> Timespec {
    let longest = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    Timespec::try_from(time).unwrap_or(longest)
}
