// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live view: the terminal, and what keys and mouse do.

mod app;
mod columns;
mod details;
mod failures;
pub(crate) mod filter;
pub(crate) mod look;
#[cfg(test)]
mod pictures;
mod selection;
#[cfg(test)]
mod tests;
mod tree;
mod view;

use crate::limits;
use crate::names::{Executables, Hosts, Services};
use crate::options::Options;
use crate::output;
use crate::rows::Column;
use app::App;
use columns::{Show, Units};
use crossbeam_channel::{Receiver, bounded};
use look::Look;
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture, Event,
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::crossterm::execute;
use ratatui::layout::{Position, Rect};
use std::io::{self, IsTerminal as _, stdout};
use std::mem::ManuallyDrop;
use std::{env, thread};
use tcptop::{Capabilities, ConnectionTable, KernelTime, Stats};
use tree::Key;
use view::Places;

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Draw again, from the table as it is.
    Draw,
    Quit,
    /// Stop this process, as Ctrl-Z does.
    Suspend,
}

pub(crate) struct Live {
    /// Never dropped: that would print an error if the terminal is gone, and panic if nobody can be told.
    terminal: ManuallyDrop<DefaultTerminal>,
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
        can: &Capabilities,
        executables: Executables,
    ) -> io::Result<(Self, Receiver<Event>)> {
        let title = format!("{} on Linux {}", can.backend(), can.kernel());
        let terminal = take_terminal()?;
        let (tell, input) = bounded(64);
        thread::spawn(move || while event::read().is_ok_and(|event| tell.send(event).is_ok()) {});
        let show = Show {
            now: KernelTime(0),
            units: Units::default(),
            hosts: options.names.then(Hosts::of_resolver),
            services: Services::of_this_machine(),
            executables: Some(executables),
        };
        let limits =
            limits::lines(can, !options.no_bootstrap).into_iter().map(|line| format!(" {line}")).collect();
        let mut app = App::new(title, limits, options, show);
        match options.sort {
            None | Some(Column::Rate) => {}
            Some(Column::Total) => app.order_by(Key::Total),
            Some(column) => app.order_by_title(columns::title(column)),
        }
        let look = Look::of_the_terminal(options.theme);
        Ok((Self { terminal: ManuallyDrop::new(terminal), app, look, places: Places::default() }, input))
    }

    /// Something that the user should know.
    pub(crate) fn note(&mut self, note: String) {
        self.app.note = note;
    }

    /// Once per interval.
    pub(crate) fn refresh(&mut self, table: &mut ConnectionTable, stats: Stats) -> io::Result<()> {
        self.app.selection.height = view::height(&self.app, self.screen()?);
        let before = table.len();
        self.app.refresh(table, KernelTime::now(), stats);
        output::give_memory_back_after(before, table);
        self.draw()
    }

    /// A key or the mouse; whether to go on. The screen is drawn after the last one of those that wait.
    pub(crate) fn input(
        &mut self,
        event: &Event,
        is_last: bool,
        table: &mut ConnectionTable,
    ) -> io::Result<bool> {
        let wish = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key, table),
            Event::Mouse(mouse) => self.mouse(*mouse),
            Event::Paste(text) => self.paste(text),
            _ => Some(Wish::Draw),
        };
        match wish {
            None => return Ok(true),
            Some(Wish::Quit) => return Ok(false),
            Some(Wish::Suspend) => self.suspend()?,
            Some(Wish::Draw) => {}
        }
        if !is_last {
            return Ok(true);
        }
        self.app.selection.height = view::height(&self.app, self.screen()?);
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

    fn key(&mut self, key: KeyEvent, table: &mut ConnectionTable) -> Option<Wish> {
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
        let page = isize::try_from(app.selection.height).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => app.has_help ^= true,
            KeyCode::Char('/') => app.is_typing = true,
            KeyCode::Char(' ' | 'p') => app.is_paused ^= true,
            KeyCode::Char('u' | 'b') => app.show.units = app.show.units.next(),
            KeyCode::Char('n') => {
                app.show.hosts = if app.show.hosts.is_some() { None } else { Some(Hosts::of_resolver()) }
            }
            KeyCode::Char('f') => app.freeze(table),
            KeyCode::Char('l') => app.has_limits ^= true,
            KeyCode::Char(n @ '1'..='9') => app.show_tab(n as usize - '1' as usize),
            KeyCode::Tab => app.next_tab(false),
            KeyCode::BackTab => app.next_tab(true),
            KeyCode::Right | KeyCode::Char('>') => app.order_by_next(false),
            KeyCode::Left | KeyCode::Char('<') => app.order_by_next(true),
            KeyCode::Char('r' | '-') => app.reverse(),
            KeyCode::Char('i') => app.order_by_title("IN/s"),
            KeyCode::Char('o') => app.order_by_title("OUT/s"),
            KeyCode::Char('a') => app.order_by(Key::Rate),
            KeyCode::Char('t') => app.order_by(Key::Total),
            KeyCode::Up | KeyCode::Char('k') => app.select(|rows| rows.move_by(-1)),
            KeyCode::Down | KeyCode::Char('j') => app.select(|rows| rows.move_by(1)),
            KeyCode::PageUp => app.select(|rows| rows.move_by(-page)),
            KeyCode::PageDown => app.select(|rows| rows.move_by(page)),
            KeyCode::Home => app.select(|rows| rows.move_by(isize::MIN)),
            KeyCode::End => app.select(|rows| rows.move_by(isize::MAX)),
            KeyCode::Char('K') => app.details_first = app.details_first.saturating_sub(1),
            KeyCode::Char('J') => app.details_first = self.places.details_last.min(app.details_first + 1),
            KeyCode::Enter => app.open_or_describe(),
            KeyCode::Char('d') => app.describe(),
            KeyCode::Esc if app.has_help || app.has_limits => (app.has_help, app.has_limits) = (false, false),
            KeyCode::Esc if app.has_details => app.has_details = false,
            KeyCode::Esc => app.change_filter(String::clear),
            _ => return None,
        }
        Some(Wish::Draw)
    }

    /// Into the filter, if one is being typed.
    fn paste(&mut self, text: &str) -> Option<Wish> {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.app.is_typing.then(|| self.app.change_filter(|filter| filter.push_str(&words)))?;
        Some(Wish::Draw)
    }

    fn mouse(&mut self, mouse: MouseEvent) -> Option<Wish> {
        let at = Position::new(mouse.column, mouse.row);
        let hit =
            |places: &[(Rect, usize)]| places.iter().find(|(place, _)| place.contains(at)).map(|&(_, n)| n);
        match mouse.kind {
            MouseEventKind::ScrollUp => self.app.select(|rows| rows.move_by(-3)),
            MouseEventKind::ScrollDown => self.app.select(|rows| rows.move_by(3)),
            MouseEventKind::Down(MouseButton::Left) => {
                if let Some(tab) = hit(&self.places.tabs) {
                    self.app.show_tab(tab);
                } else if let Some(column) = hit(&self.places.heads) {
                    self.app.order_by(Key::Column(column));
                } else if self.places.rows.contains(at) {
                    let place = usize::from(at.y - self.places.rows.y);
                    self.app.select(|rows| rows.move_to(rows.first + place));
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
        self.terminal = ManuallyDrop::new(take_terminal()?);
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
    // What is pasted must not be taken for keys.
    execute!(stdout(), EnableMouseCapture, EnableBracketedPaste)?;
    terminal.clear()?;
    Ok(terminal)
}

fn give_terminal_back() {
    // If the terminal is gone, there is nothing to give back.
    let _ = execute!(stdout(), DisableMouseCapture, DisableBracketedPaste, cursor::Show);
    let _ = ratatui::try_restore();
}
