// SPDX-License-Identifier: MIT OR Apache-2.0
//! The collector: what users start and stop.

use crate::bootstrap::{self, Finding};
use crate::builder::LinuxCollectorBuilder;
use crate::capabilities::{Backend, Capabilities, Feature, Visibility};
use crate::config::{Config, Filter, WhenFull};
use crate::error::{Error, Result};
use crate::event::CollectorEvent;
use crate::host;
use crate::kernel::{self, LoadError, Session};
use crate::model::Protocol;
use crate::plan::Facts;
use crate::reader::{self, Reader, Shared};
use crate::record::ConnectionRecord;
use crate::run::Run;
use crate::self_test;
use crate::sink::Output;
use crate::stats::Stats;
use crate::survey::Survey;
use crate::threads;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// What a start has open at once at most: programs, maps, links, the kernel's types.
const DESCRIPTORS: u64 = 128;

/// A source of network events.
pub trait NetworkCollector {
    /// Starts to send events into this channel. Returns when tracing is live, so that no connection made afterwards is
    /// missed, or with the reason why it cannot be.
    ///
    /// # Errors
    /// Everything in [`Error`] but [`Error::InvalidConfig`], which the
    /// [builder](crate::LinuxCollectorBuilder::build) has ruled out. [`Error::Proc`] if /proc does not tell which
    /// capabilities the calling thread has.
    fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()>;

    /// Stops, delivers what is already in the ring buffer as far as the channel has room, and closes the channel.
    /// Ends of connections that wait for room are handed over as long as somebody takes them. Returns within 200 ms, also
    /// under load. Stopping what does not run is no error.
    ///
    /// # Errors
    /// None today.
    fn stop(&mut self) -> Result<()>;

    /// The connections that exist already and pass the filter, in all network namespaces that this process may enter.
    /// Call it after
    /// [`start`](Self::start) and give the result to
    /// [`ConnectionTable::merge_bootstrap`](crate::ConnectionTable::merge_bootstrap): so there is no gap.
    ///
    /// sock_diag(7) is asked, which knows the totals of TCP; where it is not to be had, /proc, whose records are partial.
    /// For the owners a running collector has an iterator over the files of all processes; else they come out of /proc.
    /// Of a started collector [`Capabilities::bootstrap`] says afterwards which way it was, and the limit of
    /// [`Feature::Existing`] why it was not a better one, how many network namespaces could not be entered or read, and of
    /// how many sockets the owner is out of sight. Blocks for
    /// as long as the search takes: milliseconds, or a second where there are many processes and it has to look at all
    /// their files in /proc.
    ///
    /// Bytes that arrive at a connection while it is looked at may count as read already; its next event, or its end, puts
    /// that right in a table.
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>>;
}

/// Collects through eBPF programs in the Linux kernel.
///
/// Needs root, or the capabilities CAP_BPF and CAP_PERFMON; the tracepoint backend's cgroup programs also need
/// CAP_NET_ADMIN. A dedicated thread reads the ring buffer. Dropping the collector stops it: the thread has ended when
/// `drop` returns, within 200 ms, and every program is detached; only the fentry backend's may take the kernel a second
/// or two, which then goes on without the caller. With [`spawn`](LinuxCollectorBuilder::spawn) the [`Events`](crate::Events)
/// hold it, too: tracing goes on until both are dropped, or it is stopped.
///
/// The library's threads block all signals but those of a thread's own faults, so the program's own go where it wants
/// them. In a process that was forked from the program a collector is without life: it has no events, stopping or dropping
/// it does nothing, and it can be started anew. The programs belong to the process that started them, and are detached
/// when that stops or dies, whoever was forked from it; only the memory of their maps stays until its children have ended,
/// too, or called exec(2). (Before Linux 5.9 they hold the programs as well.)
///
/// If the receiver is dropped, the collector ends by itself, as soon as it has an event or a loss to tell: the channel
/// shows only to who sends that nobody receives. On an idle machine, or with a filter that lets nothing pass, it runs until
/// then; to end it at once, stop or drop it.
///
/// # Examples
/// ```no_run
/// use tcptop::{CollectorEvent, LinuxCollector};
///
/// let (collector, events) = LinuxCollector::builder().spawn()?;
/// for event in &events {
///     if let CollectorEvent::TcpSend(sent) = event {
///         println!("{} {} bytes", sent.connection.key, sent.bytes);
///     }
/// }
/// # Ok::<(), tcptop::Error>(())
/// ```
pub struct LinuxCollector {
    config: Config,
    capabilities: Option<Capabilities>,
    existing: Mutex<Option<Finding>>,
    shared: Arc<Shared>,
    run: Option<Arc<Run>>,
}

impl fmt::Debug for LinuxCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxCollector")
            .field("config", &self.config)
            .field("running", &self.is_running())
            .finish_non_exhaustive()
    }
}

impl LinuxCollector {
    /// A builder with the default configuration.
    pub fn builder() -> LinuxCollectorBuilder {
        LinuxCollectorBuilder::new()
    }

    pub(crate) fn new(config: Config) -> Self {
        Self { config, capabilities: None, existing: Mutex::default(), shared: Arc::default(), run: None }
    }

    /// What the running (or last run) backend can see; none before the first start. About existing connections it says
    /// which way is to be expected, and after [`bootstrap_existing`](NetworkCollector::bootstrap_existing) what that has
    /// found to be so.
    pub fn capabilities(&self) -> Option<Capabilities> {
        self.capabilities.clone().map(|expected| self.as_found(expected))
    }

    /// These capabilities, with what the search for existing connections has found to be so.
    pub(crate) fn as_found(&self, mut capabilities: Capabilities) -> Capabilities {
        if let Some(finding) = self.existing().as_ref() {
            finding.tell(&mut capabilities);
        }
        capabilities
    }

    /// Which sockets there are now, by sock_diag(7), in all network namespaces that this process may enter: to
    /// [reconcile](crate::ConnectionTable::reconcile) a table with, now and then and after losses, so that no
    /// connection stays whose end was lost. Cheaper than
    /// [`bootstrap_existing`](NetworkCollector::bootstrap_existing): it asks for nothing but ids. Blocks meanwhile; the
    /// collector goes on.
    ///
    /// Where events have ids of their own (before Linux 5.12, of UDP with kprobes on any), no sockets are
    /// [covered](Survey::covers).
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel lists its sockets nowhere: it has no INET_DIAG, or sock_diag is forbidden.
    pub fn survey(&self) -> Result<Survey> {
        let protocols = [Protocol::Tcp, Protocol::Udp].into_iter().filter(|&p| self.events_have_cookies(p));
        bootstrap::survey(protocols.collect())
    }

    /// Whether sockets have the same ids in events as the kernel lists. Before the start nothing has other ones.
    fn events_have_cookies(&self, protocol: Protocol) -> bool {
        let Some(can) = &self.capabilities else { return true };
        let are_made_up = protocol == Protocol::Udp && can.backend == Backend::Kprobe;
        can.visibility(Feature::SocketCookie) != Visibility::Unseen && !are_made_up
    }

    /// How existing connections were found in this run, the last time. Nobody panics while holding it.
    fn existing(&self) -> MutexGuard<'_, Option<Finding>> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters of this run, or of the last one. Updated ten times per second, or more often if the interval is shorter.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Is it tracing? False before the start, after the stop, and once it has found that the receiver is gone.
    pub fn is_running(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_going_on())
    }

    /// What keeps it going.
    pub(crate) fn run(&self) -> Option<Arc<Run>> {
        self.run.clone()
    }

    /// Was it made in this process, and not in one that this was forked from?
    pub(crate) fn is_ours(&self) -> bool {
        self.shared.is_ours()
    }

    /// Starts like [`NetworkCollector::start`], but hands the events out many at once, without a channel between: for
    /// those who have millions of them per second. The function is called on the collector's own thread, with some 256
    /// events or what there is, and no more once [`stop`](NetworkCollector::stop) has returned. While it runs nothing is
    /// read, and `stop` waits for it; what does not fit into the ring meanwhile is lost, and counted as
    /// [`LossPlace::Ring`](crate::LossPlace). If it panics the collector ends. It may stop or drop the collector, which
    /// then does not wait but ends when the function has returned, and start it again.
    ///
    /// # Errors
    /// Those of [`NetworkCollector::start`].
    pub fn start_batches(&mut self, handler: impl FnMut(&[CollectorEvent]) + Send + 'static) -> Result<()> {
        self.start_output(Output::batches(handler))
    }

    fn start_output(&mut self, output: Output) -> Result<()> {
        if self.is_running() {
            return Err(Error::AlreadyRunning);
        }
        self.run = None;
        let Traced { session, early, shared, .. } = self.trace()?;
        let thread = spawn_reader(session, self.config.clone(), early, output, Arc::clone(&shared))?;
        self.run = Some(Arc::new(Run::new(thread, Arc::clone(&shared))));
        self.shared = shared;
        Ok(())
    }

    /// A reader for who has no use for a thread, where its events arrive, and what there is to be seen.
    pub(crate) fn start_here(&mut self) -> Result<(Reader, Receiver<CollectorEvent>, Capabilities)> {
        let Traced { session, early, shared, capabilities } = self.trace()?;
        let (tx, events) = unbounded();
        let output = Output::Channel { tx, when_full: WhenFull::Drop };
        let reader = Reader::new(session, &self.config, output, Arc::clone(&shared))?;
        reader.deliver(early);
        self.shared = shared;
        Ok((reader, events, capabilities))
    }

    /// Gets the programs into the kernel; from then on there are events.
    fn trace(&mut self) -> Result<Traced> {
        let session = open_session(&self.config)?;
        let shared = Arc::new(Shared::default());
        shared.set_kernel_memory(session.kernel_memory_bytes);
        let mut capabilities = session.capabilities.clone();
        let (holders, finding) = bootstrap::prepare(self.config.bootstrap);
        finding.tell(&mut capabilities);
        *shared.holders() = holders;
        let early = self_test(&session, &self.config, &mut capabilities)?;
        self.capabilities = Some(capabilities.clone());
        *self.existing() = None;
        Ok(Traced { session, early, shared, capabilities })
    }
}

/// What a reader starts with.
struct Traced {
    session: Session,
    /// Records that have been taken out of the ring already.
    early: Vec<Vec<u8>>,
    shared: Arc<Shared>,
    capabilities: Capabilities,
}

impl NetworkCollector for LinuxCollector {
    fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()> {
        self.start_output(Output::Channel { tx, when_full: self.config.when_full })
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(run) = self.run.take() {
            run.end();
        }
        Ok(())
    }

    fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        // Where this process was forked, somebody else may have held the lock.
        let (mut found, finding) = if self.is_ours() {
            bootstrap::existing_connections(self.config.bootstrap, &self.shared.holders())?
        } else {
            bootstrap::existing_connections(self.config.bootstrap, &Err(reader::NOT_RUNNING.into()))?
        };
        *self.existing() = Some(finding);
        bootstrap::forget_ids(&mut found, |protocol| !self.events_have_cookies(protocol));
        found.retain(|record| self.config.filter.wants(record));
        Ok(found)
    }
}

/// Tries out what was attached. Returns the records of other sockets that came in meanwhile.
fn self_test(session: &Session, config: &Config, capabilities: &mut Capabilities) -> Result<Vec<Vec<u8>>> {
    // What the user does not want to see, the test would not see either.
    if !config.self_test || config.filter != Filter::default() {
        return Ok(Vec::new());
    }
    let (checks, others) = self_test::run(session)?;
    capabilities.learn(checks);
    Ok(others)
}

/// Says in the user's terms what forbids tracing, before the kernel says it in its own.
fn open_session(config: &Config) -> Result<Session> {
    host::check_privileges()?;
    if !Path::new(BTF).exists() {
        return Err(Error::NoBtf { path: BTF.into() });
    }
    let facts = kernel::collect_facts();
    let started = check_kernel(&facts).map(|()| kernel::start(config, &facts));
    // Then what was found out of the kernel is wrong, too, and so is the reason.
    if !matches!(started, Ok(Ok(_))) && descriptors_left() < DESCRIPTORS {
        return Err(Error::TooFewDescriptors { left: descriptors_left(), needed: DESCRIPTORS });
    }
    started?.map_err(|e| match e {
        LoadError::Unavailable(step) => {
            Error::BackendUnavailable { backend: step.backend, reason: step.reason }
        }
        LoadError::Nothing(steps) => {
            Error::NoBackend { reasons: steps.iter().map(ToString::to_string).collect() }
        }
    })
}

/// How many more files this process may open; none where even that cannot be looked at.
fn descriptors_left() -> u64 {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    std::fs::read_dir("/proc/self/fd").map_or(0, |open| most.saturating_sub(open.count() as u64))
}

/// A kernel that loads typed programs but none with a ring buffer is too old.
fn check_kernel(facts: &Facts) -> Result<()> {
    if facts.typed_tracepoints.is_ok() && !facts.ring_buffer {
        return Err(Error::KernelTooOld { what: "BPF ring buffer" });
    }
    Ok(())
}

fn spawn_reader(
    session: Session,
    config: Config,
    early: Vec<Vec<u8>>,
    output: Output,
    shared: Arc<Shared>,
) -> Result<JoinHandle<()>> {
    let (ready_tx, ready_rx) = bounded(1);
    let read = move || {
        // If nobody waits for the answer any more, there is nobody to tell.
        let ready = |result| drop(ready_tx.send(result));
        reader::run(session, &config, early, output, shared, ready);
    };
    let thread = threads::spawn("tcptop-reader", read).map_err(Error::Thread)?;
    match ready_rx.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(Error::Thread(std::io::Error::other("it ended at once"))),
    }
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
        // Where nothing loads at all, the age of the kernel is not what is wrong.
        assert!(check_kernel(&facts(Err("refused".into()), false)).is_ok());
    }

    #[test]
    fn collectors_can_be_handed_to_other_threads() {
        fn is_send<T: Send + Sync + 'static>() {}
        is_send::<LinuxCollector>();
        is_send::<CollectorEvent>();
        is_send::<Error>();
        is_send::<crate::ConnectionTable>();
    }

    #[test]
    fn a_collector_that_was_never_started_stops_and_has_nothing_to_say() {
        let mut collector = LinuxCollector::builder().build().unwrap();
        assert!(!collector.is_running());
        assert_eq!(collector.capabilities(), None);
        assert_eq!(collector.stats(), Stats::default());
        collector.stop().unwrap();
    }
}
