// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections whose end was lost: the kernel does not list their sockets any more.

use super::ConnectionTable;
use super::entry::Entry;
use crate::model::{KernelTime, Protocol};
use crate::survey::Survey;
use foldhash::HashSet;
use std::time::Duration;

/// A socket that begins is reported before the kernel lists it: a connection in SYN_SENT has no port yet.
const YOUNG: Duration = Duration::from_secs(1);

/// What the latest survey did not show.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing {
    began: KernelTime,
    sockets: HashSet<u64>,
}

impl ConnectionTable {
    /// Closes the connections whose sockets two surveys in a row do not show, and returns how many these are: their end was
    /// lost. [`is_end_seen`](crate::ConnectionRecord::is_end_seen) stays false, and the time of the second survey
    /// stands for that of the end.
    ///
    /// One survey is not enough: the kernel lists its sockets piece by piece, and finds its place again by counting, so that
    /// one may be passed over while others come and go. Left alone are records that were seen later than a second before the
    /// survey began, those of network namespaces that it does not [cover](Survey::covers), and those without a socket id.
    /// A UDP socket that was disconnected (AF_UNSPEC) and has no port of its own is not listed until it sends again.
    ///
    /// What was closed in error goes on with its next event, or the next survey that shows it. A survey that is not later
    /// than the one before changes nothing.
    pub fn reconcile(&mut self, survey: &Survey) -> usize {
        if survey.began() <= self.missing.began {
            return 0;
        }
        let mut missing = Missing { began: survey.began(), sockets: HashSet::default() };
        let (mut vanished, mut back) = (Vec::new(), Vec::new());
        for (slot, entry) in self.store.iter() {
            let record = &entry.record;
            let is_covered = |netns| survey.covers(record.key.protocol, netns);
            let Some(socket) = record.socket.filter(|_| record.netns.is_some_and(is_covered)) else {
                continue;
            };
            match survey.shows(socket) {
                true if counts_as_vanished(entry) => back.push(slot),
                false if entry.is_open() && !is_young(entry, survey) => {
                    missing.sockets.insert(socket);
                    if self.missing.sockets.contains(&socket) {
                        vanished.push(slot);
                    }
                }
                _ => {}
            }
        }
        self.missing = missing;
        for slot in back {
            self.change(slot, |entry| entry.goes_on(survey.began()));
        }
        for &slot in &vanished {
            self.change(slot, |entry| entry.presume_ended(survey.began()));
        }
        vanished.len()
    }

    fn change<T>(&mut self, slot: u32, change: impl FnOnce(&mut Entry) -> T) {
        self.store.relist(slot, change);
        self.store.requeue(slot);
    }
}

/// A UDP flow may be silent, with its socket still there.
fn counts_as_vanished(entry: &Entry) -> bool {
    let is_flow = entry.is_confirmed && entry.record.key.protocol == Protocol::Udp;
    !entry.is_open() && !entry.record.is_end_seen && !is_flow
}

fn is_young(entry: &Entry, survey: &Survey) -> bool {
    survey.began().saturating_since(entry.record.last_seen) < YOUNG
}
