// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process chooses its name: what a terminal would obey reaches none.

use super::{Running, json, tcptop};
use crate::net::{Child, port, recv, send, tcp_pair, tell};
use std::time::Duration;

/// Escape, delete, the C1 control that begins a sequence, and what turns the direction of the text around.
const HOSTILE: &str = "a\u{1b}\u{7f}\u{9b}1m\u{202e}\"\\b";

/// All that it prints in a second and a half while a process with that name is busy, whose port is returned.
fn printed(arguments: &[&str]) -> (String, u16) {
    let mut child = Child::fork(|parent| {
        std::fs::write("/proc/self/comm", HOSTILE).unwrap();
        let (client, server) = tcp_pair();
        tell(parent, port(&client).into());
        // Until it is killed.
        loop {
            assert_eq!((send(&client, &[1; 9], 0), recv(&server, 9, 0)), (9, 9));
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let port = child.hear() as u16;
    let output = tcptop(arguments).args(["--duration", "1.5", "--interval", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), port)
}

fn obeyed(text: &str) -> Vec<char> {
    let is_harmless = |c: &char| *c == '\n' || *c == '…' || (' '..='~').contains(c);
    text.chars().filter(|c| !is_harmless(c)).collect()
}

/// One socket makes as many flows as there are addresses and ports: the rows have a bound, and what went is counted.
#[test]
fn a_flood_of_flows_takes_no_more_rows_than_allowed() {
    let (running, _) = Running::start(&["--json", "--no-events", "--no-bootstrap", "--max-rows", "1000"]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for port in 10_000..14_000 {
        assert_eq!(socket.send_to(&[1], ("127.0.0.1", port)).unwrap_or(1), 1);
    }
    std::thread::sleep(Duration::from_millis(700));
    running.signal(libc::SIGTERM);
    let (lines, code, errors) = running.finish();
    assert_eq!(code, 0, "{errors}");
    assert_eq!(lines.iter().filter(|line| line["type"] == "connection").count(), 1000);
    let evicted = lines.last().unwrap()["evicted"].as_u64().unwrap();
    assert!((3000..5000).contains(&evicted), "{evicted}");
}

#[test]
fn a_name_that_talks_to_the_terminal_is_escaped_in_json_and_reads_back() {
    let (text, port) = printed(&["--json"]);
    assert_eq!(obeyed(&text), []);
    let lines: Vec<_> = text.lines().map(json).collect();
    let of_it = lines.iter().filter(|line| line["local_port"] == port && line["process"] == HOSTILE);
    let kinds: Vec<_> = of_it.map(|line| line["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"tcp_send") && kinds.contains(&"connection"), "{kinds:?}");
    assert!(lines.iter().any(|line| line["actor"] == HOSTILE));
}

#[test]
fn a_name_that_talks_to_the_terminal_is_escaped_in_tables_and_events() {
    for arguments in [&[][..], &["--events"]] {
        let (text, _) = printed(arguments);
        assert_eq!(obeyed(&text), []);
        let escaped = HOSTILE.escape_debug().to_string();
        assert!(text.contains(&escaped), "{escaped}: {text}");
    }
}
