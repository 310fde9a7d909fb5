// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections that have ended lately. They are remembered after their record is dropped: neither a late event nor a scan that
//! began before the end may open such a connection again.

use super::matching::{CROWD, MatchKey};
use crate::model::{ConnectionKey, KernelTime, NetNs};
use foldhash::HashMap;
use std::collections::VecDeque;

/// An event is late by one interval of the collector or the length of a scan. Some 200 bytes each.
const REMEMBERED: usize = 4096;

/// Names an ended connection (TCP: socket and since) or socket (UDP).
pub(super) type Id = (u64, Option<KernelTime>);

/// The latest ends, which are numbered.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentCloses {
    times: HashMap<Id, KernelTime>,
    ends: VecDeque<End>,
    /// How many were forgotten, which is the number of the first that is not.
    forgotten: u64,
    /// The latest of a socket, and at a wanted.
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

impl RecentCloses {
    /// Remembers that this connection or socket ended.
    pub(super) fn insert(&mut self, id: Id, wanted: &MatchKey<'_>, time: KernelTime) {
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
        let with_key = self.by_key.insert(*wanted.key, number);
        let (key, netns, pid) = (*wanted.key, wanted.netns, wanted.pid);
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

    /// Whether a connection has ended that a scan at this time could still see, and that `wanted` matches.
    pub(super) fn ended_since(&self, wanted: &MatchKey<'_>, scan: KernelTime) -> bool {
        let latest = match wanted.socket {
            Some(socket) => self.by_socket.get(&socket),
            None => self.by_key.get(wanted.key),
        };
        let before = |end: &&End| if wanted.socket.is_some() { end.of_socket } else { end.with_key };
        let ends = std::iter::successors(latest.and_then(|&number| self.end(number)), |end| {
            before(end).and_then(|number| self.end(number))
        });
        ends.take(CROWD).filter(|end| end.time >= scan).any(|end| {
            #[cfg(test)]
            super::store::STEPS.with(|steps| steps.set(steps.get() + 1));
            let there = MatchKey { key: &end.key, netns: end.netns, socket: Some(end.id.0), pid: end.pid };
            wanted.may_match(&there)
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
        let wanted = MatchKey { key: &key, netns: NetNs::new(7), socket: None, pid: None };
        let mut closes = RecentCloses::default();
        for n in 0..REMEMBERED as u64 + 10 {
            closes.insert((n, None), &wanted, KernelTime(n));
        }
        let sizes = [closes.times.len(), closes.ends.len(), closes.by_socket.len(), closes.by_key.len()];
        assert_eq!(sizes, [REMEMBERED, REMEMBERED, REMEMBERED, 1]);
        assert_eq!(closes.time((9, None)), None);
        assert_eq!(closes.time((10, None)), Some(KernelTime(10)));
        let last = REMEMBERED as u64 + 9;
        assert!(closes.ended_since(&wanted, KernelTime(last)));
        assert!(!closes.ended_since(&wanted, KernelTime(last + 1)));
        assert!(!closes.ended_since(&MatchKey { netns: NetNs::new(8), ..wanted }, KernelTime(0)));
        assert!(closes.ended_since(&MatchKey { netns: None, ..wanted }, KernelTime(0)));
        // By its id each is found among all that share a place, as long as it is remembered.
        let of = |socket| closes.ended_since(&MatchKey { socket: Some(socket), ..wanted }, KernelTime(0));
        assert_eq!([9, 10, 11, last, last + 1].map(of), [false, true, true, true, false]);
        // Places are forgotten, too.
        for n in 0..REMEMBERED as u64 {
            let other = ConnectionKey { local_port: 2, ..key };
            closes.insert((1 << 32 | n, None), &MatchKey { key: &other, ..wanted }, KernelTime(n));
        }
        assert!(!closes.ended_since(&wanted, KernelTime(0)));
        assert_eq!(closes.by_key.len(), 1);
    }

    #[test]
    fn each_end_of_a_socket_that_was_connected_again_is_found_where_it_was() {
        let keys = [1, 2]
            .map(|port| ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), port, [2, 2, 2, 2].into(), 2));
        let at = |key| MatchKey { key, netns: NetNs::new(7), socket: Some(5), pid: None };
        let mut closes = RecentCloses::default();
        for (key, n) in keys.iter().zip(1..) {
            closes.insert((5, Some(KernelTime(n))), &at(key), KernelTime(10 * n));
        }
        assert!(
            closes.ended_since(&at(&keys[0]), KernelTime(10))
                && closes.ended_since(&at(&keys[1]), KernelTime(20))
        );
        assert!(!closes.ended_since(&at(&keys[0]), KernelTime(11)));
    }
}
