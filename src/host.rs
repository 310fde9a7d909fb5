// SPDX-License-Identifier: MIT OR Apache-2.0
//! Facts about this machine and this process that need no BPF: capabilities, kernel release, lockdown, preemption, cgroup2.

use crate::error::{Error, Result};
use crate::model::CgroupId;
use crate::threads;
use procfs::process::{MountInfo, Status};
use procfs::{Current, FromBufRead, FromRead};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::time::ClockId;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// A capability of include/uapi/linux/capability.h.
#[derive(Clone, Copy, Debug)]
struct Capability {
    bit: u8,
    name: &'static str,
}

const CAP_NET_ADMIN: Capability = Capability { bit: 12, name: "CAP_NET_ADMIN" };
const CAP_SYS_ADMIN: Capability = Capability { bit: 21, name: "CAP_SYS_ADMIN" };
const CAP_PERFMON: Capability = Capability { bit: 38, name: "CAP_PERFMON" };
const CAP_BPF: Capability = Capability { bit: 39, name: "CAP_BPF" };

/// What every backend needs: CAP_BPF for maps and programs, CAP_PERFMON for programs that read kernel memory (fentry,
/// typed tracepoints, kprobes and the perf events behind those). Attaching asks for nothing more.
const TRACING: [Capability; 2] = [CAP_BPF, CAP_PERFMON];

/// What programs of the kinds cgroup_sock and cgroup_sock_addr need, when they are loaded; attaching asks for nothing
/// more, the cgroup's directory need only be readable.
const CGROUP_PROGRAMS: [Capability; 2] = [CAP_BPF, CAP_NET_ADMIN];

/// May the calling thread trace? CAP_SYS_RESOURCE is not asked for: before Linux 5.11 it raises the limit on locked memory,
/// which may be high enough as it is.
///
/// # Errors
/// [`Error::MissingPrivileges`], or [`Error::UserNamespace`] where the capabilities are there but only within a user
/// namespace. [`Error::Proc`] if /proc cannot be read.
pub(crate) fn check_privileges() -> Result<()> {
    let missing = missing(effective_capabilities()?, &TRACING);
    if !missing.is_empty() {
        return Err(Error::MissingPrivileges { missing });
    }
    if in_initial_user_namespace() || bpf_is_delegated() { Ok(()) } else { Err(Error::UserNamespace) }
}

/// Capabilities that the calling thread lacks for cgroup programs; tracing goes on without these.
///
/// # Errors
/// [`Error::Proc`] if /proc cannot be read.
pub(crate) fn missing_for_cgroup_programs() -> Result<Vec<&'static str>> {
    Ok(missing(effective_capabilities()?, &CGROUP_PROGRAMS))
}

/// CAP_SYS_ADMIN stands in for each of them, CAP_NET_ADMIN included, in every kernel from 5.8 on: `bpf_capable()`,
/// `perfmon_capable()`, and `bpf_prog_load()` (later `bpf_net_capable()`, since 6.9 `bpf_token_capable()`).
fn missing(effective: u64, needed: &[Capability]) -> Vec<&'static str> {
    let lacks = |capability: &Capability| effective & (1 << capability.bit) == 0;
    if !lacks(&CAP_SYS_ADMIN) {
        return Vec::new();
    }
    needed.iter().filter(|capability| lacks(capability)).map(|capability| capability.name).collect()
}

/// Of the calling thread: capabilities are not shared between threads.
fn effective_capabilities() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/status";
    let unreadable = |source| Error::Proc { path: PATH.into(), source };
    let bytes = fs::read(PATH).map_err(|e| unreadable(Box::new(e)))?;
    // The name in it need not be UTF-8.
    let status = Status::from_buf_read(String::from_utf8_lossy(&bytes).as_bytes());
    Ok(status.map_err(|e| unreadable(Box::new(e)))?.capeff)
}

/// Fewer are never expected.
const LEAST_SOCKETS: u64 = 16_384;
/// So many are expected because of the memory; more only if they are there.
const MOST_BY_MEMORY: u64 = 1 << 18;
const MOST_SOCKETS: u64 = 1 << 20;
/// How much memory there is for each socket that is expected: more than a thousand times what its state takes.
const MEMORY_PER_SOCKET: u64 = 512 << 10;

/// How many sockets are to be expected: by the memory of the machine or of this process's cgroup, and by those that there
/// are now.
pub(crate) fn room_for_sockets() -> u32 {
    let machine = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    let memory = memory_limit().map_or(machine, |limit| limit.min(machine));
    let by_memory = (memory / MEMORY_PER_SOCKET).min(MOST_BY_MEMORY);
    let now = fs::read_to_string("/proc/net/sockstat").map_or(0, |text| sockets_in(&text));
    // At most 2^20.
    by_memory.max(2 * now).clamp(LEAST_SOCKETS, MOST_SOCKETS) as u32
}

/// `memory.max` of the cgroup that this process is in; none if it has no limit.
fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = fs::read_to_string(cgroup2_top()?.0.join(own).join("memory.max")).ok()?;
    limit.trim().parse().ok()
}

/// The TCP sockets of all network namespaces (`alloc`), and the UDP sockets of this one.
fn sockets_in(sockstat: &str) -> u64 {
    let count = |protocol: &str, name: &str| {
        let line = sockstat.lines().find_map(|line| line.strip_prefix(protocol));
        let mut words = line.unwrap_or_default().split_whitespace();
        words.find(|word| *word == name).and_then(|_| words.next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    count("TCP:", "alloc").saturating_add(count("UDP:", "inuse"))
}

/// Fixed since Linux 3.8 (PROC_USER_INIT_INO, PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Since Linux 5.6.
const INITIAL_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

fn in_initial_user_namespace() -> bool {
    is_in("user", INITIAL_USER_NAMESPACE)
}

pub(crate) fn in_initial_pid_namespace() -> bool {
    is_in("pid", INITIAL_PID_NAMESPACE)
}

/// Without support for a kind of namespace there is only the initial one.
fn is_in(kind: &str, initial: u64) -> bool {
    fs::metadata(format!("/proc/self/ns/{kind}")).map_or(true, |ns| ns.ino() == initial)
}

/// BPF tokens (Linux 6.9) lend the right to use BPF to a user namespace, through a mount of bpffs; libbpf takes them by
/// itself.
fn bpf_is_delegated() -> bool {
    delegates_bpf(&mountinfo().unwrap_or_default())
}

fn delegates_bpf(mountinfo: &[u8]) -> bool {
    mounts(mountinfo, "bpf")
        .any(|mount| mount.super_options.keys().any(|option| option.starts_with("delegate_")))
}

/// Kernel release as in `uname -r`; `unknown` where /proc does not say.
pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or("unknown".into(), |release| release.trim().into())
}

/// How far the kernel is locked even against root (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lockdown {
    /// Not at all.
    Off,
    /// The running kernel cannot be changed. Tracing works.
    Integrity,
    /// Kernel memory cannot be read either: kprobes, perf events on the kernel and `bpf_probe_read_kernel()` are
    /// refused.
    Confidentiality,
}

/// None where the kernel has no lockdown, or does not show it to us.
pub(crate) fn lockdown() -> Option<Lockdown> {
    parse_lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// The mode in brackets, as in `none [integrity] confidentiality`.
fn parse_lockdown(text: &str) -> Option<Lockdown> {
    let (_, rest) = text.split_once('[')?;
    match rest.split_once(']')?.0 {
        "none" => Some(Lockdown::Off),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

/// May a task lose its processor while it runs kernel code, and so in the middle of a BPF program? Where the mode is
/// chosen at boot and debugfs does not tell which, the answer is no.
pub(crate) fn is_preemptible() -> bool {
    let modes = fs::read_to_string("/sys/kernel/debug/sched/preempt").or_else(|_| unmounted_modes());
    match modes {
        Ok(modes) => chosen_mode_preempts(&modes),
        Err(_) => {
            fs::read_to_string("/proc/sys/kernel/version").is_ok_and(|version| built_preemptible(&version))
        }
    }
}

/// The same out of a debugfs that is mounted nowhere, and gone with the descriptor: containers have no other. Takes
/// CAP_SYS_ADMIN.
fn unmounted_modes() -> io::Result<String> {
    let debugfs = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&debugfs)?;
    let root = fsmount(&debugfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let modes = openat(root, "sched/preempt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(fs::File::from(modes))
}

/// The chosen mode is in parentheses: "none voluntary (full) lazy".
fn chosen_mode_preempts(modes: &str) -> bool {
    ["(full)", "(lazy)"].iter().any(|mode| modes.contains(mode))
}

/// The version names what is built in: "#1 SMP PREEMPT Debian 6.1", where PREEMPT_DYNAMIC may be any mode.
fn built_preemptible(version: &str) -> bool {
    version.split_whitespace().any(|word| ["PREEMPT", "PREEMPT_RT", "PREEMPT_LAZY"].contains(&word))
}

/// By how many nanoseconds the clocks that this process is shown are ahead of the kernel's own, which BPF programs read:
/// the offsets of its time namespace (time_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ClockOffsets {
    monotonic: i64,
    /// As far as start times in /proc have it.
    boottime: i64,
}

impl ClockOffsets {
    /// What the kernel calls this time of CLOCK_MONOTONIC.
    pub(crate) fn kernel_monotonic(self, shown: u64) -> u64 {
        shown.saturating_add_signed(self.monotonic.saturating_neg())
    }

    /// What the kernel calls this start time of a process, which /proc shows.
    pub(crate) fn kernel_start(self, shown: u64) -> u64 {
        shown.saturating_add_signed(self.boottime.saturating_neg())
    }
}

/// Looked up once: who has threads cannot change its time namespace, and who forks into another one calls exec(2) as a
/// rule.
pub(crate) fn clock_offsets() -> ClockOffsets {
    static OFFSETS: OnceLock<ClockOffsets> = OnceLock::new();
    *OFFSETS.get_or_init(|| {
        if is_in("time", INITIAL_TIME_NAMESPACE) { ClockOffsets::default() } else { own_offsets() }
    })
}

/// The file shows the offsets that the children of a process will have. Those are in another namespace if it has called
/// unshare(2); but then whoever has made this one, or lives in it, may show them.
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

/// Does /proc show start times by the clock of the time namespace? Old kernels show their own. A thread that has just begun
/// tells: whichever clock it is, it has started now.
fn starts_are_shifted(offset: i64) -> bool {
    let stat = || procfs::process::Stat::from_file("/proc/thread-self/stat");
    let Ok(Ok(Ok(stat))) = threads::spawn("tcptop-clock", stat).map(JoinHandle::join) else { return true };
    let now = rustix::time::clock_gettime(ClockId::Boottime).tv_sec;
    let start = i64::try_from(stat.starttime / procfs::ticks_per_second()).unwrap_or(i64::MAX);
    start.abs_diff(now) <= start.abs_diff(now.saturating_sub(offset / 1_000_000_000))
}

/// Lines like `monotonic -86400 500000000`: seconds, and nanoseconds beyond them.
fn parse_offsets(text: &str) -> ClockOffsets {
    let of = |clock: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(clock))?;
        let mut numbers = line.split_whitespace().map(str::parse::<i64>);
        let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    };
    ClockOffsets { monotonic: of("monotonic").unwrap_or(0), boottime: of("boottime").unwrap_or(0) }
}

/// A mount of the cgroup2 hierarchy, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup2 {
    pub(crate) path: PathBuf,
    /// The cgroup that is mounted there, as seen from the root of our cgroup namespace: `/` is that root, and `/../..` an
    /// ancestor of it.
    pub(crate) root: String,
}

/// Where this process finds the cgroups that /proc names: where the root of its cgroup namespace is mounted, else an
/// ancestor of that.
pub(crate) fn own_cgroup2() -> Option<Cgroup2> {
    let all = mountinfo().ok()?;
    let mut roots = roots_of_cgroup2(&all).map(|mount| Cgroup2 { path: mount.mount_point, root: mount.root });
    let first = roots.next()?;
    if first.root == "/" { Some(first) } else { roots.find(|mount| mount.root == "/").or(Some(first)) }
}

/// Where programs see the cgroups of the whole machine, if that root is mounted anywhere; else those of our cgroup
/// namespace, or more. And whether it is all of them.
pub(crate) fn cgroup2_top() -> Option<(PathBuf, bool)> {
    find_top(&mountinfo().ok()?, inode_within)
}

/// The root of a kernfs, and nothing else in it, has the inode number 1.
fn find_top(mountinfo: &[u8], inode: impl Fn(&MountInfo) -> Option<u64>) -> Option<(PathBuf, bool)> {
    let roots: Vec<_> = roots_of_cgroup2(mountinfo).collect();
    let top = roots.iter().find(|mount| inode(mount) == Some(1));
    let own = || roots.iter().find(|mount| mount.root == "/").or(roots.first());
    top.map(|mount| (mount.mount_point.clone(), true)).or_else(|| Some((own()?.mount_point.clone(), false)))
}

/// The inode number of what is mounted there; none if something else is mounted over it.
fn inode_within(mount: &MountInfo) -> Option<u64> {
    let found = fs::metadata(&mount.mount_point).ok()?;
    let device = format!("{}:{}", rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    (device == mount.majmin).then(|| found.ino())
}

/// The mounts of the root of our cgroup namespace, or of one of its ancestors. Mounts of another part of the hierarchy have
/// that part's path as their root.
fn roots_of_cgroup2(mountinfo: &[u8]) -> impl Iterator<Item = MountInfo> {
    let is_root = |root: &str| {
        Path::new(root).components().all(|c| matches!(c, Component::RootDir | Component::ParentDir))
    };
    mounts(mountinfo, "cgroup2").filter(move |mount| is_root(&mount.root))
}

/// The ids of these cgroups and of all below them, as far as this process sees their directories.
pub(crate) fn cgroups_below(trees: &[CgroupId]) -> HashSet<CgroupId> {
    let mut below = HashSet::new();
    let top = if trees.is_empty() { None } else { cgroup2_top() };
    let mut pending: Vec<_> = top.into_iter().map(|(path, _)| (path, false)).collect();
    while let Some((path, parent_is_in)) = pending.pop() {
        // It may just have been removed.
        let Ok(directory) = fs::metadata(&path) else { continue };
        let id = CgroupId::new(directory.ino());
        let is_in = parent_is_in || id.is_some_and(|id| trees.contains(&id));
        below.extend(id.filter(|_| is_in));
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(directories.map(|entry| (entry.path(), is_in)));
    }
    below
}

/// Where network namespaces are kept alive by name, as `ip netns` does.
pub(crate) fn named_network_namespaces() -> Vec<PathBuf> {
    let all = mountinfo().unwrap_or_default();
    let of_network = mounts(&all, "nsfs").filter(|mount| mount.root.starts_with("net:"));
    of_network.map(|mount| mount.mount_point).collect()
}

fn mountinfo() -> io::Result<Vec<u8>> {
    fs::read("/proc/self/mountinfo")
}

/// The mounts of this type of file system. Line by line, so that a strange name elsewhere does no harm.
fn mounts(mountinfo: &[u8], fs_type: &str) -> impl Iterator<Item = MountInfo> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| MountInfo::from_line(&String::from_utf8_lossy(line)).ok())
        .filter(move |mount| mount.fs_type == fs_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(capabilities: &[Capability]) -> u64 {
        capabilities.iter().fold(0, |mask, capability| mask | 1 << capability.bit)
    }

    #[test]
    fn the_mode_of_preemption_is_read_from_what_the_kernel_says() {
        assert!(chosen_mode_preempts("none voluntary (full) \n") && chosen_mode_preempts("full (lazy) \n"));
        assert!(
            !chosen_mode_preempts("(none) voluntary full \n")
                && !chosen_mode_preempts("none (voluntary) full \n")
        );
        assert!(
            built_preemptible("#1 SMP PREEMPT Debian 5.10.0")
                && built_preemptible("#1 SMP PREEMPT_RT Debian")
        );
        assert!(
            !built_preemptible("#1 SMP PREEMPT_DYNAMIC Debian 6.1")
                && !built_preemptible("#1 SMP Debian 5.10")
        );
    }

    #[test]
    fn each_capability_that_tracing_needs_is_named_where_it_is_missing() {
        assert_eq!(missing(0, &TRACING), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(mask(&[CAP_BPF]), &TRACING), ["CAP_PERFMON"]);
        assert_eq!(missing(mask(&[CAP_PERFMON, CAP_NET_ADMIN]), &TRACING), ["CAP_BPF"]);
        assert!(missing(mask(&TRACING), &TRACING).is_empty());
        assert!(missing(mask(&[CAP_SYS_ADMIN]), &TRACING).is_empty());
        assert!(missing(0x1ff_ffff_ffff, &TRACING).is_empty());
    }

    #[test]
    fn cgroup_programs_need_net_admin_or_sys_admin_too() {
        assert_eq!(missing(mask(&TRACING), &CGROUP_PROGRAMS), ["CAP_NET_ADMIN"]);
        assert!(missing(mask(&[CAP_BPF, CAP_NET_ADMIN]), &CGROUP_PROGRAMS).is_empty());
        assert!(missing(mask(&[CAP_SYS_ADMIN]), &CGROUP_PROGRAMS).is_empty());
    }

    #[test]
    fn the_own_capabilities_can_be_read() {
        let effective = effective_capabilities().unwrap();
        assert_eq!(missing_for_cgroup_programs().unwrap(), missing(effective, &CGROUP_PROGRAMS));
        let lacking = missing(effective, &TRACING);
        match check_privileges() {
            Err(Error::MissingPrivileges { missing }) => assert_eq!(missing, lacking),
            Ok(()) | Err(Error::UserNamespace) => assert_eq!(lacking, Vec::<&str>::new()),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(parse_lockdown("[none] integrity confidentiality\n"), Some(Lockdown::Off));
        assert_eq!(parse_lockdown("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(parse_lockdown("none integrity [confidentiality]\n"), Some(Lockdown::Confidentiality));
        for strange in ["", "none", "[none", "]none[", "[later]"] {
            assert_eq!(parse_lockdown(strange), None, "{strange}");
        }
        assert_eq!(lockdown().is_some(), Path::new("/sys/kernel/security/lockdown").exists());
    }

    #[test]
    fn the_kernel_release_starts_with_a_number() {
        let release = kernel_release();
        assert!(
            release.starts_with(|c: char| c.is_ascii_digit()) && release == release.trim(),
            "{release:?}"
        );
    }

    #[test]
    fn the_cgroup2_root_is_found_in_unified_and_hybrid_set_ups_and_past_strange_lines() {
        let find_cgroup2 = |mounts: &[u8]| find_top(mounts, |_| None).map(|(path, _)| path);
        let unified: &[u8] =
            b"24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_cgroup2(unified).unwrap(), Path::new("/sys/fs/cgroup"));

        let hybrid = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));

        let strange: &[u8] = b"not a mount\n\n\
            50 30 8:1 / /media/caf\xe9 rw - vfat /dev/sda1 rw\n\
            51 30 0:22 /docker/0123 /mnt/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(strange), None);
        assert_eq!(find_cgroup2(&[strange, unified].concat()).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_cgroup2(b""), None);
    }

    /// As in a container: its own cgroup namespace at the usual place, a part of the host's hierarchy, and all of it.
    #[test]
    fn the_machines_own_root_is_preferred_wherever_it_is_mounted() {
        let all = b"24 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
            25 30 0:22 /../sibling /part rw - cgroup2 cgroup rw\n\
            26 30 0:22 /../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let inode = |mount: &MountInfo| Some(if mount.root == "/../.." { 1 } else { 7000 });
        assert_eq!(find_top(all, inode), Some(("/host/sys/fs/cgroup".into(), true)));
        assert_eq!(find_top(all, |_| Some(7000)), Some(("/sys/fs/cgroup".into(), false)), "its own");
        assert_eq!(find_top(&all[48..], |_| Some(7000)), Some(("/host/sys/fs/cgroup".into(), false)));
        let (path, _) = cgroup2_top().unwrap_or_default();
        assert!(path.as_os_str().is_empty() || path.is_dir());
    }

    #[test]
    fn clock_offsets_are_taken_off_whichever_sign_they_have() {
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

    #[test]
    fn a_delegating_mount_of_bpffs_lends_the_right_to_use_bpf() {
        assert!(!delegates_bpf(b"30 24 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n"));
        assert!(delegates_bpf(
            b"30 24 0:27 / /sys/fs/bpf rw shared:9 - bpf none rw,delegate_cmds=prog_load\n"
        ));
    }

    #[test]
    fn sockets_are_counted_in_sockstat() {
        let text = "sockets: used 159\nTCP: inuse 3 orphan 0 tw 1 alloc 40 mem 1\nUDP: inuse 2 mem 1\nRAW: inuse 0\n";
        assert_eq!(sockets_in(text), 42);
        assert_eq!(sockets_in(""), 0);
        assert!(u64::from(room_for_sockets()) >= LEAST_SOCKETS);
    }
}
