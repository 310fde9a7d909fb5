// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network namespaces of this machine. Socket tables and iterators show the namespace of the thread that asks.
//!
//! Not found are namespaces in which no process lives and which have no name, and those of processes that this one may
//! not look at.

use crate::host;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// Runs `look` once in each network namespace, this thread's own first.
///
/// The others are entered by a thread of their own, which takes CAP_SYS_ADMIN: without it there is only the own one.
pub(super) fn in_each<T: Send>(look: impl Fn() -> T + Sync) -> Vec<T> {
    let mut found = vec![look()];
    let others = others();
    if others.is_empty() {
        return found;
    }
    let look = &look;
    let rest = thread::scope(|scope| scope.spawn(move || visit(&others, look)).join());
    // It does not panic unless `look` does; then the own namespace is what there is.
    found.extend(rest.unwrap_or_default());
    found
}

fn visit<T>(namespaces: &[File], look: &impl Fn() -> T) -> Vec<T> {
    let enter = |namespace: &File| match move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    ) {
        Ok(()) => Some(look()),
        Err(e) => {
            log::debug!("connections of a network namespace are not known: {e}");
            None
        }
    };
    namespaces.iter().filter_map(enter).collect()
}

/// Every namespace but our own, once.
fn others() -> Vec<File> {
    let mut found = BTreeMap::new();
    for path in processes().into_iter().chain(host::named_network_namespaces()) {
        let Some(inode) = inode(&path) else { continue };
        found.entry(inode).or_insert(path);
    }
    if let Some(own) = inode(Path::new("/proc/thread-self/ns/net")) {
        found.remove(&own);
    }
    // One that has ended in between has no connections any more.
    found.into_values().filter_map(|path| File::open(path).ok()).collect()
}

fn processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    processes.map(|process| process.path().join("ns/net")).collect()
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|namespace| namespace.ino())
}
