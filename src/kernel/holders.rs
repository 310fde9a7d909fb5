// SPDX-License-Identifier: MIT OR Apache-2.0
//! An iterator over the processes that hold sockets.

use super::Quiet;
use super::skel::HoldersSkelBuilder;
use crate::wire::tt_holder;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link};
use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;

/// The loaded iterator. It costs nothing until it is read.
#[derive(Debug)]
pub(crate) struct Holders(Link);

/// The kernel hands out at most this much at once (bpf_seq_read()).
const PIECE: usize = 32 << 10;

impl Holders {
    /// Loads the iterator. The error says why this kernel does not.
    pub(crate) fn load() -> Result<Self, String> {
        let _quiet = Quiet::new();
        let mut storage = MaybeUninit::uninit();
        let open = HoldersSkelBuilder::default().open(&mut storage).map_err(|e| e.to_string())?;
        let skel = open.load().map_err(|e| format!("an iterator cannot be loaded: {e:#}"))?;
        let link = skel.progs.existing_holder.attach();
        Ok(Self(link.map_err(|e| format!("an iterator cannot be attached: {e:#}"))?))
    }

    /// Hands out records (`tt_holder`) of the sockets among the files of all processes in the caller's pid namespace.
    ///
    /// It reads them piece by piece, so they are not all in memory at once. A piece may end in the middle of a record.
    pub(crate) fn read(&self, mut record: impl FnMut(&[u8])) -> Result<(), String> {
        let mut iterator = Iter::new(&self.0).map_err(|e| format!("an iterator cannot begin: {e}"))?;
        let size = size_of::<tt_holder>();
        let (mut piece, mut kept) = (vec![0; PIECE + size], 0);
        loop {
            let end = match iterator.read(&mut piece[kept..]) {
                Ok(0) => return Ok(()),
                Ok(read) => kept + read,
                // The kernel has passed a million objects without a socket among them, or a signal came.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                Err(e) => return Err(format!("an iterator cannot be read: {e}")),
            };
            let whole = end - end % size;
            piece[..whole].chunks_exact(size).for_each(&mut record);
            piece.copy_within(whole..end, 0);
            kept = end - whole;
        }
    }
}
