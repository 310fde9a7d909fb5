// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sums by process, host, cgroup, port, or process and host: one pass over the table, plus what connections moved that have left it.

use super::ConnectionTable;
use super::entry::Entry;
use super::groups::{Amount, GroupState, Grouping, Kept, Name, Share};
use crate::model::KernelTime;
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
    /// Connections that have left the table are in none of these sums. For sums since the start of all connections of a kind,
    /// let a filter of the [builder](crate::LinuxCollectorBuilder::protocol) choose them, and use [`sums`](Self::sums). All
    /// bytes since the tracer started are new bytes here, and the next call of `sums` finds new what it would find without this
    /// call.
    ///
    /// ```
    /// use tcptop::{ConnectionTable, GroupBy, KernelTime};
    ///
    /// # let mut table = ConnectionTable::new();
    /// let now = KernelTime::now();
    /// let open = table.sums_of(GroupBy::Process, now, |record| !record.is_closed);
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

/// One pass over the table: the sums of all groups, while they are made.
struct Pass {
    sums: Vec<Sum>,
    /// Of each sum what no sum tells.
    parts: Vec<Part>,
    /// For each round-trip time the place of its group, and the time in microseconds.
    rtts: Vec<(u32, u32)>,
}

/// Small, because there may be as many groups as connections.
struct Part {
    /// Of what is latest known of the group's process.
    process_seen: KernelTime,
    has_process: bool,
    has_rows: bool,
}

/// The sum of a group with what was kept of it.
fn begin(group: Group, share: &Share) -> Sum {
    let mut sum = Sum {
        group,
        open: 0,
        connections: 0,
        bytes_in: 0,
        bytes_out: 0,
        packets_in: 0,
        packets_out: 0,
        retransmits: 0,
        new_bytes_in: 0,
        new_bytes_out: 0,
        traced_bytes_in: 0,
        traced_bytes_out: 0,
        rate_in: 0.0,
        rate_out: 0.0,
        rtt: None,
        min_rtt: None,
        last_seen: KernelTime(0),
        is_partial: false,
    };
    set_share(&mut sum, share);
    sum
}

/// What a sum has of its connections. In the sum itself, because there may be as many groups as connections.
fn share(sum: &Sum) -> Share {
    let amount = Amount {
        bytes_in: sum.bytes_in,
        bytes_out: sum.bytes_out,
        packets_in: sum.packets_in,
        packets_out: sum.packets_out,
        retransmits: sum.retransmits,
        traced_in: sum.traced_bytes_in,
        traced_out: sum.traced_bytes_out,
    };
    let Sum { connections, min_rtt, last_seen, is_partial, .. } = *sum;
    Share { amount, connections, min_rtt, last_seen, is_partial }
}

fn set_share(sum: &mut Sum, share: &Share) {
    let Share { amount, connections, min_rtt, last_seen, is_partial } = *share;
    (sum.bytes_in, sum.bytes_out) = (amount.bytes_in, amount.bytes_out);
    (sum.packets_in, sum.packets_out) = (amount.packets_in, amount.packets_out);
    (sum.traced_bytes_in, sum.traced_bytes_out) = (amount.traced_in, amount.traced_out);
    sum.retransmits = amount.retransmits;
    (sum.connections, sum.min_rtt) = (connections, min_rtt);
    (sum.last_seen, sum.is_partial) = (last_seen, is_partial);
}

impl Pass {
    /// Begins with what is kept.
    fn new(grouping: &mut Grouping) -> Self {
        let all = grouping.groups.len() + 1;
        let mut pass =
            Self { sums: Vec::with_capacity(all), parts: Vec::with_capacity(all), rtts: Vec::new() };
        grouping.other.at = pass.push(None, &grouping.other);
        for (&name, state) in &mut grouping.groups {
            state.at = pass.push(Some(name), state);
        }
        pass
    }

    /// One more group; returns its place.
    fn push(&mut self, name: Option<Name>, state: &GroupState) -> u32 {
        let Kept { share, process } = state.kept();
        let group = name.map_or(Group::Other, |name| name.group(process));
        self.sums.push(begin(group, &share));
        let (process_seen, has_process) = (share.last_seen, process.is_some());
        self.parts.push(Part { process_seen, has_process, has_rows: false });
        self.sums.len() as u32 - 1
    }

    fn add(&mut self, grouping: &mut Grouping, by: GroupBy, entry: &Entry) {
        let name = name(by, entry);
        let state = grouping.groups.entry(name).or_insert_with(|| {
            let mut state = GroupState::default();
            state.at = self.push(Some(name), &state);
            state
        });
        let at = state.at;
        let (sum, part) = (&mut self.sums[at as usize], &mut self.parts[at as usize]);
        let record = &entry.record;
        let mut whole = share(sum);
        whole.add(&entry.share());
        set_share(sum, &whole);
        if !part.has_process || record.last_seen >= part.process_seen {
            if record.owner.is_some() {
                (sum.group, part.has_process) = (name.group(record.owner), true);
            }
            part.process_seen = record.last_seen;
        }
        (sum.rate_in, sum.rate_out) = (sum.rate_in + record.rate_in, sum.rate_out + record.rate_out);
        part.has_rows = true;
        if entry.is_open() {
            sum.open += 1;
            let micros = record.rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX));
            self.rtts.extend(micros.map(|micros| (at, micros)));
        }
    }

    fn finish(mut self, grouping: &mut Grouping) -> Vec<Sum> {
        self.rtts.sort_unstable();
        for of_group in self.rtts.chunk_by(|one, other| one.0 == other.0) {
            let (at, micros) = of_group[(of_group.len() - 1) / 2];
            self.sums[at as usize].rtt = Some(Duration::from_micros(micros.into()));
        }
        for state in grouping.groups.values_mut().chain([&mut grouping.other]) {
            let sum = &mut self.sums[state.at as usize];
            let looked = [sum.traced_bytes_in, sum.traced_bytes_out];
            let before = std::mem::replace(&mut state.looked, looked);
            sum.new_bytes_in = looked[0].saturating_sub(before[0]);
            sum.new_bytes_out = looked[1].saturating_sub(before[1]);
        }
        // A connection may have found another owner.
        let Self { mut sums, parts, .. } = self;
        let is_something = |sum: &Sum, part: &Part| part.has_rows || !share(sum).is_empty();
        grouping.groups.retain(|_, state| is_something(&sums[state.at as usize], &parts[state.at as usize]));
        let mut of_each = parts.iter();
        sums.retain(|sum| of_each.next().is_some_and(|part| is_something(sum, part)));
        sums
    }
}
