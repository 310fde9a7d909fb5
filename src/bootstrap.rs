// SPDX-License-Identifier: MIT OR Apache-2.0
//! Existing connections, in all network namespaces. sock_diag lists them with their totals; /proc lists them without,
//! and is always there. Neither needs a privilege. Their owners come from an iterator over all open files, or from
//! /proc.
//!
//! Records from /proc have no totals, so they are partial, and no socket ids. Owners from /proc are known only as far
//! as this process may read the files of others. For another user's files it needs root, or CAP_DAC_READ_SEARCH and
//! CAP_SYS_PTRACE.
//!
//! The kernel's iterator over TCP sockets would be faster. But up to August 2026 it damages requests that are on their
//! way to a listener (CVE-2026-74714), and a program cannot find out whether a kernel is repaired.

mod diag;
mod namespaces;
mod outcome;
mod owners;
mod sockets;

pub(crate) use outcome::Outcome;

use crate::capabilities::Bootstrap;
use crate::decode;
use crate::error::{Error, Result};
use crate::kernel::Holders;
use crate::model::{KernelTime, NetNs, Protocol, Provenance};
use crate::record::ConnectionRecord;
use crate::survey::Survey;
use crate::threads;
use owners::Owners;
use sockets::Socket;
use std::thread::{self, ScopedJoinHandle};

/// The number of a socket's inode, by which its owner is found, and the record of its connection.
type ListedSocket = (u64, ConnectionRecord);

/// Loads the iterator if it is wanted, and finds out which source the search will use.
pub(crate) fn prepare(wanted: Bootstrap) -> (Result<Holders, String>, Outcome) {
    if wanted == Bootstrap::Procfs {
        return (Err("it is not wanted".into()), Outcome::new(wanted, not_yet()));
    }
    let holders = Holders::load();
    let is_there = diag::is_there();
    let way = if is_there.is_ok() { Bootstrap::SockDiag } else { Bootstrap::Procfs };
    let limits = [is_there.err(), holders.as_ref().err().map(|reason| owners_by_proc(reason)), not_yet()];
    let outcome = Outcome::new(way, limits.into_iter().flatten());
    (holders, outcome)
}

/// The limit before the first search: until then, existing connections are not called exact.
fn not_yet() -> Option<String> {
    Some("not searched for yet".into())
}

/// Searches for the connections of this machine by the wanted source, or else in /proc. Also returns which it was.
///
/// The records have the time when the search began: an event with a later time is newer. Several records may have the
/// same key (UDP sockets with SO_REUSEPORT, namespaces).
pub(crate) fn existing_connections(
    wanted: Bootstrap,
    holders: &Result<Holders, String>,
) -> Result<(Vec<ConnectionRecord>, Outcome)> {
    let began = KernelTime::now();
    let (found, owners) =
        at_once(|| find(wanted), || holders.as_ref().map_err(String::clone).and_then(owners_by_iterator));
    let (found, mut outcome) = found?;
    let inodes = || found.iter().map(|&(inode, _)| inode).filter(|&inode| inode != sockets::NO_FILE);
    let owners = match owners {
        Ok(owners) => owners,
        Err(reason) => {
            outcome.limits.extend((wanted != Bootstrap::Procfs).then(|| owners_by_proc(&reason)));
            owners::find(&inodes().collect())?
        }
    };
    outcome.limits.extend(owners.limit(inodes()));
    outcome.limits.iter().for_each(|limit| log::info!("existing connections: {limit}"));
    Ok((found.into_iter().map(|found| owned(found, &owners, began)).collect(), outcome))
}

/// Runs both functions at the same time. Both wait for memory most of the time, so on two processors the shorter
/// function costs no time.
fn at_once<A, B: Send>(here: impl FnOnce() -> A, beside: impl Fn() -> B + Sync) -> (A, B) {
    thread::scope(|scope| {
        let thread = threads::spawn_scoped(scope, "tcptop-holders", &beside);
        let here = here();
        let joined = |thread: ScopedJoinHandle<'_, B>| thread.join().unwrap_or_else(|_| beside());
        (here, thread.map_or_else(|_| beside(), joined))
    })
}

fn owned(found: ListedSocket, owners: &Owners, began: KernelTime) -> ConnectionRecord {
    let (inode, record) = found;
    let owner = owners.of(inode);
    let provenance = if owner.is_some() { Provenance::Bootstrap } else { Provenance::Unknown };
    ConnectionRecord { owner, provenance, first_seen: began, last_seen: began, ..record }
}

fn owners_by_iterator(holders: &Holders) -> Result<Owners, String> {
    let mut owners = Owners::default();
    holders.read(|record| {
        if let Some((inode, process)) = decode::holder(record) {
            owners.assign(inode, process);
        }
    })?;
    Ok(owners)
}

fn owners_by_proc(reason: &str) -> String {
    format!("owners out of /proc: {reason}")
}

/// The listed sockets of all network namespaces, without owners.
fn find(wanted: Bootstrap) -> Result<(Vec<ListedSocket>, Outcome)> {
    let (scans, left_out) = namespaces::in_each(|| scan(wanted, diag::read, sockets::read));
    let (found, mut outcome) = gather(scans)?;
    outcome.limits.extend(left_out.limits());
    Ok((found, outcome))
}

/// The result of a scan of one network namespace.
struct Scan {
    way: Bootstrap,
    found: Vec<ListedSocket>,
    /// Why sock_diag could not be used.
    refusal: Option<String>,
}

/// Scans the calling thread's network namespace.
fn scan(
    wanted: Bootstrap,
    by_sock_diag: impl FnOnce(Option<NetNs>) -> Result<Vec<ListedSocket>, String>,
    by_proc: impl FnOnce() -> Result<Vec<Socket>>,
) -> Result<Scan> {
    let netns = NetNs::current().ok();
    let mut refusal = None;
    if wanted == Bootstrap::SockDiag {
        match by_sock_diag(netns) {
            Ok(found) => return Ok(Scan { way: Bootstrap::SockDiag, found, refusal }),
            Err(reason) => refusal = Some(reason),
        }
    }
    let found = by_proc()?.iter().map(|socket| partial(socket, netns)).collect();
    Ok(Scan { way: Bootstrap::Procfs, found, refusal })
}

/// Puts the scans together. A namespace that could not be scanned by sock_diag, or at all, costs only its own
/// connections.
fn gather(scans: Vec<Result<Scan>>) -> Result<(Vec<ListedSocket>, Outcome)> {
    let (mut found, mut refusals, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    let mut way = Bootstrap::Procfs;
    let mut has_scanned = false;
    for scan in scans {
        match scan {
            Ok(Scan { way: this, found: mut here, refusal }) => {
                has_scanned = true;
                way = way.min(this);
                refusals.extend(refusal);
                // The first scan is not copied: it may have hundreds of thousands of sockets.
                if found.is_empty() { found = here } else { found.append(&mut here) }
            }
            Err(e) => unread.push(e),
        }
    }
    let mut limits = Vec::new();
    let (refused, unreadable) = (refusals.len(), unread.len());
    if let Some(reason) = refusals.pop() {
        let everywhere = way == Bootstrap::Procfs;
        let some = || format!("network namespaces out of /proc, without totals: {refused} ({reason})");
        limits.push(if everywhere { reason.clone() } else { some() });
    }
    if let Some(e) = unread.pop() {
        if !has_scanned {
            return Err(e);
        }
        limits.push(format!("network namespaces that cannot be read: {unreadable} ({e:?})"));
    }
    Ok((found, Outcome { way, limits }))
}

fn partial(socket: &Socket, netns: Option<NetNs>) -> ListedSocket {
    let record = ConnectionRecord {
        netns,
        tcp_state: socket.tcp_state,
        is_partial: true,
        ..ConnectionRecord::new(socket.key, KernelTime(0))
    };
    (socket.inode, record)
}

/// Lists the ids of all sockets of these protocols, in each network namespace where the list is complete.
pub(crate) fn survey(protocols: Vec<Protocol>) -> Result<Survey> {
    let mut survey = Survey::new(KernelTime::now(), protocols);
    let (scans, _) = namespaces::in_each(|| (NetNs::current().ok(), diag::ids()));
    let mut refusal = None;
    let mut has_listed = false;
    for (netns, ids) in scans {
        match ids {
            Ok(ids) => {
                has_listed = true;
                if let Some(netns) = netns {
                    survey.add(netns, ids);
                }
            }
            Err(reason) => refusal = Some(reason),
        }
    }
    match refusal {
        Some(reason) if !has_listed => Err(Error::Kernel { what: "list its sockets", source: reason.into() }),
        _ => Ok(survey),
    }
}

/// Removes the socket ids of some protocols. If events do not have the kernel's cookies (Linux before 5.12, UDP with
/// kprobes), records must not have them either.
pub(crate) fn forget_ids(records: &mut [ConnectionRecord], of: impl Fn(Protocol) -> bool) {
    let nameless = records.iter_mut().filter(|record| of(record.key.protocol));
    nameless.for_each(|record| record.socket = None);
}

fn unreadable(path: &str, reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Proc { path: path.into(), source: Box::new(reason) }
}

#[cfg(test)]
mod tests;
