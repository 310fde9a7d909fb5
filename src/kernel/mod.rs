// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only module that uses libbpf. It hands out bytes of records, and counts of losses.
//!
//! - [`facts`] finds out what this kernel can do.
//! - [`configure`], [`load`] and [`links`] load and attach the programs.
//! - [`session`], [`ring`] and [`shared`] read and write their maps.
//! - [`holders`] lists the processes that hold existing sockets.

mod configure;
mod facts;
mod holders;
mod links;
mod load;
mod ring;
mod session;
mod shared;
mod skel;

pub(crate) use facts::collect as collect_facts;
pub(crate) use holders::Holders;
pub(crate) use load::{LoadError, start};
pub(crate) use ring::Ring;
pub(crate) use session::{Barrier, ReaderState, Session};

use libbpf_rs::{PrintCallback, PrintLevel, set_print};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LIBBPF: &str = "tcptop::libbpf";

/// While this lives, messages of libbpf go to the `log` façade instead of stderr. libbpf has one printer per process,
/// so the last `Quiet` restores the previous printer.
struct Quiet;

/// The number of `Quiet`s, and the printer before the first of them.
static QUIET: Mutex<(usize, Option<(PrintLevel, PrintCallback)>)> = Mutex::new((0, None));

impl Quiet {
    fn new() -> Self {
        let mut quiet = Self::lock();
        if quiet.0 == 0 {
            quiet.1 = set_print(wanted().map(|level| (level, to_log as PrintCallback)));
        }
        quiet.0 += 1;
        Self
    }

    /// No thread panics while it holds this lock.
    fn lock() -> MutexGuard<'static, (usize, Option<(PrintLevel, PrintCallback)>)> {
        QUIET.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The level of messages that the logger wants. Others are not even formatted: thousands of lines would take a quarter
/// of the time of a start.
fn wanted() -> Option<PrintLevel> {
    let levels = [(log::Level::Trace, PrintLevel::Debug), (log::Level::Debug, PrintLevel::Info)];
    let read = |&(level, _): &(log::Level, _)| log::log_enabled!(target: LIBBPF, level);
    levels.into_iter().find(read).map(|(_, level)| level)
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let mut quiet = Self::lock();
        quiet.0 -= 1;
        if quiet.0 == 0 {
            set_print(quiet.1.take());
        }
    }
}

fn to_log(level: PrintLevel, text: String) {
    // The library finds out by failures what this kernel allows, and reports them as reasons. So they are no warnings.
    let level = match level {
        PrintLevel::Debug => log::Level::Trace,
        PrintLevel::Info | PrintLevel::Warn => log::Level::Debug,
    };
    log::log!(target: LIBBPF, level, "{}", text.trim_end());
}

/// The kernel's answer, with an explanation of two error numbers. No C library has a text for ENOTSUPP (524).
fn in_words(error: &libbpf_rs::Error) -> String {
    const ENOTSUPP: &str = "(os error 524)";
    const ENOMEM: &str = "(os error 12)";
    let text = format!("{error:#}");
    if text.contains(ENOTSUPP) {
        format!("{text}: ENOTSUPP, this kernel cannot do that here (trampolines on arm64 need Linux 6.4)")
    } else if text.contains(ENOMEM) {
        format!("{text}: too little memory, perhaps by this process's memory cgroup; max_sockets needs less")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads may start collectors at the same time.
    #[test]
    fn the_last_quiet_restores_the_previous_printer() {
        fn other(_: PrintLevel, _: String) {}
        let is = |callback: PrintCallback| {
            let printer = set_print(None);
            set_print(printer);
            printer.is_some_and(|(_, now)| std::ptr::fn_addr_eq(now, callback))
        };
        let before = set_print(Some((PrintLevel::Warn, other)));
        let first = Quiet::new();
        let second = Quiet::new();
        drop(first);
        assert!(!is(other));
        drop(second);
        assert!(is(other));
        set_print(before);
    }

    #[test]
    fn errors_of_the_kernel_are_explained() {
        let said = |errno| in_words(&libbpf_rs::Error::from_raw_os_error(errno));
        assert!(said(524).contains("ENOTSUPP"), "{}", said(524));
        assert_eq!(said(libc::EPERM), std::io::Error::from_raw_os_error(libc::EPERM).to_string());
    }
}
