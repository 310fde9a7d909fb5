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
    table.apply(&send(socket(3, 1007), 5, 1500));
    assert_eq!(table.records().find(|r| r.socket == Some(3)).map(|r| r.bytes_out), Some(1500), "it is back");
    table.apply(&send(socket(2, 1008), 5, 900));
    assert_eq!(table.records().find(|r| r.socket == Some(2)).map(|r| r.bytes_out), Some(1002), "as it was");
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
    assert_eq!(table.store.index_sizes(), [0; 7]);
}

/// A storm of short flows, of connections, of rows that a scan has found: nothing is kept for those that are gone, and what
/// is still there is found as before.
#[test]
fn what_is_gone_gives_its_memory_back() {
    const MANY: u64 = 50_000;
    let mut table = ConnectionTable::new().max_connections(1 << 20).linger(Duration::ZERO);
    let of = |id: u64, info: ConnectionInfo| {
        let key = ConnectionKey { local_port: id as u16, ..info.key };
        ConnectionInfo { socket: id, key, ..info }
    };
    let row = |id: u64| {
        let key = ConnectionKey { local_port: id as u16, remote_port: 9, ..udp_key(3) };
        ConnectionRecord {
            socket: Some(id),
            is_partial: true,
            ..ConnectionRecord::new(key, KernelTime(SECOND))
        }
    };
    let stays = |id: &u64| id.is_multiple_of(1000);
    let ids = || 1..=3 * MANY;
    for id in ids() {
        match id % 3 {
            0 => table.apply(&send(of(id, udp(2, SECOND)), 1, 1)),
            1 => table.apply(&send(of(id, tcp(SECOND)), 1, 1)),
            _ => table.merge_bootstrap([row(id)]),
        }
    }
    assert_eq!(table.snapshot(KernelTime(SECOND)).len() as u64, 3 * MANY);
    for id in ids().filter(|id| !stays(id)) {
        match id % 3 {
            1 => table.apply(&closes(of(id, tcp(2 * SECOND)))),
            _ => table.apply(&closed(of(id, info(unconnected(id as u16), 2 * SECOND)), Totals::default())),
        }
    }
    let left = table.snapshot(KernelTime(3 * SECOND)).len();
    assert_eq!(left, ids().filter(stays).count());
    let (room, preexisting) = (table.store.room(), table.preexisting.capacity());
    assert!(
        room <= 1024.max(8 * left) && preexisting <= 1024,
        "{left} left, room for {room} and {preexisting}"
    );
    for id in ids().filter(stays) {
        match id % 3 {
            0 => table.apply(&send(of(id, udp(2, 4 * SECOND)), 1, 2)),
            1 => table.apply(&send(of(id, tcp(4 * SECOND)), 1, 2)),
            _ => table.merge_bootstrap([row(id)]),
        }
    }
    assert_eq!(table.len(), left, "they were found");
}

fn unconnected(port: u16) -> ConnectionKey {
    ConnectionKey::new(Protocol::Udp, ip(1), port, [0, 0, 0, 0].into(), 0)
}

/// What glibc has kept of what was given back to it goes back to the kernel.
#[cfg(target_env = "gnu")]
fn trimmed(resident: impl Fn() -> u64) -> u64 {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: as documented in malloc_trim(3), it takes any number.
    unsafe { malloc_trim(0) };
    resident()
}

/// What a storm of a million short flows, or connections, costs for good: `cargo test --release --lib resident -- --ignored
/// --nocapture` prints the resident memory.
#[cfg(target_env = "gnu")]
#[test]
#[ignore = "measures this process's memory, which others that run beside would disturb"]
fn resident_memory_after_a_million_short_flows_and_connections() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1_000_000
    };
    let mut table = ConnectionTable::new().max_connections(1 << 20).linger(Duration::from_secs(6));
    let before = resident();
    for (name, make) in
        [("flows", udp as fn(u8, u64) -> ConnectionInfo), ("connections", |_, time| tcp(time))]
    {
        let began = 1000 * SECOND;
        for id in 0..1_000_000 {
            let mut info = ConnectionInfo { socket: id, ..make(2, began + 100_000 * id) };
            (info.since, info.key.local_port) = (info.time, id as u16);
            table.apply(&send(info, 1, 1));
            // Some stay, here and there.
            if info.key.protocol == Protocol::Tcp && id % 10_000 != 0 {
                table.apply(&closes(info));
            }
            if id % 10_000 == 0 && name == "connections" {
                table.records_at(info.time).count();
            }
        }
        let (peak, most) = (resident(), table.len());
        table.records_at(KernelTime(began + 300 * SECOND)).count();
        let left = table.records_at(KernelTime(began + 400 * SECOND)).count();
        println!(
            "{name}: {before} MB before, {peak} with {most} rows, {} with {left} rows, {} trimmed",
            resident(),
            trimmed(resident)
        );
        assert!(resident() < before + 20, "{name}");
    }
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
