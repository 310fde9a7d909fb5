// SPDX-License-Identifier: MIT OR Apache-2.0
//! A collector for programs that have a loop of their own.

use crate::capabilities::Capabilities;
use crate::collector::{LinuxCollector, NetworkCollector};
use crate::error::{Error, Result};
use crate::event::CollectorEvent;
use crate::reader::Reader;
use crate::record::ConnectionRecord;
use crate::stats::Stats;
use crate::survey::Survey;
use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A collector without a thread that reads: for programs that wait for many things at once and want to be called when
/// there is something to do. Made by [`LinuxCollectorBuilder::open`](crate::LinuxCollectorBuilder::open); everything else
/// is as with [`LinuxCollector`].
///
/// Its descriptor ([`AsFd`]) is readable when [`poll`](Self::poll) has something to do: under load every 2 milliseconds,
/// and on an idle machine some twenty times per second. Who polls later finds the events in the ring buffer, as far as it
/// has room for them. It stays on the thread that has made it. (One thread of its own remains, which waits for the kernel
/// where that takes milliseconds and reads nothing.)
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
pub struct Poller {
    collector: LinuxCollector,
    capabilities: Capabilities,
    reader: Option<Reader>,
    events: Receiver<CollectorEvent>,
    alarm: Alarm,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("running", &self.reader.is_some()).finish_non_exhaustive()
    }
}

impl Poller {
    pub(crate) fn new(mut collector: LinuxCollector) -> Result<Self> {
        let (reader, events, capabilities) = collector.start_here()?;
        let refused = |e| Error::Kernel { what: "make a descriptor to wait for", reason: Box::new(e) };
        let alarm = Alarm::new(reader.ring_fd()).map_err(refused)?;
        alarm.set(reader.pause());
        Ok(Self { collector, capabilities, reader: Some(reader), events, alarm })
    }

    /// Waits until there are events, or for this long, or until a signal comes, and hands them out. Those that are left in
    /// the iterator come with the next call, which then reads no further.
    pub fn poll(&mut self, timeout: Duration) -> impl Iterator<Item = CollectorEvent> {
        let begin = Instant::now();
        let mut left = timeout;
        while self.events.is_empty() && self.collector.is_ours() && self.alarm.wait(left) && self.look() {
            left = timeout.saturating_sub(begin.elapsed());
            if left.is_zero() {
                break;
            }
        }
        self.events.try_iter()
    }

    /// False if there is nothing more to come.
    fn look(&mut self) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        reader.look();
        self.alarm.set(reader.pause());
        true
    }

    /// Detaches every program, within 200 ms. What is in the ring buffer by then comes with the next
    /// [`poll`](Self::poll), the last one that has anything to hand out.
    pub fn stop(&mut self) {
        match self.reader.take() {
            Some(reader) if self.collector.is_ours() => {
                reader.finish();
                self.alarm.set(Duration::ZERO);
            }
            // In a process that was forked from ours: the programs are not its own.
            reader => std::mem::forget(reader),
        }
    }

    /// See [`LinuxCollector::capabilities`].
    pub fn capabilities(&self) -> Capabilities {
        self.collector.as_found(self.capabilities.clone())
    }

    /// See [`LinuxCollector::stats`].
    pub fn stats(&self) -> Stats {
        self.collector.stats()
    }

    /// See [`NetworkCollector::bootstrap_existing`].
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    pub fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        self.collector.bootstrap_existing()
    }

    /// See [`LinuxCollector::survey`].
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel lists its sockets nowhere.
    pub fn survey(&self) -> Result<Survey> {
        self.collector.survey()
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
