// SPDX-License-Identifier: MIT OR Apache-2.0
//! One variant per thing that a user can do about it. Each says in its text what is wrong and what to do.

use crate::capabilities::{Backend, Unavailable};
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a collector could not start, or existing connections not be listed.
///
/// `Display` says what is wrong and what to do. What the kernel or libbpf said is the
/// [`source`](std::error::Error::source). `Debug` shows both, so that a `main` that returns this error prints something
/// to read.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Run as root, or give the program the capabilities that are named.
    #[error(
        "not allowed to trace: this process lacks {}; run it as root, or give the program these capabilities with setcap(8)",
        .missing.join(", ")
    )]
    MissingPrivileges {
        /// Names of the capabilities that are missing, such as `CAP_BPF`.
        missing: Vec<&'static str>,
    },

    /// Run it outside of the container, or have the right to use BPF delegated to it.
    #[error(
        "not allowed to trace: BPF asks for privileges in the initial user namespace, and this process is in another one, as in a rootless container; run it outside, or mount a bpffs that delegates BPF (Linux 6.9)"
    )]
    UserNamespace,

    /// Use a kernel that describes its own types.
    #[error(
        "this kernel has no type information at {}: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's kernel is)",
        .path.display()
    )]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
    },

    /// Use a newer kernel.
    #[error("this kernel has no {what}: boot Linux 5.8 or later")]
    KernelTooOld {
        /// What is missing.
        what: &'static str,
    },

    /// Raise RLIMIT_NOFILE, or close files.
    #[error(
        "too few file descriptors: {left} are left of RLIMIT_NOFILE, and tracing takes up to {needed}: raise it (ulimit -n)"
    )]
    TooFewDescriptors {
        /// How many could still be opened.
        left: u64,
        /// How many a start may take.
        needed: u64,
    },

    /// Choose another backend, or let the library choose.
    #[error(
        "the {backend} backend is not available here: {reason}; choose another one or let tcptop choose (auto)"
    )]
    BackendUnavailable {
        /// The backend that was asked for.
        backend: Backend,
        /// Why it cannot run.
        reason: String,
    },

    /// No backend works: the reasons say what forbids each.
    #[error("no way to trace works on this kernel: {}", .rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoBackend {
        /// Each backend, best first, and why it does not run.
        rejected: Vec<Unavailable<Backend>>,
    },

    /// Mend the configuration.
    #[error("invalid configuration: {what}")]
    InvalidConfig {
        /// Which value, and what it must be.
        what: &'static str,
    },

    /// Stop the collector before you start it again.
    #[error("the collector runs already: stop it before you start it again")]
    AlreadyRunning,

    /// The kernel refused something that should work. The source says why; worth a bug report.
    #[error("the kernel refused to {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's or libbpf's answer.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// /proc could not be read (is it mounted?), or is not understood.
    #[error("cannot read {}", .path.display())]
    Proc {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// The system is out of threads.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_message_and_its_causes() {
        let source = std::io::Error::from_raw_os_error(13).into();
        let error = Error::Proc { path: "/proc/net/tcp".into(), source };
        assert_eq!(error.to_string(), "cannot read /proc/net/tcp");
        assert_eq!(format!("{error:?}"), "cannot read /proc/net/tcp: Permission denied (os error 13)");
    }
}
