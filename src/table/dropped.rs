// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that were dropped from the table lately. Such a connection comes back with its next event, and sums must not
//! count it twice.

use super::counter::Counter;
use super::groups::Amount;
use super::matching::Flow;
use foldhash::HashMap;
use std::collections::VecDeque;

/// Some 250 bytes each.
const REMEMBERED: usize = 4096;

/// The latest that were dropped.
#[derive(Clone, Debug)]
pub(super) struct Dropped {
    flows: HashMap<Flow, (u64, Remembered)>,
    /// In the order of their numbers, with some that are back.
    order: VecDeque<(u64, Flow)>,
    number: u64,
    limit: usize,
    /// Others were dropped before that may come back.
    pub(super) has_forgotten: bool,
}

/// What a connection needs to go on where it was.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    pub(super) out: Counter,
    pub(super) r#in: Counter,
    /// What sums have counted.
    pub(super) amount: Amount,
    /// See [`Entry::may_return`](super::entry::Entry).
    pub(super) may_return: bool,
    /// Only late events can tell more.
    pub(super) has_ended: bool,
}

impl Default for Dropped {
    fn default() -> Self {
        let (flows, order) = (HashMap::default(), VecDeque::new());
        Self { flows, order, number: 0, limit: REMEMBERED, has_forgotten: false }
    }
}

impl Dropped {
    pub(super) fn insert(&mut self, flow: Flow, remembered: Remembered) {
        self.number += 1;
        self.flows.insert(flow, (self.number, remembered));
        self.order.push_back((self.number, flow));
        while self.flows.len() > self.limit || self.order.len() > 2 * self.limit {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((number, flow)) = self.order.pop_front() else { return };
        if self.flows.get(&flow).is_some_and(|(latest, _)| *latest == number) {
            let oldest = self.flows.remove(&flow);
            self.has_forgotten |= oldest.is_some_and(|(_, oldest)| !oldest.has_ended);
        }
    }

    pub(super) fn take(&mut self, flow: &Flow) -> Option<Remembered> {
        self.flows.remove(flow).map(|(_, remembered)| remembered)
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.flows.len(), self.order.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(has_ended: bool) -> Remembered {
        let (out, r#in) = (Counter::default(), Counter::default());
        Remembered { out, r#in, amount: Amount::default(), may_return: false, has_ended }
    }

    #[test]
    fn the_latest_are_remembered_and_only_open_ones_are_missed() {
        let mut dropped = Dropped::default();
        dropped.set_limit(3);
        for socket in [1, 2, 3, 1, 4] {
            dropped.insert(Flow::of_row(socket), remembered(true));
        }
        assert!(!dropped.has_forgotten);
        let found = [1, 2, 3, 4].map(|socket| dropped.take(&Flow::of_row(socket)).is_some());
        assert_eq!(found, [true, false, true, true]);
        for socket in 0..100 {
            dropped.insert(Flow::of_row(socket), remembered(false));
            drop(dropped.take(&Flow::of_row(socket)));
            assert!(dropped.sizes()[1] <= 6 && !dropped.has_forgotten);
        }
        (0..4).for_each(|socket| dropped.insert(Flow::of_row(socket), remembered(false)));
        assert!(dropped.has_forgotten);
    }
}
