// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each event does to the table.

use super::ConnectionTable;
use super::entry::Entry;
use super::matching::{CROWD, Flow, MatchKey};
use crate::event::{
    Closed, CollectorEvent, ConnectFailed, ConnectionInfo, Opened, Retransmit, StateChange, Transfer,
};
use crate::model::{KernelTime, Protocol, Provenance, TcpState};
use std::time::Duration;

impl ConnectionTable {
    /// Takes note of an event. The order of events does not matter, but for owners and states of the same moment.
    pub fn apply(&mut self, event: &CollectorEvent) {
        match event {
            CollectorEvent::TcpSend(t)
            | CollectorEvent::TcpRecv(t)
            | CollectorEvent::UdpSend(t)
            | CollectorEvent::UdpRecv(t) => self.transfer(t),
            CollectorEvent::TcpStateChange(change) => self.state_change(change),
            CollectorEvent::Closed(closed) => self.closed(closed),
            CollectorEvent::ConnectFailed(failed) => self.connect_failed(failed),
            CollectorEvent::Opened(opened) => self.opened(opened),
            CollectorEvent::TcpRetransmit(retransmit) => self.retransmit(retransmit),
            CollectorEvent::Lost(_) => {}
        }
        if !self.misplaced.is_empty() {
            let rows = std::mem::take(&mut self.misplaced);
            self.merge_bootstrap(rows);
        }
    }

    fn transfer(&mut self, transfer: &Transfer) {
        let window = self.window;
        self.fold(&transfer.connection, transfer.until, transfer.rtt, |entry| {
            entry.transfer(transfer, window);
        });
    }

    fn state_change(&mut self, change: &StateChange) {
        let (info, window) = (&change.connection, self.window);
        if !is_of_connection(change) {
            // A socket that listens now has no connection any more.
            return self.end_earlier_lives(info.socket, info.since);
        }
        let slot = self.fold(info, info.time, change.rtt, |entry| entry.state(change, window));
        if change.new_state == TcpState::Close {
            self.end(slot, info.time);
        }
    }

    /// As a rule a state change has told of it, but not which end this is.
    fn opened(&mut self, opened: &Opened) {
        let (info, window) = (&opened.connection, self.window);
        self.fold(info, info.time, opened.rtt, |entry| entry.opened(opened, window));
    }

    fn retransmit(&mut self, retransmit: &Retransmit) {
        let info = &retransmit.connection;
        self.fold(info, info.time, None, |entry| entry.retransmit(retransmit));
    }

    /// As a rule a state change has told of it; where connect() failed at once there was none.
    fn connect_failed(&mut self, failed: &ConnectFailed) {
        let info = &failed.connection;
        let slot = self.fold(info, info.time, None, |entry| entry.connect_failed(failed));
        self.end(slot, end_of(info, failed.duration));
    }

    fn closed(&mut self, closed: &Closed) {
        let (info, window) = (&closed.connection, self.window);
        if info.key.protocol == Protocol::Tcp {
            let slot = self.fold(info, info.time, closed.rtt, |entry| entry.closed(closed, window));
            return self.end(slot, end_of(info, closed.duration));
        }
        self.recent_closes.insert((info.socket, None), &MatchKey::of_event(info), info.time);
        self.preexisting.remove(&info.socket);
        let flows: Vec<u32> = self.store.of_socket(info.socket).map(|(slot, _)| slot).collect();
        for slot in flows {
            if let Some(entry) = self.store.get_mut(slot) {
                entry.socket_ended(info);
            }
            self.end(slot, info.time);
        }
        self.close_row(info);
    }

    /// Folds what all events have in common, and what `change` adds, into the connection's entry. What the event tells of
    /// went on until this time.
    fn fold(
        &mut self,
        info: &ConnectionInfo,
        until: KernelTime,
        rtt: Option<Duration>,
        change: impl FnOnce(&mut Entry),
    ) -> u32 {
        let slot = match self.store.find(&Flow::of(info)) {
            Some(slot) => slot,
            None => self.create(info),
        };
        let Some(entry) = self.store.get_mut(slot) else { return slot };
        let better_key = entry.better_key(info);
        let goes_on = entry.goes_on(until);
        let left = entry.see(info, until, rtt);
        change(entry);
        if let Some((owner, share)) = left {
            self.groups.keep(&entry.record.key, Some(owner), &share);
        }
        if goes_on {
            self.store.requeue(slot);
        }
        if let Some(key) = better_key {
            self.store.relist(slot, |entry| entry.record.key = key);
            if let Some(row) = self.take_row(&MatchKey::of_event(info)) {
                self.claim(slot, row);
            }
        }
        slot
    }

    fn create(&mut self, info: &ConnectionInfo) -> u32 {
        let row = self.take_row(&MatchKey::of_event(info));
        self.make_room();
        let entry = Entry::new(info);
        let ended = entry.close_id().and_then(|id| self.recent_closes.time(id));
        let slot = self.store.insert(entry);
        if let Some(row) = row {
            self.claim(slot, row);
        }
        self.bring_back(slot, info);
        if info.key.protocol == Protocol::Udp {
            self.mark_if_preexisting(slot, info);
        }
        if let Some(time) = ended {
            self.end(slot, time);
        }
        match info.key.protocol {
            Protocol::Tcp => self.end_all_lives_but_the_latest(slot, info),
            Protocol::Udp => self.ask_socket_for_owner(slot, info),
        }
        slot
    }

    /// It may have been in the table before.
    fn bring_back(&mut self, slot: u32, info: &ConnectionInfo) {
        let row = || Some(Flow::of_row(info.socket)).filter(|_| info.key.protocol == Protocol::Tcp);
        let Self { dropped, store, .. } = self;
        let known = dropped.take(&Flow::of(info)).or_else(|| dropped.take(&row()?));
        let Some(entry) = store.get_mut(slot) else { return };
        match &known {
            Some(known) => entry.restore(known),
            None => entry.may_return = dropped.has_forgotten,
        }
    }

    fn ask_socket_for_owner(&mut self, slot: u32, info: &ConnectionInfo) {
        if info.owner.is_some() {
            return;
        }
        let owner = self.unconnected_owner(&info.key, info.netns, Some(info.socket));
        if let (Some((owner, time)), Some(entry)) = (owner, self.store.get_mut(slot)) {
            if entry.record.owner.is_none() {
                entry.learn_owner(owner, Provenance::Bootstrap, time);
            }
        }
    }

    /// A socket has one life at a time, and the events of an earlier one may come late.
    fn end_all_lives_but_the_latest(&mut self, slot: u32, info: &ConnectionInfo) {
        self.end_earlier_lives(info.socket, info.since);
        let lives = self.lives_of(info.socket).map(|(_, entry)| entry.since);
        let next = lives.filter(|&since| since > info.since).min();
        if let Some(since) = next {
            self.end(slot, since);
        }
    }

    fn end_earlier_lives(&mut self, socket: u64, since: KernelTime) {
        loop {
            let mut lives = self.lives_of(socket);
            let Some((slot, _)) = lives.find(|(_, entry)| entry.is_open() && entry.since < since) else {
                return;
            };
            drop(lives);
            self.end(slot, since);
        }
    }

    /// The latest lives of a socket: of those only one is open, which is not far back.
    pub(super) fn lives_of(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        self.store.of_socket(socket).take(CROWD)
    }

    /// The connection in this slot ended. Its end may be reported twice, and the earlier time is right.
    pub(super) fn end(&mut self, slot: u32, time: KernelTime) {
        let Some(entry) = self.store.get_mut(slot) else { return };
        let was_open = entry.is_open();
        let misplaced = if entry.is_confirmed {
            entry.end(time)
        } else {
            self.store.relist(slot, |entry| entry.end(time)).flatten()
        };
        if let Some((id, entry)) = self.store.get(slot).and_then(|entry| Some((entry.close_id()?, entry))) {
            self.recent_closes.insert(id, &MatchKey::of_record(&entry.record), time);
        }
        if was_open {
            self.store.requeue(slot);
        }
        self.misplaced.extend(misplaced.map(|row| *row));
    }
}

/// The event comes when the socket is released, which may be long after the connection has ended.
fn end_of(info: &ConnectionInfo, duration: Option<Duration>) -> KernelTime {
    let nanos = duration.and_then(|duration| u64::try_from(duration.as_nanos()).ok());
    let end = nanos.map(|nanos| KernelTime(info.since.0.saturating_add(nanos)));
    end.map_or(info.time, |end| end.min(info.time))
}

/// Not of a listening socket, nor of one that has done nothing but listen.
fn is_of_connection(change: &StateChange) -> bool {
    use TcpState::{Close, Listen};
    !matches!((change.old_state, change.new_state), (_, Listen) | (Listen | Close, Close))
}
