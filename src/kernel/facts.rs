// SPDX-License-Identifier: MIT OR Apache-2.0
//! Collects what the plan needs to know: what BTF lists, and what really loads and attaches.

use super::skel::{ProbeSkel, ProbeSkelBuilder};
use super::{Quiet, in_words};
use crate::capabilities::Backend;
use crate::host::{self, Lockdown};
use crate::mounts;
use crate::plan::{self, Facts, Target};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, FuncProto, Ptr, Typedef};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// What a program can need of the kernel, each in a program of its own.
const FEATURES: [&str; 4] = ["probe_typed_tracepoint", "probe_ring", "probe_cookie", "probe_task"];
/// Only where BTF has the function: a program that calls one that is not there spoils the load of all.
const CAST: &str = "probe_cast";
const FEXIT: &str = "probe_fexit";
const KPROBE: &str = "probe_kprobe";

/// All facts about the running kernel. Takes some ten milliseconds, most of it for reading all of its BTF, in part only once.
pub(crate) fn collect() -> Facts {
    let _quiet = Quiet::new();
    let Listed { functions, tracepoints, can_cast } = listed();
    // On most kernels everything loads: then one load, which reads all of BTF again, answers all questions.
    let cast: &[_] = if can_cast { &[CAST] } else { &[] };
    let all = [FEATURES.as_slice(), cast, &[FEXIT, KPROBE]].concat();
    let together = with_loaded(&all, |skel| Ok((attach(skel, FEXIT), attach(skel, KPROBE))));
    let all_load = together.is_ok();
    let loads = |name| if all_load { Ok(()) } else { with_loaded(&[name], |_| Ok(())) };
    let attaches = |name| with_loaded(&[name], |skel| attach(skel, name));
    let (fexit, kprobe) = together.unwrap_or_else(|_| (attaches(FEXIT), attaches(KPROBE)));
    Facts {
        typed_tracepoints: loads("probe_typed_tracepoint"),
        ring_buffer: loads("probe_ring").is_ok(),
        cookie: loads("probe_cookie").is_ok(),
        task_btf: loads("probe_task").is_ok(),
        cast: can_cast && loads(CAST).is_ok(),
        fexit,
        kprobe,
        functions,
        tracepoints,
        cgroup: cgroup(),
        all_cgroups: mounts::cgroup2_top().is_none_or(|(_, is_whole)| is_whole),
        preemptible: host::is_preemptible(),
    }
}

fn cgroup() -> Result<(), String> {
    let missing = host::missing_for_cgroup_programs().map_err(|e| e.to_string())?;
    if !missing.is_empty() {
        return Err(format!("this process lacks {}", missing.join(", ")));
    }
    mounts::cgroup2_top().map(drop).ok_or_else(|| "no cgroup2 hierarchy is mounted".into())
}

/// What BTF lists of the functions and tracepoints that programs attach to or call.
#[derive(Clone, Default)]
struct Listed {
    /// With the number of their arguments.
    functions: BTreeMap<&'static str, usize>,
    /// Likewise.
    tracepoints: BTreeMap<&'static str, usize>,
    can_cast: bool,
}

/// It is the same as long as the kernel runs, and to look is a good part of each start.
fn listed() -> Listed {
    static LISTED: OnceLock<Listed> = OnceLock::new();
    if let Some(known) = LISTED.get() {
        return known.clone();
    }
    // Next time it may be readable.
    let Ok(btf) = Btf::from_vmlinux() else { return Listed::default() };
    LISTED.get_or_init(|| look(&btf)).clone()
}

fn look(btf: &Btf<'_>) -> Listed {
    let mut listed = Listed { can_cast: arguments(btf, "bpf_rdonly_cast").is_some(), ..Listed::default() };
    for program in Backend::ALL.into_iter().flat_map(|backend| plan::programs(backend, false)) {
        match program.target {
            Target::Exit(name, _) | Target::Entry(name, _) | Target::Kprobe(name, _) => {
                listed.functions.extend(arguments(btf, name).map(|n| (name, n)));
            }
            Target::Tracepoint(name, _) => {
                listed.tracepoints.extend(arguments_of_tracepoint(btf, name).map(|n| (name, n)));
            }
            Target::Cgroup | Target::CgroupFirst => {}
        }
    }
    listed
}

fn arguments(btf: &Btf<'_>, function: &str) -> Option<usize> {
    let function: Func<'_> = btf.type_by_name(function)?;
    let proto = FuncProto::try_from(function.next_type()?).ok()?;
    Some(proto.len())
}

/// BTF knows a tracepoint by the type of the functions that can be attached to it: their first argument is their own.
fn arguments_of_tracepoint(btf: &Btf<'_>, tracepoint: &str) -> Option<usize> {
    let function: Typedef<'_> = btf.type_by_name(&format!("btf_trace_{tracepoint}"))?;
    let pointer = Ptr::try_from(function.next_type()?).ok()?;
    let proto = FuncProto::try_from(pointer.next_type()?).ok()?;
    proto.len().checked_sub(1)
}

/// Attaches one of the loaded probe programs for a moment, or says why that fails.
fn attach(skel: &ProbeSkel<'_>, name: &str) -> Result<(), String> {
    match skel.object().progs_mut().find(|p| p.name() == name) {
        Some(program) => program.attach().map(drop).map_err(|e| refused("attached", &e)),
        None => Err("is not in the object".into()),
    }
}

/// Loads these probe programs together, or says why that fails.
fn with_loaded<T>(
    names: &[&str],
    then: impl FnOnce(&ProbeSkel<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let mut storage = MaybeUninit::uninit();
    let mut open = ProbeSkelBuilder::default().open(&mut storage).map_err(|e| e.to_string())?;
    for mut program in open.open_object_mut().progs_mut() {
        let wanted = names.iter().any(|name| program.name() == *name);
        program.set_autoload(wanted);
    }
    open.maps.ring.set_autocreate(names.contains(&"probe_ring")).map_err(|e| e.to_string())?;
    let skel = open.load().map_err(|e| refused("loaded", &e))?;
    then(&skel)
}

/// The kernel's answer, and what may be behind it.
fn refused(what: &str, error: &libbpf_rs::Error) -> String {
    let lockdown = match host::lockdown() {
        Some(Lockdown::Confidentiality) => " (the kernel is locked down: confidentiality)",
        _ => "",
    };
    format!("cannot be {what}: {}{lockdown}", in_words(error))
}
