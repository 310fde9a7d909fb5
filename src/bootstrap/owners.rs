// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processes that have sockets open, by a scan of /proc/*/fd.
//!
//! The scan misses sockets in io_uring's own file table, sockets that are on their way through SCM_RIGHTS, and sockets
//! of a thread that has unshared its files from its process.

use super::sockets::NO_FILE;
use super::unreadable;
use crate::error::Result;
use crate::model::{CgroupId, Process, ProcessName};
use crate::mounts::{self, Cgroup2};
use crate::{clock, initial};
use foldhash::{HashMap, HashSet};
use procfs::process::{self, Status};
use procfs::{FromBufRead, ProcError, ProcResult, ProcessCGroups};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The owner of each of these inodes, as far as this process may read the files of others.
///
/// Processes may start and end during the scan, and those of other users may be unreadable. Neither is an error.
pub(super) fn find(inodes: &HashSet<u64>) -> Result<Owners> {
    let mut owners = Owners::default();
    if inodes.is_empty() {
        return Ok(owners);
    }
    let mut cgroups = Cgroups::new(mounts::own_cgroup2());
    for process in process::all_processes().map_err(|e| unreadable("/proc", e))? {
        match process.and_then(|process| scan_process(&process, inodes, &mut cgroups)) {
            Ok(Some((holder, sockets))) => sockets.iter().for_each(|&inode| owners.assign(inode, holder)),
            Ok(None) | Err(ProcError::NotFound(_)) => {}
            Err(ProcError::PermissionDenied(_)) => owners.hidden += 1,
            Err(e) => log::debug!("owners of some connections are not known: {e}"),
        }
    }
    Ok(owners)
}

/// The owners of sockets.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Each owner once: a few processes own many sockets.
    processes: Vec<Process>,
    /// The position of the owner in `processes`, by the socket's inode.
    by_inode: HashMap<u64, u32>,
    /// The number of processes whose files this process may not read.
    pub(super) hidden: usize,
}

impl Owners {
    /// The owner of the socket with this inode.
    pub(super) fn of(&self, inode: u64) -> Option<Process> {
        let owner = self.by_inode.get(&inode).filter(|_| inode != NO_FILE)?;
        self.processes.get(*owner as usize).copied()
    }

    /// Records a process that has the socket with this inode open. The socket's owner is the process that started
    /// first.
    ///
    /// Several processes share a socket after fork(2), or when one has handed it to another. As a rule the eldest of
    /// them has connected or accepted, so it is the owner until another is seen to use the socket. The youngest would
    /// often be a stranger. Each child holds copies of its parent's sockets until it calls exec(2). A process that was
    /// forked to write a snapshot holds them for minutes, and a process that inherited a leaked descriptor for ever.
    /// Between processes of the same clock tick, the lower pid is the owner.
    ///
    /// Process 1 is the owner only if no other process has the socket open: a service manager opens sockets for its
    /// services (systemd.socket(5)) and does not use them. It is recognized by its pid, which no process can choose.
    /// Any process can choose its name.
    pub(super) fn assign(&mut self, inode: u64, holder: Process) {
        let this = self.number(holder);
        let owner = self.by_inode.entry(inode).or_insert(this);
        let rank = |process: &Process| (process.pid == 1, process.start_time_ns, process.pid);
        let known = self.processes.get(*owner as usize).filter(|_| *owner != this);
        if known.is_some_and(|known| rank(&holder) < rank(known)) {
            *owner = this;
        }
    }

    /// How many of these sockets have an owner that is out of sight, and why, as a text for people. (Sockets of the
    /// kernel, and sockets on their way between processes, have no owner, and may be counted, too.)
    pub(super) fn limit(&self, inodes: impl Iterator<Item = u64>) -> Option<String> {
        let why = match self.hidden {
            0 if initial::in_initial_pid_namespace() => return None,
            0 => "this process is in a pid namespace, which shows no others".into(),
            hidden => format!("the files of {hidden} processes may not be looked at"),
        };
        let count = inodes.filter(|&inode| self.of(inode).is_none()).count();
        (count > 0).then(|| format!("sockets whose owner is out of sight: {count} ({why})"))
    }

    /// The position of this process in `processes`. All sockets of a process come in a row, so a look at the last one
    /// is enough.
    fn number(&mut self, holder: Process) -> u32 {
        if self.processes.last() != Some(&holder) {
            self.processes.push(holder);
        }
        // There are at most 2^22 processes.
        (self.processes.len() - 1) as u32
    }
}

/// The process and its sockets among `inodes`. None if it has no such socket.
fn scan_process(
    process: &process::Process,
    inodes: &HashSet<u64>,
    cgroups: &mut Cgroups,
) -> ProcResult<Option<(Process, Vec<u64>)>> {
    let sockets = sockets_of(process.pid(), inodes)?;
    if sockets.is_empty() {
        return Ok(None);
    }
    // The scan of the files goes by pid. `process` was opened before the scan: if it can still be read, the pid was not
    // given to another process meanwhile.
    Ok(Some((describe(process, cgroups)?, sockets)))
}

fn sockets_of(pid: i32, inodes: &HashSet<u64>) -> io::Result<Vec<u64>> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let (mut sockets, files) = sockets_in(&root.join("fd"), inodes)?;
    if files > 0 {
        return Ok(sockets);
    }
    // A main thread that has ended shows no files, but its process may go on.
    for thread in fs::read_dir(root.join("task"))?.flatten() {
        let (found, files) = sockets_in(&thread.path().join("fd"), inodes).unwrap_or_default();
        sockets.extend(found);
        if files > 0 {
            break;
        }
    }
    Ok(sockets)
}

/// The sockets among the files of this directory, and how many files there are.
fn sockets_in(fd_dir: &Path, inodes: &HashSet<u64>) -> io::Result<(Vec<u64>, usize)> {
    let mut sockets = Vec::new();
    let mut files = 0;
    for file in fs::read_dir(fd_dir)?.flatten() {
        files += 1;
        // A file that cannot be read was closed meanwhile.
        let inode =
            fs::read_link(file.path()).ok().and_then(|link| socket_inode(link.as_os_str().as_bytes()));
        sockets.extend(inode.filter(|inode| inodes.contains(inode)));
    }
    Ok((sockets, files))
}

/// The number in `socket:[number]`.
fn socket_inode(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Describes the process. Pid and uid are those of the namespaces that /proc shows and this process lives in. In a
/// container with its own namespaces, they differ from the initial ones. The start time is rounded down to clock ticks
/// of 10 ms; in events it has nanoseconds.
fn describe(process: &process::Process, cgroups: &mut Cgroups) -> ProcResult<Process> {
    let stat = process.stat()?;
    let status = status_from(&read(process, "status")?)?;
    let pid = u32::try_from(stat.pid).map_err(|_| ProcError::Other(format!("pid {}", stat.pid)))?;
    Ok(Process {
        // `stat` has the name, too, but has replaced bytes that are not UTF-8.
        name: name_from(&read(process, "comm")?),
        // The real uid, as in events. The owner of /proc/<pid> is root if the process cannot be dumped.
        uid: status.ruid,
        start_time_ns: clock::offsets().kernel_start(nanoseconds(stat.starttime, procfs::ticks_per_second())),
        cgroup_id: cgroups.id_of(process),
        ..Process::new(pid, "")
    })
}

fn read(process: &process::Process, file: &str) -> ProcResult<Vec<u8>> {
    let mut bytes = Vec::new();
    process.open_relative(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses the status, also if the name in it is not UTF-8.
fn status_from(bytes: &[u8]) -> ProcResult<Status> {
    Status::from_buf_read(String::from_utf8_lossy(bytes).as_bytes())
}

/// The name in `comm`, which ends with a line feed. The name itself may contain line feeds.
fn name_from(comm: &[u8]) -> ProcessName {
    let name = comm.strip_suffix(b"\n").unwrap_or(comm);
    let mut buffer = [0; 16];
    for (to, from) in buffer.iter_mut().zip(name.iter().take(15)) {
        *to = *from;
    }
    ProcessName::from_kernel(buffer)
}

fn nanoseconds(ticks: u64, per_second: u64) -> u64 {
    let ns = u128::from(ticks) * 1_000_000_000 / u128::from(per_second.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// The ids of cgroups in the unified hierarchy. They are kept, because many processes share a few cgroups.
struct Cgroups {
    mount: Option<Cgroup2>,
    ids: HashMap<String, Option<CgroupId>>,
}

impl Cgroups {
    fn new(mount: Option<Cgroup2>) -> Self {
        Self { mount, ids: HashMap::default() }
    }

    /// The id of the process's cgroup. None if no cgroup2 is mounted, or if the cgroup was removed or is out of sight.
    fn id_of(&mut self, process: &process::Process) -> Option<CgroupId> {
        let mount = self.mount.as_ref()?;
        let ProcessCGroups(cgroups) = process.read("cgroup").ok()?;
        // The unified hierarchy has the number 0.
        let cgroup = cgroups.into_iter().find(|cgroup| cgroup.hierarchy == 0)?;
        if let Some(&id) = self.ids.get(&cgroup.pathname) {
            return id;
        }
        // The inode number is the id, on 64-bit kernels since Linux 5.5 (kernfs_ino()).
        let id = directory(mount, &cgroup.pathname)
            .and_then(|dir| fs::metadata(dir).ok())
            .and_then(|dir| CgroupId::new(dir.ino()));
        self.ids.insert(cgroup.pathname, id);
        id
    }
}

/// The directory of the cgroup. None for a path that leads out of the mount (`/../other`), which would be another
/// cgroup.
fn directory(mount: &Cgroup2, cgroup: &str) -> Option<PathBuf> {
    let path = Path::new(cgroup).strip_prefix(&mount.root).ok()?;
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| mount.path.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, name: &str, start_time_ns: u64) -> Process {
        Process { start_time_ns, ..Process::new(pid, name) }
    }

    #[test]
    fn only_links_to_sockets_have_an_inode() {
        assert_eq!(socket_inode(b"socket:[4026531840]"), Some(4_026_531_840));
        for other in
            ["pipe:[12]", "socket:[]", "socket:[12", "socket:[x]", "/tmp/socket:[12]", "anon_inode:[12]", ""]
        {
            assert_eq!(socket_inode(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_shared_socket_belongs_to_the_process_that_started_first_in_any_order() {
        let manager = process(1, "init", 1);
        // The name of a process makes no difference.
        let (server, twin, child) =
            (process(900, "systemd", 10), process(901, "x", 10), process(200, "x", 20));
        for order in
            [[manager, server, twin, child], [child, twin, server, manager], [twin, child, manager, server]]
        {
            let mut owners = Owners::default();
            for holder in order {
                owners.assign(7, holder);
            }
            owners.assign(8, manager);
            owners.assign(NO_FILE, server);
            assert_eq!(
                [7, 8, 9, NO_FILE].map(|inode| owners.of(inode)),
                [Some(server), Some(manager), None, None]
            );
        }
    }

    #[test]
    fn names_keep_everything_but_the_line_feed_that_proc_adds() {
        assert_eq!(name_from(b"curl\n"), "curl");
        assert_eq!(name_from(b"a\nb\n"), "a\nb");
        assert_eq!(name_from(b"bad\xff\n"), "bad?");
        assert_eq!(name_from(b""), "");
    }

    #[test]
    fn a_status_whose_name_is_not_utf8_can_be_read() {
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let (_, rest) = own.split_once('\n').unwrap();
        let strange = [b"Name:\t\xff:\xfe\n", rest.as_bytes()].concat();
        assert_eq!(status_from(&strange).unwrap().pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn clock_ticks_become_nanoseconds() {
        assert_eq!(nanoseconds(123, 100), 1_230_000_000);
        assert_eq!(nanoseconds(1024, 1024), 1_000_000_000);
        assert_eq!(nanoseconds(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn cgroup_paths_stay_below_the_mount() {
        let mount = |root: &str| Cgroup2 { path: "/sys/fs/cgroup".into(), root: root.into() };
        let own = |cgroup| directory(&mount("/"), cgroup);
        assert_eq!(own("/").unwrap(), Path::new("/sys/fs/cgroup/"));
        assert_eq!(own("/a.slice/b").unwrap(), Path::new("/sys/fs/cgroup/a.slice/b"));
        assert_eq!((own("/../other"), own("relative")), (None, None));
        let hosts = |cgroup| directory(&mount("/../.."), cgroup);
        assert_eq!(hosts("/../../other/x").unwrap(), Path::new("/sys/fs/cgroup/other/x"));
        assert_eq!((hosts("/../sibling"), hosts("/own"), hosts("/../../../x")), (None, None, None));
    }
}
