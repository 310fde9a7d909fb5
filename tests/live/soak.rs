// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything at once, at random: threads of several processes keep account of what they really moved, and in the end the
//! table must say the same of each end of each connection.

mod lane;

use crate::harness::{AFTERMATH, Trace, is_slow, lost_by_us};
use crate::hidden::Hidden;
use crate::net::{Child, tell};
use lane::{End, Moved, Side};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{Backend, ConnectionRecord, EventKind, LossPlace, Protocol};

const PROCESSES: usize = 3;
const LANES: usize = 6;

/// What went through the connections that had this end, one after the other. A UDP socket may outlive many peers with
/// the same port: all that is one flow.
#[derive(Default)]
struct Ledger {
    pid: u32,
    expected: Vec<Moved>,
    found: Vec<Moved>,
}

type Ledgers = BTreeMap<End, Ledger>;

fn enter(book: &mut Vec<Moved>, protocol: Protocol, moved: Moved) {
    match book.first_mut() {
        Some(sum) if protocol == Protocol::Udp => (0..4).for_each(|i| sum[i] += moved[i]),
        _ => book.push(moved),
    }
}

/// Starts the processes. In each there are threads that connect and threads that accept.
fn start(until: Instant) -> Vec<Child> {
    let mut sides: [Vec<Side>; PROCESSES] = Default::default();
    for lane in 0..LANES {
        let (a, b) = UnixStream::pair().unwrap();
        sides[lane % PROCESSES].push(Side::new(true, lane as u64, a));
        sides[(lane + 1) % PROCESSES].push(Side::new(false, lane as u64, b));
    }
    sides.into_iter().map(|sides| Child::fork(move |parent| work(parent, sides, until))).collect()
}

/// What such a process does: it works, and says what it has moved.
fn work(parent: &mut UnixStream, sides: Vec<Side>, until: Instant) {
    let moved: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = sides.into_iter().map(|side| scope.spawn(move || side.run(until))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    tell(parent, moved.len() as u64);
    for ((protocol, local, remote), moved) in moved {
        let end = [u64::from(protocol == Protocol::Udp), local.into(), remote.into()];
        end.into_iter().chain(moved).for_each(|number| tell(parent, number));
    }
}

fn hear_all(children: &mut [Child]) -> Ledgers {
    let mut ledgers = Ledgers::new();
    for child in children {
        for _ in 0..child.hear() {
            let [protocol, local, remote] = [(); 3].map(|()| child.hear());
            let protocol = if protocol == 1 { Protocol::Udp } else { Protocol::Tcp };
            let ledger = ledgers.entry((protocol, local as u16, remote as u16)).or_default();
            ledger.pid = child.pid;
            enter(&mut ledger.expected, protocol, [(); 4].map(|()| child.hear()));
        }
    }
    ledgers
}

fn end_of(row: &ConnectionRecord) -> End {
    (row.key.protocol, row.key.local_port, row.key.remote_port)
}

/// Each row of these processes is an end that they have had, with the right owner. Returns those that did not end.
fn look_up<'a>(trace: &'a Trace, ledgers: &mut Ledgers, pids: &[u32]) -> Vec<&'a ConnectionRecord> {
    let mut open = Vec::new();
    for row in trace.table.records() {
        let Some(ledger) = ledgers.get_mut(&end_of(row)) else {
            assert!(row.pid().is_none_or(|pid| !pids.contains(&pid)), "nobody had it: {row:?}");
            continue;
        };
        let is_udp = row.key.protocol == Protocol::Udp;
        let datagrams = if is_udp { [row.packets_out, row.packets_in] } else { [0; 2] };
        let moved = [row.bytes_out, row.bytes_in, datagrams[0], datagrams[1]];
        // kprobes do not see who accepts.
        let is_unused = trace.backend() == Backend::Kprobe && moved == [0; 4];
        assert_eq!(row.pid().or(is_unused.then_some(ledger.pid)), Some(ledger.pid), "{row:?}");
        assert!(!row.is_partial, "{row:?}");
        if !row.is_closed {
            open.push(row);
        }
        enter(&mut ledger.found, row.key.protocol, moved);
    }
    open
}

/// What was moved and not seen: it must be no more than programs were skipped.
#[derive(Debug, Default)]
struct Unseen {
    /// TCP connections of which less was found, or nothing.
    connections: u64,
    /// Datagrams out and in.
    datagrams: [u64; 2],
}

fn compare(ledgers: &mut Ledgers) -> Unseen {
    let mut unseen = Unseen::default();
    for (end, Ledger { expected, found, .. }) in ledgers {
        // The same ports may have been used several times.
        for moved in std::mem::take(found) {
            match expected.iter().position(|expected| *expected == moved) {
                Some(at) => drop(expected.swap_remove(at)),
                None => found.push(moved),
            }
        }
        assert!(found.len() <= expected.len(), "{end:?}: {found:?} of {expected:?}");
        if end.0 == Protocol::Tcp {
            let is_less = |found: &Moved| expected.iter().any(|all| (0..4).all(|i| found[i] <= all[i]));
            assert!(found.iter().all(is_less), "{end:?}: {found:?} of {expected:?}");
            unseen.connections += expected.len() as u64;
            continue;
        }
        let Some(expected) = expected.first() else { continue };
        let found = found.first().copied().unwrap_or_default();
        for way in [0, 1] {
            let (bytes, datagrams) = (expected[way].cmp(&found[way]), expected[way + 2].cmp(&found[way + 2]));
            assert!(bytes == datagrams && datagrams.is_ge(), "{end:?}: {found:?} of {expected:?}");
            unseen.datagrams[way] += expected[way + 2] - found[way + 2];
        }
    }
    unseen
}

/// TCPTOP_SOAK_SECONDS says for how long, if a few seconds are not enough.
#[test]
fn what_is_moved_at_random_is_counted_exactly() {
    let seconds = std::env::var("TCPTOP_SOAK_SECONDS").map(|seconds| seconds.parse().unwrap());
    let mut trace = Trace::fresh();
    let hidden = Hidden::watch();
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(if is_slow() { 2 } else { 5 }));
    let mut children = start(until);
    trace.listen(until - Instant::now());
    let mut ledgers = hear_all(&mut children);
    let pids: Vec<_> = children.iter().map(|child| child.pid).collect();
    children.into_iter().for_each(Child::wait);
    let moved: Vec<Moved> = ledgers.values().flat_map(|ledger| ledger.expected.clone()).collect();
    let is_open = |row: &ConnectionRecord| ledgers.contains_key(&end_of(row)) && !row.is_closed;
    let deadline = Instant::now() + AFTERMATH * 20;
    while trace.table.records().any(is_open) && Instant::now() < deadline {
        trace.listen(AFTERMATH);
    }
    trace.stop();
    let open = look_up(&trace, &mut ledgers, &pids);
    let (unseen, stats) = (compare(&mut ledgers), trace.collector.stats());
    assert_eq!((lost_by_us(&stats), stats.audit_mismatches, stats.unknown_records), (0, 0, 0), "{stats:?}");
    let [sends, receives, states, ends] =
        [EventKind::UdpSend, EventKind::UdpRecv, EventKind::TcpStateChange, EventKind::Closed]
            .map(|kind| stats.lost(kind, LossPlace::Hook));
    assert!(unseen.datagrams[0] <= sends && unseen.datagrams[1] <= receives, "{unseen:?}: {stats:?}");
    let hidden = hidden.times();
    assert!(unseen.connections <= states + ends + hidden, "{unseen:?}, {hidden} hidden: {stats:?}");
    assert!(open.len() as u64 <= ends + hidden, "{open:?}, {hidden} hidden: {stats:?}");
    let bytes: u64 = moved.iter().map(|moved| moved[0] + moved[1]).sum();
    println!(
        "{} ends, {bytes} bytes, {} events, {unseen:?}, {} open, {hidden} hidden",
        moved.len(),
        stats.events,
        open.len()
    );
}
