// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has ended lately, remembered beyond the record itself: an event that comes late must not bring a connection
//! back to life, nor a walk over /proc that began before it ended.

use super::place::{CROWD, Place};
use crate::model::{ConnectionKey, KernelTime, NetNs};
use foldhash::HashMap;
use std::collections::VecDeque;

/// Late events are late by one interval of the collector, or by the time of a walk; some 200 bytes each.
const REMEMBERED: usize = 4096;

/// Names an ended connection (TCP: socket and since) or socket (UDP).
pub(super) type Id = (u64, Option<KernelTime>);

/// The latest ends, which are numbered.
#[derive(Clone, Debug, Default)]
pub(super) struct Gone {
    times: HashMap<Id, KernelTime>,
    ends: VecDeque<End>,
    /// How many were forgotten: the number of the first one that is not.
    forgotten: u64,
    /// The latest of a socket, and at a place.
    by_socket: HashMap<u64, u64>,
    by_key: HashMap<ConnectionKey, u64>,
}

#[derive(Clone, Debug)]
struct End {
    id: Id,
    key: ConnectionKey,
    netns: Option<NetNs>,
    pid: Option<u32>,
    time: KernelTime,
    /// The ones before it of the same socket, and with the same key. They may be forgotten.
    of_socket: Option<u64>,
    with_key: Option<u64>,
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
            self.forget_oldest();
        }
        let number = self.forgotten + self.ends.len() as u64;
        let of_socket = self.by_socket.insert(id.0, number);
        let with_key = self.by_key.insert(*place.key, number);
        let (key, netns, pid) = (*place.key, place.netns, place.pid);
        self.ends.push_back(End { id, key, netns, pid, time, of_socket, with_key });
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.ends.pop_front() else { return };
        self.times.remove(&oldest.id);
        let number = self.forgotten;
        self.forgotten += 1;
        if self.by_socket.get(&oldest.id.0) == Some(&number) {
            self.by_socket.remove(&oldest.id.0);
        }
        if self.by_key.get(&oldest.key) == Some(&number) {
            self.by_key.remove(&oldest.key);
        }
    }

    /// When it ended, if it did.
    pub(super) fn time(&self, id: Id) -> Option<KernelTime> {
        self.times.get(&id).copied()
    }

    /// Did a connection that a walk at this time could still see here end since?
    pub(super) fn ended_since(&self, place: &Place<'_>, walk: KernelTime) -> bool {
        let latest = match place.socket {
            Some(socket) => self.by_socket.get(&socket),
            None => self.by_key.get(place.key),
        };
        let before = |end: &&End| if place.socket.is_some() { end.of_socket } else { end.with_key };
        let ends = std::iter::successors(latest.and_then(|&number| self.end(number)), |end| {
            before(end).and_then(|number| self.end(number))
        });
        ends.take(CROWD).filter(|end| end.time >= walk).any(|end| {
            #[cfg(test)]
            super::store::STEPS.with(|steps| steps.set(steps.get() + 1));
            let there = Place { key: &end.key, netns: end.netns, socket: Some(end.id.0), pid: end.pid };
            place.may_be(&there)
        })
    }

    fn end(&self, number: u64) -> Option<&End> {
        self.ends.get(usize::try_from(number.checked_sub(self.forgotten)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn the_memory_is_bounded_and_the_oldest_goes() {
        let key = ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), 1, [2, 2, 2, 2].into(), 2);
        let place = Place { key: &key, netns: NetNs::new(7), socket: None, pid: None };
        let mut gone = Gone::default();
        for n in 0..REMEMBERED as u64 + 10 {
            gone.insert((n, None), &place, KernelTime(n));
        }
        let sizes = [gone.times.len(), gone.ends.len(), gone.by_socket.len(), gone.by_key.len()];
        assert_eq!(sizes, [REMEMBERED, REMEMBERED, REMEMBERED, 1]);
        assert_eq!(gone.time((9, None)), None);
        assert_eq!(gone.time((10, None)), Some(KernelTime(10)));
        let last = REMEMBERED as u64 + 9;
        assert!(gone.ended_since(&place, KernelTime(last)));
        assert!(!gone.ended_since(&place, KernelTime(last + 1)));
        assert!(!gone.ended_since(&Place { netns: NetNs::new(8), ..place }, KernelTime(0)));
        assert!(gone.ended_since(&Place { netns: None, ..place }, KernelTime(0)));
        // By its id each is found among all that share a place, as long as it is remembered.
        let of = |socket| gone.ended_since(&Place { socket: Some(socket), ..place }, KernelTime(0));
        assert_eq!([9, 10, 11, last, last + 1].map(of), [false, true, true, true, false]);
        // Places are forgotten, too.
        for n in 0..REMEMBERED as u64 {
            let other = ConnectionKey { local_port: 2, ..key };
            gone.insert((1 << 32 | n, None), &Place { key: &other, ..place }, KernelTime(n));
        }
        assert!(!gone.ended_since(&place, KernelTime(0)));
        assert_eq!(gone.by_key.len(), 1);
    }

    #[test]
    fn each_end_of_a_socket_that_was_connected_again_is_found_where_it_was() {
        let keys = [1, 2]
            .map(|port| ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), port, [2, 2, 2, 2].into(), 2));
        let at = |key| Place { key, netns: NetNs::new(7), socket: Some(5), pid: None };
        let mut gone = Gone::default();
        for (key, n) in keys.iter().zip(1..) {
            gone.insert((5, Some(KernelTime(n))), &at(key), KernelTime(10 * n));
        }
        assert!(
            gone.ended_since(&at(&keys[0]), KernelTime(10))
                && gone.ended_since(&at(&keys[1]), KernelTime(20))
        );
        assert!(!gone.ended_since(&at(&keys[0]), KernelTime(11)));
    }
}
