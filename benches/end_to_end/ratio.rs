// SPDX-License-Identifier: MIT OR Apache-2.0
//! With the tracer and without, in turns.

use crate::floor::Floor;
use crate::loads::{FIRST, Load, SECOND, nanoseconds_per_operation, pin};
use std::fmt;
use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tcptop::{Backend, Granularity, LinuxCollector, Stats};

const PAIRS: usize = 30;
const SLICE: Duration = Duration::from_millis(60);
/// For what the tracer does when nothing changes.
const STEADY: Duration = Duration::from_secs(4);
const WARM_UP: Duration = Duration::from_millis(15);
/// In which the kernel finishes what starting and stopping a tracer leaves behind.
const REST: Duration = Duration::from_millis(20);

/// A median and its quartiles.
pub(crate) struct Ratio {
    median: f64,
    quartiles: [f64; 2],
}

impl Ratio {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values[(values.len() - 1) * part / 4];
        Self { median: at(2), quartiles: [at(1), at(3)] }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}–{:.3}]", self.median, self.quartiles[0], self.quartiles[1])
    }
}

pub(crate) struct Measured {
    pub(crate) ratio: Ratio,
    /// An operation without the tracer: this machine's alone.
    pub(crate) without: Duration,
    /// What the tracer itself did meanwhile.
    pub(crate) tool: String,
}

pub(crate) fn measure(load: &mut dyn Load, granularity: Granularity) -> Measured {
    let mut tool = Tool::default();
    let (ratio, without) = alternate(load, |load| traced(load, granularity, &mut tool));
    Measured { ratio, without, tool: tool.to_string() }
}

/// What these programs cost at the same hooks.
pub(crate) fn floor(load: &mut dyn Load, programs: &str, backend: Backend) -> Ratio {
    let with_them = |load: &mut dyn Load| {
        let _attached = Floor::attach(programs, backend);
        slice(load)
    };
    alternate(load, with_them).0
}

/// The ratio of slices with something to slices without, and how long an operation takes without.
fn alternate(load: &mut dyn Load, mut slice_with: impl FnMut(&mut dyn Load) -> f64) -> (Ratio, Duration) {
    let (mut ratios, mut baseline) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // The other way round each time: what grows with time weighs on both.
        let (with, without) = if pair % 2 == 0 {
            let with = slice_with(load);
            (with, slice(load))
        } else {
            let without = slice(load);
            (slice_with(load), without)
        };
        ratios.push(with / without);
        baseline.push(without);
    }
    (Ratio::of(ratios), Duration::from_nanos(Ratio::of(baseline).median as u64))
}

pub(crate) fn slice(load: &mut dyn Load) -> f64 {
    thread::sleep(REST);
    load.run(WARM_UP);
    nanoseconds_per_operation(load, SLICE)
}

fn traced(load: &mut dyn Load, granularity: Granularity, tool: &mut Tool) -> f64 {
    // Threads begin where those that start them are.
    pin(SECOND);
    let (mut collector, events) =
        LinuxCollector::builder().granularity(granularity).spawn().expect("tracing needs root");
    let folding: JoinHandle<()> = thread::Builder::new()
        .name("receiver".into())
        .spawn(move || {
            for event in &events {
                std::hint::black_box(event);
            }
        })
        .expect("a thread");
    let (begin, busy) = (Instant::now(), busy("tcptop-"));
    let time = slice(load);
    tool.busy += self::busy("tcptop-") - busy;
    tool.time += begin.elapsed();
    collector.stop().expect("stops");
    folding.join().expect("ends with the channel");
    let Stats { events, .. } = collector.stats();
    tool.events += events;
    tool.lost += collector.stats().lost_total();
    time
}

/// The share of a processor that the tracer takes while there is no traffic.
pub(crate) fn idle() -> String {
    let share = steady_share(|| thread::sleep(STEADY));
    format!("{share:.3} % of a core")
}

/// The same under load, when it has come to rest; and how many calls there were.
pub(crate) fn loaded(load: &mut dyn Load, calls_each: u64) -> String {
    load.run(WARM_UP);
    let mut operations = 0;
    let share = steady_share(|| operations = load.run(STEADY));
    let calls = (operations * calls_each) as f64 / STEADY.as_secs_f64();
    format!("{share:.2} % of a core, {:.0},000 calls/s", calls / 1e3)
}

fn steady_share(during: impl FnOnce()) -> f64 {
    pin(SECOND);
    let (mut collector, events) = LinuxCollector::builder().spawn().expect("tracing needs root");
    pin(FIRST);
    let folding = thread::spawn(move || events.iter().for_each(drop));
    // Until what starting it makes it do is done.
    thread::sleep(Duration::from_secs(1));
    let (begin, before) = (Instant::now(), busy("tcptop-"));
    during();
    let share = (busy("tcptop-") - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    collector.stop().expect("stops");
    folding.join().expect("ends with the channel");
    100.0 * share
}

/// What the tracer's own threads did.
#[derive(Default)]
struct Tool {
    busy: Duration,
    time: Duration,
    events: u64,
    lost: u64,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.busy.as_secs_f64() / self.time.as_secs_f64();
        let events = self.events as f64 / PAIRS as f64;
        write!(f, "tool: {share:.2} % of a core, {events:.0} events a slice, {} lost", self.lost)
    }
}

/// Processor time of this process's threads with such a name.
pub(crate) fn busy(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("/proc");
    let of_thread = |path: std::path::PathBuf| {
        let comm = fs::read_to_string(path.join("comm")).ok().filter(|comm| comm.starts_with(name))?;
        drop(comm);
        let schedstat = fs::read_to_string(path.join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    threads.flatten().filter_map(|thread| of_thread(thread.path())).sum()
}
