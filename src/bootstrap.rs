// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that exist already, in all network namespaces: by the kernel's iterators, with their totals, or out of
//! /proc, which is always there, needs no BPF and no privilege.
//!
//! What /proc cannot know: totals (every record is partial), socket ids, and the owners of sockets that it may not look
//! at. Another user's files take root, or CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.

mod namespaces;
mod owners;
mod sockets;

use crate::decode;
use crate::error::{Error, Result};
use crate::kernel::Iterators;
use crate::model::{KernelTime, Process, Protocol, Provenance};
use crate::record::ConnectionRecord;
use crate::wire::{tt_existing, tt_holder};
use sockets::Socket;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A connection and the number of its socket's inode, by which its owner is found.
type Found = (u64, ConnectionRecord);

/// The connections of this machine, by iterators if there are some and they work, else out of /proc.
///
/// The time in the records is from before the first look: an event with a later time knows more. Keys may repeat (UDP
/// sockets with SO_REUSEPORT, namespaces).
pub(crate) fn existing_connections(iterators: Option<&Iterators>) -> Result<Vec<ConnectionRecord>> {
    let began = KernelTime::now();
    let (found, owners) = match iterators.map(iterate) {
        Some(Ok(all)) => all,
        other => {
            if let Some(Err(reason)) = other {
                log::warn!("existing connections are read from /proc: {reason}");
            }
            from_proc()?
        }
    };
    Ok(found.into_iter().map(|found| owned(found, &owners, began)).collect())
}

fn owned(found: Found, owners: &HashMap<u64, Process>, began: KernelTime) -> ConnectionRecord {
    let (inode, record) = found;
    let owner = owners.get(&inode).copied();
    let provenance = if owner.is_some() { Provenance::Bootstrap } else { Provenance::Unknown };
    ConnectionRecord { owner, provenance, first_seen: began, last_seen: began, ..record }
}

type All = (Vec<Found>, HashMap<u64, Process>);

fn iterate(iterators: &Iterators) -> Result<All, String> {
    let mut found = Vec::new();
    for records in namespaces::in_each(|| iterators.sockets()) {
        found.extend(records?.chunks(size_of::<tt_existing>()).filter_map(decode::existing));
    }
    let mut owners = HashMap::new();
    for (inode, process) in iterators.holders()?.chunks(size_of::<tt_holder>()).filter_map(decode::holder) {
        owners::assign(&mut owners, process, &[inode]);
    }
    owners.remove(&sockets::NO_FILE);
    Ok((found, owners))
}

fn from_proc() -> Result<All> {
    let mut found = Vec::new();
    for (netns, sockets) in namespaces::in_each(|| (netns(), sockets::read())) {
        found.extend(sockets?.iter().map(|socket| partial(socket, netns)));
    }
    let inodes: HashSet<u64> = found.iter().map(|&(inode, _)| inode).collect();
    let owners = owners::find(&inodes)?;
    Ok((found, owners))
}

fn partial(socket: &Socket, netns: u32) -> Found {
    let record = ConnectionRecord {
        netns,
        tcp_state: socket.tcp_state,
        is_partial: true,
        ..ConnectionRecord::new(socket.key, KernelTime(0))
    };
    (socket.inode, record)
}

/// A kprobe cannot ask for a UDP socket's cookie, so events name it otherwise; rows must not say who it is then.
pub(crate) fn without_udp_ids(records: &mut [ConnectionRecord]) {
    let udp = records.iter_mut().filter(|record| record.key.protocol == Protocol::Udp);
    udp.for_each(|record| record.socket = None);
}

/// Inode number of the calling thread's network namespace.
fn netns() -> u32 {
    let inode = fs::metadata("/proc/thread-self/ns/net").map_or(0, |ns| ns.ino());
    u32::try_from(inode).unwrap_or(0)
}

fn unreadable(path: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Proc { path: path.into(), source: Box::new(source) }
}

#[cfg(test)]
mod tests;
