// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network namespaces of this machine. Socket tables and iterators show the namespace of the thread that asks.
//!
//! Not found are namespaces in which no process lives and which have no name.

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

/// Where it was not looked, and why: the latest reason of several.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    namespaces: usize,
    not_entered: Option<io::Error>,
    /// Their namespaces are not known.
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

    /// In words, if there is anything.
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

/// Runs `look` once in each network namespace, this thread's own first.
///
/// The others are entered by a thread of their own, which takes CAP_SYS_ADMIN: without it there is only the own one.
/// Which namespace another user's process is in shows only to CAP_SYS_PTRACE.
pub(super) fn in_each<T: Send>(look: impl Fn() -> T + Sync) -> (Vec<T>, LeftOut) {
    let mut found = vec![look()];
    let (others, mut left_out) = others();
    if others.is_empty() {
        return (found, left_out);
    }
    let visit = || others.iter().map(|paths| visit(paths, &look)).collect::<Vec<_>>();
    match on_another_thread(visit) {
        Ok(looks) => looks.into_iter().for_each(|look| match look {
            Ok(there) => found.extend(there),
            Err(e) => left_out.not_entered(e),
        }),
        Err(e) => others.iter().for_each(|_| left_out.not_entered(e.kind().into())),
    }
    (found, left_out)
}

/// None if it has ended in between: then it has no connections any more.
fn visit<T>(paths: &[PathBuf], look: &impl Fn() -> T) -> io::Result<Option<T>> {
    let Some(namespace) = open_any(paths)? else { return Ok(None) };
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    // There may be more namespaces than files that may be open.
    drop(namespace);
    Ok(Some(look()))
}

/// Of these processes some may have ended.
fn open_any(paths: &[PathBuf]) -> io::Result<Option<File>> {
    for path in paths {
        match File::open(path) {
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::SRCH)) => {}
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// It does not panic unless `work` does.
fn on_another_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = threads::spawn_scoped(scope, "tcptop-netns", work)?;
        thread.join().map_err(|_| io::Error::other("the thread has panicked"))
    })
}

/// Every namespace but our own, once: by the paths of those who are in it, and its name.
fn others() -> (Vec<Vec<PathBuf>>, LeftOut) {
    let (mut found, mut left_out) = (BTreeMap::<u64, Vec<PathBuf>>::new(), LeftOut::default());
    for path in processes().into_iter().chain(mounts::named_network_namespaces()) {
        match inode(&path) {
            Ok(inode) => found.entry(inode).or_default().push(path),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => left_out.not_shown(e),
            // A process that has ended.
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
    fn what_was_left_out_is_counted_and_told_with_the_reason() {
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
    fn a_namespace_is_entered_by_whoever_is_still_there() {
        let paths = ["/proc/0/ns/net", "/proc/self/ns/net"].map(PathBuf::from);
        assert!(open_any(&paths).unwrap().is_some());
        assert!(open_any(&paths[..1]).unwrap().is_none());
        assert!(open_any(&[]).unwrap().is_none());
        // What is there and cannot be opened is told.
        assert!(open_any(&["/proc/self/ns/net/beyond".into()]).is_err());
    }

    #[test]
    fn a_look_that_panics_is_a_look_that_was_not_taken() {
        assert_eq!(on_another_thread(|| 5).unwrap(), 5);
        let quiet = std::panic::catch_unwind(|| on_another_thread(|| std::panic::resume_unwind(Box::new(5))));
        assert!(quiet.unwrap().is_err());
    }
}
