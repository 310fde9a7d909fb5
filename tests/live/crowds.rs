// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an unprivileged program can make many of.

use crate::harness::{Answer, Trace, answer, builder};
use crate::net::{Child, connect, cookie, hear, recv, send, set_option, sockaddr, socket, socket_of, tell};
use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tcptop::{ConnectionRecord, Feature, Protocol, Visibility};

const NOBODY: u32 = 65_534;
/// In two processes, because each may have so many files only.
const EACH: usize = 15_000;

/// A UDP socket bound to this port of 127.0.0.1, which it shares.
fn sharer(port: u16) -> Option<UdpSocket> {
    let socket = socket_of(libc::AF_INET, libc::SOCK_DGRAM, 0).ok()?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1_i32);
    let address = sockaddr([127, 0, 0, 1], port);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is as long as is said.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    (bound == 0).then(|| UdpSocket::from(socket))
}

/// Of this thread: others may run beside.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// 30,000 UDP sockets on one port, opened by an ordinary user: each is found, and each end, in a time that is none of their
/// square. (It was 26 seconds for the rows alone.)
#[test]
fn sockets_that_share_a_port_by_the_thousands_are_found_and_end() {
    // Bound by the same user, or the others may not share it.
    // SAFETY: no memory but a struct that is there.
    let become_nobody = || unsafe {
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files), 0);
        files.rlim_cur = files.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files), 0);
        assert_eq!(libc::setuid(NOBODY), 0);
    };
    let mut crowds = Vec::new();
    let mut port = 0;
    for _ in 0..2 {
        let mut crowd = Child::fork(|parent| {
            become_nobody();
            let first = sharer(port).unwrap();
            let port = first.local_addr().unwrap().port();
            let sockets: Vec<_> =
                std::iter::once(first).chain((1..EACH).map_while(|_| sharer(port))).collect();
            tell(parent, port.into());
            tell(parent, sockets.len() as u64);
            hear(parent);
            drop(sockets);
            tell(parent, 0);
            hear(parent);
        });
        port = crowd.hear() as u16;
        assert_eq!(crowd.hear() as usize, EACH);
        crowds.push(crowd);
    }
    let mut trace = Trace::with(builder());
    let lesser = answer(77, trace.backend()) == Answer::Lesser;
    let existing = trace.collector.bootstrap_existing().unwrap();
    let is_of = |r: &&ConnectionRecord| r.key.protocol == Protocol::Udp && r.key.local_port == port;
    let has_ids = existing.iter().find(is_of).is_some_and(|row| row.socket.is_some());
    assert_eq!(has_ids, !lesser && trace.sees(Feature::SocketCookie) != Visibility::Unseen);
    let began = processor_time();
    trace.table.merge_bootstrap(existing);
    let merged = processor_time() - began;
    assert!(merged < Duration::from_secs(3), "{merged:?} for the rows");
    let rows: BTreeSet<_> = trace.table.records().filter(is_of).map(|r| (r.socket, r.pid())).collect();
    for crowd in &crowds {
        let of_it = rows.iter().filter(|(_, pid)| *pid == Some(crowd.pid)).count();
        assert_eq!(of_it, if has_ids { EACH } else { 1 }, "a row for each socket, or for each process");
    }
    let began = processor_time();
    for crowd in &mut crowds {
        crowd.tell(1);
        crowd.hear();
    }
    if has_ids && trace.sees(Feature::UdpClose) == Visibility::Exact {
        trace
            .until("the end of each", |t| t.table.records().filter(is_of).all(|r| r.is_closed).then_some(()));
        let ended = processor_time() - began;
        assert!(ended < Duration::from_secs(10), "{ended:?} for the ends");
    }
    for mut crowd in crowds {
        crowd.tell(1);
        crowd.wait();
    }
}

/// Sockets whose cookies end in the same bits share a place in the programs' cache. Each keeps its own account.
#[test]
fn sockets_whose_cookies_end_alike_count_their_own() {
    const STATES: u64 = 1024;
    let mut trace = Trace::with(builder().max_sockets(STATES as usize));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let first = socket(libc::AF_INET, libc::SOCK_STREAM);
    let second = (0..100_000)
        .map(|_| socket(libc::AF_INET, libc::SOCK_STREAM))
        .find(|other| cookie(other) % STATES == cookie(&first) % STATES)
        .unwrap();
    let servers = [&first, &second].map(|client| {
        assert_eq!(connect(client, &sockaddr([127, 0, 0, 1], port)), 0);
        listener.accept().unwrap()
    });
    for _ in 0..100 {
        for (client, (server, size)) in
            [&first, &second].into_iter().zip(servers.iter().map(|(s, _)| s).zip([10, 20]))
        {
            assert_eq!(send(client, &vec![1; size], 0), size as isize);
            assert_eq!(recv(server, size, libc::MSG_WAITALL), size as isize);
            assert_eq!(send(server, &[1; 5], 0), 5);
            assert_eq!(recv(client, 5, libc::MSG_WAITALL), 5);
        }
    }
    for ((_, client), bytes) in servers.iter().zip([1000, 2000]) {
        let moved = |row: &&ConnectionRecord| (row.bytes_out, row.bytes_in) == (bytes, 500);
        let row = trace.until("all that was moved", |t| t.tcp(client.port(), port).filter(moved).cloned());
        assert!(!row.is_partial && !row.is_closed, "{row:?}");
    }
}
