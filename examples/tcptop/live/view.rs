// SPDX-License-Identifier: MIT OR Apache-2.0
//! Draws the screen.

use super::app::{App, Line, Whole};
use super::columns::{Kind, Tab, layout};
use super::details;
use super::look::Look;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Clear, Paragraph};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Where things are, for the mouse.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) tabs: Vec<(Rect, usize)>,
    pub(crate) heads: Vec<(Rect, usize)>,
    pub(crate) rows: Rect,
    /// The first line of the details when their last one is on the screen.
    pub(crate) details_last: usize,
}

/// Of the header, the tabs, the table with its titles, the details, the last line.
fn areas(app: &App, screen: Rect) -> [Rect; 5] {
    // The details get what the rows leave, but these keep at least half of it.
    let free = screen.height.saturating_sub(3 + 1 + 1);
    let rows = u16::try_from(app.selection.rows + 1).unwrap_or(u16::MAX).min((free / 2).max(3));
    let wanted = details::LINES as u16 + 2;
    let details = if app.has_details { wanted.min(free.saturating_sub(rows)) } else { 0 };
    Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(details),
        Constraint::Length(1),
    ])
    .areas(screen)
}

/// How many rows fit on this screen.
pub(crate) fn height(app: &App, screen: Rect) -> usize {
    let [_, _, table, ..] = areas(app, screen);
    usize::from(table.height.saturating_sub(1)).max(1)
}

pub(crate) fn draw(frame: &mut Frame, app: &App, look: Look) -> Places {
    let [head, tabs, body, below, foot] = areas(app, frame.area());
    header(frame, app, look, head);
    let mut places = Places { tabs: tab_line(frame, app, look, tabs), ..Places::default() };
    (places.heads, places.rows) = table(frame, app, look, body);
    if app.has_details {
        let [width, height] = [below.width, below.height].map(|size| usize::from(size.saturating_sub(2)));
        let lines = details::lines(app, look, width);
        places.details_last = lines.len().saturating_sub(height);
        let title = if places.details_last > 0 { " Details (more: J, K) " } else { " Details " };
        let lines: Vec<_> = lines.into_iter().skip(app.details_first.min(places.details_last)).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), below);
    }
    footer(frame, app, look, foot);
    if app.has_help {
        overlay(frame, " Help ", &HELP.map(str::to_owned));
    } else if app.has_limits {
        overlay(frame, " What runs, and what it does not see ", &app.limits);
    }
    places
}

fn header(frame: &mut Frame, app: &App, look: Look, area: Rect) {
    let width = usize::from(area.width);
    let line = |name: &str, way: usize, style: Style, rest: Span<'static>| {
        let label = format!("{name} {:>8}/s ", app.show.units.rate(app.whole.rates[way]));
        let used = label.width() + rest.width() + 1;
        let bars = bars(look, app.history.iter().map(|rates| rates[way]), width.saturating_sub(used).min(60));
        let gap = " ".repeat(width.saturating_sub(label.width() + bars.width() + rest.width()));
        Text::from(vec![
            Span::styled(label, style.add_modifier(Modifier::BOLD)),
            Span::styled(bars, style),
            Span::raw(gap),
            rest,
        ])
    };
    let limits = match app.limits.len() {
        0 | 1 => String::new(),
        _ => "  l: limits".to_owned(),
    };
    let lost = app.stats.lost_total();
    let health = match (lost, app.stats.audit_mismatches) {
        (0, 0) => Span::raw(format!("{}{limits}", app.title)),
        (lost, 0) => Span::styled(format!("{lost} events lost{limits}"), look.warning()),
        (lost, wrong) => {
            Span::styled(format!("{lost} events lost, {wrong} totals do not add up{limits}"), look.error())
        }
    };
    let how = match (app.is_paused, app.is_frozen()) {
        (true, _) => Span::styled("PAUSED", look.warning()),
        (false, true) => Span::styled("order kept", look.warning()),
        (false, false) => Span::raw(String::new()),
    };
    let text = vec![
        line("in ", 0, look.r#in(), health),
        line("out", 1, look.out(), how),
        Text::raw(fit(&whole(app, &app.whole), width, Kind::Wide)),
    ];
    frame.render_widget(Paragraph::new(text), area);
}

/// All connections in a line: the most important first.
fn whole(app: &App, whole: &Whole) -> String {
    let mut parts = vec![format!("{} open", whole.open)];
    let part = |n: usize, name: &str| (n > 0).then(|| format!("{n} {name}"));
    parts.extend(part(whole.failed, "failed"));
    if whole.local_rate > 0.0 {
        parts.push(format!("{}/s within this machine", app.show.units.rate(whole.local_rate)));
    }
    parts.extend(whole.states.iter().filter_map(|&(state, n)| part(n, state.as_str())));
    parts.extend(part(whole.udp, "udp"));
    parts.extend(part(whole.closed - whole.failed, "ended"));
    if whole.is_cut {
        parts.push("more than --max-rows".into());
    }
    parts.join("  ")
}

/// As many moments as there is room for, the latest at the right.
pub(crate) fn bars(
    look: Look,
    moments: impl DoubleEndedIterator<Item = f64> + Clone,
    width: usize,
) -> String {
    let most = moments.clone().fold(f64::MIN_POSITIVE, f64::max);
    let bar = |moment: f64| {
        if moment > 0.0 { look.bars()[((moment / most * 7.0).round() as usize).min(7)] } else { ' ' }
    };
    let latest: Vec<_> = moments.rev().take(width).map(bar).collect();
    latest.into_iter().rev().collect()
}

fn tab_line(frame: &mut Frame, app: &App, look: Look, area: Rect) -> Vec<(Rect, usize)> {
    let (mut spans, mut places, mut x) = (Vec::new(), Vec::new(), area.x);
    let long: usize = Tab::ALL.iter().map(|(_, name)| name.len() + 4).sum();
    for (n, (_, name)) in Tab::ALL.iter().enumerate() {
        let name = if long > usize::from(area.width) { &name[..name.len().min(4)] } else { name };
        let text = format!(" {} {name} ", n + 1);
        let style = if n == app.tab { Style::new().add_modifier(Modifier::REVERSED) } else { look.dim() };
        let width = text.width() as u16;
        places.push((Rect::new(x, area.y, width, 1), n));
        x += width;
        spans.push(Span::styled(text, style));
    }
    frame.render_widget(Paragraph::new(Text::from(spans)), area);
    places
}

fn table(frame: &mut Frame, app: &App, look: Look, area: Rect) -> (Vec<(Rect, usize)>, Rect) {
    let heads = app.heads();
    let lines = app.lines([false, true].map(|is_open| look.tree(is_open)), look.has_unicode);
    let order = app.order();
    let title = |n: usize| if n == 0 { app.tab().head() } else { heads[n].0 };
    let arrow = |n: usize| if app.is_order(n, heads[n].0) { look.arrow(order.is_reversed) } else { "" };
    let titles: Vec<_> = (0..heads.len()).map(|n| format!("{}{}", title(n), arrow(n))).collect();
    let natural = |i: usize| {
        let cells = lines.iter().map(|line| line.cells[i].width());
        // Amounts take up to so many: no column then moves when they change.
        let least = if heads[i].0.contains("IN") || heads[i].0.contains("OUT") { 6 } else { 0 };
        cells.chain([titles[i].width(), least]).max().unwrap_or(0)
    };
    let natural: Vec<_> = (0..heads.len()).map(natural).collect();
    let ranks: Vec<_> = heads.iter().map(|(_, rank, kind)| (*rank, *kind)).collect();
    let shown = layout(&ranks, &natural, usize::from(area.width));
    let row = |cells: &[String]| {
        let cells = shown.iter().map(|&(i, width)| fit(&cells[i], width, ranks[i].1));
        cells.collect::<Vec<_>>().join("  ")
    };
    let (mut places, mut x) = (Vec::new(), area.x);
    for &(i, width) in &shown {
        places.push((Rect::new(x, area.y, width as u16, 1), i));
        x += width as u16 + 2;
    }
    let mut text = vec![Text::styled(row(&titles), Style::new().add_modifier(Modifier::BOLD))];
    for (n, line) in lines.iter().take(usize::from(area.height.saturating_sub(1))).enumerate() {
        let style = style(app, look, app.selection.first + n, line);
        text.push(Text::styled(format!("{:<1$}", row(&line.cells), usize::from(area.width)), style));
    }
    frame.render_widget(Paragraph::new(text), area);
    let below = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    (places, below)
}

fn style(app: &App, look: Look, place: usize, line: &Line) -> Style {
    let style = if line.is_closed { look.dim() } else { Style::new() };
    if place == app.selection.place { style.add_modifier(Modifier::REVERSED) } else { style }
}

/// In so many columns of the terminal, cut if it is longer.
pub(crate) fn fit(text: &str, width: usize, kind: Kind) -> String {
    if text.width() <= width {
        let gap = " ".repeat(width - text.width());
        return if kind == Kind::Number { gap + text } else { text.to_owned() + &gap };
    }
    // What must stay: of an address the port.
    let end = Some(text)
        .filter(|_| kind == Kind::Address)
        .and_then(|text| text.rfind(':'))
        .map_or("", |at| &text[at..]);
    let mut cut = String::new();
    for c in text.chars() {
        if cut.width() + c.width().unwrap_or(0) + 1 + end.len() > width {
            break;
        }
        cut.push(c);
    }
    let gap = width.saturating_sub(cut.width() + 1 + end.len());
    cut + "~" + end + &" ".repeat(gap)
}

fn footer(frame: &mut Frame, app: &App, look: Look, area: Rect) {
    let width = usize::from(area.width);
    let line = if app.is_typing || !app.filter().is_empty() {
        let wrong = app.filter().wrong().map(|word| format!("  {word} is not understood"));
        let rows = if app.selection.rows == 1 { "row" } else { "rows" };
        let after = wrong.clone().unwrap_or_else(|| format!("  {} {rows}", app.selection.rows));
        let cursor = if app.is_typing { "_" } else { "" };
        Text::from(vec![
            Span::styled(
                format!("/{}{cursor}", app.filter().text()),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::styled(after, if wrong.is_some() { look.error() } else { Style::new() }),
        ])
    } else if app.note.is_empty() {
        Text::styled(keys(look, width), look.dim())
    } else {
        Text::styled(fit(&app.note, width, Kind::Wide), look.warning())
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// As many keys as there is room for.
fn keys(look: Look, width: usize) -> String {
    let sort = if look.has_unicode { "←→ sort" } else { "<> sort" };
    let all = [
        "q quit",
        "? help",
        "/ filter",
        "Tab view",
        sort,
        "r reverse",
        "Enter open",
        "d details",
        "Space pause",
        "f keep order",
        "n names",
        "u units",
    ];
    all.into_iter().fold(String::new(), |line, key| {
        let longer = if line.is_empty() { key.to_owned() } else { format!("{line}  {key}") };
        if longer.width() <= width { longer } else { line }
    })
}

const HELP: [&str; 20] = [
    " q, Ctrl-C        quit",
    " Tab, 1 to 7      connections, processes, hosts, cgroups, ports, services, failed",
    " Up, Down, j, k   choose a row; also PageUp, PageDown, Home, End, and the mouse",
    " Enter            open a row: the connections of a process, a host or a port,",
    "                  the processes of a cgroup; of a connection, its details",
    " d                details of the chosen row; J and K scroll them",
    " Left, Right, <>  order by another column; a click on its title does so, too",
    " r, -             reverse the order",
    " a, t, i, o       order by both rates (as at the start), both totals, the rate in or out",
    " f                keep the order of the rows; again: let them move",
    " /                filter: words, and pid:1234 port:443 remote:10.0.0.0/8 local: host:",
    "                  state:established state:failed proto:udp cgroup:nginx ~regex !term",
    "                  dir:in (accepted) dir:out (connected)",
    " Esc              no filter, no details, no help",
    " Space, p         pause",
    " n                names of hosts, which asks the name server for each on the screen",
    " u, b             bytes in steps of 1024, bytes in steps of 1000, bits",
    " l                what runs, and what it does not see",
    " Ctrl-Z           to the background; fg brings it back",
    " ~                in a total: at least so much",
];

/// Lines over all else, as far as there is room. What goes on in another line begins further to the right.
fn overlay(frame: &mut Frame, title: &str, lines: &[String]) {
    let screen = frame.area();
    let room = usize::from(screen.width.saturating_sub(3)).max(10);
    let lines: Vec<_> = lines.iter().flat_map(|line| wrapped(line, room)).collect();
    let widest = lines.iter().map(|line| line.width()).max().unwrap_or(0).max(title.len());
    let (width, height) = (widest as u16 + 3, lines.len() as u16 + 2);
    let (width, height) = (width.min(screen.width), height.min(screen.height));
    // A column of the rows beside it would only confuse.
    let width = if width + 8 >= screen.width { screen.width } else { width };
    let area = Rect::new((screen.width - width) / 2, (screen.height - height) / 2, width, height);
    frame.render_widget(Clear, area);
    let lines: Vec<_> = lines.into_iter().map(Text::raw).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title.to_owned())), area);
}

fn wrapped(line: &str, width: usize) -> Vec<String> {
    if line.width() <= width {
        return vec![line.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in line.split_whitespace() {
        let last = lines.last().map_or(0, |last| last.width());
        if last + 1 + word.width() > width && last > 3 {
            lines.push("  ".into());
        }
        if let Some(last) = lines.last_mut() {
            *last += " ";
            *last += word;
        }
    }
    lines
}
