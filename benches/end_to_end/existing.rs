// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine with 100,000 connections: how fast they are found, and how much memory the example takes for them.

use crate::{diag, example, object};
use libbpf_rs::Iter;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{ConnectionRecord, LinuxCollector};

/// No process may have open as many files as there are sockets here, not even root's everywhere.
const HOLDERS: usize = 6;
const PAIRS_EACH: usize = 8_400;
/// What makes this program one of them.
pub(crate) const HOLD: &str = "--hold";
const TIMES: usize = 5;

/// Processes with both ends of many connections; they end with their standard input.
pub(crate) struct Crowd(Vec<(Child, ChildStdin)>);

/// What such a process does.
pub(crate) fn hold() {
    let pairs = pairs(PAIRS_EACH);
    println!("{}", pairs.len());
    drop(std::io::stdin().read(&mut [0]));
}

/// Both ends of so many connections.
pub(crate) fn pairs(count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let pair = |_| {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
        (client, listener.accept().expect("a connection").0)
    };
    (0..count).map(pair).collect()
}

impl Crowd {
    pub(crate) fn new() -> Self {
        let holder = |_| {
            let mut command = Command::new(std::env::current_exe().expect("/proc"));
            let piped = command.arg(HOLD).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = piped.spawn().expect("this program");
            let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            let mut ready = String::new();
            BufReader::new(output).read_line(&mut ready).expect("it says how many");
            assert_eq!(ready.trim(), PAIRS_EACH.to_string());
            (child, input)
        };
        Self((0..HOLDERS).map(holder).collect())
    }

    fn has(&self, found: &ConnectionRecord) -> bool {
        self.0.iter().any(|(child, _)| found.pid() == Some(child.id()))
    }

    /// How fast the collector finds them and their owner, beside `ss -tnp`.
    pub(crate) fn find(&self) -> String {
        let (mut collector, events) = LinuxCollector::builder().spawn().expect("tracing needs root");
        let (mut by_us, mut by_ss) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let begin = Instant::now();
            let found = collector.bootstrap_existing().expect("sock_diag");
            by_us.push(begin.elapsed());
            let of_crowd = found.iter().filter(|found| self.has(found)).count();
            assert_eq!(of_crowd, 2 * PAIRS_EACH * HOLDERS, "all are found, with their owners");
            let begin = Instant::now();
            let ss = Command::new("ss").arg("-tnp").stdout(Stdio::null()).status();
            by_ss.extend(ss.is_ok().then(|| begin.elapsed()));
        }
        collector.stop().expect("stops");
        drop(events);
        let ours = median(by_us).expect("there are some");
        match median(by_ss) {
            Some(ss) => format!("{ours:.0?}, ss/{:.0}", ss.as_secs_f64() / ours.as_secs_f64()),
            None => format!("{ours:.0?}, no ss here"),
        }
    }

    /// How long the kernel tells of them and walks over all files, both at once, if nobody looks.
    pub(crate) fn pass_by(&self) -> String {
        let object = object::open("walking").load().expect("Linux 5.8");
        let walk = object.progs_mut().next().expect("it has one").attach().expect("it is loaded");
        let pass_all = |_| {
            let begin = Instant::now();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let nothing = Iter::new(&walk).expect("an iterator").read(&mut [0; 4096]);
                    assert_eq!(nothing.expect("it ends"), 0, "it hands out nothing");
                });
                diag::pass_by();
            });
            begin.elapsed()
        };
        let time = median((0..TIMES).map(pass_all).collect());
        format!("{:.0?}", time.expect("there are some"))
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
            peak = example::peak_of(example.id()).unwrap_or(peak);
            thread::sleep(Duration::from_millis(20));
        }
        format!("{peak} MiB")
    }
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (mut child, input) in self.0.drain(..) {
            drop(input);
            child.wait().expect("a child");
        }
    }
}
