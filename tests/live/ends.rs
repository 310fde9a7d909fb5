// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that begin or end in unusual ways or at unusual times: each is there once, and none stays.

use crate::harness::Trace;
use crate::net::{
    Child, connect, enter_own_network, hear, port, recv, run, send, sockaddr, socket, tcp_pair, tell,
};
use crate::reasons::{failed, life};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tcptop::{
    CloseReason, CollectorEvent, ConnectFailure, ConnectionRecord, LinuxCollector, Protocol, Role, TcpState,
};

/// 26: nobody at that address of the own network answers to ARP.
#[test]
fn an_unreachable_peer_says_so() {
    const TO: u16 = 7105;
    let mut trace = Trace::start();
    let child = Child::fork(|_| {
        // SAFETY: moves this process into a network namespace of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        run("ip link add va type veth peer name vb && ip addr add 10.9.9.1/24 dev va");
        run("ip link set lo up && ip link set va up && ip link set vb up");
        std::fs::write("/proc/sys/net/ipv4/neigh/va/mcast_solicit", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/neigh/va/retrans_time_ms", "100").unwrap();
        let client = socket(libc::AF_INET, libc::SOCK_STREAM);
        assert_eq!(connect(&client, &sockaddr([10, 9, 9, 2], TO)), -(libc::EHOSTUNREACH as isize));
    });
    let pid = child.pid;
    child.wait();
    let failure = trace.until("the failure", |t| failed(t, TO).first().copied());
    assert_eq!((failure.reason, failure.error), (ConnectFailure::Unreachable, Some(libc::EHOSTUNREACH)));
    assert_eq!(failure.connection.owner.map(|o| o.pid), Some(pid));
    assert_ne!(failure.connection.key.local_port, 0);
}

/// 30: a listener closes with a connection that it never accepted: both ends end, and the server's never shows the client.
#[test]
fn a_connection_that_nobody_accepted_ends() {
    let mut trace = Trace::start();
    let mut server = Child::fork(|parent| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        tell(parent, listener.local_addr().unwrap().port().into());
        hear(parent);
    });
    let l = server.hear() as u16;
    let client = TcpStream::connect(("127.0.0.1", l)).unwrap();
    let c = port(&client);
    assert_eq!(send(&client, &[1; 30], 0), 30);
    let server_pid = server.pid;
    server.tell(1);
    server.wait();
    assert_eq!(recv(&client, 1, 0), -(libc::ECONNRESET as isize));
    drop(client);
    let (ours, theirs) = (life(&mut trace, c, l).1, life(&mut trace, l, c).1);
    assert_eq!((ours.reason, theirs.reason), (Some(CloseReason::Reset), Some(CloseReason::Aborted)));
    assert_eq!((ours.totals.bytes_out, theirs.totals.bytes_in), (30, 0));
    for event in trace.seen.iter().filter(|e| crate::harness::ports(e) == (l, c)) {
        let owner = event.connection().and_then(|info| info.owner);
        assert!(owner.is_none_or(|owner| owner.pid == server_pid), "{event:?}");
    }
}

/// 31: two sockets connect to each other while nothing gets through; then the first of their SYNs that does makes both
/// connections. And one that connects to itself. Nobody listens, so all ends are active.
#[test]
fn a_simultaneous_open_is_two_connections() {
    const A: u16 = 7106;
    const B: u16 = 7107;
    const SELF: u16 = 7108;
    let mut trace = Trace::start();
    let child = Child::fork(|_| {
        enter_own_network();
        run("tc qdisc add dev lo root blackhole");
        let begin = |from: u16, to: u16| {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
            let address = sockaddr([127, 0, 0, 1], from);
            // SAFETY: the address is as long as is said.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), 16) };
            assert_eq!(bound, 0);
            assert_eq!(connect(&socket, &sockaddr([127, 0, 0, 1], to)), -(libc::EINPROGRESS as isize));
            socket
        };
        let sockets = [begin(A, B), begin(B, A), begin(SELF, SELF)];
        run("tc qdisc del dev lo root");
        let mut streams = sockets.map(|socket| {
            let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one entry, as is said.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 15_000) }, 1);
            let stream = TcpStream::from(socket);
            assert!(stream.take_error().unwrap().is_none());
            stream.set_nonblocking(false).unwrap();
            stream
        });
        for (i, n) in [(0, 100), (1, 200), (2, 300)] {
            streams[i].write_all(&vec![1; n]).unwrap();
        }
        for (i, n) in [(0, 200), (1, 100), (2, 300)] {
            streams[i].read_exact(&mut vec![0; n]).unwrap();
        }
    });
    child.wait();
    for (local, remote, moved) in [(A, B, (100, 200)), (B, A, (200, 100)), (SELF, SELF, (300, 300))] {
        let (opened, closed) = life(&mut trace, local, remote);
        assert_eq!(opened.role, Role::Client, "{local}");
        assert_eq!((closed.totals.bytes_out, closed.totals.bytes_in), moved, "{local}");
    }
}

/// The states that /proc lists for this pair of ports in the network namespace of this process.
fn listed(local: u16, remote: u16) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let ends = format!(":{local:04X} 0100007F:{remote:04X} ");
    let state = |line: &str| Some(line.split_once(&ends)?.1[..2].to_owned());
    table.lines().filter_map(state).collect()
}

/// 32: after an orderly end the kernel keeps the addresses in TIME_WAIT. The connection has ended once, before that. (In
/// a namespace of its own: there is room for so many, and other tests may have taken it.)
#[test]
fn time_wait_is_the_end() {
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        drop(client);
        assert_eq!(recv(&server, 1, 0), 0);
        drop(server);
        while listed(c, s).is_empty() || !listed(s, c).is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(listed(c, s), ["06"], "TCP_TIME_WAIT");
        tell(parent, c.into());
        tell(parent, s.into());
    });
    let (c, s) = (child.hear() as u16, child.hear() as u16);
    child.wait();
    let ends = [life(&mut trace, c, s), life(&mut trace, s, c)];
    trace.listen(Duration::from_millis(200));
    for (local, remote) in [(c, s), (s, c)] {
        assert_eq!(
            trace.tcp(local, remote).map(|row| (row.is_closed, row.tcp_state)),
            Some((true, Some(TcpState::Close)))
        );
        let after = trace.seen.iter().rposition(|e| {
            matches!(e, CollectorEvent::Closed(_)) && crate::harness::ports(e) == (local, remote)
        });
        let later =
            trace.seen[after.unwrap() + 1..].iter().filter(|e| crate::harness::ports(e) == (local, remote));
        assert_eq!(later.count(), 0, "nothing comes after the end");
    }
    assert!(ends.iter().all(|(_, closed)| closed.reason == Some(CloseReason::Orderly)));
}

/// 34: of 60 old connections 20 end between the search and the merge, and 20 after it: these 40 are closed, the others
/// open, and each is there once. By the iterators and out of /proc; events folded before the merge and after it.
#[test]
fn a_connection_that_ends_during_bootstrap_leaves_no_ghost() {
    for (from_proc, events_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut pairs: Vec<_> = (0..60).map(|_| tcp_pair()).collect();
        let ports: Vec<_> = pairs.iter().map(|(c, s)| (port(c), port(s))).collect();
        let mut trace = Trace::start();
        let unstarted = LinuxCollector::builder().bootstrap(tcptop::Bootstrap::Procfs).build().unwrap();
        let existing = if from_proc { &unstarted } else { &trace.collector }.bootstrap_existing().unwrap();
        drop(pairs.split_off(40));
        if events_first {
            trace.until("20 ends", |t| (closed_rows(t, &ports) >= 40).then_some(()));
        }
        trace.table.merge_bootstrap(existing);
        drop(pairs.split_off(20));
        trace.until("40 ends", |t| (closed_rows(t, &ports) >= 80).then_some(()));
        trace.listen(Duration::from_millis(200));
        for (i, &(c, s)) in ports.iter().enumerate() {
            for (local, remote) in [(c, s), (s, c)] {
                let rows: Vec<_> = trace.rows(Protocol::Tcp, local);
                let rows: Vec<_> = rows.into_iter().filter(|r| r.key.remote_port == remote).collect();
                let state = rows.iter().map(|r| r.is_closed).collect::<Vec<_>>();
                assert_eq!(
                    state,
                    [i >= 20],
                    "{i}, /proc {from_proc}, events first {events_first}: {rows:#?}"
                );
            }
        }
    }
}

fn closed_rows(trace: &Trace, ports: &[(u16, u16)]) -> usize {
    let ports: HashSet<_> = ports.iter().flat_map(|&(c, s)| [(c, s), (s, c)]).collect();
    let is_ours = |r: &&ConnectionRecord| ports.contains(&(r.key.local_port, r.key.remote_port));
    trace.table.records().filter(is_ours).filter(|r| r.is_closed).count()
}
