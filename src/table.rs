// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events folded into one record per connection. Pure: no kernel, no clock, no thread.

mod apply;
mod bootstrap;
mod counter;
mod dropped;
mod entry;
mod groups;
mod index;
mod matching;
mod order;
mod preexisting;
mod rate;
mod recent_closes;
mod slots;
mod store;
mod sums;
mod vanished;

use crate::event::ConnectionInfo;
use crate::model::{ConnectionKey, KernelTime, Process, Provenance};
use crate::record::ConnectionRecord;
use dropped::Dropped;
use entry::Entry;
use foldhash::HashMap;
use groups::Groups;
use matching::{Flow, MatchKey};
use rate::Window;
use recent_closes::RecentCloses;
use std::time::Duration;
use store::Store;
use vanished::Missing;

/// The connections that events and bootstrap have shown, each as one [`ConnectionRecord`], and [sums](Self::sums) of them
/// per process, remote host, cgroup and port.
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
/// - [`CollectorEvent::Lost`](crate::CollectorEvent::Lost) changes nothing. If it was an end that got lost, [`reconcile`](Self::reconcile) finds that out.
///
/// # Limits
/// It holds at most [`max_connections`](Self::max_connections) records. One on which nothing happens takes some 400
/// bytes, others up to a kilobyte; what is gone gives its memory back with the next [`records_at`](Self::records_at) or
/// snapshot. Nothing here blocks or reads a clock. An event of a known connection costs a look-up and no allocation, and
/// no look-up takes longer the more connections have a key or a socket in common. [Sums](Self::sums) keep
/// [`max_groups`](Self::max_groups) groups whose connections have ended, of each kind, and 4,096 dropped connections, in at
/// most some 14 MB.
///
/// ```
/// use std::time::Duration;
/// use tcptop::{
///     ConnectionInfo, ConnectionKey, ConnectionRecord, ConnectionTable, Direction, GroupBy, KernelTime, Protocol,
///     Transfer,
/// };
///
/// let mut table = ConnectionTable::new().linger(Duration::from_secs(30)).max_connections(1000);
/// let key = ConnectionKey::new(Protocol::Tcp, [10, 0, 0, 1].into(), 43210, [10, 0, 0, 2].into(), 443);
/// let now = KernelTime::now();
///
/// // First the connections that bootstrap_existing() has found, then each event of the collector.
/// table.merge_bootstrap([ConnectionRecord::new(key, now)]);
/// table.apply(&Transfer::new(ConnectionInfo::new(key, 1, now), Direction::In, 500, 500).into());
/// for row in table.snapshot(now) {
///     println!("{}: {} bytes in, {:.0} per second", row.key, row.bytes_in, row.rate_in);
/// }
/// assert!(table.get(&key).is_some_and(|row| row.bytes_in == 500 && !row.is_closed));
///
/// // Per remote host, ended connections included.
/// for sum in table.sums(GroupBy::RemoteHost, now) {
///     println!("{}: {} bytes in, {} new, {} connections open", sum.group, sum.bytes_in, sum.new_bytes_in, sum.open);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionTable {
    store: Store,
    recent_closes: RecentCloses,
    linger: Duration,
    udp_idle: Duration,
    window: Window,
    max_connections: usize,
    evicted: u64,
    /// Rows of a scan that proved to belong to another connection than the one that had claimed them.
    misplaced: Vec<ConnectionRecord>,
    /// Open UDP sockets that are older than the tracer, and the first scan that has found each.
    preexisting: HashMap<u64, KernelTime>,
    missing: Missing,
    groups: Groups,
    dropped: Dropped,
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
            recent_closes: RecentCloses::default(),
            linger: Duration::from_secs(10),
            udp_idle: Duration::from_secs(120),
            window: Window::new(Duration::from_secs(5)),
            max_connections: 65_536,
            evicted: 0,
            misplaced: Vec::new(),
            preexisting: HashMap::default(),
            missing: Missing::default(),
            groups: Groups::default(),
            dropped: Dropped::default(),
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
    /// transfers are reported. Default: 5 s; at least 10 ms. Rates that are being measured start again.
    #[must_use]
    pub fn rate_window(mut self, window: Duration) -> Self {
        self.window = Window::new(window.max(Duration::from_millis(10)));
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

    /// For how many groups without a connection [`sums`](Self::sums) are kept, of each kind; twice as many for a moment.
    /// Of more, those that were seen least recently are added up in [`Group::Other`](crate::Group::Other). Default: 4,096.
    #[must_use]
    pub fn max_groups(mut self, max: usize) -> Self {
        self.groups.set_limit(max);
        self.trim_groups();
        self
    }

    /// A copy of all records in no particular order, with their rates at `now`: see [`records_at`](Self::records_at).
    pub fn snapshot(&mut self, now: KernelTime) -> Vec<ConnectionRecord> {
        let mut records = Vec::with_capacity(self.len());
        self.bring_to(now, |entry| {
            entry.look();
            records.push(entry.record.clone());
        });
        records
    }

    /// All records in no particular order, with their rates at `now`. Closed connections that have lingered long
    /// enough are dropped first, and UDP flows that have been silent for long enough are closed.
    ///
    /// New bytes ([`new_bytes_in`](ConnectionRecord::new_bytes_in)) are those since the latest call of this or of
    /// [`snapshot`](Self::snapshot).
    pub fn records_at(&mut self, now: KernelTime) -> impl Iterator<Item = &ConnectionRecord> {
        self.bring_to(now, Entry::look);
        self.records()
    }

    /// Closes UDP flows that have been silent for long enough, drops closed connections that have lingered, and brings the
    /// rates of the others to this moment. One pass, in which `visit` sees each that stays: with many connections memory is
    /// what it costs.
    fn bring_to(&mut self, now: KernelTime, mut visit: impl FnMut(&mut Entry)) {
        let (window, linger, idle) = (self.window, self.linger, self.udp_idle);
        let (mut ended, mut over) = (Vec::new(), Vec::new());
        for (slot, entry) in self.store.slots_mut() {
            if entry.end_if_idle(now, idle) {
                ended.push(slot);
            }
            let since = entry.lingers_since();
            if since.is_some_and(|end| now >= end && now.saturating_since(end) >= linger) {
                over.push(slot);
                continue;
            }
            entry.refresh_rates(now, window);
            visit(entry);
        }
        ended.into_iter().for_each(|slot| self.store.requeue(slot));
        for slot in over {
            if let Some(entry) = self.store.remove(slot) {
                self.leave(&entry);
            }
        }
        self.give_memory_back();
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
        let slot = self.store.find(&Flow::of(info)).or_else(|| self.store.row_of(&MatchKey::of_event(info)));
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
    /// next event brings it back with the kernel's totals (UDP: where more than 4,096 others were dropped meanwhile, those
    /// since the kernel began to count). [Sums](Self::sums) go on to count them.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn give_memory_back(&mut self) {
        self.store.shrink();
        if self.preexisting.capacity() > 1024.max(4 * self.preexisting.len()) {
            self.preexisting.shrink_to_fit();
        }
    }

    fn make_room(&mut self) {
        while self.store.len() >= self.max_connections && self.evict_one() {}
    }

    fn evict_one(&mut self) -> bool {
        let Some(entry) = self.store.evict() else { return false };
        self.leave(&entry);
        self.evicted += 1;
        true
    }

    /// It has left the table. Sums go on to count it, and it may come back.
    fn leave(&mut self, entry: &Entry) {
        self.groups.keep(&entry.record.key, entry.record.owner, &entry.share());
        if let Some(flow) = entry.remembered_as() {
            self.dropped.insert(flow, entry.remember());
        }
        self.trim_groups();
    }
}

#[cfg(test)]
mod tests;
