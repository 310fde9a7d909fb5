// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pictures in docs/pictures: each tab of the view, as SVG.
//!
//! After a change of the view, `cargo test --example tcptop pictures` writes the new ones, and prints the command that copies them.

use super::columns::Tab;
use super::tests::{draw, new_app};
use crate::cgroups;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use std::fmt::Write as _;
use std::time::Duration;
use std::{env, fs};
use tcptop::{
    CgroupId, Closed, CollectorEvent, ConnectFailed, ConnectionInfo, ConnectionKey, ConnectionTable,
    Direction, KernelTime, Process, Protocol, Provenance, StateChange, TcpState, Totals, Transfer,
};
use unicode_width::UnicodeWidthStr as _;

const SECOND: u64 = 1_000_000_000;
/// Of a character, in pixels.
const WIDTH: usize = 8;
const HEIGHT: usize = 17;

#[test]
fn the_pictures_are_those_of_the_view() {
    let wrong: Vec<_> = (0..Tab::ALL.len()).filter_map(check).collect();
    assert!(wrong.is_empty(), "not as the view is now: cp {} docs/pictures/", wrong.join(" "));
}

/// Returns the file with the right picture if that in docs/pictures is another one.
fn check(tab: usize) -> Option<String> {
    let name = format!("{}.svg", Tab::ALL[tab].1.to_lowercase());
    let mut app = new_app(|app| app.show_tab(tab));
    let mut table = ConnectionTable::new();
    let mut buffer = Buffer::default();
    // A minute, so that there is a history.
    for second in 1..60 {
        let more = [1.0, 2.0, 4.0, 3.0, 5.0, 8.0, 6.0, 7.0][(second * second) as usize % 8];
        traffic(second, more).iter().for_each(|event| table.apply(event));
        buffer = draw(&mut app, &mut table, second, [100, 22]);
        if second == 30 && tab > 0 {
            app.open_or_describe();
        }
    }
    let picture = svg(&buffer);
    let known = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures");
    if fs::read_to_string(format!("{known}/{name}")).is_ok_and(|known| known == picture) {
        return None;
    }
    let file = env::temp_dir().join(name);
    fs::write(&file, picture).unwrap();
    Some(file.display().to_string())
}

/// What moves within a second on a small server.
fn traffic(second: u64, more: f64) -> Vec<CollectorEvent> {
    let mut all = Vec::new();
    for (n, &(name, pid, protocol, local, remote, port, [r#in, out], cgroup)) in SERVER.iter().enumerate() {
        let mut info = connection(n as u64 + 1, protocol, local, (remote, port), (name, pid));
        info.time = KernelTime(second * SECOND);
        info.owner.as_mut().unwrap().cgroup_id = CgroupId::new(u64::MAX - cgroup);
        cgroups::know(u64::MAX - cgroup, CGROUPS[cgroup as usize]);
        if second == 1 && protocol == Protocol::Tcp {
            all.push(CollectorEvent::TcpStateChange(StateChange::new(
                info,
                TcpState::SynSent,
                TcpState::Established,
            )));
        }
        for (direction, bytes) in [(Direction::In, r#in), (Direction::Out, out)] {
            let bytes = (bytes as f64 * more) as u64;
            all.push(transfer(info, direction, bytes, second));
        }
    }
    if second == 50 {
        let mut totals = Totals::default();
        (totals.bytes_in, totals.bytes_out) = (2_345_678, 812);
        let failed =
            connection(90, Protocol::Tcp, ("10.0.0.9", 40112), ("203.0.113.80", 8080), ("wget", 9313));
        let ended =
            connection(91, Protocol::Tcp, ("10.0.0.9", 40113), ("198.51.100.80", 443), ("curl", 9320));
        all.push(CollectorEvent::ConnectFailed(ConnectFailed::new(failed, Some(libc::ECONNREFUSED))));
        all.push(CollectorEvent::Closed(Closed::new(ended, totals)));
    }
    all
}

type End = (&'static str, u16);

fn connection(
    socket: u64,
    protocol: Protocol,
    local: End,
    remote: End,
    (name, pid): (&str, u32),
) -> ConnectionInfo {
    let address = |end: End| end.0.parse().unwrap();
    let key = ConnectionKey::new(protocol, address(local), local.1, address(remote), remote.1);
    let mut info = ConnectionInfo::new(key, socket, KernelTime(50 * SECOND));
    info.since = KernelTime(SECOND);
    (info.owner, info.provenance) = (Some(Process::new(pid, name)), Provenance::Seen);
    info
}

fn transfer(info: ConnectionInfo, direction: Direction, bytes: u64, second: u64) -> CollectorEvent {
    let mut transfer = Transfer::new(info, direction, bytes, bytes * second);
    transfer.rtt = (info.key.protocol == Protocol::Tcp).then(|| Duration::from_micros(230 * info.socket));
    transfer.until = KernelTime(second * SECOND);
    transfer.into()
}

type Program = (&'static str, u32, Protocol, End, &'static str, u16, [u64; 2], u64);

const CGROUPS: [&str; 5] = [
    "system.slice/nginx.service",
    "system.slice/docker-4f8e2c1a90b34f8e2c1a90b34f8e2c1a90b34f8e2c1a90b34f8e2c1a90b3cafe.scope",
    "user.slice/user-1000.slice/session-4.scope",
    "system.slice/systemd-resolved.service",
    "system.slice/sshd.service",
];

#[rustfmt::skip]
const SERVER: [Program; 9] = [
    ("nginx", 812, Protocol::Tcp, ("10.0.0.9", 443), "198.51.100.23", 51234, [3_100, 184_000], 0),
    ("nginx", 812, Protocol::Tcp, ("10.0.0.9", 443), "198.51.100.77", 40211, [1_900, 92_500], 0),
    ("nginx", 812, Protocol::Tcp, ("2001:db8::9", 443), "2001:db8:77::4a", 60001, [800, 20_400], 0),
    ("postgres", 1533, Protocol::Tcp, ("10.0.0.9", 5432), "10.0.0.12", 38770, [9_100, 48_000], 1),
    ("postgres", 1534, Protocol::Tcp, ("10.0.0.9", 5432), "10.0.0.13", 38790, [2_400, 11_000], 1),
    ("cargo", 9310, Protocol::Tcp, ("10.0.0.9", 40110), "203.0.113.5", 443, [412_000, 1_200], 2),
    ("ssh", 4711, Protocol::Tcp, ("10.0.0.9", 40111), "192.0.2.40", 22, [220, 90], 2),
    ("systemd-resolve", 640, Protocol::Udp, ("10.0.0.9", 53211), "192.0.2.53", 53, [310, 120], 3),
    ("sshd", 702, Protocol::Tcp, ("10.0.0.9", 22), "192.0.2.17", 50522, [70, 410], 4),
];

fn svg(buffer: &Buffer) -> String {
    let (columns, rows) = (usize::from(buffer.area.width), usize::from(buffer.area.height));
    let (width, height) = (columns * WIDTH + 20, rows * HEIGHT + 16);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" \
         font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in 0..rows {
        let mut x = 0;
        while x < columns {
            let cell = &buffer[(x as u16, y as u16)];
            let (mut text, from) = (String::new(), x);
            while x < columns && style(&buffer[(x as u16, y as u16)]) == style(cell) {
                let symbol = buffer[(x as u16, y as u16)].symbol();
                text += symbol;
                x += symbol.width().max(1);
            }
            run(&mut svg, cell, &text, [from, y, x - from]);
        }
    }
    svg + "</svg>\n"
}

/// A run of characters that look alike, at this column and row, so many columns wide.
fn run(svg: &mut String, cell: &Cell, text: &str, [x, y, columns]: [usize; 3]) {
    let (left, top, width) = (10 + x * WIDTH, 8 + y * HEIGHT, columns * WIDTH);
    let is_reversed = cell.modifier.contains(Modifier::REVERSED);
    let color = color(cell.fg);
    if is_reversed {
        let rect = format!(
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{color}\"/>"
        );
        writeln!(svg, "{rect}").unwrap();
    }
    if text.trim().is_empty() {
        return;
    }
    let fill = if is_reversed { BACKGROUND } else { color };
    let weight = if cell.modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
    let opacity = if cell.modifier.contains(Modifier::DIM) { " opacity=\"0.6\"" } else { "" };
    let text = text.trim_end().replace('&', "&amp;").replace('<', "&lt;");
    let (width, base) = (text_width(&text), top + 13);
    writeln!(
        svg,
        "<text x=\"{left}\" y=\"{base}\" textLength=\"{width}\" xml:space=\"preserve\" fill=\"{fill}\"{weight}{opacity}>{text}</text>"
    )
    .unwrap();
}

fn text_width(text: &str) -> usize {
    text.replace("&amp;", "&").replace("&lt;", "<").width() * WIDTH
}

const BACKGROUND: &str = "#1b1d23";

fn style(cell: &Cell) -> (Color, Modifier) {
    (cell.fg, cell.modifier)
}

fn color(color: Color) -> &'static str {
    match color {
        Color::Green => "#8fd460",
        Color::Cyan => "#56c8d8",
        Color::Yellow => "#e8c65a",
        Color::Red => "#f07070",
        _ => "#d8dbe2",
    }
}
