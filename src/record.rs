// SPDX-License-Identifier: MIT OR Apache-2.0
//! One row of the connection table.

use crate::event::{CloseReason, ConnectFailure};
use crate::model::{ConnectionKey, KernelTime, NetNs, Process, ProcessName, Provenance, Role, TcpState};
use std::time::Duration;

/// All that is known of one connection (UDP: one socket and one peer).
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ConnectionRecord {
    /// Addresses and ports.
    pub key: ConnectionKey,
    /// Socket id (see [`ConnectionInfo::socket`](crate::ConnectionInfo)); none for a record that no event has confirmed yet,
    /// where it was found in /proc or events have ids made by the tracer.
    pub socket: Option<u64>,
    /// The network namespace of the socket; none where it is not known.
    pub netns: Option<NetNs>,
    /// The process that holds the connection.
    pub owner: Option<Process>,
    /// How `owner` is known.
    pub provenance: Provenance,
    /// Whether this end connected or accepted; none for UDP, and where the begin was not seen.
    #[cfg_attr(feature = "serde", serde(default))]
    pub role: Option<Role>,
    /// Latest state; none for UDP.
    pub tcp_state: Option<TcpState>,
    /// Payload bytes that the program consumed.
    pub bytes_in: u64,
    /// Payload bytes that the kernel accepted from the program.
    pub bytes_out: u64,
    /// TCP: segments received, while the connection is open as of the latest transfer in; UDP: datagrams consumed.
    pub packets_in: u64,
    /// TCP: segments sent, while the connection is open as of the latest transfer out; UDP: datagrams sent.
    pub packets_out: u64,
    /// Bytes in since the previous call of [`records_at`](crate::ConnectionTable::records_at) or
    /// [`snapshot`](crate::ConnectionTable::snapshot). What moved before the tracer started is not new.
    #[cfg_attr(feature = "serde", serde(default))]
    pub new_bytes_in: u64,
    /// Bytes out, likewise.
    #[cfg_attr(feature = "serde", serde(default))]
    pub new_bytes_out: u64,
    /// Bytes per second in, over the table's window, at the time of the snapshot.
    pub rate_in: f64,
    /// Bytes per second out, likewise.
    pub rate_out: f64,
    /// Smoothed round-trip time; none for UDP and before the first sample.
    #[cfg_attr(feature = "serde", serde(rename = "rtt_us", with = "crate::model::micros", default))]
    pub rtt: Option<Duration>,
    /// Least round-trip time that is known: of the handshake, of what bootstrap has found, or at the end (see
    /// [`Closed::min_rtt`](crate::Closed::min_rtt)). None for UDP.
    #[cfg_attr(feature = "serde", serde(rename = "min_rtt_us", with = "crate::model::micros", default))]
    pub min_rtt: Option<Duration>,
    /// Segments that were sent again, as of the latest event that tells: bootstrap and the end do, and
    /// each [retransmission](crate::CollectorEvent::TcpRetransmit) if they are reported. None for UDP, and
    /// where nothing has told yet.
    #[cfg_attr(feature = "serde", serde(default))]
    pub retransmits: Option<u32>,
    /// When the connection began, or was first seen.
    pub first_seen: KernelTime,
    /// Time of the latest event.
    pub last_seen: KernelTime,
    /// When it ended; none while it is open. Of what only counts as ended (see [`is_end_seen`](Self::is_end_seen)) this is
    /// when that was found out.
    #[cfg_attr(feature = "serde", serde(default))]
    pub closed_at: Option<KernelTime>,
    /// How an established TCP connection ended; none where that was not seen.
    #[cfg_attr(feature = "serde", serde(default))]
    pub close_reason: Option<CloseReason>,
    /// Why it could not be established; none if it was, or where that is not known.
    #[cfg_attr(feature = "serde", serde(default))]
    pub connect_failure: Option<ConnectFailure>,
    /// The errno with which it ended or failed, such as 104 (ECONNRESET); none where there was none.
    #[cfg_attr(feature = "serde", serde(default))]
    pub error: Option<i32>,
    /// Traffic is missing from a total, or may be: from before tracing started, or past what is counted
    /// ([`ConnectionInfo::is_partial`](crate::ConnectionInfo::is_partial)). A TCP record out of /proc is partial
    /// until events have brought the kernel's own totals of both directions; one of a UDP socket that existed before
    /// stays so.
    pub is_partial: bool,
    /// The connection has ended.
    pub is_closed: bool,
    /// Its end was seen, so its totals are final. What is closed without that only counts as ended: a UDP flow that has been
    /// silent for long ([`udp_idle`](crate::ConnectionTable::udp_idle)), or a socket that the kernel does not list any more
    /// ([`reconcile`](crate::ConnectionTable::reconcile)), whose last bytes may be missing. With its next event it goes on.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_end_seen: bool,
}

impl ConnectionRecord {
    /// An empty record for this key, first and last seen at `time`.
    pub fn new(key: ConnectionKey, time: KernelTime) -> Self {
        Self {
            key,
            socket: None,
            netns: None,
            owner: None,
            provenance: Provenance::Unknown,
            role: None,
            tcp_state: None,
            bytes_in: 0,
            bytes_out: 0,
            packets_in: 0,
            packets_out: 0,
            new_bytes_in: 0,
            new_bytes_out: 0,
            rate_in: 0.0,
            rate_out: 0.0,
            rtt: None,
            min_rtt: None,
            retransmits: None,
            first_seen: time,
            last_seen: time,
            closed_at: None,
            close_reason: None,
            connect_failure: None,
            error: None,
            is_partial: false,
            is_closed: false,
            is_end_seen: false,
        }
    }

    /// Process id of the owner.
    pub fn pid(&self) -> Option<u32> {
        self.owner.map(|p| p.pid)
    }

    /// How long it has lasted: from [`first_seen`](Self::first_seen) to its end, or to the latest event while it is open.
    /// Of a connection that is older than the tracer, that is the part that was seen.
    pub fn duration(&self) -> Duration {
        self.closed_at.unwrap_or(self.last_seen).saturating_since(self.first_seen)
    }

    /// Process name of the owner.
    pub fn process_name(&self) -> Option<ProcessName> {
        self.owner.map(|p| p.name)
    }
}
