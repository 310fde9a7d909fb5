// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection and its owner, the bytes that a process moves on it, and its totals.

use super::CollectorEvent;
use crate::model::{ConnectionKey, Direction, KernelTime, NetNs, Process, Protocol, Provenance};
use std::time::Duration;

/// A connection and its owner, as every event carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// When it happened. For several calls in one event: when the first of them ended.
    pub time: KernelTime,
    /// Socket id: the kernel's socket cookie (`SO_COOKIE`, `ss -e`). Before Linux 5.12, and for UDP with the kprobe backend,
    /// it is a number that the tracer gives, unique for the run.
    pub socket: u64,
    /// Since when this connection is counted: its begin, or when the tracer first saw it. `(socket, since)` names a TCP
    /// connection: a socket that is connected again (AF_UNSPEC) keeps its id and gets a new `since`. A UDP flow whose
    /// counters were dropped to make room starts again from zero, with a new `since`.
    pub since: KernelTime,
    /// Addresses and ports.
    pub key: ConnectionKey,
    /// The network namespace of the socket; none where it is not known.
    pub netns: Option<NetNs>,
    /// More bytes may have moved than are counted: a sockmap redirects some past TCP, or this is a subflow of an MPTCP
    /// connection. A subflow has only state changes, and is exact when it has ended. In the `Closed` of a UDP socket: some of
    /// its transfers were lost, so totals of its flows may be too small.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_partial: bool,
    /// The process that holds the connection: the one that connected, accepted, or used it last.
    pub owner: Option<Process>,
    /// How `owner` is known.
    pub provenance: Provenance,
}

impl ConnectionInfo {
    /// With the id of its socket, seen first at `time`. The other fields are public and can be set. For tests, and for other
    /// collectors.
    pub fn new(key: ConnectionKey, socket: u64, time: KernelTime) -> Self {
        let (owner, provenance) = (None, Provenance::Unknown);
        Self { time, socket, since: time, key, netns: None, is_partial: false, owner, provenance }
    }
}

/// Bytes that moved between a process and a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Transfer {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// [`Out`](Direction::Out) in [`TcpSend`](CollectorEvent::TcpSend) and [`UdpSend`](CollectorEvent::UdpSend),
    /// [`In`](Direction::In) in the other two.
    pub direction: Direction,
    /// When the last of these calls ended, or shortly after: several calls are reported at the end of their interval.
    pub until: KernelTime,
    /// The process that made these calls.
    pub actor: Option<Process>,
    /// Payload bytes since the last event of this socket (UDP: and peer), direction and actor.
    pub bytes: u64,
    /// Calls since then. Bytes that move without a call of their own (splice, zero-copy) add none.
    pub calls: u32,
    /// Payload bytes in this direction since the connection began (UDP: since [`ConnectionInfo::since`]).
    pub total_bytes: u64,
    /// TCP: segments in this direction (`tcp_sock.segs_out`, `segs_in`; they include pure ACKs and wrap at 2^32).
    /// UDP: datagrams since [`ConnectionInfo::since`]. Where the backend can see it, each datagram counts of those that one
    /// call sends (GSO) or receives (GRO).
    pub total_packets: u64,
    /// Smoothed round-trip time (`tcp_sock.srtt_us >> 3`); none for UDP and before the first sample.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl Transfer {
    /// One call of the owner. The other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, direction: Direction, bytes: u64, total_bytes: u64) -> Self {
        let (until, actor) = (connection.time, connection.owner);
        Self {
            connection,
            direction,
            until,
            actor,
            bytes,
            calls: 1,
            total_bytes,
            total_packets: 0,
            rtt: None,
        }
    }
}

impl From<Transfer> for CollectorEvent {
    /// By protocol and direction.
    fn from(transfer: Transfer) -> Self {
        match (transfer.connection.key.protocol, transfer.direction) {
            (Protocol::Tcp, Direction::Out) => Self::TcpSend(transfer),
            (Protocol::Tcp, Direction::In) => Self::TcpRecv(transfer),
            (Protocol::Udp, Direction::Out) => Self::UdpSend(transfer),
            (Protocol::Udp, Direction::In) => Self::UdpRecv(transfer),
        }
    }
}

/// Cumulative counters of a connection, both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Totals {
    /// Payload bytes that the program consumed.
    pub bytes_in: u64,
    /// Payload bytes that the kernel accepted from the program.
    pub bytes_out: u64,
    /// TCP: segments received (`segs_in`); UDP: datagrams consumed.
    pub packets_in: u64,
    /// TCP: segments sent (`segs_out`); UDP: datagrams sent.
    pub packets_out: u64,
}
