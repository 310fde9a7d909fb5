// SPDX-License-Identifier: MIT OR Apache-2.0
//! Facts about this machine and this process that need no BPF: capabilities, memory, kernel release, lockdown,
//! preemption.

use crate::error::{Error, Result};
use crate::{initial, mounts};
use procfs::process::Status;
use procfs::{Current, FromBufRead};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs;
use std::io;

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

/// The capabilities that every backend needs: CAP_BPF for maps and programs, CAP_PERFMON for programs that read kernel
/// memory (fentry, typed tracepoints, kprobes and their perf events). To attach programs needs no further capability.
const TRACING: [Capability; 2] = [CAP_BPF, CAP_PERFMON];

/// The capabilities that programs of the types cgroup_sock and cgroup_sock_addr need when they are loaded. To attach
/// them needs no further capability, only a readable directory of the cgroup.
const CGROUP_PROGRAMS: [Capability; 2] = [CAP_BPF, CAP_NET_ADMIN];

/// May the calling thread trace? CAP_SYS_RESOURCE is not required. Before Linux 5.11 libbpf needs it to raise the limit
/// on locked memory, but that limit may be high enough already.
///
/// # Errors
/// [`Error::MissingPrivileges`] names the missing capabilities. [`Error::UserNamespace`] comes if the capabilities hold
/// only within a user namespace, and [`Error::Proc`] if /proc cannot be read.
pub(crate) fn check_privileges() -> Result<()> {
    let missing = missing(effective_capabilities()?, &TRACING);
    if !missing.is_empty() {
        return Err(Error::MissingPrivileges { missing });
    }
    if initial::in_initial_user_namespace() || bpf_is_delegated() {
        Ok(())
    } else {
        Err(Error::UserNamespace)
    }
}

/// The capabilities that the calling thread lacks for cgroup programs. Tracing works without these programs.
///
/// # Errors
/// [`Error::Proc`] if /proc cannot be read.
pub(crate) fn missing_for_cgroup_programs() -> Result<Vec<&'static str>> {
    Ok(missing(effective_capabilities()?, &CGROUP_PROGRAMS))
}

/// The names of the needed capabilities that are not effective.
///
/// CAP_SYS_ADMIN replaces each of them, also CAP_NET_ADMIN, in every kernel since 5.8: see `bpf_capable()`,
/// `perfmon_capable()`, and `bpf_prog_load()` (later `bpf_net_capable()`, since 6.9 `bpf_token_capable()`).
fn missing(effective: u64, needed: &[Capability]) -> Vec<&'static str> {
    let lacks = |capability: &Capability| effective & (1 << capability.bit) == 0;
    if !lacks(&CAP_SYS_ADMIN) {
        return Vec::new();
    }
    needed.iter().filter(|capability| lacks(capability)).map(|capability| capability.name).collect()
}

/// The effective capabilities of the calling thread. Each thread has its own.
fn effective_capabilities() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/status";
    let unreadable = |source| Error::Proc { path: PATH.into(), source };
    let bytes = fs::read(PATH).map_err(|e| unreadable(Box::new(e)))?;
    // The process name in this file need not be UTF-8.
    let status = Status::from_buf_read(String::from_utf8_lossy(&bytes).as_bytes());
    Ok(status.map_err(|e| unreadable(Box::new(e)))?.capeff)
}

/// There is room for at least this many sockets.
const LEAST_SOCKETS: u64 = 16_384;
/// A large memory makes room for at most this many sockets.
const MOST_BY_MEMORY: u64 = 1 << 18;
/// Many existing sockets make room for at most this many.
const MOST_SOCKETS: u64 = 1 << 20;
/// There is room for one socket per this much memory, which is more than a thousand times the size of its state.
const MEMORY_PER_SOCKET: u64 = 512 << 10;

/// The default number of sockets for which there is room. It depends on the memory of the machine or of this process's
/// cgroup, and on the number of sockets that exist now.
pub(crate) fn room_for_sockets() -> u32 {
    let machine = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    let memory = memory_limit().map_or(machine, |limit| limit.min(machine));
    let by_memory = (memory / MEMORY_PER_SOCKET).min(MOST_BY_MEMORY);
    let now = fs::read_to_string("/proc/net/sockstat").map_or(0, |text| sockets_in(&text));
    // It fits: it is at most 2^20.
    by_memory.max(2 * now).clamp(LEAST_SOCKETS, MOST_SOCKETS) as u32
}

/// `memory.max` of this process's cgroup. None if the cgroup has no limit, or the limit cannot be read.
fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = fs::read_to_string(mounts::cgroup2_top()?.0.join(own).join("memory.max")).ok()?;
    limit.trim().parse().ok()
}

/// The TCP sockets of all network namespaces (`alloc`), and the UDP sockets of this network namespace.
fn sockets_in(sockstat: &str) -> u64 {
    let count = |protocol: &str, name: &str| {
        let line = sockstat.lines().find_map(|line| line.strip_prefix(protocol));
        let mut words = line.unwrap_or_default().split_whitespace();
        words.find(|word| *word == name).and_then(|_| words.next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    count("TCP:", "alloc").saturating_add(count("UDP:", "inuse"))
}

/// May this user namespace use BPF by a token (Linux 6.9)? A mount of bpffs delegates the right, and libbpf takes the
/// token by itself.
fn bpf_is_delegated() -> bool {
    delegates_bpf(&mounts::mountinfo().unwrap_or_default())
}

fn delegates_bpf(mountinfo: &[u8]) -> bool {
    mounts::mounts(mountinfo, "bpf")
        .any(|mount| mount.super_options.keys().any(|option| option.starts_with("delegate_")))
}

/// The kernel release as in `uname -r`, or `unknown` if /proc does not show it.
pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or("unknown".into(), |release| release.trim().into())
}

/// The lockdown mode: what the kernel forbids even to root (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lockdown {
    /// The kernel forbids nothing.
    Off,
    /// The running kernel cannot be changed. Tracing works.
    Integrity,
    /// In addition, kernel memory cannot be read: the kernel refuses kprobes, perf events on the kernel and
    /// `bpf_probe_read_kernel()`.
    Confidentiality,
}

/// The lockdown mode. None if the kernel has no lockdown, or does not show it.
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

/// May a task lose its processor while it runs kernel code, and so in the middle of a BPF program? If the mode is
/// chosen at boot, and debugfs cannot be read, the answer is no.
pub(crate) fn is_preemptible() -> bool {
    let modes = fs::read_to_string("/sys/kernel/debug/sched/preempt").or_else(|_| unmounted_modes());
    match modes {
        Ok(modes) => chosen_mode_preempts(&modes),
        Err(_) => {
            fs::read_to_string("/proc/sys/kernel/version").is_ok_and(|version| built_preemptible(&version))
        }
    }
}

/// Reads the modes from a debugfs that is mounted nowhere, and vanishes with its descriptor. Containers often have no
/// mounted debugfs. Needs CAP_SYS_ADMIN.
fn unmounted_modes() -> io::Result<String> {
    let debugfs = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&debugfs)?;
    let root = fsmount(&debugfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let modes = openat(root, "sched/preempt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(fs::File::from(modes))
}

/// Is a preemptible mode chosen? The chosen mode is in parentheses: "none voluntary (full) lazy".
fn chosen_mode_preempts(modes: &str) -> bool {
    ["(full)", "(lazy)"].iter().any(|mode| modes.contains(mode))
}

/// Was the kernel built with a preemptible mode? The version names it: "#1 SMP PREEMPT Debian 6.1". PREEMPT_DYNAMIC may
/// be any mode.
fn built_preemptible(version: &str) -> bool {
    version.split_whitespace().any(|word| ["PREEMPT", "PREEMPT_RT", "PREEMPT_LAZY"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn mask(capabilities: &[Capability]) -> u64 {
        capabilities.iter().fold(0, |mask, capability| mask | 1 << capability.bit)
    }

    #[test]
    fn preemption_modes_are_read_from_debugfs_and_from_the_version() {
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
    fn each_missing_capability_is_named() {
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
