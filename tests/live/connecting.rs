// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connects that fail at once, before anything has left this machine.

use crate::harness::{Answer, Trace, answer, ports};
use crate::net::{
    Child, checked, connect, enter_own_network, hear, port, recv, run, send, set_option, sockaddr, socket,
    tell,
};
use crate::reasons::{failed, life};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, ConnectFailed, ConnectFailure, Feature, Protocol, Visibility};

fn connect_v6(socket: &OwnedFd, addr: Ipv6Addr, port: u16) -> isize {
    // SAFETY: all zeros is an address.
    let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    (to.sin6_family, to.sin6_port) = (libc::AF_INET6 as u16, port.to_be());
    to.sin6_addr.s6_addr = addr.octets();
    let len = size_of_val(&to) as libc::socklen_t;
    // SAFETY: the address is as long as is said.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), len) as isize })
}

fn bind(socket: &OwnedFd, port: u16) {
    let from = sockaddr([127, 0, 0, 1], port);
    // SAFETY: the address is as long as is said.
    assert_eq!(checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const from).cast(), 16) } as isize), 0);
}

fn stream(family: i32) -> OwnedFd {
    socket(family, libc::SOCK_STREAM)
}

/// The destinations of a network with routes that lead nowhere, each with what connect() says to it. The second byte tells
/// them apart, and the port.
const NOWHERE: [(u8, u16, &str, i32, ConnectFailure); 4] = [
    (1, 7201, "", libc::ENETUNREACH, ConnectFailure::Unreachable),
    (2, 7202, "prohibit", libc::EACCES, ConnectFailure::Forbidden),
    (3, 7203, "unreachable", libc::EHOSTUNREACH, ConnectFailure::Unreachable),
    (4, 7204, "blackhole", libc::EINVAL, ConnectFailure::Other),
];

fn v6_of(second: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, second.into(), 0, 0, 0, 0, 1)
}

/// Connects to each of them by IPv4, by IPv6, and by IPv4 on an IPv6 socket, which must fail as it says.
fn connect_to_nowhere() {
    for (second, port, kind, error, _) in NOWHERE {
        if !kind.is_empty() {
            run(&format!(
                "ip route add {kind} 10.{second}.0.0/16 && ip -6 route add {kind} 2001:db8:{second}::/48"
            ));
        }
        assert_eq!(connect(&stream(libc::AF_INET), &sockaddr([10, second, 3, 4], port)), -(error as isize));
        let v6 = connect_v6(&stream(libc::AF_INET6), v6_of(second), port);
        assert_eq!(v6, -(error as isize), "{kind}");
        let mapped = Ipv6Addr::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, second, 3, 5]);
        assert_eq!(connect_v6(&stream(libc::AF_INET6), mapped, port), -(error as isize), "{kind}");
    }
}

/// 83: there is no route to the peer, or one that forbids: no segment leaves, no state changes, and connect() has failed.
#[test]
fn a_connect_without_a_route_says_so() {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let mut child = Child::fork(|parent| {
            enter_own_network();
            connect_to_nowhere();
            hear(parent);
        });
        let pid = child.pid;
        if answer(83, trace.backend()) == Answer::Lesser {
            assert!(matches!(trace.sees(Feature::ConnectFailure), Visibility::Limited(_)));
            child.tell(1);
            child.wait();
            trace.listen(Duration::from_millis(300));
            assert!(NOWHERE.iter().all(|&(_, port, ..)| failed(&trace, port).is_empty()));
            continue;
        }
        assert_eq!(trace.sees(Feature::ConnectFailure), Visibility::Exact);
        for (second, port, kind, error, reason) in NOWHERE {
            trace.until("three failures", |t| (failed(t, port).len() >= 3).then_some(()));
            trace.listen(Duration::from_millis(50));
            let failures = failed(&trace, port);
            let peers: Vec<_> = failures.iter().map(|f| f.connection.key.remote_addr).collect();
            let all: [std::net::IpAddr; 3] =
                [[10, second, 3, 4].into(), v6_of(second).into(), [10, second, 3, 5].into()];
            assert_eq!(peers, all, "{kind}");
            for f in &failures {
                assert_eq!((f.reason, f.error, f.duration), (reason, Some(error), None), "{kind}");
                assert_eq!(f.connection.owner.map(|owner| owner.pid), Some(pid));
                assert_eq!(f.connection.key.local_port, 0);
            }
            let of_ours = |e: &&CollectorEvent| ports(e).1 == port;
            assert_eq!(trace.seen.iter().filter(of_ours).count(), 3, "nothing but these");
            let rows = trace.table.records().filter(|r| r.key.remote_port == port && r.is_closed);
            assert_eq!(rows.count(), 3);
        }
        child.tell(1);
        child.wait();
    }
}

/// How long a refused connect took, by this test's own clock.
#[test]
fn a_refused_connect_says_how_long_it_took() {
    let mut trace = Trace::start();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    assert!(TcpStream::connect(nobody).is_err());
    let waited = begun.elapsed();
    let failure = trace.until("the failure", |t| failed(t, nobody.port()).pop());
    assert_eq!(failure.reason, ConnectFailure::Refused);
    let lasted = failure.duration.expect("its begin was seen");
    assert!(lasted > Duration::ZERO && lasted <= waited, "{lasted:?} {waited:?}");
}

/// The same socket once it has a route: a connection that opens, has its bytes and its end, once each; and a connection of
/// before, which ends when the socket is used for a connect that fails.
#[test]
fn a_socket_whose_connect_has_failed_can_be_used_again() {
    const TO: u16 = 7205;
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        let listener = TcpListener::bind(("127.0.0.1", TO)).unwrap();
        let client = stream(libc::AF_INET);
        for bytes in [10, 20] {
            assert_eq!(connect(&client, &sockaddr([10, 1, 1, 1], TO)), -(libc::ENETUNREACH as isize));
            assert_eq!(connect(&client, &sockaddr([127, 0, 0, 1], TO)), 0);
            let (server, peer) = listener.accept().unwrap();
            assert_eq!(
                (send(&client, &vec![1; bytes], 0), recv(&server, bytes, 0)),
                (bytes as isize, bytes as isize)
            );
            tell(parent, peer.port().into());
            // SAFETY: AF_UNSPEC is all zeros, which is an address.
            let nobody: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            assert_eq!(connect(&client, &nobody), 0);
        }
        assert_eq!(connect(&client, &sockaddr([10, 1, 1, 1], TO)), -(libc::ENETUNREACH as isize));
    });
    let locals = [0; 2].map(|_: u16| child.hear() as u16);
    child.wait();
    for (local, bytes) in locals.into_iter().zip([10, 20]) {
        assert_eq!(life(&mut trace, local, TO).1.totals.bytes_out, bytes);
    }
    let is_exact = trace.sees(Feature::ConnectFailure) == Visibility::Exact;
    assert_eq!(failed(&trace, TO).len(), if is_exact { 3 } else { 0 });
}

fn no_port(trace: &mut Trace, to: u16, count: usize) -> Vec<ConnectFailed> {
    trace.until("all failures", |t| (failed(t, to).len() >= count).then_some(()));
    trace.listen(Duration::from_millis(100));
    failed(trace, to)
}

/// 84: all local ports have this peer already, or the one that is bound; by IPv4 and by IPv6; on a socket that is new and on
/// one that had a port before. No abort, and no port of an earlier connection.
#[test]
fn a_connect_without_a_free_port_says_so() {
    const TO: u16 = 7206;
    const LEFT: u16 = 7300;
    let mut trace = Trace::start();
    let child = Child::fork(|_| {
        enter_own_network();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{LEFT} {}", LEFT + 1)).unwrap();
        let listener = TcpListener::bind(("::", TO)).unwrap();
        let reused = stream(libc::AF_INET);
        assert_eq!(connect(&reused, &sockaddr([127, 0, 0, 1], 1)), -(libc::ECONNREFUSED as isize));
        let mut taken = vec![listener.local_addr().map(drop).map(|()| stream(libc::AF_INET)).unwrap()];
        taken.extend([stream(libc::AF_INET), stream(libc::AF_INET6), stream(libc::AF_INET6)]);
        for (i, socket) in taken.iter().enumerate() {
            let v6 = || connect_v6(socket, Ipv6Addr::LOCALHOST, TO);
            assert_eq!(if i < 2 { connect(socket, &sockaddr([127, 0, 0, 1], TO)) } else { v6() }, 0);
        }
        let none = -(libc::EADDRNOTAVAIL as isize);
        assert_eq!(connect(&stream(libc::AF_INET), &sockaddr([127, 0, 0, 1], TO)), none);
        assert_eq!(connect_v6(&stream(libc::AF_INET6), Ipv6Addr::LOCALHOST, TO), none);
        assert_eq!(connect(&reused, &sockaddr([127, 0, 0, 1], TO)), none);
        let bound = stream(libc::AF_INET);
        set_option(&bound, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1_i32);
        // Who bound without a connect shares the port with who is connected from it only if both say so.
        let other = stream(libc::AF_INET);
        set_option(&other, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1_i32);
        bind(&other, LEFT + 10);
        bind(&bound, LEFT + 10);
        assert_eq!(connect(&other, &sockaddr([127, 0, 0, 1], TO)), 0);
        assert_eq!(connect(&bound, &sockaddr([127, 0, 0, 1], TO)), none);
    });
    let pid = child.pid;
    child.wait();
    let failures = no_port(&mut trace, TO, 4);
    let locals: Vec<_> = failures.iter().map(|f| f.connection.key.local_port).collect();
    assert_eq!(locals, [0, 0, 0, LEFT + 10]);
    for f in failures {
        assert_eq!((f.reason, f.error), (ConnectFailure::NoLocalPort, Some(libc::EADDRNOTAVAIL)));
        assert_eq!(f.connection.owner.map(|owner| owner.pid), Some(pid));
    }
}

/// A connect that the program gives up itself, by close and by AF_UNSPEC, is aborted all the same.
#[test]
fn a_connect_that_is_given_up_is_aborted() {
    const TO: u16 = 7207;
    let mut trace = Trace::start();
    let child = Child::fork(|_| {
        enter_own_network();
        run("tc qdisc add dev lo root blackhole");
        for disconnects in [true, false] {
            let socket = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
            assert_eq!(connect(&socket, &sockaddr([127, 0, 0, 1], TO)), -(libc::EINPROGRESS as isize));
            // SAFETY: AF_UNSPEC is all zeros, which is an address.
            let nobody: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            assert!(!disconnects || connect(&socket, &nobody) == 0);
        }
    });
    child.wait();
    for f in no_port(&mut trace, TO, 2) {
        assert_eq!((f.reason, f.error), (ConnectFailure::Aborted, None));
        assert_ne!(f.connection.key.local_port, 0);
    }
    assert!(trace.rows(Protocol::Tcp, 0).iter().all(|row| row.key.remote_port != TO));
}

/// What connect() says to an address that is none is no failed connection: there is nobody to name.
#[test]
fn an_address_that_is_none_is_no_failed_connection() {
    let mut trace = Trace::start();
    let socket = stream(libc::AF_INET);
    let address = sockaddr([127, 0, 0, 1], 7208);
    // SAFETY: the address is longer than is said.
    let short =
        checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), 8) } as isize);
    assert_eq!(short, -(libc::EINVAL as isize));
    let of_other_family = libc::sockaddr_in { sin_family: libc::AF_APPLETALK as u16, ..address };
    assert_eq!(connect(&socket, &of_other_family), -(libc::EAFNOSUPPORT as isize));
    let (client, server) = crate::net::tcp_pair();
    let (c, s) = (port(&client), port(&server));
    drop::<(TcpStream, TcpStream)>((client, server));
    life(&mut trace, c, s);
    let me = Some(std::process::id());
    let mine = |f: &&CollectorEvent| f.connection().is_some_and(|c| c.owner.map(|o| o.pid) == me);
    let failures = trace.seen.iter().filter(mine).filter(|e| matches!(e, CollectorEvent::ConnectFailed(_)));
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{failures:#?}");
}
