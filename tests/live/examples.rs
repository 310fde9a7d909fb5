// SPDX-License-Identifier: MIT OR Apache-2.0
//! The small examples: each sees known traffic, and prints what it says that it prints.

use crate::cli::{self, Running};
use crate::collector::{bpf_objects, nothing_left_but};
use crate::net::{Child, hear, recv, rename, send, tcp_pair, tell};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// An example that runs, and what it has printed so far.
struct Example {
    running: Running,
    lines: Vec<String>,
}

impl Example {
    /// Returns when it has printed a line with this, which says that it traces.
    fn start(name: &str, seconds: &str, ready: &str) -> Self {
        let path = cli::path().with_file_name(name);
        assert!(path.exists(), "{} is missing: build it with `cargo build --examples`", path.display());
        let mut command = Command::new(path);
        command.arg(seconds).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut running, first) = Running::start_command(&mut command);
        let mut lines = vec![first];
        while !lines.iter().any(|line| line.contains(ready)) {
            lines.push(running.line().unwrap_or_else(|| panic!("{name} has ended: {lines:#?}")));
        }
        Self { running, lines }
    }

    /// Waits for its end, which must be a good one. What it has printed in all.
    fn finish(mut self) -> Vec<String> {
        let (rest, code, errors) = self.running.finish_text();
        self.lines.extend(rest);
        assert_eq!((code, errors.as_str()), (0, ""), "{:#?}", self.lines);
        self.lines
    }
}

/// The latest line that begins with this, spaces aside, without the beginning.
fn after<'a>(lines: &'a [String], beginning: &str) -> &'a str {
    let found = lines.iter().rev().find_map(|line| line.trim().strip_prefix(beginning));
    found.unwrap_or_else(|| panic!("no line begins with {beginning:?}: {lines:#?}"))
}

fn exchange(client: &TcpStream, server: &TcpStream, bytes: usize) {
    assert_eq!(send(client, &vec![1; bytes], 0), bytes as isize);
    assert_eq!(recv(server, bytes, libc::MSG_WAITALL), bytes as isize);
}

/// A key as it is printed.
fn key(socket: &TcpStream) -> String {
    format!("tcp {} -> {}", socket.local_addr().unwrap(), socket.peer_addr().unwrap())
}

/// The name that the kernel has for this process.
fn own_name() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned()
}

#[test]
fn minimal_prints_what_exists_and_then_transfers() {
    let (client, server) = tcp_pair();
    exchange(&client, &server, 1000);
    let example = Example::start("minimal", "2", "connections exist");
    exchange(&client, &server, 3333);
    let lines = example.finish();
    for (socket, existing, transfer) in [
        (&client, "0 bytes in, 1000 out", "3333 bytes out"),
        (&server, "1000 bytes in, 0 out", "3333 bytes in"),
    ] {
        for what in [existing, transfer] {
            let line = format!("{} {}: {what}\n", key(socket), own_name());
            assert!(lines.contains(&line), "{line:?} in {lines:#?}");
        }
    }
}

#[test]
fn per_process_adds_up_what_a_process_has_moved() {
    let mut child = Child::fork(|parent| {
        rename("mover");
        let (client, server) = tcp_pair();
        exchange(&client, &server, 100);
        tell(parent, 1);
        hear(parent);
        for bytes in [20, 2000] {
            let (client, server) = tcp_pair();
            exchange(&client, &server, bytes);
        }
        exchange(&server, &client, 900);
    });
    child.hear();
    let example = Example::start("per_process", "2", "after 0 s");
    child.tell(1);
    let who = format!("mover[{}]: ", child.pid);
    // One connection is older than the tracer, two are gone before the end.
    child.wait();
    let lines = example.finish();
    assert_eq!(after(&lines, &who), "3020 bytes in, 3020 out");
}

#[test]
fn failed_connects_says_who_failed_and_why() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let example = Example::start("failed_connects", "1", "waiting");
    assert!(TcpStream::connect(nobody).is_err());
    let lines = example.finish();
    let who = format!("{}[{}] to {nobody}: ", own_name(), std::process::id());
    let why = after(&lines, &who).strip_prefix("refused, Connection refused (os error 111), after ");
    assert!(why.is_some_and(|time| time.ends_with('s')), "{lines:#?}");
}

#[test]
fn loops_of_their_own_see_each_byte() {
    for name in ["epoll", "tokio"] {
        let (client, server) = tcp_pair();
        exchange(&client, &server, 1000);
        let example = Example::start(name, "2", &key(&server));
        exchange(&client, &server, 2500);
        let lines = example.finish();
        assert_eq!(after(&lines, &key(&client)), ": 0 bytes in, 3500 out", "{name}");
        assert_eq!(after(&lines, &key(&server)), ": 3500 bytes in, 0 out", "{name}");
    }
}

/// Its last rows have what came until the stop.
#[test]
fn a_tracer_in_a_struct_starts_and_stops() {
    let before = bpf_objects();
    let (client, server) = tcp_pair();
    let example = Example::start("tracer_in_a_struct", "1", "tracing");
    assert_ne!(bpf_objects(), before);
    exchange(&client, &server, 2222);
    let lines = example.finish();
    let stopped = lines.iter().position(|line| line == "stopped\n").expect("it stops");
    assert_eq!(after(&lines[stopped..], &key(&client)), ": 0 bytes in, 2222 out");
    assert_eq!(after(&lines[stopped..], &key(&server)), ": 2222 bytes in, 0 out");
    nothing_left_but(&before);
}
