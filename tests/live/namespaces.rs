// SPDX-License-Identifier: MIT OR Apache-2.0
//! In namespaces of their own, tracers see what they see outside, or say what they do not.

use crate::harness::{Trace, builder, wanted_backend};
use crate::net::{Cgroup, Child, hear, port, recv, send, tcp_pair, tell};
use serde_json::Value;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use tcptop::{Bootstrap, Feature, LinuxCollector, Visibility};

fn unshare(what: i32) {
    // SAFETY: moves this process, or its children, and touches no memory.
    assert_eq!(unsafe { libc::unshare(what) }, 0, "{}", std::io::Error::last_os_error());
}

/// The name that a process gives itself is no reason to give its sockets to another: not by files, and not in /proc.
#[test]
fn a_process_that_calls_itself_systemd_keeps_its_sockets() {
    let mut elder = Child::fork(|parent| {
        std::fs::write("/proc/self/comm", "systemd").unwrap();
        let (client, server) = tcp_pair();
        let mut younger = Child::fork(|elder| assert_eq!(hear(elder), 1));
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
        hear(parent);
        younger.tell(1);
        younger.wait();
    });
    let (c, s) = (elder.hear() as u16, elder.hear() as u16);
    let trace = Trace::start();
    let by_files = trace.collector.bootstrap_existing().unwrap();
    let by_proc =
        LinuxCollector::builder().bootstrap(Bootstrap::Procfs).build().unwrap().bootstrap_existing().unwrap();
    for rows in [by_files, by_proc] {
        let row = rows.iter().find(|r| (r.key.local_port, r.key.remote_port) == (c, s)).expect("a row");
        assert_eq!(
            (row.pid(), row.process_name().map(|n| n.to_string())),
            (Some(elder.pid), Some("systemd".into()))
        );
    }
    elder.tell(1);
    elder.wait();
}

/// What holds a socket outside of a pid namespace cannot be seen in it: that is said, with the number of sockets.
#[test]
fn in_a_pid_namespace_it_is_said_how_many_owners_are_out_of_sight() {
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!((send(&client, &[1; 70], 0), recv(&server, 70, 0)), (70, 70));
    let sockets = [client.as_raw_fd(), server.as_raw_fd()];
    let outside = Child::fork(|_| {
        unshare(libc::CLONE_NEWPID);
        let inside = Child::fork(|_| {
            // SAFETY: copies, which nobody here uses any more.
            sockets.iter().for_each(|&fd| assert_eq!(unsafe { libc::close(fd) }, 0));
            let trace = Trace::with(builder());
            let rows = trace.collector.bootstrap_existing().unwrap();
            let row = rows.iter().find(|r| (r.key.local_port, r.key.remote_port) == (c, s)).expect("a row");
            assert_eq!((row.bytes_out, row.pid()), (70, None));
            let told = trace.sees(Feature::Existing).to_string();
            let (_, count) = told.split_once("sockets whose owner is out of sight: ").expect(&told);
            let (count, why) = count.split_once(' ').unwrap();
            assert!(count.parse::<usize>().unwrap() >= 2 && why.contains("pid namespace"), "{told}");
        });
        inside.wait();
    });
    outside.wait();
}

/// A container as Kubernetes makes them, with the host's cgroup2 mounted: a cgroup namespace of its own is no limit there.
#[test]
fn in_a_cgroup_namespace_the_hosts_hierarchy_shows_all() {
    let usual = Trace::start().capabilities();
    let cgroup = Cgroup::new();
    let reader = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = reader.local_addr().unwrap();
    let (tx, rx) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut outside = rx;
    let mut child = Child::fork(|parent| {
        let mut tx = tx;
        cgroup.enter();
        unshare(libc::CLONE_NEWCGROUP);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mounts.lines().any(|line| line.contains(" /.. ") && line.contains("cgroup2")), "{mounts}");
        let mut trace = Trace::with(builder());
        for feature in [Feature::UdpSendPeer, Feature::UdpRecvPeer, Feature::UdpClose] {
            assert_eq!(trace.sees(feature), *usual.visibility(feature), "{feature}");
        }
        // It asks the process outside to send.
        tell(&mut tx, 1);
        let from = hear(parent) as u16;
        trace.udp(from, to.port(), 0, 30);
    });
    hear(&mut outside);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(sender.send_to(&[1; 30], to).unwrap(), 30);
    assert_eq!(reader.recv_from(&mut [0; 99]).unwrap().0, 30);
    child.tell(sender.local_addr().unwrap().port().into());
    child.wait();
}

/// What the example prints, in a time namespace of these offsets, while bytes move over a connection from before it and over
/// a flow that begins.
fn in_a_time_namespace(monotonic: i64, boottime: i64) -> Vec<Value> {
    let (client, server) = tcp_pair();
    let (from, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let addr = to.local_addr().unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "-T",
        "--fork",
        &format!("--monotonic={monotonic}"),
        &format!("--boottime={boottime}"),
        "--",
    ]);
    command.arg(crate::cli::path()).args(["--json", "--duration", "2.5", "--no-self-test"]);
    if let Some(backend) = wanted_backend() {
        command.args(["--backend", backend.as_str()]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = std::thread::spawn(move || child.wait_with_output().unwrap());
    while !output.is_finished() {
        assert_eq!((send(&client, &[1; 1000], 0), recv(&server, 1000, 0)), (1000, 1000));
        assert_eq!(from.send_to(&[1; 100], addr).unwrap(), 100);
        assert_eq!(to.recv_from(&mut [0; 999]).unwrap().0, 100);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = output.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ports = |line: &Value, local: u16, remote: u16| {
        line["type"] == "connection" && line["local_port"] == local && line["remote_port"] == remote
    };
    let only = |local: u16, remote: u16| {
        let rows: Vec<_> = lines.iter().filter(|line| ports(line, local, remote)).collect();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows[0].clone()
    };
    vec![
        lines[0].clone(),
        only(port(&client), port(&server)),
        only(from.local_addr().unwrap().port(), addr.port()),
    ]
}

/// A day ahead, and behind by nearly all the time that this machine has been up.
#[test]
fn in_a_time_namespace_times_and_rates_are_those_outside() {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        // Before Linux 5.6, or built without. Then nobody can be in one.
        return;
    }
    let up = tcptop::KernelTime::now().as_nanos() / 1_000_000_000;
    let back = i64::try_from(up).unwrap() - 5;
    for (monotonic, boottime) in [(86_400, 86_400), (-back, -back)] {
        let before = tcptop::KernelTime::now().as_nanos();
        let lines = in_a_time_namespace(monotonic, boottime);
        let after = tcptop::KernelTime::now().as_nanos();
        for line in &lines {
            let time = line["time_ns"].as_u64().unwrap();
            assert!((before..=after).contains(&time), "{monotonic}: {before} {after} {line}");
        }
        for row in &lines[1..] {
            assert!(row["rate_out"].as_f64().unwrap() > 100.0, "{monotonic}: {row}");
            assert_eq!(row["is_closed"], false, "{monotonic}: {row}");
        }
    }
}

/// The processes that /proc shows began when events say they did.
#[test]
fn in_a_time_namespace_processes_have_their_start_times() {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return;
    }
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let start = |trace: &Trace| {
        let rows = trace.collector.bootstrap_existing().unwrap();
        let row = rows.iter().find(|r| (r.key.local_port, r.key.remote_port) == (c, s)).expect("a row");
        row.owner.expect("an owner").start_time_ns
    };
    let trace = Trace::start();
    assert!(matches!(trace.sees(Feature::TcpTotals), Visibility::Exact));
    let known = start(&trace);
    const HELPER: &str = "TCPTOP_TEST_START_TIME";
    if let Ok(expected) = std::env::var(HELPER) {
        // Inside. The connection is another one, but the process that holds the first one is its parent.
        let parent: u32 = expected.split(' ').next().unwrap().parse().unwrap();
        let rows = LinuxCollector::builder()
            .bootstrap(Bootstrap::Procfs)
            .build()
            .unwrap()
            .bootstrap_existing()
            .unwrap();
        let of_parent =
            rows.iter().filter_map(|r| r.owner).find(|owner| owner.pid == parent).expect("the parent");
        let expected: u64 = expected.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(expected.abs_diff(of_parent.start_time_ns) < 10_000_000, "{expected} {of_parent:?}");
        return;
    }
    let status = Command::new("unshare")
        .args(["-T", "--fork", "--monotonic=86400", "--boottime=172800", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "namespaces::in_a_time_namespace_processes_have_their_start_times",
            "--test-threads=1",
        ])
        .env(HELPER, format!("{} {known}", std::process::id()))
        .status()
        .unwrap();
    assert!(status.success());
}
