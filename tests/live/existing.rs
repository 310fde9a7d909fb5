// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that were there before the tracer.

use crate::harness::{Trace, builder};
use crate::net::{Child, cookie, enter_own_network, hear, pair_by, port, recv, run, send, tcp_pair, tell};
use crate::tcp::{pipe, splice};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tcptop::{
    AddressFamily, Bootstrap, CollectorEvent, ConnectionRecord, Feature, LinuxCollector,
    LinuxCollectorBuilder, NetNs, Protocol, Provenance, TcpState, Visibility,
};

fn tcp(records: &[ConnectionRecord], local: u16, remote: u16) -> Vec<&ConnectionRecord> {
    let all = records.iter().filter(|r| r.key.protocol == Protocol::Tcp);
    all.filter(|r| (r.key.local_port, r.key.remote_port) == (local, remote)).collect()
}

/// What can be found without tracing anything: no iterator then.
fn without_start(way: Bootstrap) -> Vec<ConnectionRecord> {
    LinuxCollector::builder().bootstrap(way).build().unwrap().bootstrap_existing().unwrap()
}

fn assert_is_ours(row: &ConnectionRecord) {
    assert_eq!((row.pid(), row.provenance), (Some(std::process::id()), Provenance::Bootstrap));
    assert_eq!((row.tcp_state, row.is_closed), (Some(TcpState::Established), false));
}

/// 1000 bytes out, of which the peer has read 600, and then 500 more.
fn older_than_the_tracer(way: Bootstrap) {
    let partial = way == Bootstrap::Procfs;
    let (mut client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    client.write_all(&[1; 1000]).unwrap();
    server.read_exact(&mut [0; 600]).unwrap();
    let mut trace = Trace::with(builder().bootstrap(way));
    assert_eq!(trace.capabilities().bootstrap(), way);
    let limits = |trace: &Trace| trace.sees(Feature::Existing).to_string();
    assert!(limits(&trace).contains("not searched for yet"), "nobody has looked");
    let existing = trace.collector.bootstrap_existing().unwrap();
    assert!(!limits(&trace).contains("not searched for yet"), "{}", limits(&trace));
    assert_eq!(limits(&trace).contains("out of /proc, without totals"), partial);
    let (ours, theirs) = (tcp(&existing, c, s), tcp(&existing, s, c));
    assert_eq!((ours.len(), theirs.len()), (1, 1), "each once");
    for (row, socket, moved) in [(ours[0], &client, [1000, 0]), (theirs[0], &server, [0, 600])] {
        assert_is_ours(row);
        assert_eq!(row.is_partial, partial);
        assert_eq!([row.bytes_out, row.bytes_in], if partial { [0, 0] } else { moved });
        if partial {
            assert_eq!((row.socket, row.rtt), (None, None));
        } else {
            let has_cookies = trace.sees(Feature::SocketCookie) != Visibility::Unseen;
            assert_eq!(row.socket, has_cookies.then(|| cookie(socket)));
            assert!(row.rtt.is_some_and(|rtt| rtt > Duration::ZERO));
        }
    }
    trace.table.merge_bootstrap(existing);
    assert!(trace.tcp(c, s).is_some_and(|row| row.is_partial == partial));
    client.write_all(&[1; 500]).unwrap();
    server.read_exact(&mut [0; 900]).unwrap();
    trace.until("the true total out", |t| t.tcp(c, s).filter(|row| row.bytes_out == 1500).map(drop));
    trace.until("the true total in", |t| t.tcp(s, c).filter(|row| row.bytes_in == 1500).map(drop));
    let news: u64 = trace.transfers().filter(|t| t.connection.key.local_port == c).map(|t| t.bytes).sum();
    assert!(news <= 500, "what is new is at most what moved since: {news}");
    drop((client, server));
    let row = trace.closed(c, s);
    assert_eq!((row.bytes_out, row.is_partial, row.is_closed), (1500, false, true));
    trace.closed(s, c);
}

/// 33: by sock_diag the totals are there at once.
#[test]
fn a_connection_from_before_is_found_and_gets_its_true_total() {
    older_than_the_tracer(Bootstrap::SockDiag);
}

/// 33: out of /proc the row is partial, until the kernel's own total comes with the next event.
#[test]
fn out_of_proc_a_connection_is_partial_until_its_next_event() {
    older_than_the_tracer(Bootstrap::Procfs);
}

/// A reader that splices, as proxies do, makes no receive call that would end what was going on when the tracer came: its
/// bytes are reported all the same. A peek before that moves nothing.
#[test]
fn an_older_connection_that_is_spliced_or_peeked_at_is_reported() {
    let spliced = tcp_pair();
    let peeked = tcp_pair();
    for (client, server) in [&spliced, &peeked] {
        assert_eq!((send(client, &[1; 700], 0), recv(server, 700, 0)), (700, 700));
    }
    let mut trace = Trace::fresh();
    let (client, server) = &peeked;
    assert_eq!((send(client, &[1; 100], 0), recv(server, 100, libc::MSG_PEEK)), (100, 100));
    let (client, server) = &spliced;
    let (read_end, write_end) = pipe();
    let mut file = File::from(read_end);
    for _ in 0..5 {
        assert_eq!((send(client, &[1; 1000], 0), splice(server, &write_end, 1000)), (1000, 1000));
        file.read_exact(&mut [0; 1000]).unwrap();
        trace.listen(Duration::from_millis(400));
    }
    let (c, s) = (port(client), port(server));
    let row = trace.tcp(s, c).expect("it moves");
    assert!(row.bytes_in >= 700 + 4 * 1000, "{} bytes before the end", row.bytes_in);
    let (client, server) = &peeked;
    assert_eq!(recv(server, 100, 0), 100);
    let (pc, ps) = (port(client), port(server));
    drop((spliced, peeked));
    assert_eq!((trace.closed(s, c).bytes_in, trace.closed(ps, pc).bytes_in), (5700, 800));
    let moved = |local| trace.transfers().filter(move |t| t.connection.key.local_port == local);
    assert_eq!(moved(ps).map(|t| t.bytes).sum::<u64>(), 100, "{:#?}", moved(ps).collect::<Vec<_>>());
}

/// A UDP socket from before may have talked to anybody, so its flows are partial, whoever the peer is. Those of a socket
/// that is younger are not.
#[test]
fn flows_of_an_older_udp_socket_are_partial() {
    let mut trace = Trace::start();
    let older = UdpSocket::bind("127.0.0.1:0").unwrap();
    trace.table.merge_bootstrap(trace.collector.bootstrap_existing().unwrap());
    let younger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [old, young] = [&older, &younger].map(|socket| socket.local_addr().unwrap());
    assert_eq!(older.send_to(&[1; 40], young).unwrap(), 40);
    assert_eq!(younger.recv_from(&mut [0; 99]).unwrap(), (40, old));
    assert!(trace.udp(old.port(), young.port(), 0, 40).is_partial);
    assert!(!trace.udp(young.port(), old.port(), 40, 0).is_partial);
}

/// UDP sockets that were listed and move nothing until they are closed. Where rows have no ids, only the address of the one
/// without a peer tells whose end it was.
#[test]
fn rows_of_silent_udp_sockets_end_with_them() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let unconnected = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"].map(|at| UdpSocket::bind(at).unwrap());
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(peer.local_addr().unwrap()).unwrap();
    let mut trace = Trace::start();
    trace.table.merge_bootstrap(trace.collector.bootstrap_existing().unwrap());
    let younger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port_of = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let never_listed = port_of(&younger);
    let ports = unconnected.each_ref().map(port_of);
    let last = port_of(&connected);
    let row = |trace: &Trace, port| {
        let rows = trace.rows(Protocol::Udp, port);
        assert_eq!(rows.len(), 1, "{port}: {rows:#?}");
        rows[0].clone()
    };
    for port in ports.into_iter().chain([last]) {
        assert!(!row(&trace, port).is_closed);
    }
    let has_ids = row(&trace, last).socket.is_some();
    drop((unconnected, connected, younger));
    for port in ports.into_iter().chain(has_ids.then_some(last)) {
        trace.until("the end of a row", |t| row(t, port).is_closed.then_some(()));
    }
    trace.listen(Duration::from_millis(300));
    assert_eq!(row(&trace, last).is_closed, has_ids);
    let closed = |e: &CollectorEvent| match e {
        CollectorEvent::Closed(closed) => Some(closed.connection.key.local_port),
        _ => None,
    };
    let ends = |port| trace.seen.iter().filter_map(closed).filter(|&of| of == port).count();
    assert_eq!(ports.map(ends), [1; 3], "each once");
    assert_eq!(ends(never_listed), 0, "of no interest to anybody");
}

/// The port by which it was chosen may be the peer's.
#[test]
fn rows_chosen_by_their_peer_end_with_their_sockets() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sockets = ["127.0.0.1:0", "[::]:0"].map(|at| UdpSocket::bind(at).unwrap());
    let to = peer.local_addr().unwrap().port();
    sockets[0].connect(("127.0.0.1", to)).unwrap();
    sockets[1].connect(("::ffff:127.0.0.1", to)).unwrap();
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
    let mut trace = Trace::with(builder().port(to).family(AddressFamily::Ipv4));
    trace.table.merge_bootstrap(trace.collector.bootstrap_existing().unwrap());
    let found = |trace: &Trace, port| trace.udp_flow(port, to).expect("a row");
    let has_ids = ports.map(|port| found(&trace, port).socket.is_some());
    drop(sockets);
    if has_ids == [true; 2] {
        trace.until("the end of both", |t| ports.iter().all(|&port| found(t, port).is_closed).then_some(()));
    }
    trace.listen(Duration::from_millis(300));
    assert_eq!(ports.map(|port| found(&trace, port).is_closed), has_ids);
}

/// Sockets that are listed and talk only to whom the filter leaves out.
#[test]
fn rows_whose_flows_are_left_out_end_with_their_sockets() {
    let leave_out: [fn(LinuxCollectorBuilder) -> LinuxCollectorBuilder; 2] =
        [|b| b.loopback(false), |b| b.family(AddressFamily::Ipv6)];
    for (at, leave_out) in ["0.0.0.0:0", "[::]:0"].into_iter().zip(leave_out) {
        let server = UdpSocket::bind(at).unwrap();
        let port = server.local_addr().unwrap().port();
        let mut trace = Trace::with(leave_out(builder()));
        trace.table.merge_bootstrap(trace.collector.bootstrap_existing().unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(client.send_to(&[1; 10], ("127.0.0.1", port)).unwrap(), 10);
        assert_eq!(server.recv_from(&mut [0; 99]).unwrap().0, 10);
        let is_closed = |trace: &Trace| {
            let rows = trace.rows(Protocol::Udp, port);
            assert_eq!(rows.len(), 1, "{rows:#?}");
            rows[0].is_closed
        };
        assert!(!is_closed(&trace));
        drop(server);
        trace.until("the end of the row", |t| is_closed(t).then_some(()));
        assert_eq!(trace.transfers().filter(|t| t.connection.key.local_port == port).count(), 0);
    }
}

/// All ways find the same sockets, with the same owners and states: TCP and UDP, IPv4, IPv6 and mapped.
#[test]
fn every_way_finds_what_proc_lists() {
    let trace = Trace::start();
    let mut held = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        held.extend((0..30).map(|_| pair_by(&listener)));
    }
    let datagrams: Vec<_> = (0..30).map(|_| UdpSocket::bind("[::]:0").unwrap()).collect();
    let is_ours = |r: &&ConnectionRecord| r.pid() == Some(std::process::id());
    let told = |records: &[ConnectionRecord]| -> Vec<String> {
        let tell = |r: &ConnectionRecord| {
            let owner = r.owner.unwrap();
            format!(
                "{} {:?} {:?} {} {} {:?}",
                r.key, r.netns, r.tcp_state, owner.name, owner.uid, owner.cgroup_id
            )
        };
        records.iter().filter(is_ours).map(tell).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let (ours, theirs) = (trace.collector.bootstrap_existing().unwrap(), without_start(Bootstrap::Procfs));
    assert!(told(&ours).len() >= 2 * held.len() + datagrams.len());
    assert_eq!(told(&ours), told(&theirs));
    assert_eq!(told(&without_start(Bootstrap::SockDiag)), told(&theirs));
    let start =
        |records: &[ConnectionRecord]| records.iter().find(is_ours).unwrap().owner.unwrap().start_time_ns;
    let (exact, ticks) = (start(&ours), start(&theirs));
    assert!(exact - ticks < 10_000_000, "/proc counts in ticks of 10 ms: {exact} {ticks}");
}

/// Every network namespace, once: one of another process, and one in which no process lives, but which has a name and
/// a socket.
#[test]
fn every_network_namespace_is_looked_into_once() {
    let name = format!("tcptop-{}", std::process::id());
    run(&format!("ip netns add {name} && ip -n {name} link set lo up"));
    let path = format!("/run/netns/{name}");
    let named_inode = std::fs::metadata(&path).unwrap().ino();
    let named = NetNs::new(u32::try_from(named_inode).unwrap()).unwrap();
    let mut child = Child::fork(move |parent| {
        let enter = |file: &File| {
            // SAFETY: moves this process into a network namespace.
            assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
        };
        let home = File::open("/proc/self/ns/net").unwrap();
        enter(&File::open(&path).unwrap());
        let (client, server) = tcp_pair();
        enter(&home);
        assert_eq!((send(&client, &[1; 70], 0), recv(&server, 70, 0)), (70, 70));
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
        hear(parent);
    });
    let mut stranger = Child::fork(|parent| {
        enter_own_network();
        let (client, server) = tcp_pair();
        assert_eq!((send(&client, &[1; 80], 0), recv(&server, 80, 0)), (80, 80));
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
        hear(parent);
    });
    let trace = Trace::start();
    let [of_child, of_stranger] = [&mut child, &mut stranger].map(|c| (c.hear() as u16, c.hear() as u16));
    let strange = stranger.netns();
    let ways = [
        (trace.collector.bootstrap_existing().unwrap(), false),
        (without_start(Bootstrap::SockDiag), false),
        (without_start(Bootstrap::Procfs), true),
    ];
    for (child, (c, s), netns, bytes) in
        [(&mut child, of_child, named, 70), (&mut stranger, of_stranger, strange, 80)]
    {
        for (found, partial) in &ways {
            let rows = [tcp(found, c, s), tcp(found, s, c)];
            assert_eq!(rows.each_ref().map(Vec::len), [1, 1], "{bytes}: partial {partial}");
            for row in rows.iter().flatten() {
                assert_eq!((row.netns, row.pid()), (Some(netns), Some(child.pid)));
            }
            let moved = if *partial { 0 } else { bytes };
            assert_eq!((rows[0][0].bytes_out, rows[1][0].bytes_in), (moved, moved));
        }
        child.tell(1);
    }
    child.wait();
    stranger.wait();
    run(&format!("ip netns del {name}"));
}
