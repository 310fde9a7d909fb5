// SPDX-License-Identifier: MIT OR Apache-2.0
//! The records and numbers of `src/bpf/wire.h`, as the skeleton generator translated them, and how records are taken out of
//! bytes.

/// The lints are not for generated code.
mod generated {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/wire.skel.rs"));
}

pub(crate) use generated::types::{
    tt_bank, tt_cgroup, tt_conn, tt_control, tt_counters, tt_end, tt_flags, tt_holder, tt_kind, tt_process,
    tt_provenance, tt_reader, tt_state, tt_transfer,
};

macro_rules! plain {
    ($($name:ident),*) => {$(
        // SAFETY: a #[repr(C)] struct of integers and arrays of integers; every bit pattern is a value.
        unsafe impl plain::Plain for $name {}
    )*};
}
plain!(tt_holder, tt_state, tt_transfer);

/// Reads a record that must be exactly as long as its type.
pub(crate) fn read<T: plain::Plain + Copy + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    (bytes.len() == size_of::<T>()).then_some(())?;
    plain::copy_from_bytes(&mut value, bytes).ok()?;
    Some(value)
}

/// The same without a copy, where the bytes are aligned: as a rule, but nobody promises it for what was kept meanwhile.
pub(crate) fn view<T: plain::Plain>(bytes: &[u8]) -> Option<&T> {
    (bytes.len() == size_of::<T>()).then_some(())?;
    plain::from_bytes(bytes).ok()
}

/// The bytes of a record.
pub(crate) fn bytes<T: plain::Plain>(value: &T) -> &[u8] {
    // SAFETY: these types have no padding: their sizes are asserted in wire.h, and all fields are named.
    unsafe { plain::as_bytes(value) }
}

/// A table of what the numbers of an enum in `wire.h` mean. It does not compile unless it has all of them, each in its place.
macro_rules! meanings {
    ($enum:ident up to $count:ident: [$($number:ident => $meaning:expr),* $(,)?]) => {{
        let numbers = [$($enum::$number.0 as usize),*];
        assert!(numbers.len() == $enum::$count.0 as usize);
        let mut at = 0;
        while at < numbers.len() {
            assert!(numbers[at] == at);
            at += 1;
        }
        [$($meaning),*]
    }};
}
pub(crate) use meanings;
