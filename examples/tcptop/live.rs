// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live view: the terminal, and what keys and mouse do.

mod app;
mod columns;
pub(crate) mod filter;
mod view;

use crate::options::Options;
use app::{App, Wish};
use columns::Units;
use crossbeam_channel::{Receiver, bounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{
    self, DisableMouseCapture, EnableMouseCapture, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers,
    MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::crossterm::execute;
use ratatui::layout::{Position, Rect};
use std::io::{self, IsTerminal as _, stdout};
use std::{env, thread};
use tcptop::{Capabilities, ConnectionTable, KernelTime, Stats};
use view::{Look, Places};

pub(crate) struct Live {
    terminal: DefaultTerminal,
    app: App,
    look: Look,
    places: Places,
}

/// Whether the terminal can show it.
pub(crate) fn is_possible() -> bool {
    let can_move = env::var_os("TERM").is_some_and(|term| term != "dumb" && !term.is_empty());
    can_move && stdout().is_terminal() && io::stdin().is_terminal()
}

impl Live {
    /// Takes the terminal, until this is dropped.
    pub(crate) fn start(
        options: &Options,
        can: Option<&Capabilities>,
    ) -> io::Result<(Self, Receiver<Event>)> {
        let title = can.map(|can| format!("{} on Linux {}", can.backend(), can.kernel())).unwrap_or_default();
        let terminal = take_terminal()?;
        let (tell, input) = bounded(64);
        thread::spawn(move || while event::read().is_ok_and(|event| tell.send(event).is_ok()) {});
        let look = Look {
            has_color: env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            has_unicode: has_unicode(),
        };
        Ok((Self { terminal, app: App::new(title, options), look, places: Places::default() }, input))
    }

    /// Something that the user should know.
    pub(crate) fn note(&mut self, note: String) {
        self.app.note = note;
    }

    /// Once per interval.
    pub(crate) fn refresh(&mut self, table: &mut ConnectionTable, stats: Stats) -> io::Result<()> {
        self.app.height = view::height(&self.app, self.screen()?);
        self.app.refresh(table, KernelTime::now(), stats);
        self.draw()
    }

    /// A key or the mouse; whether to go on.
    pub(crate) fn input(&mut self, event: &Event, table: &mut ConnectionTable) -> io::Result<bool> {
        let wish = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            Event::Mouse(mouse) => self.mouse(*mouse),
            _ => Some(Wish::Draw),
        };
        match wish {
            None => return Ok(true),
            Some(Wish::Quit) => return Ok(false),
            Some(Wish::Suspend) => self.suspend()?,
            Some(Wish::Draw) => {}
        }
        self.app.height = view::height(&self.app, self.screen()?);
        // Also while it is paused: the rows are always those of the tab.
        self.app.choose_rows(table, KernelTime::now());
        self.draw()?;
        Ok(true)
    }

    fn screen(&self) -> io::Result<Rect> {
        let size = self.terminal.size()?;
        Ok(Rect::new(0, 0, size.width, size.height))
    }

    fn draw(&mut self) -> io::Result<()> {
        let Self { terminal, app, look, places } = self;
        terminal.draw(|frame| *places = view::draw(frame, app, *look))?;
        Ok(())
    }

    fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        let app = &mut self.app;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Some(Wish::Quit),
                KeyCode::Char('z') => return Some(Wish::Suspend),
                _ => return None,
            }
        }
        if app.is_typing {
            match key.code {
                KeyCode::Enter => app.is_typing = false,
                KeyCode::Esc => {
                    app.is_typing = false;
                    app.change_filter(String::clear);
                }
                KeyCode::Backspace => app.change_filter(|text| {
                    text.truncate(text.len() - text.chars().last().map_or(0, char::len_utf8))
                }),
                KeyCode::Char(c) => app.change_filter(|text| text.push(c)),
                _ => return None,
            }
            return Some(Wish::Draw);
        }
        let page = isize::try_from(app.height).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => app.has_help ^= true,
            KeyCode::Char('/') => app.is_typing = true,
            KeyCode::Char(' ' | 'p') => app.is_paused ^= true,
            KeyCode::Char('b') => {
                app.units = if app.units == Units::Bytes { Units::Bits } else { Units::Bytes }
            }
            KeyCode::Char(n @ '1'..='9') => app.show_tab(n as usize - '1' as usize),
            KeyCode::Tab => app.next_tab(false),
            KeyCode::BackTab => app.next_tab(true),
            KeyCode::Right | KeyCode::Char('>') => app.order_by_next(false),
            KeyCode::Left | KeyCode::Char('<') => app.order_by_next(true),
            KeyCode::Char('r' | '-') => app.reverse(),
            KeyCode::Char('i') => app.order_by_title("IN/s"),
            KeyCode::Char('o') => app.order_by_title("OUT/s"),
            KeyCode::Char('t') => app.order_by_title("IN"),
            KeyCode::Up | KeyCode::Char('k') => app.select(-1),
            KeyCode::Down | KeyCode::Char('j') => app.select(1),
            KeyCode::PageUp => app.select(-page),
            KeyCode::PageDown => app.select(page),
            KeyCode::Home => app.select(isize::MIN),
            KeyCode::End => app.select(isize::MAX),
            KeyCode::Enter | KeyCode::Char('d') => app.has_details ^= true,
            KeyCode::Esc if app.has_help => app.has_help = false,
            KeyCode::Esc if app.has_details => app.has_details = false,
            KeyCode::Esc => app.change_filter(String::clear),
            _ => return None,
        }
        Some(Wish::Draw)
    }

    fn mouse(&mut self, mouse: MouseEvent) -> Option<Wish> {
        let at = Position::new(mouse.column, mouse.row);
        let hit =
            |places: &[(Rect, usize)]| places.iter().find(|(place, _)| place.contains(at)).map(|&(_, n)| n);
        match mouse.kind {
            MouseEventKind::ScrollUp => self.app.select(-3),
            MouseEventKind::ScrollDown => self.app.select(3),
            MouseEventKind::Down(MouseButton::Left) => {
                if let Some(tab) = hit(&self.places.tabs) {
                    self.app.show_tab(tab);
                } else if let Some(column) = hit(&self.places.heads) {
                    self.app.order_by(column);
                } else if self.places.rows.contains(at) {
                    let row = self.app.first + usize::from(at.y - self.places.rows.y);
                    self.app.selected = row.min(self.app.matching.saturating_sub(1));
                } else {
                    return None;
                }
            }
            _ => return None,
        }
        Some(Wish::Draw)
    }

    /// Gives the terminal back, stops, and takes it again when the shell lets this go on.
    fn suspend(&mut self) -> io::Result<()> {
        give_terminal_back();
        // SAFETY: touches no memory.
        unsafe { libc::raise(libc::SIGTSTP) };
        self.terminal = take_terminal()?;
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        give_terminal_back();
    }
}

fn take_terminal() -> io::Result<DefaultTerminal> {
    let mut terminal = ratatui::try_init()?;
    execute!(stdout(), EnableMouseCapture)?;
    terminal.clear()?;
    Ok(terminal)
}

fn give_terminal_back() {
    // If the terminal is gone, there is nothing to give back.
    let _ = execute!(stdout(), DisableMouseCapture);
    let _ = ratatui::try_restore();
}

fn has_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    locale.is_some_and(|locale| locale.to_uppercase().replace('-', "").contains("UTF8"))
}
