// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contract of --json: what each type of line carries, and that it is true.

use super::{Running, is};
use crate::harness::wanted_backend;
use crate::lifecycle::closed_port;
use crate::net::{Child, hear, tcp_pair, tell};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};
use tcptop::KernelTime;

const NOBODY: u32 = 65_534;

const PAGE: &str = include_str!("../../../docs/json.md");

/// The names in backticks.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table below this heading of the page.
fn table(heading: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (_, section) = PAGE.split_once(&format!("## {heading}\n")).expect("the page has this section");
    let section = section.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | ")).skip(1)
}

/// All keys of a line, no more and no less: programs read them by name.
fn keys(line: &Value) -> String {
    let kind = line["type"].as_str().unwrap();
    let transport = if line["protocol"] == "udp" { "UDP" } else { "TCP" };
    let is_of = |kinds: &str| {
        let (types, transports) =
            kinds.split_once(", ").filter(|(_, t)| !t.contains('`')).unwrap_or((kinds, ""));
        names(types).any(|name| name == kind) && (transports.is_empty() || transports == transport)
    };
    let (_, carried) = table("Lines").find(|(kinds, _)| is_of(kinds)).expect("the page documents each line");
    let common = table("Common fields").flat_map(|(fields, _)| names(fields));
    let own = names(carried);
    let all: Vec<_> =
        if carried.starts_with("common fields") { common.chain(own).collect() } else { own.collect() };
    format!("type {}", all.join(" "))
}

fn check_keys(object: &Value, expected: &str) {
    let found: BTreeSet<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, expected.split_whitespace().collect(), "{object}");
}

/// A process as the system describes it.
fn described(pid: u32) -> Value {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let of_line = |text: &str, start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {start} in {text}"))
    };
    let uid = of_line(&read("status"), "Uid:");
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2");
    let cgroup = mount.split(' ').nth(1).unwrap().to_owned() + &of_line(&read("cgroup"), "0::");
    json!({
        "pid": pid,
        "process": read("comm").trim(),
        "uid": uid.split_whitespace().next().unwrap().parse::<u32>().unwrap(),
        "netns": std::fs::metadata("/proc/self/ns/net").unwrap().ino(),
        "cgroup": std::fs::metadata(cgroup).unwrap().ino(),
    })
}

/// What was exchanged, by whom.
struct Exchange {
    client: Value,
    server: Value,
    /// TCP ports: the server's and the client's.
    tcp: (u16, u16),
    /// UDP ports: the client's and those of its two peers.
    udp: (u16, [u16; 2]),
    /// A port where the client was refused.
    refused: u16,
}

/// What both ends moved: 1,000,003 bytes out and 500,009 in over TCP; over UDP 50 datagrams of 10 bytes to each of two
/// peers from one unconnected socket, which the peers answer with 7. The client ends first.
fn exchange() -> Exchange {
    let mut server = Child::fork(|parent| {
        std::fs::write("/proc/self/comm", "a server").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        tell(parent, listener.local_addr().unwrap().port().into());
        peers.iter().for_each(|p| tell(parent, p.local_addr().unwrap().port().into()));
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut vec![0; 1_000_003]).unwrap();
        socket.write_all(&vec![2; 500_009]).unwrap();
        for _ in 0..50 {
            for peer in &peers {
                let (n, from) = peer.recv_from(&mut [0; 100]).unwrap();
                assert_eq!(n, 10);
                peer.send_to(&[1; 7], from).unwrap();
            }
        }
        hear(parent);
    });
    let l = server.hear() as u16;
    let peers = [server.hear() as u16, server.hear() as u16];
    let refused = closed_port();
    let mut client = Child::fork(|parent| {
        std::fs::write("/proc/self/comm", "a client").unwrap();
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
        TcpStream::connect(("127.0.0.1", refused)).unwrap_err();
        let mut stream = TcpStream::connect(("127.0.0.1", l)).unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        stream.write_all(&vec![1; 1_000_003]).unwrap();
        stream.read_exact(&mut vec![0; 500_009]).unwrap();
        for _ in 0..50 {
            for peer in peers {
                sender.send_to(&[1; 10], ("127.0.0.1", peer)).unwrap();
                assert_eq!(sender.recv_from(&mut [0; 100]).unwrap().0, 7);
            }
        }
        tell(parent, stream.local_addr().unwrap().port().into());
        tell(parent, sender.local_addr().unwrap().port().into());
        hear(parent);
    });
    let (c, u) = (client.hear() as u16, client.hear() as u16);
    let (client_is, server_is) = (described(client.pid), described(server.pid));
    client.tell(1);
    client.wait();
    server.tell(1);
    server.wait();
    Exchange { client: client_is, server: server_is, tcp: (l, c), udp: (u, peers), refused }
}

/// The lines that one run has printed, and what they must say of an exchange.
struct Lines {
    start: Value,
    all: Vec<Value>,
    exchange: Exchange,
}

impl Lines {
    fn of(&self, name: &'static str) -> impl Iterator<Item = &Value> {
        self.all.iter().filter(move |line| is(line, name))
    }

    /// Lines of this type with these ports.
    fn between(&self, name: &'static str, local: u16, remote: u16) -> Vec<&Value> {
        let lines = self.of(name);
        lines.filter(|line| line["local_port"] == local && line["remote_port"] == remote).collect()
    }

    /// The only one.
    fn only(&self, name: &'static str, local: u16, remote: u16) -> &Value {
        let lines = self.between(name, local, remote);
        assert_eq!(lines.len(), 1, "{name} {local} -> {remote}: {lines:?}");
        lines[0]
    }

    fn stats(&self) -> &Value {
        self.all.last().unwrap()
    }

    /// A kernel that preempts tasks in the middle of programs may have skipped some: then that is counted.
    fn skipped(&self, kind: &str) -> u64 {
        let losses = self.stats()["losses"].as_array().unwrap().iter();
        losses.filter(|l| l["place"] == "hook" && l["kind"] == kind).map(|l| number(l, "count")).sum()
    }

    fn check_keys_and_order(&self) {
        for line in [&self.start].into_iter().chain(&self.all) {
            check_keys(line, &keys(line));
        }
        let ends = |line: &&Value| is(line, "connection") || is(line, "stats");
        let events = self.all.iter().take_while(|line| !ends(line)).count();
        let connections = self.of("connection").count();
        assert!(events > 0 && connections > 0);
        assert!(self.all[events..events + connections].iter().all(|line| is(line, "connection")));
        assert!(is(self.stats(), "stats") && events + connections + 1 == self.all.len());
        let printed = events - self.of("lost").count();
        assert_eq!(number(self.stats(), "events"), printed as u64, "each event that came was printed");
    }

    fn check_start(&self) {
        let (start, can) = (&self.start, &self.start["capabilities"]);
        check_keys(can, "features bootstrap self_test rejected_backends missing_programs");
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!((&start["type"], &start["kernel"]), (&json!("start"), &json!(release.trim())));
        // With both clocks of the same moment the times of events can be dated.
        let began = KernelTime(start["time_ns"].as_u64().unwrap()).to_system_time();
        let dated = UNIX_EPOCH + Duration::from_nanos(start["unix_time_ns"].as_u64().unwrap());
        let off = began.duration_since(dated).unwrap_or_else(|e| e.duration());
        assert!(off < Duration::from_millis(100), "{off:?}");
        if let Some(backend) = wanted_backend() {
            assert_eq!(start["backend"], backend.as_str());
        }
        assert_eq!(can["features"]["tcp_totals"], "exact");
    }

    /// Each of both ends has one row, with exact totals, and is closed.
    fn check_tcp_rows(&self) {
        let ((l, c), moved) = (self.exchange.tcp, [1_000_003_u64, 500_009]);
        for (local, remote, who, role, out, incoming) in [
            (c, l, &self.exchange.client, "client", moved[0], moved[1]),
            (l, c, &self.exchange.server, "server", moved[1], moved[0]),
        ] {
            let row = self.only("connection", local, remote);
            says(row, who);
            says(
                row,
                &json!({"protocol": "tcp", "local_addr": "127.0.0.1", "remote_addr": "127.0.0.1",
                "actor_pid": null, "actor": null, "bytes_out": out, "bytes_in": incoming, "tcp_state": "close",
                "is_partial": false, "is_closed": true, "role": role, "reason": "orderly", "error": null}),
            );
            let end = self.only("closed", local, remote);
            says(end, who);
            says(
                end,
                &json!({"socket": row["socket"], "bytes_out": out, "bytes_in": incoming, "error": null,
                "reason": "orderly", "packets_in": row["packets_in"], "packets_out": row["packets_out"]}),
            );
            for line in [row, end] {
                let positive =
                    ["time_ns", "rtt_us", "min_rtt_us", "packets_in", "packets_out", "duration_us"];
                assert!(positive.iter().all(|name| number(line, name) > 0), "{line}");
            }
            let same = ["min_rtt_us", "retransmits", "duration_us"];
            assert!(same.iter().all(|name| row[name] == end[name]), "{row} {end}");
            assert!(row["rate_in"].is_f64() && row["rate_out"].is_f64() && end["retransmits"].is_u64());
        }
    }

    /// What is new adds up to the totals, and it was the process that holds the connection that moved it.
    fn check_tcp_transfers(&self) {
        let ((l, c), Exchange { client, server, .. }) = (self.exchange.tcp, &self.exchange);
        for (name, local, remote, who, total) in [
            ("tcp_send", c, l, client, 1_000_003),
            ("tcp_recv", c, l, client, 500_009),
            ("tcp_send", l, c, server, 500_009),
            ("tcp_recv", l, c, server, 1_000_003),
        ] {
            let lines = self.between(name, local, remote);
            let calls = check_transfers(&lines, who, total);
            assert!(lines.iter().all(|line| line["protocol"] == "tcp" && number(line, "rtt_us") > 0));
            // Each of the two sends is one call. (kprobes report acknowledgements.)
            let is_counted = self.start["backend"] != "kprobe" && self.skipped(name) == 0;
            assert!(name == "tcp_recv" || !is_counted || calls == 1, "{calls}: {lines:?}");
        }
    }

    fn check_udp(&self) {
        let (u, peers) = self.exchange.udp;
        let mut missing = [0, 0];
        for peer in peers {
            for (local, remote, who, out, incoming) in
                [(u, peer, &self.exchange.client, 10, 7), (peer, u, &self.exchange.server, 7, 10)]
            {
                let row = self.only("connection", local, remote);
                says(row, who);
                says(
                    row,
                    &json!({"protocol": "udp", "remote_addr": "127.0.0.1", "tcp_state": null,
                    "rtt_us": null, "is_closed": true}),
                );
                for (name, packets, bytes, each, way) in [
                    ("udp_send", "packets_out", "bytes_out", out, 0),
                    ("udp_recv", "packets_in", "bytes_in", incoming, 1),
                ] {
                    let count = number(row, packets);
                    assert_eq!(number(row, bytes), count * each, "{row}");
                    missing[way] += 50 - count;
                    let lines = self.between(name, local, remote);
                    assert_eq!(check_transfers(&lines, who, count * each), count, "{lines:?}");
                    assert!(lines.iter().all(|line| line["protocol"] == "udp" && line["rtt_us"].is_null()));
                }
            }
            says(self.only("closed", peer, 0), &self.exchange.server);
        }
        says(self.only("closed", u, 0), &self.exchange.client);
        let skipped = ["udp_send", "udp_recv"].map(|name| self.skipped(name));
        assert!(missing[0] <= skipped[0] && missing[1] <= skipped[1], "{missing:?}: {}", self.stats());
    }

    /// The changes of one socket: from, to, error. (When it begins, it has no local port yet.)
    fn changes(&self, socket: &Value, who: &Value) -> Vec<(&str, &str, Option<i64>)> {
        let changes = self.of("tcp_state").filter(|line| line["socket"] == *socket).map(|line| {
            // Before the server has used its end, it may be unknown. It is never another.
            match line["provenance"].as_str().unwrap() {
                "unknown" => says(line, &json!({"pid": null, "process": null, "uid": null, "cgroup": null})),
                how => {
                    assert!(
                        how == "seen" || (how == "inherited" && line["old_state"] == "syn_recv"),
                        "{line}"
                    );
                    says(line, who);
                }
            }
            let text = |name: &str| line[name].as_str().unwrap();
            (text("old_state"), text("new_state"), line["error"].as_i64())
        });
        changes.collect()
    }

    fn check_begin_and_end(&self) {
        let ((l, c), Exchange { client, server, refused, .. }) = (self.exchange.tcp, &self.exchange);
        let (of_client, of_server) = (self.only("opened", c, l), self.only("opened", l, c));
        says(of_client, client);
        assert_eq!((&of_client["role"], &of_server["role"]), (&json!("client"), &json!("server")));
        assert_eq!(
            self.changes(&of_client["socket"], client),
            [
                ("close", "syn_sent", None),
                ("syn_sent", "established", None),
                ("established", "fin_wait1", None),
                ("fin_wait1", "fin_wait2", None),
                ("fin_wait2", "close", None),
            ]
        );
        assert_eq!(
            self.changes(&of_server["socket"], server),
            [
                ("syn_recv", "established", None),
                ("established", "close_wait", None),
                ("close_wait", "last_ack", None),
                ("last_ack", "close", None),
            ]
        );
        let failed: Vec<_> =
            self.of("connect_failed").filter(|line| line["remote_port"] == *refused).collect();
        assert_eq!(failed.len(), 1);
        says(failed[0], client);
        says(failed[0], &json!({"reason": "refused", "error": libc::ECONNREFUSED}));
        let row = self.of("connection").find(|row| row["socket"] == failed[0]["socket"]).expect("its row");
        says(
            row,
            &json!({"role": "client", "reason": "refused", "error": libc::ECONNREFUSED, "is_closed": true}),
        );
        assert!(number(failed[0], "local_port") > 0);
        let error = Some(libc::ECONNREFUSED.into());
        let changes = self.changes(&failed[0]["socket"], client);
        assert_eq!(changes, [("close", "syn_sent", None), ("syn_sent", "close", error)]);
    }

    fn check_stats(&self) {
        let stats = self.stats();
        let losses: u64 = stats["losses"].as_array().unwrap().iter().map(|l| number(l, "count")).sum();
        says(stats, &json!({"lost": losses, "unknown_records": 0, "evicted": 0}));
        assert!(losses > 0 || stats["audit_mismatches"] == 0, "{stats}");
        assert!(number(stats, "kernel_memory_bytes") > 0, "{stats}");
    }
}

/// These lines are transfers by this process, and make this total. Returns how many calls they tell of.
fn check_transfers(lines: &[&Value], who: &Value, total: u64) -> u64 {
    assert!(!lines.is_empty());
    let (mut sum, mut highest) = (0, 0);
    for line in lines {
        says(line, who);
        says(line, &json!({"actor_pid": who["pid"], "actor": who["process"]}));
        let (bytes, so_far) = (number(line, "bytes"), number(line, "total_bytes"));
        // What waits when a socket ends is sent at once, and may come before what is just being collected.
        assert!((bytes..=total).contains(&so_far), "{total}: {line}");
        (sum, highest) = (sum + bytes, highest.max(so_far));
    }
    assert_eq!((sum, highest), (total, total), "{lines:?}");
    lines.iter().map(|line| number(line, "calls")).sum()
}

fn number(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"))
}

/// A line has all these values.
fn says(line: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&line[key], value, "{key}: {line}");
    }
}

/// The promise of the page: both ends of every connection, to the byte, with the right processes; and each line says
/// all that its type promises.
#[test]
fn both_ends_are_exact() {
    let (mut running, start) = Running::start(&["--json"]);
    // Until its first event is printed it looks for what exists already, and might find the connection there.
    drop(tcp_pair());
    let first = super::json(&running.line().expect("an event"));
    let exchange = exchange();
    std::thread::sleep(Duration::from_millis(700));
    running.signal(libc::SIGINT);
    let (rest, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    let all = std::iter::once(first).chain(rest).collect();
    let lines = Lines { start, all, exchange };
    lines.check_keys_and_order();
    lines.check_start();
    lines.check_tcp_rows();
    lines.check_tcp_transfers();
    lines.check_udp();
    lines.check_begin_and_end();
    lines.check_stats();
}
