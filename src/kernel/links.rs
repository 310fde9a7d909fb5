// SPDX-License-Identifier: MIT OR Apache-2.0
//! The links of attached programs. No forked process gets a copy of their descriptors.

use super::Quiet;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded};
use libbpf_rs::Link;
use std::convert::Infallible;
use std::os::fd::RawFd;
use std::time::Duration;

/// A thread that holds the links of attached programs.
///
/// A program stays attached while a descriptor of its link is open in any process. A forked child has copies of all
/// descriptors until it calls exec(2), also after the parent has closed them or was killed. So a thread with a
/// descriptor table of its own attaches the programs and holds their links.
pub(super) struct Links {
    /// When this is dropped, the thread detaches the programs.
    hold: Option<Sender<Infallible>>,
    /// Disconnected when the programs are detached.
    gone: Receiver<Infallible>,
}

impl Links {
    /// Attaches the programs by `attach`, which uses the descriptors `needed`.
    pub(super) fn hold(
        needed: &[RawFd],
        attach: impl FnOnce() -> Result<Vec<Link>, String> + Send,
    ) -> Result<Self, String> {
        let (hold, held) = bounded(0);
        let (tell_gone, gone) = bounded::<Infallible>(0);
        let attached = threads::spawn_lending(
            "tcptop-links",
            || {
                let own = threads::have_own_descriptors(needed);
                if let Err(e) = &own {
                    log::info!("forked processes will hold the programs, too: {e}");
                }
                let attached = attach();
                if own.is_ok() {
                    threads::close_own_descriptors(needed);
                }
                match attached {
                    Ok(links) => (links, Ok(())),
                    Err(reason) => (Vec::new(), Err(reason)),
                }
            },
            move |links| {
                // This returns when the sender is dropped.
                let Err(_) = held.recv();
                let _quiet = Quiet::new();
                drop(links);
                drop(tell_gone);
            },
        );
        match attached {
            Ok(Some(Ok(()))) => Ok(Self { hold: Some(hold), gone }),
            Ok(Some(Err(reason))) => Err(reason),
            Ok(None) => Err("the thread that attaches programs has panicked".into()),
            Err(e) => Err(format!("the thread that attaches programs cannot start: {e}")),
        }
    }

    /// Detaches all programs. False if the kernel takes longer than `patience`. Then it goes on in the background.
    pub(super) fn detach(&mut self, patience: Duration) -> bool {
        drop(self.hold.take());
        !matches!(self.gone.recv_timeout(patience), Err(e) if e.is_timeout())
    }
}
