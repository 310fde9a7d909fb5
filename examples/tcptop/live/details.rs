// SPDX-License-Identifier: MIT OR Apache-2.0
//! All that is known of the chosen row.

use super::app::App;
use super::columns::Kind;
use super::look::Look;
use super::tree::What;
use super::view::{bars, fit};
use crate::rows::{self, millis};
use crate::{cgroups, names};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use std::iter;
use tcptop::{CloseReason, ConnectFailure, ConnectionRecord, Group, NetNs, Process, Provenance, Role, Sum};
use unicode_width::UnicodeWidthChar as _;

/// At most so many.
pub(crate) const LINES: usize = 13;
/// So many parents are shown.
const PARENTS: usize = 4;

/// A name, and what it is.
type Entry = (&'static str, String);

pub(crate) fn lines(app: &App, look: Look, width: usize) -> Vec<Line<'static>> {
    let Some(row) = app.selected_row() else { return Vec::new() };
    let (head, entries) = match &row.what {
        What::Connection(r) => (of_connection_head(r), of_connection(app, r)),
        What::Sum(sum) => (app.show.group(&sum.group), of_sum(app, sum)),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![Line::styled(fit(&head, width, Kind::Wide), bold)];
    let (first, rest) = entries.split_at(FIRST.min(entries.len()));
    lines.extend(first.iter().flat_map(|entry| entry_lines(entry, look, width)));
    lines.extend(histories(app, look, width));
    lines.extend(rest.iter().flat_map(|entry| entry_lines(entry, look, width)));
    lines
}

/// In as many lines as it needs.
fn entry_lines((name, text): &Entry, look: Look, width: usize) -> Vec<Line<'static>> {
    let room = width.saturating_sub(NAME + 1).max(1);
    let parts = chunks(text, room).into_iter().take(MOST);
    let names = iter::once(*name).chain(iter::repeat(""));
    let line = |(name, part): (&str, String)| {
        Line::from(vec![Span::styled(format!("{name:<NAME$} "), look.dim()), Span::raw(part)])
    };
    names.zip(parts).map(line).collect()
}

/// Cuts text into parts of this width.
fn chunks(text: &str, width: usize) -> Vec<String> {
    let (mut parts, mut used) = (vec![String::new()], 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > width {
            parts.push(String::new());
            used = 0;
        }
        used += wide;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// Width of the names.
const NAME: usize = 9;
/// So many entries come before the history.
const FIRST: usize = 2;
/// So many lines one entry has at most: a command line may be long.
const MOST: usize = 40;

fn of_connection_head(r: &ConnectionRecord) -> String {
    format!("{}  {}", r.key, rows::state(r))
}

/// The most important first: a small screen shows no more.
fn of_connection(app: &App, r: &ConnectionRecord) -> Vec<Entry> {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let how = r.close_reason.map(CloseReason::as_str).or(r.connect_failure.map(ConnectFailure::as_str));
    let error = r.error.map(|errno| format!(" ({})", std::io::Error::from_raw_os_error(errno)));
    let end = how.map(|how| format!(", end: {how}{}", error.unwrap_or_default())).unwrap_or_default();
    let mut entries = vec![(
        "process",
        known(r.owner.map(|p| format!("{}[{}], {}", p.name.escaped(), p.pid, how_known(r.provenance)))),
    )];
    entries.push((
        "seen",
        format!(
            "for {}{}, quiet for {}{end}",
            seconds(r.duration()),
            r.role.map(|role| format!(" as {}", Role::as_str(role))).unwrap_or_default(),
            seconds(app.show.now.saturating_since(r.last_seen)),
        ),
    ));
    if r.rtt.is_some() || r.retransmits.is_some() {
        let again = r.retransmits.map(|n| format!("; segments sent again: {n}"));
        let (now, least) = (millis(r.rtt), millis(r.min_rtt));
        entries.push(("rtt now", format!("{now}, least {least}{}", again.unwrap_or_default())));
    }
    entries.push(("packets", format!("{} in, {} out", r.packets_in, r.packets_out)));
    entries.push(("command", known(r.pid().and_then(command_line))));
    entries.extend(r.owner.iter().flat_map(|owner| of_process(app, owner)));
    entries.push((
        "socket",
        format!(
            "{}, network namespace {}",
            known(r.socket.map(|id| id.to_string())),
            known(r.netns.map(NetNs::get).map(|id| id.to_string()))
        ),
    ));
    entries
}

fn of_sum(app: &App, sum: &Sum) -> Vec<Entry> {
    let mut entries = Vec::new();
    let process = match &sum.group {
        Group::Process(process) | Group::ProcessAndHost(process, _) => Some(process),
        _ => None,
    };
    let total = |bytes: u64| app.show.units.total(bytes as f64);
    let (traced_in, traced_out) = (total(sum.traced_bytes_in), total(sum.traced_bytes_out));
    entries.push(("traffic", format!("{traced_in} in, {traced_out} out since tcptop started")));
    entries.push(("conns", format!("{}, open: {}", sum.connections, sum.open)));
    if sum.rtt.is_some() {
        let (median, least) = (millis(sum.rtt), millis(sum.min_rtt));
        entries.push((
            "rtt now",
            format!("median {median}, least {least}; segments sent again: {}", sum.retransmits),
        ));
    }
    entries.push(("packets", format!("{} in, {} out", sum.packets_in, sum.packets_out)));
    entries.extend(process.map(|p| ("command", command_line(p.pid).unwrap_or_else(|| "-".into()))));
    entries.extend(process.into_iter().flat_map(|process| of_process(app, process)));
    entries
}

fn how_known(provenance: Provenance) -> &'static str {
    match provenance {
        Provenance::Seen => "seen in a call",
        Provenance::Inherited => "inherited from the listener",
        Provenance::Bootstrap => "found among the open files",
        Provenance::Closer => "closed it",
        _ => "",
    }
}

fn seconds(time: std::time::Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// What /proc says now.
fn of_process(app: &App, process: &Process) -> Vec<Entry> {
    let executables = app.show.executables.as_ref();
    let exe = executables.and_then(|all| all.name((process.pid, process.start_time_ns)));
    let uid = process.uid;
    let user = names::user(uid).map_or_else(|| uid.to_string(), |name| format!("{name} ({uid})"));
    let mut entries = vec![("user", user)];
    entries.extend(exe.map(|path| ("exe", path)));
    let parents: Vec<_> = parents(process.pid).take(PARENTS).collect();
    entries.extend(Some(parents.join(", ")).filter(|text| !text.is_empty()).map(|text| ("parents", text)));
    entries.extend(process.cgroup_id.map(|id| ("cgroup", cgroups::path(id))));
    entries
}

/// The nearest first.
fn parents(pid: u32) -> impl Iterator<Item = String> {
    let stat = |pid: i32| procfs::process::Process::new(pid).and_then(|process| process.stat()).ok();
    let parent = move |child: &procfs::process::Stat| stat(child.ppid);
    let first = stat(pid as i32).and_then(|child| parent(&child));
    iter::successors(first, parent).map(|stat| format!("{}[{}]", stat.comm.escape_debug(), stat.pid))
}

/// Escaped, because a process chooses it.
fn command_line(pid: u32) -> Option<String> {
    let words = procfs::process::Process::new(pid as i32).ok()?.cmdline().ok()?;
    let words: Vec<_> = words.iter().map(|word| word.escape_debug().to_string()).collect();
    Some(words.join(" ")).filter(|line| !line.is_empty())
}

/// The last minute, since the details are shown.
fn histories(app: &App, look: Look, width: usize) -> Vec<Line<'static>> {
    let Some(watched) = &app.watched else { return Vec::new() };
    let rate = |bytes: f64| format!("{}/s", app.show.units.rate(bytes));
    let time = |seconds: f64| format!("{:.2}ms", seconds * 1000.0);
    let line = |name: &str, way: usize, style: Style, show: &dyn Fn(f64) -> String| {
        let moments = watched.history.iter().map(|moment| moment[way]);
        let most = moments.clone().fold(0.0, f64::max);
        let bars = bars(look, moments, width.saturating_sub(NAME + 24).min(60));
        Line::from(vec![
            Span::styled(format!("{name:<NAME$} "), look.dim()),
            Span::styled(bars, style),
            Span::raw(format!(" peak {}", show(most))),
        ])
    };
    let mut lines = vec![line("in", 0, look.r#in(), &rate), line("out", 1, look.out(), &rate)];
    if watched.history.iter().any(|moment| moment[2] > 0.0) {
        lines.push(line("rtt", 2, look.warning(), &time));
    }
    lines
}
