// SPDX-License-Identifier: MIT OR Apache-2.0
//! What names a connection, and how rows and events of one connection find each other.

use crate::event::ConnectionInfo;
use crate::model::{ConnectionKey, KernelTime, NetNs, Protocol};
use crate::record::ConnectionRecord;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A search looks at so many candidates with the same key at most. Workers that share an address are rarely more than
/// processors, and machines have fewer.
pub(super) const CROWD: usize = 256;

/// What names a connection in events. The tuple of addresses and ports does not: it repeats in other network
/// namespaces and at other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// One life of a socket.
    Tcp { socket: u64, since: KernelTime },
    /// One socket and one peer.
    Udp { socket: u64, peer: IpAddr, port: u16 },
}

impl Hash for Flow {
    /// A socket may have many lives, one after the other, and many peers.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Tcp { socket, since } => (socket, since).hash(state),
            Self::Udp { socket, peer, port } => (socket, peer, port).hash(state),
        }
    }
}

impl Flow {
    pub(super) fn of(info: &ConnectionInfo) -> Self {
        Self::new(info.socket, info.since, &info.key)
    }

    /// Of a TCP row that no event has confirmed.
    pub(super) fn of_row(socket: u64) -> Self {
        Self::Tcp { socket, since: KernelTime(0) }
    }

    pub(super) fn new(socket: u64, since: KernelTime, key: &ConnectionKey) -> Self {
        match key.protocol {
            Protocol::Tcp => Self::Tcp { socket, since },
            Protocol::Udp => Self::Udp { socket, peer: key.remote_addr, port: key.remote_port },
        }
    }
}

/// What is known of a connection's identity. A row may have no socket id: then its key, namespace and owner find the
/// events of the same connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatchKey<'a> {
    pub(super) key: &'a ConnectionKey,
    pub(super) netns: Option<NetNs>,
    pub(super) socket: Option<u64>,
    /// Of the owner.
    pub(super) pid: Option<u32>,
}

impl MatchKey<'_> {
    pub(super) fn of_record(record: &ConnectionRecord) -> MatchKey<'_> {
        MatchKey { key: &record.key, netns: record.netns, socket: record.socket, pid: record.pid() }
    }

    pub(super) fn of_event(info: &ConnectionInfo) -> MatchKey<'_> {
        let pid = info.owner.map(|owner| owner.pid);
        MatchKey { key: &info.key, netns: info.netns, socket: Some(info.socket), pid }
    }

    /// Whether both can be the same connection. A key is unique in its namespace at one time. The exception is UDP sockets
    /// without a peer, which can share an address (SO_REUSEPORT): without ids those of different owners are different.
    pub(super) fn may_match(&self, other: &MatchKey<'_>) -> bool {
        let same_socket = match (self.socket, other.socket) {
            (Some(one), Some(other)) => one == other,
            _ => {
                !is_unconnected(self.key)
                    || self.pid.is_none()
                    || other.pid.is_none()
                    || self.pid == other.pid
            }
        };
        let same_netns = self.netns == other.netns || self.netns.is_none() || other.netns.is_none();
        self.key == other.key && same_netns && same_socket
    }
}

/// A UDP socket without a peer.
pub(super) fn is_unconnected(key: &ConnectionKey) -> bool {
    key.protocol == Protocol::Udp && key.remote_port == 0 && key.remote_addr.is_unspecified()
}

/// The keys under which the UDP socket of this flow can be listed while it has no peer. A socket bound to `::` takes
/// part in IPv4 flows, too, which show its address as `0.0.0.0`.
pub(super) fn unconnected_keys(flow: &ConnectionKey) -> impl Iterator<Item = ConnectionKey> + use<> {
    let at = |local: IpAddr, remote: IpAddr| ConnectionKey {
        local_addr: local,
        remote_addr: remote,
        remote_port: 0,
        ..*flow
    };
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let own = at(flow.local_addr, if flow.local_addr.is_ipv4() { v4 } else { v6 });
    let dual_stack = (flow.local_addr == v4).then(|| at(v6, v6));
    std::iter::once(own).chain(dual_stack)
}

/// How many of its four parts a key knows. The source port of a TCP connection is chosen after SYN_SENT.
pub(super) fn completeness(key: &ConnectionKey) -> usize {
    let ConnectionKey { protocol: _, local_addr, local_port, remote_addr, remote_port } = key;
    let known =
        [!local_addr.is_unspecified(), *local_port != 0, !remote_addr.is_unspecified(), *remote_port != 0];
    known.into_iter().filter(|&part| part).count()
}
