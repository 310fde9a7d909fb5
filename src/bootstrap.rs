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
mod ways;

pub(crate) use ways::Finding;

use crate::capabilities::Bootstrap;
use crate::decode;
use crate::error::{Error, Result};
use crate::kernel::Iterators;
use crate::model::{KernelTime, Protocol, Provenance};
use crate::record::ConnectionRecord;
use foldhash::HashSet;
use namespaces::LeftOut;
use owners::Owners;
use sockets::Socket;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::{self, ScopedJoinHandle};
use ways::{Attempt, first_that_works};

/// A connection and the number of its socket's inode, by which its owner is found.
type Found = (u64, ConnectionRecord);

/// This, or in words why not.
type Told<T> = Result<T, String>;

/// Loads the iterators if they are wanted, and finds out which way there will be.
pub(crate) fn prepare(wanted: Bootstrap, use_cookie: bool) -> (Told<Iterators>, Finding) {
    let iterators = match wanted {
        Bootstrap::Iterators => Iterators::load(use_cookie),
        _ => Err("iterators are not wanted".into()),
    };
    let are_loaded = || iterators.as_ref().map(drop).map_err(String::clone);
    let is_there = || diag::read(0).map(drop);
    let attempts: [Attempt<'_, ()>; 2] =
        [(Bootstrap::Iterators, &are_loaded), (Bootstrap::SockDiag, &is_there)];
    let (_, finding) = first_that_works(wanted, attempts);
    (iterators, finding)
}

/// The connections of this machine by the best way that works, of this one and the ones after it; and which way that
/// was.
///
/// The time in the records is from before the first look: an event with a later time knows more. Keys may repeat (UDP
/// sockets with SO_REUSEPORT, namespaces).
pub(crate) fn existing_connections(
    wanted: Bootstrap,
    iterators: &Told<Iterators>,
) -> Result<(Vec<ConnectionRecord>, Finding)> {
    let began = KernelTime::now();
    let by_iterators = || iterators.as_ref().map_err(String::clone).and_then(iterate);
    let attempts: [Attempt<'_, All>; 2] =
        [(Bootstrap::Iterators, &by_iterators), (Bootstrap::SockDiag, &by_sock_diag)];
    let (all, mut finding) = first_that_works(wanted, attempts);
    let All { found, owners, left_out } = match all {
        Some(all) => all,
        None => from_proc()?,
    };
    finding.limits.extend(left_out.limits());
    finding.limits.iter().for_each(|limit| log::info!("existing connections: {limit}"));
    Ok((found.into_iter().map(|found| owned(found, &owners, began)).collect(), finding))
}

fn owned(found: Found, owners: &Owners, began: KernelTime) -> ConnectionRecord {
    let (inode, record) = found;
    let owner = owners.of(inode);
    let provenance = if owner.is_some() { Provenance::Bootstrap } else { Provenance::Unknown };
    ConnectionRecord { owner, provenance, first_seen: began, last_seen: began, ..record }
}

/// What one way has found.
struct All {
    found: Vec<Found>,
    owners: Owners,
    left_out: LeftOut,
}

/// Both walks wait for memory most of the time: on two processors the shorter one costs no time. What begins between
/// them is seen by events.
fn iterate(iterators: &Iterators) -> Told<All> {
    let holders = || holders(iterators);
    let (sockets, owners) = thread::scope(|scope| {
        let owners = thread::Builder::new().name("tcptop-holders".into()).spawn_scoped(scope, holders);
        let sockets = sockets_by_namespace(iterators);
        let joined = |owners: ScopedJoinHandle<'_, _>| owners.join().unwrap_or_else(|_| holders());
        (sockets, owners.map_or_else(|_| holders(), joined))
    });
    let (found, left_out) = sockets?;
    Ok(All { found, owners: owners?, left_out })
}

fn sockets_by_namespace(iterators: &Iterators) -> Told<(Vec<Found>, LeftOut)> {
    let (looks, left_out) = namespaces::in_each(|| {
        // A vector that grows is in memory twice, and leaves holes.
        let mut here = Vec::with_capacity(sockets::count());
        iterators.sockets(|record| here.extend(decode::existing(record)))?;
        Ok::<_, String>(here)
    });
    let mut looks = looks.into_iter();
    // Not copied: there may be hundreds of thousands.
    let mut found = looks.next().unwrap_or(Ok(Vec::new()))?;
    for here in looks {
        found.append(&mut here?);
    }
    Ok((found, left_out))
}

fn holders(iterators: &Iterators) -> Told<Owners> {
    let mut owners = Owners::default();
    iterators.holders(|record| {
        if let Some((inode, process)) = decode::holder(record) {
            owners.assign(inode, process);
        }
    })?;
    Ok(owners)
}

fn by_sock_diag() -> Told<All> {
    let mut found = Vec::new();
    let (looks, left_out) = namespaces::in_each(|| diag::read(netns()));
    for sockets in looks {
        found.extend(sockets?);
    }
    with_holders(found, left_out).map_err(|e| e.to_string())
}

fn from_proc() -> Result<All> {
    let mut found = Vec::new();
    let (looks, left_out) = namespaces::in_each(|| (netns(), sockets::read()));
    for (netns, sockets) in looks {
        found.extend(sockets?.iter().map(|socket| partial(socket, netns)));
    }
    with_holders(found, left_out)
}

/// Adds the owners by a walk over /proc.
fn with_holders(found: Vec<Found>, left_out: LeftOut) -> Result<All> {
    let inodes: HashSet<u64> =
        found.iter().map(|&(inode, _)| inode).filter(|&inode| inode != sockets::NO_FILE).collect();
    let owners = owners::find(&inodes)?;
    Ok(All { found, owners, left_out })
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
