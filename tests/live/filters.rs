// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filters let through what they say and nothing else, of events and of what exists already.

use crate::harness::{Trace, builder, is_slow};
use crate::net::{
    Cgroup, Child, become_nobody, enter_own_network, hear, pair_at, pair_by, port, recv, rename, reset, run,
    send, tcp_pair, tell,
};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use tcptop::{
    AddressFamily, CollectorEvent, ConnectionInfo, ConnectionRecord, LinuxCollectorBuilder, Protocol,
};

/// Any user can be as many processes as it likes, by name. Of those the kernel side remembers so many only, but never forgets who
/// was asked for.
#[test]
fn a_flood_of_names_hides_nobody_from_a_filter() {
    let names = if is_slow() { 20_000 } else { 40_000 };
    let to = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = to.local_addr().unwrap();
    let mut wanted = Child::fork(|parent| {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        tell(parent, sender.local_addr().unwrap().port().into());
        let (client, server) = tcp_pair();
        tell(parent, port(&client).into());
        hear(parent);
        let mut work = || {
            assert_eq!(sender.send_to(&[1; 100], at).unwrap(), 100);
            assert_eq!((send(&client, &[1; 100], 0), recv(&server, 100, 0)), (100, 100));
            tell(parent, 0);
            hear(parent);
        };
        (0..3).for_each(|_| work());
    });
    let (u, c) = (wanted.hear() as u16, wanted.hear() as u16);
    let mut trace = Trace::with(builder().pid(wanted.pid));
    wanted.tell(0);
    for round in 1..=3 {
        wanted.hear();
        trace.until("its bytes", |t| {
            let udp = t.row(Protocol::Udp, u).is_some_and(|row| row.bytes_out == 100 * round);
            (udp && t.row(Protocol::Tcp, c).is_some_and(|row| row.bytes_out == 100 * round)).then_some(())
        });
        let flood = Child::fork(|_| {
            become_nobody(65534);
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0..names {
                rename(&n.to_string());
                sender.send_to(&[1], at).unwrap();
            }
        });
        flood.wait();
        wanted.tell(0);
    }
    wanted.wait();
    trace.until("its ends", |t| {
        let ended = |row: &ConnectionRecord| row.is_closed && row.owner.is_some();
        (t.row(Protocol::Udp, u).is_some_and(ended) && t.row(Protocol::Tcp, c).is_some_and(ended))
            .then_some(())
    });
}

#[test]
fn one_process_port_or_protocol() {
    let work = || {
        let (client, server) = tcp_pair();
        assert_eq!((send(&client, &[1; 70], 0), recv(&server, 70, 0)), (70, 70));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.send_to(&[1; 71], to.local_addr().unwrap()).unwrap();
        to.recv_from(&mut [0; 100]).unwrap();
        (port(&client), port(&server), to.local_addr().unwrap().port())
    };
    let mut trace = Trace::with(builder().pid(std::process::id()));
    let mut stranger = Child::fork(move |parent| {
        let (c, s, u) = work();
        [c, s, u].into_iter().for_each(|p| tell(parent, p.into()));
    });
    let stranger_pid = stranger.pid;
    let its_ports = [stranger.hear() as u16, stranger.hear() as u16, stranger.hear() as u16];
    stranger.wait();
    let (c, s, _) = work();
    trace.closed(c, s);
    let pids: Vec<_> = trace.seen.iter().filter_map(|e| e.connection()?.owner).map(|o| o.pid).collect();
    assert!(!pids.is_empty() && !pids.contains(&stranger_pid), "{pids:?}");
    // Its ports may have been given to us since; then its rows are ours.
    let strange = |e: &&CollectorEvent| {
        its_ports.contains(&crate::harness::ports(e).0)
            && e.connection().and_then(|i| i.owner).is_none_or(|o| o.pid != std::process::id())
    };
    assert_eq!(trace.seen.iter().find(strange), None);

    let mut trace = Trace::with(builder().protocol(Protocol::Tcp));
    let (c, s, _) = work();
    trace.closed(c, s);
    trace.stop();
    assert!(trace.seen.iter().filter_map(|e| e.connection()).all(|c| c.key.protocol == Protocol::Tcp));

    let mut trace = Trace::with(builder().protocol(Protocol::Udp));
    let (_, _, u) = work();
    trace.until("the datagram", |t| t.row(Protocol::Udp, u).filter(|r| r.bytes_in == 71).map(drop));
    assert!(trace.seen.iter().filter_map(|e| e.connection()).all(|c| c.key.protocol == Protocol::Udp));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let mut trace = Trace::with(builder().port(l));
    work();
    let (client, server) = pair_by(&listener);
    assert_eq!((send(&client, &[1; 72], 0), recv(&server, 72, 0)), (72, 72));
    let c = port(&client);
    drop((client, server));
    assert_eq!(trace.closed(c, l).bytes_out, 72);
    assert!(
        trace
            .seen
            .iter()
            .filter_map(|e| e.connection())
            .all(|i| [i.key.local_port, i.key.remote_port].contains(&l))
    );
}

/// Makes a connection to a server at this port; the ports of both.
fn exchange_at(listener: &TcpListener) -> (u16, u16) {
    exchange(listener, listener.local_addr().unwrap())
}

/// A process that has a connection, and makes another one when it is told so.
fn worker() -> Child {
    let mut child = Child::fork(|parent| {
        let _existing = tcp_pair();
        tell(parent, 0);
        hear(parent);
        let (c, s) = exchange_at(&TcpListener::bind("127.0.0.1:0").unwrap());
        tell(parent, c.into());
        tell(parent, s.into());
        hear(parent);
    });
    child.hear();
    child
}

#[test]
fn any_of_several_processes() {
    let mut workers = [worker(), worker(), worker()];
    let [first, stranger, last] = workers.each_ref().map(|worker| worker.pid);
    let mut trace = Trace::with(builder().pid(first).pid(last));
    let made = workers.each_mut().map(|worker| {
        worker.tell(1);
        (worker.hear() as u16, worker.hear() as u16)
    });
    for (c, s) in [made[0], made[2]] {
        assert_eq!(trace.closed(c, s).bytes_out, 10);
    }
    let existing = trace.collector.bootstrap_existing().unwrap();
    let pids: Vec<_> = existing.iter().filter_map(ConnectionRecord::pid).collect();
    assert!(pids.contains(&first) && pids.contains(&last), "{pids:?}");
    check_all(&trace, |row| row.pid().is_some_and(|pid| pid != stranger && [first, last].contains(&pid)));
}

#[test]
fn any_of_several_ports() {
    let servers = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let _existing = servers.each_ref().map(pair_by);
    let [first, _, last] = servers.each_ref().map(|server| server.local_addr().unwrap().port());
    let mut trace = Trace::with(builder().port(first).port(last));
    let made = servers.each_ref().map(exchange_at);
    for (c, s) in [made[0], made[2]] {
        assert_eq!(trace.closed(c, s).bytes_out, 10);
        assert_eq!(trace.closed(s, c).bytes_in, 10);
    }
    let is_wanted = |port: u16| [first, last].contains(&port);
    check_all(&trace, |row| is_wanted(row.key.local_port) || is_wanted(row.key.remote_port));
}

/// Who was told of a flow is told of its end: where it was not the first one of its UDP socket, and where the connection
/// has changed hands since.
#[test]
fn what_was_wanted_ends() {
    let [first, wanted] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let [first, wanted] = [&first, &wanted].map(|peer| peer.local_addr().unwrap());
    let mut trace = Trace::with(builder().port(wanted.port()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let local = socket.local_addr().unwrap().port();
    for peer in [first, wanted] {
        assert_eq!(socket.send_to(&[1; 30], peer).unwrap(), 30);
    }
    assert!(!trace.udp(local, wanted.port(), 0, 30).is_closed);
    drop(socket);
    trace.until("its end", |t| t.udp_flow(local, wanted.port()).filter(|row| row.is_closed).map(drop));
    trace.stop();

    let mut trace = Trace::with(builder().pid(std::process::id()));
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    // The last one to close is the owner in the end.
    let mut heir = Child::fork(|parent| {
        hear(parent);
    });
    drop((client, server));
    heir.tell(1);
    heir.wait();
    assert_eq!(trace.closed(c, s).bytes_out, 10);
    assert_eq!(trace.closed(s, c).bytes_in, 10);
    trace.stop();

    // One that is older, and does nothing more until its peer breaks it off: whose it is its close() tells.
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let mut trace = Trace::with(builder().pid(std::process::id()));
    reset(server);
    assert_eq!(recv(&client, 1, 0), -(libc::ECONNRESET as isize));
    drop(client);
    trace.closed(c, s);
}

/// Ten bytes to a server that listens at this address; the ports of both.
fn exchange(listener: &TcpListener, to: SocketAddr) -> (u16, u16) {
    let (client, server) = pair_at(listener, to);
    assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    (port(&client), port(&server))
}

/// Listeners of both families and of both in one, and connections to each; one of each family exists.
struct Servers {
    v4: TcpListener,
    v6: TcpListener,
    both: TcpListener,
    _existing: [(TcpStream, TcpStream); 2],
}

impl Servers {
    fn new() -> Self {
        let [v4, v6, both] = ["127.0.0.1:0", "[::1]:0", "[::]:0"].map(|at| TcpListener::bind(at).unwrap());
        let _existing = [&v4, &v6].map(pair_by);
        Self { v4, v6, both, _existing }
    }

    fn v4(&self) -> (u16, u16) {
        exchange(&self.v4, self.v4.local_addr().unwrap())
    }

    fn v6(&self) -> (u16, u16) {
        exchange(&self.v6, self.v6.local_addr().unwrap())
    }

    /// IPv4 over IPv6 sockets.
    fn mapped(&self) -> (u16, u16) {
        let address = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        exchange(&self.both, (address, self.both.local_addr().unwrap().port()).into())
    }
}

/// Every event and every row of what exists already is a wanted one, and there are some of each.
fn check_all(trace: &Trace, is_wanted: impl Fn(&ConnectionRecord) -> bool) {
    let infos: Vec<_> = trace.seen.iter().filter_map(CollectorEvent::connection).collect();
    let of_event = |info: &ConnectionInfo| {
        let mut row = ConnectionRecord::new(info.key, info.time);
        (row.owner, row.netns) = (info.owner, info.netns);
        row
    };
    let existing = trace.collector.bootstrap_existing().unwrap();
    assert!(!infos.is_empty() && !existing.is_empty(), "{} events, {existing:?}", infos.len());
    let rows = infos.into_iter().map(of_event).chain(existing);
    rows.for_each(|row| assert!(is_wanted(&row), "{row:?}"));
}

#[test]
fn one_address_family() {
    let servers = Servers::new();
    let mut trace = Trace::with(builder().family(AddressFamily::Ipv4));
    servers.v6();
    for (c, s) in [servers.mapped(), servers.v4()] {
        assert_eq!(trace.closed(c, s).bytes_out, 10);
    }
    check_all(&trace, |row| row.key.remote_addr.is_ipv4());

    let mut trace = Trace::with(builder().family(AddressFamily::Ipv6));
    servers.v4();
    servers.mapped();
    let (c, s) = servers.v6();
    assert_eq!(trace.closed(c, s).bytes_out, 10);
    check_all(&trace, |row| row.key.remote_addr.is_ipv6());
}

/// Where a process of its own network namespace and control group has its connections. Not a loopback address, though
/// it is on that interface.
const ELSEWHERE: [u8; 4] = [192, 0, 2, 7];

/// Each time it is told so this process makes a connection over a loopback address and one over another, and says the
/// latter's ports. There is one of each from the beginning.
fn work_elsewhere(parent: &mut UnixStream, group: &Cgroup) {
    group.enter();
    enter_own_network();
    run("ip address add 192.0.2.7/32 dev lo");
    let servers = Servers::new();
    let listener = TcpListener::bind((Ipv4Addr::from(ELSEWHERE), 0)).unwrap();
    let _existing = pair_by(&listener);
    tell(parent, 0);
    while hear(parent) == 1 {
        servers.v4();
        let (c, s) = exchange(&listener, listener.local_addr().unwrap());
        tell(parent, c.into());
        tell(parent, s.into());
    }
}

#[test]
fn one_network_namespace_or_cgroup_and_no_loopback() {
    let (servers, group) = (Servers::new(), Cgroup::new());
    let mut child = Child::fork(|parent| work_elsewhere(parent, &group));
    child.hear();
    let netns = child.netns();
    let is_loopback =
        |row: &ConnectionRecord| row.key.local_addr.is_loopback() || row.key.remote_addr.is_loopback();
    let mut traced = |builder: LinuxCollectorBuilder| {
        let mut trace = Trace::with(builder);
        let _closed = [servers.v4(), servers.v6(), servers.mapped()];
        child.tell(1);
        let (c, s) = (child.hear() as u16, child.hear() as u16);
        assert_eq!(trace.closed(c, s).bytes_out, 10);
        trace
    };
    check_all(&traced(builder().loopback(false)), |row| !is_loopback(row));
    let trace = traced(builder().netns(netns));
    check_all(&trace, |row| row.netns == Some(netns));
    assert!(trace.table.records().any(is_loopback));
    check_all(&traced(builder().cgroup(group.id())), |row| {
        row.owner.is_some_and(|owner| owner.cgroup_id == Some(group.id()))
    });
    child.tell(0);
    child.wait();
}

/// A process that uses a socket and is then moved into the cgroup that the filter names is seen from then on.
#[test]
fn a_process_that_enters_the_cgroup_later_is_seen() {
    let group = Cgroup::new();
    let mut trace = Trace::with(builder().cgroup(group.id()));
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let mut child = Child::fork(|parent| {
        assert_eq!(send(&client, &[1; 10], 0), 10);
        group.enter();
        assert_eq!(send(&client, &[1; 20], 0), 20);
        tell(parent, 1);
        hear(parent);
    });
    child.hear();
    let row =
        trace.until("what it sent in the cgroup", |t| t.tcp(c, s).filter(|row| row.bytes_out == 30).cloned());
    assert_eq!(row.pid(), Some(child.pid));
    // Of what it moved before nothing was told as an event.
    let told: u64 = trace.transfers().filter(|t| t.connection.key.local_port == c).map(|t| t.bytes).sum();
    assert!((20..=30).contains(&told), "{told} bytes in events");
    child.tell(1);
    child.wait();
}
