// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that exist already, in all network namespaces: by the kernel's iterators or by sock_diag, with their
//! totals, or out of /proc, which is always there, needs no BPF and no privilege.
//!
//! What /proc cannot know: totals (every record is partial), socket ids, and the owners of sockets that it may not look
//! at. Another user's files take root, or CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.

mod diag;
mod namespaces;
mod owners;
mod sockets;

use crate::capabilities::Bootstrap;
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

/// The connections of this machine by the best way that works, of this one and the ones after it.
///
/// The time in the records is from before the first look: an event with a later time knows more. Keys may repeat (UDP
/// sockets with SO_REUSEPORT, namespaces).
pub(crate) fn existing_connections(
    way: Bootstrap,
    iterators: Option<&Iterators>,
) -> Result<Vec<ConnectionRecord>> {
    let began = KernelTime::now();
    let by_iterators = iterators.filter(|_| way == Bootstrap::Iterators).map(iterate);
    let mut all = by_iterators.and_then(found_or_logged);
    if all.is_none() && way != Bootstrap::Procfs {
        all = found_or_logged(by_sock_diag());
    }
    let (found, owners) = match all {
        Some(all) => all,
        None => from_proc()?,
    };
    Ok(found.into_iter().map(|found| owned(found, &owners, began)).collect())
}

fn found_or_logged(all: std::result::Result<All, String>) -> Option<All> {
    all.inspect_err(|reason| log::warn!("existing connections have to be found otherwise: {reason}")).ok()
}

/// Whether sock_diag works here, and if not, why.
pub(crate) fn try_sock_diag() -> std::result::Result<(), String> {
    diag::read(0).map(drop)
}

fn owned(found: Found, owners: &HashMap<u64, Process>, began: KernelTime) -> ConnectionRecord {
    let (inode, record) = found;
    let owner = owners.get(&inode).copied();
    let provenance = if owner.is_some() { Provenance::Bootstrap } else { Provenance::Unknown };
    ConnectionRecord { owner, provenance, first_seen: began, last_seen: began, ..record }
}

type All = (Vec<Found>, HashMap<u64, Process>);

fn iterate(iterators: &Iterators) -> std::result::Result<All, String> {
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

fn by_sock_diag() -> std::result::Result<All, String> {
    let mut found = Vec::new();
    for sockets in namespaces::in_each(|| diag::read(netns())) {
        found.extend(sockets?);
    }
    with_holders(found).map_err(|e| e.to_string())
}

fn from_proc() -> Result<All> {
    let mut found = Vec::new();
    for (netns, sockets) in namespaces::in_each(|| (netns(), sockets::read())) {
        found.extend(sockets?.iter().map(|socket| partial(socket, netns)));
    }
    with_holders(found)
}

/// Adds the owners by a walk over /proc.
fn with_holders(found: Vec<Found>) -> Result<All> {
    let inodes: HashSet<u64> =
        found.iter().map(|&(inode, _)| inode).filter(|&inode| inode != sockets::NO_FILE).collect();
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

/// Where events cannot name sockets by their cookies (Linux before 5.12, UDP with kprobes), rows must not either.
pub(crate) fn forget_ids(records: &mut [ConnectionRecord], of: impl Fn(Protocol) -> bool) {
    let nameless = records.iter_mut().filter(|record| of(record.key.protocol));
    nameless.for_each(|record| record.socket = None);
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
