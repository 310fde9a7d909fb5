// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long the programs are that a backend runs at its hooks.

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo};
use tcptop::{Backend, LinuxCollector};

const BYTES_PER_INSTRUCTION: usize = 8;

/// Prints each program of the backend; nothing where it does not start.
pub(crate) fn print(backend: Backend) {
    let latest = programs().map(|program| program.id).max();
    let Ok((mut collector, events)) = LinuxCollector::builder().backend(backend).spawn() else {
        return println!("{backend}: not on this machine");
    };
    for program in programs().filter(|program| Some(program.id) > latest) {
        let ProgramInfo { name, xlated_prog_insns, jited_prog_insns, verified_insns, .. } = program;
        let instructions = xlated_prog_insns.len() / BYTES_PER_INSTRUCTION;
        println!(
            "{backend} {:<20} {instructions:>5} instructions, {:>6} bytes, {verified_insns:>7} verified",
            name.to_string_lossy(),
            jited_prog_insns.len()
        );
    }
    collector.stop().expect("stops");
    drop(events);
}

fn programs() -> impl Iterator<Item = ProgramInfo> {
    let all = ProgInfoQueryOptions::default().include_xlated_prog_insns(true).include_jited_prog_insns(true);
    ProgInfoIter::with_query_opts(all)
}
