// SPDX-License-Identifier: MIT OR Apache-2.0
//! Draws the screen.

use super::app::{App, Line};
use super::columns::{Kind, Tab, layout};
use crate::rows::{self, millis};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Clear, Paragraph};
use tcptop::{CgroupId, CloseReason, ConnectionRecord, KernelTime, NetNs, Role};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// How the screen looks: without colours where NO_COLOR asks for that, without Unicode where the locale has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) has_color: bool,
    pub(crate) has_unicode: bool,
}

impl Look {
    fn color(self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }

    fn bars(self) -> [char; 8] {
        if self.has_unicode {
            ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            ['_', '.', ':', '-', '=', '+', '*', '#']
        }
    }
}

/// Where things are, for the mouse.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) tabs: Vec<(Rect, usize)>,
    pub(crate) heads: Vec<(Rect, usize)>,
    pub(crate) rows: Rect,
}

pub(crate) fn draw(frame: &mut Frame, app: &App, look: Look) -> Places {
    let details = if app.has_details && app.selected_record().is_some() { 9 } else { 0 };
    let [head, tabs, body, below, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(details),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    header(frame, app, look, head);
    let mut places = Places { tabs: tab_line(frame, app, look, tabs), ..Places::default() };
    (places.heads, places.rows) = table(frame, app, look, body);
    if let (true, Some(record)) = (details > 0, app.selected_record()) {
        frame.render_widget(
            Paragraph::new(describe(record, app.now)).block(Block::bordered().title(" Details ")),
            below,
        );
    }
    footer(frame, app, look, foot);
    if app.has_help {
        help(frame);
    }
    places
}

/// How many rows fit on this screen.
pub(crate) fn height(app: &App, screen: Rect) -> usize {
    let details = if app.has_details && app.tab() == Tab::Connections { 9 } else { 0 };
    usize::from(screen.height.saturating_sub(5 + details)).max(1)
}

fn header(frame: &mut Frame, app: &App, look: Look, area: Rect) {
    let width = usize::from(area.width);
    let rate = |way: usize| format!("{:>8}/s", app.units.rate(app.rates[way]));
    let line = |name: &str, way: usize, color: Color, rest: String| {
        let label = format!("{name} {} ", rate(way));
        let used = label.width() + rest.width() + 1;
        let bars = bars(app, look, way, width.saturating_sub(used).min(60));
        let gap = " ".repeat(width.saturating_sub(label.width() + bars.width() + rest.width()));
        Text::from(vec![
            Span::styled(label, look.color(color).add_modifier(Modifier::BOLD)),
            Span::styled(bars, look.color(color)),
            Span::raw(gap),
            Span::raw(rest),
        ])
    };
    let failed = if app.failed > 0 { format!(", {} failed", app.failed) } else { String::new() };
    let paused = if app.is_paused { "PAUSED  " } else { "" };
    let open = format!("{paused}{} open{failed}", app.open);
    let health = if app.stats.lost_total() + app.stats.audit_mismatches == 0 {
        app.title.clone()
    } else {
        format!("{} events lost, {} audit mismatches", app.stats.lost_total(), app.stats.audit_mismatches)
    };
    let text = vec![line("in ", 0, Color::Green, open), line("out", 1, Color::Cyan, health)];
    frame.render_widget(Paragraph::new(text), area);
}

/// The rates of the last minute, the latest at the right.
fn bars(app: &App, look: Look, way: usize, width: usize) -> String {
    let most = app.history.iter().map(|rates| rates[way]).fold(1.0, f64::max);
    let bar =
        |rate: f64| if rate > 0.0 { look.bars()[((rate / most * 7.0).round() as usize).min(7)] } else { ' ' };
    app.history.iter().skip(app.history.len().saturating_sub(width)).map(|rates| bar(rates[way])).collect()
}

fn tab_line(frame: &mut Frame, app: &App, look: Look, area: Rect) -> Vec<(Rect, usize)> {
    let (mut spans, mut places, mut x) = (Vec::new(), Vec::new(), area.x);
    let long: usize = Tab::ALL.iter().map(|(_, name)| name.len() + 5).sum();
    for (n, (_, name)) in Tab::ALL.iter().enumerate() {
        let name = if long > usize::from(area.width) + 1 { &name[..name.len().min(4)] } else { name };
        let text = format!(" {} {name} ", n + 1);
        let style = if n == app.tab {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            look.color(Color::DarkGray)
        };
        let width = text.width() as u16;
        places.push((Rect::new(x, area.y, width, 1), n));
        x += width + 1;
        spans.extend([Span::styled(text, style), Span::raw(" ")]);
    }
    frame.render_widget(Paragraph::new(Text::from(spans)), area);
    places
}

fn table(frame: &mut Frame, app: &App, look: Look, area: Rect) -> (Vec<(Rect, usize)>, Rect) {
    let (heads, lines) = (app.heads(), app.lines());
    let order = app.order();
    let arrow = match (look.has_unicode, order.is_reversed) {
        (true, false) => "▼",
        (true, true) => "▲",
        (false, false) => "v",
        (false, true) => "^",
    };
    let title = |n: usize| if n == 0 { app.tab().head() } else { heads[n].0 };
    let titles: Vec<_> = (0..heads.len())
        .map(|n| if n == order.column { format!("{}{arrow}", title(n)) } else { title(n).to_owned() })
        .collect();
    let natural = |i: usize| {
        let cells = lines.iter().map(|line| line.cells[i].width());
        cells.chain([titles[i].width()]).max().unwrap_or(0)
    };
    let natural: Vec<_> = (0..heads.len()).map(natural).collect();
    let ranks: Vec<_> = heads.iter().map(|(_, rank, kind)| (*rank, *kind)).collect();
    let shown = layout(&ranks, &natural, usize::from(area.width));
    let kinds = |i: usize| ranks[i].1;
    let row = |cells: &[String]| {
        let cells = shown.iter().map(|&(i, width)| fit(&cells[i], width, kinds(i)));
        cells.collect::<Vec<_>>().join("  ")
    };
    let (mut places, mut x) = (Vec::new(), area.x);
    for &(i, width) in &shown {
        places.push((Rect::new(x, area.y, width as u16, 1), i));
        x += width as u16 + 2;
    }
    let mut text = vec![Text::styled(row(&titles), Style::new().add_modifier(Modifier::BOLD))];
    for (n, line) in lines.iter().take(usize::from(area.height.saturating_sub(1))).enumerate() {
        let style = style(app, look, app.first + n, line);
        text.push(Text::styled(format!("{:<1$}", row(&line.cells), usize::from(area.width)), style));
    }
    frame.render_widget(Paragraph::new(text), area);
    let below = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    (places, below)
}

fn style(app: &App, look: Look, place: usize, line: &Line) -> Style {
    let style =
        if line.is_closed { look.color(Color::DarkGray).add_modifier(Modifier::DIM) } else { Style::new() };
    if place == app.selected { style.add_modifier(Modifier::REVERSED) } else { style }
}

/// In so many columns of the terminal, cut if it is longer.
fn fit(text: &str, width: usize, kind: Kind) -> String {
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

fn describe(r: &ConnectionRecord, now: KernelTime) -> Vec<Text<'static>> {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let owner =
        r.owner.map(|p| format!("{}[{}], uid {}, known as {}", p.name.escaped(), p.pid, p.uid, r.provenance));
    let since = now.saturating_since(r.first_seen);
    let how = r.close_reason.map(CloseReason::as_str).or(r.connect_failure.map(|why| why.as_str()));
    let cgroup = r.owner.and_then(|owner| owner.cgroup_id).map(CgroupId::get);
    [
        format!("{}  {}", r.key, rows::state(r)),
        format!("process    {}", known(owner)),
        format!("command    {}", known(r.pid().and_then(command_line))),
        format!(
            "role       {}, first seen {:.0} s ago, lasted {:.1} s",
            known(r.role.map(Role::as_str).map(str::to_owned)),
            since.as_secs_f64(),
            r.duration().as_secs_f64()
        ),
        format!(
            "rtt        {}, least {}, {} segments sent again",
            millis(r.rtt),
            millis(r.min_rtt),
            known(r.retransmits.map(|n| n.to_string()))
        ),
        format!(
            "packets    {} in, {} out; end: {}",
            r.packets_in,
            r.packets_out,
            known(how.map(str::to_owned))
        ),
        format!(
            "socket     {}, netns {}, cgroup {}",
            known(r.socket.map(|id| id.to_string())),
            known(r.netns.map(NetNs::get).map(|id| id.to_string())),
            known(cgroup.map(|id| id.to_string()))
        ),
    ]
    .map(Text::from)
    .into()
}

/// Escaped, because a process chooses it.
fn command_line(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|&b| b == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| String::from_utf8_lossy(word).escape_debug().to_string()).collect();
    Some(words.join(" ")).filter(|line| !line.is_empty())
}

fn footer(frame: &mut Frame, app: &App, look: Look, area: Rect) {
    let width = usize::from(area.width);
    let line = if app.is_typing || !app.filter.is_empty() {
        let wrong = app.filter.wrong().map(|word| format!("   {word}: not understood")).unwrap_or_default();
        let cursor = if app.is_typing { "_" } else { "" };
        Text::from(vec![
            Span::styled(
                format!("/{}{cursor}", app.filter.text()),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::raw(format!("  {} rows", app.matching)),
            Span::styled(wrong, look.color(Color::Red)),
        ])
    } else if app.note.is_empty() {
        Text::styled(keys(look, width), look.color(Color::DarkGray))
    } else {
        Text::styled(fit(&app.note, width, Kind::Wide), look.color(Color::Yellow))
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
        "Enter details",
        "Space pause",
        "b bits",
    ];
    all.into_iter().fold(String::new(), |line, key| {
        let longer = if line.is_empty() { key.to_owned() } else { format!("{line}  {key}") };
        if longer.width() <= width { longer } else { line }
    })
}

const HELP: [&str; 14] = [
    " q, Ctrl-C        quit",
    " Tab, 1 to 6      connections, processes, hosts, cgroups, ports, services",
    " Up, Down, j, k   choose a row; also PageUp, PageDown, Home, End, and the mouse",
    " Enter, d         details of the connection",
    " Left, Right, <>  order by another column; a click on its title does so, too",
    " r, -             reverse the order",
    " i, o, t          order by the rate in, the rate out, the total in",
    " /                filter: words, and pid:1234 port:443 host:10.0.0.0/8",
    "                  state:established proto:udp dir:in or dir:out ~regex",
    " Esc              no filter, no details, no help",
    " Space            pause",
    " b                bits or bytes per second",
    " Ctrl-Z           to the background; fg brings it back",
    " ~                in a total: at least so much",
];

fn help(frame: &mut Frame) {
    let screen = frame.area();
    let (width, height) = (82.min(screen.width), 16.min(screen.height));
    let area = Rect::new((screen.width - width) / 2, (screen.height - height) / 2, width, height);
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(HELP.map(Text::from).to_vec()).block(Block::bordered().title(" Help ")),
        area,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::net::IpAddr;
    use std::time::Duration;
    use tcptop::{
        Closed, ConnectFailed, ConnectionInfo, ConnectionKey, ConnectionTable, Direction, Process, Protocol,
        Provenance, Stats, Totals, Transfer,
    };

    const SECOND: u64 = 1_000_000_000;
    /// From here on no process has a pid: what /proc says of one is no part of a snapshot.
    const NO_PID: u32 = 1 << 22;

    fn info(socket: u64, protocol: Protocol, remote: &str, port: u16, process: &str) -> ConnectionInfo {
        let remote: IpAddr = remote.parse().unwrap();
        let local: IpAddr =
            if remote.is_ipv4() { [10, 0, 0, 9].into() } else { "2001:db8:1:2:3:4:5:6".parse().unwrap() };
        let key = ConnectionKey::new(protocol, local, 40000 + socket as u16, remote, port);
        let mut info = ConnectionInfo::new(key, socket, KernelTime(SECOND));
        (info.owner, info.provenance) =
            (Some(Process::new(NO_PID + socket as u32, process)), Provenance::Seen);
        info
    }

    /// Connections of all kinds, 2 seconds after their begin.
    fn table() -> ConnectionTable {
        let mut table = ConnectionTable::new();
        let v6 = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff";
        let all = [
            info(1, Protocol::Tcp, "192.0.2.7", 443, "curl"),
            info(2, Protocol::Udp, "192.0.2.53", 53, "dns\u{202e}proxy"),
            info(3, Protocol::Tcp, v6, 22, "ssh"),
            info(4, Protocol::Tcp, "198.51.100.4", 5432, "数据库服务"),
        ];
        for (n, info) in all.into_iter().enumerate() {
            for (direction, bytes) in [(Direction::In, 40_000 >> (3 * n)), (Direction::Out, 1000)] {
                let rtt = Some(Duration::from_micros(1500)).filter(|_| info.key.protocol == Protocol::Tcp);
                let mut transfer = Transfer::new(info, direction, bytes, bytes);
                (transfer.rtt, transfer.until) = (rtt, KernelTime(2 * SECOND));
                table.apply(&transfer.into());
            }
        }
        table.apply(&tcptop::CollectorEvent::Closed(Closed::new(all[3], Totals::default())));
        let failed = info(5, Protocol::Tcp, "203.0.113.1", 80, "wget");
        table.apply(&tcptop::CollectorEvent::ConnectFailed(ConnectFailed::new(failed, Some(111))));
        table
    }

    fn app(change: impl FnOnce(&mut App)) -> (App, ConnectionTable) {
        let mut app = App::new("fentry on Linux 6.12".into(), &clap::Parser::parse_from(["tcptop"]));
        change(&mut app);
        (app, table())
    }

    /// The screen, as lines of text.
    fn screen(app: &mut App, table: &mut ConnectionTable, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        app.height = super::height(app, Rect::new(0, 0, width, height));
        app.refresh(table, KernelTime(3 * SECOND), Stats::default());
        let look = Look { has_color: true, has_unicode: true };
        terminal.draw(|frame| drop(draw(frame, app, look))).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| {
            let mut x = 0;
            let mut line = String::new();
            while x < width {
                let symbol = buffer[(x, y)].symbol();
                line += symbol;
                x += symbol.width().max(1) as u16;
            }
            line.trim_end().to_owned() + "\n"
        };
        (0..height).map(line).collect()
    }

    /// Three sizes, each tab once: the snapshot says what they look like. What is left out, and cut, is by width.
    #[test]
    fn the_screen_is_that_of_the_snapshot() {
        let mut all = String::new();
        for (width, height, tab) in
            [(80, 12, 0), (120, 12, 0), (200, 12, 0), (80, 10, 1), (80, 10, 2), (80, 10, 5)]
        {
            let (mut app, mut table) = app(|app| app.show_tab(tab));
            all += &format!("--- {width}x{height}\n{}", screen(&mut app, &mut table, width, height));
        }
        let (mut app, mut table) = app(|app| (app.has_details, app.selected) = (true, 1));
        all += &format!("--- details\n{}", screen(&mut app, &mut table, 80, 20));
        let file = std::env::temp_dir().join("tcptop-screens.txt");
        if all != include_str!("screens.txt") {
            std::fs::write(&file, &all).unwrap();
            panic!(
                "compare {} with examples/tcptop/live/screens.txt, and copy it if it is right",
                file.display()
            );
        }
    }

    #[test]
    fn a_filter_and_another_order_change_the_rows() {
        let (mut filtered, mut table) = app(|app| app.change_filter(|text| text.push_str("proto:udp")));
        let text = screen(&mut filtered, &mut table, 120, 12);
        assert!(
            text.contains("dns") && !text.contains("curl") && text.contains("/proto:udp  1 rows"),
            "{text}"
        );
        let (mut app, mut table) = app(|app| {
            app.order_by_title("IN");
            app.reverse();
        });
        let text = screen(&mut app, &mut table, 120, 12);
        let place = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(
            place("wget") < place("ssh") && place("ssh") < place("curl") && text.contains("IN▲"),
            "{text}"
        );
    }

    /// However small it is, and whatever is on it: nothing panics, and no line is longer than the screen.
    #[test]
    fn every_size_can_be_drawn() {
        for (width, height) in [(1, 1), (10, 3), (40, 5), (79, 24), (81, 25), (250, 70)] {
            for tab in 0..Tab::ALL.len() {
                let (mut app, mut table) = app(|app| {
                    app.show_tab(tab);
                    (app.has_help, app.has_details) = (true, true);
                });
                let text = screen(&mut app, &mut table, width, height);
                assert!(text.lines().all(|line| line.width() <= width.into()), "{text}");
            }
        }
    }
}
