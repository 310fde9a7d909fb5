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
