// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP: flows by socket and peer.

use crate::harness::{AFTERMATH, Answer, Trace, absent, answer, builder, is_slow, lost_by_us};
use crate::net::{connect, cookie, recv, send, sockaddr, socket_of};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use tcptop::{
    CollectorEvent, ConnectionTable, EventKind, Feature, Granularity, KernelTime, LossPlace, Protocol,
    Transfer, Visibility,
};

pub(crate) fn bound(addr: &str) -> (UdpSocket, u16) {
    let socket = UdpSocket::bind(addr).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Receives with the sender's address, which is how servers do it.
fn receive_from(socket: &UdpSocket, len: usize) {
    let (n, _) = socket.recv_from(&mut [0; 2000]).unwrap();
    assert_eq!(n, len);
}

/// A receive that returns nothing because of shutdown(SHUT_RD) is no empty datagram.
#[test]
fn a_receive_after_shutdown_counts_nothing() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", r)).unwrap();
    receiver.connect(("127.0.0.1", s)).unwrap();
    for bytes in [&[1; 30][..], &[]] {
        assert_eq!(send(&sender, bytes, 0), bytes.len() as isize);
        assert_eq!(recv(&receiver, 100, 0), bytes.len() as isize);
    }
    // SAFETY: takes plain numbers.
    assert_eq!(unsafe { libc::shutdown(receiver.as_raw_fd(), libc::SHUT_RD) }, 0);
    assert_eq!(recv(&receiver, 100, 0), 0);
    drop(receiver);
    let row = trace.until("the end of its socket", |t| t.udp_flow(r, s).filter(|row| row.is_closed));
    assert_eq!((row.bytes_in, row.packets_in), (30, 2));
}

/// An empty datagram that comes after shutdown(SHUT_RD) is one, where the reader asks for its sender.
#[test]
fn an_empty_datagram_after_shutdown_counts() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    assert_eq!(sender.send_to(&[1; 30], ("127.0.0.1", r)).unwrap(), 30);
    receive_from(&receiver, 30);
    // SAFETY: takes plain numbers. It fails, because the socket has no peer, and takes effect all the same.
    assert_eq!(unsafe { libc::shutdown(receiver.as_raw_fd(), libc::SHUT_RD) }, -1);
    assert_eq!(sender.send_to(&[], ("127.0.0.1", r)).unwrap(), 0);
    receive_from(&receiver, 0);
    drop(receiver);
    let row = trace.until("the end of its socket", |t| t.udp_flow(r, s).filter(|row| row.is_closed));
    assert_eq!((row.bytes_in, row.packets_in), (30, 2));
}

/// UDP-Lite shares its functions with UDP and is not UDP.
#[test]
fn udp_lite_is_not_shown() {
    let mut trace = Trace::start();
    let lite = match socket_of(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) {
        Ok(lite) => lite,
        // Newer kernels are without it.
        Err(refusal) => return assert_eq!(refusal, -libc::EPROTONOSUPPORT as isize),
    };
    let ((sender, _), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    assert_eq!(connect(&lite, &sockaddr([127, 0, 0, 1], r)), 0);
    assert_eq!(send(&lite, &[1; 40], 0), 40);
    assert_eq!(sender.send_to(&[1; 50], ("127.0.0.1", r)).unwrap(), 50);
    receive_from(&receiver, 50);
    trace.until("the datagram", |t| t.row(Protocol::Udp, r).filter(|row| row.bytes_in == 50).map(drop));
    trace.listen(Duration::from_millis(200));
    assert!(trace.transfers().all(|t| t.bytes != 40), "{:#?}", trace.seen);
}

/// 48: sendmmsg of 100, 200 and 0 bytes on a connected socket: 300 bytes, 3 datagrams.
#[test]
fn empty_datagrams_are_datagrams() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", r)).unwrap();
    let bytes = [0_u8; 200];
    let mut parts = [100, 200, 0].map(|len| libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: len });
    // SAFETY: all zeros is an empty header.
    let mut messages: [libc::mmsghdr; 3] = unsafe { std::mem::zeroed() };
    for (message, part) in messages.iter_mut().zip(&mut parts) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the headers point to live buffers.
    assert_eq!(unsafe { libc::sendmmsg(sender.as_raw_fd(), messages.as_mut_ptr(), 3, 0) }, 3);
    for len in [100, 200, 0] {
        receive_from(&receiver, len);
    }
    let id = cookie(&sender);
    drop((sender, receiver));
    let row = trace.udp(s, r, 0, 300);
    let row = trace.until("three datagrams", |_| (row.packets_out == 3).then(|| row.clone()));
    assert_eq!(row.pid(), Some(std::process::id()));
    if trace.sees(Feature::SocketCookie) == Visibility::Exact {
        assert_eq!(row.socket, Some(id));
    }
    let row = trace.udp(r, s, 300, 0);
    assert_eq!((row.packets_in, row.packets_out), (3, 0));
    trace.until("both sockets' end", |t| {
        (t.row(Protocol::Udp, s)?.is_closed && t.row(Protocol::Udp, r)?.is_closed).then_some(())
    });
}

/// 49: one unconnected socket, two peers, 50 datagrams of 111 and of 222 bytes each: two flows on one socket.
#[test]
fn each_peer_is_a_flow() {
    let mut trace = Trace::start();
    let (sender, s) = bound("0.0.0.0:0");
    let peers = [(bound("127.0.0.1:0"), 111), (bound("127.0.0.1:0"), 222)];
    for _ in 0..50 {
        for ((peer, port), len) in &peers {
            assert_eq!(sender.send_to(&vec![1; *len], ("127.0.0.1", *port)).unwrap(), *len);
            receive_from(peer, *len);
            assert_eq!(peer.send_to(&[1; 10], ("127.0.0.1", s)).unwrap(), 10);
            receive_from(&sender, 10);
        }
    }
    for ((_, port), len) in &peers {
        let row = trace.udp(s, *port, 500, 50 * *len as u64);
        assert_eq!((row.packets_in, row.packets_out), (50, 50));
        let row = trace.udp(*port, s, 50 * *len as u64, 500);
        assert_eq!((row.packets_in, row.packets_out, row.pid()), (50, 50, Some(std::process::id())));
    }
    let rows = trace.rows(Protocol::Udp, s);
    assert_eq!(rows.len(), 2, "{rows:#?}");
    assert_eq!(rows[0].socket, rows[1].socket);
    let of_sender = |t: &&tcptop::Transfer| {
        t.connection.key.protocol == Protocol::Udp && t.connection.key.local_port == s
    };
    let per_flow: u64 = trace.transfers().filter(of_sender).map(|t| t.bytes).sum();
    assert_eq!(per_flow, 50 * (111 + 222 + 20), "what is new adds up to the totals");
}

/// Four threads send on one socket to two peers, through many intervals: what is new adds up to the totals, and both to
/// what was sent. A kernel that preempts threads in the middle of programs may skip both programs on a hook: then what
/// is missing must be counted as lost.
#[test]
fn threads_on_one_socket_add_up() {
    let each: u64 = if is_slow() { 500 } else { 20_000 };
    let often = Granularity::Interval(Duration::from_millis(5));
    let mut trace = Trace::with(builder().granularity(often));
    let (sender, s) = bound("0.0.0.0:0");
    let peers = [bound("127.0.0.1:0"), bound("127.0.0.1:0")];
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..each {
                    let to = ("127.0.0.1", peers[n as usize % 2].1);
                    assert_eq!(sender.send_to(&[1; 10], to).unwrap(), 10);
                }
            });
        }
    });
    trace.stop();
    let mut missing = 0;
    for (_, r) in &peers {
        let row = trace.udp_flow(s, *r).expect("a row");
        missing += 2 * each - row.packets_out;
        assert_eq!(row.bytes_out, row.packets_out * 10);
        let of_flow = |t: &&Transfer| t.connection.key.remote_port == *r;
        let transfers = trace.transfers().filter(|t| t.connection.key.local_port == s);
        assert_eq!(transfers.filter(of_flow).map(|t| t.bytes).sum::<u64>(), row.bytes_out);
    }
    let stats = trace.collector.stats();
    assert!(missing <= stats.lost(EventKind::UdpSend, LossPlace::Hook), "{missing} missing: {stats:?}");
}

/// Two processors send the first datagrams of a socket at the same time: each finds that nothing is known of it yet. Half of
/// the sockets send both to one peer, the others to two.
#[test]
fn first_datagrams_sent_at_the_same_time_all_count() {
    let sockets: Vec<_> = (0..if is_slow() { 50 } else { 400 }).map(|_| bound("127.0.0.1:0")).collect();
    let peers = [bound("127.0.0.1:0"), bound("127.0.0.1:0")];
    let peer_of = |socket: usize, thread: usize| peers[thread * (socket % 2)].1;
    let mut trace = Trace::fresh();
    // Not a `Barrier`: who waits there has to be woken, and comes too late.
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        for t in 0..peers.len() {
            let (sockets, arrived, peer_of) = (&sockets, &arrived, &peer_of);
            scope.spawn(move || {
                for (n, (socket, _)) in sockets.iter().enumerate() {
                    arrived.fetch_add(1, SeqCst);
                    while arrived.load(SeqCst) < 2 * (n + 1) {
                        std::hint::spin_loop();
                    }
                    assert_eq!(socket.send_to(&[1; 10], ("127.0.0.1", peer_of(n, t))).unwrap(), 10);
                }
            });
        }
    });
    trace.stop();
    let mut missing = 0;
    for (n, (_, local)) in sockets.iter().enumerate() {
        let flows = if n % 2 == 0 { &peers[..1] } else { &peers[..] };
        let each = 2 / flows.len() as u64;
        for (_, r) in flows {
            let sent = trace.udp_flow(*local, *r).map_or(0, |row| row.packets_out);
            assert!(sent <= each, "{n}: {:#?}", trace.rows(Protocol::Udp, *local));
            missing += each - sent;
        }
    }
    let stats = trace.collector.stats();
    assert_eq!(lost_by_us(&stats), 0, "{missing} missing: {stats:?}");
    assert!(missing <= stats.lost(EventKind::UdpSend, LossPlace::Hook), "{missing} missing: {stats:?}");
}

/// Each socket has one end: one that has moved something, and one that has only been listed. (A second program on a hook must
/// find that the first one has told it.)
#[test]
fn a_socket_ends_once() {
    let mut trace = Trace::start();
    let (_receiver, r) = bound("127.0.0.1:0");
    let sockets: Vec<_> = ["127.0.0.1:0", "[::1]:0"].iter().cycle().take(20).map(|at| bound(at)).collect();
    trace.collector.bootstrap_existing().unwrap();
    for (socket, _) in sockets.iter().step_by(4) {
        assert_eq!(socket.send_to(&[1; 10], ("127.0.0.1", r)).unwrap(), 10);
    }
    let ports: Vec<_> = sockets.into_iter().map(|(_, port)| port).collect();
    // Where sockets have no ids, nobody can be told of the end of one that did nothing.
    let is_told = |n: &usize| n.is_multiple_of(4) || trace.sees(Feature::SocketCookie) == Visibility::Exact;
    let told: Vec<_> = (0..ports.len()).filter(is_told).map(|n| ports[n]).collect();
    let ends = |t: &Trace, port: u16| {
        let closed = t.seen.iter().filter(|e| matches!(e, CollectorEvent::Closed(_)));
        let keys = closed.filter_map(|e| e.connection()).map(|c| c.key);
        keys.filter(|key| key.protocol == Protocol::Udp && key.local_port == port).count()
    };
    trace.until("all ends", |t| told.iter().all(|&port| ends(t, port) > 0).then_some(()));
    trace.listen(AFTERMATH);
    assert!(ports.iter().all(|&port| ends(&trace, port) <= 1), "{:#?}", trace.seen);
}

/// Looks at a flow until it has ended, which it must when nothing was heard of it for so long, and not before.
fn wait_for_silence(trace: &mut Trace, local: u16, remote: u16, idle: Duration) {
    loop {
        let now = KernelTime::now();
        trace.table.snapshot(now);
        let row = trace.udp_flow(local, remote).expect("a row");
        assert_eq!(row.is_closed, now.saturating_since(row.last_seen) >= idle);
        if row.is_closed {
            return;
        }
        trace.listen(Duration::from_millis(20));
    }
}

/// A silent flow ends after as long as the table was told, and goes on with the next datagram, until its socket is closed.
#[test]
fn a_silent_flow_ends_and_goes_on() {
    const IDLE: Duration = Duration::from_millis(500);
    let mut trace = Trace::start();
    trace.table = ConnectionTable::new().linger(Duration::MAX).udp_idle(IDLE);
    let ((sender, s), (_receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    for total in [10, 20, 30] {
        sender.send_to(&[1; 10], ("127.0.0.1", r)).unwrap();
        assert!(!trace.udp(s, r, 0, total).is_closed, "{total}");
        if total < 30 {
            wait_for_silence(&mut trace, s, r, IDLE);
        }
    }
    drop(sender);
    trace.until("the end of its socket", |t| t.udp_flow(s, r).filter(|row| row.is_closed));
    assert_eq!(trace.rows(Protocol::Udp, s).len(), 1);
}

/// 50: peeked at, then received: once.
#[test]
fn a_peek_counts_nothing() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.send_to(&[1; 111], ("127.0.0.1", r)).unwrap();
    assert_eq!(receiver.peek_from(&mut [0; 200]).unwrap().0, 111);
    receive_from(&receiver, 111);
    drop((sender, receiver));
    trace.udp(s, r, 0, 111);
    let row = trace.udp(r, s, 111, 0);
    assert_eq!(row.packets_in, 1);
}

/// 52: an IPv6 socket sends 44 bytes to an IPv4 address: once, and shown as IPv4.
#[test]
fn ipv4_on_an_ipv6_socket_counts_once() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("[::]:0"), bound("127.0.0.1:0"));
    sender.send_to(&[1; 44], ("::ffff:127.0.0.1", r)).unwrap();
    receive_from(&receiver, 44);
    sender.connect(("::ffff:127.0.0.1", r)).unwrap();
    assert_eq!(send(&sender, &[1; 44], 0), 44);
    receive_from(&receiver, 44);
    let row = trace.udp(s, r, 0, 88);
    assert_eq!(row.packets_out, 2);
    assert!(row.key.local_addr.is_ipv4() && row.key.remote_addr.is_ipv4(), "{}", row.key);
    trace.udp(r, s, 88, 0);
}

/// IPv6 proper, connected and not.
#[test]
fn ipv6_is_ipv6() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("[::1]:0"), bound("[::1]:0"));
    sender.send_to(&[1; 33], ("::1", r)).unwrap();
    receive_from(&receiver, 33);
    sender.connect(("::1", r)).unwrap();
    assert_eq!(send(&sender, &[1; 34], 0), 34);
    receive_from(&receiver, 34);
    let row = trace.udp(s, r, 0, 67);
    assert_eq!(row.key.to_string(), format!("udp [::1]:{s} -> [::1]:{r}"));
    trace.udp(r, s, 67, 0);
}

/// 57: a receive that does not ask for the address: the peer is known, except where the table allows less.
#[test]
fn receiving_without_asking_who() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.send_to(&[1; 55], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 100, 0), 55);
    let lesser = answer(57, trace.backend()) == Answer::Lesser;
    let row = trace.udp(r, if lesser { 0 } else { s }, 55, 0);
    assert_eq!(row.key.remote_addr.is_unspecified(), lesser, "{}", row.key);
    match trace.sees(Feature::UdpRecvPeer) {
        Visibility::Exact => assert!(!lesser, "documented as exact"),
        Visibility::Limited(how) => assert!(lesser && how.contains("does not ask"), "{how}"),
        unseen => panic!("{unseen}"),
    }
}

/// 60: IPv4 traffic on a TCP listener at [::] shows IPv4 addresses.
#[test]
fn ipv4_on_an_ipv6_listener_is_shown_as_ipv4() {
    let mut trace = Trace::start();
    let listener = std::net::TcpListener::bind("[::]:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let client = std::net::TcpStream::connect(("127.0.0.1", l)).unwrap();
    let (server, peer) = listener.accept().unwrap();
    let c = peer.port();
    assert_eq!(send(&client, &[1; 60], 0), 60);
    assert_eq!(recv(&server, 60, 0), 60);
    drop((client, server));
    let row = trace.closed(l, c);
    assert_eq!(row.key.to_string(), format!("tcp 127.0.0.1:{l} -> 127.0.0.1:{c}"));
    assert_eq!(row.bytes_in, 60);
}

/// 60: the same over UDP: 61 bytes to a socket at [::], 62 back, IPv4 addresses on both rows.
#[test]
fn ipv4_on_an_ipv6_receiver_is_shown_as_ipv4() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("[::]:0"));
    sender.send_to(&[1; 61], ("127.0.0.1", r)).unwrap();
    let (n, from) = receiver.recv_from(&mut [0; 100]).unwrap();
    assert_eq!((n, from.ip().to_string().as_str()), (61, "::ffff:127.0.0.1"));
    receiver.send_to(&[1; 62], from).unwrap();
    receive_from(&sender, 62);
    let row = trace.udp(r, s, 61, 62);
    assert_eq!(row.key.remote_addr.to_string(), "127.0.0.1");
    assert!(row.key.local_addr.is_ipv4(), "{}", row.key);
    assert_eq!((row.packets_in, row.packets_out), (1, 1));
    trace.udp(s, r, 62, 61);
    assert_eq!(trace.rows(Protocol::Udp, r).len(), 1);
}

/// A send that fails counts nothing.
#[test]
fn a_send_that_fails_counts_nothing() {
    let mut trace = Trace::start();
    let ((sender, s), (_receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.connect(("127.0.0.1", r)).unwrap();
    let too_long = send(&sender, &vec![1; 70_000], 0);
    assert_eq!(too_long, -(libc::EMSGSIZE as isize));
    assert_eq!(send(&sender, &[1; 40], 0), 40);
    trace.udp(s, r, 0, 40);
}

/// An ICMP echo on a raw socket: of the same address family, and neither TCP nor UDP.
fn ping() {
    // SAFETY: makes a socket of our own.
    let raw =
        unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)) };
    assert_eq!(connect(&raw, &sockaddr([127, 0, 0, 1], 0)), 0);
    // Type 8, checksum of the message by RFC 1071.
    assert_eq!(send(&raw, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0], 0), 8);
    // With the header of IP: our own request, as raw sockets see it.
    assert_eq!(recv(&raw, 100, 0), 28);
}

/// One SCTP association with 33 bytes, where the kernel has SCTP.
fn sctp() {
    let open = || socket_of(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP);
    let listener = match open() {
        Ok(listener) => TcpListener::from(listener),
        Err(e) => {
            assert_eq!(e, -(libc::EPROTONOSUPPORT as isize));
            return absent(47, "a kernel without SCTP");
        }
    };
    // SAFETY: our own socket, and no memory.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
    let to = listener.local_addr().unwrap().port();
    let client = open().unwrap();
    assert_eq!(connect(&client, &sockaddr([127, 0, 0, 1], to)), 0);
    let (server, _) = listener.accept().unwrap();
    assert_eq!((send(&client, &[1; 33], 0), recv(&server, 33, 0)), (33, 33));
}

/// 47: traffic of other families and protocols (AF_UNIX, netlink, ICMP, SCTP) makes no events.
#[test]
fn other_families_make_no_events() {
    let mut trace = Trace::per_call();
    let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    one.send(&[1; 100]).unwrap();
    other.recv(&mut [0; 100]).unwrap();
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!((send(&client, &[1; 100], 0), recv(&server, 100, 0)), (100, 100));
    // SAFETY: makes, uses and closes a socket of our own.
    unsafe {
        let netlink = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        assert!(netlink >= 0);
        assert_eq!(libc::send(netlink, [0_u8; 16].as_ptr().cast(), 16, 0), 16);
        libc::close(netlink);
    }
    ping();
    sctp();
    // A marker of our own: what comes before it is all there is.
    let ((sender, s), (_receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    sender.send_to(&[1; 9], ("127.0.0.1", r)).unwrap();
    trace.udp(s, r, 0, 9);
    let me = Some(std::process::id());
    let mine = |e: &&CollectorEvent| e.connection().is_some_and(|c| c.owner.map(|o| o.pid) == me);
    let others: Vec<_> =
        trace.seen.iter().filter(mine).filter(|e| crate::harness::ports(e) != (s, r)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// A look at an empty datagram, which moves it as little as a look at any other.
#[test]
fn peeking_at_nothing_counts_nothing() {
    let mut trace = Trace::start();
    let ((sender, s), (receiver, r)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    receiver.connect(("127.0.0.1", s)).unwrap();
    assert_eq!(sender.send_to(&[], ("127.0.0.1", r)).unwrap(), 0);
    for flags in [libc::MSG_PEEK, libc::MSG_PEEK, 0] {
        assert_eq!(recv(&receiver, 9, flags), 0);
    }
    sender.send_to(&[1; 7], ("127.0.0.1", r)).unwrap();
    assert_eq!(recv(&receiver, 9, 0), 7);
    assert_eq!(trace.udp(r, s, 7, 0).packets_in, 2);
}
