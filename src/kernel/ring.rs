// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reading end of the ring buffer (`BPF_MAP_TYPE_RINGBUF`, Documentation/bpf/ringbuf.rst).
//!
//! The ring consumer of libbpf hands records to a callback that must live as long as the ring. This `Ring` lends
//! records to the caller of each look. So a reader can own both its ring and its sink.

use super::shared::{Access, Mapping};
use crate::error::{Error, Result};
use libbpf_rs::{MapCore, MapHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// One look takes at most this many records. A ring that fills as fast as it is read must not keep the reader from its
/// other work. And the events of one batch shall stay in the processor's cache.
const RECORDS_PER_LOOK: usize = 256;

/// The size of the header before each record: its length with the two flags below, and four bytes for the kernel
/// (`struct bpf_ringbuf_hdr` in kernel/bpf/ringbuf.c).
const HEADER: usize = 8;
/// Flag: a program still writes this record.
const BUSY: u32 = 1 << 31;
/// Flag: a program has discarded this record.
const DISCARDED: u32 = 1 << 30;

/// The ring buffer, mapped into this process's memory.
pub(crate) struct Ring {
    map: OwnedFd,
    /// A page with the position up to which records were read. This side writes it.
    consumer: Mapping<AtomicU64>,
    /// A page with the position up to which there are records. The kernel writes it.
    producer: Mapping<AtomicU64>,
    /// The records. The ring is mapped twice in a row, so that each record lies in one piece.
    data: Mapping<AtomicU64>,
    /// The size of the ring less one. The size is a power of two.
    mask: usize,
    /// The number of records that the last look has taken.
    taken: usize,
}

impl Ring {
    pub(super) fn new(map: &MapHandle) -> Result<Self> {
        let refused = |e: io::Error| Error::Kernel { what: "map the ring buffer", source: e.into() };
        Self::map(map).map_err(refused)
    }

    fn map(map: &MapHandle) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let size = map.max_entries() as usize;
        let words = |bytes: usize| bytes / size_of::<AtomicU64>();
        let at = |offset: usize, bytes: usize, access| Mapping::at(map.as_fd(), offset, words(bytes), access);
        Ok(Self {
            map: map.as_fd().try_clone_to_owned()?,
            consumer: at(0, page, Access::Write)?,
            producer: at(page, page, Access::Read)?,
            data: at(2 * page, 2 * size, Access::Read)?,
            mask: size - 1,
            taken: 0,
        })
    }

    /// Waits until the kernel side wakes the reader, the time is over, or a signal comes.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut fds = [PollFd::new(&self.map, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        // It does not matter what ends the wait: the next look finds out whether there are records.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// Lends the records in the ring, one by one. Returns their number.
    pub(crate) fn look(&mut self, mut record: impl FnMut(&[u8])) -> usize {
        self.taken = 0;
        // Only this reader writes this word.
        let mut at = self.consumer.first().load(Ordering::Relaxed);
        while self.taken < RECORDS_PER_LOOK && at != self.producer.first().load(Ordering::Acquire) {
            // The position is taken modulo the size, so 32 bits of it are enough.
            let offset = at as usize & self.mask;
            let header = self.header(offset).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let len = (header & !DISCARDED) as usize;
            if header & DISCARDED == 0 {
                record(self.data.bytes(offset + HEADER, len));
                self.taken += 1;
            }
            at += (HEADER + len).next_multiple_of(8) as u64;
            self.consumer.first().store(at, Ordering::Release);
        }
        self.taken
    }

    /// Has the last look taken as many records as a look may take?
    pub(crate) fn is_behind(&self) -> bool {
        self.taken >= RECORDS_PER_LOOK
    }

    fn header(&self, offset: usize) -> &AtomicU32 {
        self.data.half_word(offset)
    }
}
