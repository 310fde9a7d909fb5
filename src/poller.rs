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

/// A collector without a thread that reads: for programs with a loop of their own. Made by
/// [`LinuxCollectorBuilder::open`](crate::LinuxCollectorBuilder::open). Everything else is as with
/// [`LinuxCollector`](crate::LinuxCollector).
///
/// Its descriptor ([`AsFd`]) is readable when [`poll`](Self::poll) has something to do: under load every 2 milliseconds,
/// and on an idle machine some twenty times per second. Events of a late poll are in the ring buffer, as far as it has
/// room for them. (One thread remains: it waits for the kernel where that takes milliseconds, and reads nothing.)
///
/// Dropping it detaches every program, within 200 ms.
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
    /// Events of the stop.
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

    /// Waits until there are events, or for this long, or until a signal comes, and hands the events out. Those are
    /// some 256, or more at the end of an interval; none if there are none.
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

    /// False if there is nothing more to come.
    fn look(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        reader.look();
        self.alarm.set(reader.pause());
        true
    }

    /// Detaches every program, within 200 ms. The events that are in the ring buffer by then come with the next
    /// [`poll`](Self::poll), the last one that has anything to hand out.
    pub fn stop(&mut self) {
        match self.reader.take() {
            Some(reader) if self.tracer.is_ours() => {
                self.last = reader.finish();
                self.alarm.set(Duration::ZERO);
            }
            // In a process that was forked from ours: the programs are not its own.
            reader => std::mem::forget(reader),
        }
    }

    /// What the backend can see. See [`LinuxCollector::capabilities`](crate::LinuxCollector::capabilities).
    #[expect(clippy::expect_used, reason = "there is no poller whose start has failed")]
    pub fn capabilities(&self) -> Capabilities {
        self.tracer.capabilities().expect("a poller has started")
    }

    /// See [`LinuxCollector::stats`](crate::LinuxCollector::stats).
    pub fn stats(&self) -> Stats {
        self.tracer.stats()
    }

    /// See [`LinuxCollector::bootstrap_existing`](crate::LinuxCollector::bootstrap_existing).
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    pub fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        self.tracer.bootstrap_existing()
    }

    /// See [`LinuxCollector::survey`](crate::LinuxCollector::survey).
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel lists its sockets nowhere.
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

/// One descriptor for both reasons to look: the kernel side asks for it, or it is time.
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

    /// Once, so long from now; it is silent until then.
    fn set(&self, after: Duration) {
        // To a timer zero means never.
        let value = timespec(after.max(Duration::from_nanos(1)));
        let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
        if let Err(e) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            log::warn!("cannot set a timer: {e}");
        }
    }

    /// False if a signal came first.
    fn wait(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(&self.both, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(timeout))) != Err(Errno::INTR)
    }
}

/// What is too long for the kernel is as long as it can be.
fn timespec(time: Duration) -> Timespec {
    let longest = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
    Timespec::try_from(time).unwrap_or(longest)
}
