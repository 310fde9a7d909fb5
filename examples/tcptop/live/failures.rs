// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failed connects, which the table forgets soon.

use super::tree::Id;
use std::collections::{HashSet, VecDeque};
use tcptop::{ConnectionRecord, ConnectionTable};

/// So many are kept: the latest.
const KEPT: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Failures {
    latest: VecDeque<ConnectionRecord>,
    ids: HashSet<Id>,
}

impl Failures {
    /// Takes those that are new in the table.
    pub(crate) fn take(&mut self, table: &ConnectionTable) {
        for r in table.records().filter(|r| r.connect_failure.is_some()) {
            if self.ids.insert(Id::of_record(r)) {
                self.latest.push_back(r.clone());
            }
        }
        let many = self.latest.len().saturating_sub(KEPT);
        for r in self.latest.drain(..many) {
            self.ids.remove(&Id::of_record(&r));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ConnectionRecord> {
        self.latest.iter()
    }
}
