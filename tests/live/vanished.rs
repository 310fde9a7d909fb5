// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections whose end was lost are found out by what the kernel lists.

use crate::harness::{Answer, PATIENCE, Trace, answer};
use crate::net::{pair_by, port, recv, send, tcp_pair};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{
    CollectorEvent, ConnectionRecord, ConnectionTable, Feature, Protocol, Survey, TcpState, Visibility,
};

/// An event that tells of an end.
fn is_end(event: &CollectorEvent) -> bool {
    match event {
        CollectorEvent::Closed(_) => true,
        CollectorEvent::TcpStateChange(change) => change.new_state == TcpState::Close,
        _ => false,
    }
}

/// The table of somebody who has lost every end.
fn without_ends(trace: &Trace, existing: Vec<ConnectionRecord>) -> ConnectionTable {
    let mut table = ConnectionTable::new().linger(Duration::MAX).max_connections(1 << 20);
    table.merge_bootstrap(existing);
    trace.seen.iter().filter(|event| !is_end(event)).for_each(|event| table.apply(event));
    table
}

fn row(table: &ConnectionTable, protocol: Protocol, local: u16, remote: u16) -> ConnectionRecord {
    let ports = |r: &&ConnectionRecord| (r.key.local_port, r.key.remote_port) == (local, remote);
    let mut rows = table.records().filter(ports).filter(|r| r.key.protocol == protocol);
    let row = rows.next().expect("a row").clone();
    assert!(rows.next().is_none());
    row
}

/// TCP, a UDP flow and the row of a silent UDP socket, of which nobody tells that they have ended; and the same of others
/// that go on.
#[test]
fn a_connection_whose_end_was_lost_is_found_out() {
    let silent = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let older = [(); 2].map(|()| tcp_pair());
    let mut trace = Trace::start();
    let existing = trace.collector.bootstrap_existing().unwrap();
    let younger = [(); 2].map(|()| tcp_pair());
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = peer.local_addr().unwrap();
    for (client, server) in older.iter().chain(&younger) {
        assert_eq!((send(client, &[1; 70], 0), recv(server, 70, 0)), (70, 70));
    }
    for socket in &udp {
        assert_eq!(socket.send_to(&[1; 50], to).unwrap(), 50);
        assert_eq!(peer.recv_from(&mut [0; 99]).unwrap().0, 50);
    }
    let of_tcp = |pairs: &[(TcpStream, TcpStream); 2]| pairs.each_ref().map(|(c, s)| (port(c), port(s)));
    let of_udp = |sockets: &[UdpSocket; 2]| sockets.each_ref().map(|s| s.local_addr().unwrap().port());
    let (older_ports, younger_ports) = (of_tcp(&older), of_tcp(&younger));
    let (udp_ports, silent_ports) = (of_udp(&udp), of_udp(&silent));
    for port in udp_ports {
        trace.udp(port, to.port(), 0, 50);
    }
    for (c, s) in older_ports.into_iter().chain(younger_ports) {
        trace.until("the bytes", |t| t.tcp(c, s).filter(|row| row.bytes_out == 70).map(drop));
    }
    // The first of each ends.
    let [(oc, os), older_left] = older;
    let [(yc, ys), younger_left] = younger;
    let ([u, udp_left], [q, silent_left]) = (udp, silent);
    drop((oc, os, yc, ys, u, q));
    for (c, s) in [older_ports[0], younger_ports[0]] {
        trace.closed(c, s);
    }
    let mut table = without_ends(&trace, existing);
    thread::sleep(Duration::from_millis(1100));
    let first = trace.collector.survey().unwrap();
    assert_eq!(table.reconcile(&first), 0, "one survey is not enough");
    table.reconcile(&trace.collector.survey().unwrap());
    let lesser = answer(81, trace.backend()) == Answer::Lesser;
    let netns = row(&table, Protocol::Tcp, older_ports[1].0, older_ports[1].1).netns.unwrap();
    let covers = |protocol| first.covers(protocol, netns);
    let has_cookies = trace.sees(Feature::SocketCookie) != Visibility::Unseen;
    assert_eq!([Protocol::Tcp, Protocol::Udp].map(covers), [has_cookies, has_cookies && !lesser]);
    for ((ended, lives), remote, protocol) in [
        ((older_ports[0].0, older_ports[1].0), [older_ports[0].1, older_ports[1].1], Protocol::Tcp),
        ((older_ports[0].1, older_ports[1].1), [older_ports[0].0, older_ports[1].0], Protocol::Tcp),
        ((younger_ports[0].0, younger_ports[1].0), [younger_ports[0].1, younger_ports[1].1], Protocol::Tcp),
        ((udp_ports[0], udp_ports[1]), [to.port(); 2], Protocol::Udp),
        ((silent_ports[0], silent_ports[1]), [0; 2], Protocol::Udp),
    ] {
        let ended = row(&table, protocol, ended, remote[0]);
        assert_eq!((ended.is_closed, ended.is_end_seen), (covers(protocol), false), "{ended:?}");
        let lives = row(&table, protocol, lives, remote[1]);
        assert!(!lives.is_closed, "{lives:?}");
    }
    drop((older_left, younger_left, udp_left, silent_left));
}

/// While others come and go by the thousands, none of those that stay is ever taken for gone, and of those that have gone
/// none is left in the end.
#[test]
fn a_storm_takes_no_living_connection_along() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kept: Vec<_> = (0..150).map(|_| pair_by(&listener)).collect();
    let datagrams: Vec<_> = (0..150).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let to = datagrams[0].local_addr().unwrap();
    for socket in &datagrams[1..] {
        assert_eq!(socket.send_to(&[1; 5], to).unwrap(), 5);
        assert_eq!(datagrams[0].recv(&mut [0; 9]).unwrap(), 5);
    }
    for (client, server) in &kept {
        assert_eq!((send(client, &[1; 5], 0), recv(server, 5, 0)), (5, 5));
    }
    let last = port(&kept.last().unwrap().0);
    trace.until("the last bytes", |t| {
        t.rows(Protocol::Tcp, last).first().filter(|row| row.bytes_out == 5).map(drop)
    });
    trace.listen(Duration::from_millis(500));
    let mut table = without_ends(&trace, trace.collector.bootstrap_existing().unwrap());
    let before = trace.seen.len();
    let stop = AtomicBool::new(false);
    let own = std::process::id();
    let mut surveys: Vec<Survey> = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(pair_by(&listener));
                drop(UdpSocket::bind("127.0.0.1:0").unwrap());
            }
        });
        let deadline = Instant::now() + Duration::from_secs(4).min(PATIENCE);
        while Instant::now() < deadline {
            surveys.push(trace.collector.survey().unwrap());
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(surveys.len() > 5);
    for survey in &surveys {
        table.reconcile(survey);
        let ours = |r: &&ConnectionRecord| r.pid() == Some(own) && r.is_closed;
        let taken =
            table.records().filter(ours).find(|r| kept.iter().any(|(c, _)| port(c) == r.key.local_port));
        assert!(taken.is_none(), "{taken:?}");
        let flows = table.records().filter(ours).find(|r| r.key.remote_port == to.port());
        assert!(flows.is_none(), "{flows:?}");
    }
    trace.drain();
    trace.seen[before..].iter().filter(|event| !is_end(event)).for_each(|event| table.apply(event));
    thread::sleep(Duration::from_millis(1500));
    trace.drain();
    for _ in 0..2 {
        table.reconcile(&trace.collector.survey().unwrap());
    }
    if trace.sees(Feature::SocketCookie) == Visibility::Unseen {
        return;
    }
    let listening = listener.local_addr().unwrap().port();
    let of_storm = |r: &&ConnectionRecord| r.key.local_port == listening && !r.is_closed;
    assert_eq!(table.records().filter(of_storm).count(), kept.len(), "those that are kept");
}
