// SPDX-License-Identifier: MIT OR Apache-2.0
//! The builder: it holds the configuration until a collector is made.

use crate::capabilities::{Backend, Bootstrap};
use crate::collector::LinuxCollector;
use crate::config::{Config, Granularity, WhenFull};
use crate::error::Result;
use crate::event::EventKind;
use crate::model::{AddressFamily, CgroupId, NetNs, Protocol};
use crate::output::EventHandler;
use crate::poller::Poller;
use crate::run::Events;
use crossbeam_channel::bounded;

/// Configures a [`LinuxCollector`] or a [`Poller`].
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
/// use tcptop::{Granularity, LinuxCollector};
///
/// let (collector, events) = LinuxCollector::builder()
///     .granularity(Granularity::Interval(Duration::from_secs(1)))
///     .port(443)
///     .spawn()?;
/// # Ok::<(), tcptop::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LinuxCollectorBuilder {
    config: Config,
}

impl LinuxCollector {
    /// Makes a builder with the default configuration.
    pub fn builder() -> LinuxCollectorBuilder {
        LinuxCollectorBuilder { config: Config::default() }
    }
}

impl LinuxCollectorBuilder {
    /// Sets how often transfers are reported: with each call, or at an interval of 1 ms to 1 h. Default: every 100 ms.
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.config.granularity = granularity;
        self
    }

    /// Sets what happens while the channel is full. Default: the event is dropped and counted.
    ///
    /// This has no effect with [`open`](Self::open), or if the handler is a function.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.config.when_full = when_full;
        self
    }

    /// Reports only connections that this process owns. After several calls, any of these processes may own it.
    ///
    /// The pid is that of the initial pid namespace, as in [`Process::pid`](crate::Process::pid). A connection may pass
    /// to another process after it was reported. Then its end is still reported.
    pub fn pid(mut self, pid: u32) -> Self {
        self.config.filter.pids.push(pid);
        self
    }

    /// Reports only connections with this local or remote port. After several calls, it may be any of these ports.
    ///
    /// Datagrams whose remote port is unknown are reported, too.
    ///
    /// A UDP socket without a peer may be older than the tracer and have another local port. Then
    /// [`bootstrap_existing`](LinuxCollector::bootstrap_existing) leaves it out. Its flows with this port are reported,
    /// but a table does not mark them as partial.
    pub fn port(mut self, port: u16) -> Self {
        self.config.filter.ports.push(port);
        self
    }

    /// Reports only connections of this protocol.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.config.filter.protocol = Some(protocol);
        self
    }

    /// Reports only connections whose peer has an address of this family.
    ///
    /// IPv4 over an IPv6 socket counts as IPv4. Datagrams of an unknown peer on an IPv6 socket may be of either family,
    /// and are reported. For an existing UDP socket without a peer, the family of the socket counts. If that is the
    /// other family, [`bootstrap_existing`](LinuxCollector::bootstrap_existing) leaves the socket out, as with
    /// [`port`](Self::port).
    pub fn family(mut self, family: AddressFamily) -> Self {
        self.config.filter.family = Some(family);
        self
    }

    /// Sets whether connections with a loopback address (127.0.0.0/8 or ::1) at an end are reported. Default: yes.
    pub fn loopback(mut self, yes: bool) -> Self {
        self.config.filter.no_loopback = !yes;
        self
    }

    /// Reports only connections in this network namespace, as in
    /// [`ConnectionInfo::netns`](crate::ConnectionInfo::netns).
    pub fn netns(mut self, netns: NetNs) -> Self {
        self.config.filter.netns = Some(netns);
        self
    }

    /// Reports only connections whose owner is in this cgroup. After several calls, it may be any of these cgroups.
    ///
    /// The id is that of [`Process::cgroup_id`](crate::Process::cgroup_id). Cgroups below this cgroup do not pass: see
    /// [`cgroup_tree`](Self::cgroup_tree).
    pub fn cgroup(mut self, id: CgroupId) -> Self {
        self.config.filter.cgroups.push(id);
        self
    }

    /// Reports only connections whose owner is in this cgroup or in a cgroup below it, now or later.
    ///
    /// It may be called several times, and together with [`cgroup`](Self::cgroup): an owner in any of these cgroups
    /// passes.
    ///
    /// For events, the kernel knows which cgroups are below others, up to 63 levels below the root of the hierarchy.
    /// For [existing connections](LinuxCollector::bootstrap_existing), the library reads the directories of the mounted
    /// hierarchy. If this process does not see a cgroup there, no existing connection of that cgroup is found.
    pub fn cgroup_tree(mut self, id: CgroupId) -> Self {
        self.config.filter.cgroup_trees.push(id);
        self
    }

    /// Uses this backend alone; if it does not work, the start fails. Default: the best backend that works.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.config.backend = Some(backend);
        self
    }

    /// Sets the size of the ring buffer in bytes, up to 1 GiB. Default: 4 MiB, which holds about 20,000 events.
    ///
    /// The size is rounded up to a power of two of pages.
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.config.ring_bytes = bytes;
        self
    }

    /// Sets the capacity of the channel that [`spawn`](Self::spawn) makes, in events, up to 2^24. Default: 32,768.
    ///
    /// The default is twice the number of reports that can wait for the end of an interval (see
    /// [`max_sockets`](Self::max_sockets)). Each event of the capacity takes some 200 bytes from the start.
    pub fn channel_capacity(mut self, events: usize) -> Self {
        self.config.channel_capacity = events;
        self
    }

    /// Sets for how many sockets the kernel side has room, up to 2^24. Default: by the memory, 16,384 or more.
    ///
    /// The number also holds for UDP flows to further peers, and for connections with unreported bytes. There is room
    /// for at least 1,024 sockets in any case. All of it is allocated at the start: about 1,200 bytes for each unit.
    ///
    /// By default, there is room for 16,384 flows and as many connections with unreported bytes. There is room for one
    /// socket per 512 KiB of memory, between 16,384 and 262,144. The memory is that of the machine or of this process's
    /// cgroup; the states of the sockets take 0.06 % of it. If more than half of these sockets exist at the start,
    /// there is room for twice as many as exist, up to 1,048,576.
    ///
    /// If there is no room for a socket, its events are counted as lost
    /// ([`LossPlace::Storage`](crate::LossPlace::Storage)). If there is no room for a UDP flow, it replaces the flow
    /// that was used least recently. The replaced flow starts again from zero, with a new
    /// [`since`](crate::ConnectionInfo::since).
    pub fn max_sockets(mut self, sockets: usize) -> Self {
        self.config.max_sockets = Some(sockets);
        self
    }

    /// Whether each retransmission of TCP segments is reported
    /// ([`CollectorEvent::TcpRetransmit`](crate::CollectorEvent::TcpRetransmit)). Default: no; then no program is loaded for
    /// them. How many there were is told at the [end](crate::Closed::retransmits) of each connection in any case.
    pub fn retransmits(mut self, yes: bool) -> Self {
        self.config.report(EventKind::TcpRetransmit, yes);
        self
    }

    /// Sets how existing connections are found. Default: by sock_diag. If sock_diag does not work, /proc is used.
    pub fn bootstrap(mut self, way: Bootstrap) -> Self {
        self.config.bootstrap = way;
        self
    }

    /// Sets whether each start tests the programs that it has attached. Default: no.
    ///
    /// The test moves known bytes over loopback, by TCP and UDP, IPv4 and IPv6, and reads the events of them. If events
    /// are missing, [`Capabilities`](crate::Capabilities) names the feature as limited. The test's own sockets appear
    /// in no event that you get. With a filter there is no test.
    ///
    /// The start takes some milliseconds longer, and half a second more for each protocol and family whose events are
    /// missing.
    pub fn self_test(mut self, yes: bool) -> Self {
        self.config.self_test = yes;
        self
    }

    /// Makes a collector, which you start later. Needs no privileges.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the wrong value.
    pub fn build(self) -> Result<LinuxCollector> {
        self.config.check()?;
        Ok(LinuxCollector::new(self.config))
    }

    /// Builds a collector and starts it with this handler: the sender of your own channel, or a function. See
    /// [`EventHandler`].
    ///
    /// Blocks until tracing is live, some hundred milliseconds. [`LinuxCollector`] names the privileges.
    ///
    /// # Errors
    /// Those of [`build`](Self::build) and [`LinuxCollector::start_with`].
    ///
    /// # Examples
    /// ```no_run
    /// use std::sync::{Arc, Mutex};
    /// use tcptop::{CollectorEvent, ConnectionTable, LinuxCollector};
    ///
    /// let table = Arc::new(Mutex::new(ConnectionTable::new()));
    /// let shared = Arc::clone(&table);
    /// let collector = LinuxCollector::builder().spawn_with(move |events: &[CollectorEvent]| {
    ///     let mut table = shared.lock().unwrap();
    ///     events.iter().for_each(|event| table.apply(event));
    /// })?;
    /// # Ok::<(), tcptop::Error>(())
    /// ```
    pub fn spawn_with(self, handler: impl EventHandler) -> Result<LinuxCollector> {
        let mut collector = self.build()?;
        collector.start_with(handler)?;
        Ok(collector)
    }

    /// Builds and starts a [`Poller`], for programs with a loop of their own.
    ///
    /// Blocks until tracing is live, some hundred milliseconds. [`LinuxCollector`] names the privileges.
    ///
    /// # Errors
    /// Those of [`build`](Self::build) and [`LinuxCollector::start_with`].
    pub fn open(self) -> Result<Poller> {
        self.config.check()?;
        Poller::new(self.config)
    }

    /// Builds and starts a collector with a channel of its own.
    ///
    /// Tracing goes on until [`stop`](LinuxCollector::stop), or until both the collector and the [`Events`] are
    /// dropped. Blocks until tracing is live, some hundred milliseconds. [`LinuxCollector`] names the privileges.
    ///
    /// # Errors
    /// Those of [`build`](Self::build) and [`LinuxCollector::start_with`].
    pub fn spawn(self) -> Result<(LinuxCollector, Events)> {
        let capacity = self.config.channel_capacity;
        let mut collector = self.build()?;
        let (tx, rx) = bounded(capacity);
        collector.start(tx)?;
        let events = Events::new(rx, collector.run());
        Ok((collector, events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_wrong_configuration_is_refused_before_the_kernel_is_asked() {
        let builder = LinuxCollector::builder;
        // Such a large channel would take all memory, or panic.
        for wrong in [builder().ring_bytes(0), builder().channel_capacity(usize::MAX)] {
            assert!(matches!(wrong.spawn(), Err(Error::InvalidConfig { .. })));
        }
    }
}
