// SPDX-License-Identifier: MIT OR Apache-2.0
//! The collector without its thread, in the loop of a program.

use crate::collector::{bpf_objects, nothing_left_but};
use crate::harness::{PATIENCE, builder, lost_by_us};
use crate::net::{pair_by, port, recv, send, tcp_pair};
use std::collections::HashSet;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tcptop::{
    Backend, CollectorEvent, ConnectionTable, EventKind, Feature, Granularity, LossPlace, Poller, Visibility,
};

/// Waits for the descriptor as a loop does that knows nothing else of the poller.
fn is_readable(poller: &Poller, within: Duration) -> bool {
    let mut fd = libc::pollfd { fd: poller.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, as is said.
    let ready = unsafe { libc::poll(&raw mut fd, 1, within.as_millis() as i32) };
    assert!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
    ready == 1
}

/// Runs such a loop until this is true, which it must be some day.
fn until(poller: &mut Poller, mut is_over: impl FnMut(Vec<CollectorEvent>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut turn = |poller: &mut Poller| {
        assert!(Instant::now() < deadline && is_readable(poller, PATIENCE));
        is_over(poller.poll(Duration::ZERO))
    };
    while !turn(poller) {}
}

fn exchange(client: &TcpStream, server: &TcpStream, times: usize) {
    for _ in 0..times {
        assert_eq!((send(client, &[1; 10], 0), recv(server, 10, 0)), (10, 10));
    }
}

/// Local port, remote port, bytes out and bytes in of each connection that has ended.
fn ended(table: &ConnectionTable) -> HashSet<(u16, u16, u64, u64)> {
    let closed = table.records().filter(|row| row.is_closed);
    closed.map(|row| (row.key.local_port, row.key.remote_port, row.bytes_out, row.bytes_in)).collect()
}

/// A filter leaves out what else happens on this machine, so that it can be seen when nothing does.
#[test]
fn a_loop_of_ones_own_gets_everything_and_sleeps_in_between() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = listener.local_addr().unwrap().port();
    let mut poller = builder().port(s).open().unwrap();
    assert_eq!(poller.capabilities().visibility(Feature::TcpTotals), &Visibility::Exact);
    let mut table = ConnectionTable::new().linger(Duration::MAX);
    for round in 1..=2 {
        let (client, server) = pair_by(&listener);
        exchange(&client, &server, 50 * round);
        let c = port(&client);
        assert!(poller.bootstrap_existing().unwrap().iter().any(|row| row.key.local_port == c));
        drop((client, server));
        let ends = [(c, s, 500 * round as u64, 0), (s, c, 0, 500 * round as u64)];
        until(&mut poller, |events| {
            events.iter().for_each(|event| table.apply(event));
            let found = ended(&table);
            ends.iter().all(|end| found.contains(end))
        });
        // First it looks every 2 ms, then it sleeps.
        let (begin, mut turns) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(1) {
            turns += usize::from(is_readable(&poller, Duration::from_millis(100)));
            assert!(poller.poll(Duration::ZERO).iter().all(|event| event.kind().is_none()));
        }
        assert!((5..200).contains(&turns), "{turns} turns in a second");
    }
    let begin = Instant::now();
    poller.poll(Duration::from_millis(300));
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
}

/// Events that were in the ring at the stop come after it, and then no more.
#[test]
fn a_stop_in_a_loop_of_ones_own_loses_nothing() {
    let before = bpf_objects();
    let mut poller = builder().granularity(Granularity::PerCall).open().unwrap();
    assert!(bpf_objects().0.len() > before.0.len());
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    exchange(&client, &server, 1000);
    let mut events = poller.poll(PATIENCE);
    assert!(!events.is_empty());
    exchange(&client, &server, 1000);
    poller.stop();
    nothing_left_but(&before);
    assert!(is_readable(&poller, PATIENCE));
    events.extend(poller.poll(PATIENCE));
    assert_eq!(poller.poll(Duration::from_millis(1)), []);
    let of = |local: u16| {
        let transfers = events.iter().filter_map(CollectorEvent::transfer);
        let bytes: Vec<_> =
            transfers.filter(|t| t.connection.key.local_port == local).map(|t| t.bytes).collect();
        (bytes.iter().sum::<u64>(), bytes.len())
    };
    assert_eq!(of(s), (20_000, 2000));
    assert_eq!(of(c).0, 20_000);
    // kprobes report sends with acknowledgements, which may cover several.
    let is_kprobe = poller.capabilities().backend() == Backend::Kprobe;
    assert!(is_kprobe || of(c).1 == 2000);
    assert_eq!(lost_by_us(&poller.stats()), 0);
}

/// Nobody reads while a program sends, and there is little room: a call whose event is lost is counted once, all others
/// are in some event, all bytes are in the totals, and the tracer does not take that for an error of its own.
#[test]
fn what_a_burst_loses_counts_once_and_raises_no_alarm() {
    let calls = if crate::harness::is_slow() { 1000 } else { 5000 };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = listener.local_addr().unwrap().port();
    let small = || builder().port(s).ring_bytes(1).max_sockets(1);
    for configured in [small(), small().granularity(Granularity::PerCall)] {
        let mut poller = configured.open().unwrap();
        let pairs: Vec<_> = (0..20).map(|_| pair_by(&listener)).collect();
        pairs.iter().for_each(|(client, server)| exchange(client, server, calls / 20));
        let clients: Vec<u16> = pairs.iter().map(|(client, _)| port(client)).collect();
        // The last ones end where there is room for the end.
        for pair in pairs {
            drop(pair);
            poller.poll(Duration::from_millis(20));
        }
        poller.stop();
        poller.poll(Duration::ZERO);
        let stats = poller.stats();
        assert_eq!(stats.audit_mismatches, 0, "{stats:?}");
        assert!(clients.len() == 20 && stats.lost(EventKind::TcpSend, LossPlace::Ring) > 0, "{stats:?}");
        for kind in [EventKind::TcpSend, EventKind::TcpRecv] {
            assert!(stats.lost(kind, LossPlace::Ring) <= calls as u64, "{stats:?}");
        }
    }
}

/// While nobody reads, the ring is soon full, and then what can wait beside it. The ends of connections find room even so.
#[test]
fn ends_have_room_when_everything_else_has_none() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = listener.local_addr().unwrap().port();
    // 20 records in the ring, 512 that wait, and 256 ends.
    let mut poller = builder().port(s).ring_bytes(1).max_sockets(512).open().unwrap();
    let mut table = ConnectionTable::new().linger(Duration::MAX);
    let connect = || {
        let (client, server) = pair_by(&listener);
        exchange(&client, &server, 1);
        port(&client)
    };
    let clients: Vec<u16> = (0..100).map(|_| connect()).collect();
    until(&mut poller, |events| {
        events.iter().for_each(|event| table.apply(event));
        let found = ended(&table);
        clients.iter().all(|&c| found.contains(&(c, s, 10, 0)) && found.contains(&(s, c, 0, 10)))
    });
    let stats = poller.stats();
    assert!(stats.lost(EventKind::TcpStateChange, LossPlace::Storage) > 0, "{stats:?}");
    assert_eq!(stats.lost(EventKind::Closed, LossPlace::Storage), 0);
}
