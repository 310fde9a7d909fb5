// SPDX-License-Identifier: MIT OR Apache-2.0
//! The columns of each tab: what they show, what rows are ordered by, and which go first where there is no room.

use super::tree::{Key, Order};
use crate::names::{Executables, Hosts, Services};
use crate::rows::{self, Column as By, amount, millis};
use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tcptop::{ConnectionRecord, Group, GroupBy, KernelTime, Sum};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tab {
    Connections,
    Sums(GroupBy),
    /// Failed connects.
    Failed,
}

impl Tab {
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Connections, "Connections"),
        (Self::Sums(GroupBy::Process), "Processes"),
        (Self::Sums(GroupBy::RemoteHost), "Hosts"),
        (Self::Sums(GroupBy::Cgroup), "Cgroups"),
        (Self::Sums(GroupBy::LocalPort), "Ports"),
        (Self::Sums(GroupBy::RemotePort), "Services"),
        (Self::Failed, "Failed"),
    ];

    /// The columns of its connections.
    pub(crate) fn of_connections(self) -> &'static [Column<ConnectionRecord>] {
        if self == Self::Failed { &FAILED } else { &CONNECTIONS }
    }

    /// The order of its rows before another one is chosen: the busiest first, of failed connects the latest.
    pub(crate) fn order(self) -> Order {
        Order::by(if self == Self::Failed { Key::Column(FAILED.len() - 1) } else { Key::Rate })
    }

    /// The title of what its rows are of.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Connections | Self::Failed | Self::Sums(GroupBy::Process) => "PROCESS",
            Self::Sums(GroupBy::RemoteHost) => "REMOTE HOST",
            Self::Sums(GroupBy::Cgroup) => "CGROUP",
            Self::Sums(GroupBy::LocalPort) => "LOCAL PORT",
            Self::Sums(_) => "REMOTE PORT",
        }
    }
}

/// A column of rows of this kind.
pub(crate) struct Column<T> {
    pub(crate) title: &'static str,
    /// 0 is always shown; of the others the highest is left out first.
    pub(crate) rank: u8,
    pub(crate) kind: Kind,
    pub(crate) cell: fn(&T, &Show) -> String,
    /// In the order in which the column is sorted when it is chosen.
    pub(crate) compare: fn(&T, &T) -> Ordering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ends at the right of its column.
    Number,
    /// Begins at the left.
    Text,
    /// Likewise, and is cut at its end where there is no room.
    Wide,
    /// Likewise, and is cut before its port.
    Address,
    /// Likewise, with both ends of connections, which want to be read: other columns go before they are cut.
    Ends,
}

/// How amounts are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Units {
    /// Bytes in steps of 1024.
    #[default]
    Bytes,
    /// Bytes in steps of 1000.
    Decimal,
    /// Rates in bits, in steps of 1000; totals in bytes, likewise.
    Bits,
}

impl Units {
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Bytes => Self::Decimal,
            Self::Decimal => Self::Bits,
            Self::Bits => Self::Bytes,
        }
    }

    pub(crate) fn rate(self, bytes: f64) -> String {
        if self == Self::Bits { decimal(bytes * 8.0, "b") } else { self.total(bytes) }
    }

    pub(crate) fn total(self, bytes: f64) -> String {
        if self == Self::Bytes { amount(bytes) } else { decimal(bytes, "B") }
    }
}

fn decimal(number: f64, unit: &str) -> String {
    let step = (number.max(1.0).log10() as usize / 3).min(4);
    format!("{:.*}{}{unit}", step.min(1), number / 1000_f64.powi(step as i32), ["", "k", "M", "G", "T"][step])
}

/// How cells are shown.
pub(crate) struct Show {
    /// When the rows were chosen.
    pub(crate) now: KernelTime,
    pub(crate) units: Units,
    /// Names of hosts, if they are wanted.
    pub(crate) hosts: Option<Hosts>,
    pub(crate) services: Services,
    /// None in tests.
    pub(crate) executables: Option<Executables>,
}

impl Show {
    pub(crate) fn end(&self, end: SocketAddr) -> String {
        match self.hosts.as_ref().and_then(|hosts| hosts.name(end.ip())) {
            Some(name) if end.port() != 0 => format!("{name}:{}", end.port()),
            _ => rows::end(end),
        }
    }

    pub(crate) fn host(&self, address: IpAddr) -> String {
        let name = self.hosts.as_ref().and_then(|hosts| hosts.name(address));
        name.map_or_else(|| address.to_string(), |name| format!("{name} ({address})"))
    }

    pub(crate) fn group(&self, group: &Group) -> String {
        match *group {
            Group::RemoteHost(address) => self.host(address),
            Group::LocalPort(protocol, port) | Group::RemotePort(protocol, port) => {
                let name = self.services.name(protocol, port).map(|name| format!(" {name}"));
                format!("{group}{}", name.unwrap_or_default())
            }
            _ => rows::group_name(group),
        }
    }

    fn of_row(&self, r: &ConnectionRecord, bytes: u64) -> String {
        self.marked(r.is_partial, bytes)
    }

    fn of_sum(&self, sum: &Sum, bytes: u64) -> String {
        self.marked(sum.is_partial, bytes)
    }

    /// `~`: at least so many.
    fn marked(&self, is_partial: bool, bytes: u64) -> String {
        format!("{}{}", if is_partial { "~" } else { "" }, self.units.total(bytes as f64))
    }
}

const fn text<T>(
    title: &'static str,
    rank: u8,
    kind: Kind,
    cell: fn(&T, &Show) -> String,
    compare: fn(&T, &T) -> Ordering,
) -> Column<T> {
    Column { title, rank, kind, cell, compare }
}

const fn number<T>(
    title: &'static str,
    rank: u8,
    cell: fn(&T, &Show) -> String,
    compare: fn(&T, &T) -> Ordering,
) -> Column<T> {
    Column { title, rank, kind: Kind::Number, cell, compare }
}

/// Of connections.
const CONNECTIONS: [Column<ConnectionRecord>; 13] = [
    text("PROCESS", 0, Kind::Wide, |r, _| rows::process(r), |a, b| By::Process.compare(a, b)),
    text("PID", 4, Kind::Number, |r, _| rows::pid(r), |a, b| By::Pid.compare(a, b)),
    text(
        "PROTO",
        6,
        Kind::Text,
        |r, _| r.key.protocol.to_string(),
        |a, b| a.key.protocol.cmp(&b.key.protocol),
    ),
    text("LOCAL", 3, Kind::Address, |r, show| show.end(r.key.local()), |a, b| By::Local.compare(a, b)),
    text("REMOTE", 0, Kind::Address, |r, show| show.end(r.key.remote()), |a, b| By::Remote.compare(a, b)),
    text("STATE", 2, Kind::Text, |r, _| rows::state(r).into(), |a, b| By::State.compare(a, b)),
    number("IN/s", 0, |r, show| show.units.rate(r.rate_in), |a, b| b.rate_in.total_cmp(&a.rate_in)),
    number("OUT/s", 0, |r, show| show.units.rate(r.rate_out), |a, b| b.rate_out.total_cmp(&a.rate_out)),
    number("IN", 1, |r, show| show.of_row(r, r.bytes_in), |a, b| By::In.compare(a, b)),
    number("OUT", 1, |r, show| show.of_row(r, r.bytes_out), |a, b| By::Out.compare(a, b)),
    number("RTT", 5, |r, _| millis(r.rtt), |a, b| By::Rtt.compare(a, b)),
    number("RETR", 8, |r, _| rows::retransmits(r), |a, b| By::Retransmits.compare(a, b)),
    number("SEEN", 7, |r, _| seconds(r.duration()), |a, b| By::Duration.compare(a, b)),
];

/// Of failed connects.
const FAILED: [Column<ConnectionRecord>; 7] = [
    text("PROCESS", 0, Kind::Wide, |r, _| rows::process(r), |a, b| By::Process.compare(a, b)),
    text("PID", 3, Kind::Number, |r, _| rows::pid(r), |a, b| By::Pid.compare(a, b)),
    text("LOCAL", 5, Kind::Address, |r, show| show.end(r.key.local()), |a, b| By::Local.compare(a, b)),
    text("REMOTE", 0, Kind::Address, |r, show| show.end(r.key.remote()), |a, b| By::Remote.compare(a, b)),
    text("REASON", 1, Kind::Text, |r, _| rows::state(r).into(), |a, b| By::State.compare(a, b)),
    number("AFTER", 4, |r, _| took(r.duration()), |a, b| By::Duration.compare(a, b)),
    number("AGO", 2, |r, show| seconds(since(r, show.now)), |a, b| b.closed_at.cmp(&a.closed_at)),
];

fn since(r: &ConnectionRecord, now: KernelTime) -> Duration {
    r.closed_at.map_or(Duration::ZERO, |end| now.saturating_since(end))
}

/// The title of the column that --sort names; none for what is no column.
pub(crate) fn title(column: By) -> &'static str {
    match column {
        By::Rate | By::Total => "",
        By::In => "IN",
        By::Out => "OUT",
        By::Rtt => "RTT",
        By::Retransmits => "RETR",
        By::Duration => "SEEN",
        By::Pid => "PID",
        By::Process => "PROCESS",
        By::Local => "LOCAL",
        By::Remote => "REMOTE",
        By::State => "STATE",
    }
}

/// Of sums.
pub(crate) const SUMS: [Column<Sum>; 9] = [
    text(
        "GROUP",
        0,
        Kind::Wide,
        |s, show| show.group(&s.group),
        |a, b| rows::compare_groups(&a.group, &b.group),
    ),
    number("OPEN", 3, |s, _| s.open.to_string(), |a, b| b.open.cmp(&a.open)),
    number("CONNS", 4, |s, _| s.connections.to_string(), |a, b| b.connections.cmp(&a.connections)),
    number("IN/s", 0, |s, show| show.units.rate(s.rate_in), |a, b| b.rate_in.total_cmp(&a.rate_in)),
    number("OUT/s", 0, |s, show| show.units.rate(s.rate_out), |a, b| b.rate_out.total_cmp(&a.rate_out)),
    number("IN", 1, |s, show| show.of_sum(s, s.bytes_in), |a, b| b.bytes_in.cmp(&a.bytes_in)),
    number("OUT", 1, |s, show| show.of_sum(s, s.bytes_out), |a, b| b.bytes_out.cmp(&a.bytes_out)),
    number("RETR", 5, |s, _| s.retransmits.to_string(), |a, b| b.retransmits.cmp(&a.retransmits)),
    number("RTT", 2, |s, _| millis(s.rtt), |a, b| b.rtt.cmp(&a.rtt)),
];

/// In the largest unit of which there is one.
fn seconds(time: Duration) -> String {
    let seconds = time.as_secs();
    let steps = [(86_400, "d"), (3600, "h"), (60, "m")];
    match steps.into_iter().find(|(step, _)| seconds >= *step) {
        Some((step, unit)) => format!("{}{unit}", seconds / step),
        None => format!("{seconds}s"),
    }
}

/// Most failures come at once, others after minutes.
fn took(time: Duration) -> String {
    if time < Duration::from_secs(1) { format!("{}ms", time.as_millis()) } else { seconds(time) }
}

/// A connection below the sum that it is part of, in the same columns.
pub(crate) fn in_a_sum(r: &ConnectionRecord, show: &Show, has_unicode: bool) -> Vec<String> {
    let arrow = if has_unicode { "↔" } else { "<->" };
    let (remote, local) = (show.end(r.key.remote()), show.end(r.key.local()));
    // The usual one is left out.
    let state = match rows::state(r) {
        "-" | "established" => String::new(),
        state => format!("  {state}"),
    };
    vec![
        format!("{} {remote} {arrow} {local}{state}", r.key.protocol),
        String::new(),
        String::new(),
        show.units.rate(r.rate_in),
        show.units.rate(r.rate_out),
        show.of_row(r, r.bytes_in),
        show.of_row(r, r.bytes_out),
        rows::retransmits(r),
        millis(r.rtt),
    ]
}

/// Lays out lines of cells in this width: leaves out columns, then cuts the wide ones. Returns the places of the columns that
/// are shown, each with its width.
pub(crate) fn layout(ranks: &[(u8, Kind)], natural: &[usize], width: usize) -> Vec<(usize, usize)> {
    let least = |i: usize| match ranks[i].1 {
        Kind::Wide => natural[i].min(10),
        // An IPv4 address with its port.
        Kind::Address => natural[i].min(21),
        Kind::Ends => natural[i].min(44),
        Kind::Number | Kind::Text => natural[i],
    };
    let mut shown: Vec<usize> = (0..ranks.len()).collect();
    while shown.iter().map(|&i| least(i) + 2).sum::<usize>() > width + 2 {
        let last = shown.iter().copied().filter(|&i| ranks[i].0 > 0).max_by_key(|&i| ranks[i].0);
        let Some(last) = last else { break };
        shown.retain(|&i| i != last);
    }
    let mut room = (width + 2).saturating_sub(shown.iter().map(|&i| least(i) + 2).sum());
    let mut widths: Vec<_> = shown.into_iter().map(|i| (i, least(i))).collect();
    // What is left goes to those that want more, in turn.
    while room > 0 {
        let mut gave = false;
        for (i, now) in &mut widths {
            if room > 0 && *now < natural[*i] {
                (*now, room, gave) = (*now + 1, room - 1, true);
            }
        }
        if !gave {
            break;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_columns_go_by_rank_and_wide_ones_are_cut() {
        let ranks = [(0, Kind::Wide), (2, Kind::Number), (1, Kind::Text), (0, Kind::Number)];
        let natural = [20, 5, 5, 5];
        assert_eq!(layout(&ranks, &natural, 80), [(0, 20), (1, 5), (2, 5), (3, 5)]);
        assert_eq!(layout(&ranks, &natural, 35), [(0, 14), (1, 5), (2, 5), (3, 5)]);
        assert_eq!(layout(&ranks, &natural, 25), [(0, 11), (2, 5), (3, 5)]);
        assert_eq!(layout(&ranks, &natural, 17), [(0, 10), (3, 5)]);
        assert_eq!(layout(&ranks, &natural, 3), [(0, 10), (3, 5)]);
    }

    #[test]
    fn bits_are_in_steps_of_a_thousand() {
        assert_eq!(
            [0.0, 100.0, 1000.0, 2.5e6].map(|n| Units::Bits.rate(n)),
            ["0b", "800b", "8.0kb", "20.0Mb"]
        );
        assert_eq!([Units::Decimal.rate(2500.0), Units::Bits.total(2500.0)], ["2.5kB", "2.5kB"]);
        assert_eq!([0.0, 2048.0].map(|n| Units::Bytes.rate(n)), ["0", "2.0K"]);
    }
}
