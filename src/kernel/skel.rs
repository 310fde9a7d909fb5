// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generated skeletons. The lints are not for generated code.

mod tcptop {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/tcptop.skel.rs"));
}

mod existing {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/existing.skel.rs"));
}

mod probe {
    #![allow(warnings, clippy::all, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/probe.skel.rs"));
}

pub(crate) use existing::ExistingSkelBuilder;
pub(crate) use probe::{ProbeSkel, ProbeSkelBuilder};
pub(crate) use tcptop::{OpenTcptopSkel, TcptopSkel, TcptopSkelBuilder, types};
