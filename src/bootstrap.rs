// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that exist already, out of /proc: the way that is always there, needs no BPF and no privilege.
//!
//! What it cannot know: totals (every record is partial), socket ids, and the owners of sockets that it may not look
//! at. Another user's files take root, or CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE. Only the network namespace of the
//! calling process is read.

mod owners;
mod sockets;

use crate::error::{Error, Result};
use crate::model::{KernelTime, Process, Provenance};
use crate::record::ConnectionRecord;
use sockets::Socket;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The connections of the calling process's network namespace.
///
/// The time in the records is from before the first look at /proc: an event with a later time knows more. Keys may
/// repeat (UDP sockets with SO_REUSEPORT).
pub(crate) fn existing_connections() -> Result<Vec<ConnectionRecord>> {
    let began = KernelTime::now();
    let sockets = sockets::read()?;
    let inodes =
        sockets.iter().map(|socket| socket.inode).filter(|&inode| inode != sockets::NO_FILE).collect();
    let owners = owners::find(&inodes)?;
    Ok(records(&sockets, &owners, netns(), began))
}

fn records(
    sockets: &[Socket],
    owners: &HashMap<u64, Process>,
    netns: u32,
    time: KernelTime,
) -> Vec<ConnectionRecord> {
    let record = |socket: &Socket| {
        let owner = owners.get(&socket.inode).copied();
        ConnectionRecord {
            netns,
            owner,
            provenance: if owner.is_some() { Provenance::Bootstrap } else { Provenance::Unknown },
            tcp_state: socket.tcp_state,
            is_partial: true,
            ..ConnectionRecord::new(socket.key, time)
        }
    };
    sockets.iter().map(record).collect()
}

/// Inode number of the network namespace that `sockets` reads, which is that of the thread-group leader.
fn netns() -> u32 {
    let inode = fs::metadata("/proc/self/ns/net").map_or(0, |ns| ns.ino());
    u32::try_from(inode).unwrap_or(0)
}

fn unreadable(path: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Proc { path: path.into(), source: Box::new(source) }
}

#[cfg(test)]
mod tests;
