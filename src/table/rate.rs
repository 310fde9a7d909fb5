// SPDX-License-Identifier: MIT OR Apache-2.0
//! A sliding-window rate in a fixed number of buckets: no allocation, no timer, any order of events.

use crate::model::KernelTime;
use std::time::Duration;

/// Buckets in one window.
const BUCKETS: usize = 10;
/// One more is kept: the one that is just leaving the window counts in part.
const KEPT: usize = BUCKETS + 1;

/// How time is cut into buckets; the same for all rates of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    bucket_ns: u64,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self { bucket_ns: (ns / BUCKETS as u64).max(1) }
    }

    /// Which bucket this time is in.
    fn number(self, time: KernelTime) -> u64 {
        time.0 / self.bucket_ns
    }

    fn seconds(self) -> f64 {
        self.bucket_ns as f64 * BUCKETS as f64 / 1e9
    }
}

/// Bytes of the latest window. None while nothing has moved: of many connections most are idle.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate(Option<Box<Buckets>>);

/// By bucket: number n (time divided by the bucket's length) is at n modulo [`KEPT`]. All of it is in one cache line, for which
/// the bytes are as exact as a rate needs.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Buckets {
    bytes: [f32; KEPT],
    /// Time of the latest bytes, and the number of their bucket.
    latest: KernelTime,
    number: u64,
}

impl Rate {
    /// Counts bytes that had moved by `time`. What is older than the window is of no interest any more.
    pub(super) fn add(&mut self, time: KernelTime, bytes: u64, window: Window) {
        if bytes > 0 {
            self.0.get_or_insert_default().add(time, bytes, window);
        }
    }

    /// Bytes per second over the window that ends at the latest bytes, but no more than a bucket before `now`.
    pub(super) fn per_second(&self, now: KernelTime, window: Window) -> f64 {
        self.0.as_ref().map_or(0.0, |buckets| buckets.in_window(now, window) / window.seconds())
    }
}

impl Buckets {
    /// A report tells of what has moved since the one before. So its bytes belong to all of this time, though not to more than
    /// a bucket's length: a steady flow then has its rate whenever the reports come.
    fn add(&mut self, time: KernelTime, bytes: u64, window: Window) {
        let number = window.number(time);
        let span = time.0.saturating_sub(self.latest.0).min(window.bucket_ns);
        let in_bucket = time.0 - number * window.bucket_ns;
        self.advance(time, number);
        if in_bucket >= span {
            self.count(number, bytes as f32);
            return;
        }
        let before = bytes as f32 * ((span - in_bucket) as f32 / span as f32);
        self.count(number, bytes as f32 - before);
        self.count(number.saturating_sub(1), before);
    }

    fn count(&mut self, number: u64, bytes: f32) {
        if let Some(place) = self.place(number) {
            self.bytes[place] += bytes;
        }
    }

    /// What has moved since the latest report is not known yet. So the window ends with that one, unless it is long ago.
    fn in_window(&self, now: KernelTime, window: Window) -> f64 {
        let now = self.latest.max(KernelTime(now.0.saturating_sub(window.bucket_ns)));
        let leaving = (now.0 % window.bucket_ns) as f64 / window.bucket_ns as f64;
        // Of the buckets that are kept the latest is the youngest. Before the first one there are only empty ones.
        let youngest = window.number(now) - self.number;
        let mut place = bucket_of(self.number);
        let mut bytes = 0.0;
        for age in youngest..KEPT as u64 {
            let weight = if age == BUCKETS as u64 { 1.0 - leaving } else { 1.0 };
            bytes += f64::from(self.bytes[place]) * weight;
            place = place.checked_sub(1).unwrap_or(KEPT - 1);
        }
        bytes
    }

    /// Empties the buckets between the latest bytes and this time, whose bucket has this number, if that is later.
    fn advance(&mut self, time: KernelTime, number: u64) {
        let steps = number.saturating_sub(self.number).min(KEPT as u64);
        for step in 0..steps {
            self.bytes[bucket_of(number - step)] = 0.0;
        }
        self.latest = self.latest.max(time);
        self.number = self.number.max(number);
    }

    /// Where this bucket is, if it is one of those that are kept.
    fn place(&self, number: u64) -> Option<usize> {
        let age = self.number.checked_sub(number)?;
        (age < KEPT as u64).then(|| bucket_of(number))
    }
}

fn bucket_of(number: u64) -> usize {
    (number % KEPT as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn window() -> Window {
        Window::new(Duration::from_secs(10))
    }

    fn at(rate: &Rate, seconds: f64) -> f64 {
        rate.per_second(KernelTime((seconds * 1e9) as u64), window())
    }

    #[test]
    fn a_steady_flow_has_its_rate_at_any_moment() {
        let mut rate = Rate::default();
        for tenth in 0..300 {
            rate.add(KernelTime(1000 * SECOND + tenth * SECOND / 10), 100, window());
        }
        for now in [1029.95, 1029.99, 1020.0] {
            assert!((at(&rate, now) - 1000.0).abs() < 2.0, "{now}: {}", at(&rate, now));
        }
    }

    /// Reports that come as often as buckets do, whenever within a bucket, and looked at whenever. Each tells of what has moved
    /// since the one before.
    #[test]
    fn a_steady_flow_has_its_rate_however_its_reports_and_looks_fall() {
        for (period, part) in [(1000, 0), (1000, 170), (1000, 930), (993, 0), (1013, 500), (730, 10)] {
            let mut rate = Rate::default();
            let millis = |n: u64| 1_000_000 + n * period + part;
            for n in 0..200 {
                rate.add(KernelTime(millis(n) * 1_000_000), 100 * period, window());
            }
            for later in [0, 1, 100, 400, 729] {
                let found = at(&rate, (millis(199) + later) as f64 / 1000.0);
                assert!((found - 100_000.0).abs() < 1500.0, "{period} ms, {part}, {later} later: {found}");
            }
        }
    }

    #[test]
    fn bytes_leave_the_window_gradually_and_entirely() {
        let mut rate = Rate::default();
        rate.add(KernelTime(500 * SECOND), 1000, window());
        assert_eq!(at(&rate, 500.0), 100.0);
        assert_eq!(at(&rate, 510.0), 100.0);
        assert_eq!(at(&rate, 510.5), 50.0);
        assert_eq!(at(&rate, 511.0), 0.0);
        assert_eq!(at(&rate, 1e6), 0.0);
    }

    #[test]
    fn after_a_long_silence_nothing_old_comes_back() {
        let mut rate = Rate::default();
        for second in 0..20 {
            rate.add(KernelTime(second * SECOND), 1000, window());
        }
        for silence in [11, 12, 21, 22, 23, 1000] {
            let mut later = rate.clone();
            later.add(KernelTime((19 + silence) * SECOND), 10, window());
            assert_eq!(at(&later, (19 + silence) as f64), 1.0, "after {silence} s");
        }
    }

    #[test]
    fn a_clock_that_jumps_back_loses_nothing_within_the_window() {
        let mut rate = Rate::default();
        for second in [107, 103, 106, 100, 105, 100] {
            rate.add(KernelTime(second * SECOND), 100, window());
        }
        assert_eq!(at(&rate, 107.0), 60.0);
        assert_eq!(at(&rate, 104.0), 60.0, "an earlier `now` is the time of the latest event");
        rate.add(KernelTime(90 * SECOND), 1_000_000, window());
        assert_eq!(at(&rate, 107.0), 60.0, "out of the window");
    }

    #[test]
    fn extreme_windows_and_times_do_no_harm() {
        for window in [Window::new(Duration::ZERO), Window::new(Duration::MAX)] {
            let mut rate = Rate::default();
            rate.add(KernelTime(u64::MAX), u64::MAX, window);
            rate.add(KernelTime(u64::MAX), u64::MAX, window);
            assert!(rate.per_second(KernelTime(u64::MAX), window).is_finite());
            assert!(rate.per_second(KernelTime(0), window).is_finite());
        }
    }
}
