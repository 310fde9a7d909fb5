// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens to an event after it was decoded: the channel and the table, without a kernel.
//!
//! `cargo bench --bench table`, as anybody.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::allow_attributes,
    reason = "no library; and a benchmark that cannot go on shall say where"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use tcptop::{CollectorEvent, ConnectionTable, KernelTime};

const CONNECTIONS: u64 = 100_000;
const SECOND: u64 = 1_000_000_000;

/// The `n`th event of traffic that takes all connections in turn. Events have no constructor, but a form as text.
fn event(n: u64) -> CollectorEvent {
    let (connection, round) = (n % CONNECTIONS, n / CONNECTIONS);
    let process = serde_json::json!({
        "pid": 1000 + connection % 50, "name": "server", "uid": 0, "start_time_ns": 1, "cgroup_id": 1,
    });
    let event = serde_json::json!({"TcpSend": {
        "connection": {
            "time": SECOND + n * 1_000,
            "socket": connection + 1,
            "since": SECOND,
            "key": {
                "protocol": "Tcp",
                "local_addr": "10.0.0.1",
                "local_port": 443,
                "remote_addr": format!("10.1.{}.{}", connection >> 8 & 255, connection & 255),
                "remote_port": 1024 + (connection >> 16),
            },
            "netns": 4_026_531_840_u32,
            "owner": process,
            "provenance": "Seen",
        },
        "actor": process,
        "bytes": 1000 + connection,
        "calls": 1,
        "total_bytes": (1000 + connection) * (round + 1),
        "total_packets": round + 1,
        "rtt_us": 100,
    }});
    serde_json::from_value(event).expect("the form that `Serialize` gives it")
}

fn benchmarks(criterion: &mut Criterion) {
    let events: Vec<CollectorEvent> = (0..2 * CONNECTIONS).map(event).collect();
    let mut table = ConnectionTable::new();
    events.iter().for_each(|event| table.apply(event));
    assert_eq!(table.len() as u64, CONNECTIONS, "each is a connection of its own");

    let mut group = criterion.benchmark_group("100,000 connections");
    group.measurement_time(Duration::from_secs(8)).sample_size(20);
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("fold an event", |b| b.iter(|| events.iter().for_each(|event| table.apply(event))));
    group.throughput(Throughput::Elements(CONNECTIONS));
    let now = KernelTime(SECOND + 2 * CONNECTIONS * 1_000);
    group.bench_function("the 20 busiest of a snapshot", |b| {
        b.iter(|| {
            let mut records = table.snapshot(now);
            let busiest = |r: &tcptop::ConnectionRecord| r.rate_in + r.rate_out;
            records.select_nth_unstable_by(20, |a, b| busiest(b).total_cmp(&busiest(a)));
            black_box(records.len())
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("channel");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("an event through it", |b| {
        b.iter_batched(
            || crossbeam_channel::bounded(1 << 16),
            |(tx, rx)| {
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        for event in rx {
                            black_box(event);
                        }
                    });
                    for event in &events {
                        tx.send(event.clone()).expect("the receiver lives");
                    }
                    drop(tx);
                });
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(all, benchmarks);
criterion_main!(all);
