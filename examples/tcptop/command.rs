// SPDX-License-Identifier: MIT OR Apache-2.0
//! A command that is traced with all its children: they are in a cgroup of their own.

use crate::cgroups;
use crate::output::tell;
use crossbeam_channel::{Receiver, bounded};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus};
use std::{fs, thread};
use tcptop::CgroupId;

/// A cgroup that goes with this value. Processes that are still in it keep it.
struct Cgroup {
    path: PathBuf,
    id: CgroupId,
}

impl Cgroup {
    /// Below that of this process, so that its limits hold for the command, too.
    fn new() -> io::Result<Self> {
        let mount = cgroups::mount();
        let mount = mount
            .ok_or_else(|| io::Error::other("no cgroup2 hierarchy is mounted: mount one, or use --pid"))?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let parent = mount.join(own);
        remove_left_over(&parent);
        let path = parent.join(format!("{PREFIX}{}", process::id()));
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("cannot make the cgroup {}: {e}", path.display()))
        };
        fs::create_dir(&path).map_err(named)?;
        let id = CgroupId::of_path(&path)?;
        Ok(Self { path, id })
    }

    fn processes(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir(&self.path) {
            // The next run removes it.
            tell(&format!("processes of the command go on, in the cgroup {}: {e}", self.path.display()));
        }
    }
}

/// What begins the names of these cgroups.
const PREFIX: &str = "tcptop-";

/// Those of earlier runs that were killed, or whose processes went on. One with processes cannot be removed.
fn remove_left_over(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        let is_in_use = |pid: u32| pid != process::id() && Path::new(&format!("/proc/{pid}")).exists();
        if pid.is_some_and(|pid| !is_in_use(pid)) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Not started yet.
pub(crate) struct Command {
    command: process::Command,
    cgroup: Cgroup,
}

impl Command {
    pub(crate) fn new(words: &[OsString]) -> io::Result<Self> {
        let mut command = process::Command::new(&words[0]);
        command.args(&words[1..]);
        Ok(Self { command, cgroup: Cgroup::new()? })
    }

    pub(crate) fn cgroup(&self) -> CgroupId {
        self.cgroup.id
    }

    pub(crate) fn start(mut self) -> io::Result<Running> {
        let processes = self.cgroup.processes()?;
        // SAFETY: between fork and exec only a write to an open file. "0" is the process that writes.
        unsafe { self.command.pre_exec(move || (&processes).write_all(b"0")) };
        let name = Path::new(self.command.get_program()).to_path_buf();
        let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot run {}: {e}", name.display()));
        let mut child = self.command.spawn().map_err(named)?;
        let (pid, (ended, has_ended)) = (child.id(), bounded(0));
        let status = thread::spawn(move || {
            let status = child.wait();
            drop(ended);
            status
        });
        Ok(Running { pid, ended: has_ended, status, _cgroup: self.cgroup })
    }
}

pub(crate) struct Running {
    pid: u32,
    /// Closed when the command has ended.
    pub(crate) ended: Receiver<()>,
    status: thread::JoinHandle<io::Result<ExitStatus>>,
    _cgroup: Cgroup,
}

impl Running {
    /// Sends it this signal, if it has not ended.
    pub(crate) fn pass_on(&self, signal: i32) -> io::Result<()> {
        if !self.status.is_finished() {
            let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
            // SAFETY: touches no memory. It may have ended just now: then nobody has this pid yet.
            let _ = unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }

    /// As a shell tells it: the exit status, or 128 and the signal that ended it. Waits for the end.
    pub(crate) fn status(self) -> io::Result<u8> {
        let status = self.status.join();
        let status = status.unwrap_or_else(|_| Err(io::Error::other("the command was not waited for")))?;
        let signal = status.signal().map(|signal| 128 + signal);
        Ok(status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}
