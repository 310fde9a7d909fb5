// SPDX-License-Identifier: MIT OR Apache-2.0
//! One direction of a connection: totals that never go back, whatever the order of the events.

use super::rate::{Rate, Window};
use crate::model::{KernelTime, Protocol};

/// The highest totals seen of one direction, and its rate.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    era: Era,
    /// Only flows whose counters the kernel has dropped have a past.
    past: Option<Box<Past>>,
    pub(super) rate: Rate,
    /// What had moved when the first event came.
    history: History,
}

#[derive(Clone, Copy, Debug, Default)]
struct History {
    bytes: u64,
    packets: u64,
}

/// What the kernel has counted since one moment. TCP connections have one era; a UDP flow whose counters were dropped
/// to make room starts another.
#[derive(Clone, Copy, Debug, Default)]
struct Era {
    since: Option<KernelTime>,
    bytes: u64,
    packets: u64,
}

/// The era before the current one is kept open: its last events may come after the first ones of the next.
#[derive(Clone, Debug, Default)]
struct Past {
    era: Era,
    /// Sums of all eras before that.
    bytes: u64,
    packets: u64,
}

impl Counter {
    /// The kernel's own total was seen: what comes now is new traffic, not history.
    pub(super) fn is_known(&self) -> bool {
        self.era.since.is_some()
    }

    /// Payload bytes.
    pub(super) fn bytes(&self) -> u64 {
        let past = self.past.as_ref().map_or(0, |past| past.bytes.saturating_add(past.era.bytes));
        self.era.bytes.saturating_add(past)
    }

    /// Of the latest growth so many bytes are new traffic, and the rest history.
    pub(super) fn count(&mut self, time: KernelTime, growth: u64, new: u64, window: Window) {
        if new < growth {
            self.history.bytes = self.history.bytes.saturating_add(growth - new);
            self.history.packets = self.packets();
        }
        self.rate.add(time, new, window);
    }

    /// Payload bytes that were new traffic.
    pub(super) fn new_bytes(&self) -> u64 {
        self.bytes().saturating_sub(self.history.bytes)
    }

    /// Segments or datagrams after those that are history.
    pub(super) fn new_packets(&self) -> u64 {
        self.packets().saturating_sub(self.history.packets)
    }

    /// The same without its rate.
    pub(super) fn without_rate(&self) -> Self {
        Self { rate: Rate::default(), ..self.clone() }
    }

    /// Segments or datagrams.
    pub(super) fn packets(&self) -> u64 {
        let past = self.past.as_ref().map_or(0, |past| past.packets.saturating_add(past.era.packets));
        self.era.packets.saturating_add(past)
    }

    /// Takes note of totals since `since` and returns by how many bytes the sum has grown.
    pub(super) fn raise(&mut self, since: KernelTime, bytes: u64, packets: u64, protocol: Protocol) -> u64 {
        let before = self.bytes();
        let seen = Era { since: Some(since), bytes, packets };
        if seen.since == self.era.since {
            self.era.raise(&seen, protocol);
        } else if seen.since > self.era.since {
            let ended = std::mem::replace(&mut self.era, seen);
            if ended.since.is_some() {
                self.past.get_or_insert_default().append(ended);
            }
        } else {
            self.past.get_or_insert_default().raise(seen, protocol);
        }
        self.bytes() - before
    }
}

impl Era {
    fn raise(&mut self, seen: &Self, protocol: Protocol) {
        self.bytes = self.bytes.max(seen.bytes);
        self.packets = match protocol {
            Protocol::Tcp => extend(self.packets, seen.packets),
            Protocol::Udp => self.packets.max(seen.packets),
        };
    }
}

impl Past {
    fn append(&mut self, ended: Era) {
        self.bytes = self.bytes.saturating_add(self.era.bytes);
        self.packets = self.packets.saturating_add(self.era.packets);
        self.era = ended;
    }

    /// An event of an earlier era than the current one. What is older than the last two may be in the sums already.
    fn raise(&mut self, seen: Era, protocol: Protocol) {
        if seen.since == self.era.since {
            self.era.raise(&seen, protocol);
        } else if seen.since > self.era.since {
            self.append(seen);
        }
    }
}

/// The kernel's 32-bit segment counters wrap. Of two values less than 2^31 apart the later one is known, so the count
/// goes on beyond 2^32 and a late event does not take it back. What the counter went through before the first event is
/// not known: a connection that has wrapped by then starts with what the kernel shows.
fn extend(known: u64, raw: u64) -> u64 {
    let Ok(raw) = u32::try_from(raw) else { return known.max(raw) };
    let ahead = raw.wrapping_sub(known as u32);
    if ahead < 1 << 31 { known.saturating_add(ahead.into()) } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(counter: &mut Counter, since: u64, bytes: u64) -> u64 {
        counter.raise(KernelTime(since), bytes, bytes / 10, Protocol::Udp)
    }

    #[test]
    fn totals_are_the_maximum_and_growth_is_reported_once() {
        let mut counter = Counter::default();
        assert_eq!(udp(&mut counter, 5, 100), 100);
        assert_eq!(udp(&mut counter, 5, 40), 0);
        assert_eq!(udp(&mut counter, 5, 130), 30);
        assert_eq!((counter.bytes(), counter.packets()), (130, 13));
    }

    #[test]
    fn eras_add_up_and_late_events_of_the_one_before_still_count() {
        let mut counter = Counter::default();
        udp(&mut counter, 10, 100);
        assert_eq!(udp(&mut counter, 20, 30), 30);
        assert_eq!(udp(&mut counter, 10, 90), 0, "counted already");
        assert_eq!(udp(&mut counter, 10, 120), 20, "its last word");
        assert_eq!(udp(&mut counter, 30, 7), 7);
        assert_eq!(udp(&mut counter, 10, 500), 0, "too old to tell");
        assert_eq!(udp(&mut counter, 20, 31), 1);
        assert_eq!(counter.bytes(), 120 + 31 + 7);
    }

    #[test]
    fn an_era_that_arrives_after_its_successor_is_not_lost() {
        let mut counter = Counter::default();
        udp(&mut counter, 30, 7);
        assert_eq!(udp(&mut counter, 10, 100), 100);
        assert_eq!(udp(&mut counter, 20, 50), 50, "in between");
        assert_eq!(udp(&mut counter, 20, 60), 10);
        assert_eq!((counter.bytes(), counter.packets()), (167, 16));
    }

    #[test]
    fn segment_counters_go_on_when_they_wrap() {
        let mut counter = Counter::default();
        let mut raise = |packets| {
            counter.raise(KernelTime(1), 0, packets, Protocol::Tcp);
            counter.packets()
        };
        assert_eq!(raise(0xffff_fff0), 0xffff_fff0, "the first value counts as it is");
        assert_eq!(raise(0xffff_ffe0), 0xffff_fff0, "late");
        assert_eq!(raise(5), 0x1_0000_0005);
        assert_eq!(raise(0xffff_fff1), 0x1_0000_0005, "late, from before it wrapped");
        assert_eq!(raise(6), 0x1_0000_0006);
        assert_eq!(raise(0x2_0000_0000), 0x2_0000_0000, "a wider counter than today's");
    }
}
