// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels that hide the machine's first process, as those of some microVMs do: while it is current no tracepoint fires,
//! not for softirqs on top of it either, and nothing counts that. A tracer that lives by tracepoints cannot know what
//! happens meanwhile.

use crate::net::{Child, run, tell};
use procfs::process::{Process, Task};
use std::fs::{File, read_to_string};
use std::io::Read;
use std::os::fd::FromRawFd;

/// The threads of the first process, and for each a counter of the kernel's own: how often the tracepoint fired that is
/// there for every switch to another thread.
pub(crate) struct Hidden {
    threads: Vec<Task>,
    counters: Vec<File>,
    switches: u64,
}

impl Hidden {
    pub(crate) fn watch() -> Self {
        let event = tracepoint("sched/sched_switch");
        let threads: Vec<_> = Process::new(1).unwrap().tasks().unwrap().map(Result::unwrap).collect();
        let counters = threads.iter().map(|thread| count(event, thread.tid)).collect();
        let switches = threads.iter().map(switches).sum();
        Self { threads, counters, switches }
    }

    /// How often threads of the first process were current since, where the kernel hides that; otherwise 0.
    pub(crate) fn times(&self) -> u64 {
        let is_seen = self.counters.iter().any(|counter| fired(counter) > 0);
        let now: u64 = self.threads.iter().map(switches).sum();
        if is_seen { 0 } else { now.saturating_sub(self.switches) }
    }
}

/// How often the scheduler took the processor from this thread, for whatever reason. None are counted of one that is gone.
fn switches(thread: &Task) -> u64 {
    let status = thread.status().ok();
    let counts = status.map(|status| [status.voluntary_ctxt_switches, status.nonvoluntary_ctxt_switches]);
    counts.into_iter().flatten().flatten().sum()
}

/// The kernel's number of a tracepoint, which is in a file system that not everybody has mounted.
fn tracepoint(name: &'static str) -> u64 {
    let mut child = Child::fork(move |parent| {
        // SAFETY: gives this process mounts of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        run(
            "mount --make-rprivate /; cd /sys/kernel/tracing && { [ -e events ] || mount -t tracefs tracefs .; }",
        );
        let id = read_to_string(format!("/sys/kernel/tracing/events/{name}/id")).unwrap();
        tell(parent, id.trim().parse().unwrap());
    });
    let id = child.hear();
    child.wait();
    id
}

/// perf_event_open(2): counts how often a tracepoint fires while a thread is current.
fn count(tracepoint: u64, tid: i32) -> File {
    const PERF_TYPE_TRACEPOINT: u64 = 2;
    const PERF_ATTR_SIZE_VER0: u64 = 64;
    let mut attributes = [0_u64; PERF_ATTR_SIZE_VER0 as usize / 8];
    attributes[0] = PERF_TYPE_TRACEPOINT | PERF_ATTR_SIZE_VER0 << 32;
    attributes[1] = tracepoint;
    // SAFETY: the attributes are as long as they say.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), tid, -1, -1, 0) };
    assert!(fd >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that nobody else has.
    unsafe { File::from_raw_fd(fd as i32) }
}

fn fired(mut counter: &File) -> u64 {
    let mut value = [0; 8];
    counter.read_exact(&mut value).unwrap();
    u64::from_ne_bytes(value)
}
