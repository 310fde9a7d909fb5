// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state that the reader and the collector share.

use crate::forks;
use crate::kernel::Holders;
use crate::stats::Stats;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reason why there is no iterator without a reader.
pub(crate) const NOT_RUNNING: &str = "the iterator is only there while the collector runs";

/// The state of one run of a collector.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The process in which it was made.
    process: u64,
    /// The collector wants the thread to end.
    pub(crate) stop: AtomicBool,
    /// The thread has ended, or is about to.
    pub(crate) ended: AtomicBool,
    stats: Mutex<Stats>,
    /// The iterator while the reader runs, or else the reason why there is none.
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
    /// The counters as of the last [`publish`](Self::publish). In a forked child, the lock may be held by a thread of
    /// the parent, which will never release it here. So the child does not wait for it.
    pub(crate) fn stats(&self) -> Stats {
        if self.is_ours() {
            self.lock().clone()
        } else {
            self.stats.try_lock().map_or_else(|_| Stats::default(), |stats| stats.clone())
        }
    }

    /// Was the run made in this process? False in a forked child.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == forks::this_process()
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // These are plain counters, so they are valid even if a thread has panicked with the lock.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_kernel_memory(&self, bytes: u64) {
        self.lock().kernel_memory_bytes = bytes;
    }

    /// The iterator over the processes that hold sockets. No thread panics while it holds this lock.
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
