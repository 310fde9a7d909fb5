// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that the programs and the reader share. Both access it without system calls and copies.

use crate::decode;
use crate::model::KernelTime;
use crate::wire::{self, tt_bank, tt_control, tt_counters, tt_state, tt_transfer};
use libbpf_rs::{MapCore, MapHandle};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A map's elements in this process's memory.
pub(super) struct Mapping<T> {
    first: NonNull<T>,
    elements: usize,
}

/// How this process uses a mapping. The kernel refuses a writable mapping of a ring's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

// SAFETY: a mapping is plain memory, which stays at its address until it is dropped.
unsafe impl<T: Send> Send for Mapping<T> {}

impl<T> Mapping<T> {
    /// Maps a whole map, which is an array of `T` with the flag BPF_F_MMAPABLE.
    fn new(map: &MapHandle) -> io::Result<Self> {
        let elements = map.max_entries() as usize;
        if map.value_size() as usize != size_of::<T>() {
            return Err(io::Error::other("the map has another layout"));
        }
        Self::at(map.as_fd(), 0, elements, Access::Write)
    }

    /// Maps this many elements, from this offset in bytes on.
    pub(super) fn at(
        map: BorrowedFd<'_>,
        offset: usize,
        elements: usize,
        access: Access,
    ) -> io::Result<Self> {
        if !size_of::<T>().is_multiple_of(8) || elements == 0 {
            return Err(io::Error::other("the map has another layout"));
        }
        let access = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let bytes = elements * size_of::<T>();
        // SAFETY: this is new memory, at an address that the kernel chooses. The kernel checks the length.
        let start = unsafe { mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, map, offset as u64)? };
        let first = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { first, elements })
    }
}

/// Words that the kernel writes at the same time.
impl Mapping<AtomicU64> {
    pub(super) fn first(&self) -> &AtomicU64 {
        // SAFETY: it is inside of the mapping, and this side only accesses it as an atomic.
        unsafe { self.first.as_ref() }
    }

    /// The four bytes at this offset, which is a multiple of four.
    pub(super) fn half_word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.elements * 8);
        // SAFETY: it is inside of the mapping and aligned, and this side only accesses it as an atomic.
        unsafe { AtomicU32::from_ptr(self.first.as_ptr().byte_add(offset).cast()) }
    }

    /// The bytes of a record. No program writes them any more, until the record counts as read.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= self.elements * 8);
        // SAFETY: they are inside of the mapping. The ring lends them only while the kernel does not write them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().byte_add(offset).cast(), len) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: this is exactly the memory that was mapped, and no reference into it outlives this.
        let unmapped = unsafe { munmap(self.first.as_ptr().cast(), self.elements * size_of::<T>()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The variables by which the reader and the programs tell each other their state.
pub(super) struct Control(Mapping<tt_control>);

impl Control {
    pub(super) fn new(map: &MapHandle) -> io::Result<Self> {
        Mapping::new(map).map(Self)
    }

    /// The records that the programs have lost so far.
    pub(super) fn lost(&self) -> tt_counters {
        let count = |counts: usize, kind: usize| {
            let place = self.place(offset_of!(tt_control, lost) + counts + kind * size_of::<u64>());
            // SAFETY: this side only accesses it as an atomic.
            unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Relaxed)
        };
        let (ring, storage) = (offset_of!(tt_counters, ring), offset_of!(tt_counters, storage));
        tt_counters {
            ring: std::array::from_fn(|kind| count(ring, kind)),
            storage: std::array::from_fn(|kind| count(storage, kind)),
        }
    }

    /// How many state records, and how many reports, have found no room in the ring.
    pub(super) fn aside(&self) -> [u64; 2] {
        [offset_of!(tt_control, states_aside), offset_of!(tt_control, reports_aside)].map(|offset| {
            // SAFETY: this side only accesses it as an atomic.
            unsafe { AtomicU64::from_ptr(self.place(offset)) }.load(Ordering::Relaxed)
        })
    }

    /// The word at this offset of the structure.
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: this side only accesses it as an atomic.
        unsafe { AtomicU32::from_ptr(self.place(offset)) }
    }

    /// The address of the field at this offset. Fields are aligned.
    fn place<T>(&self, offset: usize) -> *mut T {
        debug_assert!(offset + size_of::<T>() <= size_of::<tt_control>());
        // SAFETY: inside of the mapping.
        unsafe { self.0.first.as_ptr().byte_add(offset).cast() }
    }

    pub(super) fn reader(&self) -> &AtomicU32 {
        self.word(offset_of!(tt_control, reader))
    }

    pub(super) fn epoch(&self) -> &AtomicU32 {
        self.word(offset_of!(tt_control, epoch))
    }

    /// The number of slots of a bank that may be in use.
    pub(super) fn used(&self, bank: Bank) -> &AtomicU32 {
        self.word(bank.offset() + offset_of!(tt_bank, used))
    }
}

/// One of the two banks of pending reports. The programs use one while the reader empties the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bank {
    Even,
    Odd,
}

impl Bank {
    pub(super) fn of_epoch(epoch: u32) -> Self {
        if epoch & 1 == 0 { Self::Even } else { Self::Odd }
    }

    fn offset(self) -> usize {
        offset_of!(tt_control, bank) + self as usize * size_of::<tt_bank>()
    }
}

/// The slots with pending reports, and with state records for which the ring had no room.
pub(super) struct Slots(Mapping<tt_transfer>);

impl Slots {
    pub(super) fn new(map: &MapHandle) -> io::Result<Self> {
        Mapping::new(map).map(Self)
    }

    /// Hands out the pending reports of a bank, and makes its slots free again. `left` is the time when the epoch of
    /// the bank ended. No program uses the bank any more: see [`Barrier`](super::Barrier).
    pub(super) fn empty(&mut self, bank: Bank, used: u32, left: KernelTime, mut record: impl FnMut(&[u8])) {
        let in_bank = self.0.elements / 2;
        for i in 0..in_bank.min(used as usize) {
            // SAFETY: it is inside of the mapping. No program writes here now, and the reference ends with this turn.
            let slot = unsafe { &mut *self.0.first.as_ptr().add(bank as usize * in_bank + i) };
            // A slot may be empty: two processors met here and went on, or the report was sent early.
            if decode::is_of_state(wire::bytes(slot)) {
                record(&wire::bytes(slot)[..size_of::<tt_state>()]);
            } else if slot.bytes != 0 || slot.calls != 0 {
                let span = left.saturating_since(KernelTime(slot.conn.time)).as_micros();
                slot.span_us = u32::try_from(span).unwrap_or(u32::MAX);
                record(wire::bytes(slot));
            }
            *slot = tt_transfer::default();
        }
    }
}
