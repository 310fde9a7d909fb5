// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns a connection, and what sums count of it: also when it changes hands, leaves the table and comes back.

use super::{Entry, Live};
use crate::model::{KernelTime, Process, Protocol, Provenance};
use crate::record::ConnectionRecord;
use crate::table::counter::Counter;
use crate::table::dropped::Remembered;
use crate::table::groups::{Amount, Name, Share};
use crate::table::matching::Flow;

#[derive(Clone, Debug, Default)]
pub(super) struct Settled {
    amount: Amount,
    is_counted: bool,
}

/// A process that held a connection until now, and what the connection had moved for it.
pub(in crate::table) type Left = (Process, Share);

impl Entry {
    /// Better knowledge replaces worse, newer the older of the same kind: a socket may change hands.
    pub(in crate::table) fn learn_owner(
        &mut self,
        owner: Process,
        provenance: Provenance,
        time: KernelTime,
    ) -> Option<Left> {
        let known_since = self.live().owner_time;
        let newer = provenance == self.record.provenance && time >= known_since;
        let is_better = self.record.owner.is_none() || provenance > self.record.provenance || newer;
        is_better.then(|| {
            let left = self.record.owner.filter(|before| newer && is_handed_over(before, &owner));
            self.record.owner = Some(owner);
            self.record.provenance = provenance;
            self.live().owner_time = time;
            left.map(|before| (before, self.settle()))
        })?
    }

    /// What sums count of it.
    pub(in crate::table) fn amount(&self) -> Amount {
        let ConnectionRecord { bytes_in, bytes_out, packets_in, packets_out, retransmits, .. } = self.record;
        let retransmits = retransmits.unwrap_or(0).into();
        let whole =
            Amount { bytes_in, bytes_out, packets_in, packets_out, retransmits, traced_in: 0, traced_out: 0 };
        let Some(Live { out, r#in, .. }) = self.live.as_deref() else { return whole };
        let (traced_in, traced_out) = (r#in.new_bytes(), out.new_bytes());
        if !self.may_return {
            return Amount { traced_in, traced_out, ..whole };
        }
        let (packets_in, packets_out) = (r#in.new_packets(), out.new_packets());
        Amount {
            bytes_in: traced_in,
            bytes_out: traced_out,
            packets_in,
            packets_out,
            retransmits,
            traced_in,
            traced_out,
        }
    }

    /// What it adds to sums beside what they have counted.
    pub(in crate::table) fn share(&self) -> Share {
        let record = &self.record;
        let settled = self.settled.as_ref();
        Share {
            amount: self.amount().minus(settled.map_or(Amount::default(), |settled| settled.amount)),
            connections: settled.is_none_or(|settled| !settled.is_counted).into(),
            min_rtt: record.min_rtt,
            last_seen: record.last_seen,
            is_partial: record.is_partial,
        }
    }

    /// Returns what it has moved until now, which belongs to an owner that it does not have any more. It still counts as
    /// one connection of the new one.
    pub(super) fn settle(&mut self) -> Share {
        let share = Share { connections: 0, ..self.share() };
        self.settled.get_or_insert_default().amount = self.amount();
        share
    }

    /// Under which it is remembered when it leaves the table. No event has told since when a row lives.
    pub(in crate::table) fn remembered_as(&self) -> Option<Flow> {
        let row =
            || self.record.socket.filter(|_| self.record.key.protocol == Protocol::Tcp).map(Flow::of_row);
        self.flow().or_else(row)
    }

    /// For the time when it comes back.
    pub(in crate::table) fn remember(&self) -> Remembered {
        let of = |of: fn(&Live) -> &Counter| self.live.as_ref().map(|live| of(live).without_rate());
        let (out, r#in) =
            (of(|live| &live.out).unwrap_or_default(), of(|live| &live.r#in).unwrap_or_default());
        let has_ended = self.record.is_end_seen;
        Remembered { out, r#in, amount: self.amount(), may_return: self.may_return, has_ended }
    }

    /// It is back.
    pub(in crate::table) fn restore(&mut self, remembered: &Remembered) {
        let Remembered { out, r#in, amount, may_return, has_ended: _ } = remembered.clone();
        let live = self.live();
        live.looked = [r#in.new_bytes(), out.new_bytes()];
        (live.out, live.r#in) = (out, r#in);
        self.may_return = may_return;
        self.count_as(amount);
        self.publish();
    }

    /// Sums have counted so much of it, and it as one connection.
    pub(in crate::table) fn count_as(&mut self, amount: Amount) {
        self.settled = Some(Box::new(Settled { amount, is_counted: true }));
    }

    /// Tells how much is new since the look before.
    pub(in crate::table) fn look(&mut self) {
        let Some(live) = &mut self.live else { return };
        let new = [live.r#in.new_bytes(), live.out.new_bytes()];
        let [seen_in, seen_out] = std::mem::replace(&mut live.looked, new);
        (self.record.new_bytes_in, self.record.new_bytes_out) =
            (new[0].saturating_sub(seen_in), new[1].saturating_sub(seen_out));
    }
}

/// Between two processes, or from one cgroup to another. Nearly every event names the same owner as the one before.
fn is_handed_over(from: &Process, to: &Process) -> bool {
    from != to && (Name::of_process(from) != Name::of_process(to) || from.cgroup_id != to.cgroup_id)
}
