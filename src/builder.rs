// SPDX-License-Identifier: MIT OR Apache-2.0
//! What users choose before they start a collector.

use crate::capabilities::{Backend, Bootstrap};
use crate::collector::LinuxCollector;
use crate::config::{Config, Granularity, WhenFull};
use crate::error::Result;
use crate::model::{AddressFamily, CgroupId, NetNs, Protocol};
use crate::output::EventHandler;
use crate::poller::Poller;
use crate::run::Events;
use crossbeam_channel::bounded;

/// Configures a [`LinuxCollector`].
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
    /// A builder with the default configuration.
    pub fn builder() -> LinuxCollectorBuilder {
        LinuxCollectorBuilder { config: Config::default() }
    }
}

impl LinuxCollectorBuilder {
    /// How often transfers are reported: with each call, or at intervals of 1 ms to 1 h. Default: every 100 ms.
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.config.granularity = granularity;
        self
    }

    /// What happens when the channel is full. Default: the event is dropped and counted. Of no effect with
    /// [`open`](Self::open), and where the handler is a function.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.config.when_full = when_full;
        self
    }

    /// Reports only connections that this process owns. Called several times: that any of these processes owns.
    ///
    /// The pid is that of the initial pid namespace, as in [`Process::pid`](crate::Process::pid). If a connection of which
    /// something was reported passes to another process, its end is still reported.
    pub fn pid(mut self, pid: u32) -> Self {
        self.config.filter.pids.push(pid);
        self
    }

    /// Reports only connections with this local or remote port, and datagrams whose remote port is not known. Called
    /// several times: with any of these ports.
    ///
    /// A UDP socket that has been there before, without a peer and at another port, is none of those that are found to
    /// exist. Its flows with this port are reported, but not marked as partial.
    pub fn port(mut self, port: u16) -> Self {
        self.config.filter.ports.push(port);
        self
    }

    /// Reports only this protocol.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.config.filter.protocol = Some(protocol);
        self
    }

    /// Reports only connections whose peer has an address of this family. IPv4 over an IPv6 socket is IPv4; datagrams of an
    /// unknown peer on an IPv6 socket may be of either, and are reported. Of UDP sockets
    /// without a peer that are found to exist the family of the socket counts: see [`port`](Self::port).
    pub fn family(mut self, family: AddressFamily) -> Self {
        self.config.filter.family = Some(family);
        self
    }

    /// Whether connections are reported of which an end has a loopback address (127.0.0.0/8 or ::1). Default: yes.
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

    /// Reports only connections owned by a process of this cgroup, as in
    /// [`Process::cgroup_id`](crate::Process::cgroup_id). Cgroups below it are others: see
    /// [`cgroup_tree`](Self::cgroup_tree). Called several times: of any of these cgroups.
    pub fn cgroup(mut self, id: CgroupId) -> Self {
        self.config.filter.cgroups.push(id);
        self
    }

    /// The same with all cgroups below this one, also those that are made later. It may be called several times, and
    /// together with [`cgroup`](Self::cgroup).
    ///
    /// Which cgroups are below it the kernel knows, up to 63 levels below the root of the hierarchy. For
    /// [existing connections](LinuxCollector::bootstrap_existing) it is looked up where the hierarchy is mounted: of a
    /// cgroup that this process does not see there, none is found.
    pub fn cgroup_tree(mut self, id: CgroupId) -> Self {
        self.config.filter.cgroup_trees.push(id);
        self
    }

    /// Uses this backend or none. Default: the best one that works.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.config.backend = Some(backend);
        self
    }

    /// Size of the ring buffer in bytes, up to 1 GiB; rounded up to a power of two of pages. Default: 4 MiB, which holds
    /// about 20,000 events.
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.config.ring_bytes = bytes;
        self
    }

    /// Capacity of the channel that [`spawn`](Self::spawn) makes, in events, up to 2^24. Default: 32,768, twice what can wait
    /// for the end of an interval (see [`max_sockets`](Self::max_sockets)). Each takes some 200 bytes from the start.
    pub fn channel_capacity(mut self, events: usize) -> Self {
        self.config.channel_capacity = events;
        self
    }

    /// For how many sockets, UDP flows to further peers, and connections with unreported bytes the kernel side has room. Up
    /// to 2^24, and of sockets at least 1,024. All of it is allocated at the start: about 1,200 bytes each.
    ///
    /// Default: 16,384 flows and unreported connections; of sockets one for every 512 KiB of memory, up to
    /// 262,144. The memory is that of the machine or of this process's cgroup; the states take 0.06 % of it. There is room for
    /// at least 16,384 sockets, and for twice as many as there are at the start.
    ///
    /// The events of sockets for which there is no room are counted as lost
    /// ([`LossPlace::Storage`](crate::LossPlace::Storage)). Of UDP flows the one that was used least recently makes room for a
    /// new one; it then starts again from zero, with a new [`since`](crate::ConnectionInfo::since).
    pub fn max_sockets(mut self, sockets: usize) -> Self {
        self.config.max_sockets = Some(sockets);
        self
    }

    /// The best way to find existing connections that shall be used; where it does not work /proc is. Default:
    /// sock_diag.
    pub fn bootstrap(mut self, way: Bootstrap) -> Self {
        self.config.bootstrap = way;
        self
    }

    /// Whether each start tries out what it has attached: it moves known bytes over loopback, TCP and UDP, IPv4 and
    /// IPv6, and looks whether they are reported. What is not is an incapability that
    /// [`Capabilities`](crate::Capabilities) tells, instead of a silence. Takes some milliseconds, and half a second more
    /// for each thing that is not seen; the test's own sockets show up in no event. Default: no. Not done where events are
    /// filtered.
    pub fn self_test(mut self, yes: bool) -> Self {
        self.config.self_test = yes;
        self
    }

    /// The collector, not started yet.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig).
    pub fn build(self) -> Result<LinuxCollector> {
        self.config.check()?;
        Ok(LinuxCollector::new(self.config))
    }

    /// Builds and starts a collector that hands its events to this handler: the sender of a channel of yours, or a
    /// function that takes them in batches. See [`EventHandler`].
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

    /// Builds and starts a collector for programs with a loop of their own: see [`Poller`].
    ///
    /// # Errors
    /// Those of [`build`](Self::build) and [`LinuxCollector::start_with`].
    pub fn open(self) -> Result<Poller> {
        self.config.check()?;
        Poller::new(self.config)
    }

    /// Builds and starts a collector with a channel of its own. Tracing goes on while one of the two lives, and until
    /// [`stop`](LinuxCollector::stop): see [`Events`].
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
        // A channel so large would take all memory, or panic.
        for wrong in [builder().ring_bytes(0), builder().channel_capacity(usize::MAX)] {
            assert!(matches!(wrong.spawn(), Err(Error::InvalidConfig { .. })));
        }
    }
}
