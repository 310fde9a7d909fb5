// SPDX-License-Identifier: MIT OR Apache-2.0
//! A collector under test, and everything it has said so far.

use crate::audit::Audit;
use crossbeam_channel::RecvTimeoutError;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{
    Backend, Capabilities, CollectorEvent, ConnectionRecord, ConnectionTable, EventKind, Events, Feature,
    Granularity, KernelTime, LinuxCollector, LinuxCollectorBuilder, LossPlace, Protocol, StateChange, Stats,
    Transfer, Visibility,
};

/// Generous: guests without hardware virtualization are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What does not add up may still: where several processes share a socket, what one of them moved may be reported after
/// the end, and the tracer looks once a second whether programs were skipped.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// What is counted twice comes with the next sweep: three intervals of the default granularity.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(300);

/// The backend that this run is about; none lets the library choose.
pub(crate) fn wanted_backend() -> Option<Backend> {
    let name = std::env::var("TCPTOP_TEST_BACKEND").ok()?;
    let found = Backend::ALL.into_iter().find(|b| b.as_str() == name);
    Some(found.unwrap_or_else(|| panic!("TCPTOP_TEST_BACKEND={name} is no backend")))
}

/// What the table of scenarios promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Exact,
    /// The lesser answer that the table explains.
    Lesser,
}

pub(crate) const SCENARIOS: &str = include_str!("../scenarios.md");

/// The cells of the table's rows: number, scenario, expected, tests, and the answer of each backend.
pub(crate) fn scenarios() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = SCENARIOS.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #"));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
}

/// What the table promises for this scenario and backend, which a test must then demand.
pub(crate) fn answer(scenario: u32, backend: Backend) -> Answer {
    let number = scenario.to_string();
    let row = scenarios().find(|row| row[0] == number).expect("every scenario has a row");
    let column = Backend::ALL.iter().position(|&b| b == backend).expect("every backend has a column");
    if row[4 + column] == "exact" { Answer::Exact } else { Answer::Lesser }
}

/// This machine cannot bring a scenario about, and the test has proved that. It goes past the test harness, which would
/// hide it, to the log, where `tests/run` finds it: a gap must be seen.
pub(crate) fn absent(scenario: u32, why: &str) {
    let line = format!("\n@absent {scenario} {why}\n");
    // SAFETY: writes bytes that are there. If nobody reads them, there is nobody to tell.
    unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len()) };
}

/// A builder for the backend under test.
pub(crate) fn builder() -> LinuxCollectorBuilder {
    let builder = LinuxCollector::builder();
    match wanted_backend() {
        Some(backend) => builder.backend(backend),
        None => builder,
    }
}

/// A collector that runs, where its events arrive, and how many of them were taken.
type Running = (LinuxCollector, Events, u64);

/// What many tests want of a collector. One of each goes from test to test: in an emulated guest each start takes seconds,
/// and a collector that has been running for a while is what users have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    /// The default configuration, self-tested.
    Default,
    PerCall,
}

impl Shared {
    fn builder(self) -> LinuxCollectorBuilder {
        match self {
            Self::Default => builder().self_test(true),
            Self::PerCall => builder().granularity(Granularity::PerCall),
        }
    }
}

/// Those that no test uses right now.
static PARKED: Mutex<Vec<(Shared, Running)>> = Mutex::new(Vec::new());

/// A running collector, the events it has sent, and the table they make.
pub(crate) struct Trace {
    pub(crate) collector: LinuxCollector,
    events: Events,
    /// Since the collector has started; without those that report losses, which it does not count.
    taken: u64,
    /// Where it is parked afterwards, if other tests may have it.
    shared: Option<Shared>,
    /// When this test got it, if others may have had it before: what is older, and still on its way, is theirs.
    since: KernelTime,
    audit: Audit,
    pub(crate) seen: Vec<CollectorEvent>,
    pub(crate) table: ConnectionTable,
}

impl Trace {
    /// With the default configuration; it may have been running for a while. A test for which that matters takes a
    /// [`fresh`](Self::fresh) one.
    pub(crate) fn start() -> Self {
        Self::shared(Shared::Default)
    }

    /// With an event per call; it may have been running for a while.
    pub(crate) fn per_call() -> Self {
        Self::shared(Shared::PerCall)
    }

    fn shared(shared: Shared) -> Self {
        let known = {
            let mut parked = parked();
            let place = parked.iter().position(|(kind, _)| *kind == shared);
            place.map(|place| parked.swap_remove(place).1)
        };
        let (collector, events, taken) = known.unwrap_or_else(|| Self::spawn(shared.builder()));
        // What is left of the tests before.
        let stale = events.try_iter().filter(|event| event.kind().is_some()).count() as u64;
        let mut trace = Self::of((collector, events, taken + stale));
        trace.shared = Some(shared);
        trace.since = KernelTime::now();
        trace
    }

    /// With the default configuration, started now.
    pub(crate) fn fresh() -> Self {
        Self::with(builder())
    }

    /// With a configuration of the test's own, started now.
    pub(crate) fn with(builder: LinuxCollectorBuilder) -> Self {
        Self::of(Self::spawn(builder))
    }

    fn spawn(builder: LinuxCollectorBuilder) -> Running {
        let (collector, events) = builder.channel_capacity(1 << 18).spawn().expect("the collector starts");
        (collector, events, 0)
    }

    fn of((collector, events, taken): Running) -> Self {
        let table = ConnectionTable::new().linger(Duration::MAX).max_connections(1 << 20);
        let audit = Audit::since(Stats::default());
        let since = KernelTime::default();
        let mut trace =
            Self { collector, events, taken, shared: None, since, audit, seen: Vec::new(), table };
        trace.audit = Audit::since(trace.counters());
        trace
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.collector.capabilities().expect("a started collector has capabilities")
    }

    pub(crate) fn backend(&self) -> Backend {
        self.capabilities().backend()
    }

    pub(crate) fn sees(&self, feature: Feature) -> Visibility {
        self.capabilities().visibility(feature).clone()
    }

    fn take(&mut self, event: CollectorEvent) {
        self.taken += u64::from(event.kind().is_some());
        if event.connection().is_some_and(|connection| connection.time < self.since) {
            return;
        }
        self.table.apply(&event);
        self.seen.push(event);
    }

    /// Takes what there is by now; more may come as fast as it is taken.
    pub(crate) fn drain(&mut self) {
        for _ in 0..self.events.len() {
            let Ok(event) = self.events.try_recv() else { return };
            self.take(event);
        }
    }

    /// Takes events until what is looked for is there.
    pub(crate) fn until<T>(&mut self, what: &str, mut find: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = find(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "not seen: {what}\n{}", self.dump());
            match self.events.recv_deadline(deadline) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the collector ended; not seen: {what}"),
            }
            self.drain();
        }
    }

    /// Takes events for so long, for tests of what must not come. A collector that was stopped ends it at once.
    pub(crate) fn listen(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let Ok(event) = self.events.recv_deadline(deadline) else { return };
            self.take(event);
        }
    }

    /// Stops, and takes what was still on its way.
    pub(crate) fn stop(&mut self) {
        self.collector.stop().expect("stops");
        self.drain();
    }

    /// The only row with this protocol and local port.
    pub(crate) fn row(&self, protocol: Protocol, local: u16) -> Option<&ConnectionRecord> {
        let rows = self.rows(protocol, local);
        assert!(rows.len() <= 1, "several rows for {protocol} port {local}: {rows:#?}");
        rows.into_iter().next()
    }

    pub(crate) fn rows(&self, protocol: Protocol, local: u16) -> Vec<&ConnectionRecord> {
        let all = self.table.records();
        all.filter(|r| r.key.protocol == protocol && r.key.local_port == local).collect()
    }

    /// The row of a TCP connection by both ports.
    pub(crate) fn tcp(&self, local: u16, remote: u16) -> Option<&ConnectionRecord> {
        let rows = self.rows(Protocol::Tcp, local);
        rows.into_iter().find(|r| r.key.remote_port == remote)
    }

    /// Waits for the end of a TCP connection and returns its row.
    pub(crate) fn closed(&mut self, local: u16, remote: u16) -> ConnectionRecord {
        self.until(&format!("the end of tcp {local} -> {remote}"), |t| {
            let is_end = |e: &&CollectorEvent| {
                matches!(e, CollectorEvent::Closed(_) | CollectorEvent::ConnectFailed(_))
            };
            let ends = t.seen.iter().filter(is_end).filter(|e| ports(e) == (local, remote));
            let ended = ends.filter_map(|e| e.connection()).any(|c| c.key.protocol == Protocol::Tcp);
            ended.then(|| t.tcp(local, remote).cloned()).flatten()
        })
    }

    /// The row of a UDP flow by both ports.
    pub(crate) fn udp_flow(&self, local: u16, remote: u16) -> Option<ConnectionRecord> {
        let rows = self.rows(Protocol::Udp, local);
        rows.into_iter().find(|r| r.key.remote_port == remote).cloned()
    }

    /// Waits until a UDP flow has these totals, and checks after a while that it has no more.
    pub(crate) fn udp(&mut self, local: u16, remote: u16, bytes_in: u64, bytes_out: u64) -> ConnectionRecord {
        let what = format!("udp {local} -> {remote}: {bytes_in} in, {bytes_out} out");
        let are_there = |r: &ConnectionRecord| (r.bytes_in, r.bytes_out) == (bytes_in, bytes_out);
        self.until(&what, |t| t.udp_flow(local, remote).filter(are_there));
        self.listen(AFTERMATH);
        let row = self.udp_flow(local, remote).expect("rows stay");
        assert_eq!((row.bytes_in, row.bytes_out), (bytes_in, bytes_out), "{what}: more came later");
        row
    }

    pub(crate) fn transfers(&self) -> impl Iterator<Item = &Transfer> {
        self.seen.iter().filter_map(CollectorEvent::transfer)
    }

    pub(crate) fn states(&self, local: u16) -> Vec<&StateChange> {
        let changes = self.seen.iter().filter_map(|e| match e {
            CollectorEvent::TcpStateChange(s) => Some(s),
            _ => None,
        });
        changes.filter(|s| s.connection.key.local_port == local).collect()
    }

    /// The collector's counters, no older than the events that were taken: it shares them once per interval.
    fn counters(&self) -> Stats {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_final = !self.collector.is_running();
            let stats = self.collector.stats();
            if is_final || stats.events >= self.taken {
                return stats;
            }
            assert!(Instant::now() < deadline, "{} events taken, counted: {stats:?}", self.taken);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// See [`crate::audit`].
    fn audit(&mut self) {
        let deadline = Instant::now() + SECOND_LOOK;
        loop {
            self.drain();
            let stats = self.counters();
            let findings = self.audit.findings(&stats, &self.seen);
            if findings.is_empty() {
                return;
            }
            let may_change = self.collector.is_running() && Instant::now() < deadline;
            assert!(may_change, "{findings:#?}\n{stats:?}");
            self.listen(Duration::from_millis(50));
        }
    }

    fn dump(&self) -> String {
        let events: Vec<String> = self.seen.iter().rev().take(60).map(|e| format!("{e:?}")).collect();
        format!("stats: {:?}\nlatest events:\n{}", self.collector.stats(), events.join("\n"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.audit();
        }
        if let Some(shared) = self.shared.filter(|_| self.collector.is_running()) {
            let unstarted = LinuxCollector::builder().build().unwrap();
            let collector = std::mem::replace(&mut self.collector, unstarted);
            parked().push((shared, (collector, self.events.clone(), self.taken)));
        }
    }
}

/// A test that fails may leave the lock poisoned; what it protects is a collector like any other.
fn parked() -> MutexGuard<'static, Vec<(Shared, Running)>> {
    PARKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Local and remote port of an event.
pub(crate) fn ports(event: &CollectorEvent) -> (u16, u16) {
    event.connection().map_or((0, 0), |c| (c.key.local_port, c.key.remote_port))
}

/// Events lost for reasons of ours. (Programs that an emulated, preemptive kernel skips are counted too, but as much as
/// it likes to.)
pub(crate) fn lost_by_us(stats: &Stats) -> u64 {
    stats.losses.iter().filter(|(_, place, _)| *place != LossPlace::Hook).map(|(_, _, count)| count).sum()
}

/// Calls and changes of these kinds for which the kernel has run no program.
pub(crate) fn skipped(stats: &Stats, kinds: &[EventKind]) -> u64 {
    kinds.iter().map(|&kind| stats.lost(kind, LossPlace::Hook)).sum()
}

/// Whether this kernel runs emulated and slowly, as the guests do.
pub(crate) fn is_slow() -> bool {
    wanted_backend().is_some()
}
