// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP: datagrams that do not simply go from one socket to another.

use crate::harness::{Answer, Trace, answer};
use crate::net::{cookie, recv, send, set_option};
use crate::tcp::temporary_file;
use crate::udp::bound;
use rustix::net::{SendFlags, sendto};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;
use tcptop::{ConnectionRecord, Feature, Protocol, Visibility};

/// 51: a datagram that is longer than the buffer counts with what the call returned: what the program got, or with
/// MSG_TRUNC the length of the datagram.
#[test]
fn a_short_buffer_counts_what_the_call_returned() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    receiver.connect(("127.0.0.1", s)).unwrap();
    sender.send_to(&[1; 333], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 33, 0), 33);
    sender.send_to(&[1; 222], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 22, libc::MSG_TRUNC), 222);
    assert_eq!(trace.udp(r, s, 33 + 222, 0).packets_in, 2);
    assert_eq!(trace.udp(s, r, 0, 333 + 222).packets_out, 2);
}

/// 53: three sends that the kernel makes one datagram of, of which only the first names the peer; in between something
/// else is received. UDP_CORK, then MSG_MORE.
#[test]
fn corked_pieces_add_up() {
    corked_pieces("127.0.0.1:0", Ipv4Addr::LOCALHOST.into());
}

/// 53: the same to an IPv4 peer on an IPv6 socket, where the pieces go through the functions of both.
#[test]
fn corked_pieces_on_an_ipv6_socket_count_once() {
    corked_pieces("[::]:0", Ipv4Addr::LOCALHOST.to_ipv6_mapped().into());
}

fn corked_pieces(from: &str, peer: IpAddr) {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound(from), bound("127.0.0.1:0"));
    let (other, o) = bound("127.0.0.1:0");
    const UDP_CORK: i32 = 1;
    for more in [0, libc::MSG_MORE] {
        let cork = |on: i32| {
            if more == 0 {
                set_option(&sender, libc::IPPROTO_UDP, UDP_CORK, on);
            }
        };
        cork(1);
        let flags = SendFlags::from_bits_retain(more as u32);
        let first = sendto(&sender, &[1; 100], flags, &SocketAddr::new(peer, r)).unwrap();
        other.send_to(&[2; 9], ("127.0.0.1", s)).unwrap();
        assert_eq!(sender.recv_from(&mut [0; 100]).unwrap().0, 9);
        let rest = [send(&sender, &[1; 200], more), send(&sender, &[1; 50], 0)];
        assert_eq!((first, rest), (100, [200, 50]));
        cork(0);
        assert_eq!(recv(&receiver, 1000, 0), 350);
    }
    assert_eq!(trace.udp(s, r, 0, 700).packets_out, 2);
    trace.udp(s, o, 18, 0);
    assert_eq!(trace.rows(Protocol::Udp, s).len(), 2, "no flow to nobody");
}

/// 54: one send that the kernel cuts into ten datagrams; a receiver that takes them one by one, and one that wants them
/// put together again.
#[test]
fn segmented_datagrams_count_their_bytes() {
    const UDP_SEGMENT: i32 = 103;
    const UDP_GRO: i32 = 104;
    let mut trace = Trace::start();
    for gro in [false, true] {
        let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        sender.connect(("127.0.0.1", r)).unwrap();
        receiver.connect(("127.0.0.1", s)).unwrap();
        set_option(&sender, libc::IPPROTO_UDP, UDP_SEGMENT, 1000_i32);
        if gro {
            set_option(&receiver, libc::IPPROTO_UDP, UDP_GRO, 1_i32);
        }
        assert_eq!(send(&sender, &[1; 10_000], 0), 10_000);
        let mut calls = 0;
        let mut left = 10_000;
        while left > 0 {
            let n = recv(&receiver, 20_000, 0);
            assert!(n > 0 && n % 1000 == 0, "{n}");
            left -= n;
            calls += 1;
        }
        assert!(gro || calls == 10, "{calls}");
        assert_eq!(trace.udp(s, r, 0, 10_000).packets_out, 10);
        // Where nothing tells how many datagrams the reader gets at once, it is one.
        let lesser = answer(54, trace.backend()) == Answer::Lesser;
        assert_eq!(trace.udp(r, s, 10_000, 0).packets_in, if lesser { calls } else { 10 });
    }
}

/// 55: a file of 3000 bytes to a connected UDP socket.
#[test]
fn sendfile_to_a_udp_socket_counts() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", r)).unwrap();
    let file = temporary_file(&[7; 3000]);
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::sendfile(sender.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 3000) };
    assert_eq!(sent, 3000);
    let mut left = 3000;
    while left > 0 {
        left -= recv(&receiver, 4000, 0);
    }
    trace.udp(s, r, 0, 3000);
}

/// 56: nobody is there: the answer (ICMP) makes the next send fail, and the one after that succeeds again.
#[test]
fn a_refused_datagram_counts_nothing() {
    let mut trace = Trace::start();
    let ((sender, s), (_, closed)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", closed)).unwrap();
    let sent = [10, 11, 12].map(|n| send(&sender, &vec![1; n], 0));
    assert_eq!(sent, [10, -(libc::ECONNREFUSED as isize), 12]);
    trace.udp(s, closed, 0, 22);
}

/// A socket that shares its port with others.
fn sharing(option: i32, address: &str, port: u16) -> UdpSocket {
    let fd = crate::net::socket(libc::AF_INET, libc::SOCK_DGRAM);
    set_option(&fd, libc::SOL_SOCKET, option, 1_i32);
    let address = crate::net::sockaddr(address.parse::<Ipv4Addr>().unwrap().octets(), port);
    // SAFETY: the address is as long as is said.
    assert_eq!(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), 16) }, 0);
    // SAFETY: the file descriptor is ours, and nobody else's any more.
    unsafe { UdpSocket::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}

fn received(rows: &[&ConnectionRecord]) -> u64 {
    rows.iter().map(|row| row.bytes_in).sum()
}

/// 58: two sockets share a port (SO_REUSEPORT), and the kernel spreads 20 peers over them: each counts what it read.
#[test]
fn sockets_that_share_a_port_count_their_own() {
    let mut trace = Trace::start();
    let first = sharing(libc::SO_REUSEPORT, "127.0.0.1", 0);
    let r = first.local_addr().unwrap().port();
    let receivers = [first, sharing(libc::SO_REUSEPORT, "127.0.0.1", r)];
    let senders: Vec<_> = (0..20).map(|_| bound("127.0.0.1:0")).collect();
    for (sender, _) in &senders {
        sender.send_to(&[1; 10], ("127.0.0.1", r)).unwrap();
    }
    let mut got = [0, 0];
    for (receiver, got) in receivers.iter().zip(&mut got) {
        receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Ok((n, _)) = receiver.recv_from(&mut [0; 100]) {
            *got += n as u64;
        }
    }
    assert!(got.iter().sum::<u64>() == 200 && got.iter().all(|&n| n > 0), "{got:?}");
    for &(_, s) in &senders {
        trace.udp(r, s, 10, 0);
    }
    let rows = trace.rows(Protocol::Udp, r);
    assert_eq!((rows.len(), received(&rows)), (20, 200));
    if trace.sees(Feature::SocketCookie) == Visibility::Exact {
        for (receiver, got) in receivers.iter().zip(got) {
            let id = Some(cookie(receiver));
            assert_eq!(rows.iter().filter(|row| row.socket == id).map(|row| row.bytes_in).sum::<u64>(), got);
        }
    }
}

/// 58: one datagram to a group with two members on this machine: 77 out, and 77 in at each.
#[test]
fn multicast_counts_at_each_receiver() {
    let mut trace = Trace::start();
    let group = Ipv4Addr::new(239, 7, 7, 7);
    let first = sharing(libc::SO_REUSEADDR, "0.0.0.0", 0);
    let g = first.local_addr().unwrap().port();
    let members = [first, sharing(libc::SO_REUSEADDR, "0.0.0.0", g)];
    for member in &members {
        member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        member.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let (sender, s) = bound("127.0.0.1:0");
    set_option(&sender, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, u32::from(Ipv4Addr::LOCALHOST).to_be());
    sender.send_to(&[1; 77], (group, g)).unwrap();
    for member in &members {
        assert_eq!(member.recv_from(&mut [0; 100]).unwrap().0, 77);
    }
    let row = trace.udp(s, g, 0, 77);
    assert_eq!(row.key.remote_addr, std::net::IpAddr::V4(group));
    trace.until("both members' bytes", |t| (received(&t.rows(Protocol::Udp, g)) == 154).then_some(()));
    trace.listen(Duration::from_millis(300));
    let each: Vec<_> =
        trace.rows(Protocol::Udp, g).iter().map(|row| (row.key.remote_port, row.bytes_in)).collect();
    assert_eq!(each, [(s, 77), (s, 77)]);
}

/// 58: a datagram to everybody.
#[test]
fn broadcast_counts() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("0.0.0.0:0"));
    sender.set_broadcast(true).unwrap();
    sender.send_to(&[1; 33], ("127.255.255.255", r)).unwrap();
    assert_eq!(receiver.recv_from(&mut [0; 100]).unwrap().0, 33);
    let row = trace.udp(s, r, 0, 33);
    assert_eq!(row.key.remote_addr, std::net::IpAddr::from([127, 255, 255, 255]));
    assert_eq!(trace.udp(r, s, 33, 0).key.remote_addr, std::net::IpAddr::from([127, 0, 0, 1]));
}

/// 59: a socket is closed, and another opened on its port: two flows, each with its own bytes.
#[test]
fn a_port_opened_again_is_a_new_flow() {
    let mut trace = Trace::start();
    let (receiver, r) = bound("127.0.0.1:0");
    let (sender, s) = bound("127.0.0.1:0");
    sender.send_to(&[1; 10], ("127.0.0.1", r)).unwrap();
    drop(sender);
    trace.until("its end", |t| {
        t.row(Protocol::Udp, s).filter(|row| row.is_closed && row.bytes_out == 10).map(drop)
    });
    let sender = UdpSocket::bind(("127.0.0.1", s)).unwrap();
    sender.send_to(&[1; 20], ("127.0.0.1", r)).unwrap();
    let flows = |t: &Trace| {
        let rows = t.rows(Protocol::Udp, s);
        let mut all: Vec<_> = rows.iter().map(|row| (row.bytes_out, row.is_closed)).collect();
        all.sort_unstable();
        all
    };
    trace.until("the new flow", |t| (flows(t).len() == 2).then_some(()));
    trace.listen(Duration::from_millis(300));
    assert_eq!(flows(&trace), [(10, true), (20, false)]);
    assert_eq!((recv(&receiver, 99, 0), recv(&receiver, 99, 0)), (10, 20));
}
