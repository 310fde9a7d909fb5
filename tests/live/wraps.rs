// SPDX-License-Identifier: MIT OR Apache-2.0
//! 19: more than 32 bits: totals that are larger, and sequence numbers, out of which totals are reckoned, that begin again.

use crate::harness::{Trace, is_slow};
use crate::net::{connect, recv, send, set_option, sockaddr, socket, tcp_pair};
use crate::tcp::{finish, moved};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

/// 19: more than 4 GiB through one connection. An emulated processor would take a minute: there it is 256 MiB.
#[test]
fn totals_go_beyond_four_gibibytes() {
    let total: u64 = if is_slow() { 256 << 20 } else { (4 << 30) + 12_345 };
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let reader = thread::spawn(move || {
        // Received and thrown away without being copied.
        while recv(&server, 8 << 20, libc::MSG_TRUNC) > 0 {}
        server
    });
    let chunk = vec![1; 1 << 20];
    let mut left = total;
    while left > 0 {
        let n = send(&client, &chunk[..left.min(1 << 20) as usize], 0);
        assert!(n > 0);
        left -= n as u64;
    }
    client.shutdown(Shutdown::Write).unwrap();
    let server = reader.join().unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((total, 0), (0, total)));
}

/// A socket with a port of its own, in repair, whose queues are at this sequence number (include/uapi/linux/tcp.h).
fn in_repair(sequence: u32) -> TcpStream {
    let socket = TcpStream::from(socket(libc::AF_INET, libc::SOCK_STREAM));
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1_i32);
    let any = sockaddr([127, 0, 0, 1], 0);
    // SAFETY: the address is as long as is said.
    assert_eq!(unsafe { libc::bind(socket.as_raw_fd(), (&raw const any).cast(), 16) }, 0);
    // TCP_RECV_QUEUE, TCP_SEND_QUEUE.
    for queue in [1_i32, 2] {
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, sequence);
    }
    socket
}

/// A pair that is connected without a handshake, as restored checkpoints are, and has agreed on this sequence number.
fn restored_pair(sequence: u32) -> (TcpStream, TcpStream) {
    let pair = [in_repair(sequence), in_repair(sequence)];
    for (end, peer) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
        let to = sockaddr([127, 0, 0, 1], peer.local_addr().unwrap().port());
        assert_eq!(connect(end, &to), 0);
        // TCPOPT_WINDOW: both scale theirs by 2^7.
        set_option(end, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, [3_u32, 7 << 16 | 7]);
    }
    for end in &pair {
        set_option(end, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0_i32);
    }
    let [one, other] = pair;
    (one, other)
}

/// 19: sequence numbers have 32 bits, and begin again with the 5000th byte.
#[test]
fn sequence_numbers_that_wrap_change_no_byte() {
    const TOTAL: usize = 20_000;
    let mut trace = Trace::start();
    let (one, other) = restored_pair(0_u32.wrapping_sub(5000));
    for (mut from, mut to, n) in [(&one, &other, TOTAL), (&other, &one, TOTAL / 2)] {
        for _ in 0..10 {
            from.write_all(&vec![1; n / 10]).unwrap();
            to.read_exact(&mut vec![0; n / 10]).unwrap();
        }
    }
    let (one, other) = finish(&mut trace, one, other);
    assert_eq!((moved(&one), moved(&other)), ((20_000, 10_000), (10_000, 20_000)));
}
