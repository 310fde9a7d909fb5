// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine with 100,000 connections: how fast they are found, and how much memory the example takes for them.

use crate::example;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{ConnectionRecord, LinuxCollector, NetworkCollector};

const PAIRS: usize = 50_000;
/// An address has 28,000 ports to connect from.
const PAIRS_PER_ADDRESS: usize = 10_000;
const TIMES: usize = 5;

/// Both ends of many connections.
pub(crate) struct Crowd(Vec<(TcpStream, TcpStream)>);

impl Crowd {
    pub(crate) fn new() -> Self {
        let files = Some(3 * PAIRS as u64);
        setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).expect("root may do that");
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let pair = |n: usize| {
            let address = Ipv4Addr::new(127, 0, 2, (n / PAIRS_PER_ADDRESS) as u8 + 1);
            let client = TcpStream::connect((address, port)).expect("a connection");
            (client, listener.accept().expect("a connection").0)
        };
        Self((0..PAIRS).map(pair).collect())
    }

    /// How fast the collector finds them and their owner, beside `ss -tnp`.
    pub(crate) fn find(&self) -> String {
        let (mut collector, events) = LinuxCollector::builder().spawn().expect("tracing needs root");
        let ours = |found: &ConnectionRecord| found.pid() == Some(std::process::id());
        let (mut by_us, mut by_ss) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let begin = Instant::now();
            let found = collector.bootstrap_existing().expect("iterators");
            by_us.push(begin.elapsed());
            assert!(found.iter().filter(|found| ours(found)).count() >= 2 * self.0.len(), "all are found");
            let begin = Instant::now();
            let ss = Command::new("ss").arg("-tnp").stdout(Stdio::null()).status();
            by_ss.extend(ss.is_ok().then(|| begin.elapsed()));
        }
        collector.stop().expect("stops");
        drop(events);
        by_us.sort();
        by_ss.sort();
        let ours = by_us[TIMES / 2];
        match by_ss.get(by_ss.len() / 2) {
            Some(ss) => format!("{ours:.0?}, ss/{:.0}", ss.as_secs_f64() / ours.as_secs_f64()),
            None => format!("{ours:.0?}, no ss here"),
        }
    }

    /// The most memory that the example has resident while it shows them.
    pub(crate) fn memory_of_example(&self) -> String {
        let mut example = Command::new(example::path())
            .args(["--json", "--no-events", "--duration", "5"])
            .stdout(Stdio::null())
            .spawn()
            .expect("it was just built");
        let mut peak = 0;
        while example.try_wait().expect("a child").is_none() {
            let status = fs::read_to_string(format!("/proc/{}/status", example.id())).unwrap_or_default();
            let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
            peak = kib.and_then(|kib| kib.parse().ok()).unwrap_or(peak);
            thread::sleep(Duration::from_millis(20));
        }
        format!("{} MiB", peak / 1024)
    }
}
