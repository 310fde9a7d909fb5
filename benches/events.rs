// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens to a record after it was read: decoding, the channel and the table, without a kernel.
//!
//! `cargo bench --bench events`, as anybody.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::allow_attributes,
    reason = "no library; and a benchmark that cannot go on shall say where"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use tcptop::{CollectorEvent, ConnectionTable, GroupBy, KernelTime};

const CONNECTIONS: u64 = 100_000;
const SECOND: u64 = 1_000_000_000;

/// The `n`th record of traffic that takes all connections in turn: a TCP send, as `src/bpf/wire.h` lays it out.
fn record(n: u64) -> Vec<u8> {
    let (connection, round) = (n % CONNECTIONS, n / CONNECTIONS);
    let mut process = Vec::<u8>::new();
    process.extend([1, 1].map(u64::to_ne_bytes).as_flattened());
    process.extend([1000 + connection as u32 % 50, 0].map(u32::to_ne_bytes).as_flattened());
    process.extend(b"server\0\0\0\0\0\0\0\0\0\0");

    let mut bytes = Vec::new();
    bytes.extend([0, 100].map(u32::to_ne_bytes).as_flattened());
    bytes.extend([SECOND + n * 1_000, connection + 1, SECOND].map(u64::to_ne_bytes).as_flattened());
    bytes.extend(4_026_531_840_u32.to_ne_bytes());
    bytes.extend([443, 1024 + (connection >> 16) as u16].map(u16::to_ne_bytes).as_flattened());
    bytes.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([10, 1, (connection >> 8) as u8, connection as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([4, 6, 2, 0, 0, 0, 0, 0]);
    bytes.extend([&process[..], &process].concat());
    let each = 1000 + connection;
    bytes.extend([1, each, each * (round + 1), round + 1].map(u64::to_ne_bytes).as_flattened());
    bytes.extend([1, 0].map(u32::to_ne_bytes).as_flattened());
    bytes
}

fn decode(record: &[u8]) -> CollectorEvent {
    tcptop::decode(record).expect("a record like the kernel side's")
}

fn benchmarks(criterion: &mut Criterion) {
    let records: Vec<_> = (0..2 * CONNECTIONS).map(record).collect();
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("decode one", |b| {
        b.iter(|| {
            for record in &records {
                black_box(decode(record));
            }
        });
    });
    group.finish();

    let events: Vec<_> = records.iter().map(|record| decode(record)).collect();
    let mut table = ConnectionTable::new().max_connections(CONNECTIONS as usize);
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
    // 50 processes; as many remote hosts as connections; one local port.
    for by in [GroupBy::Process, GroupBy::RemoteHost, GroupBy::LocalPort] {
        group.bench_function(format!("sums by {by}"), |b| b.iter(|| black_box(table.sums(by, now).len())));
    }
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
