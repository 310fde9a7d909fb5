// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merges rows of a scan over existing connections with events of the same connections, in whichever order they come.
//!
//! A row may have no socket id. Then its key, namespace and owner find the connection, and time rules out wrong ones: a
//! connection that ended before `last_seen`, when the scan began, cannot be the one that the scan found.

use super::ConnectionTable;
use super::entry::Entry;
use super::matching::{CROWD, Flow, MatchKey, is_unconnected, unconnected_keys};
use super::preexisting::Found;
use crate::event::ConnectionInfo;
use crate::model::{ConnectionKey, KernelTime, NetNs, Process, Protocol, Provenance, TcpState};
use crate::record::ConnectionRecord;

/// Which connection known from events a row stands for.
enum Match {
    One(u32),
    /// One of several, or one that has ended: the row adds nothing.
    Unclear,
    None,
}

impl ConnectionTable {
    /// Adds connections that were found to exist, such as
    /// [`bootstrap_existing`](crate::NetworkCollector::bootstrap_existing) returns: those that no event has shown yet.
    ///
    /// Call it after tracing has started, before or after the first events were applied: for all that is still open the
    /// result is the same, and merging twice adds nothing. `last_seen` of a record is taken as the time when the search began.
    /// - A connection that events have shown already only gets what it lacks: owner, state, network namespace.
    /// - One that events have shown to end since the search began is not added.
    /// - Any other is added as it is. The first event of this connection (same key; same network namespace, if it is
    ///   known) makes the row its own.
    ///
    /// Which UDP sockets are older than the tracer only a search right after its start can tell: the flows of all that are
    /// found count as partial.
    ///
    /// A UDP socket without a peer stays a row of its own beside the flows of this socket, until the socket is closed;
    /// its owner stands in for that of a flow whose own is not known, and all its flows are partial.
    ///
    /// A row of UDP may stay whose socket carries no traffic before it is closed, where it has no id (out of /proc, or with
    /// kprobes) or ends are not seen ([`Feature::UdpClose`](crate::Feature::UdpClose)).
    pub fn merge_bootstrap(&mut self, records: impl IntoIterator<Item = ConnectionRecord>) {
        let (mut owners, mut without_id) = (false, Found::default());
        for record in records {
            owners |= is_unconnected(&record.key) && record.owner.is_some();
            self.note_row(&record, &mut without_id);
            self.merge_row(record);
        }
        self.mark_flows_at(&without_id);
        if owners {
            self.name_owners_of_flows();
        }
    }

    fn merge_row(&mut self, mut row: ConnectionRecord) {
        if !is_connection(&row) {
            return;
        }
        if row.owner.is_some() && row.provenance == Provenance::Unknown {
            row.provenance = Provenance::Bootstrap;
        }
        match self.match_row(&row) {
            Match::One(slot) => self.claim(slot, row),
            Match::Unclear => {}
            Match::None => match self.store.row_of(&MatchKey::of_record(&row)) {
                Some(twin) => {
                    if let Some(entry) = self.store.get_mut(twin) {
                        entry.found_again(&row);
                    }
                }
                None => {
                    self.make_room();
                    let mut entry = Entry::unconfirmed(row);
                    if let Some(known) = entry.remembered_as().and_then(|flow| self.dropped.take(&flow)) {
                        entry.count_as(known.amount);
                    }
                    self.store.insert(entry);
                }
            },
        }
    }

    fn match_row(&self, row: &ConnectionRecord) -> Match {
        let (wanted, scan) = (MatchKey::of_record(row), row.last_seen);
        let is_candidate = |&(_, entry): &(u32, &Entry)| {
            !entry.ended_before(scan) && wanted.may_match(&MatchKey::of_record(&entry.record))
        };
        let shown = match (row.socket, row.key.protocol) {
            (None, _) => match_one(self.store.confirmed(&row.key).filter(is_candidate)),
            (Some(socket), Protocol::Tcp) => match_one(self.lives_of(socket).filter(is_candidate)),
            // It may have any number of peers.
            (Some(socket), Protocol::Udp) => {
                let slot = self.store.find(&Flow::new(socket, scan, &row.key));
                let flow = slot.and_then(|slot| Some((slot, self.store.get(slot)?)));
                match_one(flow.into_iter().filter(is_candidate))
            }
        };
        let has_ended = || {
            let with_id = row.socket.into_iter().flat_map(|socket| self.store.rows_of_socket(socket));
            let mut rows = self.store.ended_rows(&row.key).chain(with_id.filter(|(_, row)| !row.is_open()));
            let socket = row.socket.filter(|_| row.key.protocol == Protocol::Udp);
            let ended = socket.and_then(|socket| self.recent_closes.time((socket, None)));
            ended.is_some_and(|end| end >= scan)
                || self.recent_closes.ended_since(&wanted, scan)
                || rows.any(|row| is_candidate(&row))
        };
        match shown {
            Match::None if has_ended() => Match::Unclear,
            shown => shown,
        }
    }

    pub(super) fn claim(&mut self, slot: u32, row: ConnectionRecord) {
        let Some(entry) = self.store.get_mut(slot) else { return };
        let (is_partial, scan) = (row.is_partial, row.last_seen);
        entry.claim(row);
        if let (Some(Flow::Udp { socket, .. }), true) = (entry.flow(), is_partial) {
            self.mark_flows_of(socket, scan);
        }
    }

    /// Takes the row of this connection out of the table. For a late event the row may have ended already.
    pub(super) fn take_row(&mut self, wanted: &MatchKey<'_>) -> Option<ConnectionRecord> {
        let of_socket = || {
            let mut rows = self.store.rows_of_socket(wanted.socket?);
            rows.find(|(_, row)| row.record.key == *wanted.key).map(|(slot, _)| slot)
        };
        let slot = self.store.row_of(wanted).or_else(of_socket)?;
        self.store.remove(slot).map(|entry| entry.record)
    }

    /// A UDP socket was closed: so is its row, if it had one of its own. It is the one with the same id, wherever the socket
    /// has been since, or at the same address. Where several share that it is the one with the same owner, or none.
    pub(super) fn close_row(&mut self, info: &ConnectionInfo) {
        let event = MatchKey::of_event(info);
        let at = |key: ConnectionKey| {
            let same_owner = MatchKey { key: &key, ..event };
            let any_owner = MatchKey { pid: None, ..same_owner };
            self.store.row_of(&same_owner).or_else(|| self.store.row_of(&any_owner))
        };
        let is_in_time =
            |slot: &u32| self.store.get(*slot).is_some_and(|entry| entry.record.last_seen <= info.time);
        let by_id = self.store.rows_of_socket(info.socket).map(|(slot, _)| slot);
        let mut rows = by_id.chain(unconnected_keys(&info.key).filter_map(at));
        let row = rows.find(is_in_time);
        drop(rows);
        if let Some(slot) = row {
            self.end(slot, info.time);
        }
    }

    /// The owner of the UDP socket behind this flow, from a row; none if several rows could be it and their
    /// owners differ, or there are too many to look at.
    pub(super) fn unconnected_owner(
        &self,
        flow: &ConnectionKey,
        netns: Option<NetNs>,
        socket: Option<u64>,
    ) -> Option<(Process, KernelTime)> {
        let mut with_id = socket.into_iter().flat_map(|socket| self.store.rows_of_socket(socket));
        if let Some((_, row)) = with_id.find(|(_, row)| row.is_open()) {
            return Some((row.record.owner?, row.record.last_seen));
        }
        let mut found: Option<(Process, KernelTime)> = None;
        for key in unconnected_keys(flow) {
            let wanted = MatchKey { key: &key, netns, socket, pid: None };
            for (count, (_, row)) in self.store.open_rows(&key).enumerate() {
                if count + 1 == CROWD {
                    return None;
                }
                if !wanted.may_match(&MatchKey::of_record(&row.record)) {
                    continue;
                }
                let owner = row.record.owner?;
                if found.is_some_and(|(known, _)| known.pid != owner.pid) {
                    return None;
                }
                found = Some((owner, row.record.last_seen));
            }
        }
        found
    }

    fn name_owners_of_flows(&mut self) {
        let is_nameless = |entry: &Entry| {
            let record = &entry.record;
            let is_flow = record.key.protocol == Protocol::Udp && entry.is_confirmed;
            is_flow && entry.is_open() && record.owner.is_none()
        };
        let nameless = self.store.iter().filter(|(_, entry)| is_nameless(entry));
        let found: Vec<_> = nameless
            .filter_map(|(slot, entry)| {
                let ConnectionRecord { key, netns, socket, .. } = &entry.record;
                let owner = self.unconnected_owner(key, *netns, *socket)?;
                Some((slot, owner))
            })
            .collect();
        for (slot, (owner, time)) in found {
            if let Some(entry) = self.store.get_mut(slot) {
                entry.learn_owner(owner, Provenance::Bootstrap, time);
            }
        }
    }
}

fn match_one<'a>(mut candidates: impl Iterator<Item = (u32, &'a Entry)>) -> Match {
    match (candidates.next(), candidates.next()) {
        (Some((slot, _)), None) => Match::One(slot),
        (Some(_), Some(_)) => Match::Unclear,
        (None, _) => Match::None,
    }
}

/// Rows of any other kind would stay for ever: no event tells of their end.
fn is_connection(row: &ConnectionRecord) -> bool {
    use TcpState::{Close, Listen, NewSynRecv, TimeWait};
    !row.is_closed && !matches!(row.tcp_state, Some(Listen | Close | TimeWait | NewSynRecv))
}
