// SPDX-License-Identifier: MIT OR Apache-2.0
//! The offsets between the clocks of a time namespace and the kernel's own clocks.

use crate::{initial, threads};
use procfs::FromRead;
use rustix::time::ClockId;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// The offsets of this process's time namespace (time_namespaces(7)), in nanoseconds. The clocks that the process reads
/// are ahead of the kernel's own clocks by these offsets. BPF programs read the kernel's own clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ClockOffsets {
    monotonic: i64,
    /// The offset of start times in /proc; 0 on a kernel that does not shift them.
    boottime: i64,
}

impl ClockOffsets {
    /// Converts a time of this process's CLOCK_MONOTONIC to the kernel's own.
    pub(crate) fn kernel_monotonic(self, shown: u64) -> u64 {
        shown.saturating_add_signed(self.monotonic.saturating_neg())
    }

    /// Converts a start time that /proc shows to the kernel's own.
    pub(crate) fn kernel_start(self, shown: u64) -> u64 {
        shown.saturating_add_signed(self.boottime.saturating_neg())
    }
}

/// The offsets of this process, looked up once. A process with threads cannot change its time namespace. A child in
/// another time namespace calls exec(2) as a rule.
pub(crate) fn offsets() -> ClockOffsets {
    static OFFSETS: OnceLock<ClockOffsets> = OnceLock::new();
    *OFFSETS.get_or_init(|| {
        if initial::in_initial_time_namespace() { ClockOffsets::default() } else { own_offsets() }
    })
}

/// Reads the offsets in /proc.
///
/// The file `timens_offsets` shows the offsets for the children of a process. If this process has called unshare(2),
/// its children are in another time namespace. Then the offsets are read from any process whose children are in ours.
fn own_offsets() -> ClockOffsets {
    let inode = |path: PathBuf| fs::metadata(path).map(|ns| ns.ino()).ok();
    let own = inode("/proc/self/ns/time".into());
    let others = fs::read_dir("/proc").into_iter().flatten().flatten().map(|process| process.path());
    let mut processes = std::iter::once(PathBuf::from("/proc/self")).chain(others);
    let shows = |process: &PathBuf| own.is_some() && inode(process.join("ns/time_for_children")) == own;
    let text =
        processes.find(shows).and_then(|process| fs::read_to_string(process.join("timens_offsets")).ok());
    let Some(offsets) = text.map(|text| parse_offsets(&text)) else {
        log::warn!("the offsets of this time namespace are not known: times are wrong by them");
        return ClockOffsets::default();
    };
    let boottime = if starts_are_shifted(offsets.boottime) { offsets.boottime } else { 0 };
    ClockOffsets { boottime, ..offsets }
}

/// Does /proc show start times by the clock of the time namespace? Old kernels show them by the kernel's own clock. To
/// find out, a new thread reads its own start time, and compares it with the present time of both clocks.
fn starts_are_shifted(offset: i64) -> bool {
    let stat = || procfs::process::Stat::from_file("/proc/thread-self/stat");
    let Ok(Ok(Ok(stat))) = threads::spawn("tcptop-clock", stat).map(JoinHandle::join) else { return true };
    let now = rustix::time::clock_gettime(ClockId::Boottime).tv_sec;
    let start = i64::try_from(stat.starttime / procfs::ticks_per_second()).unwrap_or(i64::MAX);
    start.abs_diff(now) <= start.abs_diff(now.saturating_sub(offset / 1_000_000_000))
}

/// Reads lines like `monotonic -86400 500000000`: seconds, and nanoseconds to add to them.
fn parse_offsets(text: &str) -> ClockOffsets {
    let of = |clock: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(clock))?;
        let mut numbers = line.split_whitespace().map(str::parse::<i64>);
        let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    };
    ClockOffsets { monotonic: of("monotonic").unwrap_or(0), boottime: of("boottime").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_offsets_of_either_sign_are_subtracted() {
        let text = "monotonic           86400         5\nboottime          -10 300000000\n";
        let offsets = parse_offsets(text);
        assert_eq!(offsets, ClockOffsets { monotonic: 86_400_000_000_005, boottime: -9_700_000_000 });
        assert_eq!(offsets.kernel_monotonic(86_400_000_000_006), 1);
        assert_eq!(offsets.kernel_start(1), 9_700_000_001);
        assert_eq!(offsets.kernel_monotonic(5), 0, "before the kernel's clock began");
        for strange in ["", "monotonic", "monotonic x y", "monotonic 1", "boottime 9999999999999999999999 0"]
        {
            assert_eq!(parse_offsets(strange), ClockOffsets::default(), "{strange}");
        }
        let extreme = parse_offsets("monotonic -9223372036854775808 0\nboottime 9223372036854775807 0");
        assert_eq!((extreme.kernel_monotonic(1), extreme.kernel_start(1)), (i64::MAX as u64 + 1, 0));
    }
}
