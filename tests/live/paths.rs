// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP: the less usual ways to move bytes, and what moves none.

use crate::harness::{PATIENCE, Trace, absent};
use crate::net::{
    Child, checked, enter_own_network, get_option, hear, netem, port, recv, run, send, set_option, sockaddr,
    socket, socket_of, tcp_pair, tell,
};
use crate::tcp::{finish, moved, pipe, splice};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{Protocol, Provenance, TcpState};

/// 4: a receiver that wants 3000 bytes at least, which come in pieces, and 500 more with the end.
#[test]
fn a_low_water_mark_changes_no_byte() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    set_option(&server, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 3000_i32);
    let reader = thread::spawn(move || {
        let (first, second) = (recv(&server, 5000, 0), recv(&server, 5000, 0));
        assert!(first >= 3000 && first + second == 3500, "{first} {second}");
        server
    });
    for n in [1000, 1000, 1000] {
        assert_eq!(send(&client, &vec![1; n], 0), n as isize);
        thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(send(&client, &[1; 500], 0), 500);
    client.shutdown(Shutdown::Write).unwrap();
    let server = reader.join().unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((3500, 0), (0, 3500)));
}

/// 7: 3000 bytes spliced from a pipe into the socket.
#[test]
fn splice_counts_as_sending() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (read_end, write_end) = pipe();
    assert_eq!(std::fs::File::from(write_end).write(&[1; 3000]).unwrap(), 3000);
    let mut left = 3000;
    while left > 0 {
        let n = splice(&read_end, &client, left);
        assert!(n > 0);
        left -= n as usize;
    }
    server.read_exact(&mut [0; 3000]).unwrap();
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((3000, 0), (0, 3000)));
}

/// 8: a send that leaves its pages where they are, and the completions that come back through the error queue: they are
/// no bytes.
#[test]
fn a_zero_copy_send_counts_once() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    set_option(&client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32);
    let bytes = vec![1; 20_000];
    let mut sent = 0;
    while sent < bytes.len() {
        let n = send(&client, &bytes[sent..], libc::MSG_ZEROCOPY);
        assert!(n > 0, "{n}");
        sent += n as usize;
    }
    server.read_exact(&mut [0; 20_000]).unwrap();
    let mut poll = libc::pollfd { fd: client.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one entry, as is said.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
    assert_ne!(poll.revents & libc::POLLERR, 0);
    let mut control = [0_u64; 16];
    // SAFETY: all zeros is a message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: the message points to a buffer that is as long as is said.
    let got = checked(unsafe { libc::recvmsg(client.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) });
    assert!(got == 0 && message.msg_controllen > 0, "a completion: {got}");
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((20_000, 0), (0, 20_000)));
}

/// struct tcp_zerocopy_receive, include/uapi/linux/tcp.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct ZeroCopyReceive {
    address: u64,
    length: u32,
    recv_skip_hint: u32,
    inq: u32,
    err: i32,
    copybuf_address: u64,
    copybuf_len: i32,
    flags: u32,
    rest: [u64; 3],
}

const ZERO_COPY_BYTES: usize = 3 * 4096;

/// Where the kernel may map what this socket receives. The mapping holds the socket.
fn zero_copy_map(socket: &TcpStream) -> *mut libc::c_void {
    let (read, shared, fd) = (libc::PROT_READ, libc::MAP_SHARED, socket.as_raw_fd());
    // SAFETY: a new mapping, of a size that is a multiple of the page size.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), ZERO_COPY_BYTES, read, shared, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    map
}

/// One such call: how many bytes were mapped, and how many were copied into the buffer (5.11; older kernels know none).
fn zero_copy_receive(socket: &TcpStream, map: *mut libc::c_void, buffer: &mut [u8]) -> (usize, usize) {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    let mut request = ZeroCopyReceive {
        address: map as u64,
        length: ZERO_COPY_BYTES as u32,
        copybuf_address: buffer.as_mut_ptr() as u64,
        copybuf_len: buffer.len() as i32,
        ..ZeroCopyReceive::default()
    };
    let mut len = size_of_val(&request) as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut request).cast());
    // SAFETY: the request is as long as is said and points to memory of ours.
    let ret = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, value, &raw mut len) };
    assert_eq!(ret, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: so much of the mapping is there now.
    let mapped = unsafe { std::slice::from_raw_parts(map.cast::<u8>(), request.length as usize) };
    assert!(mapped.iter().all(|&byte| byte == 7), "not what was sent");
    let copied = if len as usize > 24 { request.copybuf_len.max(0) as usize } else { 0 };
    (mapped.len(), copied)
}

/// Sends whole pages of memory that belong to no file and no process, the only ones that the kernel maps: those of a pipe.
/// Over loopback the receiver gets these very pages.
fn send_pages(socket: &TcpStream) {
    let (read_end, write_end) = pipe();
    let mut left = ZERO_COPY_BYTES;
    assert_eq!(std::fs::File::from(write_end).write(&vec![7; left]).unwrap(), left);
    while left > 0 {
        let n = splice(&read_end, socket, left);
        assert!(n > 0, "{n}");
        left -= n as usize;
    }
}

/// 9: TCP_ZEROCOPY_RECEIVE, where no receive call is made at all: the kernel maps three pages, copies the 100 bytes after
/// them, and leaves to a receive call what it does not.
#[test]
fn a_zero_copy_receive_counts() {
    const TOTAL: usize = ZERO_COPY_BYTES + 100;
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    send_pages(&client);
    assert_eq!(send(&client, &[7; 100], 0), 100);
    assert_eq!(recv(&server, TOTAL, libc::MSG_PEEK | libc::MSG_WAITALL), TOTAL as isize);
    let map = zero_copy_map(&server);
    // What fits into this buffer would be copied instead of mapped.
    let mut buffer = [0; 200];
    let (mut mapped, mut copied) = (0, 0);
    while let more @ (1.., _) | more @ (_, 1..) = zero_copy_receive(&server, map, &mut buffer) {
        (mapped, copied) = (mapped + more.0, copied + more.1);
    }
    let rest = TOTAL - mapped - copied;
    assert_eq!(recv(&server, rest + 1, libc::MSG_DONTWAIT).max(0), rest as isize, "and no more");
    // SAFETY: our own mapping.
    unsafe { libc::munmap(map, ZERO_COPY_BYTES) };
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((TOTAL as u64, 0), (0, TOTAL as u64)));
    if mapped < ZERO_COPY_BYTES {
        absent(9, &format!("a kernel that maps {mapped} of {ZERO_COPY_BYTES} bytes"));
    }
}

/// 10: an urgent byte between 10 and 10, which is asked for, and one that never is: the reader passes over it.
#[test]
fn urgent_bytes_count() {
    let mut trace = Trace::start();
    for asks in [true, false] {
        let (client, server) = tcp_pair();
        for (bytes, flags) in [(10, 0), (1, libc::MSG_OOB), (10, 0)] {
            assert_eq!(send(&client, &vec![1; bytes], flags), bytes as isize);
        }
        assert_eq!(recv(&server, 10, libc::MSG_WAITALL), 10, "up to the mark");
        if asks {
            assert_eq!(recv(&server, 1, libc::MSG_OOB), 1);
        }
        assert_eq!(recv(&server, 10, libc::MSG_WAITALL), 10, "and from there");
        let (client_row, server_row) = finish(&mut trace, client, server);
        assert_eq!((moved(&client_row), moved(&server_row)), ((21, 0), (0, 21)), "asks: {asks}");
    }
}

/// 13: 4 MiB wait when their sender closes; the reader comes later.
#[test]
fn what_waits_at_close_still_arrives() {
    const TOTAL: usize = 4 << 20;
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    set_option(&client, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20_i32);
    let bytes = vec![1; TOTAL];
    let mut sent = 0;
    while sent < TOTAL {
        let n = send(&client, &bytes[sent..], libc::MSG_DONTWAIT);
        assert!(n > 0, "all of it must find room: {n} after {sent}");
        sent += n as usize;
    }
    let waiting: i32 = {
        let mut n = 0;
        // SAFETY: writes one number.
        assert_eq!(unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) }, 0);
        n
    };
    assert!(waiting > 0, "something waits");
    drop(client);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(std::io::copy(&mut server, &mut std::io::sink()).unwrap(), TOTAL as u64);
    drop(server);
    assert_eq!(moved(&trace.closed(c, s)), (TOTAL as u64, 0));
    assert_eq!(moved(&trace.closed(s, c)), (0, TOTAL as u64));
}

/// 16: both sides have said goodbye, the socket is CLOSE, and its process reads the 100 bytes that came before.
#[test]
fn reads_after_the_end_count() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!((recv(&client, 1, 0), send(&client, &[1; 100], 0)), (0, 100));
    drop(client);
    trace.until("CLOSE", |t| {
        t.states(s).into_iter().find(|state| state.new_state == TcpState::Close).map(drop)
    });
    let state: [u8; 104] = get_option(&server, libc::IPPROTO_TCP, libc::TCP_INFO);
    assert_eq!(state[0], 7, "TCP_CLOSE");
    assert_eq!(recv(&server, 200, 0), 100);
    drop(server);
    assert_eq!((moved(&trace.closed(s, c)), moved(&trace.closed(c, s))), ((0, 100), (100, 0)));
}

/// 17: TCP Fast Open: the first connection asks for a cookie, the second sends its 600 bytes with the SYN.
#[test]
fn data_in_the_syn_counts() {
    const PORT: u16 = 7103;
    const TCPI_OPT_SYN_DATA: u8 = 32;
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 5_i32);
        for in_the_syn in [false, true] {
            let client = socket(libc::AF_INET, libc::SOCK_STREAM);
            let to = sockaddr([127, 0, 0, 1], PORT);
            // SAFETY: buffer and address are as long as is said.
            let sent = checked(unsafe {
                libc::sendto(
                    client.as_raw_fd(),
                    [1_u8; 600].as_ptr().cast(),
                    600,
                    libc::MSG_FASTOPEN,
                    (&raw const to).cast(),
                    size_of_val(&to) as libc::socklen_t,
                )
            });
            assert_eq!(sent, 600);
            let (mut server, _) = listener.accept().unwrap();
            server.read_exact(&mut [0; 600]).unwrap();
            let client = TcpStream::from(client);
            let info: [u8; 104] = get_option(&client, libc::IPPROTO_TCP, libc::TCP_INFO);
            assert_eq!(info[5] & TCPI_OPT_SYN_DATA != 0, in_the_syn, "tcpi_options: {}", info[5]);
            tell(parent, port(&client).into());
            hear(parent);
        }
    });
    for _ in 0..2 {
        let c = child.hear() as u16;
        child.tell(1);
        assert_eq!((moved(&trace.closed(c, PORT)), moved(&trace.closed(PORT, c))), ((600, 0), (0, 600)));
    }
    child.wait();
}

/// What could not be handed to the device is tried again and again, and the kernel counts it as sent each time: it was
/// written once. Of a connection to which that has happened before the tracer came the kernel tells no more what it has sent,
/// and of one that connected its acknowledged bytes have one too many: the SYN.
#[test]
fn what_cannot_be_sent_at_first_counts_once() {
    const PORT: u16 = 7105;
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        let client = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        run("tc qdisc add dev lo root bfifo limit 1");
        assert_eq!(send(&client, &[1; 1000], 0), 1000);
        // struct tcp_info: tcpi_bytes_sent at byte 200.
        let counted = || get_option::<[u64; 26]>(&client, libc::IPPROTO_TCP, libc::TCP_INFO)[25];
        let deadline = Instant::now() + PATIENCE;
        while counted() <= 1000 {
            assert!(Instant::now() < deadline, "the kernel did not try again");
            thread::sleep(Duration::from_millis(50));
        }
        run("tc qdisc del dev lo root");
        server.read_exact(&mut [0; 1000]).unwrap();
        tell(parent, port(&client).into());
        hear(parent);
        assert_eq!(send(&client, &[1; 500], 0), 500);
        server.read_exact(&mut [0; 500]).unwrap();
        tell(parent, 1);
        hear(parent);
    });
    let c = child.hear() as u16;
    let mut later = Trace::fresh();
    child.tell(1);
    assert_eq!(child.hear(), 1);
    for (trace, written) in [(&mut trace, 1500), (&mut later, 1501)] {
        trace.until("what was written", |t| t.tcp(c, PORT).filter(|row| row.bytes_out == written).map(drop));
    }
    child.tell(1);
    child.wait();
    for (trace, written) in [(&mut trace, 1500), (&mut later, 1501)] {
        let (client, server) = (trace.closed(c, PORT), trace.closed(PORT, c));
        assert_eq!((moved(&client), moved(&server)), ((written, 0), (0, 1500)));
    }
}

/// 18: one packet in twenty is lost: what is sent again counts once. (The kernel makes few packets of many sends, so it
/// goes on until something was lost.)
#[test]
fn retransmissions_count_no_byte() {
    const PORT: u16 = 7104;
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        enter_own_network();
        if !netem("loss 5%") {
            return tell(parent, 0);
        }
        let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        let client = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        let reader = thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()).unwrap());
        // struct tcp_info: tcpi_total_retrans at byte 100.
        let retransmits = || get_option::<[u32; 26]>(&client, libc::IPPROTO_TCP, libc::TCP_INFO)[25];
        let mut sent = 0;
        while sent < 1_000_000 || retransmits() == 0 {
            assert_eq!(send(&client, &[1; 2000], 0), 2000);
            sent += 2000;
        }
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), sent);
        tell(parent, port(&client).into());
        tell(parent, sent);
    });
    let c = child.hear() as u16;
    if c == 0 {
        child.wait();
        return absent(18, "a kernel without netem");
    }
    let total = child.hear();
    child.wait();
    assert_eq!((moved(&trace.closed(c, PORT)), moved(&trace.closed(PORT, c))), ((total, 0), (0, total)));
    let retransmits = trace.seen.iter().find_map(|e| match e {
        tcptop::CollectorEvent::Closed(end) if end.connection.key.local_port == c => Some(end.retransmits),
        _ => None,
    });
    assert!(retransmits > Some(0));
}

/// Keys for one direction of kTLS (struct tls12_crypto_info_aes_gcm_128, include/uapi/linux/tls.h): TLS 1.2, AES-GCM
/// with 128 bits.
fn set_tls_keys(socket: &TcpStream, direction: i32) {
    const SOL_TLS: i32 = 282;
    let mut keys = [7_u8; 40];
    keys[..4].copy_from_slice(&[0x03, 0x03, 51, 0]);
    keys[32..].fill(0);
    set_option(socket, SOL_TLS, direction, keys);
}

/// 20: kTLS: 3000 bytes one way and 2000 the other, each in one record, which adds a header of 5 bytes, 8 of nonce and 16
/// of tag. TCP carries ciphertext, and that is what is counted.
#[test]
fn ktls_counts_what_tcp_carries() {
    const TCP_ULP: i32 = 31;
    const RECORD: u64 = 5 + 8 + 16;
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let ulp = |socket: &TcpStream| {
        // SAFETY: the name is as long as is said.
        let ret = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_ULP, c"tls".as_ptr().cast(), 3)
        };
        checked(ret as isize)
    };
    if ulp(&client) == -(libc::ENOENT as isize) {
        return absent(20, "a kernel without kTLS");
    }
    assert_eq!(ulp(&server), 0);
    const TLS_TX: i32 = 1;
    const TLS_RX: i32 = 2;
    for socket in [&client, &server] {
        set_tls_keys(socket, TLS_TX);
        set_tls_keys(socket, TLS_RX);
    }
    assert_eq!((send(&client, &[1; 3000], 0), recv(&server, 3000, libc::MSG_WAITALL)), (3000, 3000));
    assert_eq!((send(&server, &[1; 2000], 0), recv(&client, 2000, libc::MSG_WAITALL)), (2000, 2000));
    // struct tcp_info: tcpi_bytes_received at byte 128.
    let info: [u64; 17] = get_option(&server, libc::IPPROTO_TCP, libc::TCP_INFO);
    assert_eq!(info[16], 3000 + RECORD);
    let (c, s) = (port(&client), port(&server));
    for (local, remote, moved) in
        [(c, s, (3000 + RECORD, 2000 + RECORD)), (s, c, (2000 + RECORD, 3000 + RECORD))]
    {
        let told =
            |t: &Trace| t.tcp(local, remote).filter(|row| (row.bytes_out, row.bytes_in) == moved).map(drop);
        trace.until("both ways before the end", told);
    }
    let (client_row, server_row) = finish(&mut trace, client, server);
    // kTLS says goodbye with an alert of its own where the kernel does so; it never does.
    assert_eq!(moved(&client_row), (3000 + RECORD, 2000 + RECORD));
    assert_eq!(moved(&server_row), (2000 + RECORD, 3000 + RECORD));
}

const IPPROTO_MPTCP: i32 = 262;

/// A connected pair of MPTCP sockets, or why there can be none.
fn mptcp_pair() -> Result<(TcpStream, TcpStream), isize> {
    let listener: OwnedFd = socket_of(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP)?;
    let listener = {
        let any = sockaddr([127, 0, 0, 1], 0);
        // SAFETY: the address is as long as is said.
        unsafe {
            assert_eq!(libc::bind(listener.as_raw_fd(), (&raw const any).cast(), 16), 0);
            assert_eq!(libc::listen(listener.as_raw_fd(), 5), 0);
        }
        TcpListener::from(listener)
    };
    let client = socket_of(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP)?;
    let to = sockaddr([127, 0, 0, 1], listener.local_addr().unwrap().port());
    assert_eq!(crate::net::connect(&client, &to), 0);
    Ok((TcpStream::from(client), listener.accept().unwrap().0))
}

/// The same, or none where the kernel has no MPTCP, which is told of this scenario.
fn mptcp_pair_or_absent(scenario: u32) -> Option<(TcpStream, TcpStream)> {
    mptcp_pair()
        .inspect_err(|e| {
            assert!([libc::EPROTONOSUPPORT, libc::ENOPROTOOPT].contains(&(-e as i32)), "{e}");
            absent(scenario, "a kernel without MPTCP");
        })
        .ok()
}

/// 21: MPTCP: its one subflow is one TCP connection with the program's bytes, and nothing is there twice.
#[test]
fn mptcp_subflows_are_tcp_connections() {
    let mut trace = Trace::start();
    let Some((mut client, mut server)) = mptcp_pair_or_absent(21) else { return };
    let (c, s) = (port(&client), port(&server));
    client.write_all(&[1; 5000]).unwrap();
    server.read_exact(&mut [0; 5000]).unwrap();
    server.write_all(&[1; 1000]).unwrap();
    client.read_exact(&mut [0; 1000]).unwrap();
    drop((client, server));
    let (client_row, server_row) = (trace.closed(c, s), trace.closed(s, c));
    assert_eq!((moved(&client_row), moved(&server_row)), ((5000, 1000), (1000, 5000)));
    assert_eq!(trace.rows(Protocol::Tcp, c).len(), 1);
    assert_eq!(trace.rows(Protocol::Tcp, s).iter().filter(|row| row.key.remote_port == c).count(), 1);
}

/// 86: of an MPTCP connection that goes on nothing is seen that it moves: its subflows do not pretend to know, until they end.
#[test]
fn a_living_mptcp_subflow_is_marked() {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let Some((mut client, mut server)) = mptcp_pair_or_absent(79) else { return };
        let (c, s) = (port(&client), port(&server));
        client.write_all(&[1; 1111]).unwrap();
        server.read_exact(&mut [0; 1111]).unwrap();
        server.write_all(&[1; 2222]).unwrap();
        client.read_exact(&mut [0; 2222]).unwrap();
        let ends = [(c, s), (s, c)];
        trace.until("both ends", |t| t.tcp(c, s).and(t.tcp(s, c)).map(drop));
        trace.listen(Duration::from_millis(300));
        let marks = ends.map(|(l, r)| trace.tcp(l, r).is_some_and(|row| row.is_partial && !row.is_closed));
        assert_eq!(marks, [true; 2]);
        drop((client, server));
        let rows = ends.map(|(l, r)| trace.closed(l, r));
        assert_eq!([moved(&rows[0]), moved(&rows[1])], [(1111, 2222), (2222, 1111)]);
        assert!(rows.iter().all(|row| !row.is_partial), "{rows:?}");
    }
}

/// 46: kernel workers hold the sockets of MPTCP when they say goodbye or send again. The kernel owns only what no process
/// has used: the clients' ends are this process's all the time, which has connected them. Strangers keep both processors
/// busy, so that some other process is always there to be taken for the user.
#[test]
fn a_kernel_worker_is_not_a_process() {
    let mut trace = Trace::start();
    let strangers = crate::lifecycle::busy_strangers();
    let mut ports = Vec::new();
    for _ in 0..20 {
        let Some((mut client, server)) = mptcp_pair_or_absent(46) else { return };
        client.write_all(&[1; 100]).unwrap();
        ports.push((port(&client), port(&server)));
        // Closed with bytes unread: the worker has to tell the peer.
        drop((client, server));
    }
    for &(c, s) in &ports {
        trace.closed(c, s);
        trace.closed(s, c);
    }
    drop(strangers);
    let me = std::process::id();
    for event in &trace.seen {
        let Some(info) = event.connection() else { continue };
        let (local, remote) = (info.key.local_port, info.key.remote_port);
        if !ports.contains(&(local, remote)) && !ports.contains(&(remote, local)) {
            continue;
        }
        let actor = trace.transfers().filter(|t| t.connection == *info).find_map(|t| t.actor);
        for process in info.owner.into_iter().chain(actor) {
            let is_kernel = process.is_kernel() && process.name == "kernel";
            assert!(process.pid == me || is_kernel, "{event:?}");
        }
        if ports.contains(&(local, remote)) {
            let seen = (info.owner.map(|owner| owner.pid), info.provenance);
            assert_eq!(seen, (Some(me), Provenance::Seen), "{event:?}");
        }
    }
}

/// 22: io_uring by vectors and by write(2)'s like, done by a kernel thread that polls the queue, or by a worker: the
/// bytes are the process's, under its own name.
#[test]
fn io_uring_by_other_ways_counts_for_the_process() {
    use io_uring::{IoUring, opcode, squeue::Flags, types::Fd};
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (c, bytes) = (port(&client), [1_u8; 1000]);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: 300 };
    // SAFETY: all zeros is a message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    let mut total = 0;
    for polled in [false, true] {
        let mut ring: IoUring = if polled {
            // Before 5.11 a polled queue takes registered files only.
            IoUring::builder().setup_sqpoll(1000).build(8).expect("io_uring")
        } else {
            IoUring::new(8).expect("io_uring")
        };
        let is_old = polled && !ring.params().is_feature_sqpoll_nonfixed();
        if is_old {
            ring.submitter().register_files(&[client.as_raw_fd()]).unwrap();
        }
        let fd = Fd(if is_old { 0 } else { client.as_raw_fd() });
        let registered = if is_old { Flags::FIXED_FILE } else { Flags::empty() };
        let entries = [
            opcode::SendMsg::new(fd, &raw const message).build(),
            opcode::Write::new(fd, bytes.as_ptr(), 200).build(),
            opcode::Send::new(fd, bytes.as_ptr(), 100).build(),
        ];
        for (entry, n) in entries.into_iter().zip([300, 200, 100]) {
            for flags in [registered, registered | Flags::ASYNC] {
                // SAFETY: buffers and message live until the completion.
                unsafe { ring.submission().push(&entry.clone().flags(flags)).unwrap() };
                ring.submit_and_wait(1).unwrap();
                assert_eq!(ring.completion().next().unwrap().result(), n, "polled: {polled}");
                server.read_exact(&mut vec![0; n as usize]).unwrap();
                total += n as u64;
            }
        }
    }
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((total, 0), (0, total)));
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let me = (std::process::id(), name.trim());
    assert_eq!((client_row.pid().unwrap(), client_row.process_name().unwrap().as_str()), me);
    let sends = trace.transfers().filter(|t| t.connection.key.local_port == c && t.bytes > 0);
    let actors: Vec<_> = sends.map(|t| t.actor.expect("an actor")).collect();
    assert!(!actors.is_empty() && actors.iter().all(|a| (a.pid, a.name.as_str()) == me), "{actors:?}");
}

/// 23: asking for quick acknowledgements after each byte moves none.
#[test]
fn quick_acknowledgements_are_no_bytes() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    for _ in 0..100 {
        assert_eq!((send(&client, &[1], 0), recv(&server, 1, 0)), (1, 1));
        for socket in [&client, &server] {
            set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1_i32);
        }
    }
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((100, 0), (0, 100)));
}

/// 24: one side says goodbye, then closes: that is one change to FIN_WAIT1.
#[test]
fn a_half_close_is_one_state_change() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(recv(&server, 1, 0), 0);
    drop(client);
    drop(server);
    trace.closed(c, s);
    trace.closed(s, c);
    let to = |local, state| trace.states(local).into_iter().filter(|s| s.new_state == state).count();
    use TcpState::*;
    assert_eq!([FinWait1, FinWait2, Close, LastAck].map(|state| to(c, state)), [1, 1, 1, 0]);
    let of_server = trace.states(s).into_iter().filter(|change| change.connection.key.remote_port == c);
    let states: Vec<_> = of_server.map(|change| change.new_state).collect();
    assert_eq!(states, [Established, CloseWait, LastAck, Close]);
}
