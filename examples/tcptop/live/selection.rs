// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which row is selected, and which rows are on the screen.

use super::tree::Id;
use crate::rows;
use std::cmp::Ordering;

#[derive(Debug)]
pub(crate) struct Selection {
    /// Of all rows, the one that is selected, and the first on the screen.
    pub(crate) place: usize,
    pub(crate) first: usize,
    /// How many rows the screen has; known when it is drawn.
    pub(crate) height: usize,
    /// How many there are.
    pub(crate) rows: usize,
    /// The row that the selection follows; none before one is selected.
    chosen: Option<Id>,
    /// The place was chosen since the rows were.
    is_choosing: bool,
}

impl Selection {
    pub(crate) fn new() -> Self {
        Self { place: 0, first: 0, height: 1, rows: 0, chosen: None, is_choosing: false }
    }

    /// Selects the first row.
    pub(crate) fn restart(&mut self) {
        *self = Self { height: self.height, rows: self.rows, ..Self::new() };
    }

    pub(crate) fn move_by(&mut self, step: isize) {
        self.move_to(self.place.saturating_add_signed(step));
    }

    pub(crate) fn move_to(&mut self, place: usize) {
        self.place = place.min(self.rows.saturating_sub(1));
        self.is_choosing = true;
    }

    /// From now on the selection follows the row that is selected.
    pub(crate) fn follow(&mut self) {
        self.is_choosing = true;
    }

    /// The rows are chosen: this one is selected.
    pub(crate) fn settle(&mut self, selected: Option<Id>) {
        if std::mem::take(&mut self.is_choosing) {
            self.chosen = selected;
        }
    }

    /// Those of these rows that are on the screen, in their order.
    pub(crate) fn page<T>(
        &mut self,
        all: Vec<T>,
        id: impl Fn(&T) -> Id,
        compare: impl Fn(&T, &T) -> Ordering,
    ) -> Vec<T> {
        let chosen = self.chosen.and_then(|chosen| all.iter().find(|row| id(row) == chosen));
        let place = chosen.map(|chosen| all.iter().filter(|row| compare(row, chosen).is_lt()).count());
        self.stay_within(all.len(), place);
        let (mut rows, _) = rows::first(all, self.first + self.height, compare);
        rows.drain(..self.first.min(rows.len()));
        rows
    }

    /// The same of rows that are in their order already.
    pub(crate) fn page_of_sorted<T>(&mut self, all: Vec<T>, id: impl Fn(&T) -> Id) -> Vec<T> {
        let place = self.chosen.and_then(|chosen| all.iter().position(|row| id(row) == chosen));
        self.stay_within(all.len(), place);
        all.into_iter().skip(self.first).take(self.height).collect()
    }

    /// So many rows there are, and the chosen one is at this place.
    fn stay_within(&mut self, all: usize, place: Option<usize>) {
        self.rows = all;
        if !self.is_choosing {
            self.place = place.unwrap_or(self.place);
        }
        self.place = self.place.min(all.saturating_sub(1));
        self.first = self.first.min(self.place).max((self.place + 1).saturating_sub(self.height));
    }
}
