// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reading end of the ring buffer (`BPF_MAP_TYPE_RINGBUF`, Documentation/bpf/ringbuf.rst).
//!
//! libbpf has one, too. It hands records to a callback that must live as long as the ring. This one lends them to the
//! caller of each look, so a reader owns both its ring and the place where the records go.

use super::shared::{Access, Mapping};
use crate::error::{Error, Result};
use libbpf_rs::{MapCore, MapHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// One look takes at most so many records. A ring that fills as fast as it is read must not keep the reader from its
/// other work, and the events of one batch shall stay in the processor's cache.
const RECORDS_PER_LOOK: usize = 256;

/// Before each record: its length with the two flags below, and four bytes for the kernel
/// (`struct bpf_ringbuf_hdr` in kernel/bpf/ringbuf.c).
const HEADER: usize = 8;
/// A program still writes this record.
const BUSY: u32 = 1 << 31;
/// A program has given this record up.
const DISCARDED: u32 = 1 << 30;

/// The ring in this process's memory, and the place up to which it was read.
pub(crate) struct Ring {
    map: OwnedFd,
    /// Written here: up to where records were read. A page.
    consumer: Mapping<AtomicU64>,
    /// Written by the kernel: up to where there are records. A page.
    producer: Mapping<AtomicU64>,
    /// The records, twice in a row, so that each lies in one piece.
    data: Mapping<AtomicU64>,
    /// Size of the ring less one. The size is a power of two.
    mask: usize,
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
        // Whatever ends it, the next look tells whether there is something.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// Lends the records that are there, one by one. Returns their number.
    pub(crate) fn look(&mut self, mut record: impl FnMut(&[u8])) -> usize {
        self.taken = 0;
        // Nobody else writes this word.
        let mut at = self.consumer.first().load(Ordering::Relaxed);
        while self.taken < RECORDS_PER_LOOK && at != self.producer.first().load(Ordering::Acquire) {
            // As the position is taken modulo the size, 32 bits would do.
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

    /// The last look has taken as many records as a look may take.
    pub(crate) fn is_behind(&self) -> bool {
        self.taken >= RECORDS_PER_LOOK
    }

    fn header(&self, offset: usize) -> &AtomicU32 {
        self.data.half_word(offset)
    }
}
