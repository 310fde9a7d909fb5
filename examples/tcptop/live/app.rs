// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the screen shows, and what keys and mouse change. Knows neither the terminal nor the clock.

use super::columns::{CONNECTIONS, Column, Kind, SUMS, Show, Tab, in_a_sum};
use super::filter::Filter;
use super::tree::{Id, Key, Order, Row, Wanted, What};
use crate::options::Options;
use crate::rows;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
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
    orders: Vec<Order>,
    pub(crate) filter: Filter,
    /// Of the options: where the kernel cannot judge it lets all pass.
    ports: Vec<u16>,
    /// Of the options: for so long ended connections are shown.
    linger: Duration,
    /// A filter is being typed.
    pub(crate) is_typing: bool,
    pub(crate) is_paused: bool,
    pub(crate) has_help: bool,
    pub(crate) has_limits: bool,
    pub(crate) has_details: bool,
    pub(crate) show: Show,
    /// Of all rows, the one that is chosen, and the first on the screen.
    pub(crate) selected: usize,
    pub(crate) first: usize,
    /// The chosen row, which the selection follows; none before one is chosen.
    chosen: Option<Id>,
    is_choosing: bool,
    /// Rows below which others are shown.
    open: HashSet<Id>,
    /// The places of rows, while their order is kept.
    frozen: Option<HashMap<Id, usize>>,
    /// How many rows the screen has; known when it is drawn.
    pub(crate) height: usize,
    /// Those on the screen.
    rows: Vec<Row>,
    /// How many there are.
    pub(crate) matching: usize,
    pub(crate) whole: Whole,
    pub(crate) history: VecDeque<[f64; 2]>,
    pub(crate) watched: Option<Watched>,
    pub(crate) stats: Stats,
    /// When the rows were chosen.
    pub(crate) now: KernelTime,
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
            orders: vec![Order::by(Key::Rate); Tab::ALL.len()],
            filter: options.filter.clone().unwrap_or_default(),
            ports: options.port.clone(),
            linger: options.linger(),
            is_typing: false,
            is_paused: false,
            has_help: false,
            has_limits: false,
            has_details: false,
            show,
            selected: 0,
            first: 0,
            chosen: None,
            is_choosing: false,
            open: HashSet::new(),
            frozen: None,
            height: 1,
            rows: Vec::new(),
            matching: 0,
            whole: Whole::default(),
            history: VecDeque::new(),
            watched: None,
            stats: Stats::default(),
            now: KernelTime(0),
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
        self.orders[self.tab]
    }

    pub(crate) fn tab(&self) -> Tab {
        Tab::ALL[self.tab].0
    }

    /// Once per interval: the rates of this moment, and the rows.
    pub(crate) fn refresh(&mut self, table: &mut ConnectionTable, now: KernelTime, stats: Stats) {
        self.stats = stats;
        let whole = Whole::of(table.records_at(now));
        remember(&mut self.history, whole.rates);
        if !self.is_paused {
            self.whole = whole;
            self.choose_rows(table, now);
            self.watch();
        }
    }

    /// The rows that are on the screen now. Of connections only so many are copied.
    pub(crate) fn choose_rows(&mut self, table: &mut ConnectionTable, now: KernelTime) {
        self.now = now;
        let (open, frozen) = (std::mem::take(&mut self.open), self.frozen.take());
        let filter = self.filter.clone();
        let ports = std::mem::take(&mut self.ports);
        let wanted = Wanted {
            filter: &filter,
            ports: &ports,
            order: self.order(),
            now,
            linger: self.linger,
            open: &open,
            frozen: frozen.as_ref(),
        };
        self.rows = match self.tab() {
            Tab::Connections => {
                let all = wanted.connections(table);
                let page = self.page(all, |r| Id::of_record(r), |a, b| wanted.compare_connections(a, b));
                page.into_iter().map(|r| Row::of_record(r, 0)).collect()
            }
            Tab::Sums(by) => {
                let all = wanted.sums(table, by);
                if wanted.is_flat(&all) {
                    let id = |sum: &Sum| Id::of_group(&sum.group);
                    let page = self.page(all, id, |a, b| wanted.compare_sums(a, b));
                    page.into_iter().map(Row::of_sum).collect()
                } else {
                    let all = wanted.tree(table, all, by);
                    let place = self.chosen.and_then(|id| all.iter().position(|row| row.id() == id));
                    self.stay_within(all.len(), place);
                    all.into_iter().skip(self.first).take(self.height).collect()
                }
            }
        };
        (self.open, self.frozen, self.ports) = (open, frozen, ports);
        if std::mem::take(&mut self.is_choosing) {
            self.chosen = self.selected_row().map(Row::id);
        }
    }

    /// Those of these rows that are on the screen, in their order.
    fn page<T>(
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

    /// So many rows there are, and the chosen one is at this place.
    fn stay_within(&mut self, all: usize, place: Option<usize>) {
        self.matching = all;
        if !self.is_choosing {
            self.selected = place.unwrap_or(self.selected);
        }
        self.selected = self.selected.min(all.saturating_sub(1));
        self.first = self.first.min(self.selected).max((self.selected + 1).saturating_sub(self.height));
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
        let Tab::Sums(_) = self.tab() else { return heads(&CONNECTIONS) };
        let mut heads = heads(&SUMS);
        if self.rows.iter().any(|row| matches!(row.what, What::Connection(_))) {
            heads[0].2 = Kind::Ends;
        }
        heads
    }

    /// The lines on the screen. `marks` are for rows that are closed and open.
    pub(crate) fn lines(&self, marks: [&str; 2], has_unicode: bool) -> Vec<Line> {
        let cells = |row: &Row| match (&row.what, self.tab()) {
            (What::Connection(r), Tab::Connections) => cells(&CONNECTIONS, r.as_ref(), &self.show),
            (What::Connection(r), _) => in_a_sum(r, &self.show, has_unicode),
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
            Line { cells, is_closed: row.is_closed() }
        };
        self.rows.iter().map(line).collect()
    }

    pub(crate) fn selected_row(&self) -> Option<&Row> {
        self.rows.get(self.selected.checked_sub(self.first)?)
    }

    pub(crate) fn show_tab(&mut self, tab: usize) {
        if tab < Tab::ALL.len() {
            (self.tab, self.selected, self.first) = (tab, 0, 0);
            (self.chosen, self.frozen) = (None, None);
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
        self.frozen = None;
    }

    /// Keeps the rows in the order that they have now, or lets them go again.
    pub(crate) fn freeze(&mut self, table: &mut ConnectionTable) {
        if self.frozen.take().is_some() {
            return;
        }
        let (filter, ports, open) = (&self.filter, &self.ports[..], &self.open);
        let (now, linger) = (self.now, self.linger);
        let wanted = Wanted { filter, ports, order: self.order(), now, linger, open, frozen: None };
        let ids: Vec<_> = match self.tab() {
            Tab::Connections => {
                let mut all = wanted.connections(table);
                all.sort_unstable_by(|a, b| wanted.compare_connections(a, b));
                all.into_iter().map(Id::of_record).collect()
            }
            Tab::Sums(by) => {
                let sums = wanted.sums(table, by);
                wanted.tree(table, sums, by).iter().map(Row::id).collect()
            }
        };
        self.frozen = Some(ids.into_iter().zip(0..).collect());
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub(crate) fn select(&mut self, step: isize) {
        self.select_at(self.selected.saturating_add_signed(step));
    }

    /// The row at this place.
    pub(crate) fn select_at(&mut self, place: usize) {
        self.selected = place.min(self.matching.saturating_sub(1));
        self.is_choosing = true;
    }

    /// Shows what is below a sum, or the details of a connection.
    pub(crate) fn open_or_describe(&mut self) {
        self.is_choosing = true;
        match self.selected_row().map(|row| (&row.what, row.id())) {
            Some((What::Sum(_), id)) => {
                if !self.open.remove(&id) {
                    self.open.insert(id);
                }
            }
            _ => self.has_details ^= true,
        }
    }

    /// Details of the chosen row, which stays chosen.
    pub(crate) fn describe(&mut self) {
        self.has_details ^= true;
        self.is_choosing = true;
    }

    pub(crate) fn change_filter(&mut self, change: impl FnOnce(&mut String)) {
        let mut text = self.filter.text().to_owned();
        change(&mut text);
        self.filter = Filter::new(&text);
        (self.selected, self.first, self.chosen) = (0, 0, None);
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
