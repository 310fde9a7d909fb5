// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose connection it is.

use crate::handover::start_ticks;
use crate::harness::{AFTERMATH, Trace};
use crate::net::{Cgroup, Child, enter_own_network, hear, port, recv, send, tcp_pair, tell};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use tcptop::{Backend, CollectorEvent, TcpState};

/// 37: a child sends 300 and its parent 200 on one socket: a share for each, 500 in total.
#[test]
fn a_shared_socket_has_a_share_for_each_process() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let shared = client.try_clone().unwrap();
    let child = Child::fork(move |_| assert_eq!(send(&shared, &[1; 300], 0), 300));
    let child_pid = child.pid;
    server.read_exact(&mut [0; 300]).unwrap();
    child.wait();
    assert_eq!(send(&client, &[1; 200], 0), 200);
    server.read_exact(&mut [0; 200]).unwrap();
    drop((client, server));
    let row = trace.closed(c, s);
    trace.listen(AFTERMATH);
    assert_eq!(row.bytes_out, 500);
    let mut shares = BTreeMap::<u32, u64>::new();
    for t in trace.transfers().filter(|t| t.connection.key.local_port == c && t.bytes > 0) {
        *shares.entry(t.actor.expect("an actor").pid).or_default() += t.bytes;
    }
    assert_eq!(shares, BTreeMap::from([(child_pid, 300), (std::process::id(), 200)]));
}

/// 42: a thread with a name of its own uses the socket: the process's name is shown.
#[test]
fn a_thread_has_its_process_name() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let work = move || {
        let own = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(own.trim(), "other-name");
        assert_eq!((send(&client, &[1; 42], 0), recv(&server, 42, 0)), (42, 42));
    };
    thread::Builder::new().name("other-name".into()).spawn(work).unwrap().join().unwrap();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_ne!(name.trim(), "other-name");
    for (local, remote) in [(c, s), (s, c)] {
        let row = trace.closed(local, remote);
        assert_eq!(
            (row.pid(), row.process_name().unwrap().as_str()),
            (Some(std::process::id()), name.trim())
        );
    }
}

/// 43: on loopback the server's states change while the client runs: its events never carry the client's pid.
#[test]
fn the_peer_is_never_taken_for_the_owner() {
    let mut trace = Trace::start();
    let mut server = Child::fork(|parent| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        tell(parent, listener.local_addr().unwrap().port().into());
        for _ in 0..50 {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(&[1]).unwrap();
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).unwrap();
            socket.write_all(&bytes).unwrap();
        }
    });
    let l = server.hear() as u16;
    for _ in 0..50 {
        let mut client = TcpStream::connect(("127.0.0.1", l)).unwrap();
        // By now the server has used the connection, so its owner is known.
        client.read_exact(&mut [0]).unwrap();
        client.write_all(&[1; 43]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    let server_pid = server.pid;
    server.wait();
    let ends = |t: &Trace| t.table.records().filter(|r| r.key.local_port == l && r.is_closed).count();
    trace.until("50 ends", |t| (ends(t) >= 50).then_some(()));
    let (me, mut inherited) = (std::process::id(), 0);
    for event in &trace.seen {
        let Some(info) = event.connection().filter(|i| i.key.local_port == l || i.key.remote_port == l)
        else {
            continue;
        };
        let right = if info.key.local_port == l { server_pid } else { me };
        assert!(info.owner.is_none_or(|o| o.pid == right), "{event:?}");
        if let CollectorEvent::TcpStateChange(s) = event {
            inherited += usize::from(s.new_state == TcpState::CloseWait && info.owner.is_some());
        }
    }
    assert!(inherited > 0, "CLOSE_WAIT, which comes in softirq, carries the owner that is known");
    for row in trace.table.records().filter(|r| r.key.local_port == l && r.key.remote_port != 0) {
        assert_eq!((row.pid(), row.bytes_in, row.bytes_out), (Some(server_pid), 43, 44));
    }
}

/// 45: the same four-tuple in two network namespaces, in processes of a pid namespace: two rows, with pids as the
/// initial namespace numbers them.
#[test]
fn the_same_tuple_in_two_namespaces_is_two_connections() {
    let mut trace = Trace::start();
    let world = |parent: &mut std::os::unix::net::UnixStream| {
        enter_own_network();
        // SAFETY: the next child is the first process of a pid namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
        // SAFETY: the child uses sockets only and exits.
        let inner = unsafe { libc::fork() };
        if inner == 0 {
            let _ = std::panic::catch_unwind(|| {
                assert_eq!(std::process::id(), 1);
                let listener = TcpListener::bind("127.0.0.1:4545").unwrap();
                let client = crate::net::socket(libc::AF_INET, libc::SOCK_STREAM);
                let from = crate::net::sockaddr([127, 0, 0, 1], 5454);
                use std::os::fd::AsRawFd;
                // SAFETY: the address is as long as is said.
                assert_eq!(unsafe { libc::bind(client.as_raw_fd(), (&raw const from).cast(), 16) }, 0);
                assert_eq!(crate::net::connect(&client, &crate::net::sockaddr([127, 0, 0, 1], 4545)), 0);
                let (server, _) = listener.accept().unwrap();
                assert_eq!((send(&client, &[1; 45], 0), recv(&server, 45, 0)), (45, 45));
            });
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(inner, &raw mut status, 0) };
        tell(parent, inner as u64);
        hear(parent);
    };
    let mut children = [Child::fork(world), Child::fork(world)];
    let inner: Vec<u32> = children.iter_mut().map(|child| child.hear() as u32).collect();
    children.iter_mut().for_each(|child| child.tell(1));
    children.into_iter().for_each(Child::wait);
    let rows = trace.until("two rows", |t| {
        let rows: Vec<_> = t.table.records().filter(|r| r.key.local_port == 5454).cloned().collect();
        (rows.len() == 2 && rows.iter().all(|r| r.is_closed && r.bytes_out == 45)).then_some(rows)
    });
    assert_eq!(rows[0].key, rows[1].key);
    assert_ne!(rows[0].netns, rows[1].netns);
    let mut pids: Vec<_> = rows.iter().map(|r| r.pid().unwrap()).collect();
    pids.sort_unstable();
    let mut expected = inner;
    expected.sort_unstable();
    assert_eq!(pids, expected);
}

/// User, control group, network namespace and start time of an owner are what the system says they are: a process of
/// another user, in a group of its own.
#[test]
fn an_owner_is_described_in_full() {
    const NOBODY: u32 = 65_534;
    let group = Cgroup::new();
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let mut child = Child::fork(|parent| {
        group.enter();
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
        let client = TcpStream::connect(("127.0.0.1", l)).unwrap();
        assert_eq!(send(&client, &[1; 7], 0), 7);
        tell(parent, port(&client).into());
        hear(parent);
    });
    let c = child.hear() as u16;
    let row = trace.until("its bytes", |t| t.tcp(c, l).filter(|row| row.bytes_out == 7).cloned());
    let owner = row.owner.unwrap();
    assert_eq!((owner.pid, owner.uid, owner.cgroup_id), (child.pid, NOBODY, Some(group.id())));
    assert_eq!(owner.start_time_ns / 10_000_000, start_ticks(child.pid));
    assert_eq!(row.netns, Some(child.netns()));
    child.tell(1);
    child.wait();
}

/// What runs is what was asked for, and each step down has a reason.
#[test]
fn the_backend_that_runs_is_the_one_that_was_asked_for() {
    let trace = Trace::start();
    let capabilities = trace.capabilities();
    match crate::harness::wanted_backend() {
        Some(wanted) => assert_eq!(capabilities.backend(), wanted),
        None => {
            let better = Backend::ALL.into_iter().take_while(|b| *b != capabilities.backend());
            assert!(better.eq(capabilities.rejected_backends().iter().map(|s| s.what)), "{capabilities:?}");
            assert!(capabilities.rejected_backends().iter().all(|s| !s.reason.is_empty()));
        }
    }
    assert!(capabilities.missing_programs().is_empty(), "{:?}", capabilities.missing_programs());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(capabilities.kernel(), release.trim());
}
