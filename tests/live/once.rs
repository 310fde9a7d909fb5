// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each connection that opens ends, and once, however it does: the same demand for many ways, each in a network of its own, with
//! what happens put together and with an event per call.

use crate::harness::{Trace, builder};
use crate::net::{
    Child, connect, enter_own_network, hear, pair_by, port, recv, reset, run, send, set_option, sockaddr,
    socket, tcp_pair, tell,
};
use crate::tcp::{pipe, splice};
use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, EventKind, Granularity, KernelTime, LossPlace, NetNs};

/// Runs `scenes` in a network of its own, and demands that `connections` connections have opened there at both ends, and
/// that each end is told of once.
fn each_ends_once(connections: usize, scenes: impl Fn(&mut UnixStream)) {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let mut child = Child::fork(|parent| {
            enter_own_network();
            tell(parent, 1);
            hear(parent);
            scenes(parent);
        });
        child.hear();
        let netns = child.netns();
        child.tell(1);
        child.wait();
        check(&mut trace, netns, 2 * connections);
    }
}

/// How often each connection of this network has opened, and has closed.
fn lives(trace: &Trace, netns: NetNs) -> HashMap<(u64, KernelTime), [usize; 2]> {
    let mut lives = HashMap::new();
    for event in &trace.seen {
        let (which, info) = match event {
            CollectorEvent::Opened(o) => (0, o.connection),
            CollectorEvent::Closed(c) => (1, c.connection),
            _ => continue,
        };
        if info.netns == Some(netns) {
            lives.entry((info.socket, info.since)).or_insert([0, 0])[which] += 1;
        }
    }
    lives
}

fn check(trace: &mut Trace, netns: NetNs, ends: usize) {
    let closed = |t: &Trace| lives(t, netns).values().filter(|life| life[1] > 0).count();
    trace.until(&format!("{ends} ends"), |t| (closed(t) >= ends).then_some(()));
    trace.listen(Duration::from_millis(300));
    let lives = lives(trace, netns);
    assert!(lives.len() == ends && lives.values().all(|life| *life == [1, 1]), "{ends} ends: {lives:?}");
    let open = trace.table.records().filter(|row| row.netns == Some(netns) && !row.is_closed).count();
    assert_eq!(open, 0, "rows that stay open");
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn stream() -> OwnedFd {
    socket(libc::AF_INET, libc::SOCK_STREAM)
}

fn connect_to(client: &OwnedFd, listener: &TcpListener) -> TcpStream {
    let to = listener.local_addr().unwrap().port();
    assert_eq!(connect(client, &sockaddr([127, 0, 0, 1], to)), 0);
    listener.accept().unwrap().0
}

fn disconnect(client: &OwnedFd) {
    // SAFETY: AF_UNSPEC is all zeros, which is an address.
    assert_eq!(connect(client, &unsafe { std::mem::zeroed() }), 0);
}

/// 87: one socket, four connections: ended by AF_UNSPEC, with bytes and without any, and by close.
#[test]
fn a_socket_that_is_connected_again_ends_each_connection_once() {
    each_ends_once(4, |_| {
        let (client, listener) = (stream(), listener());
        for bytes in [10, 0, 30] {
            let server = connect_to(&client, &listener);
            assert_eq!(send(&client, &vec![1; bytes], 0), bytes as isize);
            // A receive of nothing would wait for something.
            assert!(bytes == 0 || recv(&server, bytes, 0) == bytes as isize);
            disconnect(&client);
        }
        connect_to(&client, &listener);
    });
}

/// 87: what is read after the end, by a call that no hook sees the end of, is reported before the socket is connected again.
#[test]
fn what_is_spliced_after_a_reset_is_of_the_connection_that_ended() {
    each_ends_once(2, |_| {
        let (client, listener) = (stream(), listener());
        let server = connect_to(&client, &listener);
        assert_eq!(send(&server, &[1; 5000], 0), 5000);
        reset(server);
        let (read_end, write_end) = pipe();
        assert_eq!(splice(&client, &write_end, 5000), 5000);
        drop(read_end);
        disconnect(&client);
        connect_to(&client, &listener);
    });
}

/// 87: a socket that was connected listens, and hands out a connection; and is connected again after that.
#[test]
fn a_socket_that_listens_after_a_connection_ends_that_once() {
    each_ends_once(3, |_| {
        let (client, listener) = (stream(), listener());
        drop(connect_to(&client, &listener));
        disconnect(&client);
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::listen(client.as_raw_fd(), 5) }, 0);
        let listening = TcpListener::from(client.try_clone().unwrap());
        drop(pair_by(&listening));
        drop(listening);
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::shutdown(client.as_raw_fd(), libc::SHUT_RDWR) }, 0);
        connect_to(&client, &listener);
    });
}

/// 87: after a connect that was refused the socket is connected; what was refused has no end, for it never opened.
#[test]
fn a_socket_that_was_refused_ends_its_connection_once() {
    each_ends_once(2, |_| {
        let (client, listener) = (stream(), listener());
        for _ in 0..2 {
            assert_eq!(connect(&client, &sockaddr([127, 0, 0, 1], 1)), -(libc::ECONNREFUSED as isize));
            drop(connect_to(&client, &listener));
            disconnect(&client);
        }
        assert_eq!(connect(&client, &sockaddr([127, 0, 0, 1], 1)), -(libc::ECONNREFUSED as isize));
    });
}

/// 87: reset while a thread waits for bytes, and with bytes unread.
#[test]
fn a_connection_that_is_reset_under_its_reader_ends_once() {
    each_ends_once(2, |_| {
        let (client, server) = tcp_pair();
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(recv(&server, 10, 0), -(libc::ECONNRESET as isize)));
            thread::sleep(Duration::from_millis(50));
            reset(client);
        });
        let (client, server) = tcp_pair();
        assert_eq!(send(&client, &[1; 100], 0), 100);
        assert_eq!(recv(&server, 50, libc::MSG_WAITALL), 50);
        drop(server);
        assert_eq!(recv(&client, 1, 0), -(libc::ECONNRESET as isize));
    });
}

/// 87: destroyed by another process, in use and as what a process has left behind.
#[test]
fn a_connection_that_is_destroyed_ends_once() {
    each_ends_once(2, |_| {
        let (client, server) = tcp_pair();
        assert_eq!(send(&client, &[1; 10], 0), 10);
        run(&format!("ss -tnK sport = :{} >/dev/null", port(&client)));
        assert_eq!(send(&client, &[1], 0), -(libc::ECONNABORTED as isize));
        drop((client, server));
        let (client, server) = tcp_pair();
        let left = port(&client);
        // It waits for the FIN of the other one.
        drop(client);
        run(&format!("ss -tnK sport = :{left} >/dev/null"));
        drop(server);
    });
}

/// 87: killed with a connection in each state that one can be in.
#[test]
fn the_connections_of_a_killed_process_end_once() {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let mut child = Child::fork(|parent| {
            enter_own_network();
            let listener = listener();
            let mut pairs: Vec<_> = (0..8).map(|_| pair_by(&listener)).collect();
            for (i, (client, server)) in pairs.iter_mut().enumerate() {
                assert_eq!(send(client, &vec![1; 10 * i], 0), 10 * i as isize);
                if i % 2 == 1 {
                    client.shutdown(std::net::Shutdown::Write).unwrap();
                }
                if i % 4 > 1 {
                    assert_eq!(recv(server, 10 * i, 0), 10 * i as isize);
                }
            }
            // And one that nobody has accepted.
            let _waits = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            tell(parent, 1);
            hear(parent);
        });
        child.hear();
        let netns = child.netns();
        drop(child);
        check(&mut trace, netns, 18);
    }
}

/// 87: left behind in a network that carries nothing any more: the kernel gives up on both ends by itself, which no process
/// has any more.
#[test]
fn what_nobody_holds_and_nobody_answers_ends_once() {
    each_ends_once(1, |_| {
        std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "1").unwrap();
        let (client, server) = tcp_pair();
        set_option(&client, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 600_u32);
        assert_eq!(send(&client, &[1; 20], 0), 20);
        run("tc qdisc add dev lo root blackhole");
        assert_eq!(send(&server, &[1; 20], 0), 20);
        drop((client, server));
    });
}

/// 101: while one thread receives another one disconnects the socket and connects it again. What a call of the first connection
/// has received is never of the second one: it is reported in time, or counted as lost.
#[test]
fn a_call_that_ends_after_its_connection_is_not_of_the_next_one() {
    let per_call = builder().granularity(Granularity::PerCall).channel_capacity(1 << 18);
    let (mut collector, events) = per_call.spawn().unwrap();
    let (client, listener, is_over) = (stream(), listener(), AtomicBool::new(false));
    let to = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let connections = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                match listener.accept() {
                    // It may be gone by now.
                    Ok((peer, _)) => _ = send(&peer, &[1; 700], libc::MSG_NOSIGNAL),
                    Err(_) => thread::yield_now(),
                }
            }
        });
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                recv(&client, 300, libc::MSG_DONTWAIT);
            }
        });
        let (end, mut connections) = (Instant::now() + Duration::from_secs(3), 0);
        while Instant::now() < end {
            connections += u32::from(connect(&client, &sockaddr([127, 0, 0, 1], to)) == 0);
            thread::sleep(Duration::from_micros(200));
            disconnect(&client);
        }
        is_over.store(true, Relaxed);
        connections
    });
    drop(client);
    collector.stop().unwrap();
    assert!(connections > 50, "{connections}");
    let mut received = HashMap::new();
    let mut missing = 0;
    for event in events.iter().filter(|e| e.connection().is_some_and(|c| c.key.remote_port == to)) {
        match event {
            CollectorEvent::TcpRecv(transfer) => {
                assert!(transfer.bytes <= transfer.total_bytes, "{transfer:?}");
                let connection = (transfer.connection.socket, transfer.connection.since);
                *received.entry(connection).or_insert(0) += transfer.bytes;
            }
            CollectorEvent::Closed(closed) => {
                let known =
                    received.remove(&(closed.connection.socket, closed.connection.since)).unwrap_or(0);
                assert!(known <= closed.totals.bytes_in, "{known}: {closed:?}");
                missing += u64::from(known < closed.totals.bytes_in);
            }
            _ => {}
        }
    }
    let stats = collector.stats();
    assert_eq!((received.len(), stats.audit_mismatches), (0, 0), "{stats:?}");
    assert!(
        missing <= stats.lost(EventKind::TcpRecv, LossPlace::Storage),
        "{missing} of {connections}: {stats:?}"
    );
}
