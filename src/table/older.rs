// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP sockets that are older than the tracer. The kernel keeps no totals of theirs, so what moved before is missing
//! from all their flows, also from one that events show much later for the first time: its peer may be an old one.
//!
//! A row tells which sockets these are: by its id where it has one, else by where it is, which may take in a younger
//! socket at the same address (SO_REUSEPORT). That may be missing is what partial says.

use super::ConnectionTable;
use super::entry::Entry;
use super::place::{Flow, Place, is_unconnected, unconnected_keys};
use crate::event::ConnectionInfo;
use crate::model::{ConnectionKey, KernelTime, Protocol};
use crate::record::ConnectionRecord;
use foldhash::HashMap;

/// Where unconnected sockets without an id were found, in which network namespace, and by which walk.
pub(super) type Found = HashMap<ConnectionKey, Vec<(u32, KernelTime)>>;

/// A UDP socket that is older than the tracer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Older {
    /// The first walk that has found it.
    walk: KernelTime,
    /// The key of its row, where it had one with its id.
    pub(super) row: Option<ConnectionKey>,
}

impl ConnectionTable {
    /// Takes note of a row, before it is merged. What has no id is left for [`mark_flows_at`](Self::mark_flows_at).
    pub(super) fn note_row(&mut self, row: &ConnectionRecord, without_id: &mut Found) {
        if row.key.protocol != Protocol::Udp || !row.is_partial {
            return;
        }
        match row.socket {
            Some(socket) => {
                self.mark_flows_of(socket, row.last_seen);
                self.move_row(socket, row.key);
            }
            None if is_unconnected(&row.key) => {
                without_id.entry(row.key).or_default().push((row.netns, row.last_seen));
            }
            // One with a peer finds its flow by that.
            None => {}
        }
    }

    /// At an earlier walk the socket may have been without a peer, or had another.
    fn move_row(&mut self, socket: u64, to: ConnectionKey) {
        let Some(older) = self.older.get_mut(&socket) else { return };
        let left = older.row.replace(to).filter(|from| *from != to);
        if let Some(slot) = left.and_then(|key| self.row_of_socket(&key, socket)) {
            self.store.remove(slot);
        }
    }

    /// The row with this key and id, also if it has ended.
    pub(super) fn row_of_socket(&self, key: &ConnectionKey, socket: u64) -> Option<u32> {
        let mut rows = self.store.unconfirmed(key);
        rows.find(|(_, row)| row.record.socket == Some(socket)).map(|(slot, _)| slot)
    }

    /// A walk at this time has found this socket.
    pub(super) fn mark_flows_of(&mut self, socket: u64, walk: KernelTime) {
        let flows: Vec<u32> = self.store.of_socket(socket).map(|(slot, _)| slot).collect();
        for slot in flows {
            if let Some(entry) = self.store.get_mut(slot) {
                entry.found_by(walk);
            }
        }
        self.remember_older(socket, walk);
    }

    /// Flows come and go while their socket stays. Bounded like the records, because the end of a socket may be lost.
    fn remember_older(&mut self, socket: u64, walk: KernelTime) {
        if self.gone.time((socket, None)).is_some() || self.older.len() >= self.max_connections {
            return;
        }
        let older = self.older.entry(socket).or_insert(Older { walk, row: None });
        older.walk = walk.min(older.walk);
    }

    /// Marks the flows of all sockets that may be one of these.
    pub(super) fn mark_flows_at(&mut self, found: &Found) {
        if found.is_empty() {
            return;
        }
        let flows = self.store.iter().filter_map(|(_, entry)| match entry.flow() {
            Some(Flow::Udp { socket, .. }) => Some((socket, walk_at(entry, found)?)),
            _ => None,
        });
        let older: HashMap<u64, KernelTime> = flows.collect();
        older.into_iter().for_each(|(socket, walk)| self.mark_flows_of(socket, walk));
    }

    /// Marks a new flow if its socket is known to be older. All flows of a socket are alike.
    pub(super) fn mark_if_older(&mut self, slot: u32, info: &ConnectionInfo) {
        let sibling = || self.store.of_socket(info.socket).find(|&(other, _)| other != slot);
        let known = self.older.get(&info.socket).map(|older| older.walk);
        let known = known.or_else(|| sibling().and_then(|(_, entry)| entry.older()));
        let Some(walk) = known.or_else(|| self.walk_of_row(info)) else { return };
        if let Some(entry) = self.store.get_mut(slot) {
            entry.found_by(walk);
        }
        self.remember_older(info.socket, walk);
    }

    /// The walk that found the socket of this event without a peer.
    fn walk_of_row(&self, info: &ConnectionInfo) -> Option<KernelTime> {
        let was_there =
            |row: &Entry| row.record.is_partial && row.closed_at().is_none_or(|end| end >= info.time);
        unconnected_keys(&info.key).find_map(|key| {
            let place = Place { key: &key, netns: info.netns, socket: Some(info.socket), pid: None };
            let mut rows = self.store.unconfirmed(&key);
            let row = rows.find(|(_, row)| was_there(row) && place.may_be(&Place::of_record(&row.record)));
            row.map(|(_, row)| row.record.last_seen)
        })
    }
}

/// The earliest walk that can have found this flow's socket.
fn walk_at(entry: &Entry, found: &Found) -> Option<KernelTime> {
    let netns = entry.record.netns;
    let rows = unconnected_keys(&entry.record.key).filter_map(|key| found.get(&key)).flatten();
    let here = rows.filter(|(of_row, _)| *of_row == netns || *of_row == 0 || netns == 0);
    here.map(|&(_, walk)| walk).filter(|&walk| !entry.ended_before(walk)).min()
}
