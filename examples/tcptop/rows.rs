// SPDX-License-Identifier: MIT OR Apache-2.0
//! Records as rows of a table: their order, their columns, and how these are aligned.

use crate::cgroups;
use clap::ValueEnum;
use std::cmp::{Ordering, Reverse};
use std::time::Duration;
use tcptop::{CloseReason, ConnectFailure, ConnectionRecord, Group, KernelTime, Sum, TcpState};

/// What rows can be ordered by: numbers with the largest first, names and addresses with the first first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Column {
    Rate,
    Total,
    In,
    Out,
    Rtt,
    Retransmits,
    Duration,
    Pid,
    Process,
    Local,
    Remote,
    State,
}

impl Column {
    /// Rows that are equal in this column are in the order of their bytes, then of their sockets: so no row jumps.
    pub(crate) fn compare(self, one: &ConnectionRecord, other: &ConnectionRecord) -> Ordering {
        let bytes = |r: &ConnectionRecord| r.bytes_in + r.bytes_out;
        let order = match self {
            Self::Rate => {
                let rate = |r: &ConnectionRecord| (r.rate_in + r.rate_out) as u64;
                rate(other).cmp(&rate(one))
            }
            Self::Total => Ordering::Equal,
            Self::In => other.bytes_in.cmp(&one.bytes_in),
            Self::Out => other.bytes_out.cmp(&one.bytes_out),
            Self::Rtt => other.rtt.cmp(&one.rtt),
            Self::Retransmits => other.retransmits.cmp(&one.retransmits),
            Self::Duration => other.duration().cmp(&one.duration()),
            Self::Pid => one.pid().cmp(&other.pid()),
            Self::Process => {
                let name = |r: &ConnectionRecord| r.process_name().map(|name| name.as_str().to_owned());
                name(one).cmp(&name(other))
            }
            Self::Local => one.key.local().cmp(&other.key.local()),
            Self::Remote => one.key.remote().cmp(&other.key.remote()),
            Self::State => state(one).cmp(state(other)),
        };
        let rest = |r: &ConnectionRecord| (Reverse(bytes(r)), r.key, r.first_seen);
        order.then_with(|| rest(one).cmp(&rest(other)))
    }
}

/// A column of a table.
pub(crate) struct Field<T> {
    title: &'static str,
    /// Numbers end at the right of their column, text begins at the left.
    is_number: bool,
    cell: fn(&T) -> String,
}

impl<T> Field<T> {
    pub(crate) const fn text(title: &'static str, cell: fn(&T) -> String) -> Self {
        Self { title, is_number: false, cell }
    }

    pub(crate) const fn number(title: &'static str, cell: fn(&T) -> String) -> Self {
        Self { title, is_number: true, cell }
    }
}

type OfRecord = Field<ConnectionRecord>;

const ENDS: [OfRecord; 6] = [
    Field::text("PROTO", |r| r.key.protocol.to_string()),
    Field::text("LOCAL", |r| end(r.key.local())),
    Field::text("REMOTE", |r| end(r.key.remote())),
    Field::text("STATE", |r| state(r).into()),
    Field::text("PID", pid),
    Field::text("PROCESS", process),
];

const TOTALS: [OfRecord; 3] = [
    Field::number("IN", |r| total(r, r.bytes_in)),
    Field::number("OUT", |r| total(r, r.bytes_out)),
    Field::number("RTT", |r| millis(r.rtt)),
];

/// While it runs.
pub(crate) const LIVE: [&[OfRecord]; 3] = [
    &ENDS,
    &[Field::number("IN/s", |r| amount(r.rate_in)), Field::number("OUT/s", |r| amount(r.rate_out))],
    &TOTALS,
];

/// Once.
pub(crate) const FINAL: [&[OfRecord]; 3] = [&ENDS, &TOTALS, &[Field::number("RETRANS", retransmits)]];

pub(crate) fn pid(r: &ConnectionRecord) -> String {
    r.pid().map_or("-".into(), |pid| pid.to_string())
}

/// Escaped, because a process chooses its name: it must not talk to the terminal.
pub(crate) fn process(r: &ConnectionRecord) -> String {
    r.process_name().map_or("-".into(), |name| name.escaped().to_string())
}

/// Segments that were sent again, where that is known.
pub(crate) fn retransmits(r: &ConnectionRecord) -> String {
    r.retransmits.map_or("-".into(), |segments| segments.to_string())
}

/// Whether one of these ports is at an end; any does if there are none.
pub(crate) fn has_port(r: &ConnectionRecord, ports: &[u16]) -> bool {
    ports.is_empty() || [r.key.local_port, r.key.remote_port].iter().any(|port| ports.contains(port))
}

/// It is open, or has ended less than this time ago.
pub(crate) fn is_recent(r: &ConnectionRecord, now: KernelTime, linger: Duration) -> bool {
    r.closed_at.is_none_or(|end| now.saturating_since(end) <= linger)
}

/// Bytes of a sum that moved while this ran, in and out together.
pub(crate) fn traced(sum: &Sum) -> u64 {
    sum.traced_bytes_in + sum.traced_bytes_out
}

/// What a sum is of.
pub(crate) fn group(sum: &Sum) -> String {
    group_name(&sum.group)
}

pub(crate) fn group_name(group: &Group) -> String {
    match *group {
        Group::Cgroup(id) => cgroups::name(id),
        _ => group.to_string(),
    }
}

/// As people look for them: processes and cgroups by name, hosts and ports by number.
pub(crate) fn compare_groups(one: &Group, other: &Group) -> Ordering {
    match (one, other) {
        (Group::Process(a), Group::Process(b)) => a.name.cmp(&b.name).then_with(|| one.cmp(other)),
        (Group::Cgroup(a), Group::Cgroup(b)) => cgroups::name(*a).cmp(&cgroups::name(*b)),
        _ => one.cmp(other),
    }
}

/// Both ends are on this machine: each byte is out of one row and into another.
pub(crate) fn is_local(r: &ConnectionRecord) -> bool {
    let (local, remote) = (r.key.local_addr, r.key.remote_addr);
    local.is_loopback() || remote.is_loopback() || (local == remote && !local.is_unspecified())
}

/// The process of a sum by process and host.
pub(crate) fn group_process(sum: &Sum) -> String {
    match sum.group {
        Group::ProcessAndHost(process, _) => Group::Process(process).to_string(),
        group => group.to_string(),
    }
}

/// The host of a sum by process and host.
pub(crate) fn group_host(sum: &Sum) -> String {
    match sum.group {
        Group::ProcessAndHost(_, host) => host.to_string(),
        _ => "-".into(),
    }
}

pub(crate) fn end(address: std::net::SocketAddr) -> String {
    if address.port() == 0 { "*".into() } else { address.to_string() }
}

pub(crate) fn state(r: &ConnectionRecord) -> &'static str {
    match r.tcp_state {
        _ if r.connect_failure.is_some() => r.connect_failure.map_or("", ConnectFailure::as_str),
        // Its end was lost, and found out later.
        Some(_) if r.is_closed && !r.is_end_seen => "gone",
        // All but the usual end.
        Some(TcpState::Close) if r.close_reason != Some(CloseReason::Orderly) => {
            r.close_reason.map_or("close", CloseReason::as_str)
        }
        Some(state) => TcpState::as_str(state),
        None if r.is_closed => "close",
        None => "-",
    }
}

pub(crate) fn total(r: &ConnectionRecord, bytes: u64) -> String {
    format!("{}{}", if r.is_partial { "~" } else { "" }, amount(bytes as f64))
}

pub(crate) fn millis(time: Option<Duration>) -> String {
    time.map_or("-".into(), |time| format!("{:.2}ms", time.as_secs_f64() * 1000.0))
}

/// Bytes in steps of 1024.
pub(crate) fn amount(bytes: f64) -> String {
    let step = (bytes.max(1.0).log2() as usize / 10).min(4);
    format!("{:.*}{}", step.min(1), bytes / 1024_f64.powi(step as i32), ["", "K", "M", "G", "T"][step])
}

/// The first `most` in this order, and how many there are beyond.
pub(crate) fn first<T>(
    mut all: Vec<T>,
    most: usize,
    compare: impl Fn(&T, &T) -> Ordering,
) -> (Vec<T>, usize) {
    let rest = all.len().saturating_sub(most);
    if rest > 0 && most > 0 {
        all.select_nth_unstable_by(most - 1, &compare);
    }
    all.truncate(most);
    all.sort_by(compare);
    (all, rest)
}

/// A title line, and a line for each row.
pub(crate) fn table<T>(fields: &[&[Field<T>]], rows: &[&T]) -> String {
    let fields: Vec<_> = fields.iter().copied().flatten().collect();
    let mut lines = vec![fields.iter().map(|field| field.title.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| fields.iter().map(|field| (field.cell)(row)).collect()));
    let width = |i: usize| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..fields.len()).map(width).collect();
    let pad = |line: &Vec<String>| {
        let cells = line.iter().zip(&fields).zip(&widths).map(|((cell, field), width)| {
            if field.is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(pad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcptop::{ConnectionInfo, ConnectionKey, ConnectionTable, Direction, GroupBy, Protocol, Transfer};

    /// Both directions, and also what an earlier look has seen.
    #[test]
    fn what_moved_is_that_of_the_whole_run() {
        let key = ConnectionKey::new(Protocol::Tcp, [10, 0, 0, 9].into(), 4000, [192, 0, 2, 7].into(), 443);
        let info = ConnectionInfo::new(key, 1, KernelTime(1));
        let mut table = ConnectionTable::new();
        for (direction, bytes) in [(Direction::In, 5), (Direction::Out, 700)] {
            table.apply(&Transfer::new(info, direction, bytes, bytes).into());
        }
        for _ in 0..2 {
            assert_eq!(table.sums(GroupBy::Process, KernelTime(2)).iter().map(traced).sum::<u64>(), 705);
        }
    }
}
