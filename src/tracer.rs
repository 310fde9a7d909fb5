// SPDX-License-Identifier: MIT OR Apache-2.0
//! The common part of a collector and a poller: starts, existing connections, capabilities and counters.

use crate::bootstrap;
use crate::capabilities::{Backend, Capabilities, Feature, Visibility};
use crate::config::{Config, Filter};
use crate::error::{Error, Result};
use crate::host;
use crate::kernel::{self, LoadError, Session};
use crate::model::Protocol;
use crate::output::Output;
use crate::plan::Facts;
use crate::reader::Reader;
use crate::record::ConnectionRecord;
use crate::self_test;
use crate::shared::{NOT_RUNNING, Shared};
use crate::stats::Stats;
use crate::survey::Survey;
use crate::threads::SignalsBlocked;
use rustix::process::{Resource, getrlimit};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The kernel's description of its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// A start has at most this many descriptors open at once: programs, maps, links, BTF.
const DESCRIPTORS: u64 = 128;

/// The configuration, and the latest run.
pub(crate) struct Tracer {
    pub(crate) config: Config,
    pub(crate) shared: Arc<Shared>,
    capabilities: Mutex<Option<Capabilities>>,
}

impl Tracer {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, shared: Arc::default(), capabilities: Mutex::default() }
    }

    /// Loads and attaches the programs, and runs the self-test. Then `read` makes the reader.
    ///
    /// The new run replaces the latest run only if all of this works.
    pub(crate) fn start<T>(&mut self, read: impl FnOnce(Start) -> Result<T>) -> Result<T> {
        // The verifier gives up where a signal is pending (bpf_check()), and a program then seems not to load.
        let blocked = SignalsBlocked::new();
        let (session, loaded) = open_session(&self.config)?;
        let shared = Arc::new(Shared::default());
        shared.set_kernel_memory(session.kernel_memory_bytes);
        let (holders, existing) = bootstrap::prepare(self.config.bootstrap);
        drop(blocked);
        *shared.holders() = holders;
        let (checks, early) = test(&session, &self.config)?;
        let capabilities = loaded.with_self_test(checks).with_existing(existing.way(), existing.visibility());
        *self.lock() = Some(capabilities);
        let start = Start { session, early, config: self.config.clone(), shared: Arc::clone(&shared) };
        let reader = read(start)?;
        self.shared = shared;
        Ok(reader)
    }

    pub(crate) fn capabilities(&self) -> Option<Capabilities> {
        self.lock().clone()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Was the latest run made in this process? False in a forked child.
    pub(crate) fn is_ours(&self) -> bool {
        self.shared.is_ours()
    }

    pub(crate) fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        let wanted = self.config.bootstrap;
        // In a forked child, the lock may be held by a thread of the parent, which will never release it here.
        let (mut found, existing) = if self.is_ours() {
            bootstrap::existing_connections(wanted, &self.shared.holders())?
        } else {
            bootstrap::existing_connections(wanted, &Err(NOT_RUNNING.into()))?
        };
        if let Some(known) = self.lock().as_mut() {
            known.set_existing(existing.way(), existing.visibility());
        }
        bootstrap::forget_ids(&mut found, |protocol| !self.events_have_cookies(protocol));
        self.config.filter.retain_wanted(&mut found);
        Ok(found)
    }

    pub(crate) fn survey(&self) -> Result<Survey> {
        let protocols = [Protocol::Tcp, Protocol::Udp].into_iter().filter(|&p| self.events_have_cookies(p));
        bootstrap::survey(protocols.collect())
    }

    /// Are the socket ids of events those that the kernel lists? True before the start, because there are no events.
    fn events_have_cookies(&self, protocol: Protocol) -> bool {
        self.lock().as_ref().is_none_or(|can| {
            let are_made_up = protocol == Protocol::Udp && can.backend() == Backend::Kprobe;
            *can.visibility(Feature::SocketCookie) != Visibility::Unseen && !are_made_up
        })
    }

    /// No thread panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Option<Capabilities>> {
        self.capabilities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts from which a reader is made.
pub(crate) struct Start {
    session: Session,
    /// Records that the self-test has taken out of the ring.
    early: Vec<Vec<u8>>,
    config: Config,
    pub(crate) shared: Arc<Shared>,
}

impl Start {
    pub(crate) fn reader(self, output: Output) -> Result<Reader> {
        Reader::new(self.session, self.early, &self.config, output, self.shared)
    }
}

/// Runs the self-test if it is wanted. Also returns the records of other sockets that came in meanwhile.
fn test(session: &Session, config: &Config) -> Result<(Vec<crate::SelfCheck>, Vec<Vec<u8>>)> {
    // A filter might hide the test's own sockets.
    if !config.self_test || config.filter != Filter::default() {
        return Ok(Default::default());
    }
    self_test::run(session)
}

/// Checks privileges, BTF and kernel, so that the user gets a clear error. Then starts a backend.
fn open_session(config: &Config) -> Result<(Session, Capabilities)> {
    host::check_privileges()?;
    if !Path::new(BTF).exists() {
        return Err(Error::NoBtf { path: BTF.into() });
    }
    let facts = kernel::collect_facts();
    let started = check_kernel(&facts).map(|()| kernel::start(config, &facts));
    // Without free descriptors the facts about the kernel are wrong, and so is the reason of this failure.
    if !matches!(started, Ok(Ok(_))) && descriptors_left() < DESCRIPTORS {
        return Err(Error::TooFewDescriptors { left: descriptors_left(), needed: DESCRIPTORS });
    }
    started?.map_err(|e| match e {
        LoadError::Unavailable(rejected) => {
            Error::BackendUnavailable { backend: rejected.what, reason: rejected.reason }
        }
        LoadError::Nothing(rejected) => Error::NoBackend { rejected },
    })
}

/// How many more files this process may open. 0 if it cannot open /proc/self/fd to count them.
fn descriptors_left() -> u64 {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    std::fs::read_dir("/proc/self/fd").map_or(0, |open| most.saturating_sub(open.count() as u64))
}

/// A kernel that loads typed programs but has no ring buffer is too old.
fn check_kernel(facts: &Facts) -> Result<()> {
    if facts.typed_tracepoints.is_ok() && !facts.ring_buffer {
        return Err(Error::KernelTooOld { what: "BPF ring buffer" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(typed_tracepoints: Result<(), String>, ring_buffer: bool) -> Facts {
        Facts {
            typed_tracepoints,
            ring_buffer,
            cookie: false,
            task_btf: false,
            cast: false,
            fexit: Ok(()),
            kprobe: Ok(()),
            functions: Default::default(),
            tracepoints: Default::default(),
            cgroup: Ok(()),
            all_cgroups: true,
            preemptible: false,
        }
    }

    #[test]
    fn a_kernel_without_ring_buffer_is_named_as_too_old() {
        let message = check_kernel(&facts(Ok(()), false)).unwrap_err().to_string();
        assert!(message.contains("ring buffer") && message.contains("5.8"), "{message}");
        assert!(check_kernel(&facts(Ok(()), true)).is_ok());
        // If nothing loads at all, the cause is not the kernel's age.
        assert!(check_kernel(&facts(Err("refused".into()), false)).is_ok());
    }
}
