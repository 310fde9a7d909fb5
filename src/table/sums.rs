// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sums by process, host, cgroup, port, or process and host: one pass over the table, plus what connections moved that have left it.

use super::ConnectionTable;
use super::entry::Entry;
use super::groups::{GroupState, Grouping, Name, Share};
use crate::model::{KernelTime, Process};
use crate::record::ConnectionRecord;
use crate::sums::{Group, GroupBy, Sum};
use foldhash::HashSet;
use std::time::Duration;

impl ConnectionTable {
    /// What has been moved per process, remote host, cgroup, port, or process and host, at `now`; in no particular order.
    ///
    /// ```
    /// use tcptop::{ConnectionTable, GroupBy, KernelTime};
    ///
    /// # let mut table = ConnectionTable::new();
    /// let mut processes = table.sums(GroupBy::Process, KernelTime::now());
    /// processes.sort_by_key(|sum| std::cmp::Reverse(sum.new_bytes_in + sum.new_bytes_out));
    /// for sum in &processes {
    ///     println!("{}: {} bytes in, {} of {} connections open", sum.group, sum.bytes_in, sum.open, sum.connections);
    /// }
    /// ```
    ///
    /// First it drops and closes records as [`records_at`](Self::records_at) does. Takes one pass over the table: some
    /// tens of milliseconds for 100,000 connections.
    ///
    /// - Connections that have ended, lingered or been [evicted](Self::evicted) stay in the sum of their group. So do groups
    ///   whose connections have all ended, up to [`max_groups`](Self::max_groups).
    /// - Each connection is in one group, so the sums of all groups make up the whole.
    /// - What moves belongs to the process that holds the connection at that time. If another one takes the connection
    ///   over, the bytes until then stay in the sum of the first, and the connection counts for the second.
    /// - What was moved before its owner was known counts for that owner from then on, and for [`Group::Unknown`] before.
    /// - A connection that was evicted while open comes back with its next event and is not counted twice. If more than
    ///   4,096 others were evicted meanwhile, only what it moves from then on is added.
    #[must_use]
    pub fn sums(&mut self, by: GroupBy, now: KernelTime) -> Vec<Sum> {
        self.bring_to(now, |_| ());
        self.trim_groups();
        let grouping = self.groups.by(by);
        let mut pass = Pass::new(grouping);
        for (_, entry) in self.store.iter() {
            pass.add(grouping, by, entry);
        }
        pass.finish(grouping)
    }

    /// The same, only over the records for which `is_wanted` is true.
    ///
    /// Connections that have left the table are in none of these sums. Their new bytes are all since the tracer started:
    /// this call is not a look, neither for [`sums`](Self::sums) nor for itself.
    ///
    /// ```
    /// use tcptop::{ConnectionTable, GroupBy, KernelTime, Protocol};
    ///
    /// # let mut table = ConnectionTable::new();
    /// let now = KernelTime::now();
    /// let udp = table.sums_of(GroupBy::Process, now, |record| record.key.protocol == Protocol::Udp);
    /// ```
    #[must_use]
    pub fn sums_of(
        &mut self,
        by: GroupBy,
        now: KernelTime,
        is_wanted: impl Fn(&ConnectionRecord) -> bool,
    ) -> Vec<Sum> {
        self.bring_to(now, |_| ());
        let mut grouping = Grouping::default();
        let mut pass = Pass::new(&mut grouping);
        for (_, entry) in self.store.iter().filter(|(_, entry)| is_wanted(&entry.record)) {
            pass.add(&mut grouping, by, entry);
        }
        pass.finish(&mut grouping)
    }

    /// Adds up groups without a connection, if there are too many.
    pub(super) fn trim_groups(&mut self) {
        for by in GroupBy::ALL {
            if self.groups.is_crowded(by) {
                let in_use: HashSet<Name> = self.store.iter().map(|(_, entry)| name(by, entry)).collect();
                self.groups.trim(by, &in_use);
            }
        }
    }
}

fn name(by: GroupBy, entry: &Entry) -> Name {
    Name::of(by, &entry.record.key, entry.record.owner.as_ref())
}

/// One pass over the table.
struct Pass {
    parts: Vec<Part>,
    /// For each round-trip time the place of its group, and the time in microseconds.
    rtts: Vec<(u32, u32)>,
}

/// The sum of one group, while it is made.
struct Part {
    name: Option<Name>,
    process: Option<Process>,
    /// Of whom `process` is known.
    process_seen: KernelTime,
    share: Share,
    open: u64,
    rates: [f64; 2],
    has_rows: bool,
}

impl Part {
    fn new(name: Option<Name>, state: &GroupState) -> Self {
        let GroupState { share, process, .. } = *state;
        let process_seen = share.last_seen;
        Self { name, process, process_seen, share, open: 0, rates: [0.0; 2], has_rows: false }
    }

    fn sum(&self, rtt: Option<Duration>, looked: [u64; 2]) -> Sum {
        let Share { amount, connections, min_rtt, last_seen, is_partial } = self.share;
        Sum {
            group: self.name.map_or(Group::Other, |name| name.group(self.process)),
            open: self.open,
            connections,
            bytes_in: amount.bytes_in,
            bytes_out: amount.bytes_out,
            packets_in: amount.packets_in,
            packets_out: amount.packets_out,
            retransmits: amount.retransmits,
            new_bytes_in: amount.traced_in.saturating_sub(looked[0]),
            new_bytes_out: amount.traced_out.saturating_sub(looked[1]),
            traced_bytes_in: amount.traced_in,
            traced_bytes_out: amount.traced_out,
            rate_in: self.rates[0],
            rate_out: self.rates[1],
            rtt,
            min_rtt,
            last_seen,
            is_partial,
        }
    }
}

impl Pass {
    /// Begins with what is state.
    fn new(grouping: &mut Grouping) -> Self {
        let mut parts = Vec::with_capacity(grouping.groups.len() + 1);
        parts.push(Part::new(None, &grouping.other));
        for (&name, state) in &mut grouping.groups {
            state.at = parts.len();
            parts.push(Part::new(Some(name), state));
        }
        Self { parts, rtts: Vec::new() }
    }

    fn add(&mut self, grouping: &mut Grouping, by: GroupBy, entry: &Entry) {
        let name = name(by, entry);
        let state = grouping.groups.entry(name).or_insert_with(|| {
            let state = GroupState { at: self.parts.len(), ..GroupState::default() };
            self.parts.push(Part::new(Some(name), &state));
            state
        });
        let (at, part) = (state.at, &mut self.parts[state.at]);
        let record = &entry.record;
        part.share.add(&entry.share());
        if part.process.is_none() || record.last_seen >= part.process_seen {
            part.process = record.owner.or(part.process);
            part.process_seen = record.last_seen;
        }
        part.rates = [part.rates[0] + record.rate_in, part.rates[1] + record.rate_out];
        part.has_rows = true;
        if entry.is_open() {
            part.open += 1;
            let micros = record.rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX));
            self.rtts.extend(micros.map(|micros| (at as u32, micros)));
        }
    }

    fn finish(mut self, grouping: &mut Grouping) -> Vec<Sum> {
        let mut medians = vec![None; self.parts.len()];
        self.rtts.sort_unstable();
        for of_group in self.rtts.chunk_by(|one, other| one.0 == other.0) {
            let (at, micros) = of_group[(of_group.len() - 1) / 2];
            medians[at as usize] = Some(Duration::from_micros(micros.into()));
        }
        let parts = self.parts.iter().zip(medians);
        let sums = parts.filter(|(part, _)| part.has_rows || !part.share.is_empty()).map(|(part, rtt)| {
            let state =
                part.name.and_then(|name| grouping.groups.get_mut(&name)).unwrap_or(&mut grouping.other);
            let looked = [part.share.amount.traced_in, part.share.amount.traced_out];
            part.sum(rtt, std::mem::replace(&mut state.looked, looked))
        });
        let sums = sums.collect();
        // A connection may have found another owner.
        grouping.groups.retain(|_, state| self.parts[state.at].has_rows || !state.share.is_empty());
        sums
    }
}
