// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gets the programs of a backend into the kernel: best backend first, each by really loading and attaching it.

use super::links::Links;
use super::session::{Hook, Session};
use super::skel::{TcptopSkel, TcptopSkelBuilder};
use super::{Quiet, configure, in_words};
use crate::capabilities::{Backend, Capabilities, Unavailable};
use crate::config::Config;
use crate::host;
use crate::mounts;
use crate::plan::{self, Facts, Plan, Program, Target};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{AsRawLibbpf, Link, Object, OpenObject, ProgramMut, libbpf_sys};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// Why no backend runs.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The backend that was asked for cannot run here.
    Unavailable(Unavailable<Backend>),
    /// None can.
    Nothing(Vec<Unavailable<Backend>>),
}

/// Loads and attaches the best backend, or the one that is asked for.
pub(crate) fn start(config: &Config, facts: &Facts) -> Result<(Session, Capabilities), LoadError> {
    let _quiet = Quiet::new();
    let mut rejected = Vec::new();
    for backend in Backend::ALL.into_iter().filter(|&b| config.backend.is_none_or(|wanted| wanted == b)) {
        match plan::plan(backend, facts, &config.unwanted).and_then(|plan| start_backend(config, plan)) {
            Ok((session, plan)) => return Ok((session, capabilities(plan, rejected))),
            Err(reason) => {
                log::info!("backend {backend} does not run: {reason}");
                rejected.push(Unavailable::new(backend, reason));
            }
        }
    }
    match (config.backend, rejected.pop()) {
        (Some(_), Some(only)) => Err(LoadError::Unavailable(only)),
        (_, last) => Err(LoadError::Nothing(rejected.into_iter().chain(last).collect())),
    }
}

fn start_backend(config: &Config, mut plan: Plan) -> Result<(Session, Plan), String> {
    let (mut first_try, mut second_try) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let skel = match load(config, &plan, &plan.programs, &mut first_try) {
        Ok(skel) => skel,
        // Loading is all or nothing: find out who spoils it, and do without.
        Err(reason) => {
            drop_unloadable(config, &mut plan, &reason)?;
            load(config, &plan, &plan.programs, &mut second_try)?
        }
    };
    configure::after_load(&skel, &config.filter).map_err(|e| format!("filters cannot be set: {e}"))?;
    let links = hold_all(&skel, &mut plan)?;
    let hooks = hooks(&skel, &plan).map_err(|e| format!("file descriptors: {e}"))?;
    let session = Session::new(&skel, links, hooks).map_err(|e| format!("{e:#}"))?;
    Ok((session, plan))
}

fn capabilities(plan: Plan, rejected: Vec<Unavailable<Backend>>) -> Capabilities {
    let features = plan::features(&plan);
    let missing = plan.missing.into_iter().map(|(program, reason)| Unavailable::new(program.into(), reason));
    Capabilities::new(plan.backend, host::kernel_release(), features, rejected, missing.collect())
}

/// The places where programs may be skipped, each with all programs that are there.
fn hooks(skel: &TcptopSkel<'_>, plan: &Plan) -> io::Result<Vec<Hook>> {
    let mut hooks: Vec<(Target, Hook)> = Vec::new();
    for planned in &plan.programs {
        let Some(kind) = planned.reports else { continue };
        let Some(program) = skel.object().progs().find(|p| p.name() == planned.name) else { continue };
        let fd = program.as_fd().try_clone_to_owned()?;
        match hooks.iter_mut().find(|(target, _)| *target == planned.target) {
            Some((_, hook)) => hook.programs.push(fd),
            None => hooks.push((planned.target, Hook { kind, programs: vec![fd] })),
        }
    }
    Ok(hooks.into_iter().map(|(_, hook)| hook).collect())
}

/// Takes out of the plan every program that does not load by itself.
fn drop_unloadable(config: &Config, plan: &mut Plan, first: &str) -> Result<(), String> {
    let before = plan.programs.len();
    for program in plan.programs.clone() {
        let mut storage = MaybeUninit::uninit();
        let Err(reason) = load(config, plan, &[program], &mut storage) else { continue };
        give_up(plan, program, reason)?;
    }
    if plan.programs.len() == before { Err(first.to_owned()) } else { Ok(()) }
}

/// Notes that a program is not to be had; an error if the backend is nothing without it.
fn give_up(plan: &mut Plan, program: Program, reason: String) -> Result<(), String> {
    if program.essential {
        return Err(format!("program {}: {reason}", program.name));
    }
    plan.programs.retain(|p| p.name != program.name);
    plan.missing.push((program.name, reason));
    Ok(())
}

fn load<'o>(
    config: &Config,
    plan: &Plan,
    programs: &[Program],
    storage: &'o mut MaybeUninit<OpenObject>,
) -> Result<TcptopSkel<'o>, String> {
    let mut open = TcptopSkelBuilder::default().open(storage).map_err(|e| e.to_string())?;
    for mut program in open.open_object_mut().progs_mut() {
        let wanted = programs.iter().any(|p| program.name() == p.name);
        program.set_autoload(wanted);
    }
    configure::before_load(&mut open, config, plan).map_err(|e| e.to_string())?;
    open.load().map_err(|e| format!("cannot be loaded: {}", in_words(&e)))
}

/// Attaches the programs, and holds them apart.
fn hold_all(skel: &TcptopSkel<'_>, plan: &mut Plan) -> Result<Links, String> {
    let object = skel.object();
    let loaded = object.progs().filter(|p| plan.programs.iter().any(|planned| p.name() == planned.name));
    let needed: Vec<_> = loaded.map(|program| program.as_fd().as_raw_fd()).collect();
    Links::hold(&needed, || attach_all(object, plan))
}

/// Attaches program by program: the skeleton's own way leaks what was attached before a failure.
fn attach_all(object: &Object, plan: &mut Plan) -> Result<Vec<Link>, String> {
    let cgroup = mounts::cgroup2_top().and_then(|(path, _)| File::open(path).ok());
    let mut links = Vec::new();
    for planned in plan.programs.clone() {
        let program = object.progs_mut().find(|p| p.name() == planned.name);
        let attached = match program {
            Some(program) if planned.target == Target::CgroupFirst => attach_first(&program, cgroup.as_ref())
                .or_else(|reason| {
                    log::info!("{} does not come first: {reason}", planned.name);
                    plan.comes_first = false;
                    attach(&program, planned.target, cgroup.as_ref())
                }),
            Some(program) => attach(&program, planned.target, cgroup.as_ref()),
            None => Err("is not in the object".into()),
        };
        match attached {
            Ok(link) => links.push(link),
            Err(reason) => give_up(plan, planned, reason)?,
        }
    }
    Ok(links)
}

const NO_CGROUP: &str = "the cgroup2 hierarchy cannot be opened";

/// Before all programs of all cgroups, also those that are not attached yet. The kernel refuses what it does not know.
fn attach_first(program: &ProgramMut<'_>, cgroup: Option<&File>) -> Result<Link, String> {
    let root = cgroup.ok_or(NO_CGROUP)?;
    let order = libbpf_sys::bpf_cgroup_opts {
        sz: size_of::<libbpf_sys::bpf_cgroup_opts>() as _,
        flags: libbpf_sys::BPF_F_PREORDER,
        ..Default::default()
    };
    // SAFETY: the program lives as long as the object, and libbpf reads the options during the call only.
    let link = unsafe {
        let program = program.as_libbpf_object().as_ptr();
        libbpf_sys::bpf_program__attach_cgroup_opts(program, root.as_raw_fd(), &raw const order)
    };
    let refused = || format!("cannot be attached: {}", io::Error::last_os_error());
    // SAFETY: not null, and so a link that nobody else has.
    NonNull::new(link).map(|link| unsafe { Link::from_ptr(link) }).ok_or_else(refused)
}

fn attach(program: &ProgramMut<'_>, target: Target, cgroup: Option<&File>) -> Result<Link, String> {
    let link = match (target, cgroup) {
        (Target::Cgroup | Target::CgroupFirst, Some(root)) => program.attach_cgroup(root.as_raw_fd()),
        (Target::Cgroup | Target::CgroupFirst, None) => return Err(NO_CGROUP.into()),
        _ => program.attach(),
    };
    link.map_err(|e| format!("cannot be attached: {}", in_words(&e)))
}
