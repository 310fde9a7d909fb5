// SPDX-License-Identifier: MIT OR Apache-2.0
//! Segments that are sent again, in a network that loses all of them for a while.

use crate::harness::{PATIENCE, Trace, builder, ports};
use crate::net::{
    Child, connect, enter_own_network, get_option, hear, port, recv, run, send, sockaddr, socket, tell,
};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, Granularity, Retransmit, TcpState};

const LISTENS: u16 = 7301;
const SILENT: u16 = 7302;
/// What a socket takes while nothing is acknowledged: older kernels give it a buffer of some 40 kB.
const BYTES: usize = 20_000;

/// tcpi_total_retrans, at byte 100 of struct tcp_info (include/uapi/linux/tcp.h).
fn total_retrans(socket: &impl AsRawFd) -> u32 {
    let info: [u32; 64] = get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO);
    info[25]
}

fn wait_for_retransmits(socket: &impl AsRawFd, least: u32) {
    let deadline = Instant::now() + PATIENCE;
    while total_retrans(socket) < least {
        assert!(Instant::now() < deadline, "nothing is sent again");
        thread::sleep(Duration::from_millis(20));
    }
}

/// In a network that carries nothing for a while: a connection that then goes on, and a connect without an answer. Tells
/// its ports, and what TCP_INFO says.
fn lose_segments(parent: &mut UnixStream) {
    enter_own_network();
    run("ip link set lo mtu 1500");
    let listener = TcpListener::bind(("127.0.0.1", LISTENS)).unwrap();
    let client = TcpStream::connect(("127.0.0.1", LISTENS)).unwrap();
    let (server, _) = listener.accept().unwrap();
    run("tc qdisc add dev lo root blackhole");
    assert_eq!(send(&client, &[1; BYTES], 0), BYTES as isize);
    let silent = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    assert_eq!(connect(&silent, &sockaddr([127, 0, 0, 1], SILENT)), -(libc::EINPROGRESS as isize));
    wait_for_retransmits(&client, 2);
    wait_for_retransmits(&silent, 1);
    tell(parent, total_retrans(&silent).into());
    drop(silent);
    run("tc qdisc del dev lo root");
    assert_eq!(recv(&server, BYTES, libc::MSG_WAITALL), BYTES as isize);
    tell(parent, port(&client).into());
    // The last acknowledgement may be on its way.
    thread::sleep(Duration::from_millis(100));
    tell(parent, total_retrans(&client).into());
    drop((client, server));
    hear(parent);
}

fn retransmits(trace: &Trace, remote: u16) -> Vec<Retransmit> {
    let of_ours = trace.seen.iter().filter(|event| ports(event).1 == remote);
    let retransmit =
        |event: &CollectorEvent| if let CollectorEvent::TcpRetransmit(r) = event { Some(*r) } else { None };
    of_ours.filter_map(retransmit).collect()
}

/// The segments of all events are as many as the kernel has counted, with each in order.
fn check(events: &[Retransmit], state: TcpState, pid: u32, counted: u32) {
    let mut total = 0;
    for event in events {
        total += event.segments;
        assert_eq!((event.total_segments, event.state), (total, state), "{events:#?}");
        assert_eq!(event.connection.owner.map(|owner| owner.pid), Some(pid));
    }
    assert_eq!(total, counted, "{events:#?}");
}

/// 94: what is sent again is told with its state and process, and adds up to TCP_INFO.
#[test]
fn segments_that_are_sent_again_add_up_to_tcp_info() {
    for granularity in [Granularity::default(), Granularity::PerCall] {
        let mut trace = Trace::with(builder().granularity(granularity).retransmits(true));
        let mut child = Child::fork(lose_segments);
        let of_syn = child.hear() as u32;
        let c = child.hear() as u16;
        let of_data = child.hear() as u32;
        child.tell(1);
        let pid = child.pid;
        child.wait();
        let row = trace.closed(c, LISTENS);
        assert_eq!((row.bytes_out, row.retransmits), (BYTES as u64, Some(of_data)));
        check(&retransmits(&trace, LISTENS), TcpState::Established, pid, of_data);
        check(&retransmits(&trace, SILENT), TcpState::SynSent, pid, of_syn);
        assert!(of_syn >= 1 && of_data >= 2);
    }
}

/// Nobody has asked for them.
#[test]
fn by_default_retransmissions_are_only_counted() {
    let mut trace = Trace::start();
    let mut child = Child::fork(lose_segments);
    let (_, c, of_data) = (child.hear(), child.hear() as u16, child.hear() as u32);
    child.tell(1);
    child.wait();
    assert_eq!(trace.closed(c, LISTENS).retransmits, Some(of_data));
    assert!(retransmits(&trace, LISTENS).is_empty() && retransmits(&trace, SILENT).is_empty());
}
