// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has ended lately, remembered beyond the record itself: an event that comes late must not bring a connection
//! back to life, nor a walk over /proc that began before it ended.

use super::place::Place;
use crate::model::{ConnectionKey, KernelTime};
use foldhash::HashMap;
use std::collections::VecDeque;

/// Late events are late by one interval of the collector, or by the time of a walk; some 100 bytes each.
const REMEMBERED: usize = 4096;
/// Ends arrive nearly in order of time: the CPUs' events are less than this apart.
const DISORDER_NS: u64 = 1_000_000_000;

/// Names an ended connection (TCP: socket and since) or socket (UDP).
pub(super) type Id = (u64, Option<KernelTime>);

/// The latest ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Gone {
    times: HashMap<Id, KernelTime>,
    ends: VecDeque<End>,
}

#[derive(Clone, Debug)]
struct End {
    id: Id,
    key: ConnectionKey,
    netns: u32,
    pid: Option<u32>,
    time: KernelTime,
}

impl Gone {
    /// Remembers that this connection or socket ended.
    pub(super) fn insert(&mut self, id: Id, place: &Place<'_>, time: KernelTime) {
        if let Some(known) = self.times.get_mut(&id) {
            *known = time.min(*known);
            return;
        }
        self.times.insert(id, time);
        if self.ends.len() >= REMEMBERED {
            if let Some(oldest) = self.ends.pop_front() {
                self.times.remove(&oldest.id);
            }
        }
        self.ends.push_back(End { id, key: *place.key, netns: place.netns, pid: place.pid, time });
    }

    /// When it ended, if it did.
    pub(super) fn time(&self, id: Id) -> Option<KernelTime> {
        self.times.get(&id).copied()
    }

    /// Did a connection that a walk at this time could still see here end since?
    pub(super) fn ended_since(&self, place: &Place<'_>, walk: KernelTime) -> bool {
        let recent =
            self.ends.iter().rev().take_while(|end| end.time.0.saturating_add(DISORDER_NS) >= walk.0);
        recent.filter(|end| end.time >= walk).any(|end| {
            let there = Place { key: &end.key, netns: end.netns, socket: Some(end.id.0), pid: end.pid };
            place.may_be(&there)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn the_memory_is_bounded_and_the_oldest_goes() {
        let key = ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), 1, [2, 2, 2, 2].into(), 2);
        let place = Place { key: &key, netns: 7, socket: None, pid: None };
        let mut gone = Gone::default();
        for n in 0..REMEMBERED as u64 + 10 {
            gone.insert((n, None), &place, KernelTime(n));
        }
        assert_eq!((gone.times.len(), gone.ends.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(gone.time((9, None)), None);
        assert_eq!(gone.time((10, None)), Some(KernelTime(10)));
        let last = REMEMBERED as u64 + 9;
        assert!(gone.ended_since(&place, KernelTime(last)));
        assert!(!gone.ended_since(&place, KernelTime(last + 1)));
        assert!(!gone.ended_since(&Place { netns: 8, ..place }, KernelTime(0)));
        assert!(gone.ended_since(&Place { netns: 0, ..place }, KernelTime(0)));
    }
}
