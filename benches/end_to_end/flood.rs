// SPDX-License-Identifier: MIT OR Apache-2.0
//! How fast the reader is: a BPF program fills the ring buffer of a collector as fast as a processor can, and a receiver
//! folds what comes out of it into a table. None is lost: where the ring is full the program goes on later.

use crate::loads::{FIRST, SECOND, pin};
use crate::object;
use crate::ratio::busy;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Object, ProgramInput, RingBufferBuilder};
use std::cell::Cell;
use std::fmt;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, ConnectionTable, LinuxCollector, LinuxCollectorBuilder, WhenFull};

const EVENTS: u64 = 20_000_000;
/// How many records a run of the program writes.
const AT_ONCE: u32 = 8192;

pub(crate) struct Flood {
    per_second: f64,
    /// Processor time in user space and kernel of everything that deals with an event once it is in the ring.
    each: Duration,
    lost: u64,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, each, lost } = self;
        write!(f, "{:.1} M/s, {each:.0?} each, {lost} lost", per_second / 1e6)
    }
}

fn builder() -> LinuxCollectorBuilder {
    pin(SECOND);
    LinuxCollector::builder().ring_bytes(64 << 20).when_full(WhenFull::Wait)
}

/// Through the channel, to a thread of its own.
pub(crate) fn single() -> Flood {
    let (collector, events) = builder().spawn().expect("tracing needs root");
    let folded = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&folded);
    thread::Builder::new()
        .name("tcptop-receiver".into())
        .spawn(move || {
            let mut table = ConnectionTable::new();
            for event in events {
                fold(&mut table, &event, &count);
            }
        })
        .expect("a thread");
    measure(collector, &folded)
}

/// Many at once, on the collector's own thread.
pub(crate) fn batches() -> Flood {
    let folded = Arc::new(AtomicU64::new(0));
    let (mut table, count) = (ConnectionTable::new(), Arc::clone(&folded));
    let collector = builder().spawn_with(move |events: &[CollectorEvent]| {
        events.iter().for_each(|event| fold(&mut table, event, &count));
    });
    measure(collector.expect("tracing needs root"), &folded)
}

/// The same, and nothing is made of them: what is between a record and a slice of events.
pub(crate) fn handed_out() -> Flood {
    let folded = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&folded);
    let collector = builder().spawn_with(move |events: &[CollectorEvent]| {
        let sent =
            black_box(events).iter().filter(|event| matches!(event, CollectorEvent::TcpSend(_))).count();
        count.store(count.load(Ordering::Relaxed) + sent as u64, Ordering::Relaxed);
    });
    measure(collector.expect("tracing needs root"), &folded)
}

fn fold(table: &mut ConnectionTable, event: &CollectorEvent, count: &AtomicU64) {
    table.apply(event);
    if matches!(event, CollectorEvent::TcpSend(_)) {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

fn measure(mut collector: LinuxCollector, folded: &AtomicU64) -> Flood {
    let ring = MapInfoIter::default()
        .filter(|map| map.ty == MapType::RingBuf && map.name == "events")
        .max_by_key(|map| map.id)
        .and_then(|map| MapHandle::from_map_id(map.id).ok())
        .expect("the collector's ring");
    let mut source = Source::into(&ring, "flood");
    pin(FIRST);
    let (begin, before) = (Instant::now(), busy("tcptop-"));
    while source.flood() < EVENTS {}
    while folded.load(Ordering::Relaxed) < EVENTS {
        thread::sleep(Duration::from_micros(100));
    }
    let (time, busy) = (begin.elapsed(), busy("tcptop-") - before);
    collector.stop().expect("stops");
    let lost = collector.stats().lost_total();
    Flood { per_second: EVENTS as f64 / time.as_secs_f64(), each: busy / EVENTS as u32, lost }
}

/// Records that are read and summed up word by word, and nothing is made of them: what a reader cannot go below.
pub(crate) fn only_read() -> Flood {
    let ring = ring("only_read", 64 << 20);
    let mut source = Source::into(&ring, "flood");
    let (begin, before) = (Instant::now(), busy("tcptop-"));
    let reader = thread::Builder::new().name("tcptop-only-read".into()).spawn(move || {
        pin(SECOND);
        let (seen, sum) = (Cell::new(0), Cell::new(0));
        let mut builder = RingBufferBuilder::new();
        let look = |record: &[u8]| {
            let words = record.chunks_exact(8).filter_map(|word| word.first_chunk());
            sum.set(words.fold(sum.get(), |sum: u64, word| sum.wrapping_add(u64::from_ne_bytes(*word))));
            seen.set(seen.get() + 1);
            0
        };
        builder.add(&ring, look).expect("a ring");
        let ring = builder.build().expect("memory");
        while seen.get() < EVENTS {
            if ring.consume_raw() == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        black_box(sum.get());
        busy("tcptop-")
    });
    pin(FIRST);
    while source.flood() < EVENTS {}
    let busy = reader.expect("a thread").join().expect("it does not panic") - before;
    Flood { per_second: EVENTS as f64 / begin.elapsed().as_secs_f64(), each: busy / EVENTS as u32, lost: 0 }
}

fn ring(name: &str, size: u32) -> MapHandle {
    let options = bpf_map_create_opts { sz: size_of::<bpf_map_create_opts>() as u64, ..Default::default() };
    MapHandle::create(MapType::RingBuf, Some(name), 0, 0, size, &options).expect("memory")
}

/// What a record costs the processor that writes it while as many others write into the same ring.
pub(crate) fn crowd(processors: usize) -> Duration {
    const RUNS: u32 = 16;
    let size = (64 << 20) * processors.next_power_of_two() as u32;
    let ring = ring("crowd", size);
    let ready = Barrier::new(processors);
    let write = |processor| {
        let mut source = Source::into(&ring, "crowd");
        pin(processor);
        ready.wait();
        let begin = Instant::now();
        (0..RUNS).for_each(|_| source.run());
        begin.elapsed() / (RUNS * AT_ONCE)
    };
    let write = &write;
    let all = thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|n| scope.spawn(move || write(n))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).max()
    });
    all.expect("a processor")
}

/// The program that fills the ring.
struct Source {
    object: Object,
    program: &'static str,
    progress: MapHandle,
}

impl Source {
    fn into(ring: &MapHandle, program: &'static str) -> Self {
        let mut open = object::open("flood");
        let mut maps = open.maps_mut();
        let mut events = maps.find(|map| map.name() == "events").expect("a map");
        events.reuse_fd(ring.as_fd()).expect("a ring like that");
        drop(maps);
        let object = open.load().expect("Linux 5.17");
        let progress = object.maps().find(|map| map.name().to_string_lossy().ends_with(".bss"));
        let progress = MapHandle::try_from(&progress.expect("variables")).expect("a map");
        let nothing_yet = [EVENTS.to_ne_bytes(), [0; 8]].concat();
        progress.update(&[0; 4], &nothing_yet, MapFlags::ANY).expect("room");
        Self { object, program, progress }
    }

    /// Writes some thousand records, if there is room.
    fn run(&mut self) {
        let program = self.object.progs_mut().find(|program| program.name() == self.program);
        program.expect("a program").test_run(ProgramInput::default()).expect("it runs");
    }

    /// The same; returns how many records that makes in all.
    fn flood(&mut self) -> u64 {
        self.run();
        let progress = self.progress.lookup(&[0; 4], MapFlags::ANY).ok().flatten().expect("variables");
        u64::from_ne_bytes(*progress.last_chunk().expect("two words"))
    }
}
