// SPDX-License-Identifier: MIT OR Apache-2.0
//! One connection in the table: its record, and what is needed to keep it right when events are late, lost or in
//! disorder.

mod account;

use super::counter::Counter;
use super::matching::{Flow, completeness};
use super::rate::Window;
use super::recent_closes;
use crate::event::{
    Closed, ConnectFailed, ConnectionInfo, Opened, Retransmit, StateChange, Totals, Transfer,
};
use crate::model::{ConnectionKey, Direction, KernelTime, Protocol, Provenance, Role, TcpState};
use crate::record::ConnectionRecord;
use account::{Left, Settled};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: ConnectionRecord,
    pub(super) since: KernelTime,
    /// None for what was found at the start and has done nothing since: with many connections that is most of them.
    live: Option<Box<Live>>,
    /// Events have shown it; else it is a row that was found at the start.
    pub(super) is_confirmed: bool,
    /// The handshake was seen: nothing is older than the tracer.
    born: bool,
    /// By the latest event more may have moved than is told.
    is_bypassed: bool,
    /// It may have been in the table before, and its history in the sums.
    pub(super) may_return: bool,
    /// What sums count of it already, as it was when it left the table, or its process.
    settled: Option<Box<Settled>>,
}

/// What only events make necessary.
#[derive(Clone, Debug, Default)]
struct Live {
    out: Counter,
    r#in: Counter,
    min_rtt: Option<Duration>,
    retransmits: Option<u32>,
    /// New bytes in and out at the latest look.
    looked: [u64; 2],
    owner_time: KernelTime,
    state_time: KernelTime,
    /// The scan that found its UDP socket: what moved before is missing.
    preexisting: Option<KernelTime>,
    /// The row of a scan that this connection was found to be; needed again if that proves wrong.
    claimed: Option<Box<ConnectionRecord>>,
}

impl Entry {
    /// A connection that this event is the first of.
    pub(super) fn new(info: &ConnectionInfo) -> Self {
        let mut record = ConnectionRecord::new(info.key, info.time);
        record.socket = Some(info.socket);
        record.first_seen = info.since;
        Self::from_parts(record, true)
    }

    /// A row of a scan over what exists.
    pub(super) fn unconfirmed(record: ConnectionRecord) -> Self {
        Self::from_parts(record, false)
    }

    fn from_parts(record: ConnectionRecord, is_confirmed: bool) -> Self {
        Self {
            since: record.first_seen,
            live: None,
            is_confirmed,
            born: false,
            is_bypassed: false,
            may_return: false,
            settled: None,
            record,
        }
    }

    /// What names it in events, if any have shown it.
    pub(super) fn flow(&self) -> Option<Flow> {
        let socket = self.record.socket.filter(|_| self.is_confirmed)?;
        Some(Flow::new(socket, self.since, &self.record.key))
    }

    /// The same as a comparison with [`flow`](Self::flow), which every event makes.
    pub(super) fn is_of(&self, flow: &Flow) -> bool {
        let key = &self.record.key;
        match *flow {
            _ if !self.is_confirmed => false,
            Flow::Tcp { socket, since } => {
                self.record.socket == Some(socket) && self.since == since && key.protocol == Protocol::Tcp
            }
            Flow::Udp { socket, peer, port } => {
                self.record.socket == Some(socket)
                    && (key.remote_addr, key.remote_port) == (peer, port)
                    && key.protocol == Protocol::Udp
            }
        }
    }

    fn live(&mut self) -> &mut Live {
        self.live.get_or_insert_default()
    }

    pub(super) fn preexisting(&self) -> Option<KernelTime> {
        self.live.as_ref().and_then(|live| live.preexisting)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.record.is_closed
    }

    pub(super) fn closed_at(&self) -> Option<KernelTime> {
        self.record.closed_at
    }

    /// Whether its socket cannot be one that a scan at this time has found.
    pub(super) fn ended_before(&self, scan: KernelTime) -> bool {
        self.record.is_end_seen && self.closed_at().is_some_and(|end| end < scan)
    }

    /// A scan at this time has found the UDP socket of this flow.
    pub(super) fn found_by(&mut self, scan: KernelTime) {
        if !self.ended_before(scan) {
            let preexisting = &mut self.live().preexisting;
            *preexisting = Some(preexisting.map_or(scan, |known| known.min(scan)));
            self.publish();
        }
    }

    /// Its UDP socket has ended. Events of it may be missing.
    pub(super) fn socket_ended(&mut self, info: &ConnectionInfo) {
        self.record.last_seen = self.record.last_seen.max(info.time);
        if info.is_partial {
            self.is_bypassed = true;
            self.publish();
        }
    }

    /// A UDP flow that has been silent for so long counts as ended. Returns whether that is new.
    pub(super) fn end_if_idle(&mut self, now: KernelTime, after: Duration) -> bool {
        let is_flow = matches!(self.flow(), Some(Flow::Udp { .. }));
        if !is_flow || !self.is_open() || now.saturating_since(self.record.last_seen) < after {
            return false;
        }
        self.presume_ended(now);
        true
    }

    /// It counts as ended from now on, although nothing has told of its end.
    pub(super) fn presume_ended(&mut self, now: KernelTime) {
        (self.record.is_closed, self.record.closed_at) = (true, Some(now));
    }

    /// What only counts as ended goes on with an event from after that. Returns whether it does.
    pub(super) fn goes_on(&mut self, time: KernelTime) -> bool {
        if self.record.is_end_seen || self.closed_at().is_none_or(|end| time <= end) {
            return false;
        }
        (self.record.is_closed, self.record.closed_at) = (false, None);
        true
    }

    /// When it ended, or the time of a later event.
    pub(super) fn lingers_since(&self) -> Option<KernelTime> {
        self.closed_at().map(|time| time.max(self.record.last_seen))
    }

    /// Under which its end is remembered: a UDP socket ends with all its flows.
    pub(super) fn close_id(&self) -> Option<recent_closes::Id> {
        self.flow().as_ref().map(close_id)
    }

    /// The event's key, where it is a better one than the record's: later, or more complete.
    pub(super) fn better_key(&self, info: &ConnectionInfo) -> Option<ConnectionKey> {
        if info.key == self.record.key {
            return None;
        }
        let (known, seen) = (completeness(&self.record.key), completeness(&info.key));
        let later = info.time >= self.record.last_seen;
        (seen > known || seen == known && later).then_some(info.key)
    }

    /// Takes note of what every event carries. Returns what belongs to the owner that it had until now.
    pub(super) fn see(
        &mut self,
        info: &ConnectionInfo,
        until: KernelTime,
        rtt: Option<Duration>,
    ) -> Option<Left> {
        let left = info.owner.and_then(|owner| self.learn_owner(owner, info.provenance, info.time));
        let record = &mut self.record;
        if until >= record.last_seen {
            self.is_bypassed = info.is_partial;
        }
        if rtt.is_some() && (record.rtt.is_none() || until >= record.last_seen) {
            record.rtt = rtt;
        }
        record.netns = record.netns.or(info.netns);
        record.first_seen = record.first_seen.min(info.since);
        record.last_seen = record.last_seen.max(until);
        self.since = self.since.min(info.since);
        left
    }

    /// Bytes that a process moved. The first event of a connection older than the tracer, or of a UDP flow, brings all its
    /// history: of the growth only what this event itself reports is new traffic. Later ones also bring what events have
    /// told that are lost or late.
    pub(super) fn transfer(&mut self, transfer: &Transfer, window: Window) {
        let info = &transfer.connection;
        let (total, packets) = (transfer.total_bytes, transfer.total_packets);
        let born = self.born;
        let live = self.live();
        let counter = match transfer.direction {
            Direction::Out => &mut live.out,
            Direction::In => &mut live.r#in,
        };
        let is_new = counter.is_known() || born;
        let growth = counter.raise(info.since, total, packets, info.key.protocol);
        counter.count(
            transfer.until,
            growth,
            if is_new { growth } else { growth.min(transfer.bytes) },
            window,
        );
        self.publish();
    }

    /// Totals outside a transfer. Bytes whose own report is still on its way count for the rate now.
    pub(super) fn totals(&mut self, info: &ConnectionInfo, totals: &Totals, window: Window) {
        let Totals { bytes_in, bytes_out, packets_in, packets_out } = *totals;
        let born = self.born;
        let live = self.live();
        let all = [(&mut live.out, bytes_out, packets_out), (&mut live.r#in, bytes_in, packets_in)];
        for (counter, bytes, packets) in all {
            let is_new = counter.is_known() || born;
            let growth = counter.raise(info.since, bytes, packets, info.key.protocol);
            counter.count(info.time, growth, if is_new { growth } else { 0 }, window);
        }
        self.publish();
    }

    pub(super) fn state(&mut self, change: &StateChange, window: Window) {
        let (info, new) = (&change.connection, change.new_state);
        if new == TcpState::SynSent {
            self.record.role = Some(Role::Client);
        }
        if new == TcpState::Close {
            self.record.error = self.record.error.or(change.error);
        }
        self.born |= new == TcpState::SynSent || change.old_state == TcpState::SynRecv;
        if let Some(totals) = &change.totals {
            self.totals(info, totals, window);
        }
        let latest = self.record.tcp_state.is_none() || info.time >= self.live().state_time;
        if self.is_open() && latest {
            self.record.tcp_state = Some(new);
            self.live().state_time = info.time;
        }
        self.publish();
    }

    pub(super) fn opened(&mut self, opened: &Opened, window: Window) {
        let Opened { connection, role, rtt } = *opened;
        let before = if role == Role::Client { TcpState::SynSent } else { TcpState::SynRecv };
        self.record.role = Some(role);
        let live = self.live();
        live.min_rtt = least(live.min_rtt, rtt);
        self.state(&StateChange::new(connection, before, TcpState::Established), window);
    }

    pub(super) fn retransmit(&mut self, retransmit: &Retransmit) {
        let live = self.live();
        live.retransmits = live.retransmits.max(Some(retransmit.total_segments));
        self.publish();
    }

    /// Nothing has moved, before the tracer or since.
    pub(super) fn connect_failed(&mut self, failed: &ConnectFailed) {
        self.born = true;
        self.record.connect_failure = Some(failed.reason);
        self.record.error = failed.error.or(self.record.error);
        self.publish();
    }

    /// What the kernel says at the end. It may come twice.
    pub(super) fn closed(&mut self, closed: &Closed, window: Window) {
        let Closed { connection, totals, rtt: _, min_rtt, retransmits, duration: _, reason, error } = closed;
        self.record.close_reason = self.record.close_reason.or(*reason);
        self.record.error = self.record.error.or(*error);
        let live = self.live();
        live.min_rtt = least(live.min_rtt, *min_rtt);
        live.retransmits = live.retransmits.max(Some(*retransmits));
        self.totals(connection, totals, window);
    }

    /// It ended at this time, or earlier than was known. Returns the row that was taken for this connection
    /// and is from later: it belongs to another one, with the same addresses and ports.
    pub(super) fn end(&mut self, time: KernelTime) -> Option<Box<ConnectionRecord>> {
        // When it was presumed to have ended says nothing.
        let known = self.closed_at().filter(|_| self.record.is_end_seen);
        let end = known.map_or(time, |known| known.min(time));
        self.record.closed_at = Some(end);
        (self.record.is_closed, self.record.is_end_seen) = (true, true);
        if self.record.key.protocol == Protocol::Tcp {
            self.record.tcp_state = Some(TcpState::Close);
        }
        // Neither the row nor its owner can be this connection's if they were found after its end.
        let live = self.live.as_mut()?;
        if self.record.provenance == Provenance::Bootstrap && live.owner_time > end {
            (self.record.owner, self.record.provenance) = (None, Provenance::Unknown);
        }
        let wrong = live.claimed.take_if(|row| row.last_seen > end);
        if live.preexisting.take_if(|scan| *scan > end).is_some() {
            self.publish();
        }
        let wrong = wrong?;
        self.record.first_seen = self.since;
        self.publish();
        Some(wrong)
    }

    /// This row of a scan is this connection: it fills in what is missing.
    pub(super) fn claim(&mut self, row: ConnectionRecord) {
        if let Some(owner) = row.owner.filter(|_| self.record.owner.is_none()) {
            self.learn_owner(owner, row.provenance, row.last_seen);
        }
        if self.is_open() && self.record.tcp_state.is_none() {
            self.record.tcp_state = row.tcp_state;
        }
        self.record.netns = self.record.netns.or(row.netns);
        self.record.rtt = self.record.rtt.or(row.rtt);
        // A scan may have begun before a connection that it then saw.
        if !self.born {
            self.record.first_seen = self.record.first_seen.min(row.first_seen);
        }
        let claimed = &mut self.live().claimed;
        match claimed {
            Some(known) if known.last_seen >= row.last_seen => {}
            // Another way of searching may know less.
            Some(known) if row.is_partial && !known.is_partial => known.last_seen = row.last_seen,
            _ => *claimed = Some(Box::new(row)),
        }
        self.publish();
    }

    /// The same row, found by another scan.
    pub(super) fn found_again(&mut self, row: &ConnectionRecord) {
        let record = &mut self.record;
        let is_newer = row.last_seen >= record.last_seen;
        if row.owner.is_some() && (is_newer || record.owner.is_none()) {
            (record.owner, record.provenance) = (row.owner, row.provenance);
        }
        if is_newer {
            record.tcp_state = row.tcp_state.or(record.tcp_state);
        }
        record.netns = record.netns.or(row.netns);
        record.first_seen = record.first_seen.min(row.first_seen);
        record.last_seen = record.last_seen.max(row.last_seen);
        record.min_rtt = least(record.min_rtt, row.min_rtt);
        record.retransmits = record.retransmits.max(row.retransmits);
    }

    /// Brings the rates of the record to this moment.
    pub(super) fn refresh_rates(&mut self, now: KernelTime, window: Window) {
        let live = self.live.as_ref();
        self.record.rate_out = live.map_or(0.0, |live| live.out.rate.per_second(now, window));
        self.record.rate_in = live.map_or(0.0, |live| live.r#in.rate.per_second(now, window));
    }

    pub(super) fn reset_rates(&mut self) {
        if let Some(live) = &mut self.live {
            (live.out.rate, live.r#in.rate) = Default::default();
        }
    }

    fn publish(&mut self) {
        let Self { record, live, .. } = self;
        let Live { out, r#in, preexisting, claimed, min_rtt, retransmits, .. } =
            &**live.get_or_insert_default();
        (record.bytes_out, record.packets_out) = (out.bytes(), out.packets());
        (record.bytes_in, record.packets_in) = (r#in.bytes(), r#in.packets());
        record.min_rtt = least(*min_rtt, claimed.as_ref().and_then(|row| row.min_rtt));
        record.retransmits = (*retransmits).max(claimed.as_ref().and_then(|row| row.retransmits));
        // What a scan has read may be from the middle of a change. It stands in until an event says how much it is.
        let row = claimed.as_ref().filter(|row| row.key.protocol == Protocol::Tcp && !row.is_partial);
        if let Some(row) = row.filter(|_| !out.is_known()) {
            (record.bytes_out, record.packets_out) = (row.bytes_out, row.packets_out);
        }
        if let Some(row) = row.filter(|_| !r#in.is_known()) {
            (record.bytes_in, record.packets_in) = (row.bytes_in, row.packets_in);
        }
        let is_whole = row.is_some() || out.is_known() && r#in.is_known();
        record.is_partial = match record.key.protocol {
            Protocol::Tcp => self.is_bypassed || !(self.born || is_whole),
            Protocol::Udp => self.is_bypassed || preexisting.is_some(),
        };
    }
}

fn least(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// See [`Entry::close_id`].
pub(super) fn close_id(flow: &Flow) -> recent_closes::Id {
    match *flow {
        Flow::Tcp { socket, since } => (socket, Some(since)),
        Flow::Udp { socket, .. } => (socket, None),
    }
}
