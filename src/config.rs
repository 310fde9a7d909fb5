// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration: its values, their limits and defaults, and the filter.

use crate::capabilities::{Backend, Bootstrap};
use crate::error::{Error, Result};
use crate::event::EventKind;
use crate::model::{AddressFamily, CgroupId, ConnectionKey, NetNs, ParseError, Protocol};
use crate::mounts;
use crate::record::ConnectionRecord;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How often transfers are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Granularity {
    /// One event per call.
    PerCall,
    /// At most one event per connection and direction in this time (for UDP, per socket and peer).
    ///
    /// The first bytes after a pause are reported at once. Each byte is reported within this time and a few
    /// milliseconds. State changes, ends and losses do not wait: they come at once. If the ring had no room for them,
    /// they come within 0.2 seconds.
    ///
    /// There are more events in these cases:
    /// - Several processes use a socket in turn: there is an event per call.
    /// - The ring overflows.
    /// - There are more sockets than [`max_sockets`](crate::LinuxCollectorBuilder::max_sockets).
    Interval(Duration),
}

impl Default for Granularity {
    /// Every 100 ms.
    fn default() -> Self {
        Self::Interval(Duration::from_millis(100))
    }
}

impl fmt::Display for Granularity {
    /// `call`, or the interval, such as `100ms` or `1s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerCall => f.pad("call"),
            Self::Interval(every) if every.subsec_nanos() == 0 => f.pad(&format!("{}s", every.as_secs())),
            Self::Interval(every) if every.subsec_nanos() % 1_000_000 == 0 => {
                f.pad(&format!("{}ms", every.as_millis()))
            }
            Self::Interval(every) => f.pad(&format!("{every:?}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = ParseError;

    /// Reads `call`, or an interval in whole milliseconds or seconds: `100ms`, `1s`. The
    /// [builder](crate::LinuxCollectorBuilder::build) checks the interval's limits.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let millis = |number: &str| number.parse().ok().map(Duration::from_millis);
        let seconds = |number: &str| number.parse().ok().map(Duration::from_secs);
        let interval = match text.strip_suffix("ms") {
            Some(number) => millis(number),
            None => text.strip_suffix('s').and_then(seconds),
        };
        match interval {
            Some(every) => Ok(Self::Interval(every)),
            None if text == "call" => Ok(Self::PerCall),
            None => Err(ParseError::new("granularity", "call, or a time such as 100ms or 1s", text)),
        }
    }
}

/// What the reader does with an event while the channel is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// It drops the event and counts the loss ([`Stats`](crate::Stats), [`LossPlace::Channel`](crate::LossPlace)).
    ///
    /// Up to 65,536 ends of connections wait for room instead, because no later event can repair their loss.
    #[default]
    Drop,
    /// It waits until there is room, or until the collector is stopped.
    ///
    /// Meanwhile the ring fills up. Events that do not fit there are counted as [`LossPlace::Ring`](crate::LossPlace).
    Wait,
}

/// Which connections are reported. The kernel side applies it to events, and `retain_wanted` to existing connections.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Only connections that one of these processes owns.
    pub(crate) pids: Vec<u32>,
    /// Only connections with one of these ports, local or remote.
    pub(crate) ports: Vec<u16>,
    /// Only this protocol.
    pub(crate) protocol: Option<Protocol>,
    /// Only connections whose peer has an address of this family.
    pub(crate) family: Option<AddressFamily>,
    /// No connections with a loopback address.
    pub(crate) no_loopback: bool,
    /// Only connections in this network namespace.
    pub(crate) netns: Option<NetNs>,
    /// Only connections whose owner is in one of these cgroups, or in one of `cgroup_trees`.
    pub(crate) cgroups: Vec<CgroupId>,
    /// Cgroups that stand for all cgroups below them, too.
    pub(crate) cgroup_trees: Vec<CgroupId>,
}

impl Filter {
    /// Keeps the existing connections that pass the filter.
    ///
    /// A cgroup's id does not tell which cgroups are above it. So this function reads the directories of the hierarchy.
    pub(crate) fn retain_wanted(&self, found: &mut Vec<ConnectionRecord>) {
        let mut cgroups = mounts::cgroups_below(&self.cgroup_trees);
        cgroups.extend(&self.cgroups);
        found.retain(|record| self.wants(record, &cgroups));
    }

    fn wants(&self, record: &ConnectionRecord, cgroups: &HashSet<CgroupId>) -> bool {
        let ConnectionKey { protocol, local_addr, local_port, remote_addr, remote_port } = record.key;
        (self.pids.is_empty() || record.pid().is_some_and(|pid| self.pids.contains(&pid)))
            && (self.ports.is_empty()
                || [local_port, remote_port].iter().any(|port| self.ports.contains(port)))
            && self.protocol.is_none_or(|wanted| protocol == wanted)
            && self.family.is_none_or(|wanted| AddressFamily::of(remote_addr) == wanted)
            && !(self.no_loopback && (local_addr.is_loopback() || remote_addr.is_loopback()))
            && (self.netns.is_none() || record.netns == self.netns)
            && (!self.is_by_cgroup()
                || record.owner.and_then(|owner| owner.cgroup_id).is_some_and(|id| cgroups.contains(&id)))
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: &'static str| Err(Error::InvalidConfig { what });
        if self.pids.contains(&0) {
            return invalid("pid 0 is not a process");
        }
        if self.ports.contains(&0) {
            return invalid("port 0 is not a port of a connection");
        }
        if self.pids.len() > MOST_NAMED || self.cgroups.len() + self.cgroup_trees.len() > MOST_NAMED {
            return invalid("a filter names at most 65,536 processes, and as many cgroups");
        }
        Ok(())
    }

    /// Does the filter name any cgroup?
    pub(crate) fn is_by_cgroup(&self) -> bool {
        !self.cgroups.is_empty() || !self.cgroup_trees.is_empty()
    }
}

/// A filter may name this many processes, and this many cgroups. More would make the kernel's maps large.
const MOST_NAMED: usize = 65_536;

/// The default number of UDP flows and of pending reports for which there is room.
pub(crate) const DEFAULT_FLOWS: u32 = 16_384;

/// All settings of a builder.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) granularity: Granularity,
    pub(crate) when_full: WhenFull,
    pub(crate) filter: Filter,
    pub(crate) backend: Option<Backend>,
    pub(crate) ring_bytes: usize,
    pub(crate) channel_capacity: usize,
    pub(crate) max_sockets: Option<usize>,
    pub(crate) self_test: bool,
    pub(crate) bootstrap: Bootstrap,
    /// Events that are not reported, and for which no program is loaded.
    pub(crate) unwanted: Vec<EventKind>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            granularity: Granularity::default(),
            when_full: WhenFull::default(),
            filter: Filter::default(),
            backend: None,
            ring_bytes: 4 << 20,
            channel_capacity: 32_768,
            max_sockets: None,
            self_test: false,
            bootstrap: Bootstrap::default(),
            unwanted: vec![EventKind::TcpRetransmit],
        }
    }
}

impl Config {
    pub(crate) fn report(&mut self, kind: EventKind, yes: bool) {
        self.unwanted.retain(|&unwanted| unwanted != kind);
        self.unwanted.extend((!yes).then_some(kind));
    }

    /// Refuses wrong values by name, before the kernel refuses them in its own words.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what: &'static str| Err(Error::InvalidConfig { what });
        if self.ring_bytes == 0 || self.ring_bytes > 1 << 30 {
            return invalid("ring_bytes must be between 1 and 1 GiB");
        }
        if self.channel_capacity == 0 || self.channel_capacity > 1 << 24 {
            return invalid("channel_capacity must be between 1 and 16,777,216");
        }
        if self.max_sockets.is_some_and(|sockets| sockets == 0 || sockets > 1 << 24) {
            return invalid("max_sockets must be between 1 and 16,777,216");
        }
        if let Granularity::Interval(every) = self.granularity {
            if every < Duration::from_millis(1) || every > Duration::from_secs(3600) {
                return invalid("the interval must be between 1 ms and 1 h, if events do not come per call");
            }
        }
        self.filter.check()
    }

    /// The interval in nanoseconds; 0 means an event per call.
    pub(crate) fn interval_ns(&self) -> u64 {
        match self.granularity {
            Granularity::PerCall => 0,
            Granularity::Interval(every) => u64::try_from(every.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KernelTime, Process};

    #[test]
    fn configurations_that_cannot_work_are_refused_with_the_field_that_is_wrong() {
        let bad = [
            Config { ring_bytes: 0, ..Config::default() },
            Config { max_sockets: Some(0), ..Config::default() },
            Config { granularity: Granularity::Interval(Duration::from_micros(1)), ..Config::default() },
            Config { filter: Filter { pids: vec![7, 0], ..Filter::default() }, ..Config::default() },
            Config { channel_capacity: 0, ..Config::default() },
            Config { channel_capacity: usize::MAX, ..Config::default() },
            Config { filter: Filter { ports: vec![0], ..Filter::default() }, ..Config::default() },
            Config { filter: Filter { pids: vec![1; 65_537], ..Filter::default() }, ..Config::default() },
        ];
        let words = [
            "ring_bytes",
            "max_sockets",
            "interval",
            "pid 0",
            "channel_capacity",
            "channel_capacity",
            "port 0",
            "65,536",
        ];
        assert_eq!(bad.len(), words.len());
        for (config, word) in bad.iter().zip(words) {
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!(Config::default().check().is_ok());
    }

    #[test]
    fn granularities_are_read_with_their_unit() {
        let interval = |millis| Ok(Granularity::Interval(Duration::from_millis(millis)));
        assert_eq!("call".parse(), Ok(Granularity::PerCall));
        assert_eq!(["100ms", "0ms", "2s"].map(str::parse), [interval(100), interval(0), interval(2000)]);
        for text in ["call", "100ms", "1500ms", "2s"] {
            assert_eq!(
                text.parse::<Granularity>().map(|granularity| granularity.to_string()),
                Ok(text.into())
            );
        }
        for wrong in ["", "100", "ms", "s", "-1s", "1.5s", "1 s", "calls"] {
            assert!(wrong.parse::<Granularity>().is_err_and(|e| e.to_string().contains("100ms")), "{wrong}");
        }
    }

    #[test]
    fn any_of_several_processes_ports_or_cgroups_is_wanted() {
        let row = |pid, cgroup, local_port, remote_port| {
            let [local, remote] = ["192.0.2.1", "192.0.2.2"].map(|addr| addr.parse().unwrap());
            let key = ConnectionKey::new(Protocol::Tcp, local, local_port, remote, remote_port);
            let mut record = ConnectionRecord::new(key, KernelTime(1));
            let cgroup_id = CgroupId::new(cgroup);
            record.owner = Some(Process { pid, cgroup_id, ..Process::default() });
            record
        };
        let of = |filter: Filter, rows: &[ConnectionRecord]| {
            let mut rows = rows.to_vec();
            filter.retain_wanted(&mut rows);
            rows.iter().map(|row| row.pid().unwrap()).collect::<Vec<_>>()
        };
        let of_cgroups = |ids: &[u64]| Filter {
            cgroups: ids.iter().filter_map(|&id| CgroupId::new(id)).collect(),
            ..Filter::default()
        };
        let rows = [row(1, 11, 80, 50), row(2, 12, 60, 443), row(3, 13, 60, 50)];
        assert_eq!(of(Filter { pids: vec![3, 1], ..Filter::default() }, &rows), [1, 3]);
        assert_eq!(of(Filter { ports: vec![443, 80], ..Filter::default() }, &rows), [1, 2]);
        assert_eq!(of(of_cgroups(&[12, 13]), &rows), [2, 3]);
        let both = Filter { pids: vec![1, 3], ports: vec![60], ..Filter::default() };
        assert_eq!(of(both, &rows), [3], "different filters must all let it pass");
        let unowned = ConnectionRecord::new(rows[0].key, KernelTime(1));
        assert_eq!(of(of_cgroups(&[11]), &[unowned]), [0_u32; 0]);
    }

    #[test]
    fn per_call_is_an_interval_of_zero() {
        let mut config = Config::default();
        assert_eq!(config.interval_ns(), 100_000_000);
        config.granularity = Granularity::PerCall;
        assert_eq!(config.interval_ns(), 0);
    }
}
