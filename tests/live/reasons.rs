// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events of a connection's life: opened, failed, closed, and why.

use crate::harness::{Trace, ports};
use crate::net::{
    Child, connect, enter_own_network, get_option, hear, port, recv, reset, run, send, set_option, sockaddr,
    socket, tcp_pair, tell,
};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tcptop::{CloseReason, Closed, CollectorEvent, ConnectFailed, ConnectFailure, Opened, Role, TcpState};

fn opened(trace: &Trace, local: u16, remote: u16) -> Vec<Opened> {
    let of_ours = trace.seen.iter().filter(|event| ports(event) == (local, remote));
    of_ours.filter_map(|event| if let CollectorEvent::Opened(o) = event { Some(*o) } else { None }).collect()
}

fn closed(trace: &Trace, local: u16, remote: u16) -> Vec<Closed> {
    let of_ours = trace.seen.iter().filter(|event| ports(event) == (local, remote));
    of_ours.filter_map(|event| if let CollectorEvent::Closed(c) = event { Some(*c) } else { None }).collect()
}

pub(crate) fn failed(trace: &Trace, remote: u16) -> Vec<ConnectFailed> {
    let of_ours = trace.seen.iter().filter(|event| ports(event).1 == remote);
    let failed =
        |event: &CollectorEvent| if let CollectorEvent::ConnectFailed(f) = event { Some(*f) } else { None };
    of_ours.filter_map(failed).collect()
}

/// The only opening and the only end of a connection, some time after both.
pub(crate) fn life(trace: &mut Trace, local: u16, remote: u16) -> (Opened, Closed) {
    trace.closed(local, remote);
    trace.listen(Duration::from_millis(100));
    let (opened, closed) = (opened(trace, local, remote), closed(trace, local, remote));
    assert_eq!((opened.len(), closed.len()), (1, 1), "{opened:?} {closed:?}");
    assert_eq!(opened[0].connection.since, closed[0].connection.since);
    (opened[0], closed[0])
}

/// Members of struct tcp_info, include/uapi/linux/tcp.h: tcpi_total_retrans at byte 100, tcpi_segs_out and tcpi_segs_in
/// at 136, tcpi_min_rtt at 148.
fn tcp_info(socket: &TcpStream) -> [u32; 64] {
    get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// One side connects, the other accepts, both say goodbye: each is opened once and closed once, and what is said of the
/// whole connection is what the kernel and the clock say.
#[test]
fn an_orderly_connection_is_opened_once_and_closed_once() {
    let mut trace = Trace::start();
    let before = Instant::now();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let begun = Instant::now();
    assert_eq!((send(&client, &[1; 700], 0), recv(&server, 700, libc::MSG_WAITALL)), (700, 700));
    std::thread::sleep(Duration::from_millis(60));
    let (info, least) = (tcp_info(&client), begun.elapsed());
    drop(client);
    assert_eq!(recv(&server, 1, 0), 0);
    drop(server);
    let (opening, end) = life(&mut trace, c, s);
    assert_eq!((opening.role, life(&mut trace, s, c).0.role), (Role::Client, Role::Server));
    assert_eq!((end.reason, end.error), (Some(CloseReason::Orderly), None));
    assert_eq!(life(&mut trace, s, c).1.reason, Some(CloseReason::Orderly));
    let duration = end.duration.expect("its begin was seen");
    assert!(
        duration >= least && duration <= before.elapsed(),
        "{least:?} {duration:?} {:?}",
        before.elapsed()
    );
    let min_rtt = end.min_rtt.expect("there was a sample").as_micros() as u32;
    assert!(min_rtt <= info[37] && min_rtt > 0, "{min_rtt} {}", info[37]);
    assert_eq!((end.retransmits, info[25]), (0, 0));
    // The FIN, and what it is answered with, come on top.
    let more = [end.totals.packets_out - u64::from(info[34]), end.totals.packets_in - u64::from(info[35])];
    assert!(more.iter().all(|more| (1..=3).contains(more)), "{more:?}");
    assert_eq!((end.totals.bytes_out, end.totals.bytes_in), (700, 0));
}

/// Who breaks off has aborted, the other side was reset: by SO_LINGER without time, and by a close with unread data.
#[test]
fn who_breaks_off_aborts_and_the_other_side_is_reset() {
    let mut trace = Trace::start();
    for unread in [0, 300] {
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        if unread > 0 {
            assert_eq!(send(&client, &vec![1; unread], 0), unread as isize);
            drop(server);
        } else {
            reset(server);
        }
        let ended = trace.until("the reset", |t| t.states(c).last().and_then(|state| state.error));
        assert_eq!(ended, libc::ECONNRESET);
        drop(client);
        let (client, server) = (life(&mut trace, c, s).1, life(&mut trace, s, c).1);
        assert_eq!((client.reason, client.error), (Some(CloseReason::Reset), Some(libc::ECONNRESET)));
        assert_eq!(server.reason, Some(CloseReason::Aborted), "{unread} unread");
    }
}

/// The connections of a socket that another process destroys, as `ss -K` does, stay those of their owners.
#[test]
fn who_destroys_a_socket_does_not_own_it() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    run(&format!("ss -tnK sport = :{c} >/dev/null"));
    assert_eq!(send(&client, &[1], 0), -(libc::ECONNABORTED as isize));
    drop((client, server));
    let end = life(&mut trace, c, s).1;
    assert_eq!((end.reason, end.error), (Some(CloseReason::Aborted), Some(libc::ECONNABORTED)));
    let me = Some(std::process::id());
    let owners: Vec<_> = trace.seen.iter().filter(|e| ports(e) == (c, s)).map(|e| e.connection()).collect();
    assert!(owners.iter().all(|info| info.and_then(|i| i.owner).map(|o| o.pid) == me), "{owners:#?}");
    assert!(
        trace.transfers().filter(|t| t.connection.key.local_port == c).all(|t| t.actor.map(|a| a.pid) == me)
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    run(&format!("ss -ltnK sport = :{l} >/dev/null"));
    let end = trace.until("its end", |t| {
        t.states(l).last().map(|change| **change).filter(|change| change.new_state == TcpState::Close)
    });
    assert_eq!(end.connection.owner.map(|owner| owner.pid), me);
}

/// A client breaks off before the server has accepted: accept() hands out what has ended already, with the bytes that
/// came before. It was reset, once.
#[test]
fn what_is_reset_before_it_is_accepted_was_reset() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", l)).unwrap();
    let c = port(&client);
    assert_eq!(send(&client, &[1; 40], 0), 40);
    reset(client);
    let end = trace.until("CLOSE at the server", |t| {
        let mut changes = t.states(l).into_iter().filter(|change| change.connection.key.remote_port == c);
        changes.find(|change| change.new_state == TcpState::Close).copied()
    });
    assert_eq!((end.old_state, end.error), (TcpState::Established, Some(libc::ECONNRESET)));
    let (server, peer) = listener.accept().unwrap();
    assert_eq!((peer.port(), recv(&server, 100, 0)), (c, 40), "what had come is still there");
    assert_eq!(recv(&server, 1, 0), -(libc::ECONNRESET as isize));
    drop(server);
    let (client, server) = (life(&mut trace, c, l).1, life(&mut trace, l, c).1);
    assert_eq!((client.reason, client.totals.bytes_out), (Some(CloseReason::Aborted), 40));
    assert_eq!((server.reason, server.error), (Some(CloseReason::Reset), Some(libc::ECONNRESET)));
    assert_eq!(server.totals.bytes_in, 40);
}

/// 26: in a network that has stopped to carry anything: an established connection times out after it has tried again, a
/// connect that is given up is aborted, one that waits to the end times out. No end is reported for what never opened.
#[test]
fn silence_is_told_apart_from_giving_up() {
    const OLD: u16 = 7101;
    const NEW: u16 = 7102;
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1").unwrap();
        let listener = TcpListener::bind(("127.0.0.1", OLD)).unwrap();
        let client = TcpStream::connect(("127.0.0.1", OLD)).unwrap();
        let (_server, _) = listener.accept().unwrap();
        run("tc qdisc add dev lo root blackhole");
        set_option(&client, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 600_u32);
        assert_eq!(send(&client, &[1; 50], 0), 50);
        tell(parent, port(&client).into());
        let given_up = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        let begun = Instant::now();
        assert_eq!(connect(&given_up, &sockaddr([127, 0, 0, 1], NEW)), -(libc::EINPROGRESS as isize));
        std::thread::sleep(Duration::from_millis(60));
        drop(given_up);
        tell(parent, begun.elapsed().as_micros() as u64);
        let silent = socket(libc::AF_INET, libc::SOCK_STREAM);
        let begun = Instant::now();
        assert_eq!(connect(&silent, &sockaddr([127, 0, 0, 1], NEW)), -(libc::ETIMEDOUT as isize));
        tell(parent, begun.elapsed().as_micros() as u64);
        assert_eq!(recv(&client, 1, 0), -(libc::ETIMEDOUT as isize));
        tell(parent, u64::from(tcp_info(&client)[25]));
        hear(parent);
    });
    let c = child.hear() as u16;
    let waits = [child.hear(), child.hear()].map(Duration::from_micros);
    let retransmits = child.hear();
    child.tell(1);
    let pid = child.pid;
    child.wait();
    let end = life(&mut trace, c, OLD).1;
    assert_eq!((end.reason, end.error), (Some(CloseReason::TimedOut), Some(libc::ETIMEDOUT)));
    assert!(
        retransmits > 0 && u64::from(end.retransmits) == retransmits,
        "{} {retransmits}",
        end.retransmits
    );
    assert_eq!((end.totals.bytes_out, end.connection.owner.map(|o| o.pid)), (50, Some(pid)));
    let failures = trace.until("two failures", |t| Some(failed(t, NEW)).filter(|f| f.len() == 2));
    let reasons = failures.iter().map(|f| (f.reason, f.error)).collect::<Vec<_>>();
    assert_eq!(reasons, [(ConnectFailure::Aborted, None), (ConnectFailure::TimedOut, Some(libc::ETIMEDOUT))]);
    // By the program's own clock; one second and two more are what the kernel waits for answers to two SYNs.
    let least = [60, 2_900].map(Duration::from_millis);
    for ((failure, waited), least) in failures.into_iter().zip(waits).zip(least) {
        let lasted = failure.duration.expect("its begin was seen");
        assert!(lasted >= least && lasted <= waited, "{least:?} {lasted:?} {waited:?}");
        let info = failure.connection;
        assert_eq!(info.owner.map(|o| o.pid), Some(pid));
        assert_ne!(info.key.local_port, 0);
        assert!(closed(&trace, info.key.local_port, NEW).is_empty());
    }
}
