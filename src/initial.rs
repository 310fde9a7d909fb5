// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is this process in the initial namespace of a kind?

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Fixed since Linux 3.8 (PROC_USER_INIT_INO, PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Since Linux 5.6.
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

/// Without support for a kind of namespace there is only the initial one.
fn is_in(kind: &str, initial: u64) -> bool {
    fs::metadata(format!("/proc/self/ns/{kind}")).map_or(true, |ns| ns.ino() == initial)
}
