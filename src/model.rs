// SPDX-License-Identifier: MIT OR Apache-2.0
//! The words of this crate: protocols, states, keys, processes and kernel time. Plain values; nothing here
//! knows where they come from.

/// A type is printed as it is named, with the padding that is asked for.
macro_rules! display_as_str {
    ($($type:ty),+) => {
        $(impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        })+
    };
}
pub(crate) use display_as_str;

mod ids;
#[cfg(feature = "serde")]
pub(crate) mod micros;
mod parse;
mod process;

pub use ids::{CgroupId, NetNs};
pub use parse::ParseError;
pub(crate) use parse::from_str_by_name;
pub use process::{Process, ProcessName, Provenance};

use crate::clock;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

/// Transport protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl Protocol {
    /// Lower-case name: `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

from_str_by_name!(Protocol, [Self::Tcp, Self::Udp], "protocol", "tcp or udp");
from_str_by_name!(AddressFamily, [Self::Ipv4, Self::Ipv6], "address family", "ipv4 or ipv6");

display_as_str!(Protocol, AddressFamily, Direction, Role);

/// Family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum AddressFamily {
    /// Internet Protocol version 4.
    Ipv4,
    /// Internet Protocol version 6.
    Ipv6,
}

impl AddressFamily {
    /// The family of this address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// Lower-case name: `ipv4` or `ipv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Which way bytes move, as the socket's owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Direction {
    /// From the peer to the process: a receive.
    In,
    /// From the process to the peer: a send.
    Out,
}

impl Direction {
    /// Lower-case name: `in` or `out`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Which end of a TCP connection this one is. In a simultaneous open both ends are clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Role {
    /// This end connected (an active open).
    Client,
    /// This end listened and accepted (a passive open).
    Server,
}

impl Role {
    /// Lower-case name: `client` or `server`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// State of a TCP socket, as the kernel numbers them (`include/net/tcp_states.h`).
///
/// `TimeWait` and `NewSynRecv` belong to sockets of other kinds in the kernel; the tracepoint that reports
/// state changes never shows them: a connection that ends in TIME_WAIT goes from `FinWait2` to `Close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are the kernel's own, documented in tcp(7)")]
pub enum TcpState {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynRecv,
    /// A number this version does not know.
    Unknown(u32),
}

impl TcpState {
    /// The state behind the kernel's number; never fails, see [`TcpState::Unknown`].
    pub fn from_kernel(state: u32) -> Self {
        match state {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            other => Self::Unknown(other),
        }
    }

    /// Lower-case kernel name, such as `syn_sent`; `unknown` for a number this version does not know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn_sent",
            Self::SynRecv => "syn_recv",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::TimeWait => "time_wait",
            Self::Close => "close",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
            Self::NewSynRecv => "new_syn_recv",
            Self::Unknown(_) => "unknown",
        }
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(n) => write!(f, "unknown({n})"),
            known => f.pad(known.as_str()),
        }
    }
}

/// The five-tuple of a connection, as the socket's owner sees it.
///
/// IPv4 traffic on an IPv6 socket shows IPv4 addresses: `::ffff:a.b.c.d` is folded to `a.b.c.d`. A key repeats
/// across network namespaces and over time; the socket id of an event tells connections apart.
/// An unspecified address (`0.0.0.0`, `::`) means that the kernel does not know it at that point: the local
/// address of an unconnected UDP socket, or a peer that the running backend cannot see
/// (see [`Capabilities`](crate::Capabilities)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ConnectionKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of this end.
    pub local_addr: IpAddr,
    /// Port of this end.
    pub local_port: u16,
    /// Address of the peer.
    pub remote_addr: IpAddr,
    /// Port of the peer.
    pub remote_port: u16,
}

impl ConnectionKey {
    /// Builds a key; IPv4-mapped IPv6 addresses are folded to IPv4.
    pub fn new(
        protocol: Protocol,
        local_addr: IpAddr,
        local_port: u16,
        remote_addr: IpAddr,
        remote_port: u16,
    ) -> Self {
        Self {
            protocol,
            local_addr: fold(local_addr),
            local_port,
            remote_addr: fold(remote_addr),
            remote_port,
        }
        .same_family()
    }

    /// Address and port of this end.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local_addr, self.local_port)
    }

    /// Address and port of the peer.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote_addr, self.remote_port)
    }

    /// Of a dual-stack socket the local side may still be `::` when the peer is IPv4: show both as IPv4.
    fn same_family(mut self) -> Self {
        let unspecified_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if self.remote_addr.is_ipv4() && self.local_addr == unspecified_v6 {
            self.local_addr = IpAddr::from([0, 0, 0, 0]);
        }
        if self.local_addr.is_ipv4() && self.remote_addr == unspecified_v6 {
            self.remote_addr = IpAddr::from([0, 0, 0, 0]);
        }
        self
    }
}

fn fold(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

impl fmt::Display for ConnectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.local(), self.remote())
    }
}

/// A moment on the kernel's CLOCK_MONOTONIC, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct KernelTime(pub u64);

impl KernelTime {
    /// Now. Also in a time namespace this is the kernel's own time, as events have it, and not the one shown there.
    pub fn now() -> Self {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let shown = t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs();
        Self(clock::offsets().kernel_monotonic(shown))
    }

    /// Nanoseconds since the clock's start.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is the later one.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The wall-clock time of this moment, as far as the wall clock was not set since.
    pub fn to_system_time(self) -> SystemTime {
        let (now, wall) = (Self::now(), SystemTime::now());
        if self <= now { wall - now.saturating_since(self) } else { wall + self.saturating_since(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_fold_to_ipv4_on_both_sides() {
        let v6 = |s: &str| s.parse::<IpAddr>().unwrap();
        let key = ConnectionKey::new(Protocol::Udp, v6("::"), 53, v6("::ffff:10.0.0.1"), 9);
        assert_eq!(key.to_string(), "udp 0.0.0.0:53 -> 10.0.0.1:9");
        let key = ConnectionKey::new(Protocol::Tcp, v6("::ffff:127.0.0.1"), 1, v6("::"), 0);
        assert_eq!(key.to_string(), "tcp 127.0.0.1:1 -> 0.0.0.0:0");
        let key = ConnectionKey::new(Protocol::Tcp, v6("::1"), 1, v6("::1"), 2);
        assert_eq!(key.to_string(), "tcp [::1]:1 -> [::1]:2");
        assert_eq!(
            (key.local(), key.remote()),
            (([0, 0, 0, 0, 0, 0, 0, 1], 1).into(), "[::1]:2".parse().unwrap())
        );
    }

    #[test]
    fn protocols_and_families_are_read_by_their_names() {
        assert_eq!(["tcp", "udp"].map(str::parse), [Ok(Protocol::Tcp), Ok(Protocol::Udp)]);
        assert_eq!(["ipv4", "ipv6"].map(str::parse), [Ok(AddressFamily::Ipv4), Ok(AddressFamily::Ipv6)]);
        let error = "\u{1b}".parse::<AddressFamily>().unwrap_err();
        assert_eq!(error.to_string(), r"unknown address family `\u{1b}`: expected ipv4 or ipv6");
    }

    #[test]
    fn every_state_number_has_a_state_and_unknown_ones_stay_visible() {
        for n in 1..=12 {
            assert_ne!(TcpState::from_kernel(n).as_str(), "unknown", "state {n}");
        }
        assert_eq!(TcpState::from_kernel(13), TcpState::Unknown(13));
        assert_eq!(TcpState::Unknown(13).to_string(), "unknown(13)");
    }

    #[test]
    fn kernel_time_turns_into_wall_clock_time() {
        let wall = KernelTime::now().to_system_time();
        let off = SystemTime::now().duration_since(wall).unwrap_or_else(|e| e.duration());
        assert!(off < Duration::from_secs(1), "{off:?}");
        assert_eq!(KernelTime(5).saturating_since(KernelTime(7)), Duration::ZERO);
    }
}
