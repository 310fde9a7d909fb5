// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events folded into one record per connection. Pure: no kernel, no clock, no thread.

mod bootstrap;
mod counter;
mod entry;
mod gone;
mod index;
mod older;
mod order;
mod place;
mod rate;
mod slots;
mod store;
mod vanished;

use crate::event::{Closed, CollectorEvent, ConnectFailed, ConnectionInfo, Opened, StateChange, Transfer};
use crate::model::{ConnectionKey, KernelTime, Process, Protocol, Provenance, TcpState};
use crate::record::ConnectionRecord;
use entry::Entry;
use foldhash::HashMap;
use gone::Gone;
use place::{CROWD, Flow, Place};
use rate::Window;
use std::time::Duration;
use store::Store;
use vanished::Missing;

/// The connections that events and bootstrap have shown, each as one [`ConnectionRecord`].
///
/// TCP connections are told apart by socket id and [`since`](ConnectionInfo::since), UDP flows by socket id and peer;
/// never by their addresses alone, which repeat across network namespaces and over time.
///
/// # What it makes of events
/// - Totals are the highest that were seen, so lost, late and repeated events change nothing in the end. They never go
///   back, and late events raise them even after a connection has closed; they do not open it again.
/// - TCP segments are 32-bit counters in the kernel; here they go on when those wrap. What they went through before the
///   first event is not known.
/// - An owner that is not known in an event does not replace one that is; of two the better known stays (see
///   [`Provenance`]), and of two seen in calls the later one: a socket may be handed to another process.
/// - Listening sockets are no connections.
/// - A TCP record is partial until its handshake was seen, or the kernel's own totals of both directions. A UDP record
///   is if its socket, with a peer or without, is one that bootstrap has found: what it moved before is not known.
/// - [`CollectorEvent::Lost`] changes nothing. If it was an end that got lost, [`reconcile`](Self::reconcile) finds that out.
///
/// # Limits
/// It holds at most [`max_connections`](Self::max_connections) records. One on which nothing happens takes some 400
/// bytes, others up to a kilobyte; what is gone gives its memory back with the next [`records_at`](Self::records_at) or
/// snapshot. Nothing here blocks or reads a clock. An event of a known connection costs a look-up and no allocation, and
/// no look-up takes longer the more connections have a key or a socket in common.
///
/// ```
/// use std::time::Duration;
/// use tcptop::{
///     ConnectionInfo, ConnectionKey, ConnectionRecord, ConnectionTable, Direction, KernelTime, Protocol, Transfer,
/// };
///
/// let mut table = ConnectionTable::new().linger(Duration::from_secs(30)).max_connections(1000);
/// let key = ConnectionKey::new(Protocol::Tcp, [10, 0, 0, 1].into(), 43210, [10, 0, 0, 2].into(), 443);
/// let now = KernelTime::now();
///
/// // What bootstrap_existing() has found, then each event of the collector.
/// table.merge_bootstrap([ConnectionRecord::new(key, now)]);
/// table.apply(&Transfer::new(ConnectionInfo::new(key, 1, now), Direction::In, 500, 500).into());
/// for row in table.snapshot(now) {
///     println!("{}: {} bytes in, {:.0} per second", row.key, row.bytes_in, row.rate_in);
/// }
/// assert!(table.get(&key).is_some_and(|row| row.bytes_in == 500 && !row.is_closed));
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionTable {
    store: Store,
    gone: Gone,
    linger: Duration,
    udp_idle: Duration,
    window: Window,
    max_connections: usize,
    evicted: u64,
    /// Rows of a walk that proved to belong to another connection than the one that had claimed them.
    misplaced: Vec<ConnectionRecord>,
    /// Open UDP sockets that are older than the tracer, and the first walk that has found each.
    older: HashMap<u64, KernelTime>,
    missing: Missing,
}

impl Default for ConnectionTable {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectionTable {
    /// An empty table: closed connections linger for 10 seconds, silent UDP flows end after 120, rates are over 5
    /// seconds, and there are at most 65,536 connections.
    pub fn new() -> Self {
        Self {
            store: Store::default(),
            gone: Gone::default(),
            linger: Duration::from_secs(10),
            udp_idle: Duration::from_secs(120),
            window: Window::new(Duration::from_secs(5)),
            max_connections: 65_536,
            evicted: 0,
            misplaced: Vec::new(),
            older: HashMap::default(),
            missing: Missing::default(),
        }
    }

    /// How long a closed connection stays, counted from its end or from the latest event after it; it goes with the next
    /// [`records_at`](Self::records_at) or snapshot. Choose it longer than the pause between two of these: what comes and goes
    /// in between is in neither. Default: 10 s.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// After how long without an event the next [`records_at`](Self::records_at) or snapshot takes a UDP flow for ended: UDP has no end of
    /// its own but that of the socket. It goes on with the next event, from the totals that it had. It should be longer than the interval at which transfers
    /// are reported. Default: 120 s.
    #[must_use]
    pub fn udp_idle(mut self, idle: Duration) -> Self {
        self.udp_idle = idle;
        self
    }

    /// The window of the rates, in steps of a tenth of it. It should be several times as long as the interval at which
    /// transfers are reported. Default: 5 s. Rates that are being measured start again.
    #[must_use]
    pub fn rate_window(mut self, window: Duration) -> Self {
        self.window = Window::new(window);
        self.store.iter_mut().for_each(Entry::reset_rates);
        self
    }

    /// How many records there may be, closed ones included; at least 1. When there is no room for another, the one
    /// that closed longest ago goes, or, when all are open, the one that was least recently seen; see
    /// [`evicted`](Self::evicted).
    #[must_use]
    pub fn max_connections(mut self, max: usize) -> Self {
        self.max_connections = max.max(1);
        while self.store.len() > self.max_connections && self.evict_one() {}
        self.give_memory_back();
        self
    }

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
            CollectorEvent::Lost(_) => {}
        }
        if !self.misplaced.is_empty() {
            let rows = std::mem::take(&mut self.misplaced);
            self.merge_bootstrap(rows);
        }
    }

    /// A copy of all records in no particular order, with their rates at `now`: see [`records_at`](Self::records_at).
    pub fn snapshot(&mut self, now: KernelTime) -> Vec<ConnectionRecord> {
        self.records_at(now).cloned().collect()
    }

    /// All records in no particular order, with their rates at `now`. Closed connections that have lingered long
    /// enough are dropped first, and UDP flows that have been silent for long enough are closed.
    pub fn records_at(&mut self, now: KernelTime) -> impl Iterator<Item = &ConnectionRecord> {
        self.end_idle(now);
        let is_over = |entry: &Entry| {
            entry.gone_since().is_some_and(|end| now >= end && now.saturating_since(end) >= self.linger)
        };
        let over: Vec<u32> =
            self.store.iter().filter(|(_, entry)| is_over(entry)).map(|(slot, _)| slot).collect();
        for slot in over {
            self.store.remove(slot);
        }
        self.give_memory_back();
        let window = self.window;
        self.store.iter_mut().for_each(|entry| entry.refresh_rates(now, window));
        self.records()
    }

    /// All records in no particular order. Their rates are those of the latest look at a moment
    /// ([`records_at`](Self::records_at), [`snapshot`](Self::snapshot)).
    pub fn records(&self) -> impl Iterator<Item = &ConnectionRecord> {
        self.store.iter().map(|(_, entry)| &entry.record)
    }

    /// The record with this key; of several an open one, and of these the one that began last. Keys repeat: to find
    /// all, or to look at network namespaces, search [`records`](Self::records). Takes the longer the more have it.
    pub fn get(&self, key: &ConnectionKey) -> Option<&ConnectionRecord> {
        let all = self.store.all_with(key);
        all.map(|(_, entry)| &entry.record).max_by_key(|r| (!r.is_closed, r.first_seen, r.last_seen))
    }

    /// The process that holds the connection of an event, from the event or from its record, whichever is better
    /// known. Before or after [`apply`](Self::apply), this is how a state change in interrupt context, which does not
    /// know its owner, inherits it.
    pub fn owner_of(&self, info: &ConnectionInfo) -> Option<(Process, Provenance)> {
        let own = info.owner.map(|owner| (owner, info.provenance));
        let slot = self.store.find(&Flow::of(info)).or_else(|| self.store.row_of(&Place::of_event(info)));
        let known = slot.and_then(|slot| self.store.get(slot)).map(|entry| &entry.record);
        let known = known.and_then(|record| Some((record.owner?, record.provenance)));
        match (own, known) {
            (Some(own), Some(known)) if known.1 > own.1 => Some(known),
            (own, known) => own.or(known),
        }
    }

    /// How many records there are, closed ones included.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether there is no record at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many records were dropped to keep the bound, open or before their linger was over. If an open one was, its
    /// next event brings it back with the kernel's totals (UDP: those since the kernel began to count).
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn end_idle(&mut self, now: KernelTime) {
        let mut ended = Vec::new();
        for (slot, entry) in self.store.slots_mut() {
            if entry.end_if_idle(now, self.udp_idle) {
                ended.push(slot);
            }
        }
        ended.into_iter().for_each(|slot| self.store.requeue(slot));
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
        self.gone.insert((info.socket, None), &Place::of_event(info), info.time);
        self.older.remove(&info.socket);
        let flows: Vec<u32> = self.store.of_socket(info.socket).map(|(slot, _)| slot).collect();
        for slot in flows {
            if let Some(entry) = self.store.get_mut(slot) {
                entry.record.last_seen = entry.record.last_seen.max(info.time);
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
        entry.see(info, until, rtt);
        change(entry);
        if goes_on {
            self.store.requeue(slot);
        }
        if let Some(key) = better_key {
            self.store.relist(slot, |entry| entry.record.key = key);
            if let Some(row) = self.take_row(&Place::of_event(info)) {
                self.claim(slot, row);
            }
        }
        slot
    }

    fn create(&mut self, info: &ConnectionInfo) -> u32 {
        let row = self.take_row(&Place::of_event(info));
        self.make_room();
        let entry = Entry::new(info);
        let ended = entry.gone_id().and_then(|id| self.gone.time(id));
        let slot = self.store.insert(entry);
        if let Some(row) = row {
            self.claim(slot, row);
        }
        if info.key.protocol == Protocol::Udp {
            self.mark_if_older(slot, info);
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
    fn lives_of(&self, socket: u64) -> impl Iterator<Item = (u32, &Entry)> {
        self.store.of_socket(socket).take(CROWD)
    }

    /// The connection in this slot ended. Its end may be reported twice, and the earlier time is right.
    fn end(&mut self, slot: u32, time: KernelTime) {
        let Some(entry) = self.store.get_mut(slot) else { return };
        let was_open = entry.is_open();
        let misplaced = if entry.is_confirmed {
            entry.end(time)
        } else {
            self.store.relist(slot, |entry| entry.end(time)).flatten()
        };
        if let Some((id, entry)) = self.store.get(slot).and_then(|entry| Some((entry.gone_id()?, entry))) {
            self.gone.insert(id, &Place::of_record(&entry.record), time);
        }
        if was_open {
            self.store.requeue(slot);
        }
        self.misplaced.extend(misplaced.map(|row| *row));
    }

    fn give_memory_back(&mut self) {
        self.store.shrink();
        if self.older.capacity() > 1024.max(4 * self.older.len()) {
            self.older.shrink_to_fit();
        }
    }

    fn make_room(&mut self) {
        while self.store.len() >= self.max_connections && self.evict_one() {}
    }

    fn evict_one(&mut self) -> bool {
        let is_gone = self.store.evict().is_some();
        self.evicted += u64::from(is_gone);
        is_gone
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

#[cfg(test)]
mod tests;
