// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP: every way to move bytes, and the exact numbers.

use crate::harness::{Trace, ports};
use crate::net::{Child, cookie, get_option, pair_by, port, recv, reset, send, set_option, tcp_pair, tell};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Duration;
use tcptop::{Backend, CollectorEvent, ConnectionRecord, Feature, Provenance, TcpState, Visibility};

/// Ends both sides and returns their rows: client's, server's.
pub(crate) fn finish(
    trace: &mut Trace,
    client: TcpStream,
    server: TcpStream,
) -> (ConnectionRecord, ConnectionRecord) {
    let (c, s) = (port(&client), port(&server));
    drop(client);
    drop(server);
    (trace.closed(c, s), trace.closed(s, c))
}

pub(crate) fn moved(row: &ConnectionRecord) -> (u64, u64) {
    (row.bytes_out, row.bytes_in)
}

/// What the kernel itself says it has acknowledged and received: bytes_acked, bytes_received of TCP_INFO.
fn kernel_counts(socket: &TcpStream) -> (u64, u64) {
    let info: [u64; 32] = get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO);
    // struct tcp_info, include/uapi/linux/tcp.h: tcpi_bytes_acked at byte 120, tcpi_bytes_received at 128.
    (info[15], info[16])
}

/// 1: client sends 500 and receives 1000; server the reverse. Both owners, rtt, ids, states.
#[test]
fn send_500_receive_1000() {
    let mut trace = Trace::start();
    let (mut client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    client.write_all(&[1; 500]).unwrap();
    server.read_exact(&mut [0; 500]).unwrap();
    server.write_all(&[2; 1000]).unwrap();
    client.read_exact(&mut [0; 1000]).unwrap();
    let (acked, received) = kernel_counts(&client);
    assert_eq!((acked - 1, received), (500, 1000), "the SYN counts as one");
    let ids = (cookie(&client), cookie(&server));
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (500, 1000));
    assert_eq!(moved(&server_row), (1000, 500));
    let me = std::process::id();
    for row in [&client_row, &server_row] {
        assert_eq!((row.pid(), row.provenance), (Some(me), Provenance::Seen));
        assert_eq!((row.tcp_state, row.is_closed, row.is_partial), (Some(TcpState::Close), true, false));
        assert!(row.rtt.is_some_and(|rtt| rtt > Duration::ZERO), "{row:?}");
        assert!(row.packets_in > 0 && row.packets_out > 0);
    }
    assert_eq!((client_row.key.remote_port, server_row.key.remote_port), (s, c));
    if trace.sees(Feature::SocketCookie) != Visibility::Unseen {
        assert_eq!((client_row.socket, server_row.socket), (Some(ids.0), Some(ids.1)));
    }
}

/// TCP over IPv6: the same numbers and owners, under the addresses of IPv6.
#[test]
fn ipv6_connections_are_shown_as_ipv6() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let (mut client, mut server) = pair_by(&listener);
    let (c, s) = (port(&client), port(&server));
    client.write_all(&[1; 500]).unwrap();
    server.read_exact(&mut [0; 500]).unwrap();
    server.write_all(&[2; 1000]).unwrap();
    client.read_exact(&mut [0; 1000]).unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((500, 1000), (1000, 500)));
    for (row, local, remote) in [(client_row, c, s), (server_row, s, c)] {
        assert_eq!(row.key.to_string(), format!("tcp [::1]:{local} -> [::1]:{remote}"));
        assert_eq!((row.pid(), row.provenance), (Some(std::process::id()), Provenance::Seen));
    }
}

/// 2: two peeks at 100, then 60 and a truncating 40: 100 received.
#[test]
fn peeking_counts_nothing() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    assert_eq!(send(&client, &[1; 100], 0), 100);
    assert_eq!(recv(&server, 100, libc::MSG_PEEK | libc::MSG_WAITALL), 100);
    assert_eq!(recv(&server, 100, libc::MSG_PEEK), 100);
    assert_eq!(recv(&server, 60, 0), 60);
    assert_eq!(recv(&server, 40, libc::MSG_TRUNC), 40);
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (100, 0));
    assert_eq!(moved(&server_row), (0, 100));
}

/// 3: one receive call that waits for three pieces of 1000: 3000, once.
#[test]
fn waiting_for_all_counts_each_piece_once() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let reader = thread::spawn(move || {
        assert_eq!(recv(&server, 3000, libc::MSG_WAITALL), 3000);
        server
    });
    for _ in 0..3 {
        assert_eq!(send(&client, &[1; 1000], 0), 1000);
        thread::sleep(Duration::from_millis(50));
    }
    let server = reader.join().unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (3000, 0));
    assert_eq!(moved(&server_row), (0, 3000));
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: makes two file descriptors, which are ours.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

pub(crate) fn splice(from: &impl AsRawFd, to: &impl AsRawFd, len: usize) -> isize {
    let null = std::ptr::null_mut;
    // SAFETY: no memory is involved.
    unsafe { libc::splice(from.as_raw_fd(), null(), to.as_raw_fd(), null(), len, 0) }
}

/// 5: sendfile of 10,000 bytes, on every kernel.
#[test]
fn sendfile_counts() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let mut file = temporary_file(&[7; 10_000]);
    // SAFETY: no memory is involved.
    let sent = unsafe { libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 10_000) };
    assert_eq!(sent, 10_000);
    server.read_exact(&mut vec![0; 10_000]).unwrap();
    file.flush().unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (10_000, 0));
    assert_eq!(moved(&server_row), (0, 10_000));
}

pub(crate) fn temporary_file(content: &[u8]) -> File {
    // SAFETY: makes a file descriptor, which is ours.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"tcptop".as_ptr(), libc::MFD_CLOEXEC)) };
    file.write_all(content).unwrap();
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_SET) }, 0);
    file
}

/// 6: 5000 bytes spliced from the socket into a pipe, 5000 read: 10,000 received.
#[test]
fn splice_counts_as_receiving() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    assert_eq!(send(&client, &[1; 10_000], 0), 10_000);
    let (read_end, write_end) = pipe();
    let mut left = 5000;
    while left > 0 {
        let n = splice(&server, &write_end, left);
        assert!(n > 0);
        File::from(read_end.try_clone().unwrap()).read_exact(&mut vec![0; n as usize]).unwrap();
        left -= n as usize;
    }
    // The bytes that were spliced are reported before the next call and before the end.
    let s = port(&server);
    trace.until("the spliced bytes", |t| {
        t.rows(tcptop::Protocol::Tcp, s).into_iter().find(|row| row.bytes_in >= 5000).map(drop)
    });
    server.read_exact(&mut vec![0; 5000]).unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (10_000, 0));
    assert_eq!(moved(&server_row), (0, 10_000));
}

/// Who has said that it sends no more may be sent to for long: that is reported as it goes on, and by kprobes with the
/// next call.
#[test]
fn sends_after_the_peers_fin_are_reported_before_the_end() {
    let mut trace = Trace::start();
    let (mut client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(recv(&server, 1, 0), 0);
    for round in 1..=4 {
        assert_eq!(send(&server, &[1; 1000], 0), 1000);
        let told = 1000 * (round - u64::from(trace.backend() == Backend::Kprobe));
        trace.until("what was sent", |t| {
            (told == 0 || t.tcp(s, c).is_some_and(|row| row.bytes_out == told)).then_some(())
        });
    }
    client.read_exact(&mut [0; 4000]).unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((0, 4000), (4000, 0)));
}

/// 11: a non-blocking send of 1 MiB is accepted in part: what was accepted counts. 12: EAGAIN counts nothing.
#[test]
fn only_what_the_kernel_accepted_counts() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    set_option(&client, libc::SOL_SOCKET, libc::SO_SNDBUF, 32_768_i32);
    let accepted = send(&client, &vec![1; 1 << 20], libc::MSG_DONTWAIT);
    assert!(accepted > 0 && accepted < 1 << 20, "{accepted}");
    let mut total = accepted as u64;
    loop {
        match send(&client, &[1; 4096], libc::MSG_DONTWAIT) {
            n if n > 0 => total += n as u64,
            n => break assert_eq!(n, -(libc::EAGAIN as isize)),
        }
    }
    let reader = thread::spawn(move || {
        server.read_exact(&mut vec![0; total as usize]).unwrap();
        server
    });
    let server = reader.join().unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (total, 0));
    assert_eq!(moved(&server_row), (0, total));
}

/// 12: a receive with nothing there, and a send after the end (EPIPE): nothing.
#[test]
fn calls_that_fail_count_nothing() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    assert_eq!(recv(&server, 100, libc::MSG_DONTWAIT), -(libc::EAGAIN as isize));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(send(&client, &[1; 100], 0), -(libc::EPIPE as isize));
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (0, 0));
    assert_eq!(moved(&server_row), (0, 0));
}

/// 12: receives that a signal interrupts (EINTR): nothing, and the one after them counts its 12 bytes.
#[test]
fn an_interrupted_call_counts_nothing() {
    extern "C" fn ignore(_signal: i32) {}
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let reader = server.try_clone().unwrap();
    let mut child = Child::fork(move |parent| {
        let every = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        let off = libc::itimerval { it_interval: NEVER, it_value: NEVER };
        // SAFETY: a handler that does nothing, without SA_RESTART, and a timer of this process.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
            assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
        }
        for _ in 0..3 {
            assert_eq!(recv(&reader, 100, 0), -(libc::EINTR as isize));
        }
        // SAFETY: the same timer.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const off, std::ptr::null_mut()) };
        tell(parent, 1);
        assert_eq!(recv(&reader, 12, libc::MSG_WAITALL), 12);
    });
    child.hear();
    assert_eq!(send(&client, &[1; 12], 0), 12);
    child.wait();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (12, 0));
    assert_eq!(moved(&server_row), (0, 12));
}

const NEVER: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 0 };

/// 14: 300,000 bytes accepted, 1000 of them read, then a reset: out is what was accepted, in what was read.
#[test]
fn a_reset_changes_no_byte() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let accepted = send(&client, &vec![1; 300_000], libc::MSG_DONTWAIT);
    assert!(accepted > 1000);
    server.read_exact(&mut [0; 1000]).unwrap();
    reset(client);
    let client_row = trace.closed(c, s);
    drop(server);
    let server_row = trace.closed(s, c);
    assert_eq!(moved(&client_row), (accepted as u64, 0));
    assert_eq!(moved(&server_row), (0, 1000));
}

/// 15: closed with 700 bytes unread: none received, 700 sent, both closed.
#[test]
fn unread_bytes_were_not_received() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!(send(&client, &[1; 700], 0), 700);
    assert_eq!(recv(&server, 700, libc::MSG_PEEK | libc::MSG_WAITALL), 700);
    drop(server);
    let server_row = trace.closed(s, c);
    drop(client);
    let client_row = trace.closed(c, s);
    assert_eq!(moved(&client_row), (700, 0));
    assert_eq!(moved(&server_row), (0, 0));
    assert!(client_row.is_closed && server_row.is_closed);
}

/// 22: send and receive by io_uring: the process is the caller, not its worker thread.
#[test]
fn io_uring_counts_for_the_process() {
    use io_uring::{IoUring, opcode, types::Fd};
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let mut ring = IoUring::new(8).expect("io_uring");
    let bytes = [1_u8; 1234];
    let mut into = [0_u8; 1234];
    // ASYNC: done by a worker thread, which has a name of its own.
    let send = opcode::Send::new(Fd(client.as_raw_fd()), bytes.as_ptr(), 1234)
        .build()
        .flags(io_uring::squeue::Flags::ASYNC);
    let recv = opcode::Recv::new(Fd(server.as_raw_fd()), into.as_mut_ptr(), 1234)
        .flags(libc::MSG_WAITALL)
        .build()
        .flags(io_uring::squeue::Flags::ASYNC);
    for entry in [send, recv] {
        // SAFETY: both buffers live until the completion.
        unsafe { ring.submission().push(&entry).unwrap() };
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), 1234);
    }
    let (c, s) = (port(&client), port(&server));
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (1234, 0));
    assert_eq!(moved(&server_row), (0, 1234));
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let me = (std::process::id(), name.trim());
    for row in [client_row, server_row] {
        assert_eq!((row.pid().unwrap(), row.process_name().unwrap().as_str()), me);
    }
    let ours = trace.transfers().filter(|t| [c, s].contains(&t.connection.key.local_port) && t.bytes > 0);
    let actors: Vec<_> = ours.map(|t| t.actor.expect("an actor")).collect();
    assert!(actors.len() >= 2 && actors.iter().all(|a| (a.pid, a.name.as_str()) == me), "{actors:?}");
}

/// Per call: each send is an event of its own, in order, with its bytes and the running total.
#[test]
fn with_an_event_per_call_each_call_is_one() {
    let mut trace = Trace::per_call();
    let (client, mut server) = tcp_pair();
    let c = port(&client);
    for n in 1..=50 {
        assert_eq!(send(&client, &vec![1; n], 0), n as isize);
        server.read_exact(&mut vec![0; n]).unwrap();
    }
    finish(&mut trace, client, server);
    let sends: Vec<_> = trace.transfers().filter(|t| t.connection.key.local_port == c).collect();
    assert_eq!(sends.iter().map(|t| t.bytes).sum::<u64>(), 1275);
    if trace.backend() == Backend::Kprobe {
        // Sends are reported with acknowledgements, which may cover several.
        return;
    }
    let expected: Vec<_> = (1..=50).map(|n| (n, 1, n * (n + 1) / 2)).collect();
    let got: Vec<_> = sends.iter().map(|t| (t.bytes, t.calls, t.total_bytes)).collect();
    assert_eq!(got, expected);
}

/// A gigabyte, with the default granularity: exact, and few events.
#[test]
fn a_long_stream_is_exact_and_quiet() {
    let total: u64 = if crate::harness::is_slow() { 32 << 20 } else { 1 << 30 };
    let mut trace = Trace::start();
    let (mut client, mut server) = tcp_pair();
    let (c, began) = (port(&client), std::time::Instant::now());
    let reader = thread::spawn(move || {
        std::io::copy(&mut server, &mut std::io::sink()).unwrap();
        server
    });
    let chunk = vec![1; 1 << 16];
    for _ in 0..total >> 16 {
        client.write_all(&chunk).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    let server = reader.join().unwrap();
    let took = began.elapsed();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!(moved(&client_row), (total, 0));
    assert_eq!(moved(&server_row), (0, total));
    let sends: Vec<_> = trace.transfers().filter(|t| t.connection.key.local_port == c).collect();
    assert_eq!(sends.iter().map(|t| t.bytes).sum::<u64>(), total, "what is new adds up to the total");
    let most = took.as_millis() / 100 * 2 + 4;
    assert!(sends.len() as u128 <= most, "{} events in {took:?}", sends.len());
}

/// Connections that are busy all the time end at any moment of an interval: what they moved has been reported by then.
#[test]
fn an_end_is_the_last_event() {
    let mut trace = Trace::start();
    let mut pairs: Vec<_> = (0..50).map(|_| tcp_pair()).collect();
    let ends: Vec<_> = pairs.iter().map(|(client, server)| (port(client), port(server))).collect();
    for round in 0.. {
        for (client, server) in &mut pairs {
            client.write_all(&[1]).unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        if round >= 50 && pairs.pop().is_none() {
            break;
        }
        thread::sleep(Duration::from_millis(4));
    }
    for (index, pair) in ends.into_iter().enumerate() {
        let is_end = |e: &&CollectorEvent| matches!(e, CollectorEvent::Closed(_)) && ports(e) == pair;
        trace.until("the end", |t| t.seen.iter().find(is_end).map(drop));
        let before = trace.seen.iter().take_while(|e| !is_end(e)).filter(|e| ports(e) == pair);
        let bytes = before.map(|e| if let CollectorEvent::TcpSend(t) = e { t.bytes } else { 0 });
        assert_eq!(bytes.sum::<u64>(), 100 - index as u64);
    }
}
