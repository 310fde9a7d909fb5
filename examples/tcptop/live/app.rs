// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the screen shows, and what keys and mouse change. Knows neither the terminal nor the clock.

use super::columns::{CONNECTIONS, Column, Kind, SUMS, Tab, Units};
use super::filter::Filter;
use crate::options::Options;
use crate::rows;
use std::cmp::Ordering;
use std::collections::VecDeque;
use tcptop::{ConnectionRecord, ConnectionTable, KernelTime, Stats, Sum};

/// As many moments of the rates are kept.
const HISTORY: usize = 60;

/// How rows of a tab are ordered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) column: usize,
    pub(crate) is_reversed: bool,
}

pub(crate) enum Rows {
    Connections(Vec<ConnectionRecord>),
    Sums(Vec<Sum>),
}

/// A line of cells, and what is special about it.
pub(crate) struct Line {
    pub(crate) cells: Vec<String>,
    pub(crate) is_closed: bool,
}

pub(crate) struct App {
    pub(crate) tab: usize,
    orders: Vec<Order>,
    pub(crate) filter: Filter,
    /// Of the options: where the kernel cannot judge it lets all pass.
    ports: Vec<u16>,
    /// A filter is being typed.
    pub(crate) is_typing: bool,
    pub(crate) is_paused: bool,
    pub(crate) has_help: bool,
    pub(crate) has_details: bool,
    pub(crate) units: Units,
    /// Of all rows, the one that is chosen, and the first on the screen.
    pub(crate) selected: usize,
    pub(crate) first: usize,
    /// How many rows the screen has; known when it is drawn.
    pub(crate) height: usize,
    pub(crate) rows: Rows,
    /// How many rows pass the filter.
    pub(crate) matching: usize,
    pub(crate) open: usize,
    pub(crate) failed: usize,
    pub(crate) rates: [f64; 2],
    pub(crate) history: VecDeque<[f64; 2]>,
    pub(crate) stats: Stats,
    /// When the rows were chosen.
    pub(crate) now: KernelTime,
    /// What runs, and what went wrong meanwhile.
    pub(crate) title: String,
    pub(crate) note: String,
}

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Draw again, from the table as it is.
    Draw,
    Quit,
    /// Stop this process, as Ctrl-Z does.
    Suspend,
}

impl App {
    pub(crate) fn new(title: String, options: &Options) -> Self {
        let rate_in = |n: usize| if n == 0 { 6 } else { 3 };
        let order = |n| Order { column: rate_in(n), is_reversed: false };
        Self {
            tab: 0,
            orders: (0..Tab::ALL.len()).map(order).collect(),
            filter: options.filter.clone().unwrap_or_default(),
            ports: options.port.clone(),
            is_typing: false,
            is_paused: false,
            has_help: false,
            has_details: false,
            units: Units::default(),
            selected: 0,
            first: 0,
            height: 1,
            rows: Rows::Connections(Vec::new()),
            matching: 0,
            open: 0,
            failed: 0,
            rates: [0.0; 2],
            history: VecDeque::new(),
            stats: Stats::default(),
            now: KernelTime(0),
            title,
            note: String::new(),
        }
    }

    pub(crate) fn order(&self) -> Order {
        self.orders[self.tab]
    }

    pub(crate) fn tab(&self) -> Tab {
        Tab::ALL[self.tab].0
    }

    /// Once per interval: the rates of this moment, and the rows.
    pub(crate) fn refresh(&mut self, table: &mut ConnectionTable, now: KernelTime, stats: Stats) {
        self.stats = stats;
        let (mut rates, mut open, mut failed) = ([0.0; 2], 0, 0);
        for r in table.records_at(now) {
            rates = [rates[0] + r.rate_in, rates[1] + r.rate_out];
            open += usize::from(!r.is_closed);
            failed += usize::from(r.connect_failure.is_some());
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(rates);
        if !self.is_paused {
            (self.rates, self.open, self.failed) = (rates, open, failed);
            self.choose_rows(table, now);
        }
    }

    /// The rows that are on the screen now. Only so many are copied.
    pub(crate) fn choose_rows(&mut self, table: &mut ConnectionTable, now: KernelTime) {
        self.now = now;
        match self.tab() {
            Tab::Connections => {
                let all: Vec<_> = table
                    .records()
                    .filter(|r| rows::has_port(r, &self.ports) && self.filter.passes(r))
                    .collect();
                self.matching = all.len();
                self.stay_within();
                let compare = in_order(&CONNECTIONS, self.order());
                let (first, _) = rows::first(all, self.first + self.height, |a, b| {
                    compare(a, b)
                        .then_with(|| (a.key, a.first_seen, a.socket).cmp(&(b.key, b.first_seen, b.socket)))
                });
                self.rows = Rows::Connections(first.into_iter().skip(self.first).cloned().collect());
            }
            Tab::Sums(by) => {
                let all = table.sums(by, now).into_iter();
                let all: Vec<_> = all
                    .filter(|sum| self.filter.is_empty() || self.filter.passes_name(&rows::group(sum)))
                    .collect();
                self.matching = all.len();
                self.stay_within();
                let compare = in_order(&SUMS, self.order());
                let (first, _) = rows::first(all, self.first + self.height, |a, b| {
                    compare(a, b).then_with(|| rows::group(a).cmp(&rows::group(b)))
                });
                self.rows = Rows::Sums(first.into_iter().skip(self.first).collect());
            }
        }
    }

    fn stay_within(&mut self) {
        self.selected = self.selected.min(self.matching.saturating_sub(1));
        self.first = self.first.min(self.selected).max((self.selected + 1).saturating_sub(self.height));
    }

    /// The titles of the columns, with their ranks.
    pub(crate) fn heads(&self) -> Vec<(&'static str, u8, Kind)> {
        match self.tab() {
            Tab::Connections => heads(&CONNECTIONS),
            Tab::Sums(_) => heads(&SUMS),
        }
    }

    /// The lines on the screen.
    pub(crate) fn lines(&self) -> Vec<Line> {
        match &self.rows {
            Rows::Connections(rows) => lines(&CONNECTIONS, rows, self.units, |r| r.is_closed),
            Rows::Sums(rows) => lines(&SUMS, rows, self.units, |sum| sum.open == 0),
        }
    }

    pub(crate) fn selected_record(&self) -> Option<&ConnectionRecord> {
        match &self.rows {
            Rows::Connections(rows) => rows.get(self.selected.checked_sub(self.first)?),
            Rows::Sums(_) => None,
        }
    }

    pub(crate) fn show_tab(&mut self, tab: usize) {
        if tab < Tab::ALL.len() {
            (self.tab, self.selected, self.first) = (tab, 0, 0);
        }
    }

    pub(crate) fn next_tab(&mut self, back: bool) {
        let all = Tab::ALL.len();
        self.show_tab((self.tab + if back { all - 1 } else { 1 }) % all);
    }

    /// Orders by this column; by the same one again, the other way round.
    pub(crate) fn order_by(&mut self, column: usize) {
        let order = &mut self.orders[self.tab];
        order.is_reversed = order.column == column && !order.is_reversed;
        order.column = column;
    }

    pub(crate) fn order_by_title(&mut self, title: &str) {
        let place = self.heads().iter().position(|(known, ..)| *known == title);
        if let Some(place) = place.filter(|&place| place != self.order().column) {
            self.order_by(place);
        }
    }

    pub(crate) fn order_by_next(&mut self, back: bool) {
        let all = self.heads().len();
        let order = &mut self.orders[self.tab];
        *order = Order { column: (order.column + if back { all - 1 } else { 1 }) % all, is_reversed: false };
    }

    pub(crate) fn reverse(&mut self) {
        self.orders[self.tab].is_reversed ^= true;
    }

    pub(crate) fn select(&mut self, step: isize) {
        self.selected = self.selected.saturating_add_signed(step).min(self.matching.saturating_sub(1));
        self.stay_within();
    }

    pub(crate) fn change_filter(&mut self, change: impl FnOnce(&mut String)) {
        let mut text = self.filter.text().to_owned();
        change(&mut text);
        self.filter = Filter::new(&text);
        (self.selected, self.first) = (0, 0);
    }
}

fn in_order<T>(columns: &[Column<T>], order: Order) -> impl Fn(&T, &T) -> Ordering {
    let compare = columns[order.column].compare;
    move |a, b| if order.is_reversed { compare(b, a) } else { compare(a, b) }
}

fn heads<T>(columns: &[Column<T>]) -> Vec<(&'static str, u8, Kind)> {
    columns.iter().map(|column| (column.title, column.rank, column.kind)).collect()
}

fn lines<T>(columns: &[Column<T>], rows: &[T], units: Units, is_closed: fn(&T) -> bool) -> Vec<Line> {
    let cells = |row| columns.iter().map(|column| (column.cell)(row, units)).collect();
    rows.iter().map(|row| Line { cells: cells(row), is_closed: is_closed(row) }).collect()
}
