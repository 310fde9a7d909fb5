// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the options do.

use super::{Running, is};
use crate::harness::is_slow;
use crate::net::{Child, hear, port, recv, send, tcp_pair, tell};
use crate::udp::bound;
use serde_json::Value;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The row of a TCP connection.
fn row(lines: &[Value], local: u16, remote: u16) -> Option<&Value> {
    let rows = lines.iter().filter(|v| is(v, "connection") && v["protocol"] == "tcp");
    rows.into_iter().find(|v| v["local_port"] == local && v["remote_port"] == remote)
}

/// --duration: it ends in about that time, with success. --no-events: a start line, connections, statistics, nothing
/// else. --no-bootstrap: not the connection that was there before and on which nothing happens.
#[test]
fn it_ends_when_the_time_is_over() {
    let (client, server) = tcp_pair();
    let (running, _) = Running::start(&["--json", "--duration", "1.5", "--no-events", "--no-bootstrap"]);
    let live = Instant::now();
    let (lines, code, errors) = running.finish();
    let took = live.elapsed();
    assert_eq!((code, errors.as_str()), (0, ""));
    let more = Duration::from_secs(if is_slow() { 30 } else { 20 });
    // The start line is written a moment before the time begins, and read a moment after that.
    let asked = Duration::from_millis(1500);
    assert!((asked - Duration::from_millis(300)..asked + more).contains(&took), "{took:?}");
    assert!(lines.iter().all(|v| is(v, "connection") || is(v, "stats")), "{lines:?}");
    assert_eq!(lines.iter().filter(|v| is(v, "stats")).count(), 1);
    for (a, b) in [(&client, &server), (&server, &client)] {
        assert_eq!(row(&lines, port(a), port(b)), None);
    }
}

/// A process that connects to a server in another one before anything is traced and sends 1000 bytes; when it is told
/// to, it connects again, sends 10 bytes 100 times in more than a second, and a datagram.
fn old_and_new(l: u16, u: u16) -> Child {
    Child::fork(move |parent| {
        let old = TcpStream::connect(("127.0.0.1", l)).unwrap();
        assert_eq!(send(&old, &[1; 1000], 0), 1000);
        tell(parent, port(&old).into());
        hear(parent);
        let new = TcpStream::connect(("127.0.0.1", l)).unwrap();
        for _ in 0..100 {
            assert_eq!(send(&new, &[1; 10], 0), 10);
            thread::sleep(Duration::from_millis(10));
        }
        bound("127.0.0.1:0").0.send_to(&[1; 10], ("127.0.0.1", u)).unwrap();
        tell(parent, port(&new).into());
        drop(new);
        hear(parent);
    })
}

/// --pid and --protocol: of two processes that talk to each other over TCP and UDP, one process's TCP and nothing else.
/// Without --no-bootstrap: also what it had before, with its total. --granularity: what is sent within a second and is
/// reported about ten times by default, is reported at once, and for the rest at the end.
#[test]
fn it_shows_one_process_by_tcp_as_rarely_as_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (receiver, u) = bound("127.0.0.1:0");
    let l = listener.local_addr().unwrap().port();
    let mut client = old_and_new(l, u);
    let (old, (server, _)) = (client.hear() as u16, listener.accept().unwrap());
    assert_eq!(recv(&server, 1000, libc::MSG_WAITALL), 1000);
    let pid = client.pid.to_string();
    let (running, start) =
        Running::start(&["--json", "--pid", &pid, "--protocol", "tcp", "--granularity", "60s"]);
    client.tell(1);
    let (server, _) = listener.accept().unwrap();
    assert_eq!(recv(&server, 1000, libc::MSG_WAITALL), 1000);
    assert_eq!(receiver.recv_from(&mut [0; 100]).unwrap().0, 10);
    let new = client.hear() as u16;
    assert_eq!(recv(&server, 1, 0), 0);
    drop(server);
    thread::sleep(Duration::from_millis(300));
    running.signal(libc::SIGINT);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    for line in lines.iter().filter(|v| !is(v, "stats") && !is(v, "lost")) {
        assert_eq!((&line["pid"], &line["protocol"]), (&client.pid.into(), &"tcp".into()), "{line}");
    }
    for (local, closed) in [(old, false), (new, true)] {
        let row = row(&lines, local, l).expect("a row");
        assert_eq!((&row["bytes_out"], &row["is_partial"]), (&1000.into(), &false.into()), "{row}");
        assert_eq!(row["is_closed"], closed, "{row}");
    }
    let sends: Vec<_> = lines.iter().filter(|v| is(v, "tcp_send")).collect();
    let sum = |name: &str| sends.iter().map(|v| v[name].as_u64().unwrap()).sum::<u64>();
    assert!((1..=4).contains(&sends.len()) && sum("bytes") == 1000, "{sends:?}");
    // kprobes report acknowledgements; and a call that a preempted kernel showed to no program is counted at the hook.
    let losses = lines.last().unwrap()["losses"].as_array().unwrap().iter();
    let at_hooks = losses.filter(|loss| loss["place"] == "hook").map(|loss| loss["count"].as_u64().unwrap());
    let skipped: u64 = at_hooks.sum();
    assert!(sum("calls") + skipped >= 100 || start["backend"] == "kprobe", "{sends:?}");
    assert!(sum("calls") <= 100, "{sends:?}");
    client.tell(1);
    client.wait();
}

/// A port for both protocols.
fn twins() -> (TcpListener, UdpSocket) {
    let pair = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind(listener.local_addr().unwrap()).ok()?;
        Some((listener, socket))
    };
    std::iter::repeat_with(pair).flatten().next().unwrap()
}

/// --events without --json: a line for each event, beside the tables. --port and --protocol: only UDP at this port, which
/// is a port of TCP as well, and not at others.
#[test]
fn it_prints_the_events_of_one_port() {
    let (listener, receiver) = twins();
    let (elsewhere, e) = bound("127.0.0.1:0");
    let u = listener.local_addr().unwrap().port();
    let arguments = ["--events", "--port", &u.to_string(), "--protocol", "udp"];
    let (running, start) = Running::start_text(&arguments);
    assert!(start.starts_with("tracing with ") && start.contains(" on Linux "), "{start}");
    let (sender, s) = bound("127.0.0.1:0");
    for n in 0..20 {
        assert_eq!(sender.send_to(&[1; 11], ("127.0.0.1", u)).unwrap(), 11);
        assert_eq!(receiver.recv_from(&mut [0; 100]).unwrap().0, 11, "{n}");
    }
    sender.send_to(&[1; 12], ("127.0.0.1", e)).unwrap();
    // By asking who has sent it: of a receive that does not ask no filter by port can tell.
    assert_eq!(elsewhere.recv_from(&mut [0; 100]).unwrap().0, 12);
    let client = TcpStream::connect(("127.0.0.1", u)).unwrap();
    assert_eq!(send(&client, &[1; 13], 0), 13);
    drop((client, listener, sender, receiver, elsewhere));
    thread::sleep(Duration::from_millis(700));
    running.signal(libc::SIGINT);
    let (lines, code, errors) = running.finish_text();
    // Some machines hide processes from everybody.
    let limits = "tcptop: existing connections are shown with limits: ";
    assert!(code == 0 && errors.lines().all(|line| line.starts_with(limits)), "{code}: {errors}");
    let text = lines.concat();
    let me = format!("[{}] {{", std::process::id());
    for (kind, local, remote) in [("udp_send", s, u), ("udp_recv", u, s)] {
        let begin = format!("{kind} udp 127.0.0.1:{local} -> 127.0.0.1:{remote} ");
        let events: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(&begin)).collect();
        assert!(events.iter().all(|event| event.contains(&me)), "{text}");
        let what = |event: &&str| {
            serde_json::from_str::<serde_json::Value>(&event[event.find('{').unwrap()..]).unwrap()
        };
        let moved = events.iter().map(what);
        assert_eq!(moved.map(|what| what["bytes"].as_u64().unwrap()).sum::<u64>(), 220, "{text}");
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let row = format!("udp 127.0.0.1:{local} 127.0.0.1:{remote} ");
        assert!(lines.iter().map(words).any(|line| line.starts_with(&row)), "{text}");
    }
    let is_other = |line: &&String| line.contains("tcp 127.0.0.1:") || line.contains(&format!(":{e} "));
    assert_eq!(lines.iter().find(is_other), None);
}
