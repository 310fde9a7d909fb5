// SPDX-License-Identifier: MIT OR Apache-2.0
//! The collector: what users start and stop.

use crate::capabilities::Capabilities;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::CollectorEvent;
use crate::output::{EventHandler, Output};
use crate::record::ConnectionRecord;
use crate::run::Run;
use crate::stats::Stats;
use crate::survey::Survey;
use crate::threads;
use crate::tracer::{Start, Tracer};
use crossbeam_channel::{Sender, bounded};
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A source of network events. [`LinuxCollector`] has these methods itself: this trait is for programs that work with
/// other sources, too, such as a recording.
pub trait NetworkCollector {
    /// Starts to send events into this channel. See [`LinuxCollector::start`].
    ///
    /// # Errors
    /// Why there can be no events.
    fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()>;

    /// Stops, and closes the channel. See [`LinuxCollector::stop`].
    ///
    /// # Errors
    /// Why events may be missing.
    fn stop(&mut self) -> Result<()>;

    /// The connections that exist already. See [`LinuxCollector::bootstrap_existing`].
    ///
    /// # Errors
    /// Why they cannot be listed.
    fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>>;

    /// What this source can see; none before the first start.
    fn capabilities(&self) -> Option<Capabilities>;

    /// What was delivered, and what was lost.
    fn stats(&self) -> Stats;
}

/// Collects through eBPF programs in the Linux kernel.
///
/// Needs root, or the capabilities CAP_BPF and CAP_PERFMON; the tracepoint backend's cgroup programs also need
/// CAP_NET_ADMIN. A dedicated thread reads the ring buffer.
///
/// # Its end
/// - Dropping the collector stops it. The thread has ended when `drop` returns, within 200 ms, and every program is
///   detached. (With fentry the kernel may take a second or two to detach; that goes on without the caller.)
/// - With [`spawn`](crate::LinuxCollectorBuilder::spawn) the [`Events`](crate::Events) hold the collector, too. Tracing
///   goes on until both are dropped, or it is stopped.
/// - If all receivers of the channel are dropped, the collector ends by itself with its next event or report of losses.
///   On an idle machine, or with a filter that lets nothing pass, it runs until then.
///
/// # Signals and fork
/// The library's threads block all signals, except those by which the kernel tells a thread of its own fault.
///
/// In a process that was forked from the program the collector does nothing: it has no events, and stopping or dropping
/// it has no effect. It can be started anew there. The programs belong to the process that started them. They are
/// detached when that process stops them or dies, whatever children it has. The memory of their maps stays until its
/// children have ended, too, or called exec(2). (Before Linux 5.9 children hold the programs as well.)
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
#[must_use = "dropping a collector stops it"]
pub struct LinuxCollector {
    tracer: Tracer,
    run: Option<Arc<Run>>,
}

impl fmt::Debug for LinuxCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxCollector")
            .field("config", &self.tracer.config)
            .field("running", &self.is_running())
            .finish_non_exhaustive()
    }
}

impl LinuxCollector {
    pub(crate) fn new(config: Config) -> Self {
        Self { tracer: Tracer::new(config), run: None }
    }

    /// Starts to send events into this channel. Returns when tracing is live, so that no connection made afterwards is
    /// missed, or with the reason why it cannot be. The same as [`start_with`](Self::start_with) with this sender.
    ///
    /// # Errors
    /// Those of [`start_with`](Self::start_with).
    pub fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()> {
        self.start_with(tx)
    }

    /// Starts to hand events to this handler: the sender of a channel, or a function for batches of events. Returns when
    /// tracing is live. The handler gets no more events once [`stop`](Self::stop) has returned.
    ///
    /// # Errors
    /// Everything in [`Error`] but [`Error::InvalidConfig`], which the
    /// [builder](crate::LinuxCollectorBuilder::build) has ruled out. [`Error::Proc`] if /proc does not tell which
    /// capabilities the calling thread has.
    pub fn start_with(&mut self, handler: impl EventHandler) -> Result<()> {
        if self.is_running() {
            return Err(Error::AlreadyRunning);
        }
        self.run = None;
        let output = handler.into_output(self.tracer.config.when_full);
        let run = self.tracer.start(|start| {
            let shared = Arc::clone(&start.shared);
            Ok(Run::new(spawn_reader(start, output)?, shared))
        })?;
        self.run = Some(Arc::new(run));
        Ok(())
    }

    /// Stops: detaches every program, delivers the events that are in the ring buffer as far as the channel has room,
    /// and closes the channel. Ends of connections that wait for room are delivered as long as the receiver takes some.
    /// Returns within 200 ms, also under load; a handler that is a function is waited for. Stopping a collector that does
    /// not run is no error.
    ///
    /// # Errors
    /// None today.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(run) = self.run.take() {
            run.end();
        }
        Ok(())
    }

    /// The connections that exist already and pass the filter, in all network namespaces that this process may enter.
    /// Call it after the start and give the result to
    /// [`ConnectionTable::merge_bootstrap`](crate::ConnectionTable::merge_bootstrap): so there is no gap.
    ///
    /// It asks sock_diag(7), which knows the totals of TCP. Where sock_diag is not to be had it reads /proc, whose records
    /// are partial. A running collector finds the owners by an iterator over the files of all processes; else they come
    /// out of /proc. Afterwards [`Capabilities::bootstrap`] says which way it was. The limit of
    /// [`Feature::Existing`](crate::Feature::Existing) says why it was not a better one, how many network namespaces
    /// could not be entered or read, and of how many sockets the owner is out of sight.
    ///
    /// Blocks for as long as the search takes: milliseconds, or a second where it has to look at the files of many
    /// processes in /proc.
    ///
    /// Bytes that arrive at a connection during the search may count as read already. The connection's next event, or its
    /// end, puts that right in a table.
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    pub fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        self.tracer.bootstrap_existing()
    }

    /// Which sockets there are now, by sock_diag(7), in all network namespaces that this process may enter. Give it to
    /// [`ConnectionTable::reconcile`](crate::ConnectionTable::reconcile) now and then, and after losses, so that no
    /// connection stays whose end was lost.
    ///
    /// Cheaper than [`bootstrap_existing`](Self::bootstrap_existing): it asks for nothing but ids. Blocks for some
    /// milliseconds; the collector goes on meanwhile.
    ///
    /// Where events have ids of their own (before Linux 5.12, of UDP with kprobes on any), no sockets are
    /// [covered](Survey::covers).
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel lists its sockets nowhere: it has no INET_DIAG, or sock_diag is forbidden.
    pub fn survey(&self) -> Result<Survey> {
        self.tracer.survey()
    }

    /// What the running (or last run) backend can see; none before the first start. About existing connections it says
    /// which way is to be expected, and after [`bootstrap_existing`](Self::bootstrap_existing) how they were found.
    pub fn capabilities(&self) -> Option<Capabilities> {
        self.tracer.capabilities()
    }

    /// Counters of this run, or of the last one. Updated ten times per second, or more often if the interval is shorter.
    pub fn stats(&self) -> Stats {
        self.tracer.stats()
    }

    /// Is it tracing? False before the start, after the stop, and once it has found that the receiver is gone.
    pub fn is_running(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_going_on())
    }

    /// What keeps it going.
    pub(crate) fn run(&self) -> Option<Arc<Run>> {
        self.run.clone()
    }
}

impl NetworkCollector for LinuxCollector {
    fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()> {
        self.start_with(tx)
    }

    fn stop(&mut self) -> Result<()> {
        Self::stop(self)
    }

    fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        Self::bootstrap_existing(self)
    }

    fn capabilities(&self) -> Option<Capabilities> {
        Self::capabilities(self)
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }
}

/// Begins the reader's thread. Returns when the reader is ready, or with the reason why it is not.
fn spawn_reader(start: Start, output: Output) -> Result<JoinHandle<()>> {
    let (tell, told) = bounded(1);
    let read = move || {
        let answer = match start.reader(output) {
            Ok(reader) => {
                drop(tell.send(Ok(())));
                return reader.run();
            }
            Err(e) => Err(e),
        };
        // If nobody waits for the answer any more, there is nobody to tell.
        drop(tell.send(answer));
    };
    let thread = threads::spawn("tcptop-reader", read).map_err(Error::Thread)?;
    match told.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(Error::Thread(std::io::Error::other("it ended at once"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_can_be_handed_to_other_threads() {
        fn is_send<T: Send + 'static>() {}
        fn is_sync<T: Sync>() {}
        is_send::<LinuxCollector>();
        is_sync::<LinuxCollector>();
        is_send::<crate::Poller>();
        is_send::<CollectorEvent>();
        is_send::<Error>();
        is_sync::<Error>();
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
