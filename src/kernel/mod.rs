// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only place that knows libbpf: what this kernel can do ([`facts`]), getting the programs into it ([`load`]) and
//! talking to their maps ([`session`], [`shared`]), and who holds sockets already ([`holders`]). What goes out of here is
//! bytes, and counts of losses.

mod facts;
mod holders;
mod load;
mod session;
mod shared;
mod skel;

pub(crate) use facts::collect as collect_facts;
pub(crate) use holders::Holders;
pub(crate) use load::{LoadError, start};
pub(crate) use session::{Barrier, ReaderState, Ring, Session};
pub(crate) use skel::types;

use libbpf_rs::{PrintCallback, PrintLevel, set_print};

const LIBBPF: &str = "tcptop::libbpf";

/// While this lives, what libbpf has to say goes to the `log` façade instead of stderr. libbpf knows one printer per
/// process, so the previous one is put back.
struct Quiet(Option<(PrintLevel, PrintCallback)>);

impl Quiet {
    fn new() -> Self {
        Self(set_print(wanted().map(|level| (level, to_log as PrintCallback))))
    }
}

/// What somebody wants to read: to put thousands of lines into words takes a quarter of the time that a start does.
fn wanted() -> Option<PrintLevel> {
    let levels = [(log::Level::Trace, PrintLevel::Debug), (log::Level::Debug, PrintLevel::Info)];
    let read = |&(level, _): &(log::Level, _)| log::log_enabled!(target: LIBBPF, level);
    levels.into_iter().find(read).map(|(_, level)| level)
}

impl Drop for Quiet {
    fn drop(&mut self) {
        set_print(self.0.take());
    }
}

fn to_log(level: PrintLevel, text: String) {
    // Failures to load are part of finding out what this kernel allows: they are reported as reasons, not as warnings.
    let level = match level {
        PrintLevel::Debug => log::Level::Trace,
        PrintLevel::Info | PrintLevel::Warn => log::Level::Debug,
    };
    log::log!(target: LIBBPF, level, "{}", text.trim_end());
}
