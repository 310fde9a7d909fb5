// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the screen shows, and what keys and mouse change. Knows neither the terminal nor the clock.

use super::columns::{Column, Kind, SUMS, Show, Tab, in_a_sum};
use super::failures::Failures;
use super::filter::Filter;
use super::selection::Selection;
use super::tree::{Id, Key, Order, Row, Wanted, What};
use crate::options::Options;
use crate::rows;
use std::collections::VecDeque;
use std::time::Duration;
use tcptop::{ConnectionRecord, ConnectionTable, KernelTime, Protocol, Stats, Sum, TcpState};

/// As many moments are kept of what has a history.
const HISTORY: usize = 60;

/// A line of cells, and what is special about it.
pub(crate) struct Line {
    pub(crate) cells: Vec<String>,
    pub(crate) is_closed: bool,
}

/// All connections together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole {
    pub(crate) open: usize,
    pub(crate) closed: usize,
    pub(crate) failed: usize,
    pub(crate) udp: usize,
    /// Open TCP connections by state, in the order of the states.
    pub(crate) states: Vec<(TcpState, usize)>,
    /// Bytes per second, in and out, of connections with other machines.
    pub(crate) rates: [f64; 2],
    /// Bytes per second of connections within this machine. Each is counted once.
    pub(crate) local_rate: f64,
    /// There were more than the table keeps.
    pub(crate) is_cut: bool,
}

impl Whole {
    fn of<'a>(records: impl Iterator<Item = &'a ConnectionRecord>) -> Self {
        let (mut whole, mut local) = (Self::default(), [0.0; 2]);
        for r in records {
            let rates = if rows::is_local(r) { &mut local } else { &mut whole.rates };
            *rates = [rates[0] + r.rate_in, rates[1] + r.rate_out];
            whole.failed += usize::from(r.connect_failure.is_some());
            if r.is_closed {
                whole.closed += 1;
                continue;
            }
            whole.open += 1;
            match (r.key.protocol, r.tcp_state) {
                (Protocol::Udp, _) => whole.udp += 1,
                (_, Some(state)) => match whole.states.iter_mut().find(|(known, _)| *known == state) {
                    Some((_, count)) => *count += 1,
                    None => whole.states.push((state, 1)),
                },
                (_, None) => {}
            }
        }
        // Of a connection within the machine, a filter may leave only one end.
        whole.local_rate = local[0].max(local[1]);
        whole.states.sort_unstable();
        whole
    }
}

/// The row whose details are shown, since they are.
pub(crate) struct Watched {
    id: Id,
    /// Rates in and out, and the round-trip time in seconds.
    pub(crate) history: VecDeque<[f64; 3]>,
}

pub(crate) struct App {
    pub(crate) tab: usize,
    /// Of each tab: those of the others are remembered. What rows are wanted has that of this tab.
    orders: Vec<Order>,
    wanted: Wanted,
    /// A filter is being typed.
    pub(crate) is_typing: bool,
    pub(crate) is_paused: bool,
    pub(crate) has_help: bool,
    pub(crate) has_limits: bool,
    pub(crate) has_details: bool,
    /// The first line of the details that is shown.
    pub(crate) details_first: usize,
    pub(crate) show: Show,
    pub(crate) selection: Selection,
    failures: Failures,
    /// Those on the screen.
    rows: Vec<Row>,
    pub(crate) whole: Whole,
    pub(crate) history: VecDeque<[f64; 2]>,
    pub(crate) watched: Option<Watched>,
    pub(crate) stats: Stats,
    /// What runs, and what it does not see.
    pub(crate) title: String,
    pub(crate) limits: Vec<String>,
    /// What went wrong meanwhile.
    pub(crate) note: String,
}

impl App {
    pub(crate) fn new(title: String, limits: Vec<String>, options: &Options, show: Show) -> Self {
        Self {
            tab: 0,
            orders: Tab::ALL.iter().map(|(tab, _)| tab.order()).collect(),
            wanted: Wanted::new(options),
            is_typing: false,
            is_paused: false,
            has_help: false,
            has_limits: false,
            has_details: false,
            details_first: 0,
            show,
            selection: Selection::new(),
            failures: Failures::default(),
            rows: Vec::new(),
            whole: Whole::default(),
            history: VecDeque::new(),
            watched: None,
            stats: Stats::default(),
            title,
            limits,
            note: String::new(),
        }
    }

    /// Whether rows are ordered by this column.
    pub(crate) fn is_order(&self, column: usize, title: &str) -> bool {
        match self.order().key {
            Key::Rate => title == "IN/s" || title == "OUT/s",
            Key::Total => title == "IN" || title == "OUT",
            Key::Column(n) => n == column,
        }
    }

    pub(crate) fn order(&self) -> Order {
        self.wanted.order
    }

    pub(crate) fn tab(&self) -> Tab {
        Tab::ALL[self.tab].0
    }

    pub(crate) fn filter(&self) -> &Filter {
        &self.wanted.filter
    }

    /// Once per interval: the rates of this moment, and the rows.
    pub(crate) fn refresh(&mut self, table: &mut ConnectionTable, now: KernelTime, stats: Stats) {
        self.stats = stats;
        let mut whole = Whole::of(table.records_at(now));
        whole.is_cut = table.evicted() > 0;
        remember(&mut self.history, whole.rates);
        self.failures.take(table);
        if !self.is_paused {
            self.whole = whole;
            self.choose_rows(table, now);
            self.watch();
        }
    }

    /// The rows that are on the screen now. Of connections only so many are copied.
    pub(crate) fn choose_rows(&mut self, table: &mut ConnectionTable, now: KernelTime) {
        self.show.now = now;
        self.wanted.now = now;
        let tab = self.tab();
        let Self { wanted, failures, selection, .. } = self;
        self.rows = match tab {
            Tab::Connections | Tab::Failed => {
                let all = connections(tab, wanted, table, failures);
                let compare = |a: &&_, b: &&_| wanted.compare_connections(tab.of_connections(), a, b);
                let page = selection.page(all, |r| Id::of_record(r), compare);
                page.into_iter().map(|r| Row::of_record(r, 0)).collect()
            }
            Tab::Sums(by) => {
                let all = wanted.sums(table, by);
                if wanted.is_flat(&all) {
                    let id = |sum: &Sum| Id::of_group(&sum.group);
                    let page = selection.page(all, id, |a, b| wanted.compare_sums(a, b));
                    page.into_iter().map(Row::of_sum).collect()
                } else {
                    selection.page_of_sorted(wanted.tree(table, all, by), Row::id)
                }
            }
        };
        let selected = self.selected_row().map(Row::id);
        self.selection.settle(selected);
    }

    /// What the chosen row does now becomes part of its history.
    fn watch(&mut self) {
        let Some(row) = self.selected_row().filter(|_| self.has_details) else {
            self.watched = None;
            return;
        };
        let seconds = |rtt: Option<Duration>| rtt.map_or(0.0, |rtt| rtt.as_secs_f64());
        let (id, moment) = match &row.what {
            What::Connection(r) => (row.id(), [r.rate_in, r.rate_out, seconds(r.rtt)]),
            What::Sum(sum) => (row.id(), [sum.rate_in, sum.rate_out, seconds(sum.rtt)]),
        };
        let watched = self.watched.take().filter(|watched| watched.id == id);
        let mut watched = watched.unwrap_or(Watched { id, history: VecDeque::new() });
        remember(&mut watched.history, moment);
        self.watched = Some(watched);
    }

    /// The titles of the columns, with their ranks.
    pub(crate) fn heads(&self) -> Vec<(&'static str, u8, Kind)> {
        let Tab::Sums(_) = self.tab() else { return heads(self.tab().of_connections()) };
        let mut heads = heads(&SUMS);
        if self.rows.iter().any(|row| matches!(row.what, What::Connection(_))) {
            heads[0].2 = Kind::Ends;
        }
        heads
    }

    /// The lines on the screen. `marks` are for rows that are closed and open.
    pub(crate) fn lines(&self, marks: [&str; 2], has_unicode: bool) -> Vec<Line> {
        let cells = |row: &Row| match (&row.what, self.tab()) {
            (What::Connection(r), Tab::Sums(_)) => in_a_sum(r, &self.show, has_unicode),
            (What::Connection(r), tab) => cells(tab.of_connections(), r.as_ref(), &self.show),
            (What::Sum(sum), _) => cells(&SUMS, sum.as_ref(), &self.show),
        };
        let line = |row: &Row| {
            let mut cells = cells(row);
            if let Tab::Sums(_) = self.tab() {
                let mark = match row.what {
                    What::Sum(_) => marks[usize::from(row.is_open)],
                    What::Connection(_) => "  ",
                };
                cells[0] = format!("{}{mark}{}", "  ".repeat(row.depth), cells[0]);
            }
            Line { cells, is_closed: row.is_closed() && self.tab() != Tab::Failed }
        };
        self.rows.iter().map(line).collect()
    }

    pub(crate) fn selected_row(&self) -> Option<&Row> {
        self.rows.get(self.selection.place.checked_sub(self.selection.first)?)
    }

    pub(crate) fn show_tab(&mut self, tab: usize) {
        if tab < Tab::ALL.len() {
            self.tab = tab;
            (self.wanted.order, self.wanted.frozen) = (self.orders[tab], None);
            self.select(Selection::restart);
        }
    }

    pub(crate) fn next_tab(&mut self, back: bool) {
        let all = Tab::ALL.len();
        self.show_tab((self.tab + if back { all - 1 } else { 1 }) % all);
    }

    /// Orders by this; by the same again, the other way round.
    pub(crate) fn order_by(&mut self, key: Key) {
        let order = self.order();
        self.set_order(Order { key, is_reversed: order.key == key && !order.is_reversed });
    }

    /// Orders by the column with this title, if there is one.
    pub(crate) fn order_by_title(&mut self, title: &str) {
        let place = self.heads().iter().position(|(known, ..)| *known == title);
        if let Some(key) = place.map(Key::Column).filter(|key| *key != self.order().key) {
            self.order_by(key);
        }
    }

    pub(crate) fn order_by_next(&mut self, back: bool) {
        let titles = self.heads();
        let rate_in = titles.iter().position(|(title, ..)| *title == "IN/s").unwrap_or(0);
        let column = match self.order().key {
            Key::Column(column) => (column + if back { titles.len() - 1 } else { 1 }) % titles.len(),
            _ => rate_in,
        };
        self.set_order(Order::by(Key::Column(column)));
    }

    pub(crate) fn reverse(&mut self) {
        let order = self.order();
        self.set_order(Order { is_reversed: !order.is_reversed, ..order });
    }

    fn set_order(&mut self, order: Order) {
        self.orders[self.tab] = order;
        (self.wanted.order, self.wanted.frozen) = (order, None);
    }

    /// Keeps the rows in the order that they have now, or lets them go again.
    pub(crate) fn freeze(&mut self, table: &mut ConnectionTable) {
        if self.wanted.frozen.take().is_some() {
            return;
        }
        let (tab, wanted) = (self.tab(), &self.wanted);
        let ids: Vec<_> = match tab {
            Tab::Connections | Tab::Failed => {
                let mut all = connections(tab, wanted, table, &self.failures);
                all.sort_unstable_by(|a, b| wanted.compare_connections(tab.of_connections(), a, b));
                all.into_iter().map(Id::of_record).collect()
            }
            Tab::Sums(by) => {
                let sums = wanted.sums(table, by);
                wanted.tree(table, sums, by).iter().map(Row::id).collect()
            }
        };
        self.wanted.frozen = Some(ids.into_iter().zip(0..).collect());
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.wanted.frozen.is_some()
    }

    /// Selects another row, whose details are shown from the first line.
    pub(crate) fn select(&mut self, change: impl FnOnce(&mut Selection)) {
        change(&mut self.selection);
        self.details_first = 0;
    }

    /// Shows what is below a sum, or the details of a connection.
    pub(crate) fn open_or_describe(&mut self) {
        match self.selected_row().map(|row| (&row.what, row.id())) {
            Some((What::Sum(_), id)) => {
                self.selection.follow();
                if !self.wanted.open.remove(&id) {
                    self.wanted.open.insert(id);
                }
            }
            _ => self.describe(),
        }
    }

    /// Details of the chosen row, which stays chosen.
    pub(crate) fn describe(&mut self) {
        self.has_details ^= true;
        self.selection.follow();
    }

    pub(crate) fn change_filter(&mut self, change: impl FnOnce(&mut String)) {
        let mut text = self.filter().text().to_owned();
        change(&mut text);
        self.wanted.filter = Filter::new(&text);
        self.select(Selection::restart);
    }
}

/// The rows of a tab of connections, in no order.
fn connections<'a>(
    tab: Tab,
    wanted: &Wanted,
    table: &'a ConnectionTable,
    failures: &'a Failures,
) -> Vec<&'a ConnectionRecord> {
    if tab == Tab::Failed {
        failures.iter().filter(|r| wanted.matches(r)).collect()
    } else {
        wanted.connections(table)
    }
}

fn remember<T>(history: &mut VecDeque<T>, moment: T) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(moment);
}

fn heads<T>(columns: &[Column<T>]) -> Vec<(&'static str, u8, Kind)> {
    columns.iter().map(|column| (column.title, column.rank, column.kind)).collect()
}

fn cells<T>(columns: &[Column<T>], row: &T, show: &Show) -> Vec<String> {
    columns.iter().map(|column| (column.cell)(row, show)).collect()
}
