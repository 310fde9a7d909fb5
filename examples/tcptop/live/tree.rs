// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows of a tab in their order, with what is below those that are open.

use super::columns::{Column, SUMS};
use super::filter::Filter;
use crate::options::Options;
use crate::rows::{self, Column as By};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;
use tcptop::{
    CgroupId, ConnectionKey, ConnectionRecord, ConnectionTable, Group, GroupBy, KernelTime, Process, Sum,
};

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The rates in and out together.
    Rate,
    /// The totals in and out together.
    Total,
    /// A column, by its place.
    Column(usize),
}

/// How rows of a tab are ordered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) key: Key,
    pub(crate) is_reversed: bool,
}

impl Order {
    pub(crate) fn by(key: Key) -> Self {
        Self { key, is_reversed: false }
    }

    fn compare<T>(
        self,
        columns: &[Column<T>],
        numbers: impl Fn(&T) -> ([f64; 2], [u64; 2]),
        a: &T,
        b: &T,
    ) -> Ordering {
        let (a, b) = if self.is_reversed { (b, a) } else { (a, b) };
        let ((rates_a, totals_a), (rates_b, totals_b)) = (numbers(a), numbers(b));
        match self.key {
            Key::Rate => (rates_b[0] + rates_b[1]).total_cmp(&(rates_a[0] + rates_a[1])),
            Key::Total => (totals_b[0] + totals_b[1]).cmp(&(totals_a[0] + totals_a[1])),
            Key::Column(n) => (columns[n].compare)(a, b),
        }
    }
}

/// By which a row is known again at the next refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Connection(ConnectionKey, KernelTime, Option<u64>),
    /// Names, users and cgroups may change; this does not.
    Process {
        pid: u32,
        started: u64,
        host: Option<IpAddr>,
    },
    Group(Group),
}

impl Id {
    pub(crate) fn of_record(r: &ConnectionRecord) -> Self {
        Self::Connection(r.key, r.first_seen, r.socket)
    }

    pub(crate) fn of_group(group: &Group) -> Self {
        let process = |p: &Process, host| Self::Process { pid: p.pid, started: p.start_time_ns / TICK, host };
        match group {
            Group::Process(p) => process(p, None),
            Group::ProcessAndHost(p, host) => process(p, Some(*host)),
            other => Self::Group(*other),
        }
    }
}

#[derive(Debug)]
pub(crate) enum What {
    Connection(Box<ConnectionRecord>),
    Sum(Box<Sum>),
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: What,
    /// How far below the rows of its tab.
    pub(crate) depth: usize,
    /// Whether what is below it is shown.
    pub(crate) is_open: bool,
}

impl Row {
    pub(crate) fn of_record(r: &ConnectionRecord, depth: usize) -> Self {
        Self { what: What::Connection(Box::new(r.clone())), depth, is_open: false }
    }

    pub(crate) fn of_sum(sum: Sum) -> Self {
        Self { what: What::Sum(Box::new(sum)), depth: 0, is_open: false }
    }

    pub(crate) fn id(&self) -> Id {
        match &self.what {
            What::Connection(r) => Id::of_record(r),
            What::Sum(sum) => Id::of_group(&sum.group),
        }
    }

    /// Nothing of it goes on.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.what {
            What::Connection(r) => r.is_closed,
            What::Sum(sum) => sum.open == 0,
        }
    }
}

/// Which rows are wanted, and in which order.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) filter: Filter,
    /// Of the options: where the kernel cannot judge it lets all pass.
    pub(crate) ports: Vec<u16>,
    pub(crate) order: Order,
    /// When the rows are chosen.
    pub(crate) now: KernelTime,
    /// For so long ended connections are shown.
    pub(crate) linger: Duration,
    /// Rows below which others are shown.
    pub(crate) open: HashSet<Id>,
    /// The places of rows, while their order is kept.
    pub(crate) frozen: Option<HashMap<Id, usize>>,
}

impl Wanted {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            filter: options.filter.clone().unwrap_or_default(),
            ports: options.port.clone(),
            order: Order::by(Key::Rate),
            now: KernelTime(0),
            linger: options.linger(),
            open: HashSet::new(),
            frozen: None,
        }
    }

    /// Also where it has ended long ago.
    pub(crate) fn matches(&self, r: &ConnectionRecord) -> bool {
        rows::has_port(r, &self.ports) && self.filter.passes(r)
    }

    fn passes(&self, r: &ConnectionRecord) -> bool {
        rows::is_recent(r, self.now, self.linger) && self.matches(r)
    }

    fn is_all(&self) -> bool {
        self.ports.is_empty() && self.filter.is_empty()
    }

    fn place(&self, id: Id) -> usize {
        self.frozen.as_ref().and_then(|places| places.get(&id)).copied().unwrap_or(usize::MAX)
    }

    pub(crate) fn connections<'t>(&self, table: &'t ConnectionTable) -> Vec<&'t ConnectionRecord> {
        table.records().filter(|r| self.passes(r)).collect()
    }

    pub(crate) fn compare_connections(
        &self,
        columns: &[Column<ConnectionRecord>],
        a: &ConnectionRecord,
        b: &ConnectionRecord,
    ) -> Ordering {
        let rest = |r: &ConnectionRecord| (r.key, r.first_seen, r.socket);
        let order = match &self.frozen {
            Some(_) => self.place(Id::of_record(a)).cmp(&self.place(Id::of_record(b))),
            None => Ordering::Equal,
        };
        let numbers = |r: &ConnectionRecord| ([r.rate_in, r.rate_out], [r.bytes_in, r.bytes_out]);
        order.then_with(|| self.order.compare(columns, numbers, a, b)).then_with(|| rest(a).cmp(&rest(b)))
    }

    pub(crate) fn compare_sums(&self, a: &Sum, b: &Sum) -> Ordering {
        let place = |sum: &Sum| self.place(Id::of_group(&sum.group));
        let numbers = |sum: &Sum| ([sum.rate_in, sum.rate_out], [sum.bytes_in, sum.bytes_out]);
        let order = place(a).cmp(&place(b)).then_with(|| self.order.compare(&SUMS, numbers, a, b));
        order.then_with(|| rows::compare_groups(&a.group, &b.group))
    }

    /// The sums of a tab, in no order.
    pub(crate) fn sums(&self, table: &mut ConnectionTable, by: GroupBy) -> Vec<Sum> {
        if self.is_all() { table.sums(by, self.now) } else { table.sums_of(by, self.now, |r| self.passes(r)) }
    }

    /// Whether none of them is open.
    pub(crate) fn is_flat(&self, sums: &[Sum]) -> bool {
        self.open.is_empty() || !sums.iter().any(|sum| self.open.contains(&Id::of_group(&sum.group)))
    }

    /// All rows of a tab of sums.
    pub(crate) fn tree(&self, table: &mut ConnectionTable, sums: Vec<Sum>, by: GroupBy) -> Vec<Row> {
        let mut rows = Vec::new();
        self.add(&mut rows, table, sums, by, None);
        rows
    }

    /// Adds sums in their order, each with what is below it.
    fn add(
        &self,
        rows: &mut Vec<Row>,
        table: &mut ConnectionTable,
        mut sums: Vec<Sum>,
        by: GroupBy,
        cgroup: Option<CgroupId>,
    ) {
        sums.sort_unstable_by(|a, b| self.compare_sums(a, b));
        for sum in sums {
            let (group, is_open) = (sum.group, self.open.contains(&Id::of_group(&sum.group)));
            rows.push(Row { depth: cgroup.is_some().into(), is_open, ..Row::of_sum(sum) });
            match group {
                _ if !is_open => {}
                Group::Cgroup(id) => {
                    let of_it = |r: &ConnectionRecord| cgroup_of(r) == Some(id) && self.passes(r);
                    let processes = table.sums_of(GroupBy::Process, self.now, of_it);
                    self.add(rows, table, processes, GroupBy::Process, Some(id));
                }
                _ => {
                    let is_below = |r: &&ConnectionRecord| {
                        is_of(by, &group, r) && cgroup.is_none_or(|id| cgroup_of(r) == Some(id))
                    };
                    let mut below: Vec<_> = self.connections(table).into_iter().filter(is_below).collect();
                    let place = |r: &ConnectionRecord| self.place(Id::of_record(r));
                    below.sort_unstable_by(|a, b| {
                        place(a).cmp(&place(b)).then_with(|| By::Rate.compare(a, b))
                    });
                    let depth = 1 + usize::from(cgroup.is_some());
                    rows.extend(below.into_iter().map(|r| Row::of_record(r, depth)));
                }
            }
        }
    }
}

fn cgroup_of(r: &ConnectionRecord) -> Option<CgroupId> {
    r.owner.and_then(|owner| owner.cgroup_id)
}

/// Whether a connection counts in this sum.
fn is_of(by: GroupBy, group: &Group, r: &ConnectionRecord) -> bool {
    let owner = |p: &Process| {
        r.owner
            .is_some_and(|owner| (owner.pid, owner.start_time_ns / TICK) == (p.pid, p.start_time_ns / TICK))
    };
    match group {
        Group::Process(p) => owner(p),
        Group::ProcessAndHost(p, host) => owner(p) && r.key.remote_addr == *host,
        Group::RemoteHost(host) => r.key.remote_addr == *host,
        Group::Cgroup(id) => cgroup_of(r) == Some(*id),
        Group::LocalPort(protocol, port) => (r.key.protocol, r.key.local_port) == (*protocol, *port),
        Group::RemotePort(protocol, port) => (r.key.protocol, r.key.remote_port) == (*protocol, *port),
        Group::Unknown => match by {
            GroupBy::Process => r.owner.is_none(),
            GroupBy::Cgroup => cgroup_of(r).is_none(),
            GroupBy::LocalPort => r.key.local_port == 0,
            GroupBy::RemotePort => r.key.remote_port == 0,
            _ => r.key.remote_addr.is_unspecified(),
        },
        _ => false,
    }
}

/// Start times are known as exactly as /proc has them.
const TICK: u64 = 10_000_000;
