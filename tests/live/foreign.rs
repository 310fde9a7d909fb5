// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets that look like TCP or UDP by their protocol and are neither: the kernel keeps less memory for them than for what
//! they look like, so a program that took one for that would show what lies behind it.

use crate::harness::Trace;
use crate::net::{Child, checked, hear, port, recv, run, send, sockaddr, socket_of, tell};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tcptop::CollectorEvent;

const NOBODY: u32 = 65534;
const SOCKETS: usize = 64;
const HEADER: usize = 40;

/// What any user can become: root of a user namespace, in a network of its own.
fn enter_own_network_as_nobody() {
    // SAFETY: these touch no memory.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(
            (libc::setresgid(NOBODY, NOBODY, NOBODY), libc::setresuid(NOBODY, NOBODY, NOBODY)),
            (0, 0)
        );
        // Else its files in /proc are root's, also the one that is written next.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
        assert_eq!(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET), 0);
    }
    std::fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1")).unwrap();
    run("ip link set lo up");
}

fn connect_to_v6_loopback(socket: &OwnedFd) {
    // SAFETY: all zeros is an address.
    let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    to.sin6_family = libc::AF_INET6 as u16;
    to.sin6_addr.s6_addr[15] = 1;
    let len = size_of_val(&to) as libc::socklen_t;
    // SAFETY: the address is as long as is said.
    let ret = unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), len) };
    assert_eq!(checked(ret as isize), 0);
}

/// A raw socket that has sent, and where it could has received what it sent.
fn use_raw_socket(family: i32, protocol: i32) -> OwnedFd {
    let raw = socket_of(family, libc::SOCK_RAW, protocol).expect("root of a namespace may");
    if family == libc::AF_INET6 {
        connect_to_v6_loopback(&raw);
    } else {
        assert_eq!(crate::net::connect(&raw, &sockaddr([127, 0, 0, 1], 0)), 0);
    }
    assert_eq!(send(&raw, &[0; HEADER], 0), HEADER as isize);
    for flags in [libc::MSG_PEEK, 0] {
        assert!(recv(&raw, 200, flags) >= HEADER as isize);
    }
    // To nobody by name, as scanners do.
    if family == libc::AF_INET {
        let (to, bytes) = (sockaddr([127, 0, 0, 1], 0), [0_u8; HEADER]);
        let to = (&raw const to).cast();
        // SAFETY: bytes and address are as long as is said.
        let sent = unsafe { libc::sendto(raw.as_raw_fd(), bytes.as_ptr().cast(), HEADER, 0, to, 16) };
        assert_eq!(checked(sent), HEADER as isize);
    }
    raw
}

/// Netlink has protocols of the same numbers: 6 is NETLINK_XFRM, 17 is nobody's.
fn use_netlink(protocol: i32) {
    for kind in [libc::SOCK_RAW, libc::SOCK_DGRAM] {
        let Ok(netlink) = socket_of(libc::AF_NETLINK, kind, protocol) else { continue };
        send(&netlink, &[0; 16], 0);
    }
}

/// 61: raw sockets of protocol TCP and UDP, as any user of a user namespace can open them, are in no event, in no row and in
/// no list; the connection and the datagrams between the same addresses are.
#[test]
fn raw_sockets_are_neither_tcp_nor_udp() {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let mut child = Child::fork(|parent| {
            enter_own_network_as_nobody();
            let mut raw = Vec::new();
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                for family in [libc::AF_INET, libc::AF_INET6] {
                    raw.extend((0..SOCKETS).map(|_| use_raw_socket(family, protocol)));
                }
                use_netlink(protocol);
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&[1; 70]).unwrap();
            server.read_exact(&mut [0; 70]).unwrap();
            let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
            let ports = [&one, &other].map(|socket| socket.local_addr().unwrap().port());
            one.send_to(&[1; 30], ("127.0.0.1", ports[1])).unwrap();
            other.recv_from(&mut [0; 30]).unwrap();
            tell(parent, port(&client).into());
            tell(parent, port(&server).into());
            tell(parent, ports[0].into());
            tell(parent, ports[1].into());
            hear(parent);
            drop(raw);
            drop((client, server, one, other));
            hear(parent);
        });
        let ports = [0; 4].map(|_: u16| child.hear() as u16);
        let netns = child.netns();
        let mut listed: Vec<_> = trace.collector.bootstrap_existing().unwrap();
        listed.retain(|record| record.netns == Some(netns));
        child.tell(1);
        trace.closed(ports[0], ports[1]);
        trace.udp(ports[2], ports[3], 0, 30);
        trace.listen(Duration::from_millis(300));
        child.tell(1);
        child.wait();

        // Of an end that connects the local port is not known yet.
        let is_ours = |(local, remote): (u16, u16)| ports.contains(&local) || ports.contains(&remote);
        let keys = listed.iter().map(|record| (record.key.local_port, record.key.remote_port));
        let wrong: Vec<_> = keys.filter(|&key| !is_ours(key)).collect();
        assert!(!listed.is_empty() && wrong.is_empty(), "listed: {wrong:?}");
        let is_there = |e: &&CollectorEvent| e.connection().is_some_and(|c| c.netns == Some(netns));
        let events: Vec<_> = trace.seen.iter().filter(is_there).collect();
        let wrong: Vec<_> = events.iter().filter(|e| !is_ours(crate::harness::ports(e))).collect();
        assert!(events.len() >= 6, "{events:#?}");
        assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), events.len(), wrong.first());
    }
}

/// Behind an address that is too short is what the kernel's stack held before: a send to it fails, and shows nothing of that.
#[test]
fn what_is_behind_a_short_address_is_not_shown() {
    let mut trace = Trace::per_call();
    for (bind_to, family) in [("127.0.0.1:0", libc::AF_INET), ("[::1]:0", libc::AF_INET6)] {
        let [sender, receiver] = [(); 2].map(|()| UdpSocket::bind(bind_to).unwrap());
        let [s, r] = [&sender, &receiver].map(|socket| socket.local_addr().unwrap().port());
        // SAFETY: all zeros is an address.
        let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        to.sin6_family = family as u16;
        for len in [2, 4, 8, 15, 20] {
            let at = (&raw const to).cast();
            // SAFETY: the address is longer than is said.
            let sent = unsafe { libc::sendto(sender.as_raw_fd(), [1].as_ptr().cast(), 1, 0, at, len) };
            // Of IPv4 twenty bytes are more than enough: to 0.0.0.0, port 0.
            assert_eq!(checked(sent), -(libc::EINVAL as isize), "{len}");
        }
        sender.send_to(&[1; 9], receiver.local_addr().unwrap()).unwrap();
        trace.udp(s, r, 0, 9);
        let is_sender = |e: &&CollectorEvent| crate::harness::ports(e).0 == s;
        let others: Vec<_> =
            trace.seen.iter().filter(is_sender).filter(|e| crate::harness::ports(e).1 != r).collect();
        assert!(others.iter().all(|e| crate::harness::ports(e).1 == 0), "{others:#?}");
        let addrs: Vec<_> = others.iter().filter_map(|e| e.connection()).map(|c| c.key.remote_addr).collect();
        assert!(addrs.iter().all(|addr| addr.is_unspecified()), "{addrs:?}");
    }
}
