// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loaded and attached programs, and the maps through which the library talks to them.

use super::links::Links;
use super::ring::Ring;
use super::shared::{Bank, Control, Slots};
use super::skel::TcptopSkel;
use crate::decode;
use crate::error::Result;
use crate::event::{EventKind, LossPlace};
use crate::model::KernelTime;
use crate::stats::LossTable;
use crate::wire::{tt_reader, tt_state};
use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustix::thread::{MembarrierCommand, membarrier};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The programs in the kernel. When the session is dropped, they are detached and unloaded.
///
/// It keeps links and map handles, but not the skeleton. These own their descriptors, so a session can move to another
/// thread.
pub(crate) struct Session {
    links: Links,
    hooks: Vec<Hook>,
    /// The losses at hooks, as of the last [`look_at_hooks`](Self::look_at_hooks).
    skipped: LossTable,
    events: MapHandle,
    control: Control,
    slots: Slots,
    barrier: Barrier,
    epoch: u32,
    epoch_began: KernelTime,
    pub(crate) kernel_memory_bytes: u64,
}

/// The reader's state, as the kernel side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ReaderState {
    /// The reader waits for a wake-up.
    Asleep = tt_reader::TT_ASLEEP.0,
    /// The reader looks again by itself, within milliseconds.
    Looking = tt_reader::TT_LOOKING.0,
}

/// How long a stop waits for the kernel to detach the programs.
const DETACH_PATIENCE: Duration = Duration::from_millis(100);

/// See `struct tt_control`.
pub(super) const FIRST_EPOCH: u32 = 1;

const FIRST: [u8; 4] = 0_u32.to_ne_bytes();

impl Session {
    pub(super) fn new(skel: &TcptopSkel<'_>, links: Links, hooks: Vec<Hook>) -> libbpf_rs::Result<Self> {
        let maps = &skel.maps;
        Ok(Self {
            links,
            hooks,
            skipped: LossTable::default(),
            events: MapHandle::try_from(&maps.events)?,
            control: Control::new(&MapHandle::try_from(&maps.bss)?)?,
            slots: Slots::new(&MapHandle::try_from(&maps.slots)?)?,
            barrier: Barrier {
                map: Arc::new(MapHandle::try_from(&maps.barrier)?),
                inner: Arc::new(MapHandle::try_from(&maps.stone)?),
            },
            epoch: FIRST_EPOCH,
            epoch_began: KernelTime::now(),
            kernel_memory_bytes: skel
                .object()
                .maps()
                .filter_map(|map| map.query_fdinfo().ok()?.memlock)
                .sum(),
        })
    }

    /// Detaches every program. The maps stay readable.
    ///
    /// For each trampoline the kernel waits for a grace period of RCU tasks, one after the other (ftrace_shutdown()).
    /// On preemptible kernels each takes a tenth of a second. Programs that remain after [`DETACH_PATIENCE`] are
    /// detached in the background.
    pub(crate) fn detach(&mut self) {
        if !self.links.detach(DETACH_PATIENCE) {
            log::debug!("the kernel is still detaching programs");
        }
    }

    /// Tells the kernel side the reader's state.
    pub(crate) fn announce(&self, state: ReaderState) {
        self.control.reader().store(state as u32, Ordering::Relaxed);
    }

    /// Is anything pending in the bank in use?
    pub(crate) fn has_pending(&self) -> bool {
        self.control.used(Bank::of_epoch(self.epoch)).load(Ordering::Relaxed) != 0
    }

    /// Begins a new epoch: from now on, reports are pending in the other bank. The pending reports of the old bank may
    /// be collected when the programs that run now have ended: see [`barrier`](Self::barrier).
    pub(crate) fn next_epoch(&mut self) {
        // After 2^32 epochs the number goes on with 2. Zero is not an epoch; 2 has the same bank.
        self.epoch = self.epoch.checked_add(1).unwrap_or(2);
        self.control.epoch().store(self.epoch, Ordering::Release);
        self.epoch_began = KernelTime::now();
    }

    /// The reading end of the ring buffer. There is one reader at a time.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the kernel refuses the memory.
    pub(crate) fn ring(&self) -> Result<Ring> {
        Ring::new(&self.events)
    }

    /// Readable while there are records in the ring. A process that waits for it wakes up only if the kernel side asks
    /// for it.
    pub(crate) fn ring_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The ring has room for at most this many records.
    pub(crate) fn ring_records(&self) -> usize {
        self.events.max_entries() as usize / size_of::<tt_state>()
    }

    /// A handle that waits until the programs that run at that time have ended.
    pub(crate) fn barrier(&self) -> Barrier {
        self.barrier.clone()
    }

    /// Takes the pending reports of the bank that is not in use, in the order in which they became pending.
    pub(crate) fn collect_pending(&mut self, record: impl FnMut(&[u8])) {
        let bank = Bank::of_epoch(self.epoch.wrapping_add(1));
        let used = self.control.used(bank).load(Ordering::Acquire);
        self.slots.empty(bank, used, self.epoch_began, record);
        self.control.used(bank).store(0, Ordering::Release);
    }

    /// The losses that the kernel side has counted, and the losses at hooks as of the last look at them.
    pub(crate) fn losses(&self) -> LossTable {
        decode::losses(&self.control.lost()).plus(&self.skipped)
    }

    /// How many state records, and how many reports, have found no room in the ring so far. They are pending. If some
    /// are lost later, they are counted among the losses.
    pub(crate) fn set_aside(&self) -> [u64; 2] {
        self.control.aside()
    }

    /// Reads how often the kernel has skipped programs, in some twenty files of /proc. If the process has changed its
    /// user, it may not read them any more. Then the numbers stay as they were.
    pub(crate) fn look_at_hooks(&mut self) {
        let mut skipped = LossTable::default();
        for hook in &self.hooks {
            let Some(count) = hook.skipped() else { return };
            skipped.add(hook.kind, LossPlace::Hook, count);
        }
        self.skipped = skipped;
    }
}

/// A hook with one program, or with two if one is a backup program.
pub(crate) struct Hook {
    pub(super) kind: EventKind,
    pub(super) programs: Vec<OwnedFd>,
}

impl Hook {
    /// How many events may have been lost: the least number of skipped runs among the programs. None if it cannot be
    /// read.
    fn skipped(&self) -> Option<u64> {
        let misses: Option<Vec<u64>> = self.programs.iter().map(recursion_misses).collect();
        misses?.into_iter().min()
    }
}

fn recursion_misses(program: &OwnedFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()));
    info.ok().map(|text| misses_in(&text))
}

/// The number of skipped runs in fdinfo (proc_pid_fdinfo(5)). Before Linux 5.12 there is none.
fn misses_in(fdinfo: &str) -> u64 {
    let count = fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Waits until every program that runs now has ended.
#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    map: Arc<MapHandle>,
    inner: Arc<MapHandle>,
}

impl Barrier {
    /// Blocks for some milliseconds. The kernel answers a change of a map of maps after an RCU grace period
    /// (maybe_wait_bpf_programs()).
    ///
    /// Before Linux 5.19 the kernel refuses this change if the process has given up CAP_BPF. Then membarrier(2) waits
    /// for a grace period, if there is more than one processor.
    pub(crate) fn wait(&self) {
        let inner = self.inner.as_fd().as_raw_fd().to_ne_bytes();
        if let Err(e) = self.map.update(&FIRST, &inner, MapFlags::ANY) {
            log_failure("wait for running programs", Err(e));
            if let Err(e) = membarrier(MembarrierCommand::Global) {
                log::warn!("cannot wait for running programs by membarrier either: {e}");
            }
        }
    }
}

fn log_failure(what: &str, result: libbpf_rs::Result<()>) {
    if let Err(e) = result {
        log::warn!("cannot {what}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_runs_are_read_from_fdinfo() {
        let fdinfo = "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t23\nverified_insns:\t7\n";
        assert_eq!(misses_in(fdinfo), 23);
        assert_eq!(misses_in("pos:\t0\nprog_type:\t26\n"), 0);
    }
}
