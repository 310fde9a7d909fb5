// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the example may still do while it runs, and that it works all the same.

use super::{Running, is};
use crate::net::{recv, send, tcp_pair};
use std::fs;
use std::time::{Duration, Instant};

/// CAP_DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE, PERFMON and BPF.
const NEEDED: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 21 | 1 << 24 | 1 << 38 | 1 << 39;

/// Of each thread its id and its permitted capabilities.
fn permitted(pid: u32) -> Vec<(u32, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let set = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
        let id = task.file_name().to_str()?.parse().ok()?;
        Some((id, u64::from_str_radix(set.trim(), 16).ok()?))
    };
    tasks.filter_map(of).collect()
}

/// The thread that reads events and writes lines has no capability any more; those of the tracer have the documented ones. What
/// moves is counted as ever, and losses can still be asked for.
#[test]
fn privileges_are_given_up_once_it_traces() {
    let (running, _) = Running::start(&["--json"]);
    let pid = running.id();
    let deadline = Instant::now() + Duration::from_secs(10);
    let threads = loop {
        let threads = permitted(pid);
        if threads.iter().any(|&(id, set)| id == pid && set == 0) || Instant::now() > deadline {
            break threads;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(threads.contains(&(pid, 0)), "{threads:x?}");
    assert!(threads.len() > 3 && threads.iter().all(|(_, set)| set & !NEEDED == 0), "{threads:x?}");
    let (client, server) = tcp_pair();
    assert_eq!((send(&client, &[1; 5000], 0), recv(&server, 5000, libc::MSG_WAITALL)), (5000, 5000));
    drop((client, server));
    std::thread::sleep(Duration::from_millis(500));
    running.signal(libc::SIGTERM);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    let own = |name: &'static str| {
        let rows = lines.iter().filter(|line| is(line, "connection") && line["pid"] == std::process::id());
        rows.map(|row| row[name].as_u64().unwrap()).filter(|&bytes| bytes == 5000).count()
    };
    assert_eq!((own("bytes_out"), own("bytes_in")), (1, 1));
    let stats = lines.last().unwrap();
    assert!(is(stats, "stats") && stats["lost"] == 0 && stats["audit_mismatches"] == 0, "{stats}");
}

#[test]
fn privileges_are_kept_on_request() {
    let ours = permitted(std::process::id()).iter().find(|(id, _)| *id == std::process::id()).unwrap().1;
    let (running, _) = Running::start(&["--json", "--keep-privileges", "--duration", "0.5"]);
    let pid = running.id();
    std::thread::sleep(Duration::from_millis(200));
    assert!(permitted(pid).iter().all(|(_, set)| *set == ours));
    let (_, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
}
