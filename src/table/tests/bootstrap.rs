// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rows out of /proc, merged before, between and after the events.

use super::*;
use Provenance::*;

/// What a scan over /proc that began at `time` has found.
fn row(key: ConnectionKey, time: u64, pid: u32) -> ConnectionRecord {
    let owner = (pid != 0).then(|| Process::new(pid, "row"));
    ConnectionRecord {
        netns: NetNs::new(7),
        owner,
        provenance: if owner.is_some() { Bootstrap } else { Unknown },
        tcp_state: (key.protocol == Protocol::Tcp).then_some(TcpState::Established),
        is_partial: true,
        ..ConnectionRecord::new(key, KernelTime(time))
    }
}

/// Applies the events with the row merged at every possible point, and once more at the end. The result must be the
/// same for all.
fn in_any_order(row: &ConnectionRecord, events: &[CollectorEvent]) -> Vec<ConnectionRecord> {
    let run = |at: usize| {
        let mut table = table(&events[..at]);
        table.merge_bootstrap([row.clone()]);
        events[at..].iter().for_each(|event| table.apply(event));
        let mut all: Vec<_> = table.records().cloned().collect();
        table.merge_bootstrap([row.clone(), row.clone()]);
        assert_eq!(table.len(), all.len(), "merging again adds nothing");
        all.sort_by_key(|r| (r.key, r.socket, r.first_seen));
        all
    };
    let first = run(0);
    for at in 1..=events.len() {
        assert_eq!(run(at), first, "merged after {at} events");
    }
    first
}

#[test]
fn an_old_connection_keeps_its_owner_until_a_better_one_is_seen() {
    let row = row(tcp_key(), 1500, 50);
    let mut table = ConnectionTable::new();
    table.merge_bootstrap([row.clone(), row.clone()]);
    table.merge_bootstrap([row.clone()]);
    assert_eq!(only(&table), row);
    assert_eq!(table.owner_of(&tcp(1400)).map(|(p, by)| (p.pid, by)), Some((50, Bootstrap)));

    table.apply(&send(tcp(1600), 10, 9000));
    let record = only(&table);
    assert_eq!((record.pid(), record.provenance, record.socket), (Some(50), Bootstrap, Some(1)));
    assert_eq!((record.is_partial, record.tcp_state), (true, Some(TcpState::Established)));
    assert_eq!(table.get(&tcp_key()), Some(&record));
    table.apply(&recv(owned(tcp(1601), 60, Inherited), 10, 8000));
    assert_eq!((only(&table).pid(), only(&table).is_partial), (Some(60), false));
}

#[test]
fn merging_works_at_any_time() {
    let events = [
        send(tcp(1600), 10, 9000),
        recv(tcp(1601), 10, 8000),
        state_with(tcp(1700), TcpState::CloseWait, totals(8000, 9500)),
    ];
    let all = in_any_order(&row(tcp_key(), 1500, 50), &events);
    let [record] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((record.pid(), record.provenance), (Some(50), Bootstrap));
    assert_eq!((bytes(record), record.is_partial), ((8000, 9500), false));
    assert_eq!((record.first_seen.0, record.last_seen.0), (1000, 1700));
}

#[test]
fn a_connection_that_ended_during_the_scan_leaves_no_ghost() {
    let all = in_any_order(&row(tcp_key(), 1500, 50), &[closes(tcp(1500)), closed(tcp(1502), totals(1, 2))]);
    let [record] = all.as_slice() else { panic!("{all:?}") };
    assert!(record.is_closed);
    assert_eq!(record.pid(), Some(50));
}

#[test]
fn a_connection_that_ended_before_the_scan_is_another_one() {
    let row = row(tcp_key(), 1500, 50);
    let all = in_any_order(&row, &[send(tcp(1400), 5, 5), closes(tcp(1499))]);
    let [open, ended] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(open, &row);
    assert_eq!(
        (ended.is_closed, ended.socket, ended.owner, ended.provenance),
        (true, Some(1), None, Unknown)
    );
    assert_eq!(ended.first_seen.0, 1000);
}

#[test]
fn the_row_passes_on_to_the_connection_that_took_the_tuple() {
    let next = ConnectionInfo { socket: 2, since: KernelTime(1490), ..tcp(1600) };
    let events = [send(tcp(1400), 5, 5), closes(tcp(1480)), send(next, 1, 1)];
    let all = in_any_order(&row(tcp_key(), 1500, 50), &events);
    let [old, new] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((old.socket, old.is_closed, old.pid()), (Some(1), true, None));
    assert_eq!((new.socket, new.is_closed, new.pid()), (Some(2), false, Some(50)));
}

#[test]
fn even_when_the_record_of_the_end_is_gone_no_ghost_appears() {
    let mut table = table([&closes(tcp(1501))]).linger(std::time::Duration::ZERO);
    assert!(table.snapshot(KernelTime(1501)).is_empty());
    table.merge_bootstrap([row(tcp_key(), 1500, 50)]);
    assert!(table.is_empty());
    table.merge_bootstrap([row(tcp_key(), 1502, 50)]);
    assert_eq!(table.len(), 1);
}

#[test]
fn namespaces_keep_equal_tuples_apart_and_zero_fits_any() {
    let elsewhere = ConnectionRecord { netns: NetNs::new(8), ..row(tcp_key(), 1500, 50) };
    let all = in_any_order(&elsewhere, &[send(tcp(1600), 1, 1)]);
    assert_eq!(
        all.iter().map(|r| (r.netns, r.pid())).collect::<Vec<_>>(),
        [(NetNs::new(8), Some(50)), (NetNs::new(7), None)]
    );

    let anywhere = ConnectionRecord { netns: None, ..elsewhere };
    let all = in_any_order(&anywhere, &[send(tcp(1600), 1, 1)]);
    assert_eq!(all.iter().map(|r| (r.netns, r.pid())).collect::<Vec<_>>(), [(NetNs::new(7), Some(50))]);
}

#[test]
fn a_row_that_could_be_either_of_two_tells_nothing() {
    let other = ConnectionInfo { socket: 2, netns: NetNs::new(8), ..tcp(1600) };
    let mut table = table([&send(tcp(1600), 1, 1), &send(other, 1, 1)]);
    table.merge_bootstrap([ConnectionRecord { netns: None, ..row(tcp_key(), 1500, 50) }]);
    assert_eq!(table.len(), 2);
    assert!(table.records().all(|r| r.owner.is_none()));
}

#[test]
fn a_connection_whose_port_was_not_chosen_yet_finds_its_row_later() {
    let mut no_port = tcp(1450);
    no_port.key.local_port = 0;
    let syn = ConnectionRecord { tcp_state: Some(TcpState::SynSent), ..row(tcp_key(), 1500, 50) };
    let established = state(tcp(1600), TcpState::SynSent, TcpState::Established);
    let all = in_any_order(&syn, &[begins(no_port), established]);
    let [record] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((record.tcp_state, record.pid()), (Some(TcpState::Established), Some(50)));
    assert!(!record.is_partial);
}

#[test]
fn rows_that_no_event_would_end_are_not_added() {
    let mut table = ConnectionTable::new();
    for state in [TcpState::Listen, TcpState::Close, TcpState::TimeWait, TcpState::NewSynRecv] {
        table.merge_bootstrap([ConnectionRecord { tcp_state: Some(state), ..row(tcp_key(), 1500, 50) }]);
    }
    table.merge_bootstrap([ConnectionRecord { is_closed: true, ..row(tcp_key(), 1500, 50) }]);
    assert!(table.is_empty());
}

/// What sock_diag has found: the id and the totals, too.
fn whole_row() -> ConnectionRecord {
    ConnectionRecord {
        socket: Some(1),
        is_partial: false,
        bytes_in: 700,
        bytes_out: 900,
        ..row(tcp_key(), 1500, 50)
    }
}

#[test]
fn a_row_from_the_kernel_itself_brings_totals_and_knows_its_socket() {
    let exact = whole_row();
    let all = in_any_order(&exact, &[send(tcp(1600), 10, 910)]);
    let [record] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((bytes(record), record.is_partial), ((700, 910), false));
    let other = ConnectionInfo { socket: 2, ..tcp(1600) };
    assert_eq!(in_any_order(&exact, &[send(other, 1, 1)]).len(), 2);
}

#[test]
fn a_row_from_the_middle_of_a_change_is_put_right_by_the_next_event() {
    let torn = whole_row();
    for event in [recv(tcp(1600), 10, 690), closed(tcp(1600), totals(690, 900))] {
        let all = in_any_order(&torn, &[event]);
        assert_eq!(all.iter().map(|r| (bytes(r), r.is_partial)).collect::<Vec<_>>(), [((690, 900), false)]);
    }
}

#[test]
fn a_scan_that_knows_less_takes_nothing_away() {
    let mut table = ConnectionTable::new();
    table.merge_bootstrap([whole_row()]);
    table.apply(&send(tcp(1600), 10, 910));
    table.merge_bootstrap([row(tcp_key(), 2000, 50)]);
    assert_eq!((bytes(&only(&table)), only(&table).is_partial), ((700, 910), false));
}

#[test]
fn a_flow_that_was_silent_for_long_is_found_again_as_itself() {
    let mut table = table([&send(udp(2, SECOND), 1, 1)]).udp_idle(std::time::Duration::from_secs(30));
    assert!(table.snapshot(KernelTime(31 * SECOND))[0].is_closed);
    table.merge_bootstrap([row(udp_key(2), 32 * SECOND, 50)]);
    assert!(only(&table).is_closed, "until there is something to tell");
    table.apply(&send(udp(2, 33 * SECOND), 1, 2));
    assert!(!only(&table).is_closed);
    table.apply(&udp_closed(34 * SECOND));
    assert!(only(&table).is_closed);
}

#[test]
fn connected_udp_stays_partial() {
    let all = in_any_order(&row(udp_key(2), 1500, 50), &[send(udp(2, 1600), 1, 1), recv(udp(2, 1601), 1, 1)]);
    let [record] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((record.is_partial, record.pid(), record.socket), (true, Some(50), Some(1)));
}

fn unconnected(time: u64, pid: u32) -> ConnectionRecord {
    row(ConnectionKey::new(Protocol::Udp, ip(1), 5000, [0, 0, 0, 0].into(), 0), time, pid)
}

#[test]
fn an_unconnected_udp_socket_stays_a_row_until_it_is_closed_and_lends_its_owner() {
    let events = [send(udp(2, 1600), 1, 1), send(owned(udp(3, 1601), 60, Seen), 1, 1)];
    let all = in_any_order(&unconnected(1500, 50), &events);
    let owners: Vec<_> = all.iter().map(|r| (r.key.remote_addr, r.pid(), r.provenance)).collect();
    let none = [0, 0, 0, 0].into();
    assert_eq!(owners, [(none, Some(50), Bootstrap), (ip(2), Some(50), Bootstrap), (ip(3), Some(60), Seen)]);
    assert!(all.iter().all(|r| !r.is_closed));

    let mut table = table(&events);
    table.merge_bootstrap([unconnected(1500, 50)]);
    table.apply(&udp_closed(1700));
    assert!(table.records().all(|r| r.is_closed));
    table.merge_bootstrap([unconnected(1500, 50)]);
    assert_eq!(table.len(), 3);
    table.snapshot(KernelTime(20 * SECOND));
    assert!(table.is_empty());
    table.merge_bootstrap([unconnected(1500, 50)]);
    assert!(table.is_empty(), "the socket was closed after the scan");
}

#[test]
fn the_end_of_an_earlier_udp_socket_leaves_the_row_alone() {
    let all = in_any_order(&unconnected(1500, 50), &[send(udp(2, 1400), 1, 1), udp_closed(1450)]);
    assert_eq!(all.iter().map(|r| r.is_closed).collect::<Vec<_>>(), [false, true]);
}

/// Connecting gives it an address, so its row and its end are at different places.
#[test]
fn a_udp_socket_that_was_connected_after_the_scan_takes_its_row_along() {
    let anywhere = ConnectionKey { local_addr: [0, 0, 0, 0].into(), ..unconnected(1500, 50).key };
    let events = |time| [send(udp(2, time - 50), 1, 1), udp_closed(time)];
    for (socket, closed, open) in
        [(Some(1), 1700, 0), (Some(2), 1700, 1), (None, 1700, 1), (Some(1), 1450, 1)]
    {
        let row = ConnectionRecord { socket, ..row(anywhere, 1500, 50) };
        for at in 0..=2 {
            let mut table = table(&events(closed)[..at]);
            table.merge_bootstrap([row.clone()]);
            events(closed)[at..].iter().for_each(|event| table.apply(event));
            let left = table.records().filter(|record| !record.is_closed).count();
            assert_eq!(left, open, "socket {socket:?}, closed at {closed}, merged after {at} events");
        }
    }
}

#[test]
fn workers_that_share_a_port_keep_their_rows_and_no_flow_is_given_to_one_by_chance() {
    let mut table = ConnectionTable::new();
    table.merge_bootstrap([unconnected(1500, 50), unconnected(1500, 51)]);
    table.merge_bootstrap([unconnected(1500, 51), unconnected(1500, 50)]);
    assert_eq!(table.len(), 2);
    table.apply(&send(udp(2, 1600), 1, 1));
    assert_eq!(table.get(&udp_key(2)).map(|r| r.pid()), Some(None));

    let no_peer = unconnected(1500, 0).key;
    let end = info(no_peer, 1700);
    table.apply(&closed(end, Totals::default()));
    let open = |table: &ConnectionTable| -> Vec<_> {
        let rows = table.records().filter(|r| r.key == no_peer && !r.is_closed);
        let mut pids: Vec<_> = rows.filter_map(|r| r.pid()).collect();
        pids.sort_unstable();
        pids
    };
    assert_eq!(open(&table), [50, 51], "whose socket it was is not known");
    let end = ConnectionInfo { socket: 9, ..owned(info(no_peer, 1701), 51, Seen) };
    table.apply(&closed(end, Totals::default()));
    assert_eq!(open(&table), [50]);
}

#[test]
fn a_dual_stack_socket_lends_its_owner_to_its_ipv4_flows() {
    let any = "::".parse().unwrap();
    let key = ConnectionKey::new(Protocol::Udp, any, 53, any, 0);
    let flow = ConnectionKey::new(Protocol::Udp, any, 53, "::ffff:10.0.0.9".parse().unwrap(), 1234);
    let all = in_any_order(&row(key, 1500, 50), &[recv(info(flow, 1600), 1, 1)]);
    assert_eq!(all.iter().map(ConnectionRecord::pid).collect::<Vec<_>>(), [Some(50); 2]);
    let mut table = ConnectionTable::new();
    table.merge_bootstrap([row(key, 1500, 50)]);
    table.apply(&recv(info(flow, 1600), 1, 1));
    table.apply(&closed(info(key, 1700), Totals::default()));
    assert!(table.records().all(|r| r.is_closed));
}

/// The flows of events and whether they are partial, with the row merged at every possible point: the same for all.
fn partial_flows(row: &ConnectionRecord, events: &[CollectorEvent]) -> Vec<(std::net::IpAddr, bool)> {
    let run = |at: usize| {
        let mut table = table(&events[..at]);
        table.merge_bootstrap([row.clone()]);
        events[at..].iter().for_each(|event| table.apply(event));
        let flows = table.records().filter(|r| r.key.remote_port != 0);
        let mut all: Vec<_> = flows.map(|r| (r.key.remote_addr, r.is_partial)).collect();
        all.sort_unstable();
        all
    };
    let first = run(0);
    (1..=events.len()).for_each(|at| assert_eq!(run(at), first, "merged after {at} events"));
    first
}

/// The same row as /proc shows it, and as the kernel does, with the socket's id.
fn without_and_with_id(row: ConnectionRecord) -> [ConnectionRecord; 2] {
    [row.clone(), ConnectionRecord { socket: Some(1), ..row }]
}

/// What may have moved before tracing began between this socket and any peer is in no total.
#[test]
fn flows_of_a_udp_socket_that_is_older_than_the_tracer_are_partial() {
    let before_and_after = [send(udp(2, 1400), 1, 1), recv(owned(udp(3, 1600), 60, Seen), 1, 1)];
    let all = [(ip(2), true), (ip(3), true)];
    for row in without_and_with_id(unconnected(1500, 50)) {
        assert_eq!(partial_flows(&row, &before_and_after), all);
        let [first, second] = before_and_after.clone();
        assert_eq!(
            partial_flows(&row, &[first.clone(), second.clone(), udp_closed(1700)]),
            all,
            "to the end"
        );
        assert_eq!(partial_flows(&row, &[first, udp_closed(1700), second]), all, "a late event");
    }
}

#[test]
fn flows_of_a_udp_socket_that_ended_before_the_scan_or_is_another_one_are_whole() {
    for row in without_and_with_id(unconnected(1500, 50)) {
        let ended = [send(udp(2, 1400), 1, 1), udp_closed(1450)];
        let row = ConnectionRecord { socket: row.socket.map(|_| 2), ..row };
        assert_eq!(partial_flows(&row, &ended), [(ip(2), false)], "it cannot be the one that was found");
        let elsewhere = ConnectionRecord { netns: NetNs::new(8), ..row };
        assert_eq!(partial_flows(&elsewhere, &[send(udp(2, 1600), 1, 1)]), [(ip(2), false)]);
    }
    let other = ConnectionRecord { socket: Some(2), ..unconnected(1500, 50) };
    assert_eq!(partial_flows(&other, &[send(udp(2, 1600), 1, 1)]), [(ip(2), false)], "SO_REUSEPORT");
}

#[test]
fn the_next_udp_socket_on_the_port_has_whole_flows() {
    for row in without_and_with_id(unconnected(1500, 50)) {
        let mut table = ConnectionTable::new();
        table.merge_bootstrap([row]);
        table.apply(&send(udp(2, 1600), 1, 1));
        table.apply(&udp_closed(1700));
        table.apply(&send(ConnectionInfo { socket: 2, since: KernelTime(1800), ..udp(3, 1801) }, 1, 1));
        let partial = [2, 3].map(|peer| table.get(&udp_key(peer)).map(|r| r.is_partial));
        assert_eq!(partial, [Some(true), Some(false)]);
    }
}

/// A flow is forgotten when it has been silent for long; what is missing in it stays missing.
#[test]
fn a_partial_udp_flow_is_partial_again_when_it_comes_back() {
    let connected = row(udp_key(2), 1500, 50);
    for row in without_and_with_id(unconnected(1500, 50)).into_iter().chain(without_and_with_id(connected)) {
        let mut table = ConnectionTable::new();
        table.merge_bootstrap([row]);
        table.apply(&send(udp(2, 1600), 1, 1));
        for seconds in [200, 300] {
            table.snapshot(KernelTime(seconds * SECOND));
        }
        assert!(table.get(&udp_key(2)).is_none());
        table.apply(&send(udp(2, 301 * SECOND), 1, 2));
        assert_eq!(table.get(&udp_key(2)).map(|r| r.is_partial), Some(true));
    }
}

/// A receive whose peer is not known looks like the socket itself. The other flows are as old as that one.
#[test]
fn a_flow_without_a_peer_takes_the_row_and_the_others_stay_partial() {
    let nobody = info(unconnected(1500, 0).key, 1600);
    for row in without_and_with_id(unconnected(1500, 50)) {
        let events = [send(udp(2, 1400), 1, 1), recv(nobody, 9, 9), send(udp(3, 1601), 1, 1)];
        assert_eq!(partial_flows(&row, &events), [(ip(2), true), (ip(3), true)]);
        let mut table = table(&events);
        table.merge_bootstrap([row]);
        assert!(table.records().all(|r| r.is_partial));
    }
}

/// By its id a socket is known also when it has been connected since, and so has another address.
#[test]
fn an_older_udp_socket_that_connects_later_has_partial_flows() {
    let any = ConnectionKey::new(Protocol::Udp, [0, 0, 0, 0].into(), 5000, [0, 0, 0, 0].into(), 0);
    let row = ConnectionRecord { socket: Some(1), ..row(any, 1500, 50) };
    assert_eq!(partial_flows(&row, &[send(udp(2, 1600), 1, 1)]), [(ip(2), true)]);
}

/// Silent, between two scans it changes hands and gets another peer, and then it is closed.
#[test]
fn a_udp_socket_with_an_id_has_one_row_wherever_it_goes() {
    let mut table = ConnectionTable::new();
    let scans =
        [(unconnected(0, 0).key, 50), (unconnected(0, 0).key, 60), (udp_key(2), 60), (udp_key(3), 60)];
    for ((key, pid), time) in scans.into_iter().zip(1500..) {
        table.merge_bootstrap([ConnectionRecord { socket: Some(1), ..row(key, time, pid) }]);
        let row = only(&table);
        assert_eq!((row.key, row.pid(), row.is_closed), (key, Some(pid), false));
    }
    table.apply(&udp_closed(1700));
    assert!(only(&table).is_closed);
}

#[test]
fn a_transfer_may_come_after_the_end_of_its_row() {
    let row = ConnectionRecord { socket: Some(1), ..row(udp_key(2), 1500, 50) };
    let mut table = ConnectionTable::new();
    table.merge_bootstrap([row]);
    table.apply(&udp_closed(1700));
    table.apply(&send(udp(2, 1600), 1, 1));
    let flow = only(&table);
    assert_eq!((flow.bytes_out, flow.is_partial, flow.is_closed), (1, true, true));
}

/// One of two sockets that share an address has ended, before or after the scan's row of the other one comes.
#[test]
fn the_end_of_one_udp_socket_is_not_that_of_another_at_its_address() {
    let other = ConnectionRecord { socket: Some(2), ..unconnected(1500, 50) };
    let rows = in_any_order(&other, &[udp_closed(1700)]);
    assert_eq!(rows.iter().map(|r| (r.socket, r.is_closed)).collect::<Vec<_>>(), [(Some(2), false)]);
}

#[test]
fn a_udp_row_that_is_whole_makes_no_flow_partial() {
    let whole = ConnectionRecord { is_partial: false, ..unconnected(1500, 50) };
    for row in without_and_with_id(whole) {
        assert_eq!(partial_flows(&row, &[send(udp(2, 1600), 1, 1)]), [(ip(2), false)]);
    }
}

#[test]
fn a_dual_stack_socket_that_is_older_has_partial_ipv4_flows() {
    let any = "::".parse().unwrap();
    let key = ConnectionKey::new(Protocol::Udp, any, 53, any, 0);
    let flow = ConnectionKey::new(Protocol::Udp, any, 53, "::ffff:10.0.0.9".parse().unwrap(), 1234);
    for row in without_and_with_id(row(key, 1500, 50)) {
        assert_eq!(partial_flows(&row, &[recv(info(flow, 1600), 1, 1)]), [(ip(9), true)]);
    }
}

/// Which of the workers it was is not known, but all of them are older.
#[test]
fn flows_of_workers_that_share_a_port_are_partial() {
    let mut table = ConnectionTable::new();
    table.apply(&send(udp(2, 1600), 1, 1));
    table.merge_bootstrap([unconnected(1500, 50), unconnected(1500, 51)]);
    table.apply(&send(udp(3, 1601), 1, 1));
    assert!(table.records().all(|r| r.is_partial), "{table:#?}");
}
