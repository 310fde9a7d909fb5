// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an unprivileged program can make many of.

use crate::harness::{Trace, builder};
use crate::net::{Child, cookie, hear, tell};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use tcptop::{Feature, NetworkCollector, Protocol, Visibility};

const NOBODY: u32 = 65_534;
const MANY: usize = 32_000;

/// A UDP socket bound to this port of 127.0.0.1, which it shares.
fn sharer(port: u16) -> Option<UdpSocket> {
    let socket = crate::net::socket_of(libc::AF_INET, libc::SOCK_DGRAM, 0).ok()?;
    crate::net::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1_i32);
    let address = crate::net::sockaddr([127, 0, 0, 1], port);
    // SAFETY: the address is as long as is said.
    let bound = unsafe {
        libc::bind(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    // SAFETY: a socket that is nobody else's.
    (bound == 0).then(|| unsafe {
        UdpSocket::from(OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(socket)))
    })
}

/// 32,000 UDP sockets on one port, opened by an ordinary user: each is found, and each end, in a time that is none of their
/// square. (It was 26 seconds for the rows alone.)
#[test]
fn sockets_that_share_a_port_by_the_thousands_are_found_and_end() {
    // The user may not raise the limit; who has started it has given it many files.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes a struct that is there.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = (MANY as u64 + 1000).max(limit.rlim_cur);
        limit.rlim_max = limit.rlim_max.max(limit.rlim_cur);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    let mut crowd = Child::fork(|parent| {
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
        let first = sharer(0).unwrap();
        let port = first.local_addr().unwrap().port();
        let sockets: Vec<_> = std::iter::once(first).chain((1..MANY).map_while(|_| sharer(port))).collect();
        tell(parent, port.into());
        tell(parent, sockets.len() as u64);
        tell(parent, cookie(&sockets[0]));
        hear(parent);
        drop(sockets);
        tell(parent, 0);
        hear(parent);
    });
    let (port, count, first) = (crowd.hear() as u16, crowd.hear() as usize, crowd.hear());
    assert_eq!(count, MANY);
    let mut trace = Trace::with(builder());
    let began = Instant::now();
    let existing = trace.collector.bootstrap_existing().unwrap();
    let searched = began.elapsed();
    let has_ids = existing.iter().any(|row| row.socket == Some(first));
    trace.table.merge_bootstrap(existing);
    let merged = began.elapsed() - searched;
    assert!(merged < Duration::from_secs(5), "merged in {merged:?}, found in {searched:?}");
    let is_of = |r: &&tcptop::ConnectionRecord| r.key.protocol == Protocol::Udp && r.key.local_port == port;
    if has_ids {
        let rows: BTreeSet<_> = trace.table.records().filter(is_of).map(|r| (r.socket, r.pid())).collect();
        assert_eq!(rows.len(), MANY, "a row for each");
        assert!(rows.iter().all(|&(_, pid)| pid == Some(crowd.pid)));
    }
    crowd.tell(1);
    crowd.hear();
    let began = Instant::now();
    if has_ids && trace.sees(Feature::UdpClose) == Visibility::Exact {
        trace
            .until("the end of each", |t| t.table.records().filter(is_of).all(|r| r.is_closed).then_some(()));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    crowd.tell(1);
    crowd.wait();
}
