// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a connection began and how it ended: what remains of that when events are lost, repeated or late.

use super::*;
use crate::event::{CloseReason, ConnectFailure, Opened};
use crate::model::Role;

const RESET: Option<i32> = Some(104);

fn micros(us: u64) -> Option<Duration> {
    Some(Duration::from_micros(us))
}

fn opened(connection: ConnectionInfo, role: Role) -> CollectorEvent {
    CollectorEvent::Opened(Opened { rtt: micros(90), ..Opened::new(connection, role) })
}

/// The end of a connection that went to CLOSE at 1900 and was released later.
fn reset_at_1900(connection: ConnectionInfo) -> CollectorEvent {
    CollectorEvent::Closed(Closed {
        min_rtt: micros(60),
        retransmits: 4,
        duration: Some(Duration::from_nanos(900)),
        reason: Some(CloseReason::Reset),
        error: RESET,
        ..Closed::new(connection, totals(10, 20))
    })
}

fn failed(connection: ConnectionInfo, error: Option<i32>) -> CollectorEvent {
    CollectorEvent::ConnectFailed(ConnectFailed::new(connection, error))
}

fn outcome(r: &ConnectionRecord) -> (Option<Role>, Option<CloseReason>, Option<ConnectFailure>, Option<i32>) {
    (r.role, r.close_reason, r.connect_failure, r.error)
}

/// All orders of these events.
fn permutations(events: &[CollectorEvent]) -> Vec<Vec<CollectorEvent>> {
    let Some((last, rest)) = events.split_last() else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for shorter in permutations(rest) {
        for at in 0..=shorter.len() {
            let mut longer = shorter.clone();
            longer.insert(at, last.clone());
            all.push(longer);
        }
    }
    all
}

#[test]
fn in_any_order_the_record_tells_how_it_began_and_ended() {
    use TcpState::*;
    let close = StateChange { error: RESET, ..StateChange::new(tcp(1900), Established, Close) };
    let events = [
        state(tcp(1100), SynRecv, Established),
        opened(tcp(1100), Role::Server),
        CollectorEvent::TcpStateChange(close),
        reset_at_1900(tcp(5000)),
        reset_at_1900(tcp(5000)),
    ];
    for order in permutations(&events) {
        let record = only(&table(&order));
        assert_eq!(
            outcome(&record),
            (Some(Role::Server), Some(CloseReason::Reset), None, RESET),
            "{order:#?}"
        );
        assert_eq!((record.min_rtt, record.retransmits), (micros(60), Some(4)));
        assert_eq!(
            (record.closed_at, record.duration().as_nanos()),
            (Some(KernelTime(1900)), 900),
            "{order:#?}"
        );
        assert_eq!((record.tcp_state, record.is_end_seen), (Some(Close), true));
    }
}

#[test]
fn what_is_lost_stays_unknown_and_nothing_else_does() {
    let record = only(&table([&reset_at_1900(tcp(5000))]));
    assert_eq!(outcome(&record), (None, Some(CloseReason::Reset), None, RESET));
    assert_eq!((record.closed_at, record.last_seen), (Some(KernelTime(1900)), KernelTime(5000)));

    let record = only(&table([&opened(tcp(1100), Role::Client), &closes(tcp(1900))]));
    assert_eq!(outcome(&record), (Some(Role::Client), None, None, None));
    assert_eq!((record.min_rtt, record.retransmits), (micros(90), None));

    let record = only(&table([&begins(tcp(1001))]));
    assert_eq!((record.role, record.closed_at), (Some(Role::Client), None));
    let record = only(&table([&state(tcp(1001), TcpState::SynRecv, TcpState::Established)]));
    assert_eq!(record.role, None, "after a simultaneous open it is a client");
    assert_eq!(record.duration(), Duration::from_nanos(1), "so far");
}

#[test]
fn an_opened_connection_whose_state_changes_are_lost_is_established_and_complete() {
    let record = only(&table([&opened(tcp(1100), Role::Server)]));
    assert_eq!((record.tcp_state, record.is_partial), (Some(TcpState::Established), false));
    let late = table([
        &state(tcp(1200), TcpState::Established, TcpState::FinWait1),
        &opened(tcp(1100), Role::Client),
    ]);
    assert_eq!(only(&late).tcp_state, Some(TcpState::FinWait1));
}

#[test]
fn a_connection_that_failed_says_why_and_since_when() {
    use TcpState::*;
    let refused = Some(111);
    let close = StateChange { error: refused, ..StateChange::new(tcp(1500), SynSent, Close) };
    let events = [begins(tcp(1001)), CollectorEvent::TcpStateChange(close), failed(tcp(1500), refused)];
    for order in permutations(&events) {
        let record = only(&table(&order));
        assert_eq!(outcome(&record), (Some(Role::Client), None, Some(ConnectFailure::Refused), refused));
        assert_eq!(
            (record.is_closed, record.is_partial, record.closed_at),
            (true, false, Some(KernelTime(1500)))
        );
    }
    let given_up = CollectorEvent::ConnectFailed(ConnectFailed {
        duration: Some(Duration::from_nanos(700)),
        ..ConnectFailed::new(tcp(1800), None)
    });
    let record = only(&table([&given_up]));
    assert_eq!(outcome(&record), (None, None, Some(ConnectFailure::Aborted), None));
    assert_eq!(record.duration(), Duration::from_nanos(700), "its begin was lost");
}

#[test]
fn the_lives_of_one_socket_keep_their_outcomes_apart() {
    let again = |time| ConnectionInfo { since: KernelTime(6000), ..tcp(time) };
    let mut events = vec![
        failed(tcp(1500), Some(113)),
        begins(again(6001)),
        opened(again(6100), Role::Client),
        failed(tcp(1500), Some(113)),
    ];
    for _ in 0..events.len() {
        events.rotate_left(1);
        let table = table(&events);
        let mut all: Vec<_> = table.records().collect();
        all.sort_by_key(|r| r.first_seen);
        assert_eq!(outcome(all[0]), (None, None, Some(ConnectFailure::Unreachable), Some(113)));
        assert_eq!(outcome(all[1]), (Some(Role::Client), None, None, None));
        assert_eq!([all[0].is_closed, all[1].is_closed], [true, false]);
    }
}

#[test]
fn what_bootstrap_knows_stands_in_until_the_end_says_better() {
    let mut row = ConnectionRecord::new(tcp_key(), KernelTime(1500));
    (row.min_rtt, row.retransmits, row.netns) = (micros(70), Some(2), NetNs::new(7));
    let moved = send(ConnectionInfo { since: KernelTime(1600), ..tcp(1600) }, 1, 1);
    let mut table = table([&moved]);
    table.merge_bootstrap([row.clone()]);
    assert_eq!((only(&table).min_rtt, only(&table).retransmits), (micros(70), Some(2)));
    // The connection ended before the search: the row is another's.
    let ended = ConnectionInfo { since: KernelTime(1600), ..tcp(1400) };
    table.apply(&closed(ended, totals(1, 1)));
    let of =
        |is_closed| table.records().find(|r| r.is_closed == is_closed).map(|r| (r.min_rtt, r.retransmits));
    assert_eq!((of(true), of(false)), (Some((None, Some(0))), Some((micros(70), Some(2)))));
}

#[test]
fn a_flow_that_goes_on_has_not_ended() {
    let mut table = table([&send(udp(2, SECOND), 1, 1)]).udp_idle(Duration::from_secs(30));
    assert_eq!(table.snapshot(KernelTime(40 * SECOND))[0].closed_at, Some(KernelTime(40 * SECOND)));
    table.apply(&send(udp(2, 41 * SECOND), 1, 2));
    assert_eq!(only(&table).closed_at, None);
    assert_eq!(only(&table).duration(), Duration::from_nanos(41 * SECOND - 1000));
}
