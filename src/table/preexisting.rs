// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP sockets that are older than the tracer. The kernel keeps no totals for them, so all their flows are partial. That goes
//! for flows that begin later, too: their peers may have exchanged datagrams with the socket before.
//!
//! A row names such a socket by its id. Without an id it names an address, which a younger socket may share (SO_REUSEPORT).
//! Then flows of that one count as partial, too.

use super::ConnectionTable;
use super::entry::Entry;
use super::matching::{Flow, MatchKey, is_unconnected, unconnected_keys};
use crate::event::ConnectionInfo;
use crate::model::{ConnectionKey, KernelTime, NetNs, Protocol};
use crate::record::ConnectionRecord;
use foldhash::HashMap;

/// Where unconnected sockets without an id were found, and by which scan first. Many may share a wanted.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In this network namespace.
    here: HashMap<(ConnectionKey, Option<NetNs>), KernelTime>,
    anywhere: HashMap<ConnectionKey, KernelTime>,
}

impl Found {
    fn add(&mut self, key: ConnectionKey, netns: Option<NetNs>, scan: KernelTime) {
        let earliest = |known: &mut KernelTime| *known = scan.min(*known);
        self.here.entry((key, netns)).and_modify(earliest).or_insert(scan);
        self.anywhere.entry(key).and_modify(earliest).or_insert(scan);
    }

    /// The first scan that found this key. An unknown namespace may be any.
    fn scan_at(&self, key: ConnectionKey, netns: Option<NetNs>) -> Option<KernelTime> {
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

    /// Drops the row of an earlier scan in which the socket had another peer, or none.
    fn move_row(&mut self, socket: u64, to: ConnectionKey) {
        let left = self.store.rows_of_socket(socket).find(|(_, row)| row.record.key != to);
        if let Some((slot, _)) = left {
            self.store.remove(slot);
        }
    }

    /// A scan at this time has found this socket.
    pub(super) fn mark_flows_of(&mut self, socket: u64, scan: KernelTime) {
        let flows: Vec<u32> = self.store.of_socket(socket).map(|(slot, _)| slot).collect();
        for slot in flows {
            if let Some(entry) = self.store.get_mut(slot) {
                entry.found_by(scan);
            }
        }
        self.remember_preexisting(socket, scan);
    }

    /// Flows come and go while their socket stays. Bounded like the records: the end of a socket may be lost.
    fn remember_preexisting(&mut self, socket: u64, scan: KernelTime) {
        if self.recent_closes.time((socket, None)).is_some() || self.preexisting.len() >= self.max_connections
        {
            return;
        }
        self.preexisting.entry(socket).and_modify(|known| *known = scan.min(*known)).or_insert(scan);
    }

    /// Marks the flows of all sockets that may be among these.
    pub(super) fn mark_flows_at(&mut self, found: &Found) {
        if found.anywhere.is_empty() {
            return;
        }
        let flows = self.store.iter().filter_map(|(_, entry)| match entry.flow() {
            Some(Flow::Udp { socket, .. }) => Some((socket, scan_at(entry, found)?)),
            _ => None,
        });
        let preexisting: HashMap<u64, KernelTime> = flows.collect();
        preexisting.into_iter().for_each(|(socket, scan)| self.mark_flows_of(socket, scan));
    }

    /// Marks a new flow if its socket is older than the tracer.
    pub(super) fn mark_if_preexisting(&mut self, slot: u32, info: &ConnectionInfo) {
        let sibling = || self.store.of_socket(info.socket).find(|&(other, _)| other != slot);
        let known = self.preexisting.get(&info.socket).copied();
        let known = known.or_else(|| sibling().and_then(|(_, entry)| entry.preexisting()));
        let Some(scan) = known.or_else(|| self.scan_of_row(info)) else { return };
        if let Some(entry) = self.store.get_mut(slot) {
            entry.found_by(scan);
        }
        self.remember_preexisting(info.socket, scan);
    }

    /// The scan that found the socket of this event without a peer.
    fn scan_of_row(&self, info: &ConnectionInfo) -> Option<KernelTime> {
        let was_there =
            |row: &Entry| row.record.is_partial && row.closed_at().is_none_or(|end| end >= info.time);
        unconnected_keys(&info.key).find_map(|key| {
            let wanted = MatchKey { key: &key, netns: info.netns, socket: Some(info.socket), pid: None };
            let mut rows = self.store.open_rows(&key).chain(self.store.ended_rows(&key));
            let row =
                rows.find(|(_, row)| was_there(row) && wanted.may_match(&MatchKey::of_record(&row.record)));
            row.map(|(_, row)| row.record.last_seen)
        })
    }
}

/// The earliest scan that can have found this flow's socket.
fn scan_at(entry: &Entry, found: &Found) -> Option<KernelTime> {
    let netns = entry.record.netns;
    let scans = unconnected_keys(&entry.record.key).filter_map(|key| found.scan_at(key, netns));
    scans.filter(|&scan| !entry.ended_before(scan)).min()
}
