// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bounded memory, and indices that stay in step with what is there.

use super::*;
use std::time::{Duration, Instant};

fn socket(id: u64, time: u64) -> ConnectionInfo {
    ConnectionInfo { socket: id, ..tcp(time) }
}

fn sockets(table: &ConnectionTable) -> Vec<u64> {
    let mut all: Vec<_> = table.records().filter_map(|r| r.socket).collect();
    all.sort_unstable();
    all
}

#[test]
fn the_least_recently_seen_goes_when_all_are_open() {
    let mut table = ConnectionTable::new().max_connections(3);
    for (id, time) in [(1, 1001), (2, 1002), (3, 1003), (1, 1004)] {
        table.apply(&send(socket(id, time), 1, time));
    }
    table.apply(&send(socket(4, 1005), 1, 1));
    assert_eq!((sockets(&table), table.evicted()), (vec![1, 3, 4], 1));
    table.apply(&send(socket(5, 1006), 1, 1));
    assert_eq!((sockets(&table), table.evicted()), (vec![1, 4, 5], 2));
    table.apply(&send(socket(3, 1007), 5, 900));
    assert_eq!(table.records().find(|r| r.socket == Some(3)).map(|r| r.bytes_out), Some(900), "it is back");
}

#[test]
fn closed_ones_go_first_and_of_these_the_oldest() {
    let mut table = ConnectionTable::new().max_connections(4);
    for id in 1..=4 {
        table.apply(&send(socket(id, 1000 + id), 1, 1));
    }
    table.apply(&closes(socket(4, 1010)));
    table.apply(&closes(socket(2, 1011)));
    table.apply(&recv(socket(4, 1012), 1, 1));
    for (next, left) in [(5, [1, 2, 3, 5]), (6, [1, 3, 5, 6]), (7, [3, 5, 6, 7])] {
        table.apply(&send(socket(next, 1020 + next), 1, 1));
        assert_eq!(sockets(&table), left);
    }
    assert_eq!(table.evicted(), 3);
}

#[test]
fn the_bound_holds_when_it_is_lowered_and_is_never_zero() {
    let events: Vec<_> = (1..=9).map(|id| send(socket(id, 1000 + id), 1, 1)).collect();
    let table = table(&events).max_connections(4);
    assert_eq!((sockets(&table), table.evicted()), (vec![6, 7, 8, 9], 5));
    let mut table = table.max_connections(0);
    table.apply(&send(socket(10, 2000), 1, 1));
    assert_eq!((sockets(&table), table.len(), table.evicted()), (vec![10], 1, 9));
}

#[test]
fn rows_out_of_proc_count_too() {
    let mut table = ConnectionTable::new().max_connections(10);
    let rows = (0..100).map(|port| {
        let key = ConnectionKey { local_port: port, ..tcp_key() };
        ConnectionRecord::new(key, KernelTime(5000))
    });
    table.merge_bootstrap(rows);
    assert_eq!((table.len(), table.evicted()), (10, 90));
}

#[test]
fn indices_and_queue_do_not_outgrow_the_table() {
    let mut table = ConnectionTable::new().max_connections(100).linger(Duration::ZERO);
    for n in 0..20_000 {
        let time = 1000 + n;
        let mut info = if n % 3 == 0 { udp((n % 200) as u8, time) } else { socket(n / 2, time) };
        info.key.local_port = (n % 50) as u16;
        table.apply(&send(info, 1, n));
        if n % 5 == 0 {
            table.apply(&closes(socket(n / 2, time)));
        }
        if n % 1000 == 0 {
            table.snapshot(KernelTime(time));
        }
        assert!(table.len() <= 100);
    }
    assert!(table.store.tickets() <= 2 * 100 + 1100, "{}", table.store.tickets());
    assert!(table.store.index_sizes().iter().all(|&size| size <= 100));
    let (keys, len) = (table.records().map(|r| r.key).collect::<Vec<_>>(), table.len());
    assert!(keys.iter().all(|key| table.get(key).is_some()));
    let flows =
        table.store.iter().filter(|&(slot, e)| e.flow().and_then(|f| table.store.find(&f)) == Some(slot));
    assert_eq!(flows.count(), len);

    let mut table = table.max_connections(1);
    table.apply(&closes(socket(1 << 40, SECOND)));
    table.snapshot(KernelTime(2 * SECOND));
    assert!(table.is_empty());
    assert_eq!(table.store.index_sizes(), [0; 4]);
}

#[test]
fn a_flow_that_pauses_again_and_again_takes_no_more_memory() {
    let mut table = ConnectionTable::new().udp_idle(Duration::from_nanos(10));
    for n in 1..20_000 {
        table.apply(&send(udp(2, 1000 * n), 1, n));
        table.snapshot(KernelTime(1000 * n + 500));
        assert!(only(&table).is_closed);
    }
    assert!(table.store.tickets() <= 1100, "{}", table.store.tickets());
}

#[test]
fn at_the_bound_events_stay_cheap() {
    let mut table = ConnectionTable::new().max_connections(20_000);
    let began = Instant::now();
    for n in 0..200_000 {
        let mut info = socket(n, 1000 + n);
        info.key.local_port = n as u16;
        table.apply(&send(info, 1, 1));
    }
    assert_eq!(table.evicted(), 180_000);
    // A search through the table for each would take minutes.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
