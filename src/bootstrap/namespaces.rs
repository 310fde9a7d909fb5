// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network namespaces of this machine. Socket tables and iterators show the namespace of the thread that reads
//! them.
//!
//! A namespace without a process and without a name is not found.

use crate::threads;
use crate::{initial, mounts};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// The namespaces and processes that were left out, and the latest reason.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    namespaces: usize,
    not_entered: Option<io::Error>,
    /// The number of processes whose namespaces are unknown.
    processes: usize,
    not_shown: Option<io::Error>,
}

impl LeftOut {
    fn not_entered(&mut self, why: io::Error) {
        self.namespaces += 1;
        self.not_entered = Some(why);
    }

    fn not_shown(&mut self, why: io::Error) {
        self.processes += 1;
        self.not_shown = Some(why);
    }

    /// Each limit as a text for people; none if nothing was left out.
    pub(super) fn limits(&self) -> impl Iterator<Item = String> {
        let not_entered = self.not_entered.as_ref();
        let not_shown = self.not_shown.as_ref();
        not_entered
            .map(|why| format!("network namespaces that cannot be entered: {} ({why})", self.namespaces))
            .into_iter()
            .chain(not_shown.map(|why| {
                format!("processes whose network namespace is not shown: {} ({why})", self.processes)
            }))
            .chain((!initial::in_initial_pid_namespace()).then(|| {
                "network namespaces without a process of this pid namespace are out of sight".into()
            }))
    }
}

/// Runs `scan` once in each network namespace, first in that of the calling thread.
///
/// A thread of the library enters the other namespaces. This needs CAP_SYS_ADMIN; without it, only the caller's
/// namespace is scanned. The namespace of another user's process is visible only with CAP_SYS_PTRACE.
pub(super) fn in_each<T: Send>(scan: impl Fn() -> T + Sync) -> (Vec<T>, LeftOut) {
    let mut found = vec![scan()];
    let (others, mut left_out) = others();
    if others.is_empty() {
        return (found, left_out);
    }
    let visit = || others.iter().map(|paths| visit(paths, &scan)).collect::<Vec<_>>();
    match on_another_thread(visit) {
        Ok(scans) => scans.into_iter().for_each(|scan| match scan {
            Ok(there) => found.extend(there),
            Err(e) => left_out.not_entered(e),
        }),
        Err(e) => others.iter().for_each(|_| left_out.not_entered(e.kind().into())),
    }
    (found, left_out)
}

/// Enters a namespace and scans it. None if the namespace has ended meanwhile: then it has no connections.
fn visit<T>(paths: &[PathBuf], scan: &impl Fn() -> T) -> io::Result<Option<T>> {
    let Some(namespace) = open_any(paths)? else { return Ok(None) };
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    // There may be more namespaces than this process may have files open.
    drop(namespace);
    Ok(Some(scan()))
}

/// Opens the first path that still exists. Some of the processes may have ended.
fn open_any(paths: &[PathBuf]) -> io::Result<Option<File>> {
    for path in paths {
        match File::open(path) {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::SRCH)) => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// Runs `work` on a new thread. An error if `work` panics.
fn on_another_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = threads::spawn_scoped(scope, "tcptop-netns", work)?;
        thread.join().map_err(|_| io::Error::other("the thread has panicked"))
    })
}

/// Every namespace but our own, once. Each has the paths of its processes and of its name.
fn others() -> (Vec<Vec<PathBuf>>, LeftOut) {
    let (mut found, mut left_out) = (BTreeMap::<u64, Vec<PathBuf>>::new(), LeftOut::default());
    for path in processes().into_iter().chain(mounts::named_network_namespaces()) {
        match inode(&path) {
            Ok(inode) => found.entry(inode).or_default().push(path),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => left_out.not_shown(e),
            // The process has ended.
            Err(_) => {}
        }
    }
    if let Ok(own) = inode(Path::new("/proc/thread-self/ns/net")) {
        found.remove(&own);
    }
    (found.into_values().collect(), left_out)
}

fn processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    processes.map(|process| process.path().join("ns/net")).collect()
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|namespace| namespace.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_what_was_left_out_and_give_the_reason() {
        let mut left_out = LeftOut::default();
        assert_eq!(left_out.limits().count(), 0);
        for _ in 0..3 {
            left_out.not_entered(ErrorKind::PermissionDenied.into());
        }
        let entered = "network namespaces that cannot be entered: 3 (permission denied)";
        assert_eq!(left_out.limits().collect::<Vec<_>>(), [entered]);
        left_out.not_shown(ErrorKind::PermissionDenied.into());
        let shown = "processes whose network namespace is not shown: 1 (permission denied)";
        assert_eq!(left_out.limits().collect::<Vec<_>>(), [entered, shown]);
    }

    #[test]
    fn a_namespace_is_entered_by_a_process_that_still_exists() {
        let paths = ["/proc/0/ns/net", "/proc/self/ns/net"].map(PathBuf::from);
        assert!(open_any(&paths).unwrap().is_some());
        assert!(open_any(&paths[..1]).unwrap().is_none());
        assert!(open_any(&[]).unwrap().is_none());
        // A path that exists but cannot be opened is an error.
        assert!(open_any(&["/proc/self/ns/net/beyond".into()]).is_err());
    }

    #[test]
    fn a_scan_that_panics_is_an_error() {
        assert_eq!(on_another_thread(|| 5).unwrap(), 5);
        let quiet = std::panic::catch_unwind(|| on_another_thread(|| std::panic::resume_unwind(Box::new(5))));
        assert!(quiet.unwrap().is_err());
    }
}
