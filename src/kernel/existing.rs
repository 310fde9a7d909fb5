// SPDX-License-Identifier: MIT OR Apache-2.0
//! Iterators over what exists already: sockets, and the processes that hold them.

use super::Quiet;
use super::skel::ExistingSkelBuilder;
use crate::wire::{tt_existing, tt_holder};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Iter, Link};
use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;

/// Loaded iterators. They cost nothing until they are read.
#[derive(Debug)]
pub(crate) struct Iterators {
    tcp: Link,
    udp: Link,
    holders: Link,
}

impl Iterators {
    /// Loads them, or says why this kernel does not.
    pub(crate) fn load(use_cookie: bool) -> Result<Self, String> {
        let _quiet = Quiet::new();
        let mut storage = MaybeUninit::uninit();
        let mut open = ExistingSkelBuilder::default().open(&mut storage).map_err(|e| e.to_string())?;
        for mut program in open.open_object_mut().progs_mut() {
            program.set_autoload(true);
        }
        if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
            rodata.use_cookie = use_cookie;
        }
        let skel = open.load().map_err(|e| format!("iterators cannot be loaded: {e:#}"))?;
        let link = |name| {
            let program =
                skel.object().progs_mut().find(|p| p.name() == name).ok_or("is not in the object")?;
            program.attach().map_err(|e| format!("iterator {name}: {e:#}"))
        };
        Ok(Self { tcp: link("existing_tcp")?, udp: link("existing_udp")?, holders: link("existing_holder")? })
    }

    /// Hands out records (`tt_existing`) of the TCP and UDP sockets in the calling thread's network namespace.
    pub(crate) fn sockets(&self, mut record: impl FnMut(&[u8])) -> Result<(), String> {
        read(&self.tcp, size_of::<tt_existing>(), &mut record)?;
        read(&self.udp, size_of::<tt_existing>(), &mut record)
    }

    /// Hands out records (`tt_holder`) of the sockets among the files of all processes in the caller's pid namespace.
    pub(crate) fn holders(&self, mut record: impl FnMut(&[u8])) -> Result<(), String> {
        read(&self.holders, size_of::<tt_holder>(), &mut record)
    }
}

/// As much as the kernel hands out at once (bpf_seq_read()).
const PIECE: usize = 32 << 10;

/// Records of this size, piece by piece, so that only what is made of them takes memory. A piece may end in the middle
/// of a record.
fn read(link: &Link, size: usize, record: &mut dyn FnMut(&[u8])) -> Result<(), String> {
    let mut iterator = Iter::new(link).map_err(|e| format!("an iterator cannot begin: {e}"))?;
    let (mut piece, mut kept) = (vec![0; PIECE + size], 0);
    loop {
        let end = match iterator.read(&mut piece[kept..]) {
            Ok(0) => return Ok(()),
            Ok(read) => kept + read,
            // It has looked at a million objects and found nothing to show, or a signal came.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(e) => return Err(format!("an iterator cannot be read: {e}")),
        };
        let whole = end - end % size;
        piece[..whole].chunks_exact(size).for_each(&mut *record);
        piece.copy_within(whole..end, 0);
        kept = end - whole;
    }
}
