// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events of a collector: one enum, and the structs that its variants carry.

mod loss;
mod transfer;

pub use loss::{LossPlace, Lost};
pub use transfer::{ConnectionInfo, Totals, Transfer};

use crate::model::{Role, TcpState, display_as_str};
use std::time::Duration;

/// What happened on a connection, or that events were lost.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "type", rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum CollectorEvent {
    /// A process handed bytes to a TCP connection.
    TcpSend(Transfer),
    /// A process consumed bytes of a TCP connection.
    TcpRecv(Transfer),
    /// A process sent datagrams.
    UdpSend(Transfer),
    /// A process consumed datagrams.
    UdpRecv(Transfer),
    /// A TCP socket changed its state (tracepoint `sock:inet_sock_set_state`). The first change of an accepted
    /// connection is SYN_RECV to ESTABLISHED. The change before it, LISTEN to SYN_RECV, is not reported: the socket is a
    /// copy of the listening one then (`inet_csk_clone_lock`), and has neither address nor id.
    #[cfg_attr(feature = "serde", serde(rename = "tcp_state"))]
    TcpStateChange(StateChange),
    /// A connection is established. Comes with the state change to ESTABLISHED.
    Opened(Opened),
    /// A connection was not established. It began with a change to SYN_SENT, or with data in the SYN of a peer (TCP Fast
    /// Open). No [`Closed`] follows.
    ConnectFailed(ConnectFailed),
    /// Segments of a TCP connection were sent again (tracepoint `tcp:tcp_retransmit_skb`). Comes only if it is asked for:
    /// [`retransmits`](crate::LinuxCollectorBuilder::retransmits).
    TcpRetransmit(Retransmit),
    /// A connection has ended: its socket was released, or connects or listens anew. TCP: carries the final totals.
    ///
    /// UDP: all flows of this socket have ended. `key` names the socket with an unspecified peer, and `totals` are zero: the
    /// totals belong to the flows. A UDP socket that has moved nothing ends without this event, unless it was listed by
    /// [`bootstrap_existing`](crate::NetworkCollector::bootstrap_existing) through sock_diag, or by `ss`.
    Closed(Closed),
    /// Events were lost, or come late. TCP loses no bytes by that: later events and [`Closed`] carry the connection's totals.
    /// UDP loses bytes where its programs were skipped ([`LossPlace::Hook`]) or found no memory ([`LossPlace::Storage`]), and
    /// with the last event of a flow.
    Lost(Lost),
}

impl CollectorEvent {
    /// The transfer of a [`TcpSend`](Self::TcpSend), [`TcpRecv`](Self::TcpRecv), [`UdpSend`](Self::UdpSend) or
    /// [`UdpRecv`](Self::UdpRecv).
    pub fn transfer(&self) -> Option<&Transfer> {
        match self {
            Self::TcpSend(t) | Self::TcpRecv(t) | Self::UdpSend(t) | Self::UdpRecv(t) => Some(t),
            _ => None,
        }
    }

    /// The connection; none for [`Lost`](Self::Lost).
    pub fn connection(&self) -> Option<&ConnectionInfo> {
        match self {
            Self::TcpSend(t) | Self::TcpRecv(t) | Self::UdpSend(t) | Self::UdpRecv(t) => Some(&t.connection),
            Self::TcpStateChange(s) => Some(&s.connection),
            Self::Opened(o) => Some(&o.connection),
            Self::ConnectFailed(f) => Some(&f.connection),
            Self::TcpRetransmit(r) => Some(&r.connection),
            Self::Closed(c) => Some(&c.connection),
            Self::Lost(_) => None,
        }
    }

    /// The kind of this event; none for [`Lost`](Self::Lost).
    pub fn kind(&self) -> Option<EventKind> {
        match self {
            Self::TcpSend(_) => Some(EventKind::TcpSend),
            Self::TcpRecv(_) => Some(EventKind::TcpRecv),
            Self::UdpSend(_) => Some(EventKind::UdpSend),
            Self::UdpRecv(_) => Some(EventKind::UdpRecv),
            Self::TcpStateChange(_) => Some(EventKind::TcpStateChange),
            Self::Opened(_) => Some(EventKind::Opened),
            Self::ConnectFailed(_) => Some(EventKind::ConnectFailed),
            Self::Closed(_) => Some(EventKind::Closed),
            Self::TcpRetransmit(_) => Some(EventKind::TcpRetransmit),
            Self::Lost(_) => None,
        }
    }
}

/// The kinds of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[expect(missing_docs, reason = "named after the variants of CollectorEvent")]
pub enum EventKind {
    TcpSend,
    TcpRecv,
    UdpSend,
    UdpRecv,
    #[cfg_attr(feature = "serde", serde(rename = "tcp_state"))]
    TcpStateChange,
    Closed,
    TcpRetransmit,
    Opened,
    ConnectFailed,
}

impl EventKind {
    /// All kinds, in the order in which the kernel side numbers them. The library derives the last two from state changes. So
    /// they are lost as state changes everywhere but in the channel.
    pub const ALL: [Self; 9] = [
        Self::TcpSend,
        Self::TcpRecv,
        Self::UdpSend,
        Self::UdpRecv,
        Self::TcpStateChange,
        Self::Closed,
        Self::TcpRetransmit,
        Self::Opened,
        Self::ConnectFailed,
    ];

    /// Lower-case name: `tcp_send`, `tcp_recv`, `udp_send`, `udp_recv`, `tcp_state`, `closed`, `tcp_retransmit`,
    /// `opened` or `connect_failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TcpSend => "tcp_send",
            Self::TcpRecv => "tcp_recv",
            Self::UdpSend => "udp_send",
            Self::UdpRecv => "udp_recv",
            Self::TcpStateChange => "tcp_state",
            Self::Closed => "closed",
            Self::TcpRetransmit => "tcp_retransmit",
            Self::Opened => "opened",
            Self::ConnectFailed => "connect_failed",
        }
    }
}

/// A TCP socket changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StateChange {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// The state before.
    pub old_state: TcpState,
    /// The state after.
    pub new_state: TcpState,
    /// `sk_err` of the socket, an errno such as 111 (ECONNREFUSED); none without an error.
    pub error: Option<i32>,
    /// Both directions so far; none while the socket listens or connects, and has no counters.
    pub totals: Option<Totals>,
    /// Smoothed round-trip time.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl StateChange {
    /// Without an error and counters. The other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, old_state: TcpState, new_state: TcpState) -> Self {
        Self { connection, old_state, new_state, error: None, totals: None, rtt: None }
    }
}

/// A connection is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Opened {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// Whether this end connected or accepted.
    pub role: Role,
    /// Round-trip time of the handshake, where it was measured.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl Opened {
    /// Without a round-trip time. The field is public and can be set.
    pub fn new(connection: ConnectionInfo, role: Role) -> Self {
        Self { connection, role, rtt: None }
    }
}

/// A TCP connection could not be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectFailed {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// The reason.
    pub reason: ConnectFailure,
    /// An errno: `sk_err` of the socket, or what connect(2) returned where it failed at once. None if the socket was closed
    /// before there was an answer.
    pub error: Option<i32>,
    /// From SYN_SENT to the failure. None if connect(2) failed at once, if the peer began the connection (TCP Fast Open),
    /// and if the tracer started in between.
    #[cfg_attr(feature = "serde", serde(rename = "duration_us", with = "crate::model::micros", default))]
    pub duration: Option<Duration>,
}

impl ConnectFailed {
    /// With the reason that this errno stands for. None if the socket was closed before there was an answer.
    pub fn new(connection: ConnectionInfo, error: Option<i32>) -> Self {
        Self { connection, reason: ConnectFailure::from_error(error), error, duration: None }
    }
}

/// Why a connection could not be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ConnectFailure {
    /// No process listens at the peer (ECONNREFUSED).
    Refused,
    /// The peer reset the connection during the handshake (ECONNRESET).
    Reset,
    /// No answer (ETIMEDOUT).
    TimedOut,
    /// No route leads to the peer, or the network is down (EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN).
    Unreachable,
    /// This machine forbids it (EACCES, EPERM), for instance by a packet filter or a prohibit route.
    Forbidden,
    /// No local port is free for this peer (EADDRNOTAVAIL).
    NoLocalPort,
    /// The socket was closed before there was an answer, for instance by a time limit of the program's own.
    Aborted,
    /// Another error; its number is in [`ConnectFailed::error`].
    Other,
}

impl ConnectFailure {
    pub(crate) fn from_error(error: Option<i32>) -> Self {
        // include/uapi/asm-generic/errno.h
        match error {
            None => Self::Aborted,
            Some(111) => Self::Refused,
            Some(104) => Self::Reset,
            Some(110) => Self::TimedOut,
            // ENETDOWN, ENETUNREACH, EHOSTDOWN, EHOSTUNREACH
            Some(100 | 101 | 112 | 113) => Self::Unreachable,
            // EPERM, EACCES
            Some(1 | 13) => Self::Forbidden,
            // EADDRNOTAVAIL
            Some(99) => Self::NoLocalPort,
            Some(_) => Self::Other,
        }
    }

    /// Lower-case name: `refused`, `reset`, `timed_out`, `unreachable`, `forbidden`, `no_local_port`, `aborted` or `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Forbidden => "forbidden",
            Self::NoLocalPort => "no_local_port",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }
}

/// Segments of a TCP connection were sent again: data, a SYN or a FIN that the peer has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Retransmit {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// The state of the socket, for instance SYN_SENT where a connect gets no answer.
    pub state: TcpState,
    /// How many segments were sent again now (`tcp_skb_cb.tcp_gso_segs`). Over all events they add up to `total_segments`.
    /// Missing are those from before the tracer, and those whose event was [lost](CollectorEvent::Lost). Older
    /// kernels (6.12) also count segments that could not be handed to IP, and report none of these.
    pub segments: u32,
    /// How many were sent again since the connection began (`tcp_sock.total_retrans`).
    pub total_segments: u32,
}

impl Retransmit {
    /// With one segment. The other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, state: TcpState, total_segments: u32) -> Self {
        Self { connection, state, segments: 1, total_segments }
    }
}

/// How a TCP connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer acknowledged this end's FIN. The peer's own FIN came before, or arrives later at the placeholder in
    /// TIME_WAIT that replaces the socket.
    Orderly,
    /// The peer reset the connection (ECONNRESET, EPIPE, ECONNREFUSED).
    Reset,
    /// The peer did not answer any more (ETIMEDOUT), or no route led to it (EHOSTUNREACH, ENETUNREACH).
    TimedOut,
    /// This end reset the connection: closed with data unread, or with SO_LINGER and no time, or destroyed (`ss -K`).
    Aborted,
}

impl CloseReason {
    /// Lower-case name: `orderly`, `reset`, `timed_out` or `aborted`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orderly => "orderly",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Aborted => "aborted",
        }
    }
}

/// A connection has ended.
///
/// TCP: comes once for each connection that was established, when its socket is released or used for another connection. That
/// may be long after the change to CLOSE: a program may still read what has arrived. TIME_WAIT is not shown. In it the kernel
/// has replaced the socket by a placeholder, which keeps the addresses from being used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Closed {
    /// The connection and its owner.
    pub connection: ConnectionInfo,
    /// Final totals (TCP).
    pub totals: Totals,
    /// Latest smoothed round-trip time.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
    /// Least round-trip time. The kernel keeps the minimum of the last five minutes (`tcp_min_rtt`); this is the lowest of
    /// these at the connection's state changes. None for UDP.
    #[cfg_attr(feature = "serde", serde(rename = "min_rtt_us", with = "crate::model::micros", default))]
    pub min_rtt: Option<Duration>,
    /// Segments that were sent again (`tcp_sock.total_retrans`).
    pub retransmits: u32,
    /// From SYN_SENT (accepted: from ESTABLISHED) to CLOSE. None for UDP, for connections that are older than the tracer, and
    /// where the change to CLOSE was missed ([`LossPlace::Hook`]).
    #[cfg_attr(feature = "serde", serde(rename = "duration_us", with = "crate::model::micros", default))]
    pub duration: Option<Duration>,
    /// How it ended; none for UDP, and where the change to CLOSE was missed ([`LossPlace::Hook`]).
    pub reason: Option<CloseReason>,
    /// `sk_err` at the change to CLOSE, an errno such as 104 (ECONNRESET).
    pub error: Option<i32>,
}

impl Closed {
    /// With these totals. The other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, totals: Totals) -> Self {
        Self {
            connection,
            totals,
            rtt: None,
            min_rtt: None,
            retransmits: 0,
            duration: None,
            reason: None,
            error: None,
        }
    }
}

display_as_str!(ConnectFailure, CloseReason, EventKind);

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;
    use crate::model::{ConnectionKey, Direction, KernelTime, Protocol};

    #[test]
    fn in_json_times_are_whole_microseconds_and_the_direction_has_a_name() {
        let key = ConnectionKey::new(Protocol::Tcp, [127, 0, 0, 1].into(), 1, [127, 0, 0, 1].into(), 2);
        let info = ConnectionInfo::new(key, 1, KernelTime(5));
        let rtt = Some(Duration::from_micros(1234));
        let sent = CollectorEvent::from(Transfer { rtt, ..Transfer::new(info, Direction::Out, 7, 7) });
        let failed =
            ConnectFailed { duration: Some(Duration::from_nanos(9_999)), ..ConnectFailed::new(info, None) };
        let failed = CollectorEvent::ConnectFailed(failed);
        let ended = Closed { min_rtt: rtt, duration: rtt, ..Closed::new(info, Totals::default()) };
        let json =
            [sent.clone(), failed, CollectorEvent::Closed(ended)].map(|e| serde_json::to_value(e).unwrap());
        assert_eq!((&json[0]["type"], &json[0]["direction"]), (&"tcp_send".into(), &"out".into()));
        assert_eq!((&json[0]["rtt_us"], &json[1]["duration_us"]), (&1234.into(), &9.into()));
        assert_eq!([&json[2]["rtt_us"], &json[2]["min_rtt_us"]], [&serde_json::Value::Null, &1234.into()]);
        assert_eq!(json[2]["duration_us"], 1234);
        assert_eq!(serde_json::from_value::<CollectorEvent>(json[0].clone()).unwrap(), sent);
    }
}
