// SPDX-License-Identifier: MIT OR Apache-2.0
//! A storm of short connections that is there before the collector, and goes on while it starts and searches.

use crate::harness::{Trace, builder, is_slow, lost_by_us};
use crate::hidden::Hidden;
use crate::net::{pair_at, pair_by};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, ConnectionKey, EventKind, LossPlace};

/// The ring must have room for what happens while the reader has no processor, which it shares with the storm, the search
/// and whatever else runs here: 4 MiB, the default, are full after a tenth of a second.
const RING: usize = 64 << 20;

/// The address of the first connection's server. Each has one of its own, by which all that is told of it is known.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);

/// Short connections, one after another, a byte each way, for as long as this exists.
struct Storm {
    port: u16,
    begun: Arc<AtomicU32>,
    thread: JoinHandle<u32>,
}

impl Storm {
    fn begin() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let begun = Arc::new(AtomicU32::new(0));
        let shared = Arc::clone(&begun);
        let thread = thread::spawn(move || {
            while Arc::strong_count(&shared) > 1 {
                connect_once(&listener, port, shared.fetch_add(1, Ordering::SeqCst));
            }
            shared.load(Ordering::SeqCst)
        });
        Self { port, begun, thread }
    }

    /// The number of the next connection: it has not begun yet.
    fn next(&self) -> u32 {
        assert!(!self.thread.is_finished(), "the storm goes on");
        self.begun.load(Ordering::SeqCst)
    }

    /// Ends it; returns the number that the next connection would have had.
    fn end(self) -> u32 {
        drop(self.begun);
        self.thread.join().expect("all connections were made")
    }
}

fn connect_once(listener: &TcpListener, port: u16, number: u32) {
    let address = Ipv4Addr::from(u32::from(FIRST_ADDRESS) + number);
    let (mut client, mut server) = pair_at(listener, (address, port));
    if is_slow() {
        // Guests would make connections faster than events are taken. While one is open, so that there is one to find.
        thread::sleep(Duration::from_millis(5));
    }
    client.write_all(&[1]).unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(&[2]).unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// One end of a connection: its number, and whether it is the client's.
type Name = (u32, bool);

/// Which end this is, if it is one of the storm's.
fn name(port: u16, key: &ConnectionKey) -> Option<Name> {
    let number = |address| match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(FIRST_ADDRESS.into()),
        IpAddr::V6(_) => None,
    };
    let client = number(key.remote_addr).filter(|_| key.remote_port == port).map(|n| (n, true));
    client.or_else(|| number(key.local_addr).filter(|_| key.local_port == port).map(|n| (n, false)))
}

/// What is told of one end. Bytes are out and in.
#[derive(Debug, Default, PartialEq)]
struct End {
    opened: u32,
    closed: u32,
    moved: [u64; 2],
    totals: [u64; 2],
    /// Bytes of each row, and whether that is only a part.
    rows: Vec<([u64; 2], bool)>,
}

impl End {
    fn add(&mut self, event: &CollectorEvent) {
        match event {
            CollectorEvent::Opened(_) => self.opened += 1,
            CollectorEvent::TcpSend(t) => self.moved[0] += t.bytes,
            CollectorEvent::TcpRecv(t) => self.moved[1] += t.bytes,
            CollectorEvent::Closed(c) => {
                self.closed += 1;
                self.totals = [c.totals.bytes_out, c.totals.bytes_in];
            }
            _ => {}
        }
    }

    fn is_complete(&self) -> bool {
        let rows = vec![([1, 1], false)];
        *self == Self { opened: 1, closed: 1, moved: [1, 1], totals: [1, 1], rows }
    }

    fn is_there_twice(&self) -> bool {
        self.opened > 1 || self.closed > 1 || self.rows.len() > 1
    }
}

/// All that is told of the storm.
fn ends(trace: &Trace, port: u16) -> BTreeMap<Name, End> {
    let mut ends = BTreeMap::<_, End>::new();
    for event in &trace.seen {
        let Some(name) = event.connection().and_then(|info| name(port, &info.key)) else { continue };
        ends.entry(name).or_default().add(event);
    }
    for row in trace.table.records() {
        let Some(name) = name(port, &row.key) else { continue };
        let bytes = ([row.bytes_out, row.bytes_in], row.is_partial);
        ends.entry(name).or_default().rows.push(bytes);
    }
    ends
}

/// Changes for which the kernel has run no program. Preemptible ones do so, and it is counted; others hide some.
fn skipped(trace: &Trace, hidden: u64) -> usize {
    (trace.collector.stats().lost(EventKind::TcpStateChange, LossPlace::Hook) + hidden) as usize
}

/// Whether all rows are closed, and so many of them belong to connections from this number on; but for what was skipped
/// and hidden.
fn is_over(trace: &Trace, port: u16, first: u32, wanted: usize, hidden: u64) -> bool {
    let rows = trace.table.records().filter_map(|row| Some((name(port, &row.key)?, row.is_closed)));
    let (closed, open): (Vec<_>, Vec<_>) = rows.partition(|&(_, is_closed)| is_closed);
    let closed = closed.iter().filter(|((number, _), _)| *number >= first).count();
    open.len() as u64 <= hidden && closed + skipped(trace, hidden) >= wanted
}

/// 36: a storm of short connections goes on while the collector starts and searches, again and again, for what exists.
/// Each that began after `start` had returned has opened once and closed once at either end, with its bytes, and has one
/// row; of the others none is there twice, and none stays open.
#[test]
fn a_storm_while_starting_leaves_no_gap() {
    let count = if is_slow() { 300 } else { 20_000 };
    let hidden = Hidden::watch();
    let storm = Storm::begin();
    while storm.next() < 10 {
        thread::yield_now();
    }
    let mut trace = Trace::with(builder().ring_bytes(RING));
    let first = storm.next();
    while storm.next() < first + count {
        let existing = trace.collector.bootstrap_existing().unwrap();
        trace.table.merge_bootstrap(existing);
        trace.drain();
    }
    let (port, end) = (storm.port, storm.end());
    let wanted = 2 * (end - first) as usize;
    trace.until("all ends", |t| is_over(t, port, first, wanted, hidden.times()).then_some(()));
    trace.stop();
    assert_eq!(lost_by_us(&trace.collector.stats()), 0, "{:?}", trace.collector.stats());
    let ends = ends(&trace, port);
    let doubles: Vec<_> = ends.iter().filter(|(_, end)| end.is_there_twice()).collect();
    assert!(doubles.is_empty(), "{} there twice: {:?}", doubles.len(), doubles.first());
    let names = (first..end).flat_map(|number| [(number, true), (number, false)]);
    let is_complete = |name: &Name| ends.get(name).is_some_and(End::is_complete);
    let wrong: Vec<_> = names.filter(|name| !is_complete(name)).map(|name| (name, ends.get(&name))).collect();
    let some = &wrong[..wrong.len().min(5)];
    assert!(wrong.len() <= skipped(&trace, hidden.times()), "{} of {wanted} wrong: {some:?}", wrong.len());
}

/// Connections that are made and closed as fast as it goes, while what exists is looked for again and again. Each look
/// finds each connection that is held meanwhile, with its bytes. The kernel bears it: the guests' consoles tell.
#[test]
fn looking_into_a_storm_finds_each_connection_and_harms_none() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let mut pairs: Vec<_> = (0..40).map(|_| pair_by(&held)).collect();
    pairs.iter_mut().for_each(|(client, _)| client.write_all(&[1; 70]).unwrap());
    // Of the storm nothing shall be told.
    let trace = Trace::with(builder().port(port));
    let until = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                while Instant::now() < until {
                    drop(pair_by(&listener));
                }
            });
        }
        while Instant::now() < until {
            let found = trace.collector.bootstrap_existing().unwrap();
            let mut ours: Vec<_> = found.iter().filter(|row| row.key.remote_port == port).collect();
            ours.sort_by_key(|row| row.key.local_port);
            ours.dedup_by_key(|row| row.key.local_port);
            assert_eq!(ours.len(), pairs.len());
            assert!(ours.iter().all(|row| (row.bytes_out, row.is_partial) == (70, false)), "{ours:?}");
        }
    });
}
