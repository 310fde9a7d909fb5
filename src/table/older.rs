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
use crate::model::{ConnectionKey, KernelTime, NetNs, Protocol};
use crate::record::ConnectionRecord;
use foldhash::HashMap;

/// Where unconnected sockets without an id were found, and by which walk first. Many may share a place.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In this network namespace.
    here: HashMap<(ConnectionKey, Option<NetNs>), KernelTime>,
    anywhere: HashMap<ConnectionKey, KernelTime>,
}

impl Found {
    fn add(&mut self, key: ConnectionKey, netns: Option<NetNs>, walk: KernelTime) {
        let earliest = |known: &mut KernelTime| *known = walk.min(*known);
        self.here.entry((key, netns)).and_modify(earliest).or_insert(walk);
        self.anywhere.entry(key).and_modify(earliest).or_insert(walk);
    }

    /// The first walk that has found one there. A namespace that is not known may be any.
    fn walk_at(&self, key: ConnectionKey, netns: Option<NetNs>) -> Option<KernelTime> {
        if netns.is_none() {
            return self.anywhere.get(&key).copied();
        }
        [netns, None].into_iter().filter_map(|netns| self.here.get(&(key, netns)).copied()).min()
    }
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
                without_id.add(row.key, row.netns, row.last_seen);
            }
            // One with a peer finds its flow by that.
            None => {}
        }
    }

    /// At an earlier walk the socket may have been without a peer, or had another.
    fn move_row(&mut self, socket: u64, to: ConnectionKey) {
        let left = self.store.rows_of_socket(socket).find(|(_, row)| row.record.key != to);
        if let Some((slot, _)) = left {
            self.store.remove(slot);
        }
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
        self.older.entry(socket).and_modify(|known| *known = walk.min(*known)).or_insert(walk);
    }

    /// Marks the flows of all sockets that may be one of these.
    pub(super) fn mark_flows_at(&mut self, found: &Found) {
        if found.anywhere.is_empty() {
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
        let known = self.older.get(&info.socket).copied();
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
            let mut rows = self.store.open_rows(&key).chain(self.store.ended_rows(&key));
            let row = rows.find(|(_, row)| was_there(row) && place.may_be(&Place::of_record(&row.record)));
            row.map(|(_, row)| row.record.last_seen)
        })
    }
}

/// The earliest walk that can have found this flow's socket.
fn walk_at(entry: &Entry, found: &Found) -> Option<KernelTime> {
    let netns = entry.record.netns;
    let walks = unconnected_keys(&entry.record.key).filter_map(|key| found.walk_at(key, netns));
    walks.filter(|&walk| !entry.ended_before(walk)).min()
}
