// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections whose end was lost, and what the kernel lists.

use super::*;
use crate::survey::Survey;

/// What exists in namespace 7 at this second.
fn survey(second: u64, sockets: &[u64]) -> Survey {
    let mut survey = Survey::new(KernelTime(second * SECOND), vec![Protocol::Tcp, Protocol::Udp]);
    survey.add(netns(7), sockets.iter().copied());
    survey
}

/// TCP connections 1 and 2, UDP socket 3 with a row and two flows, all of the first second.
fn some() -> ConnectionTable {
    let socket = |id, info| ConnectionInfo { socket: id, ..info };
    let other = ConnectionKey { local_port: 40001, ..tcp_key() };
    let any = ConnectionKey::new(Protocol::Udp, ip(1), 5000, [0, 0, 0, 0].into(), 0);
    let mut row = ConnectionRecord::new(any, KernelTime(1500));
    (row.netns, row.socket, row.is_partial) = (NetNs::new(7), Some(3), true);
    let mut table = table(&[
        send(tcp(2000), 10, 10),
        send(socket(2, info(other, 2000)), 20, 20),
        send(socket(3, udp(2, 2000)), 30, 30),
        send(socket(3, udp(3, 2000)), 40, 40),
    ]);
    table.merge_bootstrap([row]);
    table
}

/// The sockets of what is closed, each with whether its end was seen.
fn closed_ones(table: &ConnectionTable) -> Vec<(u64, bool)> {
    let closed = table.records().filter(|r| r.is_closed);
    let mut all: Vec<_> = closed.map(|r| (r.socket.unwrap_or(0), r.is_end_seen)).collect();
    all.sort_unstable();
    all
}

#[test]
fn what_two_surveys_do_not_show_is_closed_and_its_end_was_not_seen() {
    let mut table = some();
    assert_eq!(table.reconcile(&survey(30, &[2])), 0, "one may have passed it over");
    assert_eq!(closed_ones(&table), []);
    assert_eq!(table.reconcile(&survey(30, &[2])), 0, "the same one again tells nothing new");
    assert_eq!(table.reconcile(&survey(60, &[2])), 4);
    assert_eq!(closed_ones(&table), [(1, false), (3, false), (3, false), (3, false)]);
    assert_eq!(table.reconcile(&survey(90, &[2])), 0);
    let left = table.snapshot(KernelTime(80 * SECOND));
    assert_eq!(left.iter().map(|r| r.socket).collect::<Vec<_>>(), [Some(2)], "they linger and go");
    assert_eq!(table.len(), 1);
}

#[test]
fn what_was_passed_over_once_stays() {
    let mut table = some();
    for second in (30..300).step_by(60) {
        assert_eq!(table.reconcile(&survey(second, &[2, 3])), 0);
        assert_eq!(table.reconcile(&survey(second + 30, &[1, 2, 3])), 0);
    }
    assert_eq!(closed_ones(&table), []);
}

#[test]
fn what_cannot_be_known_is_left_alone() {
    let mut table = some();
    let other_namespace = |second| {
        let mut survey = Survey::new(KernelTime(second * SECOND), vec![Protocol::Tcp, Protocol::Udp]);
        survey.add(netns(8), []);
        survey
    };
    let tcp_only = |second| {
        let mut survey = Survey::new(KernelTime(second * SECOND), vec![Protocol::Tcp]);
        survey.add(netns(7), [1, 2]);
        survey
    };
    let nowhere = |second| Survey::new(KernelTime(second * SECOND), vec![Protocol::Tcp, Protocol::Udp]);
    for second in (30..150).step_by(30) {
        assert_eq!(table.reconcile(&other_namespace(second)), 0);
        assert_eq!(table.reconcile(&tcp_only(second + 1)), 0);
        assert_eq!(table.reconcile(&nowhere(second + 2)), 0);
    }
    assert_eq!(closed_ones(&table), []);
    // Without an id, or in an unknown namespace, nobody can say which socket it is.
    let mut table = ConnectionTable::new();
    let without_id =
        ConnectionRecord { netns: NetNs::new(7), ..ConnectionRecord::new(tcp_key(), KernelTime(1500)) };
    table.merge_bootstrap([without_id]);
    table.apply(&send(ConnectionInfo { socket: 9, netns: None, ..udp(2, 2000) }, 1, 1));
    for second in [30, 60] {
        assert_eq!(table.reconcile(&survey(second, &[])), 0);
    }
}

#[test]
fn what_events_have_touched_since_or_just_before_is_left_alone() {
    let mut table = some();
    table.reconcile(&survey(30, &[2, 3]));
    table.apply(&send(tcp(60 * SECOND + 1), 1, 11));
    assert_eq!(table.reconcile(&survey(60, &[2, 3])), 0, "touched since");
    assert_eq!(table.reconcile(&survey(61, &[2, 3])), 0, "not a second ago");
    assert_eq!(table.reconcile(&survey(90, &[2, 3])), 0, "missed for the first time since");
    assert_eq!(table.reconcile(&survey(120, &[2, 3])), 1);
}

#[test]
fn what_was_closed_in_error_goes_on_with_the_next_event_or_survey() {
    let mut table = some();
    table.reconcile(&survey(30, &[]));
    assert_eq!(table.reconcile(&survey(60, &[])), 5);
    // A late event from before does not open anything; one from after that does.
    table.apply(&send(tcp(59 * SECOND), 1, 15));
    assert!(table.records().all(|r| r.is_closed));
    table.apply(&send(tcp(61 * SECOND), 1, 16));
    assert_eq!(closed_ones(&table), [(2, false), (3, false), (3, false), (3, false)]);
    assert_eq!(table.reconcile(&survey(90, &[1, 2, 3])), 0);
    // The row of the UDP socket is open again. Its flows wait for their next datagrams: they may just be silent.
    assert_eq!(closed_ones(&table), [(3, false), (3, false)]);
    table.apply(&send(ConnectionInfo { socket: 3, ..udp(2, 91 * SECOND) }, 5, 35));
    assert_eq!(closed_ones(&table), [(3, false)]);
    let flow = table.get(&udp_key(2)).expect("it is there");
    assert_eq!((flow.bytes_out, flow.is_closed), (35, false));
}

#[test]
fn an_end_that_comes_late_is_the_end() {
    let mut table = some();
    table.reconcile(&survey(30, &[2, 3]));
    table.reconcile(&survey(60, &[2, 3]));
    assert_eq!(closed_ones(&table), [(1, false)]);
    table.apply(&closed(tcp(20 * SECOND), totals(7, 500)));
    assert_eq!(closed_ones(&table), [(1, true)]);
    let row = table.get(&tcp_key()).expect("it lingers");
    assert_eq!((row.bytes_in, row.bytes_out), (7, 500));
    table.reconcile(&survey(90, &[1, 2, 3]));
    assert_eq!(closed_ones(&table), [(1, true)], "an end that was seen stands");
}

/// A silent flow has ended by itself, though its socket is there.
#[test]
fn a_survey_does_not_wake_what_is_silent() {
    let mut table = some();
    table.snapshot(KernelTime(150 * SECOND));
    assert_eq!(closed_ones(&table), [(3, false), (3, false)]);
    table.reconcile(&survey(151, &[1, 2, 3]));
    assert_eq!(closed_ones(&table), [(3, false), (3, false)]);
}
