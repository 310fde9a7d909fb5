// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every test demands beside its own numbers: what the events of a connection say was moved adds up to its final
//! totals, in the tracer's own audit and in a sum of ours. Losses excuse no more than they can explain.

use std::collections::HashMap;
use tcptop::{CollectorEvent, EventKind, LossPlace, Stats, TcpState};

/// A collector's counters when a trace began. What they had counted by then is none of its business: one collector goes
/// from test to test.
pub(crate) struct Audit {
    before: Stats,
}

impl Audit {
    pub(crate) fn since(before: Stats) -> Self {
        Self { before }
    }

    /// What does not add up by now, and is not explained by losses.
    pub(crate) fn findings(&self, now: &Stats, events: &[CollectorEvent]) -> Vec<String> {
        let mut findings = wrong_sums(events);
        // A loss is one event, and so of one connection.
        if findings.len() as u64 <= self.lost(now, explains_a_sum) {
            findings.clear();
        }
        let mismatches = now.audit_mismatches - self.before.audit_mismatches;
        if mismatches > self.lost(now, explains_an_end) {
            findings.push(format!("the tracer's own audit: {mismatches} mismatches"));
        }
        findings
    }

    /// How many events were lost in ways that explain something.
    fn lost(&self, now: &Stats, explains: fn(EventKind, LossPlace) -> bool) -> u64 {
        let explaining = now.losses.iter().filter(|&(kind, place, _)| explains(kind, place));
        explaining.map(|(kind, place, count)| count - self.before.lost(kind, place)).sum()
    }
}

/// Whether the events of a connection may fail to add up because one of this kind was lost at this place. It depends on
/// whether another one makes up for it:
/// - In the ring and in the channel, bytes go with a report, and the beginning, from which on they are summed up, with
///   the change that made it.
/// - A change that no program has seen, or that found no storage, may be the beginning. Then the tracer takes what was
///   moved by its next look for older than itself.
/// - A call that no program has seen leaves its bytes to the next hook, and in the end to the end, which all report
///   what is missing. So do those of UDP, some of which see TCP too.
/// - A connection whose end is lost has no totals to compare with.
/// - A record that cannot be decoded is an error of ours.
fn explains_a_sum(kind: EventKind, place: LossPlace) -> bool {
    use EventKind::{Opened, TcpRecv, TcpSend, TcpStateChange};
    match place {
        LossPlace::Ring | LossPlace::Channel => {
            matches!(kind, TcpSend | TcpRecv | TcpStateChange | Opened)
        }
        LossPlace::Hook | LossPlace::Storage => kind == TcpStateChange,
        _ => false,
    }
}

/// Whether a connection may end with bytes that are in no report, by the tracer's own account. The program that sees the
/// end reports all that is missing, whatever was skipped before, and it is only without it if there is no room in the
/// ring: every other case is an error of ours.
fn explains_an_end(kind: EventKind, place: LossPlace) -> bool {
    matches!(kind, EventKind::TcpSend | EventKind::TcpRecv) && place == LossPlace::Ring
}

/// Connections whose events do not add up, of those that have begun and ended here.
fn wrong_sums(events: &[CollectorEvent]) -> Vec<String> {
    let (mut moved, mut ends) = (HashMap::new(), Vec::new());
    // What found no room in the ring comes late, and so may a beginning.
    let mut events: Vec<_> = events.iter().filter_map(|event| Some((event.connection()?, event))).collect();
    events.sort_by_key(|(info, _)| info.time);
    for (info, event) in events {
        let life = (info.socket, info.since);
        match event {
            // Bytes in the SYN come before.
            CollectorEvent::TcpStateChange(s) if s.new_state == TcpState::SynSent => {
                moved.insert(life, [0, 0]);
            }
            CollectorEvent::Opened(_) => drop(moved.entry(life).or_insert([0, 0])),
            CollectorEvent::TcpSend(t) => drop(moved.entry(life).and_modify(|m| m[0] += t.bytes)),
            CollectorEvent::TcpRecv(t) => drop(moved.entry(life).and_modify(|m| m[1] += t.bytes)),
            CollectorEvent::Closed(c) => {
                ends.push((life, info.key, [c.totals.bytes_out, c.totals.bytes_in]));
            }
            _ => {}
        }
    }
    let wrong = |(life, key, totals): &(_, _, [u64; 2])| {
        let moved = moved.get(life).filter(|moved| *moved != totals)?;
        Some(format!("{key}: {moved:?} of {totals:?}"))
    };
    ends.iter().filter_map(wrong).collect()
}

/// The audit finds a report that is missing or there twice, in either direction, and nothing else.
#[test]
fn a_report_that_is_missing_or_there_twice_is_found() {
    use crate::net::{port, recv, send, tcp_pair};
    let mut trace = crate::harness::Trace::start();
    let (client, server) = tcp_pair();
    let ends = [(port(&client), port(&server)), (port(&server), port(&client))];
    assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    drop((client, server));
    for (local, remote) in ends {
        trace.closed(local, remote);
    }
    let is_report = |event: &CollectorEvent| {
        let bytes = match event {
            CollectorEvent::TcpSend(t) | CollectorEvent::TcpRecv(t) => t.bytes,
            _ => 0,
        };
        bytes > 0 && ends.contains(&crate::harness::ports(event))
    };
    let reports: Vec<_> = (0..trace.seen.len()).filter(|&i| is_report(&trace.seen[i])).collect();
    assert_eq!(reports.len(), 2);
    assert_eq!(wrong_sums(&trace.seen), Vec::<String>::new());
    for i in reports {
        let (mut less, mut more) = (trace.seen.clone(), trace.seen.clone());
        let report = less.remove(i);
        more.insert(i, report);
        assert_eq!((wrong_sums(&less).len(), wrong_sums(&more).len()), (1, 1));
    }
}

/// A connection that ends while a thread still sends: what that thread's calls report and what the change of state does is
/// the same, and counts once. Reset by the peer, closed for writing by another thread.
#[test]
fn a_send_that_meets_the_end_of_its_connection_counts_once() {
    use crate::net::{reset, send, tcp_pair};
    let rounds = if crate::harness::is_slow() { 20 } else { 20_000 };
    let mut trace = crate::harness::Trace::fresh();
    for round in 0..rounds {
        let (client, server) = tcp_pair();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..500).all(|_| send(&client, &[1; 10], libc::MSG_NOSIGNAL) > 0));
            (0..round % 100 * 50).for_each(|_| std::hint::spin_loop());
            if round % 2 == 0 {
                reset(server);
            } else {
                client.shutdown(std::net::Shutdown::Write).unwrap();
            }
        });
        trace.drain();
    }
    trace.stop();
    let stats = trace.collector.stats();
    assert_eq!((stats.audit_mismatches, crate::harness::lost_by_us(&stats)), (0, 0), "{stats:?}");
}
