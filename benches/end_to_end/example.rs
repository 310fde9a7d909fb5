// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example program, as users run it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Where it is; it is built when it is first asked for.
pub(crate) fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(build).clone()
}

/// The most memory that this process had resident, in MiB; none after it has ended.
pub(crate) fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())?;
    Some(kib.parse::<u64>().ok()? / 1024)
}

fn build() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "--quiet", "--example", "tcptop"]);
    assert!(build.status().is_ok_and(|status| status.success()), "the example builds");
    let benchmark = std::env::current_exe().expect("/proc");
    let target = benchmark.ancestors().nth(2).expect("target/release/deps/…");
    target.join("examples/tcptop")
}
