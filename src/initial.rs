// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests whether this process is in an initial namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// These inode numbers are fixed since Linux 3.8 (PROC_USER_INIT_INO, PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Fixed since Linux 5.6 (PROC_TIME_INIT_INO).
const INITIAL_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

pub(crate) fn in_initial_user_namespace() -> bool {
    is_in("user", INITIAL_USER_NAMESPACE)
}

pub(crate) fn in_initial_pid_namespace() -> bool {
    is_in("pid", INITIAL_PID_NAMESPACE)
}

pub(crate) fn in_initial_time_namespace() -> bool {
    is_in("time", INITIAL_TIME_NAMESPACE)
}

/// A kernel without this kind of namespace has only the initial namespace.
fn is_in(kind: &str, initial: u64) -> bool {
    fs::metadata(format!("/proc/self/ns/{kind}")).map_or(true, |ns| ns.ino() == initial)
}
