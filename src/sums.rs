// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sums over connections that have something in common.

use crate::model::{CgroupId, KernelTime, Process, Protocol, display_as_str, from_str_by_name};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// What connections are grouped by, for [`ConnectionTable::sums`](crate::ConnectionTable::sums).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum GroupBy {
    /// The process that holds the connection.
    Process,
    /// The peer's address.
    RemoteHost,
    /// The cgroup of the process that holds the connection.
    Cgroup,
    /// Protocol and port of this end: of a server, its services.
    LocalPort,
    /// Protocol and port of the peer: of a client, the services that it uses.
    RemotePort,
    /// The process that holds the connection, together with the peer's address: which process talks to whom.
    ProcessAndHost,
}

impl GroupBy {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Process,
        Self::RemoteHost,
        Self::Cgroup,
        Self::LocalPort,
        Self::RemotePort,
        Self::ProcessAndHost,
    ];

    /// Lower-case name: `process`, `remote_host`, `cgroup`, `local_port`, `remote_port` or `process_and_host`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::RemoteHost => "remote_host",
            Self::Cgroup => "cgroup",
            Self::LocalPort => "local_port",
            Self::RemotePort => "remote_port",
            Self::ProcessAndHost => "process_and_host",
        }
    }
}

display_as_str!(GroupBy);
from_str_by_name!(
    GroupBy,
    Self::ALL,
    "group",
    "process, remote_host, cgroup, local_port, remote_port or process_and_host"
);

/// What the connections of a [`Sum`] have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Group {
    /// A process, told from others by pid and start time. Name, user and cgroup are the latest that are known.
    Process(Process),
    /// The peer's address.
    RemoteHost(IpAddr),
    /// A cgroup.
    Cgroup(CgroupId),
    /// Protocol and port of this end.
    LocalPort(Protocol, u16),
    /// Protocol and port of the peer.
    RemotePort(Protocol, u16),
    /// A process, as in [`Group::Process`], and the peer's address.
    ProcessAndHost(Process, IpAddr),
    /// Connections of which this is not known: no owner, or a UDP socket without a peer.
    Unknown,
    /// Groups without a connection that were too many to be kept, taken together: see
    /// [`ConnectionTable::max_groups`](crate::ConnectionTable::max_groups).
    Other,
}

impl fmt::Display for Group {
    /// Such as `nginx[812]`, `192.0.2.7`, `7031`, `tcp/443`, `nginx[812] 192.0.2.7`, `unknown` or `other`. Names of
    /// processes are [escaped](crate::ProcessName::escaped).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => f.pad(&format!("{}[{}]", process.name.escaped(), process.pid)),
            Self::ProcessAndHost(process, address) => {
                f.pad(&format!("{} {address}", Self::Process(*process)))
            }
            Self::RemoteHost(address) => address.fmt(f),
            Self::Cgroup(id) => id.fmt(f),
            Self::LocalPort(protocol, port) | Self::RemotePort(protocol, port) => {
                f.pad(&format!("{protocol}/{port}"))
            }
            Self::Unknown => f.pad("unknown"),
            Self::Other => f.pad("other"),
        }
    }
}

/// What the connections of one group have moved, those that have ended included.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Sum {
    /// What they have in common.
    pub group: Group,
    /// How many are open. A UDP socket without a peer counts as one.
    pub open: u64,
    /// How many there are and have been.
    pub connections: u64,
    /// Payload bytes that the programs consumed: the totals of the [records](crate::ConnectionRecord).
    pub bytes_in: u64,
    /// Payload bytes that the kernel accepted from the programs.
    pub bytes_out: u64,
    /// Segments received (TCP) and datagrams consumed (UDP).
    pub packets_in: u64,
    /// Segments and datagrams sent.
    pub packets_out: u64,
    /// TCP segments that were sent again, as far as [records](crate::ConnectionRecord::retransmits) tell.
    pub retransmits: u64,
    /// Bytes in since the previous call of [`sums`](crate::ConnectionTable::sums) with the same [`GroupBy`]. What moved before
    /// the tracer started is not new.
    pub new_bytes_in: u64,
    /// Bytes out, likewise.
    pub new_bytes_out: u64,
    /// Bytes in since the tracer started: the total without what pre-existing connections had moved before.
    pub traced_bytes_in: u64,
    /// Bytes out since the tracer started.
    pub traced_bytes_out: u64,
    /// Bytes per second in, over the table's window.
    pub rate_in: f64,
    /// Bytes per second out.
    pub rate_out: f64,
    /// Median of the smoothed round-trip times of the open TCP connections (of an even number the lower one in the
    /// middle); none if none is known.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
    /// Least round-trip time of any connection, see [`ConnectionRecord::min_rtt`](crate::ConnectionRecord::min_rtt).
    #[cfg_attr(feature = "serde", serde(rename = "min_rtt_us", with = "crate::model::micros", default))]
    pub min_rtt: Option<Duration>,
    /// Time of the latest event.
    pub last_seen: KernelTime,
    /// Traffic of a connection is missing, or may be.
    pub is_partial: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_for_a_table() {
        let host = Group::RemoteHost([192, 0, 2, 7].into());
        let process = Group::Process(Process::new(812, "ng\u{1b}inx"));
        assert_eq!(format!("{process}|{host:>12}|"), r"ng\u{1b}inx[812]|   192.0.2.7|");
        let both = Group::ProcessAndHost(Process::new(812, "nginx"), [192, 0, 2, 7].into());
        assert_eq!(both.to_string(), "nginx[812] 192.0.2.7");
        let ports = [Group::LocalPort(Protocol::Tcp, 443), Group::RemotePort(Protocol::Udp, 53)];
        assert_eq!(ports.map(|port| format!("{port:8}")), ["tcp/443 ", "udp/53  "]);
        assert_eq!([Group::Unknown, Group::Other].map(|group| group.to_string()), ["unknown", "other"]);
        for by in GroupBy::ALL {
            assert_eq!(by.to_string().parse(), Ok(by));
        }
    }
}
