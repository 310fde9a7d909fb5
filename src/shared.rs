// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the reader and the collector share.

use crate::forks;
use crate::kernel::Holders;
use crate::stats::Stats;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why there is no iterator without a reader.
pub(crate) const NOT_RUNNING: &str = "the iterator is only there while the collector runs";

/// One run of a collector, as its reader and its owner see it.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The process in which it was made.
    process: u64,
    /// The collector wants the thread to end.
    pub(crate) stop: AtomicBool,
    /// The thread has ended, or is about to.
    pub(crate) ended: AtomicBool,
    stats: Mutex<Stats>,
    /// There while the thread runs; else in words why not.
    holders: Mutex<Result<Holders, String>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            process: forks::this_process(),
            stop: AtomicBool::default(),
            ended: AtomicBool::default(),
            stats: Mutex::default(),
            holders: Mutex::new(Err(NOT_RUNNING.into())),
        }
    }
}

impl Shared {
    /// In a process that was forked from ours the lock may be held by a thread that does not exist there.
    pub(crate) fn stats(&self) -> Stats {
        if self.is_ours() {
            self.lock().clone()
        } else {
            self.stats.try_lock().map_or_else(|_| Stats::default(), |stats| stats.clone())
        }
    }

    /// Is this the process in which it was made, and not one that was forked from it?
    pub(crate) fn is_ours(&self) -> bool {
        self.process == forks::this_process()
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Plain counters: whatever a panicking holder left is as good as anything.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_kernel_memory(&self, bytes: u64) {
        self.lock().kernel_memory_bytes = bytes;
    }

    /// The iterator over the processes that hold sockets. Nobody panics while holding it.
    pub(crate) fn holders(&self) -> MutexGuard<'_, Result<Holders, String>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, stats: &Stats) {
        self.lock().clone_from(stats);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_iterator_is_only_there_with_a_reader() {
        let shared = Shared::default();
        assert!(shared.holders().as_ref().is_err_and(|why| why.contains("while the collector runs")));
    }
}
