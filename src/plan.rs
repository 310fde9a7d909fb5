// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which programs to use: a pure function of facts about the kernel.

mod features;
mod programs;

pub(crate) use features::features;
pub(crate) use programs::{Program, Target, programs};

use crate::capabilities::{Backend, Feature, Visibility};
use crate::event::EventKind;
use std::collections::BTreeMap;

/// What is known of the running kernel. Collected by `kernel::facts`; presence in BTF is not permission, so
/// `fexit` and `kprobe` come from really loading and attaching.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Programs with typed tracepoint arguments load.
    pub(crate) typed_tracepoints: Result<(), String>,
    /// There is a ring buffer.
    pub(crate) ring_buffer: bool,
    /// Tracing programs may ask for socket cookies.
    pub(crate) cookie: bool,
    /// Tracing programs get the current task with its type.
    pub(crate) task_btf: bool,
    /// Programs may give an address a type.
    pub(crate) cast: bool,
    /// A trampoline can be attached, or why not.
    pub(crate) fexit: Result<(), String>,
    /// A kprobe can be attached, or why not.
    pub(crate) kprobe: Result<(), String>,
    /// Functions in BTF, with the number of their arguments.
    pub(crate) functions: BTreeMap<&'static str, usize>,
    /// Tracepoints in BTF, likewise.
    pub(crate) tracepoints: BTreeMap<&'static str, usize>,
    /// Cgroup programs can be used, or why not.
    pub(crate) cgroup: Result<(), String>,
    /// The root at which they attach is the machine's, and not that of a cgroup namespace.
    pub(crate) all_cgroups: bool,
    /// A task may lose its processor in the middle of a program.
    pub(crate) preemptible: bool,
}

/// What to load, and how to set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) backend: Backend,
    pub(crate) programs: Vec<Program>,
    /// Programs that this kernel has no place for, and why. Variants of one program for other kernels are not
    /// listed.
    pub(crate) missing: Vec<(&'static str, String)>,
    pub(crate) use_cookie: bool,
    pub(crate) use_task_btf: bool,
    pub(crate) use_cast: bool,
    pub(crate) recvmsg_args: u32,
    /// The backup programs of hooks in system calls are among the programs.
    pub(crate) calls_run_twice: bool,
    /// See [`Facts::all_cgroups`].
    pub(crate) all_cgroups: bool,
    /// Programs that want to come first among those of cgroups do; known when they are attached.
    pub(crate) comes_first: bool,
}

impl Plan {
    /// Whether every send on a UDP socket without a peer leaves a note of where it goes.
    pub(crate) fn all_sends_are_noted(&self) -> bool {
        let notes_peers = self.backend == Backend::Tracepoint;
        notes_peers && features::visibility(Feature::UdpSendPeer, self) == Visibility::Exact
    }
}

/// The plan for a backend, or why it cannot run. Programs that report what is unwanted, and nothing else, are left out.
pub(crate) fn plan(backend: Backend, facts: &Facts, unwanted: &[EventKind]) -> Result<Plan, String> {
    facts.typed_tracepoints.clone()?;
    match backend {
        Backend::Fentry => facts.fexit.clone()?,
        Backend::Kprobe => facts.kprobe.clone()?,
        Backend::Tracepoint => {}
    }
    let mut plan = Plan {
        backend,
        programs: Vec::new(),
        missing: Vec::new(),
        use_cookie: facts.cookie,
        use_task_btf: facts.task_btf,
        use_cast: facts.cast,
        calls_run_twice: facts.preemptible && backend != Backend::Kprobe,
        all_cgroups: facts.all_cgroups,
        comes_first: true,
        recvmsg_args: facts.functions.get("tcp_recvmsg").map_or(0, |&n| u32::try_from(n).unwrap_or(0)),
    };
    let is_wanted = |program: &Program| program.reports.is_none_or(|kind| !unwanted.contains(&kind));
    for program in programs(backend, facts.preemptible).filter(is_wanted) {
        match absence(program, backend, facts) {
            Presence::Present => plan.programs.push(program),
            Presence::OtherVariant => {}
            Presence::Absent(reason) if program.essential => return Err(reason),
            Presence::Absent(reason) => plan.missing.push((program.name, reason)),
        }
    }
    Ok(plan)
}

enum Presence {
    Present,
    /// The kernel has the place, in a form that another program fits, or has replaced it.
    OtherVariant,
    Absent(String),
}

fn absence(program: Program, backend: Backend, facts: &Facts) -> Presence {
    let Some(hook) = program.target.hook() else {
        return facts.cgroup.clone().map_or_else(Presence::Absent, |()| Presence::Present);
    };
    let listed = match program.target {
        Target::Tracepoint(..) => &facts.tracepoints,
        _ => &facts.functions,
    };
    let Some(&arguments) = listed.get(hook) else { return no_such_place(program, hook) };
    if program.target.fits(arguments) {
        return Presence::Present;
    }
    let fits_here = |other: Program| other.target.hook() == Some(hook) && other.target.fits(arguments);
    if programs(backend, false).any(fits_here) {
        return Presence::OtherVariant;
    }
    Presence::Absent(format!("{hook} has {arguments} arguments on this kernel, which no program is made for"))
}

fn no_such_place(program: Program, hook: &str) -> Presence {
    if program.dispensable {
        return Presence::OtherVariant;
    }
    let place = if matches!(program.target, Target::Tracepoint(..)) { "tracepoint" } else { "function" };
    let since = program.since.map(|release| format!(" (Linux {release} and later have it)"));
    Presence::Absent(format!("the kernel has no {place} {hook}{}", since.unwrap_or_default()))
}

#[cfg(test)]
mod tests;
