// SPDX-License-Identifier: MIT OR Apache-2.0
//! Collects what the plan needs to know: what BTF lists, and what really loads and attaches.

use super::Quiet;
use super::skel::ProbeSkelBuilder;
use crate::capabilities::Backend;
use crate::host::{self, Lockdown};
use crate::plan::{self, Facts, Target};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, FuncProto, Typedef};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;

/// All facts about the running kernel. Takes some ten milliseconds.
pub(crate) fn collect() -> Facts {
    let _quiet = Quiet::new();
    let btf = Btf::from_vmlinux();
    let (functions, tracepoints) = btf.map(|btf| listed(&btf)).unwrap_or_default();
    let features = ["probe_typed_tracepoint", "probe_ring", "probe_storage", "probe_cookie", "probe_task"];
    // Usually all of them work: then one load answers all questions.
    let together = load(&features).is_ok();
    let works = |name| together || load(&[name]).is_ok();
    let fexit = attach("probe_fexit");
    Facts {
        typed_tracepoints: if together { Ok(()) } else { load(&["probe_typed_tracepoint"]) },
        ring_buffer: works("probe_ring"),
        storage: works("probe_storage"),
        cookie: works("probe_cookie"),
        task_btf: works("probe_task"),
        fexit,
        kprobe: attach("probe_kprobe"),
        functions,
        tracepoints,
        cgroup: cgroup(),
    }
}

fn cgroup() -> Result<(), String> {
    let missing = host::missing_for_cgroup_programs().map_err(|e| e.to_string())?;
    if !missing.is_empty() {
        return Err(format!("this process lacks {}", missing.join(", ")));
    }
    host::cgroup2_mount().map(drop).ok_or_else(|| "no cgroup2 hierarchy is mounted".into())
}

fn listed(btf: &Btf<'_>) -> (BTreeMap<&'static str, usize>, Vec<&'static str>) {
    let mut functions = BTreeMap::new();
    let mut tracepoints = Vec::new();
    for program in Backend::ALL.into_iter().flat_map(plan::programs) {
        match program.target {
            Target::Function(name) | Target::FunctionOf(name, _) | Target::Kprobe(name) => {
                if let Some(args) = arguments(btf, name) {
                    functions.insert(name, args);
                }
            }
            Target::Tracepoint(name) => {
                if btf.type_by_name::<Typedef<'_>>(&format!("btf_trace_{name}")).is_some() {
                    tracepoints.push(name);
                }
            }
            Target::Cgroup => {}
        }
    }
    (functions, tracepoints)
}

fn arguments(btf: &Btf<'_>, function: &str) -> Option<usize> {
    let function: Func<'_> = btf.type_by_name(function)?;
    let proto = FuncProto::try_from(function.next_type()?).ok()?;
    Some(proto.len())
}

/// Loads these probe programs together, or says why that fails.
fn load(names: &[&str]) -> Result<(), String> {
    with_loaded(names, |_| Ok(()))
}

/// Loads and attaches one probe program, or says why that fails.
fn attach(name: &str) -> Result<(), String> {
    with_loaded(&[name], |skel| {
        for program in skel.object().progs_mut().filter(|p| p.name() == name) {
            drop(program.attach().map_err(|e| refused("attached", &e))?);
        }
        Ok(())
    })
}

fn with_loaded(
    names: &[&str],
    then: impl FnOnce(&super::skel::ProbeSkel<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut storage = MaybeUninit::uninit();
    let mut open = ProbeSkelBuilder::default().open(&mut storage).map_err(|e| e.to_string())?;
    for mut program in open.open_object_mut().progs_mut() {
        let wanted = names.iter().any(|name| program.name() == *name);
        program.set_autoload(wanted);
    }
    let uses = |feature| names.contains(&feature);
    let (ring, socket_storage) = (uses("probe_ring"), uses("probe_storage"));
    open.maps.ring.set_autocreate(ring).map_err(|e| e.to_string())?;
    open.maps.storage.set_autocreate(socket_storage).map_err(|e| e.to_string())?;
    let skel = open.load().map_err(|e| refused("loaded", &e))?;
    then(&skel)
}

/// The kernel's answer, and what may be behind it.
fn refused(what: &str, error: &libbpf_rs::Error) -> String {
    let lockdown = match host::lockdown() {
        Some(Lockdown::Confidentiality) => " (the kernel is locked down: confidentiality)",
        _ => "",
    };
    format!("cannot be {what}: {error:#}{lockdown}")
}
