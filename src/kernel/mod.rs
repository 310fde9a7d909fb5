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

/// While this lives, what libbpf has to say goes to the `log` façade instead of stderr. libbpf knows one printer per
/// process, so the previous one is put back.
struct Quiet(Option<(PrintLevel, PrintCallback)>);

impl Quiet {
    fn new() -> Self {
        Self(set_print(Some((PrintLevel::Debug, to_log))))
    }
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
    log::log!(target: "tcptop::libbpf", level, "{}", text.trim_end());
}

/// The kernel's answer, with words for a number of its own that is not for programs and that no C library has a text for.
fn in_words(error: &libbpf_rs::Error) -> String {
    const ENOTSUPP: &str = "(os error 524)";
    let text = format!("{error:#}");
    if !text.contains(ENOTSUPP) {
        return text;
    }
    format!("{text}: ENOTSUPP, this kernel cannot do that here (trampolines on arm64 need Linux 6.4)")
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_this_kernel_cannot_do_is_said_in_words() {
        let said = |errno| super::in_words(&libbpf_rs::Error::from_raw_os_error(errno));
        assert!(said(524).contains("ENOTSUPP"), "{}", said(524));
        assert_eq!(said(libc::EPERM), std::io::Error::from_raw_os_error(libc::EPERM).to_string());
    }
}
