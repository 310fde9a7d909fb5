// SPDX-License-Identifier: MIT OR Apache-2.0
//! What waits for the end of an interval, and what does not.

use crate::harness::{Trace, builder, is_slow};
use crate::lifecycle::{check_churn, churn, ended};
use crate::net::{port, recv, send, tcp_pair};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, Granularity, KernelTime, LossPlace};

/// The default granularity reports the first bytes at once and the last within an interval, without another call. What is
/// reported together tells from when to when it moved.
#[test]
fn the_last_bytes_are_reported_though_the_socket_falls_silent() {
    let mut trace = Trace::with(builder().granularity(Granularity::Interval(Duration::from_millis(200))));
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let mut before_last = KernelTime::now();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(1));
        before_last = KernelTime::now();
        assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    }
    trace.until("100 bytes out", |t| t.tcp(c, s).filter(|r| r.bytes_out == 100).map(drop));
    trace.until("100 bytes in", |t| t.tcp(s, c).filter(|r| r.bytes_in == 100).map(drop));
    trace.listen(Duration::from_millis(500));
    let of = |p: u16| trace.transfers().filter(move |t| t.connection.key.local_port == p && t.bytes > 0);
    for p in [c, s] {
        assert!((1..=4).contains(&of(p).count()), "{:#?}", of(p).collect::<Vec<_>>());
        assert_eq!(of(p).map(|t| t.bytes).sum::<u64>(), 100);
        assert!(of(p).all(|t| t.connection.time <= t.until && t.until < KernelTime::now()));
        let last = of(p).max_by_key(|t| t.until).unwrap();
        assert!(last.until > before_last, "{before_last:?}: {last:#?}");
    }
}

/// Only reports of transfers wait for a long interval to end. Losses, statistics and the ends of connections with their
/// totals come at once, also where the ring had no room for them.
#[test]
fn losses_and_ends_do_not_wait_for_a_long_interval() {
    let count = if is_slow() { 500 } else { 5000 };
    let hour = Granularity::Interval(Duration::from_secs(3600));
    let mut trace = Trace::with(builder().ring_bytes(4096).granularity(hour));
    let (l, expected) = churn(count);
    trace.until("all ends", |t| (ended(t, l) == 2 * count).then_some(()));
    let told = |t: &Trace| -> u64 {
        let losses = t.seen.iter().map(|e| match e {
            CollectorEvent::Lost(l) if l.place == LossPlace::Ring => l.count,
            _ => 0,
        });
        losses.sum()
    };
    trace.listen(Duration::from_millis(if is_slow() { 3000 } else { 500 }));
    let stats = trace.collector.stats();
    let lost: u64 = stats.losses.iter().filter(|(_, p, _)| *p == LossPlace::Ring).map(|(_, _, n)| n).sum();
    assert_eq!(told(&trace), lost, "{stats:?}");
    assert!(stats.deferred > 0, "{stats:?}");
    assert!(stats.events >= 2 * count as u64, "{stats:?}");
    check_churn(&trace, l, &expected, count);
}

/// The statistics are fresh while nothing is lost and nothing is due, too.
#[test]
fn statistics_do_not_wait_for_a_long_interval() {
    let trace = Trace::with(builder().granularity(Granularity::Interval(Duration::from_secs(60))));
    drop(tcp_pair());
    let deadline = Instant::now() + Duration::from_secs(10);
    while trace.collector.stats().events == 0 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
}
