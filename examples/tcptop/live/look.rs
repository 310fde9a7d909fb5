// SPDX-License-Identifier: MIT OR Apache-2.0
//! Colours and signs, by what the terminal can show.

use clap::ValueEnum;
use ratatui::style::{Color, Modifier, Style};
use std::env;

/// For which background colours are chosen. Only the eight colours that every terminal has are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Theme {
    Dark,
    Light,
}

impl Theme {
    /// Some terminals tell in COLORFGBG, whose last number is the colour of the background.
    fn of_the_terminal() -> Self {
        let colors = env::var("COLORFGBG").unwrap_or_default();
        if matches!(colors.rsplit(';').next(), Some("7" | "15")) { Self::Light } else { Self::Dark }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// None where NO_COLOR asks for that.
    pub(crate) theme: Option<Theme>,
    /// The locale has Unicode.
    pub(crate) has_unicode: bool,
}

impl Look {
    pub(crate) fn of_the_terminal(theme: Option<Theme>) -> Self {
        let has_color = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let theme = theme.or_else(|| has_color.then(Theme::of_the_terminal));
        Self { theme, has_unicode: has_unicode() }
    }

    fn color(self, dark: Color, light: Color) -> Style {
        match self.theme {
            Some(Theme::Dark) => Style::new().fg(dark),
            Some(Theme::Light) => Style::new().fg(light),
            None => Style::new(),
        }
    }

    pub(crate) fn r#in(self) -> Style {
        self.color(Color::Green, Color::Green)
    }

    pub(crate) fn out(self) -> Style {
        self.color(Color::Cyan, Color::Blue)
    }

    pub(crate) fn warning(self) -> Style {
        self.color(Color::Yellow, Color::Magenta)
    }

    pub(crate) fn error(self) -> Style {
        self.color(Color::Red, Color::Red)
    }

    /// What matters less. No grey: some terminals show it as their background.
    pub(crate) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn bars(self) -> [char; 8] {
        if self.has_unicode {
            ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        } else {
            ['_', '.', ':', '-', '=', '+', '*', '#']
        }
    }

    /// In front of a row that is closed, and one that is open.
    pub(crate) fn tree(self, is_open: bool) -> &'static str {
        match (self.has_unicode, is_open) {
            (true, false) => "▸ ",
            (true, true) => "▾ ",
            (false, false) => "+ ",
            (false, true) => "- ",
        }
    }

    /// Beside the column that rows are ordered by.
    pub(crate) fn arrow(self, is_reversed: bool) -> &'static str {
        match (self.has_unicode, is_reversed) {
            (true, false) => "▼",
            (true, true) => "▲",
            (false, false) => "v",
            (false, true) => "^",
        }
    }
}

fn has_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    locale.is_some_and(|locale| locale.to_uppercase().replace('-', "").contains("UTF8"))
}
