// SPDX-License-Identifier: MIT OR Apache-2.0
//! The collector that users start and stop.

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

/// A source of network events.
///
/// [`LinuxCollector`] has these methods itself. The trait is for programs that also use other sources, such as a
/// recording.
pub trait NetworkCollector {
    /// Starts to send events into this channel. See [`LinuxCollector::start`].
    ///
    /// # Errors
    /// The source cannot start; the error says why.
    fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()>;

    /// Stops, and closes the channel. See [`LinuxCollector::stop`].
    ///
    /// # Errors
    /// Events may be missing; the error says why.
    fn stop(&mut self) -> Result<()>;

    /// Lists existing connections. See [`LinuxCollector::bootstrap_existing`].
    ///
    /// # Errors
    /// The connections cannot be listed; the error says why.
    fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>>;

    /// The features that this source sees. None before the first start.
    fn capabilities(&self) -> Option<Capabilities>;

    /// How many events were delivered, and how many were lost.
    fn stats(&self) -> Stats;
}

/// Collects events through eBPF programs in the Linux kernel. A thread of its own reads them.
///
/// # Privileges
/// A start needs root, or the capabilities CAP_BPF and CAP_PERFMON. The cgroup programs of the tracepoint backend also
/// need CAP_NET_ADMIN.
///
/// # How it ends
/// - Drop the collector to stop it. `drop` returns within 200 ms; then the thread has ended and every program is
///   detached. (With fentry the kernel may take a second or two to detach programs. `drop` does not wait for that.)
/// - With [`spawn`](crate::LinuxCollectorBuilder::spawn), the [`Events`](crate::Events) keep the collector going, too.
///   Tracing goes on until both are dropped, or until you stop it.
/// - If you drop all receivers of the channel, the collector ends by itself, at its next event or report of losses. On
///   an idle machine, or with a filter that lets nothing pass, this may take long.
///
/// # Signals and fork
/// The library's threads block all signals, except the signals of a thread's own faults, such as SIGSEGV.
///
/// In a forked child the collector does nothing: it has no events, and `stop` and `drop` have no effect. The child may
/// start it anew.
///
/// The BPF programs belong to the process that started them. They are detached when that process stops them or dies,
/// whatever children it has. The memory of their maps stays until the children have ended, too, or called exec(2).
/// (Before Linux 5.9 the programs also stay attached until then.)
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

    /// Starts to send events into this channel. The same as [`start_with`](Self::start_with) with this sender.
    ///
    /// Blocks until tracing is live, some hundred milliseconds. So no connection that begins afterwards is missed.
    ///
    /// # Errors
    /// Those of [`start_with`](Self::start_with).
    pub fn start(&mut self, tx: Sender<CollectorEvent>) -> Result<()> {
        self.start_with(tx)
    }

    /// Starts to hand events to this handler: the sender of a channel, or a function for batches of events.
    ///
    /// Blocks until tracing is live, some hundred milliseconds. So no connection that begins afterwards is missed. The
    /// handler gets no more events after [`stop`](Self::stop) has returned.
    ///
    /// # Errors
    /// Every variant of [`Error`] is possible, except [`Error::InvalidConfig`], which the
    /// [builder](crate::LinuxCollectorBuilder::build) has ruled out. [`Error::Proc`] comes if the capabilities of the
    /// calling thread cannot be read in /proc.
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

    /// Detaches every program, delivers the remaining events, and closes the channel.
    ///
    /// Blocks for up to 200 ms, also under load. If the handler is a function, `stop` waits until it has returned.
    ///
    /// The events in the ring buffer are delivered as far as the channel has room. Ends of connections that wait for
    /// room are delivered as long as the receiver takes some.
    ///
    /// # Errors
    /// None today. To stop a collector that does not run is no error.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(run) = self.run.take() {
            run.end();
        }
        Ok(())
    }

    /// Lists the existing connections that pass the filter, in all network namespaces that this process may enter.
    ///
    /// Start the collector first, then call this, and give the result to
    /// [`ConnectionTable::merge_bootstrap`](crate::ConnectionTable::merge_bootstrap). Then no connection is missed.
    ///
    /// Blocks during the search: for milliseconds, or for a second if it scans the files of many processes in /proc.
    ///
    /// # Sources
    /// The connections come from sock_diag(7), with the totals of TCP. If sock_diag does not work, they come from
    /// /proc, without totals, and are partial. A running collector finds the owners by an iterator over the files of
    /// all processes. Without an iterator, the owners come from /proc.
    ///
    /// Afterwards [`Capabilities::bootstrap`] says which source was used. The limit of
    /// [`Feature::Existing`](crate::Feature::Existing) says why it was not a better source. It also counts the network
    /// namespaces that could not be entered or read, and the sockets whose owner is out of sight.
    ///
    /// Bytes that arrive at a connection during the search may count as read already. In a table, the next event of the
    /// connection corrects this.
    ///
    /// # Privileges
    /// None for the connections of this network namespace. Other namespaces need CAP_SYS_ADMIN. Owners of other users
    /// need root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, if they come from /proc.
    ///
    /// # Errors
    /// [`Error::Proc`] if /proc cannot be read.
    pub fn bootstrap_existing(&self) -> Result<Vec<ConnectionRecord>> {
        self.tracer.bootstrap_existing()
    }

    /// Lists the ids of all sockets that exist now, in all network namespaces that this process may enter.
    ///
    /// Give the survey to [`ConnectionTable::reconcile`](crate::ConnectionTable::reconcile) now and then, and after
    /// losses. So a connection whose end was lost does not stay in the table.
    ///
    /// Blocks for some milliseconds; the collector goes on meanwhile. A survey is cheaper than
    /// [`bootstrap_existing`](Self::bootstrap_existing), because it asks sock_diag(7) for ids alone.
    ///
    /// Before Linux 5.12, and for UDP with kprobes on any kernel, events have ids that the kernel does not list. A
    /// survey does not [cover](Survey::covers) these sockets. Other network namespaces need CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// [`Error::Kernel`] if no namespace can be listed: the kernel has no INET_DIAG, or sock_diag is forbidden.
    pub fn survey(&self) -> Result<Survey> {
        self.tracer.survey()
    }

    /// The features that the backend of the current or latest run sees. None before the first start.
    ///
    /// For existing connections, it names the expected source, and after
    /// [`bootstrap_existing`](Self::bootstrap_existing) the source that was used.
    pub fn capabilities(&self) -> Option<Capabilities> {
        self.tracer.capabilities()
    }

    /// The counters of the current or latest run. They are updated ten times per second, or once per shorter interval.
    pub fn stats(&self) -> Stats {
        self.tracer.stats()
    }

    /// Is it tracing? False before the start, after the stop, and after it has found that all receivers are gone.
    pub fn is_running(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_going_on())
    }

    /// The current run, for [`Events`](crate::Events) to keep it going.
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

/// Starts the reader's thread. Returns when the reader is ready, or has failed.
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
    fn a_collector_that_was_never_started_can_stop_and_has_empty_statistics() {
        let mut collector = LinuxCollector::builder().build().unwrap();
        assert!(!collector.is_running());
        assert_eq!(collector.capabilities(), None);
        assert_eq!(collector.stats(), Stats::default());
        collector.stop().unwrap();
    }
}
