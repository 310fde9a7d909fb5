// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attached programs, held where no other process gets a copy of what holds them.

use super::Quiet;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded};
use libbpf_rs::Link;
use std::convert::Infallible;
use std::os::fd::RawFd;
use std::time::Duration;

/// Programs stay attached as long as a descriptor of their link is open anywhere: also in a process that was forked
/// without exec(2), after this one has closed its own or was killed. So a thread with descriptors of its own attaches
/// them, and does nothing but hold them.
pub(super) struct Links {
    /// Dropped to have them detached.
    hold: Option<Sender<Infallible>>,
    gone: Receiver<Infallible>,
}

impl Links {
    /// Attaches by `attach`, which uses these descriptors.
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
                // It ends when the sender is dropped.
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
            Err(e) => Err(format!("a thread that attaches programs cannot begin: {e}")),
        }
    }

    /// Detaches all programs. False if the kernel takes longer than this: then it goes on in the background.
    pub(super) fn let_go(&mut self, patience: Duration) -> bool {
        drop(self.hold.take());
        !matches!(self.gone.recv_timeout(patience), Err(e) if e.is_timeout())
    }
}
