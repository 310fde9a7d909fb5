// SPDX-License-Identifier: MIT OR Apache-2.0
//! How connections end, and what comes after.

use super::*;
use std::time::Duration;

#[test]
fn late_events_raise_totals_and_open_nothing() {
    let mut table = table([&begins(tcp(1001)), &closes(tcp(1002))]);
    table.apply(&recv(tcp(1003), 700, 700));
    table.apply(&state(tcp(1001), TcpState::SynSent, TcpState::Established));
    table.apply(&state(tcp(1009), TcpState::SynSent, TcpState::Established));
    let record = only(&table);
    assert_eq!((record.bytes_in, record.is_closed, record.tcp_state), (700, true, Some(TcpState::Close)));
}

#[test]
fn a_socket_that_connects_again_has_two_connections() {
    let second = ConnectionInfo { since: KernelTime(5000), ..tcp(5001) };
    let mut events = [send(tcp(1001), 10, 10), begins(second), send(second, 3, 3), send(tcp(1002), 5, 15)];
    for _ in 0..events.len() {
        events.rotate_left(1);
        let table = table(&events);
        let mut all: Vec<_> = table.records().map(|r| (r.first_seen.0, r.bytes_out, r.is_closed)).collect();
        all.sort_unstable();
        assert_eq!(all, [(1000, 15, true), (5000, 3, false)]);
        assert_eq!(table.get(&tcp_key()).map(|r| r.first_seen.0), Some(5000), "the open one");
    }
}

#[test]
fn a_socket_that_listens_has_no_connection_any_more() {
    let listens = ConnectionInfo { since: KernelTime(5000), ..tcp(5001) };
    let table = table([&send(tcp(1001), 10, 10), &state(listens, TcpState::Close, TcpState::Listen)]);
    assert!(only(&table).is_closed);
}

#[test]
fn of_several_with_one_key_the_open_one_is_found_and_then_the_latest() {
    let life = |socket, since| ConnectionInfo { socket, since: KernelTime(since), ..tcp(since + 1) };
    let mut table = table([&begins(life(1, 1000)), &begins(life(2, 2000)), &begins(life(3, 3000))]);
    let found = |table: &ConnectionTable| table.get(&tcp_key()).and_then(|r| r.socket);
    assert_eq!(found(&table), Some(3));
    table.apply(&closes(life(3, 3000)));
    assert_eq!(found(&table), Some(2));
    table.apply(&closes(life(2, 2000)));
    table.apply(&closes(life(1, 1000)));
    assert_eq!(found(&table), Some(3));
}

#[test]
fn closed_records_linger_from_their_end_or_the_latest_event() {
    let mut table = table([&closes(tcp(10 * SECOND))]).linger(Duration::from_secs(4));
    let mut rows = |seconds: u64| table.snapshot(KernelTime(seconds * SECOND)).len();
    assert_eq!((rows(9), rows(13), rows(14)), (1, 1, 0));

    let mut table = super::table([&closes(tcp(10 * SECOND)), &recv(tcp(12 * SECOND), 1, 1)]);
    assert_eq!(table.snapshot(KernelTime(21 * SECOND)).len(), 1);
    assert_eq!(table.snapshot(KernelTime(22 * SECOND)).len(), 0);
    assert!(table.is_empty());
    assert_eq!(table.evicted(), 0);
}

#[test]
fn open_records_stay_however_silent() {
    let table = table([&send(tcp(1001), 1, 1), &send(udp(2, 1001), 1, 1)]).linger(Duration::ZERO);
    assert_eq!(table.udp_idle(Duration::MAX).snapshot(KernelTime(u64::MAX)).len(), 2);
}

#[test]
fn what_comes_after_the_record_is_gone_is_closed_too() {
    let mut table =
        table([&closes(tcp(10 * SECOND)), &send(udp(2, 10 * SECOND), 1, 1)]).linger(Duration::ZERO);
    table.apply(&udp_closed(10 * SECOND));
    assert_eq!(table.snapshot(KernelTime(10 * SECOND)), []);
    table.apply(&recv(tcp(11 * SECOND), 7, 7));
    table.apply(&recv(udp(2, 9 * SECOND), 7, 7));
    table.apply(&closed(tcp(12 * SECOND), totals(8, 9)));
    assert!(table.records().all(|r| r.is_closed));
    assert_eq!(table.get(&tcp_key()).map(bytes), Some((8, 9)));
    assert_eq!(table.snapshot(KernelTime(12 * SECOND)), []);
}

#[test]
fn a_udp_socket_ends_with_all_its_flows_and_no_others() {
    let other = ConnectionInfo { socket: 2, ..udp(4, 1001) };
    let mut table = table([&send(udp(2, 1001), 1, 1), &send(udp(3, 1002), 1, 1), &send(other, 1, 1)]);
    table.apply(&udp_closed(1003));
    let mut all: Vec<_> = table.records().map(|r| (r.key.remote_addr, r.is_closed)).collect();
    all.sort_unstable();
    assert_eq!(all, [(ip(2), true), (ip(3), true), (ip(4), false)]);
    // What other flows of the socket had to report follows.
    table.apply(&send(udp(3, 1002), 1, 2));
    table.apply(&send(udp(5, 1002), 9, 9));
    let late = table.get(&udp_key(5)).unwrap();
    assert_eq!((late.is_closed, late.bytes_out), (true, 9));
    assert_eq!(table.get(&udp_key(3)).map(|r| (r.is_closed, r.bytes_out)), Some((true, 2)));
}

#[test]
fn the_end_may_be_all_that_is_ever_seen() {
    let record = only(&table([&closed(tcp(5000), totals(10, 20))]));
    assert_eq!((bytes(&record), record.is_closed, record.is_partial), ((10, 20), true, false));
    assert_eq!(record.tcp_state, Some(TcpState::Close));
    assert!(table([&udp_closed(5000)]).is_empty(), "its flows are not known");
}

#[test]
fn a_silent_udp_flow_ends_and_goes_on_where_it_was() {
    let mut table = ConnectionTable::new().udp_idle(Duration::from_secs(30)).linger(Duration::from_secs(10));
    table.apply(&send(udp(2, SECOND), 100, 100));
    table.apply(&send(ConnectionInfo { socket: 5, ..tcp(SECOND) }, 1, 1));
    let flow = |table: &mut ConnectionTable, seconds| {
        let all = table.snapshot(KernelTime(seconds * SECOND));
        all.into_iter().find(|r| r.key.protocol == Protocol::Udp).map(|r| (r.is_closed, r.bytes_out))
    };
    assert_eq!(flow(&mut table, 30), Some((false, 100)));
    assert_eq!(flow(&mut table, 31), Some((true, 100)));
    table.apply(&send(udp(2, 20 * SECOND), 5, 105));
    assert_eq!(flow(&mut table, 32), Some((true, 105)), "late, and counted");
    table.apply(&send(udp(2, 33 * SECOND), 7, 112));
    assert_eq!(flow(&mut table, 34), Some((false, 112)), "it goes on");
    assert_eq!(flow(&mut table, 63), Some((true, 112)));
    table.apply(&udp_closed(64 * SECOND));
    table.apply(&send(udp(2, 65 * SECOND), 0, 112));
    assert_eq!(flow(&mut table, 66), Some((true, 112)), "its socket is gone for good");
    assert_eq!(flow(&mut table, 80), None, "it has lingered");
    assert!(!only(&table).is_closed, "TCP is never idle");
}
