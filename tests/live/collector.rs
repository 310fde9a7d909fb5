// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting and stopping, full channels, vanished receivers, and what is left in the kernel afterwards.

use crate::harness::{PATIENCE, Trace, builder, is_slow, lost_by_us, ports, wanted_backend};
use crate::net::{port, recv, send, tcp_pair};
use crossbeam_channel::bounded;
use std::collections::BTreeSet;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tcptop::{
    Backend, CollectorEvent, ConnectionKey, ConnectionTable, Error, EventKind, Granularity, KernelTime,
    LossPlace, Protocol, SelfCheck, WhenFull,
};

/// Ids of all BPF programs and links in the kernel, by bpf(2).
pub(crate) fn bpf_objects() -> (Vec<u32>, Vec<u32>) {
    const BPF_PROG_GET_NEXT_ID: i64 = 11;
    const BPF_LINK_GET_NEXT_ID: i64 = 31;
    (ids(BPF_PROG_GET_NEXT_ID), ids(BPF_LINK_GET_NEXT_ID))
}

/// All ids of one kind. The walk ends with ENOENT; any other end is no answer: a list that is empty for lack of privilege
/// would make it seem that nothing is ever left behind.
fn ids(command: i64) -> Vec<u32> {
    let mut all = Vec::new();
    // union bpf_attr of these commands: start_id, next_id, open_flags.
    let mut attr = [0_u32; 4];
    // SAFETY: the attributes are as long as is said.
    while unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), 16) } == 0 {
        all.push(attr[1]);
        attr = [attr[1], 0, 0, 0];
    }
    let end = std::io::Error::last_os_error();
    assert_eq!(end.raw_os_error(), Some(libc::ENOENT), "bpf({command}): {end}");
    all
}

/// The kernel frees programs after a grace period.
pub(crate) fn nothing_left_but(before: &(Vec<u32>, Vec<u32>)) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let now = bpf_objects();
        if now.0.iter().all(|id| before.0.contains(id)) && now.1.iter().all(|id| before.1.contains(id)) {
            return;
        }
        assert!(Instant::now() < deadline, "left in the kernel: {now:?}, before: {before:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// It takes 200 ms at most. Somebody else may have the processor for longer, but not three times in a row. Guests are
/// emulated, and taking a trampoline away waits for all their tasks.
fn is_prompt(what: &str, mut run: impl FnMut() -> Duration) {
    let at_most = Duration::from_millis(if is_slow() { 6000 } else { 200 });
    let mut times = Vec::new();
    while times.last().is_none_or(|took| *took > at_most) {
        assert!(times.len() < 3, "{what} took {times:?}");
        times.push(run());
    }
}

/// Keeps sockets busy until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = |stop: Arc<AtomicBool>| {
            move || {
                let (client, server) = tcp_pair();
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
                }
            }
        };
        let threads =
            (0..if is_slow() { 1 } else { 3 }).map(|_| thread::spawn(busy(Arc::clone(&stop)))).collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

/// The calls of the examples in the README and in the documentation of the crate, which are only compiled there: what was
/// there before, events as they come, and a row for each connection.
#[test]
fn the_examples_of_the_documentation_run() {
    const COUNT: usize = 10;
    let older = tcp_pair();
    assert_eq!((send(&older.0, &[1; 30], 0), recv(&older.1, 30, 0)), (30, 30));
    let (mut collector, events) = builder().spawn().unwrap();
    let mut table = ConnectionTable::new();
    table.merge_bootstrap(collector.bootstrap_existing().unwrap());
    let younger: Vec<_> = (0..COUNT).map(|_| tcp_pair()).collect();
    for (client, server) in &younger {
        assert_eq!((send(client, &[1; 500], 0), recv(server, 500, 0)), (500, 500));
    }
    // Of each connection come at least two changes of state and what they mean, of both ends.
    for event in events.iter().take(4 * COUNT) {
        table.apply(&event);
    }
    let key = |(client, server): &(TcpStream, TcpStream)| {
        let [local, remote] = [client, server].map(|socket| socket.local_addr().unwrap());
        ConnectionKey::new(Protocol::Tcp, local.ip(), local.port(), remote.ip(), remote.port())
    };
    let is_told =
        |table: &ConnectionTable, pair| table.get(&key(pair)).is_some_and(|row| row.bytes_out == 500);
    while !younger.iter().all(|pair| is_told(&table, pair)) {
        table.apply(&events.recv_timeout(Duration::from_secs(20)).unwrap());
    }
    collector.stop().unwrap();
    events.iter().for_each(|event| table.apply(&event));
    let rows = table.snapshot(KernelTime::now());
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let told = |pair| {
        let row = rows.iter().find(|row| row.key == key(pair)).expect("a row");
        assert_eq!(row.process_name().unwrap_or_default(), name.trim_end());
        assert!(row.rtt.is_some() && !row.is_partial && !row.is_closed, "{row:?}");
        (row.bytes_in, row.bytes_out)
    };
    assert_eq!(told(&older), (0, 30));
    younger.iter().for_each(|pair| assert_eq!(told(pair), (0, 500)));
}

/// Stop and drop under full load end promptly, detach everything, and can be followed by another start.
#[test]
fn stop_and_drop_are_prompt_and_leave_nothing() {
    let before = bpf_objects();
    let load = Load::start();
    let (tx, rx) = bounded(1 << 18);
    let mut collector = builder().granularity(Granularity::PerCall).build().unwrap();
    is_prompt("stop", || {
        collector.start(tx.clone()).unwrap();
        assert!(collector.is_running());
        assert!(matches!(collector.start(tx.clone()), Err(Error::AlreadyRunning)));
        assert!(bpf_objects().0.len() > before.0.len());
        thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        collector.stop().unwrap();
        let took = began.elapsed();
        assert!(!collector.is_running());
        nothing_left_but(&before);
        assert!(collector.stats().events > 0);
        assert!(rx.try_iter().count() > 0);
        took
    });
    is_prompt("drop", || {
        let (tx, rx) = bounded(1 << 18);
        let mut collector = builder().granularity(Granularity::PerCall).build().unwrap();
        collector.start(tx).unwrap();
        thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        drop(collector);
        let took = began.elapsed();
        nothing_left_but(&before);
        assert!(rx.iter().count() > 0, "it reports, and closes the channel at its end");
        took
    });
    drop(load);
}

/// What is in the ring at the stop is delivered: 2000 calls, stop at once, 2000 events.
#[test]
fn stop_loses_nothing_that_is_in_the_ring() {
    let mut trace = Trace::per_call();
    let (client, server) = tcp_pair();
    let s = port(&server);
    for _ in 0..2000 {
        assert_eq!((send(&client, &[1; 3], 0), recv(&server, 3, 0)), (3, 3));
    }
    trace.stop();
    let received: u64 = trace.transfers().filter(|t| t.connection.key.local_port == s).map(|t| t.bytes).sum();
    assert_eq!(received, 6000);
    assert_eq!(trace.tcp(s, port(&client)).unwrap().bytes_in, 6000);
    let calls =
        |local| trace.transfers().filter(|t| t.connection.key.local_port == local && t.bytes == 3).count();
    assert_eq!(calls(s), 2000);
    // kprobes report sends with acknowledgements, which may cover several.
    if trace.backend() != Backend::Kprobe {
        assert_eq!(calls(port(&client)), 2000);
    }
}

/// In batches come the same events, all of them by the time of the stop, and none later.
#[test]
fn batches_carry_the_same_events() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&received);
    let mut collector = builder()
        .granularity(Granularity::PerCall)
        .spawn_with(move |events: &[CollectorEvent]| all.lock().unwrap().push(events.to_vec()))
        .unwrap();
    let (client, server) = tcp_pair();
    let pair = (port(&server), port(&client));
    for _ in 0..2000 {
        assert_eq!((send(&client, &[1; 3], 0), recv(&server, 3, 0)), (3, 3));
    }
    collector.stop().unwrap();
    let batches = std::mem::take(&mut *received.lock().unwrap());
    assert_eq!((send(&client, &[1; 3], 0), recv(&server, 3, 0)), (3, 3));
    assert!(batches.iter().all(|batch| (1..=512).contains(&batch.len())), "neither empty nor endless");
    assert!(batches.iter().any(|batch| batch.len() > 50), "what is there comes together");
    let events = || batches.iter().flatten().filter(|event| ports(event) == pair);
    assert!(events().any(|event| matches!(event, CollectorEvent::Opened(_))));
    let bytes = events().map(|event| if let CollectorEvent::TcpRecv(t) = event { t.bytes } else { 0 });
    assert_eq!(bytes.sum::<u64>(), 6000);
    let stats = collector.stats();
    assert_eq!(stats.events, batches.iter().map(Vec::len).sum::<usize>() as u64);
    assert_eq!(lost_by_us(&stats), 0, "{stats:?}");
    thread::sleep(Duration::from_millis(300));
    assert!(received.lock().unwrap().is_empty(), "nothing comes after the stop");
}

/// A function that panics ends the collector, which leaves nothing in the kernel and can be started again.
#[test]
fn a_function_that_panics_ends_the_collector() {
    let before = bpf_objects();
    let mut collector = builder().spawn_with(|_: &[CollectorEvent]| panic!("as the test wants it")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while collector.is_running() {
        assert!(Instant::now() < deadline, "still running");
        drop(tcp_pair());
        thread::sleep(Duration::from_millis(10));
    }
    nothing_left_but(&before);
    collector.stop().unwrap();
    let (tx, events) = bounded(1 << 16);
    collector.start(tx).unwrap();
    drop(tcp_pair());
    collector.stop().unwrap();
    assert!(events.iter().count() > 0);
}

/// Nobody drains the channel: what does not fit is dropped and counted, or waits; stop is prompt either way.
#[test]
fn a_full_channel_never_holds_up_the_stop() {
    for when_full in [WhenFull::Drop, WhenFull::Wait] {
        is_prompt("stop", || {
            let load = Load::start();
            let configured =
                builder().granularity(Granularity::PerCall).when_full(when_full).channel_capacity(10);
            let (mut collector, events) = configured.spawn().unwrap();
            thread::sleep(Duration::from_millis(500));
            let began = Instant::now();
            collector.stop().unwrap();
            let took = began.elapsed();
            drop(load);
            let stats = collector.stats();
            let in_channel = stats.losses.iter().filter(|(_, place, _)| *place == LossPlace::Channel);
            assert!(in_channel.map(|(_, _, n)| n).sum::<u64>() > 0, "{when_full:?}: {stats:?}");
            assert_eq!(events.iter().count(), 10);
            took
        });
    }
}

/// A receiver that stalls misses events, and learns all the same how each connection has ended.
#[test]
fn ends_wait_for_a_receiver_that_stalls() {
    const CONNECTIONS: usize = 50;
    let (collector, events) = builder().channel_capacity(16).spawn().unwrap();
    let ours: BTreeSet<u16> = (0..CONNECTIONS)
        .flat_map(|_| {
            let (client, server) = tcp_pair();
            assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
            [port(&client), port(&server)]
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let (mut ended, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while ended.len() < 2 * CONNECTIONS {
        let event = events.recv_deadline(deadline).expect("all ends");
        if let CollectorEvent::Closed(end) = event {
            if ours.contains(&end.connection.key.local_port) {
                ended.push(end.totals.bytes_in + end.totals.bytes_out);
            }
        }
    }
    assert_eq!(ended, vec![10; 2 * CONNECTIONS]);
    let stats = collector.stats();
    let in_channel = |kind| stats.lost(kind, LossPlace::Channel);
    assert!(EventKind::ALL.map(in_channel).iter().sum::<u64>() > 0, "{stats:?}");
    assert_eq!(in_channel(EventKind::Closed), 0);
}

/// Opens and closes so many connections on this port, and says how many of these events tell of their ends.
fn churn_of(count: usize) -> (u16, usize) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (0..count).for_each(|_| drop(crate::net::pair_by(&listener)));
    (listener.local_addr().unwrap().port(), 2 * count)
}

fn is_end_on(event: &CollectorEvent, local: u16) -> bool {
    let (from, to) = ports(event);
    matches!(event, CollectorEvent::Closed(_)) && (from == local || to == local)
}

/// Ends that have waited for a receiver come as fast as it takes them.
#[test]
fn ends_come_as_fast_as_they_are_taken() {
    let (collector, events) = builder().channel_capacity(16).spawn().unwrap();
    let (l, ends) = churn_of(if is_slow() { 200 } else { 3000 });
    thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    let mut ended = 0;
    while ended < ends {
        ended += usize::from(is_end_on(&events.recv_timeout(PATIENCE).expect("all ends"), l));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{ends} ends took {took:?}");
    assert_eq!(collector.stats().lost(EventKind::Closed, LossPlace::Channel), 0);
}

/// Who still takes events while the collector stops gets all ends that wait; what nobody takes is counted.
#[test]
fn a_receiver_gets_all_ends_while_the_collector_stops() {
    for takes in [true, false] {
        let (mut collector, events) = builder().channel_capacity(16).spawn().unwrap();
        let (l, ends) = churn_of(if is_slow() { 100 } else { 500 });
        thread::sleep(Duration::from_millis(500));
        let take = move || events.into_iter().filter(|event| is_end_on(event, l)).count();
        let (taken, took) = if takes {
            let receiver = thread::spawn(take);
            let began = Instant::now();
            collector.stop().unwrap();
            let took = began.elapsed();
            (receiver.join().unwrap(), took)
        } else {
            let began = Instant::now();
            collector.stop().unwrap();
            let took = began.elapsed();
            (take(), took)
        };
        let lost = collector.stats().lost(EventKind::Closed, LossPlace::Channel);
        assert!(took < Duration::from_millis(if is_slow() { 6000 } else { 200 }), "{took:?}");
        assert!(taken + lost as usize >= ends, "{taken} and {lost} of {ends}");
        assert!(!takes || (taken, lost) == (ends, 0), "{taken} and {lost} of {ends}");
    }
}

/// With WhenFull::Wait a slow receiver gets every event: 500 receives of 3 bytes through a channel for one event.
#[test]
fn a_reader_that_waits_drops_nothing() {
    let configured =
        builder().granularity(Granularity::PerCall).when_full(WhenFull::Wait).channel_capacity(1);
    let (mut collector, events) = configured.spawn().unwrap();
    let (client, server) = tcp_pair();
    let s = port(&server);
    let received = Arc::new(AtomicU64::new(0));
    let sum = Arc::clone(&received);
    let receiver = thread::spawn(move || {
        for event in events {
            thread::sleep(Duration::from_micros(300));
            if let CollectorEvent::TcpRecv(t) = event {
                let ours = t.connection.key.local_port == s;
                sum.fetch_add(if ours { t.bytes } else { 0 }, Ordering::Relaxed);
            }
        }
    });
    for _ in 0..500 {
        assert_eq!((send(&client, &[1; 3], 0), recv(&server, 3, 0)), (3, 3));
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while received.load(Ordering::Relaxed) < 1500 {
        assert!(Instant::now() < deadline, "{received:?} bytes, {:?}", collector.stats());
        thread::sleep(Duration::from_millis(5));
    }
    // What is lost shows in the statistics at the next sweep.
    thread::sleep(Duration::from_millis(300));
    let lost = lost_by_us(&collector.stats());
    collector.stop().unwrap();
    receiver.join().unwrap();
    assert_eq!((received.load(Ordering::Relaxed), lost), (1500, 0));
}

/// A receiver that is gone ends the collector, and leaves nothing in the kernel.
#[test]
fn a_vanished_receiver_ends_the_collector() {
    let before = bpf_objects();
    let (collector, events) = builder().spawn().unwrap();
    drop(events);
    let (client, server) = tcp_pair();
    assert_eq!((send(&client, &[1; 3], 0), recv(&server, 3, 0)), (3, 3));
    let deadline = Instant::now() + Duration::from_secs(10);
    while collector.is_running() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    nothing_left_but(&before);
}

/// A backend that cannot run here says why; the others run.
#[test]
fn a_forced_backend_runs_or_says_why_not() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for backend in Backend::ALL {
        match builder().backend(backend).spawn() {
            Ok((collector, _events)) => assert_eq!(collector.capabilities().unwrap().backend(), backend),
            Err(Error::BackendUnavailable { backend: named, reason }) => {
                assert_eq!(named, backend);
                let no_tracepoints = release.starts_with("5.") || release.starts_with("6.1.");
                if backend == Backend::Tracepoint && no_tracepoints {
                    assert!(reason.contains("sock_send_length"), "{reason}");
                } else {
                    assert!(wanted_backend().is_none(), "guests allow every backend: {backend}: {reason}");
                    assert!(reason.contains("cannot be"), "{reason}");
                }
            }
            Err(e) => panic!("{backend}: {e}"),
        }
    }
}

/// The self-test moves bytes that events must tell of: on this kernel it passes, or says that there is no IPv6.
#[test]
fn the_self_test_passes() {
    check_self_test(Trace::start().capabilities().self_test());
}

fn check_self_test(checks: &[SelfCheck]) {
    let of = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        checks
            .iter()
            .filter(|c| c.address == address)
            .map(|c| (c.feature, c.result.clone()))
            .collect::<Vec<_>>()
    };
    use tcptop::{Feature::*, SelfTestResult::Passed};
    let all = [(TcpSend, Passed), (TcpRecv, Passed), (UdpSend, Passed), (UdpRecv, Passed)];
    assert_eq!(of("127.0.0.1"), all);
    if std::net::UdpSocket::bind("[::1]:0").is_ok() {
        assert_eq!(of("::1"), all);
    } else {
        assert!(of("::1").iter().all(|(_, result)| matches!(result, tcptop::SelfTestResult::Skipped(_))));
    }
}

/// Its own sockets show up in no event and in no row.
#[test]
fn the_self_test_leaves_no_trace() {
    let mut trace = Trace::with(builder().self_test(true));
    check_self_test(trace.capabilities().self_test());
    trace.listen(Duration::from_millis(300));
    let me = Some(std::process::id());
    let ours = trace.seen.iter().filter(|e| e.connection().is_some_and(|c| c.owner.map(|o| o.pid) == me));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&CollectorEvent>::new());
    let (client, server) = crate::net::tcp_pair();
    let (c, s) = (crate::net::port(&client), crate::net::port(&server));
    drop((client, server));
    assert!(trace.closed(c, s).is_closed, "after it everything is as usual");
}

/// What filters hide, the self-test would not see: then it is not done, instead of failing.
#[test]
fn with_a_filter_there_is_no_self_test() {
    let trace = Trace::with(builder().self_test(true).port(9));
    assert_eq!(trace.capabilities().self_test(), []);
}
