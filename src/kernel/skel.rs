// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generated skeletons. The lints are not for generated code.

mod tcptop {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/tcptop.skel.rs"));
}

mod holders {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/holders.skel.rs"));
}

mod probe {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/probe.skel.rs"));
}

pub(crate) use holders::HoldersSkelBuilder;
pub(crate) use probe::{ProbeSkel, ProbeSkelBuilder};
pub(crate) use tcptop::{OpenTcptopSkel, TcptopSkel, TcptopSkelBuilder, types::rodata};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use object::{Object as _, ObjectSection as _, SectionKind};

    const PROGRAMS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tcptop.bpf.o"));
    /// BPF_STX | BPF_ATOMIC of 32 and 64 bits. An addition that returns nothing has no bits in its immediate operand.
    const ATOMIC: [u8; 2] = [0xc3, 0xdb];

    /// Before Linux 5.12 the kernel refuses a program with any other one. Which of them it is depends on the compiler.
    #[test]
    fn atomic_operations_are_additions_that_return_nothing() {
        let file = object::File::parse(PROGRAMS).unwrap();
        let code: Vec<_> = file
            .sections()
            .filter(|section| section.kind() == SectionKind::Text)
            .flat_map(|section| section.data().unwrap().chunks_exact(8))
            .collect();
        let (plain, other): (Vec<_>, Vec<_>) =
            code.into_iter().filter(|i| ATOMIC.contains(&i[0])).partition(|i| i[4..] == [0; 4]);
        assert!(plain.len() > 100 && other.is_empty(), "{} plain, {} others", plain.len(), other.len());
    }
}
