// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP: what a program gave to the kernel and the kernel did not send, and what it made several datagrams of.

use crate::harness::{AFTERMATH, Answer, Trace, answer, is_slow};
use crate::net::{Cgroup, Child, hear, recv, send, send_to, set_option, tell};
use crate::rewriter::refuse_packets;
use crate::udp::bound;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use tcptop::{Backend, Feature, Protocol, Visibility};

const UDP_CORK: i32 = 1;
const UDP_SEGMENT: i32 = 103;
const MSG_PROBE: i32 = 0x10;

pub(crate) fn cork(socket: &UdpSocket, on: i32) {
    set_option(socket, libc::IPPROTO_UDP, UDP_CORK, on);
}

/// A socket that is connected to another one.
fn pair(at: &str) -> ((UdpSocket, u16), (UdpSocket, u16)) {
    let ((sender, s), (receiver, r)) = (bound(at), bound(at));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    ((sender, s), (receiver, r))
}

/// 72: a corked datagram that becomes too long is thrown away, and so is one that waits when its socket is closed.
#[test]
fn a_corked_datagram_that_is_not_sent_counts_nothing() {
    let mut trace = Trace::start();
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let ((sender, s), (receiver, r)) = pair(at);
        cork(&sender, 1);
        let too_long = -(libc::EMSGSIZE as isize);
        assert_eq!([send(&sender, &[1; 60_000], 0), send(&sender, &[1; 60_000], 0)], [60_000, too_long]);
        cork(&sender, 0);
        assert_eq!(send(&sender, &[1; 10], 0), 10);
        assert_eq!(recv(&receiver, 99, 0), 10);
        assert_eq!(trace.udp(s, r, 0, 10).packets_out, 1);
        cork(&sender, 1);
        assert_eq!(send(&sender, &[1; 100], 0), 100);
        drop(sender);
        trace.until("the end of its socket", |t| t.udp_flow(s, r).filter(|row| row.is_closed));
        assert_eq!(trace.udp(s, r, 0, 10).packets_out, 1);
    }
}

/// 73: a corked datagram is sent by setsockopt(). Where nothing tells of that it counts with the next call or at the end.
#[test]
fn a_datagram_that_is_uncorked_counts() {
    let mut trace = Trace::start();
    let is_late = answer(73, trace.backend()) == Answer::Lesser;
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let ((sender, s), (receiver, r)) = pair(at);
        for total in [300, 600] {
            cork(&sender, 1);
            assert_eq!([send(&sender, &[1; 100], 0), send(&sender, &[1; 200], 0)], [100, 200]);
            cork(&sender, 0);
            assert_eq!(recv(&receiver, 999, 0), 300);
            if !is_late {
                assert_eq!(trace.udp(s, r, 0, total).packets_out, total / 300);
            }
        }
        trace.listen(AFTERMATH);
        let before = trace.udp_flow(s, r).map_or(0, |row| row.bytes_out);
        assert_eq!(before, if is_late { 300 } else { 600 });
        drop(sender);
        assert_eq!(trace.udp(s, r, 0, 600).packets_out, 2);
        // To another peer, by a socket that is not connected.
        let (sender, s) = bound(at);
        cork(&sender, 1);
        sender.send_to(&[1; 50], receiver.local_addr().unwrap()).unwrap();
        cork(&sender, 0);
        let (other, o) = bound(at);
        sender.send_to(&[1; 60], other.local_addr().unwrap()).unwrap();
        assert_eq!(trace.udp(s, r, 0, 50).packets_out, 1);
        assert_eq!(trace.udp(s, o, 0, 60).packets_out, 1);
    }
}

/// 89: what setsockopt() has sent counts though the next send is refused.
#[test]
fn an_uncorked_datagram_counts_though_the_next_send_fails() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = pair("127.0.0.1:0");
    for total in 1..=10 {
        cork(&sender, 1);
        assert_eq!(send(&sender, &[1; 100], 0), 100);
        cork(&sender, 0);
        assert_eq!(send(&sender, &[1], libc::MSG_OOB), -(libc::EOPNOTSUPP as isize));
        assert_eq!(recv(&receiver, 999, 0), 100);
        assert_eq!(trace.udp(s, r, 0, 100 * total).packets_out, total);
    }
}

/// 99: the first piece decides how long segments are, whatever the socket's option says by then.
#[test]
fn segments_of_a_corked_datagram_are_those_of_its_first_piece() {
    let mut trace = Trace::start();
    for (at_first, later, datagrams) in [(0, 500, 1), (500, 0, 36)] {
        let ((sender, s), (receiver, r)) = pair("127.0.0.1:0");
        let segment = |size: i32| set_option(&sender, libc::IPPROTO_UDP, UDP_SEGMENT, size);
        segment(at_first);
        assert_eq!(send(&sender, &[1; 9000], libc::MSG_MORE), 9000);
        segment(later);
        assert_eq!(send(&sender, &[1; 9000], 0), 9000);
        for _ in 0..datagrams {
            assert_eq!(recv(&receiver, 20_000, 0), 18_000 / datagrams);
        }
        assert_eq!(trace.udp(s, r, 0, 18_000).packets_out, datagrams as u64);
    }
}

/// 100: an empty datagram that setsockopt() sends counts, at the latest at the end of its socket.
#[test]
fn an_empty_datagram_that_is_uncorked_counts() {
    let mut trace = Trace::start();
    let is_late = answer(100, trace.backend()) == Answer::Lesser;
    let ((sender, s), (receiver, r)) = pair("127.0.0.1:0");
    cork(&sender, 1);
    assert_eq!(send(&sender, &[], 0), 0);
    cork(&sender, 0);
    assert_eq!(recv(&receiver, 99, 0), 0);
    if !is_late {
        assert_eq!(trace.udp(s, r, 0, 0).packets_out, 1);
    }
    drop(sender);
    let row = trace.until("the end of its socket", |t| t.udp_flow(s, r).filter(|row| row.is_closed));
    assert_eq!((row.packets_out, row.bytes_out), (1, 0));
}

/// 90: pieces go where the first one goes, of whatever length it is and whatever peer the socket has by then; what
/// setsockopt() has sent before is a datagram of its own.
#[test]
fn pieces_go_where_the_first_one_goes() {
    let mut trace = Trace::start();
    let [(a, to_a), (b, to_b)] = [(); 2].map(|()| bound("127.0.0.1:0"));
    let [at_a, at_b] = [&a, &b].map(|receiver| receiver.local_addr().unwrap());
    let piece = |sender: &UdpSocket, size: usize, flags| {
        assert_eq!(send_to(sender, &[1; 100][..size], to_a, flags), size as isize);
    };
    let of_pieces: [&dyn Fn(&UdpSocket); 3] = [
        &|sender| {
            piece(sender, 0, libc::MSG_MORE);
            piece(sender, 100, 0);
        },
        &|sender| {
            sender.connect(at_b).unwrap();
            piece(sender, 33, libc::MSG_MORE);
            assert_eq!([send(sender, &[1; 33], libc::MSG_MORE), send(sender, &[1; 34], 0)], [33, 34]);
        },
        &|sender| {
            sender.connect(at_b).unwrap();
            piece(sender, 0, libc::MSG_MORE);
            assert_eq!(send(sender, &[1; 100], 0), 100);
        },
    ];
    for pieces in of_pieces {
        let (sender, s) = bound("127.0.0.1:0");
        pieces(&sender);
        assert_eq!(recv(&a, 999, 0), 100);
        assert_eq!(trace.udp(s, to_a, 0, 100).packets_out, 1);
        assert!(trace.udp_flow(s, to_b).is_none());
    }
    let (sender, s) = bound("127.0.0.1:0");
    sender.connect(at_a).unwrap();
    cork(&sender, 1);
    assert_eq!(send(&sender, &[1; 100], 0), 100);
    cork(&sender, 0);
    sender.connect(at_b).unwrap();
    assert_eq!(send(&sender, &[1; 60], 0), 60);
    assert_eq!((recv(&a, 999, 0), recv(&b, 999, 0)), (100, 60));
    assert_eq!(trace.udp(s, to_a, 0, 100).packets_out, 1);
    assert_eq!(trace.udp(s, to_b, 0, 60).packets_out, 1);
}

/// 91: threads that add to one datagram at once. Where one of them fails it takes along what others have added.
#[test]
fn threads_that_cork_one_socket_count_what_they_send() {
    let mut trace = Trace::start();
    let ((sender, s), (_receiver, r)) = pair("127.0.0.1:0");
    let sends = if is_slow() { 500 } else { 10_000 };
    let run = || {
        let sizes = (0..sends).map(|n| (1 + n % 700, if n % 3 == 0 { 0 } else { libc::MSG_MORE }));
        sizes.map(|(size, flags)| send(&sender, &vec![1; size], flags).max(0) as u64).sum::<u64>()
    };
    let sent: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let last = send(&sender, &[1; 10], 0);
    assert_eq!(last, 10);
    let sent = sent + 10;
    let at_least = sent - sent / 10;
    trace.until("what was sent", |t| t.udp_flow(s, r).filter(|row| row.bytes_out >= at_least));
    trace.listen(AFTERMATH);
    let row = trace.udp_flow(s, r).unwrap();
    assert!((at_least..=sent).contains(&row.bytes_out), "{} of {sent}", row.bytes_out);
}

/// 74: a send that only asks whether the peer is there sends nothing, and returns as if it had.
#[test]
fn a_probe_counts_nothing() {
    let mut trace = Trace::start();
    let lesser = answer(74, trace.backend()) == Answer::Lesser;
    let ((sender, s), (receiver, r)) = pair("127.0.0.1:0");
    assert_eq!([send(&sender, &[1; 100], MSG_PROBE), send(&sender, &[1; 10], 0)], [100, 10]);
    assert_eq!(recv(&receiver, 999, 0), 10);
    trace.udp(s, r, 0, if lesser { 110 } else { 10 });
    assert_eq!(trace.sees(Feature::UdpSend).to_string().contains("MSG_PROBE"), lesser);
}

/// 75: what a packet filter of this machine refuses fails with EPERM.
#[test]
fn what_a_packet_filter_refuses_counts_nothing() {
    let mut trace = Trace::start();
    let lesser = answer(75, trace.backend()) == Answer::Lesser;
    let group = Cgroup::new();
    let (_receiver, r) = bound("127.0.0.1:0");
    let mut child = Child::fork(|parent| {
        group.enter();
        let (sender, s) = bound("127.0.0.1:0");
        sender.connect(("127.0.0.1", r)).unwrap();
        tell(parent, s.into());
        hear(parent);
        assert_eq!(send(&sender, &[1; 100], 0), -(libc::EPERM as isize));
        tell(parent, 0);
        hear(parent);
        assert_eq!(send(&sender, &[1; 10], 0), 10);
        tell(parent, 0);
        hear(parent);
    });
    let s = child.hear() as u16;
    let filter = refuse_packets(&group.open());
    child.tell(0);
    child.hear();
    drop(filter);
    child.tell(0);
    child.hear();
    trace.udp(s, r, 0, if lesser { 110 } else { 10 });
    match trace.sees(Feature::UdpSend) {
        Visibility::Exact => assert!(!lesser, "documented as exact"),
        Visibility::Limited(how) => assert_eq!(how.contains("packet filter"), lesser, "{how}"),
        unseen => panic!("{unseen}"),
    }
    child.tell(0);
    child.wait();
}

/// Sends with a control message that says how long the datagrams shall be.
fn send_segmented(socket: &UdpSocket, bytes: &mut [u8], segment: u16) {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = [0_u64; 8];
    // SAFETY: all zeros is an empty header; all that it points to lives to the end of the call and is as long as is said.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // Another message comes first: the source of the datagram.
        let info = libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32);
        message.msg_controllen = (info + libc::CMSG_SPACE(2)) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        (*first).cmsg_level = libc::IPPROTO_IP;
        (*first).cmsg_type = libc::IP_PKTINFO;
        (*first).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) as _;
        let second = libc::CMSG_NXTHDR(&raw const message, first);
        (*second).cmsg_level = libc::IPPROTO_UDP;
        (*second).cmsg_type = UDP_SEGMENT;
        (*second).cmsg_len = libc::CMSG_LEN(2) as _;
        libc::CMSG_DATA(second).cast::<u16>().write_unaligned(segment);
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// 76: each of several sends says by itself how long the datagrams are that the kernel makes of it.
#[test]
fn datagrams_are_counted_where_a_send_says_how_long_they_are() {
    let mut trace = Trace::start();
    let lesser = answer(76, trace.backend()) == Answer::Lesser;
    let ((sender, s), (receiver, r)) = pair("127.0.0.1:0");
    for segment in [1000, 400] {
        send_segmented(&sender, &mut [1; 2000], segment);
        let mut left = 2000;
        while left > 0 {
            left -= recv(&receiver, 2000, 0);
        }
    }
    let row = trace.udp(s, r, 0, 4000);
    assert_eq!(row.packets_out, if lesser { 2 } else { 2 + 5 });
    let calls = trace.transfers().filter(|t| t.connection.key.local_port == s).map(|t| t.calls).sum::<u32>();
    assert_eq!((calls, lesser), (2, trace.backend() == Backend::Tracepoint));
    assert_eq!(trace.rows(Protocol::Udp, s).len(), 1);
}
