// SPDX-License-Identifier: MIT OR Apache-2.0
//! What works, and what is told, where the kernel refuses a part.

use crate::collector::{bpf_objects, nothing_left_but};
use crate::fault_injection::{
    ITERATORS, NETLINK, Refused, with_capabilities, without, without_cap_sys_admin, without_program,
};
use crate::harness::{Trace, builder, skipped};
use crate::net::{Child, enter_own_network, hear, port, recv, send, tcp_pair, tell};
use std::net::UdpSocket;
use tcptop::{
    Backend, Bootstrap, Capabilities, ConnectionRecord, EventKind, Feature, Granularity,
    LinuxCollectorBuilder, Visibility,
};

/// The row of a TCP connection, if it was found.
fn row(found: &[ConnectionRecord], local: u16, remote: u16) -> Option<&ConnectionRecord> {
    found.iter().find(|row| (row.key.local_port, row.key.remote_port) == (local, remote))
}

/// What is said about existing connections: the way, and its limits. Not those of this machine, which may hide a process
/// from everybody (a sandbox its first one).
fn told(trace: &Trace) -> (Bootstrap, Vec<String>) {
    let limits = match trace.sees(Feature::Existing) {
        Visibility::Exact => Vec::new(),
        Visibility::Limited(limits) => limits.split("; ").map(str::to_owned).collect(),
        other => panic!("{other:?}"),
    };
    let hidden = |limit: &String| limit.starts_with("processes whose network namespace is not shown: ");
    (trace.capabilities().bootstrap(), limits.into_iter().filter(|limit| !hidden(limit)).collect())
}

/// Existing connections are found without sock_diag, their owners without an iterator; which way it was is told, and why.
#[test]
fn each_way_to_find_connections_is_followed_by_the_next_and_told() {
    let trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!((send(&client, &[1; 90], 0), recv(&server, 90, 0)), (90, 90));
    let look = || {
        let found = trace.collector.bootstrap_existing().unwrap();
        let row = row(&found, c, s).expect("it is found in every way");
        assert_eq!(row.pid(), Some(std::process::id()));
        (row.is_partial, row.bytes_out)
    };
    assert_eq!(look(), (false, 90));
    assert_eq!(told(&trace), (Bootstrap::SockDiag, Vec::new()));

    assert_eq!(without(&[ITERATORS], look), (false, 90));
    let (way, limits) = told(&trace);
    assert_eq!((way, limits.len()), (Bootstrap::SockDiag, 1), "{limits:?}");
    assert!(limits[0].starts_with("owners out of /proc: an iterator cannot begin"), "{limits:?}");

    assert_eq!(without(&[NETLINK], look), (true, 0));
    let (way, limits) = told(&trace);
    assert_eq!((way, limits.len()), (Bootstrap::Procfs, 2), "{limits:?}");
    assert_eq!(limits[0], "out of /proc, without totals");
    assert!(limits[1].starts_with("sock_diag: "), "{limits:?}");

    assert_eq!(without(&[ITERATORS, NETLINK], look), (true, 0));
    let (way, limits) = told(&trace);
    assert_eq!((way, limits.len()), (Bootstrap::Procfs, 3), "{limits:?}");

    assert_eq!(look(), (false, 90));
    assert_eq!(told(&trace), (Bootstrap::SockDiag, Vec::new()), "it is what the latest call has found");
}

/// A started collector that was stopped says what is left to it.
#[test]
fn after_the_stop_there_is_no_iterator_and_that_is_told() {
    let mut trace = Trace::fresh();
    let (client, server) = tcp_pair();
    trace.stop();
    assert_eq!(told(&trace), (Bootstrap::SockDiag, vec!["not searched for yet".into()]));
    let found = trace.collector.bootstrap_existing().unwrap();
    assert!(row(&found, port(&client), port(&server)).is_some());
    let limit = "owners out of /proc: the iterator is only there while the collector runs".to_owned();
    assert_eq!(told(&trace), (Bootstrap::SockDiag, vec![limit]));
}

/// Who may not enter network namespaces learns how many there are beside its own.
#[test]
fn network_namespaces_that_cannot_be_entered_are_counted() {
    let mut child = Child::fork(|parent| {
        enter_own_network();
        let (client, server) = tcp_pair();
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
        hear(parent);
    });
    let (c, s) = (child.hear() as u16, child.hear() as u16);
    let trace = Trace::start();
    let look = || row(&trace.collector.bootstrap_existing().unwrap(), c, s).is_some();
    assert!(look());
    assert_eq!(told(&trace), (Bootstrap::SockDiag, Vec::new()));
    assert!(!without_cap_sys_admin(look));
    let (way, limits) = told(&trace);
    assert_eq!((way, limits.len()), (Bootstrap::SockDiag, 1), "{limits:?}");
    let count = limits[0].strip_prefix("network namespaces that cannot be entered: ").expect(&limits[0]);
    let count: u32 = count.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= 1, "{limits:?}");
    assert!(look());
    assert_eq!(told(&trace), (Bootstrap::SockDiag, Vec::new()));
    child.tell(1);
    child.wait();
}

/// Debian's kernels have a level of their own, 3, at which perf_event_open(2), and with it kprobes, asks for CAP_SYS_ADMIN.
/// It is lower while this is there.
struct Paranoid(String);

impl Paranoid {
    const PATH: &str = "/proc/sys/kernel/perf_event_paranoid";

    fn lower() -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap();
        std::fs::write(Self::PATH, "2").unwrap();
        Self(before)
    }
}

impl Drop for Paranoid {
    fn drop(&mut self) {
        std::fs::write(Self::PATH, &self.0).unwrap();
    }
}

/// The capabilities that the documentation names are enough; without the one that only cgroup programs need the rest
/// works, and what is missing is told.
#[test]
fn the_documented_capabilities_are_enough() {
    // include/uapi/linux/capability.h
    let [bpf, perfmon, net_admin] = [39, 38, 12].map(|bit| 1 << bit);
    let usual = Trace::start().capabilities();
    let _paranoid = (usual.backend() == Backend::Kprobe).then(Paranoid::lower);
    let peers = [Feature::UdpSendPeer, Feature::UdpRecvPeer, Feature::UdpClose];
    for (which, has_peers) in [(bpf | perfmon | net_admin, true), (bpf | perfmon, false)] {
        with_capabilities(
            |all| all & which,
            || {
                let mut trace = Trace::with(builder());
                let can = trace.capabilities();
                assert_eq!(can.backend(), usual.backend());
                for feature in Feature::ALL.into_iter().filter(|&feature| feature != Feature::Existing) {
                    let is_lost =
                        !has_peers && peers.contains(&feature) && can.backend() == Backend::Tracepoint;
                    match can.visibility(feature) {
                        seen if !is_lost => assert_eq!(seen, usual.visibility(feature), "{feature:?}"),
                        seen => assert_ne!(seen, usual.visibility(feature), "{feature:?}"),
                    }
                }
                let says_why = can.missing_programs().iter().any(|m| m.reason.contains("CAP_NET_ADMIN"));
                assert_eq!(says_why, !has_peers && can.backend() == Backend::Tracepoint, "{can:?}");
                let (client, server) = tcp_pair();
                let (c, s) = (port(&client), port(&server));
                assert_eq!((send(&client, &[1; 60], 0), recv(&server, 60, 0)), (60, 60));
                let found = trace.collector.bootstrap_existing().unwrap();
                assert!(row(&found, c, s).is_some_and(|row| row.bytes_out == 60));
                drop((client, server));
                assert_eq!((trace.closed(c, s).bytes_out, trace.closed(s, c).bytes_in), (60, 60));
            },
        );
    }
}

/// A daemon starts as root and then becomes another user. What it has attached goes on, and no report that waits in the
/// kernel meanwhile is lost or torn.
#[test]
fn who_gives_up_privileges_after_the_start_loses_nothing() {
    gives_up_privileges(builder());
}

/// What its ring has no room for is seen as before, and waits.
#[test]
fn who_gives_up_privileges_after_the_start_sees_losses() {
    assert!(gives_up_privileges(builder().granularity(Granularity::PerCall).ring_bytes(1)) > 0);
}

/// Moves bytes after that, and checks what was told of them. Returns how many records found no room in the ring.
fn gives_up_privileges(configured: LinuxCollectorBuilder) -> u64 {
    const DATAGRAMS: u64 = 3000;
    let mut daemon = Child::fork(|parent| {
        let mut trace = Trace::with(configured);
        // SAFETY: of all threads. The groups first: the user that comes then may not change them.
        unsafe {
            assert_eq!(libc::setresgid(65_534, 65_534, 65_534), 0);
            assert_eq!(libc::setresuid(65_534, 65_534, 65_534), 0);
        }
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [f, t] = [&from, &to].map(|socket| socket.local_addr().unwrap());
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        for _ in 0..DATAGRAMS {
            from.send_to(&[1; 10], t).unwrap();
            assert_eq!(to.recv_from(&mut [0; 20]).unwrap(), (10, f));
            assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
        }
        drop((client, server));
        assert_eq!(trace.closed(c, s).bytes_out, 10 * DATAGRAMS);
        trace.stop();
        let (sent, received) = (trace.udp_flow(f.port(), t.port()), trace.udp_flow(t.port(), f.port()));
        let missing = 20 * DATAGRAMS - sent.unwrap().bytes_out - received.unwrap().bytes_in;
        let stats = trace.collector.stats();
        let skipped_udp = skipped(&stats, &[EventKind::UdpSend, EventKind::UdpRecv]);
        assert!(missing <= 10 * skipped_udp, "{missing} bytes missing: {stats:?}");
        let mut states = trace.states(c);
        states.sort_by_key(|change| change.connection.time);
        let is_whole = states.windows(2).all(|pair| pair[0].new_state == pair[1].old_state);
        assert!(is_whole || skipped(&stats, &[EventKind::TcpStateChange]) > 0, "{states:#?}");
        let of_tcp: u64 =
            trace.transfers().filter(|t| t.connection.key.local_port == c).map(|t| t.bytes).sum();
        assert_eq!((of_tcp, stats.audit_mismatches), (10 * DATAGRAMS, 0));
        tell(parent, stats.deferred);
    });
    let without_room = daemon.hear();
    daemon.wait();
    without_room
}

/// A program that the kernel does not load, or does not attach, is left out and named, and all others do their work.
#[test]
fn one_failing_program_never_sinks_the_others() {
    let usual = Trace::start().capabilities();
    // What was found of existing connections may have been told since.
    let seen = |can: &Capabilities| {
        Feature::ALL.map(|feature| (feature != Feature::Existing).then(|| can.visibility(feature).clone()))
    };
    for (what, reason) in [(Refused::Load, "cannot be loaded"), (Refused::Attach, "cannot be attached")] {
        let mut trace = without_program(what, "tcp_destroy_2", || Trace::with(builder()));
        let can = trace.capabilities();
        assert_eq!((can.backend(), seen(&can)), (usual.backend(), seen(&usual)), "{what:?}");
        let missing: Vec<_> =
            can.missing_programs().iter().filter(|m| !usual.missing_programs().contains(m)).collect();
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert_eq!(missing[0].what, "tcp_destroy_2");
        assert!(missing[0].reason.contains(reason), "{}", missing[0]);
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        assert_eq!((send(&client, &[1; 70], 0), recv(&server, 70, 0)), (70, 70));
        drop((client, server));
        assert_eq!((trace.closed(c, s).bytes_out, trace.closed(s, c).bytes_in), (70, 70));
    }
}

/// Without a program that everything rests on nothing runs: the reason names it, and nothing is left in the kernel.
#[test]
fn without_an_essential_program_the_start_fails_and_says_so() {
    let before = bpf_objects();
    for what in [Refused::Load, Refused::Attach] {
        let error = without_program(what, "tcp_chunk_in", || builder().spawn().map(drop)).unwrap_err();
        assert!(error.to_string().contains("program tcp_chunk_in: cannot be"), "{error}");
    }
    nothing_left_but(&before);
}
