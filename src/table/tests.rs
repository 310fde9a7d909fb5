// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections as events tell of them. Helpers for all tests of the table are here.

use super::*;
use crate::event::{
    Closed, CollectorEvent, ConnectFailed, EventKind, LossPlace, Lost, StateChange, Totals, Transfer,
};
use crate::model::{Direction, NetNs, Protocol, TcpState};

mod bootstrap;
mod bounds;
mod crowds;
mod disorder;
mod ends;
mod outcome;
mod sums;
mod vanished;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

fn netns(inode: u32) -> NetNs {
    NetNs::new(inode).expect("not 0")
}

fn ip(last: u8) -> std::net::IpAddr {
    [10, 0, 0, last].into()
}

fn tcp_key() -> ConnectionKey {
    ConnectionKey::new(Protocol::Tcp, ip(1), 40000, ip(2), 443)
}

fn udp_key(peer: u8) -> ConnectionKey {
    ConnectionKey::new(Protocol::Udp, ip(1), 5000, ip(peer), 53)
}

/// An event of TCP socket 1 since time 1000, or of UDP socket 1, without an owner.
fn info(key: ConnectionKey, time: u64) -> ConnectionInfo {
    ConnectionInfo {
        since: KernelTime(1000),
        netns: NetNs::new(7),
        ..ConnectionInfo::new(key, 1, KernelTime(time))
    }
}

fn tcp(time: u64) -> ConnectionInfo {
    info(tcp_key(), time)
}

fn udp(peer: u8, time: u64) -> ConnectionInfo {
    info(udp_key(peer), time)
}

fn owned(mut info: ConnectionInfo, pid: u32, provenance: Provenance) -> ConnectionInfo {
    (info.owner, info.provenance) = (Some(Process::new(pid, "x")), provenance);
    info
}

fn transfer(connection: ConnectionInfo, direction: Direction, bytes: u64, total_bytes: u64) -> Transfer {
    Transfer { total_packets: total_bytes / 100, ..Transfer::new(connection, direction, bytes, total_bytes) }
}

fn send(connection: ConnectionInfo, bytes: u64, total: u64) -> CollectorEvent {
    transfer(connection, Direction::Out, bytes, total).into()
}

fn recv(connection: ConnectionInfo, bytes: u64, total: u64) -> CollectorEvent {
    transfer(connection, Direction::In, bytes, total).into()
}

fn totals(bytes_in: u64, bytes_out: u64) -> Totals {
    Totals { bytes_in, bytes_out, packets_in: bytes_in / 100, packets_out: bytes_out / 100 }
}

fn state(connection: ConnectionInfo, old_state: TcpState, new_state: TcpState) -> CollectorEvent {
    CollectorEvent::TcpStateChange(StateChange::new(connection, old_state, new_state))
}

fn state_with(connection: ConnectionInfo, new_state: TcpState, totals: Totals) -> CollectorEvent {
    let change = StateChange::new(connection, TcpState::Established, new_state);
    CollectorEvent::TcpStateChange(StateChange { totals: Some(totals), ..change })
}

fn begins(connection: ConnectionInfo) -> CollectorEvent {
    state(connection, TcpState::Close, TcpState::SynSent)
}

fn closes(connection: ConnectionInfo) -> CollectorEvent {
    state(connection, TcpState::LastAck, TcpState::Close)
}

fn closed(connection: ConnectionInfo, totals: Totals) -> CollectorEvent {
    CollectorEvent::Closed(Closed::new(connection, totals))
}

/// The end of UDP socket 1.
fn udp_closed(time: u64) -> CollectorEvent {
    let key = ConnectionKey::new(Protocol::Udp, ip(1), 5000, [0, 0, 0, 0].into(), 0);
    closed(info(key, time), Totals::default())
}

fn table<'a>(events: impl IntoIterator<Item = &'a CollectorEvent>) -> ConnectionTable {
    let mut table = ConnectionTable::new();
    events.into_iter().for_each(|event| table.apply(event));
    table
}

/// The only record.
fn only(table: &ConnectionTable) -> ConnectionRecord {
    let mut all = table.records();
    let first = all.next().expect("a record").clone();
    assert_eq!(all.next(), None);
    assert_eq!(table.len(), 1);
    first
}

fn bytes(record: &ConnectionRecord) -> (u64, u64) {
    (record.bytes_in, record.bytes_out)
}

#[test]
fn a_connection_from_handshake_to_end() {
    use TcpState::*;
    let mut no_port = tcp(1001);
    no_port.key.local_port = 0;
    let mut table = table([&begins(owned(no_port, 42, Provenance::Seen))]);
    assert!(table.get(&no_port.key).is_some_and(|r| r.tcp_state == Some(SynSent) && !r.is_partial));

    table.apply(&state(tcp(1002), SynSent, Established));
    table.apply(&send(owned(tcp(1003), 42, Provenance::Seen), 500, 500));
    table.apply(&recv(owned(tcp(1004), 42, Provenance::Seen), 900, 900));
    let record = only(&table);
    assert_eq!(record.key, tcp_key(), "the port was chosen after SYN_SENT");
    assert!(table.get(&no_port.key).is_none());
    assert_eq!((record.tcp_state, record.is_partial, record.is_closed), (Some(Established), false, false));
    assert_eq!((record.packets_in, record.packets_out), (9, 5));

    table.apply(&state_with(tcp(1005), FinWait1, totals(900, 600)));
    table.apply(&closes(tcp(1006)));
    table.apply(&closed(tcp(1007), totals(950, 600)));
    let record = only(&table);
    assert_eq!((record.tcp_state, record.is_closed), (Some(Close), true));
    assert_eq!(bytes(&record), (950, 600));
    assert_eq!((record.pid(), record.provenance), (Some(42), Provenance::Seen));
    assert_eq!((record.first_seen.0, record.last_seen.0), (1000, 1007));
    assert_eq!((record.socket, record.netns), (Some(1), NetNs::new(7)));
}

#[test]
fn listening_is_no_connection() {
    use TcpState::*;
    let mut table = table([]);
    for (old, new) in [(Close, Listen), (Listen, Close), (Close, Close)] {
        table.apply(&state(tcp(1001), old, new));
        assert!(table.is_empty(), "{old} -> {new}");
    }
    table.apply(&CollectorEvent::Lost(Lost::new(EventKind::TcpSend, LossPlace::Ring, 3)));
    assert!(table.is_empty());
    table.apply(&state(owned(tcp(1002), 9, Provenance::Inherited), SynRecv, Established));
    let record = only(&table);
    assert_eq!((record.tcp_state, record.is_partial), (Some(Established), false));
    assert_eq!((record.pid(), record.provenance), (Some(9), Provenance::Inherited));
}

#[test]
fn a_connection_first_seen_in_the_middle_is_partial_until_both_directions_are_known() {
    let mut table = table([&send(tcp(2000), 10, 5000)]);
    assert!(only(&table).is_partial);
    assert_eq!(only(&table).tcp_state, None);
    table.apply(&recv(tcp(2001), 10, 7000));
    assert!(!only(&table).is_partial);
    assert_eq!(bytes(&only(&table)), (7000, 5000));

    for event in [state_with(tcp(1), TcpState::CloseWait, totals(1, 2)), closed(tcp(1), totals(1, 2))] {
        let table = super::tests::table([&event]);
        assert!(!only(&table).is_partial);
        assert_eq!(bytes(&only(&table)), (1, 2));
    }
}

#[test]
fn tuples_repeat_and_do_not_mix() {
    let (mut elsewhere, mut dup) = (tcp(1001), tcp(1001));
    (elsewhere.socket, elsewhere.netns) = (2, NetNs::new(8));
    dup.socket = 3;
    let table =
        table([&send(tcp(1001), 1, 1), &send(elsewhere, 2, 2), &send(dup, 4, 4), &send(elsewhere, 2, 8)]);
    let mut sent: Vec<_> = table.records().map(|r| (r.socket, r.bytes_out)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [(Some(1), 1), (Some(2), 8), (Some(3), 4)]);
    assert!(table.records().all(|r| !r.is_closed));
}

#[test]
fn a_newer_seen_owner_replaces_older_ones_and_weaker_knowledge_nothing() {
    use Provenance::*;
    let mut table = table([&send(tcp(2000), 1, 1)]);
    let mut owner = |time, pid, provenance| {
        table.apply(&send(owned(tcp(time), pid, provenance), 0, 1));
        table.apply(&send(tcp(time), 0, 1));
        let record = only(&table);
        (record.pid().unwrap(), record.provenance)
    };
    assert_eq!(owner(2001, 10, Inherited), (10, Inherited));
    assert_eq!(owner(1999, 11, Seen), (11, Seen), "better, if earlier");
    assert_eq!(owner(2002, 12, Inherited), (11, Seen));
    assert_eq!(owner(2003, 13, Seen), (13, Seen), "handed over");
    assert_eq!(owner(2001, 14, Seen), (13, Seen), "late");
}

#[test]
fn a_state_change_inherits_the_owner_of_the_record() {
    use Provenance::*;
    let mut table = table([]);
    let change = tcp(2001);
    assert_eq!(table.owner_of(&change), None);
    table.apply(&send(owned(tcp(2000), 42, Seen), 1, 1));
    let of = |info| table.owner_of(&info).map(|(process, provenance)| (process.pid, provenance));
    assert_eq!(of(change), Some((42, Seen)));
    assert_eq!(of(owned(change, 1, Inherited)), Some((42, Seen)));
    assert_eq!(of(owned(change, 43, Seen)), Some((43, Seen)));
    assert_eq!(of(ConnectionInfo { since: KernelTime(1500), ..change }), None, "another life");
}

#[test]
fn the_round_trip_time_is_the_latest_known() {
    let micros = |us| Some(Duration::from_micros(us));
    let with = |time, rtt| Transfer { rtt, ..transfer(tcp(time), Direction::Out, 0, 0) }.into();
    let mut table = table([&with(2000, micros(70)), &with(2001, None)]);
    assert_eq!(only(&table).rtt, micros(70));
    table.apply(&with(2005, micros(80)));
    table.apply(&with(2003, micros(75)));
    assert_eq!(only(&table).rtt, micros(80));
}

#[test]
fn states_in_disorder_end_with_the_latest() {
    use TcpState::*;
    let events = [
        state(tcp(1004), FinWait1, FinWait2),
        begins(tcp(1001)),
        state(tcp(1003), Established, FinWait1),
        state(tcp(1002), SynSent, Established),
    ];
    assert_eq!(only(&table(&events)).tcp_state, Some(FinWait2));
    assert!(!only(&table(&events)).is_partial);
}

#[test]
fn udp_flows_are_apart_by_peer_and_go_on_when_the_kernel_starts_again() {
    let again = |peer, time, since| ConnectionInfo { since: KernelTime(since), ..udp(peer, time) };
    let table = table([
        &send(udp(2, 1001), 100, 100),
        &send(udp(3, 1001), 7, 7),
        &recv(udp(2, 1002), 50, 50),
        &send(again(2, 2001, 2000), 30, 30),
        &send(again(2, 1500, 1000), 20, 120),
        &send(again(2, 1400, 1000), 10, 110),
        &send(again(2, 2002, 2000), 10, 40),
    ]);
    let row = |peer| table.get(&udp_key(peer)).unwrap();
    assert_eq!(bytes(row(2)), (50, 160));
    assert_eq!(bytes(row(3)), (0, 7));
    assert_eq!((row(2).first_seen.0, row(2).is_partial, row(2).tcp_state), (1000, false, None));
    assert_eq!(table.len(), 2);
}

#[test]
fn rates_count_growth_and_not_history() {
    let mut table = ConnectionTable::new().rate_window(std::time::Duration::from_secs(10));
    table.apply(&send(tcp(100 * SECOND), 1000, 5_000_000_000));
    table.apply(&recv(tcp(100 * SECOND), 0, 7_000_000_000));
    let rates = |table: &mut ConnectionTable, seconds| {
        let all = table.snapshot(KernelTime(seconds * SECOND));
        (all[0].rate_in, all[0].rate_out)
    };
    assert_eq!(rates(&mut table, 100), (0.0, 100.0));
    // The state change comes before the report of the same bytes, which waits for its interval to end.
    table.apply(&state_with(tcp(101 * SECOND), TcpState::CloseWait, totals(7_000_003_000, 5_000_000_000)));
    table.apply(&recv(tcp(101 * SECOND + MS), 3000, 7_000_003_000));
    assert_eq!(rates(&mut table, 101), (300.0, 100.0));
    assert_eq!(table.get(&tcp_key()).map(|r| r.rate_in), Some(300.0));
    assert_eq!(rates(&mut table, 105), (300.0, 100.0), "as old as the window at most");
    assert_eq!(rates(&mut table, 200), (0.0, 0.0));
    let mut table = table.rate_window(std::time::Duration::from_secs(1));
    assert_eq!(rates(&mut table, 101), (0.0, 0.0), "measured anew");
}

#[test]
fn what_lost_and_late_events_would_have_told_counts_for_the_rate() {
    let rate = |events: &[CollectorEvent]| {
        let mut table = ConnectionTable::new().rate_window(std::time::Duration::from_secs(10));
        events.iter().for_each(|event| table.apply(event));
        table.snapshot(KernelTime(101 * SECOND))[0].rate_out
    };
    let first = send(tcp(100 * SECOND), 1000, 5000);
    let (next, late) = (send(tcp(101 * SECOND), 1000, 8000), send(tcp(101 * SECOND), 2000, 7000));
    assert_eq!(rate(std::slice::from_ref(&first)), 100.0, "the rest is history");
    assert_eq!(rate(&[first.clone(), next.clone()]), 400.0, "one between them was lost");
    assert_eq!(rate(&[first, next, late]), 400.0);
}

#[test]
fn a_report_of_an_interval_counts_at_its_end() {
    let mut table = ConnectionTable::new().udp_idle(std::time::Duration::from_secs(30));
    let until = KernelTime(60 * SECOND);
    let report = |connection| Transfer { until, ..transfer(connection, Direction::Out, 500, 500) }.into();
    table.apply(&report(udp(2, 1601)));
    let row = &table.snapshot(until)[0];
    assert_eq!((row.rate_out, row.last_seen, row.is_closed), (100.0, until, false));
    assert!(!table.snapshot(KernelTime(89 * SECOND))[0].is_closed);
    assert!(table.snapshot(KernelTime(90 * SECOND))[0].is_closed, "idle since then");
}

#[test]
fn totals_at_first_sight_of_an_old_connection_are_history_and_of_a_new_one_are_not() {
    let change = state_with(tcp(5 * SECOND), TcpState::CloseWait, totals(10_000, 0));
    for (born, rate) in [(false, 0.0), (true, 2000.0)] {
        let mut table = table(born.then_some(&begins(tcp(1001))));
        table.apply(&change);
        assert_eq!(table.snapshot(KernelTime(5 * SECOND))[0].rate_in, rate);
    }
}

/// No event repairs it any more.
#[test]
fn flows_are_partial_where_the_end_of_their_socket_says_that_something_was_lost() {
    for is_partial in [false, true] {
        let mut end = udp_closed(2000);
        if let CollectorEvent::Closed(closed) = &mut end {
            closed.connection.is_partial = is_partial;
        }
        let key = ConnectionKey::new(Protocol::Udp, ip(1), 5000, ip(2), 53);
        let sent = CollectorEvent::UdpSend(Transfer::new(info(key, 1000), Direction::Out, 5, 5));
        let record = only(&table([&sent, &end]));
        assert_eq!((record.is_closed, record.is_partial, record.bytes_out), (true, is_partial, 5));
    }
}
