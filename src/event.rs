// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a collector hands out: one enum, and the structs that its variants carry.

use crate::model::{
    ConnectionKey, Direction, KernelTime, NetNs, Process, Protocol, Provenance, Role, TcpState,
    display_as_str,
};
use std::time::Duration;

/// Something that happened on a connection, or to the events themselves.
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
    /// connection is SYN_RECV to ESTABLISHED: LISTEN to SYN_RECV, just before, is the copy of a listening socket that
    /// has neither address nor id yet (`inet_csk_clone_lock`), and is not reported.
    #[cfg_attr(feature = "serde", serde(rename = "tcp_state"))]
    TcpStateChange(StateChange),
    /// A connection is established, with the state change that made it so.
    Opened(Opened),
    /// A connection was not established: the end of what began with a change to SYN_SENT, or with data in the SYN of a
    /// peer (TCP Fast Open). No [`Closed`] follows.
    ConnectFailed(ConnectFailed),
    /// Segments of a TCP connection were sent again (tracepoint `tcp:tcp_retransmit_skb`). Comes only if it is asked for:
    /// [`retransmits`](crate::LinuxCollectorBuilder::retransmits).
    TcpRetransmit(Retransmit),
    /// A socket is gone, or connects or listens anew. TCP: the connection's final totals. UDP: every flow of this socket has
    /// ended; `key` names the socket, its peer is unspecified and `totals` are zero, because they belong to the flows. One
    /// that has moved nothing ends without this, unless it was listed: by
    /// [`bootstrap_existing`](crate::NetworkCollector::bootstrap_existing) through sock_diag, or by `ss`.
    Closed(Closed),
    /// Events were lost, or come late. TCP loses no bytes by that: later events and [`Closed`] carry the connection's totals.
    /// UDP does where its programs were skipped ([`LossPlace::Hook`]) or found no memory ([`LossPlace::Storage`]), and with
    /// the last event of a flow.
    Lost(Lost),
}

impl CollectorEvent {
    /// The bytes that moved, whichever protocol and direction: for [`TcpSend`](Self::TcpSend),
    /// [`TcpRecv`](Self::TcpRecv), [`UdpSend`](Self::UdpSend) and [`UdpRecv`](Self::UdpRecv).
    pub fn transfer(&self) -> Option<&Transfer> {
        match self {
            Self::TcpSend(t) | Self::TcpRecv(t) | Self::UdpSend(t) | Self::UdpRecv(t) => Some(t),
            _ => None,
        }
    }

    /// Who and where, for everything that concerns a connection.
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

    /// Which kind of event this is; none for [`CollectorEvent::Lost`], which is about the others.
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

/// Who and where: what every event of a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// When it happened. Of several calls in one event: when the first of them ended.
    pub time: KernelTime,
    /// Socket id: the kernel's socket cookie (`SO_COOKIE`, `ss -e`). Kernels before 5.12, and the kprobe backend for UDP,
    /// have none to give: there it is an id made by the tracer, unique for the run.
    pub socket: u64,
    /// Since when this connection is counted: its birth, or when the tracer first saw it. A socket that is
    /// connected again (AF_UNSPEC) keeps its id and gets a new `since`: `(socket, since)` names a TCP connection.
    /// A UDP flow whose counters were dropped to make room starts again from zero with a new `since`.
    pub since: KernelTime,
    /// Addresses and ports.
    pub key: ConnectionKey,
    /// The network namespace of the socket; none where it is not known.
    pub netns: Option<NetNs>,
    /// More may have moved than is told: a sockmap redirects bytes past TCP, or the connection is a part of an MPTCP one,
    /// of which nothing is seen but its changes of state; that one's totals are final when it has ended.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_partial: bool,
    /// The process that holds the connection: it connected, accepted, or was the last to use it.
    pub owner: Option<Process>,
    /// How `owner` is known.
    pub provenance: Provenance,
}

impl ConnectionInfo {
    /// A connection of which only this is known, and since when; the other fields are public and can be set. For tests, and
    /// for other collectors.
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
    /// Who and where.
    pub connection: ConnectionInfo,
    /// Which way they moved: [`Out`](Direction::Out) in [`TcpSend`](CollectorEvent::TcpSend) and
    /// [`UdpSend`](CollectorEvent::UdpSend), [`In`](Direction::In) in the other two.
    pub direction: Direction,
    /// When the last of these calls ended, or shortly after: several calls are told of at the end of their interval.
    pub until: KernelTime,
    /// The process that made these calls.
    pub actor: Option<Process>,
    /// Payload bytes since the last event of this socket (UDP: and peer), direction and actor.
    pub bytes: u64,
    /// Calls since then; fewer where bytes moved without a call of their own (splice, zero-copy).
    pub calls: u32,
    /// Payload bytes in this direction since the connection began (UDP: since [`ConnectionInfo::since`]).
    pub total_bytes: u64,
    /// TCP: segments in this direction (`tcp_sock.segs_out`, `segs_in`; they include pure ACKs and wrap at 2^32).
    /// UDP: datagrams since [`ConnectionInfo::since`]; those that one call sends (GSO) or receives (GRO) together count each
    /// where the backend sees how many they are.
    pub total_packets: u64,
    /// Smoothed round-trip time (`tcp_sock.srtt_us >> 3`); none for UDP and before the first sample.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl Transfer {
    /// One call of the owner; the other fields are public and can be set.
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
    /// The event of this transfer's protocol and direction.
    fn from(transfer: Transfer) -> Self {
        match (transfer.connection.key.protocol, transfer.direction) {
            (Protocol::Tcp, Direction::Out) => Self::TcpSend(transfer),
            (Protocol::Tcp, Direction::In) => Self::TcpRecv(transfer),
            (Protocol::Udp, Direction::Out) => Self::UdpSend(transfer),
            (Protocol::Udp, Direction::In) => Self::UdpRecv(transfer),
        }
    }
}

/// A TCP socket went from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StateChange {
    /// Who and where.
    pub connection: ConnectionInfo,
    /// State before.
    pub old_state: TcpState,
    /// State after.
    pub new_state: TcpState,
    /// `sk_err` of the socket, an errno such as 111 (ECONNREFUSED); none when there is no error.
    pub error: Option<i32>,
    /// Both directions so far; none in states where the socket has no counters of its own (listening, connecting).
    pub totals: Option<Totals>,
    /// Smoothed round-trip time.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl StateChange {
    /// One without error and counters; the other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, old_state: TcpState, new_state: TcpState) -> Self {
        Self { connection, old_state, new_state, error: None, totals: None, rtt: None }
    }
}

/// A connection is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Opened {
    /// Who and where.
    pub connection: ConnectionInfo,
    /// Whether this end connected or accepted.
    pub role: Role,
    /// Round-trip time of the handshake, where it was measured.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
}

impl Opened {
    /// One of which this is known; the other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, role: Role) -> Self {
        Self { connection, role, rtt: None }
    }
}

/// A connection could not be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectFailed {
    /// Who and where.
    pub connection: ConnectionInfo,
    /// Why.
    pub reason: ConnectFailure,
    /// `sk_err` of the socket, or what connect(2) returned where it failed at once: an errno. None if it was closed before
    /// there was an answer.
    pub error: Option<i32>,
    /// From SYN_SENT to the failure. None where connect(2) failed at once, for a connection that the peer began (TCP Fast
    /// Open), and if the tracer started in between.
    #[cfg_attr(feature = "serde", serde(rename = "duration_us", with = "crate::model::micros", default))]
    pub duration: Option<Duration>,
}

impl ConnectFailed {
    /// With the reason that this errno stands for; none if the socket was closed before there was an answer.
    pub fn new(connection: ConnectionInfo, error: Option<i32>) -> Self {
        Self { connection, reason: ConnectFailure::from_error(error), error, duration: None }
    }
}

/// Why a connection could not be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ConnectFailure {
    /// The peer has nobody listening (ECONNREFUSED).
    Refused,
    /// The peer broke off the handshake (ECONNRESET).
    Reset,
    /// No answer (ETIMEDOUT).
    TimedOut,
    /// There is no way to the peer (EHOSTUNREACH, ENETUNREACH and their like).
    Unreachable,
    /// This machine does not allow it (EACCES, EPERM), for instance by a route that prohibits.
    Forbidden,
    /// No local port is free for this peer (EADDRNOTAVAIL).
    NoLocalPort,
    /// The socket was closed before there was an answer.
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
    /// Who and where.
    pub connection: ConnectionInfo,
    /// The state of the socket: SYN_SENT, for instance, where a connect gets no answer.
    pub state: TcpState,
    /// How many segments were sent again now (`tcp_skb_cb.tcp_gso_segs`). The segments of all events add up to
    /// `total_segments`, but for those that came before the tracer or were [lost](CollectorEvent::Lost), and for those that
    /// could not be handed to IP: older kernels (6.12) only count these, newer ones (6.18) report them.
    pub segments: u32,
    /// How many were sent again since the connection began (`tcp_sock.total_retrans`).
    pub total_segments: u32,
}

impl Retransmit {
    /// One segment; the other fields are public and can be set.
    pub fn new(connection: ConnectionInfo, state: TcpState, total_segments: u32) -> Self {
        Self { connection, state, segments: 1, total_segments }
    }
}

/// How a TCP connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CloseReason {
    /// This end said goodbye (FIN) and the peer acknowledged it. The socket may have waited for the peer's own FIN, or
    /// have left that to a placeholder in TIME_WAIT, which is no socket any more.
    Orderly,
    /// The peer reset the connection (ECONNRESET, EPIPE, ECONNREFUSED).
    Reset,
    /// The peer did not answer any more (ETIMEDOUT), or there was no way to it (EHOSTUNREACH, ENETUNREACH).
    TimedOut,
    /// This end broke off: it closed with data unread, with SO_LINGER and no time, or was made to (`ss -K`).
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

/// A socket is gone.
///
/// For TCP this comes once per connection that was established, when the socket is released (a program may read what has
/// arrived after the change to CLOSE) or used for another connection. TIME_WAIT comes after that and is not shown: the kernel replaces the socket by
/// a placeholder that only keeps the addresses from being used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Closed {
    /// Who and where.
    pub connection: ConnectionInfo,
    /// Final totals (TCP).
    pub totals: Totals,
    /// Last smoothed round-trip time.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
    /// Least round-trip time: the lowest of the kernel's own minima (`tcp_min_rtt`, over the last five
    /// minutes) at the state changes of the connection. None for UDP.
    #[cfg_attr(feature = "serde", serde(rename = "min_rtt_us", with = "crate::model::micros", default))]
    pub min_rtt: Option<Duration>,
    /// Segments that were sent again (`tcp_sock.total_retrans`).
    pub retransmits: u32,
    /// From SYN_SENT, or for an accepted connection from ESTABLISHED, to CLOSE. None for UDP, for connections that are
    /// older than the tracer, and where the change to CLOSE was missed ([`LossPlace::Hook`]).
    #[cfg_attr(feature = "serde", serde(rename = "duration_us", with = "crate::model::micros", default))]
    pub duration: Option<Duration>,
    /// How it ended; none for UDP, and where the change to CLOSE was missed ([`LossPlace::Hook`]).
    pub reason: Option<CloseReason>,
    /// `sk_err` at the change to CLOSE, an errno such as 104 (ECONNRESET).
    pub error: Option<i32>,
}

impl Closed {
    /// An end with nothing known but the totals; the other fields are public and can be set.
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

/// A number of events that did not reach the receiver, or not in time ([`LossPlace::Ring`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Lost {
    /// Which kind of event.
    pub kind: EventKind,
    /// Where it was lost.
    pub place: LossPlace,
    /// How many since the last report of this kind and place.
    pub count: u64,
}

impl Lost {
    /// A report of `count` lost events.
    pub fn new(kind: EventKind, place: LossPlace, count: u64) -> Self {
        Self { kind, place, count }
    }
}

/// The kinds of event that can be lost.
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
    /// All kinds, in the order in which the kernel side numbers them; the last two are made of state changes, and lost as
    /// such, but for those that are lost in the channel.
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

/// Where an event can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossPlace {
    /// The ring buffer between kernel and library was full, and so was what is beside it. This was a call on a TCP connection:
    /// its bytes come with a later event, and its total in any case.
    Ring,
    /// The kernel side had no memory: for the socket or flow, so that this call was not accounted to a process (and a UDP
    /// datagram is in no total); for the peer of a datagram; or for a report that found no room in the ring either.
    Storage,
    /// The channel to the receiver was full. Ends of connections wait, and are lost only where too many do, or at the stop.
    Channel,
    /// The library could not decode the record.
    Decode,
    /// The kernel skipped a program because it was already running on that CPU, in what had been interrupted or
    /// preempted (`recursion_misses` in the program's fdinfo; Linux 5.12, for kprobes 6.7: before, it is not counted).
    /// Counted is the most that can have been lost: hooks where it matters have two programs, and both must be skipped.
    /// The next event of a TCP connection has its total all the same; a UDP datagram that was missed here is in no total.
    /// With the tracepoint backend TCP and UDP have one hook for sends and one for receives, which count as those of UDP.
    Hook,
}

impl LossPlace {
    /// All places.
    pub const ALL: [Self; 5] = [Self::Ring, Self::Storage, Self::Channel, Self::Decode, Self::Hook];

    /// Lower-case name: `ring`, `storage`, `channel`, `decode` or `hook`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Storage => "storage",
            Self::Channel => "channel",
            Self::Decode => "decode",
            Self::Hook => "hook",
        }
    }
}

display_as_str!(ConnectFailure, CloseReason, EventKind, LossPlace);

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

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
