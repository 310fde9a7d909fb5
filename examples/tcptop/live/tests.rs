// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the screen shows, at several sizes.

use super::app::App;
use super::columns::{Show, Tab, Units};
use super::look::{Look, Theme};
use super::tree::What;
use super::view;
use crate::names::Services;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::net::IpAddr;
use std::time::Duration;
use tcptop::{
    Closed, ConnectFailed, ConnectionInfo, ConnectionKey, ConnectionTable, Direction, KernelTime, Process,
    Protocol, Provenance, Stats, Totals, Transfer,
};
use unicode_width::UnicodeWidthStr as _;

const SECOND: u64 = 1_000_000_000;
/// From here on no process has a pid: what /proc says of one is no part of a snapshot.
const NO_PID: u32 = 1 << 22;

fn info(socket: u64, protocol: Protocol, remote: &str, port: u16, process: &str) -> ConnectionInfo {
    let remote: IpAddr = remote.parse().unwrap();
    let local: IpAddr =
        if remote.is_ipv4() { [10, 0, 0, 9].into() } else { "2001:db8:1:2:3:4:5:6".parse().unwrap() };
    let key = ConnectionKey::new(protocol, local, 40000 + socket as u16, remote, port);
    let mut info = ConnectionInfo::new(key, socket, KernelTime(SECOND));
    (info.owner, info.provenance) = (Some(Process::new(NO_PID + socket as u32, process)), Provenance::Seen);
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
    (new_app(change), table())
}

pub(super) fn new_app(change: impl FnOnce(&mut App)) -> App {
    let services = Services::parse("https 443/tcp\npostgresql 5432/tcp\nssh 22/tcp\ndomain 53/udp\n");
    let show = Show { now: KernelTime(0), units: Units::default(), hosts: None, services, executables: None };
    let limits = vec![" Tracing with fentry on Linux 6.12".into(), " udp_peers: limited".into()];
    let mut app =
        App::new("fentry on Linux 6.12".into(), limits, &clap::Parser::parse_from(["tcptop"]), show);
    change(&mut app);
    app
}

/// Refreshes it, and draws it on a screen of this size.
pub(super) fn draw(
    app: &mut App,
    table: &mut ConnectionTable,
    second: u64,
    [width, height]: [u16; 2],
) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    app.selection.height = view::height(app, Rect::new(0, 0, width, height));
    app.refresh(table, KernelTime(second * SECOND), Stats::default());
    let look = Look { theme: Some(Theme::Dark), has_unicode: true };
    terminal.draw(|frame| drop(view::draw(frame, app, look))).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen, as lines of text.
fn screen(app: &mut App, table: &mut ConnectionTable, width: u16, height: u16) -> String {
    let buffer = draw(app, table, 3, [width, height]);
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
        [(80, 12, 0), (120, 12, 0), (200, 12, 0), (80, 10, 1), (80, 10, 2), (80, 10, 5), (80, 8, 6)]
    {
        let (mut app, mut table) = app(|app| app.show_tab(tab));
        all += &format!("--- {width}x{height}\n{}", screen(&mut app, &mut table, width, height));
    }
    let (mut with_details, mut table) = app(|app| (app.has_details, app.selection.place) = (true, 1));
    all += &format!("--- details\n{}", screen(&mut with_details, &mut table, 80, 24));
    let (mut app, mut table) = app(|app| app.show_tab(1));
    drop(screen(&mut app, &mut table, 80, 12));
    app.open_or_describe();
    all += &format!("--- tree\n{}", screen(&mut app, &mut table, 80, 12));
    app.has_help = true;
    all += &format!("--- help\n{}", screen(&mut app, &mut table, 90, 27));
    (app.has_help, app.has_limits) = (false, true);
    all += &format!("--- limits\n{}", screen(&mut app, &mut table, 80, 12));
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
    assert!(text.contains("dns") && !text.contains("curl") && text.contains("/proto:udp  1 row"), "{text}");
    let (mut app, mut table) = app(|app| {
        app.order_by_title("IN");
        app.reverse();
    });
    let text = screen(&mut app, &mut table, 120, 12);
    let place = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}: {text}"));
    assert!(place("wget") < place("ssh") && place("ssh") < place("curl") && text.contains("IN▲"), "{text}");
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

/// The chosen row is the same after others have overtaken it, and one that keeps its place stays there.
#[test]
fn a_chosen_row_is_followed_and_an_order_can_be_kept() {
    let (mut app, mut table) = app(|_| ());
    drop(screen(&mut app, &mut table, 120, 12));
    app.select(|rows| rows.move_by(1));
    drop(screen(&mut app, &mut table, 120, 12));
    let remote = |app: &App| match &app.selected_row().unwrap().what {
        What::Connection(r) => r.key.remote_addr.to_string(),
        What::Sum(_) => unreachable!(),
    };
    assert_eq!((app.selection.place, remote(&app)), (1, "192.0.2.53".into()));
    let busy = |table: &mut ConnectionTable, total| {
        let mut transfer =
            Transfer::new(info(3, Protocol::Tcp, "2001:db8::7", 22, "ssh"), Direction::In, 1 << 20, total);
        transfer.until = KernelTime(3 * SECOND);
        table.apply(&transfer.into());
    };
    busy(&mut table, 1 << 20);
    let text = screen(&mut app, &mut table, 120, 12);
    assert_eq!((app.selection.place, remote(&app)), (2, "192.0.2.53".into()), "{text}");

    app.freeze(&mut table);
    let mut transfer =
        Transfer::new(info(2, Protocol::Udp, "192.0.2.53", 53, "dns"), Direction::In, 1 << 30, 1 << 30);
    transfer.until = KernelTime(3 * SECOND);
    table.apply(&transfer.into());
    let text = screen(&mut app, &mut table, 120, 12);
    assert_eq!((app.selection.place, remote(&app)), (2, "192.0.2.53".into()), "{text}");
    assert!(text.contains("order kept"), "{text}");
    app.freeze(&mut table);
    drop(screen(&mut app, &mut table, 120, 12));
    assert_eq!((app.selection.place, remote(&app)), (0, "192.0.2.53".into()));
}

/// The table forgets them soon; somebody who looks later wants to know all the same.
#[test]
fn failed_connects_stay() {
    let (mut app, mut table) = app(|app| app.show_tab(6));
    for second in [3, 3000] {
        drop(draw(&mut app, &mut table, second, [80, 12]));
    }
    assert!(table.records().all(|r| r.connect_failure.is_none()), "it was forgotten");
    app.change_filter(|text| text.push_str("wget"));
    let buffer = draw(&mut app, &mut table, 3600, [80, 12]);
    let text: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
    assert!(text.contains("203.0.113.1:80") && text.contains("refused") && text.contains("59m"), "{text}");
}

/// Nothing is cut: what has no room in a line goes on in the next, and more lines than there is room for are scrolled to.
#[test]
fn details_can_be_read_to_the_end() {
    let (mut app, mut table) = app(|app| (app.has_details, app.show.units) = (true, Units::Bits));
    let last = "socket";
    let top = screen(&mut app, &mut table, 40, 20);
    assert!(top.contains("more: J, K") && !top.contains(last), "{top}");
    app.details_first = usize::MAX;
    let end = screen(&mut app, &mut table, 40, 20);
    assert!(end.contains(last) && !end.contains("process   "), "{end}");
}

/// Keys may come faster than the rows are chosen anew: another tab has fewer columns than the one before.
#[test]
fn an_order_can_be_kept_before_the_rows_of_its_tab_are_chosen() {
    let (mut app, mut table) = app(|app| app.order_by_title("SEEN"));
    drop(screen(&mut app, &mut table, 120, 12));
    app.show_tab(1);
    app.freeze(&mut table);
    app.freeze(&mut table);
    app.order_by_title("OUT");
    app.freeze(&mut table);
    let text = screen(&mut app, &mut table, 120, 12);
    assert!(app.is_frozen() && text.contains("OUT▼"), "{text}");
    app.show_tab(0);
    assert!(app.is_order(12, "SEEN"), "each tab keeps its own");
}

/// Two ends on this machine are two rows, and their bytes are counted once.
#[test]
fn what_stays_within_the_machine_is_counted_once() {
    let mut table = ConnectionTable::new();
    for (socket, ports, direction) in [(1, (5000, 80), Direction::Out), (2, (80, 5000), Direction::In)] {
        let local = IpAddr::from([127, 0, 0, 1]);
        let key = ConnectionKey::new(Protocol::Tcp, local, ports.0, local, ports.1);
        let mut transfer =
            Transfer::new(ConnectionInfo::new(key, socket, KernelTime(SECOND)), direction, 50_000, 50_000);
        transfer.until = KernelTime(2 * SECOND);
        table.apply(&transfer.into());
    }
    let mut app = new_app(|_| ());
    let text = screen(&mut app, &mut table, 120, 12);
    assert_eq!((app.whole.rates, app.whole.local_rate), ([0.0; 2], 10_000.0), "{text}");
    assert!(text.contains("9.8K/s within this machine"), "{text}");
}
