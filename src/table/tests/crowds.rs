// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many connections that have something in common, as an unprivileged program can make them: no search may take longer the
//! more there are. What is counted are the steps from one candidate to the next.

use super::super::store::STEPS;
use super::*;

/// A socket of those that share an address (SO_REUSEPORT), as a scan finds it.
fn sharer(id: u64, pid: u32, has_id: bool) -> ConnectionRecord {
    let any = ConnectionKey::new(Protocol::Udp, ip(1), 5000, [0, 0, 0, 0].into(), 0);
    let mut row = ConnectionRecord::new(any, KernelTime(1500));
    (row.netns, row.socket, row.is_partial) = (NetNs::new(7), has_id.then_some(id), true);
    (row.owner, row.provenance) = (Some(Process::new(pid, "x")), Provenance::Bootstrap);
    row
}

fn sharers(n: u64, has_id: bool, pid: fn(u64) -> u32) -> ConnectionTable {
    let mut table = ConnectionTable::new().max_connections(1 << 20);
    table.merge_bootstrap((0..n).map(|id| sharer(id, pid(id), has_id)));
    table
}

fn of_socket(info: ConnectionInfo, socket: u64) -> ConnectionInfo {
    ConnectionInfo { socket, ..info }
}

fn end(socket: u64, pid: u32, time: u64) -> CollectorEvent {
    let key = sharer(0, 0, false).key;
    closed(owned(of_socket(info(key, time), socket), pid, Provenance::Seen), Totals::default())
}

fn merges(n: u64, has_id: bool, pid: fn(u64) -> u32) {
    let table = sharers(n, has_id, pid);
    assert!(!has_id || table.len() as u64 == n, "each has a row");
}

/// Listed, listed again, closed.
fn closes_all(n: u64, has_id: bool) {
    let mut table = sharers(n, has_id, |_| 50);
    table.merge_bootstrap((0..n).map(|id| sharer(id, 50, has_id)));
    for id in 0..n {
        table.apply(&end(id, 50, 2000 + id));
    }
    assert!(table.records().all(|row| row.is_closed));
}

/// All send to the same peer, and nobody knows who they are.
fn flows(n: u64, has_id: bool, pid: fn(u64) -> u32) {
    let mut table = sharers(n, has_id, pid);
    for id in 0..n {
        table.apply(&send(of_socket(udp(2, 2000), id), 1, 1));
    }
    table.merge_bootstrap((0..n).map(|id| sharer(id, pid(id), has_id)));
    assert!(table.records().filter(|row| row.key.remote_port != 0).all(|row| row.is_partial));
    if has_id {
        let named = table.records().filter(|row| row.key.remote_port != 0 && row.pid().is_some());
        assert_eq!(named.count() as u64, n, "a socket's row names the owner of its flows");
    }
}

/// One socket is connected again and again.
fn lives(n: u64) {
    let mut table = ConnectionTable::new().max_connections(1 << 20);
    for life in 0..n {
        let mut info = tcp(2000 + 10 * life);
        info.since = info.time;
        table.apply(&begins(info));
        table.apply(&send(info, 1, 1));
    }
    assert_eq!(table.records().filter(|row| !row.is_closed).count(), 1, "the latest");
}

/// A scan began before they ended, and its rows come after.
fn late_rows(n: u64, has_id: bool) {
    let mut table = ConnectionTable::new().max_connections(1 << 20);
    for id in 0..n {
        table.apply(&end(id, 50, 2000 + id));
    }
    table.merge_bootstrap((0..n).map(|id| sharer(id, 50, has_id)));
    assert!(table.is_empty(), "no ghosts");
}

fn steps(of: impl FnOnce()) -> u64 {
    let before = STEPS.with(std::cell::Cell::get);
    of();
    STEPS.with(std::cell::Cell::get) - before
}

#[test]
fn the_work_for_a_crowd_grows_with_its_size_and_not_with_its_square() {
    let same = |_| 50;
    let own = |id: u64| id as u32;
    let crowds: [(&str, &dyn Fn(u64)); 11] = [
        ("rows with ids", &|n| merges(n, true, same)),
        ("rows without ids", &|n| merges(n, false, same)),
        ("rows without ids, of many processes", &|n| merges(n, false, own)),
        ("ends of sockets with ids", &|n| closes_all(n, true)),
        ("ends of sockets without ids", &|n| closes_all(n, false)),
        ("flows of sockets with ids", &|n| flows(n, true, own)),
        ("flows of sockets without ids", &|n| flows(n, false, same)),
        ("flows of sockets without ids, of many processes", &|n| flows(n, false, own)),
        ("lives of one socket", &|n| lives(n)),
        ("rows with ids that come late", &|n| late_rows(n, true)),
        ("rows without ids that come late", &|n| late_rows(n, false)),
    ];
    for (what, crowd) in crowds {
        let (some, twice) = (steps(|| crowd(2000)), steps(|| crowd(4000)));
        assert!(twice <= some * 5 / 2 + 4000, "{what}: {some} steps for 2000, {twice} for 4000");
    }
}
