// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of a running collector.

use crate::event::{EventKind, LossPlace, Lost};
use std::fmt;

/// What a collector has done so far. Counters only grow while it runs and survive its stop.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// Events delivered to the receiver, without reports of losses.
    pub events: u64,
    /// Losses by kind and place; see [`Stats::lost`] and [`Stats::lost_total`].
    pub losses: LossTable,
    /// Reports that found the ring buffer full, and waited beside it: their events came later, and bytes of several in one.
    /// Nothing is lost by that; what is lost is in `losses`. If it grows all the time a larger ring would do good.
    pub deferred: u64,
    /// Records of a kind that this version of the library does not know.
    pub unknown_records: u64,
    /// TCP connections at whose end the bytes that went out in events did not add up to the kernel's own totals. The
    /// tracer audits itself: anything but 0 is an error in it, or the kernel skipped its programs
    /// ([`LossPlace::Hook`]). The totals in events are the kernel's all the same.
    pub audit_mismatches: u64,
    /// Bytes of kernel memory that the maps take, from the start to the end (`memlock` in their fdinfo).
    pub kernel_memory_bytes: u64,
}

impl Stats {
    /// Events of this kind that were lost at this place.
    pub fn lost(&self, kind: EventKind, place: LossPlace) -> u64 {
        self.losses.get(kind, place)
    }

    /// All events that were lost, of any kind and anywhere. Each counts once.
    pub fn lost_total(&self) -> u64 {
        EventKind::ALL.iter().flat_map(|&k| LossPlace::ALL.iter().map(move |&p| self.losses.get(k, p))).sum()
    }
}

impl fmt::Display for Stats {
    /// One line, such as `40 events, 3 lost (tcp_send at ring: 3), 0 deferred, 0 unknown records, 0 audit mismatches,
    /// 37058680 bytes of kernel memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, losses, deferred, unknown_records, audit_mismatches, kernel_memory_bytes } = self;
        write!(f, "{events} events, {} lost", self.lost_total())?;
        for (n, (kind, place, count)) in losses.iter().enumerate() {
            write!(f, "{}{kind} at {place}: {count}", if n == 0 { " (" } else { ", " })?;
        }
        f.write_str(if losses.iter().next().is_some() { ")" } else { "" })?;
        write!(
            f,
            ", {deferred} deferred, {unknown_records} unknown records, {audit_mismatches} audit mismatches, "
        )?;
        write!(f, "{kernel_memory_bytes} bytes of kernel memory")
    }
}

/// A count for each kind of event and each place where it can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "Vec<Lost>", from = "Vec<Lost>")
)]
pub struct LossTable {
    counts: [[u64; LossPlace::ALL.len()]; EventKind::ALL.len()],
}

impl LossTable {
    /// The count for this kind and place.
    pub fn get(&self, kind: EventKind, place: LossPlace) -> u64 {
        self.counts[kind as usize][place as usize]
    }

    /// Adds to the count for this kind and place.
    pub(crate) fn add(&mut self, kind: EventKind, place: LossPlace, count: u64) {
        self.counts[kind as usize][place as usize] += count;
    }

    /// The sums of two tables.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        other.iter().for_each(|(kind, place, count)| sum.add(kind, place, count));
        sum
    }

    /// Every kind and place with a count that is not zero.
    pub fn iter(&self) -> impl Iterator<Item = (EventKind, LossPlace, u64)> + '_ {
        EventKind::ALL
            .iter()
            .flat_map(move |&k| LossPlace::ALL.iter().map(move |&p| (k, p, self.get(k, p))))
            .filter(|&(_, _, n)| n > 0)
    }
}

impl From<LossTable> for Vec<Lost> {
    /// A report for each count that is not zero.
    fn from(table: LossTable) -> Self {
        table.iter().map(|(kind, place, count)| Lost::new(kind, place, count)).collect()
    }
}

impl From<Vec<Lost>> for LossTable {
    /// The sums of such reports.
    fn from(reports: Vec<Lost>) -> Self {
        let mut table = Self::default();
        reports.iter().for_each(|lost| table.add(lost.kind, lost.place, lost.count));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "serde")]
    #[test]
    fn in_json_losses_are_a_list_of_reports_with_the_names_that_are_printed() {
        let mut losses = LossTable::default();
        losses.add(EventKind::TcpStateChange, LossPlace::Ring, 3);
        let json = r#"[{"kind":"tcp_state","place":"ring","count":3}]"#;
        assert_eq!(serde_json::to_string(&losses).unwrap(), json);
        assert_eq!(serde_json::from_str::<LossTable>(json).unwrap(), losses);
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }

    #[test]
    fn statistics_are_one_line() {
        let mut stats = Stats { events: 40, kernel_memory_bytes: 4096, ..Stats::default() };
        let rest = "0 deferred, 0 unknown records, 0 audit mismatches, 4096 bytes of kernel memory";
        assert_eq!(stats.to_string(), format!("40 events, 0 lost, {rest}"));
        stats.losses.add(EventKind::TcpSend, LossPlace::Ring, 3);
        stats.losses.add(EventKind::Closed, LossPlace::Channel, 4);
        let losses = "tcp_send at ring: 3, closed at channel: 4";
        assert_eq!(stats.to_string(), format!("40 events, 7 lost ({losses}), {rest}"));
    }

    #[test]
    fn losses_are_kept_apart_by_kind_and_place() {
        let mut stats = Stats::default();
        stats.losses.add(EventKind::UdpRecv, LossPlace::Ring, 3);
        stats.losses.add(EventKind::Closed, LossPlace::Channel, 4);
        assert_eq!(stats.lost(EventKind::UdpRecv, LossPlace::Ring), 3);
        assert_eq!(stats.lost(EventKind::UdpRecv, LossPlace::Channel), 0);
        assert_eq!(stats.lost_total(), 7);
        let all: Vec<_> = stats.losses.iter().collect();
        assert_eq!(
            all,
            [(EventKind::UdpRecv, LossPlace::Ring, 3), (EventKind::Closed, LossPlace::Channel, 4)]
        );
    }
}
