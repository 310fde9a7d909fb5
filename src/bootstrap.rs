// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that exist already, in all network namespaces: by sock_diag, with their totals, or out of /proc, which is
//! always there. Neither needs a privilege. The processes that hold them come by an iterator over all files, or out of
//! /proc.
//!
//! The kernel's iterator over TCP sockets would be faster, but up to August 2026 it damages requests that are on their way
//! to a listener (CVE-2026-74714), and whether a kernel is mended cannot be asked.
//!
//! What /proc cannot know: totals (every record is partial), socket ids, and the owners of sockets that it may not look
//! at. Another user's files take root, or CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.

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

/// A connection and the number of its socket's inode, by which its owner is found.
type ListedSocket = (u64, ConnectionRecord);

/// Loads the iterator if it is wanted, and finds out which way there will be.
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

/// What nobody has looked at is not called exact.
fn not_yet() -> Option<String> {
    Some("not searched for yet".into())
}

/// The connections of this machine, in the wanted way or else out of /proc, and which way that was.
///
/// The time in the records is from before the first look: an event with a later time knows more. Keys may repeat (UDP
/// sockets with SO_REUSEPORT, namespaces).
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

/// Both wait for memory most of the time: on two processors the shorter one costs no time.
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

/// The connections without their owners.
fn find(wanted: Bootstrap) -> Result<(Vec<ListedSocket>, Outcome)> {
    let (looks, left_out) = namespaces::in_each(|| look(wanted, diag::read, sockets::read));
    let (found, mut outcome) = gather(looks)?;
    outcome.limits.extend(left_out.limits());
    Ok((found, outcome))
}

/// What a look into one network namespace has found, and in which way.
struct Look {
    way: Bootstrap,
    found: Vec<ListedSocket>,
    /// Why it was not a better one.
    refusal: Option<String>,
}

/// Looks into the calling thread's network namespace.
fn look(
    wanted: Bootstrap,
    by_sock_diag: impl FnOnce(Option<NetNs>) -> Result<Vec<ListedSocket>, String>,
    by_proc: impl FnOnce() -> Result<Vec<Socket>>,
) -> Result<Look> {
    let netns = NetNs::current().ok();
    let mut refusal = None;
    if wanted == Bootstrap::SockDiag {
        match by_sock_diag(netns) {
            Ok(found) => return Ok(Look { way: Bootstrap::SockDiag, found, refusal }),
            Err(reason) => refusal = Some(reason),
        }
    }
    let found = by_proc()?.iter().map(|socket| partial(socket, netns)).collect();
    Ok(Look { way: Bootstrap::Procfs, found, refusal })
}

/// All of them together. A namespace that cannot be looked into in one way, or at all, costs nothing but its own
/// connections.
fn gather(looks: Vec<Result<Look>>) -> Result<(Vec<ListedSocket>, Outcome)> {
    let (mut found, mut refusals, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    let mut way = Bootstrap::Procfs;
    let mut have_looked = false;
    for look in looks {
        match look {
            Ok(Look { way: this, found: mut here, refusal }) => {
                have_looked = true;
                way = way.min(this);
                refusals.extend(refusal);
                // Not copied: there may be hundreds of thousands.
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
        if !have_looked {
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

/// Which sockets of these protocols there are, wherever that can be listed whole.
pub(crate) fn survey(protocols: Vec<Protocol>) -> Result<Survey> {
    let mut survey = Survey::new(KernelTime::now(), protocols);
    let (looks, _) = namespaces::in_each(|| (NetNs::current().ok(), diag::ids()));
    let mut refusal = None;
    let mut has_listed = false;
    for (netns, ids) in looks {
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

/// Where events cannot name sockets by their cookies (Linux before 5.12, UDP with kprobes), rows must not either.
pub(crate) fn forget_ids(records: &mut [ConnectionRecord], of: impl Fn(Protocol) -> bool) {
    let nameless = records.iter_mut().filter(|record| of(record.key.protocol));
    nameless.for_each(|record| record.socket = None);
}

fn unreadable(path: &str, reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Proc { path: path.into(), source: Box::new(reason) }
}

#[cfg(test)]
mod tests;
