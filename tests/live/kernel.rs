// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel as the user of a socket: a block device whose blocks come over TCP (nbd).

use crate::harness::{PATIENCE, Trace, absent};
use crate::net::{checked, port, tcp_pair};
use crate::tcp::{finish, moved};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, Provenance};

const DEVICE: &str = "/dev/nbd0";
const BLOCK: u64 = 512;
const BLOCKS: u64 = 64;

/// include/uapi/linux/nbd.h
const NBD_SET_SOCK: u64 = 0xab00;
const NBD_SET_BLKSIZE: u64 = 0xab01;
const NBD_DO_IT: u64 = 0xab03;
const NBD_CLEAR_SOCK: u64 = 0xab04;
const NBD_SET_SIZE_BLOCKS: u64 = 0xab07;
const NBD_DISCONNECT: u64 = 0xab08;
const NBD_CMD_READ: u32 = 0;
const NBD_CMD_DISC: u32 = 2;
const REPLY_MAGIC: u32 = 0x6744_6698;

fn nbd(device: &File, request: u64, argument: u64) -> isize {
    // SAFETY: none of these takes a pointer.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request, argument) } as isize)
}

/// Answers requests with zeros until it is told to end. Returns how many bytes it has read and written.
fn serve(server: &mut TcpStream) -> (u64, u64) {
    let (mut read, mut written) = (0, 0);
    loop {
        // Magic, command, handle (8 bytes), offset (8 bytes), length.
        let mut request = [0; 28];
        server.read_exact(&mut request).unwrap();
        read += request.len() as u64;
        let number = |at: usize| u32::from_be_bytes(*request[at..].first_chunk().unwrap());
        if number(4) == NBD_CMD_DISC {
            server.shutdown(Shutdown::Write).unwrap();
            return (read, written);
        }
        assert_eq!(number(4), NBD_CMD_READ);
        let head = [&REPLY_MAGIC.to_be_bytes()[..], &[0; 4], &request[8..16]].concat();
        let reply = [head, vec![0; number(24) as usize]].concat();
        server.write_all(&reply).unwrap();
        written += reply.len() as u64;
    }
}

/// 46: what the kernel receives by itself is the kernel's doing, by default and with an event per call. The connection
/// stays the process's that made it.
#[test]
fn the_kernel_is_not_the_process_that_gave_it_the_socket() {
    for start in [Trace::start, Trace::per_call] {
        let Ok(device) = File::options().read(true).write(true).open(DEVICE) else {
            return absent(46, "a kernel without nbd");
        };
        let mut trace = start();
        let (client, mut server) = tcp_pair();
        let c = port(&client);
        let socket = client.as_raw_fd() as u64;
        for (request, argument) in
            [(NBD_SET_BLKSIZE, BLOCK), (NBD_SET_SIZE_BLOCKS, BLOCKS), (NBD_SET_SOCK, socket)]
        {
            assert_eq!(nbd(&device, request, argument), 0, "{request:#x}");
        }
        let (out, r#in) = thread::scope(|scope| {
            let served = scope.spawn(|| serve(&mut server));
            let device = &device;
            // Blocks for as long as the device is connected.
            let connected = scope.spawn(move || nbd(device, NBD_DO_IT, 0));
            read_all_blocks();
            assert_eq!(nbd(device, NBD_DISCONNECT, 0), 0);
            assert_eq!(connected.join().unwrap(), 0);
            served.join().unwrap()
        });
        nbd(&device, NBD_CLEAR_SOCK, 0);
        drop(device);
        assert!(r#in >= BLOCK * BLOCKS, "{} bytes served", r#in);
        let (client_row, server_row) = finish(&mut trace, client, server);
        assert_eq!((moved(&client_row), moved(&server_row)), ((out, r#in), (r#in, out)));
        let me = std::process::id();
        assert_eq!((client_row.pid(), client_row.provenance), (Some(me), Provenance::Seen));
        let mut received = 0;
        for event in &trace.seen {
            let (CollectorEvent::TcpRecv(t) | CollectorEvent::TcpSend(t)) = event else { continue };
            if t.connection.key.local_port != c {
                continue;
            }
            let actor = t.actor.expect("an actor");
            let is_kernel = actor.is_kernel() && actor.name == "kernel";
            if matches!(event, CollectorEvent::TcpRecv(_)) {
                received += t.bytes;
                assert!(is_kernel, "{event:?}");
            }
            // Requests are sent in the process that reads the device, or by a worker of the kernel.
            assert!(is_kernel || actor.pid == me, "{event:?}");
        }
        assert_eq!(received, r#in);
    }
}

/// The device is there some time after it was connected, and until then reading fails.
fn read_all_blocks() {
    let deadline = Instant::now() + PATIENCE;
    let mut blocks = vec![1; (BLOCK * BLOCKS) as usize];
    while let Err(e) = File::open(DEVICE).and_then(|device| device.read_exact_at(&mut blocks, 0)) {
        assert!(Instant::now() < deadline, "{e}");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(blocks.iter().all(|&byte| byte == 0));
}
