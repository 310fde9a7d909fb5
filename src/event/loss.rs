// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lost events: of which kind, and where.

use super::EventKind;
use crate::model::display_as_str;

/// Events that were lost, or that come late ([`LossPlace::Ring`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Lost {
    /// The kind of the events.
    pub kind: EventKind,
    /// Where they were lost.
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

/// Where an event can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossPlace {
    /// The ring buffer between kernel and library was full, and so was the map of pending reports. A transfer of TCP comes
    /// late: a later event carries its bytes and the total.
    Ring,
    /// The kernel side had no room in a map: for the socket or flow, so this call counts for no process, and a UDP datagram
    /// is in no total; for the peer of a datagram; or for a pending report, with the ring full as well. Or another thread
    /// connected the socket again before a TCP call on its earlier connection had ended.
    Storage,
    /// The channel to the receiver was full. Ends of connections wait for room. They are lost only if too many wait, or when
    /// the collector stops.
    Channel,
    /// The library could not decode the record.
    Decode,
    /// The kernel skipped a program because it was already running on that CPU, in a task that was interrupted or
    /// preempted (`recursion_misses` in the program's fdinfo, since Linux 5.12; for kprobes since 6.7).
    ///
    /// The count is an upper bound: hooks where it matters have a backup program, and an event is lost only if both are
    /// skipped. The next event of a TCP connection has its total all the same; a UDP datagram that was missed is in no total.
    /// With the tracepoint backend TCP and UDP share a hook for sends and one for receives, and both count as UDP.
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

display_as_str!(LossPlace);
