// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order of eviction when the table is full: first what closed longest ago, then what was least recently seen.

use super::entry::Entry;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// So many stale tickets are tolerated, beyond one for each entry, before they are swept out.
const SLACK: usize = 1024;

/// A queue that does not follow every event. A ticket says when its entry was last seen at the time it was queued. When its
/// turn comes and the entry was seen since, it is queued again. So an event costs nothing here, and an eviction O(log n) for
/// each entry that was seen since.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    queue: BinaryHeap<Reverse<Ticket>>,
}

/// Closed ones sort before open ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    is_open: bool,
    time: u64,
    /// Tells the entry's latest ticket from earlier ones, and from those of others in the same slot.
    pub(super) serial: u64,
    pub(super) slot: u32,
}

impl Ticket {
    pub(super) fn new(entry: &Entry, serial: u64, slot: u32) -> Self {
        let time = entry.closed_at().unwrap_or(entry.record.last_seen).0;
        Self { is_open: entry.is_open(), time, serial, slot }
    }
}

impl Order {
    /// Queues a new entry, or one that has just closed or opened again.
    pub(super) fn push(&mut self, ticket: Ticket) {
        self.queue.push(Reverse(ticket));
    }

    /// The slot of the entry that has to go. `current` gives the ticket that this one's holder would get today, if this is
    /// its latest.
    pub(super) fn pop(&mut self, current: impl Fn(&Ticket) -> Option<Ticket>) -> Option<u32> {
        while let Some(Reverse(ticket)) = self.queue.pop() {
            match current(&ticket) {
                Some(now) if now.time > ticket.time => self.push(now),
                Some(_) => return Some(ticket.slot),
                None => {}
            }
        }
        None
    }

    /// Keeps the queue in proportion to the table.
    pub(super) fn sweep(&mut self, entries: usize, current: impl Fn(&Ticket) -> Option<Ticket>) {
        if self.queue.len() > 2 * entries + SLACK {
            self.queue.retain(|Reverse(ticket)| current(ticket).is_some());
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.queue.capacity()
    }
}
