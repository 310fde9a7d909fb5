// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP: who the peer is where it is not simply who was named.

use crate::harness::{AFTERMATH, Answer, Trace, answer, builder};
use crate::net::{Cgroup, Child, enter_own_network, hear, recv, run, send, send_to, tell};
use crate::rewriter::balance;
use crate::udp::bound;
use crate::unsent::cork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use tcptop::{AddressFamily, Feature, Protocol, Visibility};

/// Sends 30 bytes from one socket to the other one's port at this address, and 40 back to where they came from; then the
/// same with a connected socket.
fn there_and_back(trace: &mut Trace, from: &str, to: IpAddr, at: &str, peer: IpAddr) {
    let ((receiver, r), (sender, s)) = (bound(at), bound(from));
    let exchange = |is_connected: bool| {
        if is_connected {
            sender.connect((to, r)).unwrap();
            assert_eq!(send(&sender, &[1; 30], 0), 30);
        } else {
            assert_eq!(sender.send_to(&[1; 30], (to, r)).unwrap(), 30);
        }
        let (n, source) = receiver.recv_from(&mut [0; 100]).unwrap();
        assert_eq!((n, source.port()), (30, s));
        receiver.send_to(&[1; 40], source).unwrap();
        assert_eq!(sender.recv_from(&mut [0; 100]).unwrap().0, 40);
    };
    exchange(false);
    exchange(true);
    let row = trace.udp(s, r, 80, 60);
    assert_eq!(row.key.remote_addr, peer, "{from} to {to}");
    assert_eq!((row.packets_in, row.packets_out), (2, 2));
    assert_eq!(trace.rows(Protocol::Udp, s).len(), 1, "{:#?}", trace.rows(Protocol::Udp, s));
}

/// 67: the kernel sends to this machine what is sent to no address: one flow, with who gets it.
#[test]
fn datagrams_to_no_address_are_one_flow() {
    let mut trace = Trace::start();
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let home = IpAddr::from(Ipv4Addr::LOCALHOST);
    there_and_back(&mut trace, "0.0.0.0:0", v4.into(), "0.0.0.0:0", home);
    there_and_back(&mut trace, "[::]:0", v6.into(), "[::]:0", Ipv6Addr::LOCALHOST.into());
    there_and_back(&mut trace, "[::]:0", v4.to_ipv6_mapped().into(), "0.0.0.0:0", home);
    there_and_back(&mut trace, "[::ffff:127.0.0.1]:0", v6.into(), "127.0.0.1:0", home);
    // To where the socket is bound.
    there_and_back(&mut trace, "127.0.0.5:0", v4.into(), "127.0.0.5:0", Ipv4Addr::new(127, 0, 0, 5).into());
}

/// 95: a corked send to another address changes where a connected IPv4 socket sends to. The kernel goes on to send there, and
/// says so to nobody.
#[test]
fn a_connected_socket_that_has_sent_elsewhere_goes_on_to_send_there() {
    let mut trace = Trace::start();
    let [(sender, s), (peer, p), (other, o)] = [(); 3].map(|()| bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", p)).unwrap();
    assert_eq!(send(&sender, &[1; 10], 0), 10);
    let corked = send_to(&sender, &[1; 7], o, libc::MSG_MORE);
    assert_eq!((corked, send(&sender, &[1; 13], 0), send(&sender, &[1; 30], 0)), (7, 13, 30));
    assert_eq!((recv(&peer, 99, 0), recv(&other, 99, 0), recv(&other, 99, 0)), (10, 20, 30));
    peer.set_nonblocking(true).unwrap();
    assert!(peer.recv(&mut [0; 99]).is_err() && sender.peer_addr().unwrap().port() == p);
    trace.udp(s, p, 0, 10);
    trace.udp(s, o, 0, 50);
}

/// 96: the kernel sends a datagram to where the IPv4 socket is connected last, though it was begun for another address.
#[test]
fn a_corked_datagram_goes_where_its_socket_is_connected_to_meanwhile() {
    let mut trace = Trace::start();
    let [(begun_for, b), (peer, p)] = [(); 2].map(|()| bound("127.0.0.1:0"));
    begun_for.set_nonblocking(true).unwrap();
    for (local, is_uncorked) in
        [("127.0.0.1:0", false), ("127.0.0.1:0", true), ("[::ffff:127.0.0.1]:0", false)]
    {
        let (sender, s) = bound(local);
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        if sender.local_addr().unwrap().is_ipv4() {
            assert_eq!(send_to(&sender, &[1; 7], b, libc::MSG_MORE), 7);
            sender.connect(("127.0.0.1", p)).unwrap();
        } else {
            sender.connect((mapped, b)).unwrap();
            assert_eq!(send(&sender, &[1; 7], libc::MSG_MORE), 7);
            sender.connect((mapped, p)).unwrap();
        }
        let bytes = if is_uncorked {
            cork(&sender, 0);
            7
        } else {
            assert_eq!(send(&sender, &[1; 13], 0), 13);
            20
        };
        assert_eq!(recv(&peer, 99, 0), bytes, "{local}");
        assert!(begun_for.recv(&mut [0; 99]).is_err());
        // Of an uncorking the end of the socket tells, with some backends.
        drop(sender);
        let lesser = is_uncorked && answer(96, trace.backend()) == Answer::Lesser;
        trace.udp(s, if lesser { b } else { p }, 0, bytes as u64);
    }
}

const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 77), 7777);

/// Asks the service when it is told to, without and with connect(), and says from which port.
fn ask_service(parent: &mut UnixStream, group: &Cgroup) {
    group.enter();
    while hear(parent) == 1 {
        for is_connected in [false, true] {
            let (client, c) = bound("127.0.0.1:0");
            if is_connected {
                client.connect(SERVICE).unwrap();
                assert_eq!(send(&client, &[1; 30], 0), 30);
            } else {
                assert_eq!(client.send_to(&[1; 30], SERVICE).unwrap(), 30);
            }
            let (n, from) = client.recv_from(&mut [0; 100]).unwrap();
            assert_eq!((n, from), (40, SERVICE.into()));
            tell(parent, c.into());
        }
    }
}

/// 68: a program on a control group that gives sockets another peer than they name: one flow, with the peer that there is. Its
/// program runs before that of the tracer (in a lower group) or after it (in the root, attached later).
#[test]
fn a_peer_that_is_rewritten_is_one_flow() {
    let mut trace = Trace::start();
    let lesser = answer(68, trace.backend()) == Answer::Lesser && sees_what_others_make_of_it(&trace);
    let (server, s) = bound("127.0.0.1:0");
    let group = Cgroup::new();
    let mut client = Child::fork(|parent| ask_service(parent, &group));
    for cgroup in [group.open(), Cgroup::open_root()] {
        let _balancer = balance(&cgroup, SERVICE, SocketAddrV4::new(Ipv4Addr::LOCALHOST, s));
        client.tell(1);
        for is_connected in [false, true] {
            let (n, from) = server.recv_from(&mut [0; 100]).unwrap();
            assert_eq!((n, server.send_to(&[1; 40], from).unwrap()), (30, 40));
            let c = client.hear() as u16;
            // The source of what is received is what it says; a connected socket is not asked.
            let two_flows = lesser && from.port() == c;
            trace.udp(c, s, if two_flows { 0 } else { 40 }, 30);
            if two_flows {
                assert_eq!(trace.udp(c, SERVICE.port(), 40, 0).key.remote_addr, IpAddr::from(*SERVICE.ip()));
            }
            let rows = trace.rows(Protocol::Udp, c);
            assert_eq!(rows.len(), 1 + usize::from(two_flows), "{is_connected}: {rows:#?}");
        }
    }
    client.tell(0);
    client.wait();
}

/// Its programs cannot come first among those of control groups, and this is told.
fn sees_what_others_make_of_it(trace: &Trace) -> bool {
    match trace.sees(Feature::UdpRecvPeer) {
        Visibility::Limited(how) => how.contains("rewrites"),
        _ => false,
    }
}

/// 69: a stranger's datagram waits when the socket is connected, and one of the peer behind it: the stranger's is not the
/// peer's.
#[test]
fn what_waits_at_connect_is_not_the_peers() {
    let mut trace = Trace::start();
    let lesser = answer(69, trace.backend()) == Answer::Lesser;
    let [(stranger, x), (peer, p), (receiver, r)] = [(); 3].map(|()| bound("127.0.0.1:0"));
    stranger.send_to(&[1; 33], ("127.0.0.1", r)).unwrap();
    receiver.connect(("127.0.0.1", p)).unwrap();
    peer.send_to(&[1; 44], ("127.0.0.1", r)).unwrap();
    assert_eq!((recv(&receiver, 99, 0), recv(&receiver, 99, 0)), (33, 44));
    peer.send_to(&[1; 55], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 99, 0), 55);
    trace.udp(r, p, if lesser { 55 } else { 44 + 55 }, 0);
    trace.udp(r, if lesser { 0 } else { x }, if lesser { 33 + 44 } else { 33 }, 0);
    // With nothing in its queue, all that comes after connect() is the peer's.
    let (receiver, r) = bound("0.0.0.0:0");
    receiver.connect(("127.0.0.1", p)).unwrap();
    peer.send_to(&[1; 66], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 99, 0), 66);
    trace.udp(r, p, 66, 0);
}

/// What a socket has received in all its flows.
fn received(trace: &Trace, local: u16) -> u64 {
    trace.rows(Protocol::Udp, local).iter().map(|row| row.bytes_in).sum()
}

/// Asks a server and reads the answer without asking who it is from.
fn ask(from: &str, server: &UdpSocket, to: SocketAddr) -> u16 {
    let (client, c) = bound(from);
    assert_eq!(client.send_to(&[1; 30], to).unwrap(), 30);
    let (_, source) = server.recv_from(&mut [0; 100]).unwrap();
    server.send_to(&[1; 40], source).unwrap();
    assert_eq!(recv(&client, 99, 0), 40);
    c
}

/// 70: a filter that asks for the peer drops nothing of a peer that is not known.
#[test]
fn filters_drop_nothing_that_they_cannot_judge() {
    let (server, s) = bound("127.0.0.1:0");
    let lesser = |trace: &Trace| answer(70, trace.backend()) == Answer::Lesser;
    let mut trace = Trace::with(builder().port(s));
    let c = ask("0.0.0.0:0", &server, ([127, 0, 0, 1], s).into());
    let unknown = lesser(&trace);
    trace.udp(c, s, if unknown { 0 } else { 40 }, 30);
    trace.until("what it has received", |t| (received(t, c) == 40).then_some(()));
    assert_eq!(trace.udp_flow(c, 0).is_some(), unknown);
    // What is known to be of others is left out.
    let (other, o) = bound("127.0.0.1:0");
    let c = ask("127.0.0.1:0", &other, ([127, 0, 0, 1], o).into());
    trace.listen(AFTERMATH);
    assert!(trace.rows(Protocol::Udp, o).is_empty() && trace.udp_flow(c, o).is_none());
    drop(trace);

    let mut trace = Trace::with(builder().family(AddressFamily::Ipv4));
    let mapped = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), s).into();
    let c = ask("[::]:0", &server, mapped);
    trace.udp(c, s, if unknown { 0 } else { 40 }, 30);
    trace.until("what it has received", |t| (received(t, c) == 40).then_some(()));
}

/// 71: two peers with the same port, whose addresses begin with the same bytes and are of different families.
#[test]
fn peers_of_different_families_are_two_flows() {
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        run("ip address add 32.1.13.184/32 dev lo && ip -6 address add 2001:db8::/128 dev lo");
        let (sender, s) = bound("[::]:0");
        for (n, to) in [(10, "::ffff:32.1.13.184"), (20, "2001:db8::"), (30, "::ffff:32.1.13.184")] {
            assert_eq!(sender.send_to(&vec![1; n], (to, 9)).unwrap(), n);
        }
        tell(parent, s.into());
        hear(parent);
    });
    let s = child.hear() as u16;
    let mut sums = trace.until("both flows", |t| {
        let rows = t.rows(Protocol::Udp, s);
        let sums: Vec<_> = rows.iter().map(|r| (r.key.remote_addr.to_string(), r.bytes_out)).collect();
        (sums.iter().map(|(_, n)| n).sum::<u64>() == 60).then_some(sums)
    });
    sums.sort_unstable();
    assert_eq!(sums, [("2001:db8::".into(), 20), ("32.1.13.184".into(), 40)]);
    child.tell(0);
    child.wait();
}
