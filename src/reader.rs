// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reader thread: from the ring buffer to the channel.

use crate::config::{Config, Granularity, WhenFull};
use crate::decode::{self, Undecodable};
use crate::error::{Error, Result};
use crate::event::{CollectorEvent, LossPlace, Lost};
use crate::kernel::{Barrier, Iterators, Reader, Ring, Session};
use crate::stats::{LossTable, Stats};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a reader that is awake leaves the ring alone: the delay of an event while there is traffic.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// How long it sleeps at most, and so how soon it sees that it shall stop.
const SLEEP: Duration = Duration::from_millis(50);
/// After so many looks at an empty ring it goes to sleep.
const EMPTY_LOOKS: u32 = 25;
/// With an event per call only what no call reports (splice) and what found no room in the ring waits.
const PER_CALL_SWEEP: Duration = Duration::from_millis(100);
/// Programs that the kernel has skipped are no news that could not wait.
const LOOK_AT_HOOKS_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for room in the channel before looking whether to stop.
const SEND_SLICE: Duration = Duration::from_millis(10);

/// What the reader thread and the collector share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The collector wants the thread to end.
    pub(crate) stop: AtomicBool,
    /// The thread has ended, or is about to.
    pub(crate) ended: AtomicBool,
    stats: Mutex<Stats>,
    /// There while the thread runs.
    iterators: Mutex<Option<Iterators>>,
}

impl Shared {
    pub(crate) fn stats(&self) -> Stats {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Plain counters: whatever a panicking holder left is as good as anything.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_kernel_memory(&self, bytes: u64) {
        self.lock().kernel_memory_bytes = bytes;
    }

    /// Iterators over what exists already. Nobody panics while holding them.
    pub(crate) fn iterators(&self) -> MutexGuard<'_, Option<Iterators>> {
        self.iterators.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The channel's end, with everything that can happen to an event on its way there.
struct Sink<'s> {
    tx: Sender<CollectorEvent>,
    when_full: WhenFull,
    shared: &'s Shared,
    /// Not yet added to the shared statistics, to take the lock once per look.
    events: u64,
    unknown_records: u64,
    unbalanced: u64,
    /// Lost here, in total: in the channel and by decoding.
    lost: LossTable,
    receiver_gone: bool,
    /// A bank is being collected: ends of connections wait until that is done, for reports of theirs may be in it.
    keeps_ends: bool,
    ends: Vec<Vec<u8>>,
}

impl Sink<'_> {
    fn record(&mut self, record: &[u8]) {
        if self.keeps_ends && decode::is_end(record) {
            return self.ends.push(record.to_vec());
        }
        match decode::event(record) {
            Ok(event) => {
                let milestone = decode::milestone(&event, record);
                self.unbalanced += u64::from(decode::is_unbalanced(&event, record));
                self.send(event);
                milestone.into_iter().for_each(|event| self.send(event));
            }
            Err(Undecodable::UnknownKind) => self.unknown_records += 1,
            Err(Undecodable::Malformed(kind)) => self.lost.add(kind, LossPlace::Decode, 1),
        }
    }

    /// The bank has been collected.
    fn release_ends(&mut self) {
        self.keeps_ends = false;
        std::mem::take(&mut self.ends).iter().for_each(|record| self.record(record));
    }

    fn send(&mut self, event: CollectorEvent) {
        let kind = event.kind();
        match self.deliver(event) {
            Delivery::Done => self.events += 1,
            Delivery::Full => {
                if let Some(kind) = kind {
                    self.lost.add(kind, LossPlace::Channel, 1);
                }
            }
            Delivery::ReceiverGone => self.receiver_gone = true,
        }
    }

    fn deliver(&self, event: CollectorEvent) -> Delivery {
        let mut event = match self.tx.try_send(event) {
            Ok(()) => return Delivery::Done,
            Err(TrySendError::Disconnected(_)) => return Delivery::ReceiverGone,
            Err(TrySendError::Full(event)) => event,
        };
        while self.when_full == WhenFull::Wait && !self.shared.stopping() {
            match self.tx.send_timeout(event, SEND_SLICE) {
                Ok(()) => return Delivery::Done,
                Err(SendTimeoutError::Disconnected(_)) => return Delivery::ReceiverGone,
                Err(SendTimeoutError::Timeout(back)) => event = back,
            }
        }
        Delivery::Full
    }

    /// Adds what was counted since the last call to the shared statistics.
    fn publish(&mut self, kernel_losses: &LossTable) {
        let mut stats = self.shared.lock();
        stats.events += std::mem::take(&mut self.events);
        stats.unknown_records += std::mem::take(&mut self.unknown_records);
        stats.unbalanced += std::mem::take(&mut self.unbalanced);
        stats.losses = self.lost.plus(kernel_losses);
    }
}

enum Delivery {
    Done,
    Full,
    ReceiverGone,
}

/// Runs until it shall stop or the receiver is gone; then detaches all programs and delivers what is left. `early` is
/// what somebody else has taken out of the ring. `ready` is told once whether reading works.
pub(crate) fn run(
    mut session: Session,
    config: &Config,
    early: Vec<Vec<u8>>,
    tx: Sender<CollectorEvent>,
    shared: &Shared,
    ready: impl FnOnce(Result<()>),
) {
    let sink = RefCell::new(Sink {
        tx,
        when_full: config.when_full,
        shared,
        events: 0,
        unknown_records: 0,
        unbalanced: 0,
        lost: LossTable::default(),
        receiver_gone: false,
        keeps_ends: false,
        ends: Vec::new(),
    });
    let ring = Ring::new(&session, |record| {
        let mut sink = sink.borrow_mut();
        sink.record(record);
        // What is in the ring when the collector stops is delivered too.
        !sink.receiver_gone
    });
    let ring = match ring {
        Ok(ring) => ring,
        Err(e) => return ready(Err(e)),
    };
    let mut sweeps = match Sweeps::new(config, &session) {
        Ok(sweeps) => sweeps,
        Err(e) => return ready(Err(e)),
    };
    session.announce(Reader::Looking);
    ready(Ok(()));
    early.iter().for_each(|record| sink.borrow_mut().record(record));
    drop(early);
    let mut empty_looks = 0;
    while !shared.stopping() && !sink.borrow().receiver_gone {
        let records = if empty_looks < EMPTY_LOOKS {
            if !ring.is_behind() {
                thread::sleep(LOOK_EVERY);
            }
            ring.look()
        } else {
            let records = sleep(&session, &ring);
            session.announce(Reader::Looking);
            records
        };
        let waiting = sweeps.run(&mut session, &sink);
        empty_looks = if records + waiting > 0 { 0 } else { empty_looks.saturating_add(1) };
    }
    finish(session, &ring, &sink, sweeps);
    shared.iterators().take();
    shared.ended.store(true, Ordering::Release);
}

/// Tells the kernel side that it must wake the reader from now on, looks once more for what came in between, and
/// sleeps.
fn sleep(session: &Session, ring: &Ring<'_>) -> usize {
    session.announce(Reader::Asleep);
    match ring.look() {
        0 => ring.wait(SLEEP),
        records => records,
    }
}

/// Everything that the programs have left behind. They are detached first, so that there is an end to it; where that
/// takes the kernel too long, a look that has reached the end of the ring is the last one.
fn finish(mut session: Session, ring: &Ring<'_>, sink: &RefCell<Sink<'_>>, mut sweeps: Sweeps) {
    session.detach();
    for _bank in 0..2 {
        session.next_epoch();
        session.barrier().wait();
        sink.borrow_mut().keeps_ends = true;
        while !sink.borrow().receiver_gone {
            ring.look();
            if !ring.is_behind() {
                break;
            }
        }
        session.collect_waiting(|record| sink.borrow_mut().record(record));
        sink.borrow_mut().release_ends();
    }
    session.look_at_hooks();
    sweeps.report_losses(&session, sink);
    sweeps.grace.end();
}

/// What the reader does once per interval.
struct Sweeps {
    every: Duration,
    next: Instant,
    next_look_at_hooks: Instant,
    grace: Grace,
    reported: LossTable,
}

impl Sweeps {
    fn new(config: &Config, session: &Session) -> Result<Self> {
        let every = match config.granularity {
            Granularity::PerCall => PER_CALL_SWEEP,
            Granularity::Interval(every) => every,
        };
        let grace = Grace::new(session.barrier())?;
        let now = Instant::now();
        Ok(Self {
            every,
            next: now + every,
            next_look_at_hooks: now + LOOK_AT_HOOKS_EVERY,
            grace,
            reported: LossTable::default(),
        })
    }

    /// Does what is due; returns how many reports had waited.
    fn run(&mut self, session: &mut Session, sink: &RefCell<Sink<'_>>) -> usize {
        let mut collected = 0;
        if self.grace.is_over() {
            session.collect_waiting(|record| {
                collected += 1;
                sink.borrow_mut().record(record);
            });
            sink.borrow_mut().release_ends();
        }
        let now = Instant::now();
        if self.next <= now && !self.grace.is_running {
            self.next = now + self.every;
            if self.next_look_at_hooks <= now {
                self.next_look_at_hooks = now + LOOK_AT_HOOKS_EVERY;
                session.look_at_hooks();
            }
            self.report_losses(session, sink);
            if session.anything_waits() {
                session.next_epoch();
                self.grace.begin();
                sink.borrow_mut().keeps_ends = self.grace.is_running;
            }
        }
        collected
    }

    /// Publishes the counters, and reports as an event what was lost since the last time.
    fn report_losses(&mut self, session: &Session, sink: &RefCell<Sink<'_>>) {
        let kernel = session.losses();
        let now = sink.borrow().lost.plus(&kernel);
        for lost in decode::loss_reports(&self.reported, &now) {
            self.report(lost, sink);
        }
        sink.borrow_mut().publish(&kernel);
    }

    /// A report that finds the channel full is made again the next time.
    fn report(&mut self, lost: Lost, sink: &RefCell<Sink<'_>>) {
        let delivered = sink.borrow().tx.try_send(CollectorEvent::Lost(lost));
        if delivered.is_ok() {
            self.reported.add(lost.kind, lost.place, lost.count);
        }
    }
}

/// A thread that waits until the bank that was left at the last change of the epoch may be collected: the kernel takes
/// its time, and the ring must be read meanwhile.
struct Grace {
    ask: Sender<()>,
    over: Receiver<()>,
    thread: JoinHandle<()>,
    is_running: bool,
}

impl Grace {
    fn new(barrier: Barrier) -> Result<Self> {
        let (ask, asked) = bounded(1);
        let (tell, over) = bounded(1);
        let thread = thread::Builder::new()
            .name("tcptop-grace".into())
            .spawn(move || {
                for () in asked {
                    barrier.wait();
                    if tell.send(()).is_err() {
                        break;
                    }
                }
            })
            .map_err(Error::Thread)?;
        Ok(Self { ask, over, thread, is_running: false })
    }

    fn begin(&mut self) {
        self.is_running = self.ask.try_send(()).is_ok();
    }

    /// True once for each [`begin`](Self::begin).
    fn is_over(&mut self) -> bool {
        let over = self.is_running && self.over.try_recv().is_ok();
        self.is_running &= !over;
        over
    }

    fn end(self) {
        drop(self.ask);
        drop(self.thread.join());
    }
}
