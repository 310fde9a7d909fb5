// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which process has a socket open: a walk over /proc/*/fd.
//!
//! Not found this way: sockets that a program keeps in io_uring's own file table, or that are on their way through
//! SCM_RIGHTS, and those of a thread that has unshared its files from its process.

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

/// The process behind each of these inodes, as far as this process may look.
///
/// Processes come and go during the walk, and those of other users are closed to us: neither is an error.
pub(super) fn find(inodes: &HashSet<u64>) -> Result<Owners> {
    let mut owners = Owners::default();
    if inodes.is_empty() {
        return Ok(owners);
    }
    let mut cgroups = Cgroups::new(mounts::own_cgroup2());
    for process in process::all_processes().map_err(|e| unreadable("/proc", e))? {
        match process.and_then(|process| look_into(&process, inodes, &mut cgroups)) {
            Ok(Some((holder, sockets))) => sockets.iter().for_each(|&inode| owners.assign(inode, holder)),
            Ok(None) | Err(ProcError::NotFound(_)) => {}
            Err(ProcError::PermissionDenied(_)) => owners.hidden += 1,
            Err(e) => log::debug!("owners of some connections are not known: {e}"),
        }
    }
    Ok(owners)
}

/// Who holds which socket.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Of many sockets few processes are the owners.
    processes: Vec<Process>,
    /// By the socket's inode, which of them.
    by_inode: HashMap<u64, u32>,
    /// Processes whose files we may not look at.
    pub(super) hidden: usize,
}

impl Owners {
    /// The owner of the socket with this inode.
    pub(super) fn of(&self, inode: u64) -> Option<Process> {
        let owner = self.by_inode.get(&inode).filter(|_| inode != NO_FILE)?;
        self.processes.get(*owner as usize).copied()
    }

    /// Takes note of one who has the socket with this inode open.
    ///
    /// Several processes share a socket after fork(2), or when one has handed it to another. It is given to the one that
    /// started first: as a rule that is the one that connected or accepted, which makes it the owner until another is
    /// seen to use the socket. The youngest would often be a stranger: each child holds copies of all its parent's
    /// sockets until it calls exec(2), a process forked to write a snapshot holds them for minutes, one that inherited a
    /// leaked file descriptor for ever. The lower pid decides between processes of one clock tick.
    ///
    /// The first process comes last: as a service manager it opens sockets for its services (systemd.socket(5)) and does
    /// not use them. It is told by its pid, which nobody can choose; a name anybody can.
    pub(super) fn assign(&mut self, inode: u64, holder: Process) {
        let this = self.number(holder);
        let owner = self.by_inode.entry(inode).or_insert(this);
        let rank = |process: &Process| (process.pid == 1, process.start_time_ns, process.pid);
        let known = self.processes.get(*owner as usize).filter(|_| *owner != this);
        if known.is_some_and(|known| rank(&holder) < rank(known)) {
            *owner = this;
        }
    }

    /// Of how many of these sockets the holder is out of sight, and why, in words. (Others may have none: those of the
    /// kernel, and what is on its way from one process to another.)
    pub(super) fn limit(&self, inodes: impl Iterator<Item = u64>) -> Option<String> {
        let why = match self.hidden {
            0 if initial::in_initial_pid_namespace() => return None,
            0 => "this process is in a pid namespace, which shows no others".into(),
            hidden => format!("the files of {hidden} processes may not be looked at"),
        };
        let count = inodes.filter(|&inode| self.of(inode).is_none()).count();
        (count > 0).then(|| format!("sockets whose owner is out of sight: {count} ({why})"))
    }

    /// Holders come one after the other, each with all its sockets.
    fn number(&mut self, holder: Process) -> u32 {
        if self.processes.last() != Some(&holder) {
            self.processes.push(holder);
        }
        // There are at most 2^22 processes.
        (self.processes.len() - 1) as u32
    }
}

/// The process and its sockets among `inodes`; none if it has none.
fn look_into(
    process: &process::Process,
    inodes: &HashSet<u64>,
    cgroups: &mut Cgroups,
) -> ProcResult<Option<(Process, Vec<u64>)>> {
    let sockets = sockets_of(process.pid(), inodes)?;
    if sockets.is_empty() {
        return Ok(None);
    }
    // `process` has been open since before the walk over its files, which goes by number: if it can still be read, the
    // number was not given to another process in between.
    Ok(Some((describe(process, cgroups)?, sockets)))
}

fn sockets_of(pid: i32, inodes: &HashSet<u64>) -> io::Result<Vec<u64>> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let (mut sockets, files) = sockets_in(&root.join("fd"), inodes)?;
    if files > 0 {
        return Ok(sockets);
    }
    // A main thread that has ended shows no files; its process may go on without it.
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
        // A file that cannot be read has been closed in between.
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

/// Pid and uid are those of the namespaces that /proc shows and this process lives in; in a container with namespaces
/// of its own they differ from the initial ones. The start time is cut down to clock ticks (of 10 ms), where the kernel
/// knows nanoseconds.
fn describe(process: &process::Process, cgroups: &mut Cgroups) -> ProcResult<Process> {
    let stat = process.stat()?;
    let status = status_from(&read(process, "status")?)?;
    let pid = u32::try_from(stat.pid).map_err(|_| ProcError::Other(format!("pid {}", stat.pid)))?;
    Ok(Process {
        // Not from `stat`, which has replaced what is not UTF-8.
        name: name_from(&read(process, "comm")?),
        // The real one, as events have it. The owner of /proc/<pid> is root where the process cannot be dumped.
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

/// Also if the name in it is not UTF-8.
fn status_from(bytes: &[u8]) -> ProcResult<Status> {
    Status::from_buf_read(String::from_utf8_lossy(bytes).as_bytes())
}

/// `comm` ends with a line feed; the name itself may contain others.
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

/// Ids of cgroups in the unified hierarchy. Many processes share few of them.
struct Cgroups {
    mount: Option<Cgroup2>,
    ids: HashMap<String, Option<CgroupId>>,
}

impl Cgroups {
    fn new(mount: Option<Cgroup2>) -> Self {
        Self { mount, ids: HashMap::default() }
    }

    /// None where it is not known: nothing is mounted, or the cgroup has been removed or is out of our sight.
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

/// Where the cgroup is mounted. A path that leads out of what is mounted (`/../other`) would name something else.
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
    fn a_shared_socket_belongs_to_the_process_that_started_first_in_whatever_order_they_come() {
        let manager = process(1, "init", 1);
        // A name is no privilege, and no disadvantage.
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
