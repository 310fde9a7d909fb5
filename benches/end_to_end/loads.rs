// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traffic over loopback, each kind as expensive for a tracer as it gets: little work per call.

use rustix::net::sockopt;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where the traffic runs.
pub(crate) const FIRST: usize = 1;
/// For what crosses to another processor, and for the tracer's own threads: what they do is measured by itself.
pub(crate) const SECOND: usize = 0;
/// How often to look at the clock.
const BATCH: u64 = 64;

/// Something that can be done again and again.
pub(crate) trait Load {
    /// Does it for so long; returns how often.
    fn run(&mut self, time: Duration) -> u64;
}

/// How long one operation takes, in nanoseconds.
pub(crate) fn nanoseconds_per_operation(load: &mut dyn Load, time: Duration) -> f64 {
    let begin = Instant::now();
    let operations = load.run(time);
    begin.elapsed().as_nanos() as f64 / operations as f64
}

fn repeat(time: Duration, mut operation: impl FnMut()) -> u64 {
    let end = Instant::now() + time;
    let mut operations = 0;
    while Instant::now() < end {
        (0..BATCH).for_each(|_| operation());
        operations += BATCH;
    }
    operations
}

/// Machines with one processor have no other choice.
pub(crate) fn pin(cpu: usize) {
    run_on([cpu.min(processors() - 1)]);
}

/// For what this thread starts: it runs where the scheduler puts it.
pub(crate) fn unpin() {
    run_on(0..processors());
}

fn run_on(processors: impl IntoIterator<Item = usize>) {
    let mut set = CpuSet::new();
    processors.into_iter().for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set).expect("a processor to run on");
}

/// As many as there were at the start: who is pinned sees one.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    (client, server)
}

/// One byte to a thread on the same processor and back.
pub(crate) struct PingPong(TcpStream);

impl PingPong {
    pub(crate) fn new() -> Self {
        let (client, mut server) = tcp_pair();
        for end in [&client, &server] {
            end.set_nodelay(true).expect("a TCP socket");
            // Some congestion controls send at times of their own choice.
            sockopt::set_tcp_congestion(end, "reno").expect("every kernel has it");
        }
        thread::spawn(move || {
            pin(FIRST);
            let mut byte = [0];
            while server.read_exact(&mut byte).is_ok() && server.write_all(&byte).is_ok() {}
        });
        Self(client)
    }
}

impl Load for PingPong {
    fn run(&mut self, time: Duration) -> u64 {
        pin(FIRST);
        let mut byte = [1];
        repeat(time, || {
            self.0.write_all(&byte).expect("the other end lives");
            self.0.read_exact(&mut byte).expect("the other end lives");
        })
    }
}

/// 64 bytes to a socket that reads them right after.
pub(crate) struct UdpBlast {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl UdpBlast {
    pub(crate) fn new() -> Self {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a port");
        sender.connect(receiver.local_addr().expect("an address")).expect("a route");
        Self { sender, receiver }
    }
}

impl Load for UdpBlast {
    fn run(&mut self, time: Duration) -> u64 {
        pin(FIRST);
        let mut datagram = [1; 64];
        repeat(time, || {
            self.sender.send(&datagram).expect("loopback takes it");
            self.receiver.recv(&mut datagram).expect("it has arrived");
        })
    }
}

/// Connects, moves a byte each way, closes.
pub(crate) struct Churn {
    listener: TcpListener,
    done: u64,
}

impl Churn {
    pub(crate) fn new() -> Self {
        Self { listener: TcpListener::bind("0.0.0.0:0").expect("a port"), done: 0 }
    }
}

impl Load for Churn {
    fn run(&mut self, time: Duration) -> u64 {
        pin(FIRST);
        let port = self.listener.local_addr().expect("an address").port();
        let mut byte = [1];
        repeat(time, || {
            self.done += 1;
            // TIME_WAIT keeps a port from being used again with the same address.
            let address = Ipv4Addr::new(127, 0, 1, (self.done % 250) as u8);
            let mut client = TcpStream::connect((address, port)).expect("a connection");
            let (mut server, _) = self.listener.accept().expect("a connection");
            client.write_all(&byte).expect("a connection");
            server.read_exact(&mut byte).expect("a byte");
            server.write_all(&byte).expect("a connection");
            client.read_exact(&mut byte).expect("a byte");
        })
    }
}

/// 64 KiB at a time to a thread on another processor.
pub(crate) struct Stream {
    client: TcpStream,
    is_over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    pub(crate) fn new() -> Self {
        let (client, mut server) = tcp_pair();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let reader = thread::spawn(move || {
            pin(SECOND);
            let mut buffer = vec![0; 1 << 16];
            while !over.load(Ordering::Relaxed) && server.read(&mut buffer).is_ok_and(|n| n > 0) {}
        });
        Self { client, is_over, reader: Some(reader) }
    }
}

impl Load for Stream {
    fn run(&mut self, time: Duration) -> u64 {
        pin(FIRST);
        let buffer = vec![1; 1 << 16];
        repeat(time, || self.client.write_all(&buffer).expect("the other end lives"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(self.client.shutdown(std::net::Shutdown::Both));
        drop(self.reader.take().map(JoinHandle::join));
    }
}
