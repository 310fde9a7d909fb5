// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library as a guest in somebody's program: its signals, its children, its functions, its memory.

use crate::collector::{bpf_objects, nothing_left_but};
use crate::harness::{PATIENCE, Trace, builder, is_slow, ports};
use crate::net::{Child, hear, port, recv, send, tcp_pair, tell};
use crossbeam_channel::{Sender, bounded};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tcptop::{CollectorEvent, Error, LinuxCollector, Stats};

/// Moves some bytes over a connection that then ends.
fn traffic() {
    let (client, server) = tcp_pair();
    for _ in 0..20 {
        assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Signals of the program neither make the start fail nor choose another backend.
#[test]
fn signals_during_the_start_change_nothing() {
    extern "C" fn nothing(_: libc::c_int) {}
    let usual = Trace::start().backend();
    let program = Child::fork(|_| {
        let often = libc::timeval { tv_sec: 0, tv_usec: 5000 };
        let timer = libc::itimerval { it_interval: often, it_value: often };
        // SAFETY: the handler does nothing; the structures are plain data, and live during the calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (nothing as *const () as usize, libc::SA_RESTART);
            assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
            assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
        }
        let (collector, _events) = builder().spawn().unwrap();
        assert_eq!(collector.capabilities().unwrap().backend(), usual);
    });
    program.wait();
}

/// A program that blocks a signal after the start, and waits for it, gets it: no thread of ours takes it.
#[test]
fn a_signal_that_the_program_waits_for_reaches_it() {
    let mut program = Child::fork(|parent| {
        let (_collector, _events) = builder().spawn().unwrap();
        let poller = builder().open().unwrap();
        poller.bootstrap_existing().unwrap();
        // SAFETY: sets of signals are plain data; the calls fill what they are given.
        let signal = unsafe {
            let (mut set, mut signal) = (std::mem::zeroed(), 0);
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()), 0);
            tell(parent, 1);
            assert_eq!(libc::sigwait(&raw const set, &raw mut signal), 0);
            signal
        };
        tell(parent, signal as u64);
    });
    program.hear();
    let threads = fs::read_dir(format!("/proc/{}/task", program.pid)).unwrap();
    let ours: Vec<_> = threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap())
        .filter(|status| status.starts_with("Name:\ttcptop-"))
        .collect();
    assert!(ours.len() >= 5, "the reader's, and two others of each collector: {ours:?}");
    for status in ours {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGALRM];
        assert!(signals.iter().all(|signal| mask & 1 << (signal - 1) != 0), "{status}");
    }
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::kill(program.pid as i32, libc::SIGTERM) }, 0);
    assert_eq!(program.hear(), libc::SIGTERM as u64);
    program.wait();
}

/// As long as this is there the kernel counts how often programs run.
struct Counting(String);

impl Counting {
    const PATH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn begin() -> Self {
        let before = fs::read_to_string(Self::PATH).unwrap();
        fs::write(Self::PATH, "1").unwrap();
        Self(before)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        fs::write(Self::PATH, self.0.trim()).unwrap();
    }
}

/// The programs of which a process has descriptors, by their ids, and how often each has run.
fn programs(pid: u32) -> BTreeMap<u64, u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let infos = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    let number =
        |info: &str, name| info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
    infos.filter_map(|info| Some((number(&info, "prog_id:")?, number(&info, "run_cnt:")?))).collect()
}

/// How often a process's programs run while something happens, but for those that others have started.
fn runs_during_traffic(pid: u32, others: &BTreeMap<u64, u64>) -> u64 {
    let runs = || {
        let own: Vec<_> = programs(pid).into_iter().filter(|(id, _)| !others.contains_key(id)).collect();
        assert!(own.len() >= 5, "{own:?}");
        own.iter().map(|(_, runs)| runs).sum::<u64>()
    };
    let before = runs();
    traffic();
    runs() - before
}

/// A process that was forked, and has called no exec, has copies of all descriptors. The programs go all the same when the
/// one that has started them lets them go, or is killed.
#[test]
fn programs_go_with_their_process_whoever_was_forked_from_it() {
    let (before, _counting) = (bpf_objects(), Counting::begin());
    // Those of collectors that go from test to test.
    let others = programs(std::process::id());
    for is_killed in [false, true] {
        for is_poller in [false, true] {
            let mut owner = Child::fork(|parent| {
                let ends: Box<dyn std::any::Any> = if is_poller {
                    Box::new(builder().open().unwrap())
                } else {
                    Box::new(builder().spawn().unwrap())
                };
                let heir = Child::fork(|_| std::thread::sleep(3 * PATIENCE));
                tell(parent, heir.pid.into());
                hear(parent);
                drop(ends);
                tell(parent, 1);
                hear(parent);
            });
            let heir = owner.hear() as u32;
            assert!(runs_during_traffic(heir, &others) > 20, "they run while it runs");
            if is_killed {
                // SAFETY: our own child.
                unsafe { libc::kill(owner.pid as i32, libc::SIGKILL) };
            } else {
                owner.tell(1);
                owner.hear();
            }
            until("they still run", || runs_during_traffic(heir, &others) == 0);
            // SAFETY: a child of our child. Where that was killed it stays.
            unsafe { libc::kill(heir as i32, libc::SIGKILL) };
            drop(owner);
            nothing_left_but(&before);
        }
    }
}

/// In a forked process a collector is without life: nothing it is told to do fails, waits, or changes anything for the
/// process that it was forked from. It can be started anew.
#[test]
fn a_collector_in_a_forked_process_is_without_life() {
    let mut trace = Trace::fresh();
    let mut poller = builder().open().unwrap();
    let mut started = builder().build().unwrap();
    let (tx, rx) = bounded(1 << 16);
    started.start(tx).unwrap();
    for _ in 0..10 {
        let busy = std::thread::spawn(traffic);
        let child = Child::fork(|_| {
            let began = Instant::now();
            assert!(!started.is_running());
            let _ = started.stats();
            started.stop().unwrap();
            assert!(!trace.collector.is_running());
            trace.collector.stop().unwrap();
            poller.poll(Duration::from_secs(100));
            poller.stop();
            poller.poll(Duration::from_secs(100));
            // SAFETY: all of them are forgotten or dropped in the parent; here this process ends after that.
            unsafe {
                std::ptr::drop_in_place(&raw mut poller);
                std::ptr::drop_in_place(&raw mut started);
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        });
        child.wait();
        busy.join().unwrap();
    }
    let child = Child::fork(|_| {
        let (tx, rx) = bounded(1 << 16);
        started.start(tx).unwrap();
        traffic();
        started.stop().unwrap();
        assert!(rx.iter().any(|event| matches!(event, CollectorEvent::Closed(_))));
    });
    child.wait();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    drop((client, server));
    assert!(trace.closed(c, s).is_closed);
    assert!(trace.collector.is_running() && started.is_running());
    let is_end =
        |event: &CollectorEvent| matches!(event, CollectorEvent::Closed(_)) && ports(event) == (c, s);
    until("the end in the poller", || poller.poll(PATIENCE).iter().any(is_end));
    started.stop().unwrap();
    assert!(rx.iter().any(|event| is_end(&event)));
}

/// Who throws the collector away and keeps the events gets events: tracing ends with the last of the two.
#[test]
fn events_keep_the_tracing_going() {
    let before = bpf_objects();
    let (_, events) = builder().spawn().unwrap();
    let kept = events.clone();
    for _ in 0..3 {
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        drop((client, server));
        let is_end =
            |event: CollectorEvent| matches!(event, CollectorEvent::Closed(_)) && ports(&event) == (c, s);
        let deadline = Instant::now() + PATIENCE;
        while !is_end(events.recv_deadline(deadline).unwrap()) {}
    }
    drop(events);
    traffic();
    assert!(kept.into_iter().any(|event| matches!(event, CollectorEvent::Closed(_))));
    nothing_left_but(&before);

    let (mut collector, events) = builder().spawn().unwrap();
    collector.stop().unwrap();
    nothing_left_but(&before);
    traffic();
    events.into_iter().for_each(drop);
}

type Place = Arc<Mutex<Option<LinuxCollector>>>;

/// Does this once in a function that gets events, where the collector can be reached, and returns what came of it.
fn in_a_handler<T: Send + 'static>(
    work: impl Fn(&mut Option<LinuxCollector>) -> T + Send + 'static,
) -> (T, Place) {
    let place = Place::default();
    let (there, (tell, told)) = (Arc::clone(&place), bounded(1));
    let handler = move |_: &[CollectorEvent]| {
        let mut collector = there.lock().unwrap();
        if collector.is_some() {
            drop(tell.try_send(work(&mut collector)));
        }
    };
    let collector = builder().spawn_with(handler).unwrap();
    *place.lock().unwrap() = Some(collector);
    let deadline = Instant::now() + PATIENCE;
    loop {
        traffic();
        if let Ok(answer) = told.recv_timeout(Duration::from_millis(50)) {
            return (answer, place);
        }
        assert!(Instant::now() < deadline, "no answer");
    }
}

/// A function that gets events can end the collector whose thread it runs on: neither of them waits for itself.
#[test]
fn a_handler_can_stop_and_drop_and_start_its_collector() {
    let before = bpf_objects();
    let stopped = in_a_handler(|collector| {
        let collector = collector.as_mut().unwrap();
        collector.stop().unwrap();
        collector.is_running()
    });
    assert!(!stopped.0);
    nothing_left_but(&before);
    stopped.1.lock().unwrap().as_mut().unwrap().stop().unwrap();

    let (dropped, place) = in_a_handler(|collector| drop(collector.take()));
    assert_eq!((dropped, place.lock().unwrap().is_none()), ((), true));
    nothing_left_but(&before);

    let (tell, told) = bounded(1 << 16);
    let again = move |collector: &mut Option<LinuxCollector>| {
        let collector = collector.as_mut().unwrap();
        let tell: Sender<CollectorEvent> = tell.clone();
        let running = collector.start(tell.clone());
        collector.stop().unwrap();
        collector.start(tell).unwrap();
        matches!(running, Err(Error::AlreadyRunning))
    };
    let (refused, place) = in_a_handler(again);
    assert!(refused);
    traffic();
    until("events of the second start", || {
        told.try_iter().any(|event| matches!(event, CollectorEvent::Closed(_)))
    });
    // Not with the lock held: the function may wait for that.
    let collector = place.lock().unwrap().take();
    drop(collector);
    nothing_left_but(&before);
}

/// It may also ask for what exists already, and for statistics.
#[test]
fn a_handler_can_look_for_existing_connections() {
    let before = bpf_objects();
    let (client, server) = tcp_pair();
    let (found, place) = in_a_handler(|collector| {
        let collector = collector.as_mut().unwrap();
        (collector.bootstrap_existing().unwrap(), collector.stats(), collector.capabilities())
    });
    assert!(found.0.iter().any(|row| row.key.local_port == port(&client)));
    assert!(found.0.iter().any(|row| row.key.local_port == port(&server)));
    // Not with the lock held: the function may wait for that.
    let collector = place.lock().unwrap().take();
    drop(collector);
    nothing_left_but(&before);
}

/// A collector that only its own function holds goes with that, on the thread of its own.
#[test]
fn a_collector_that_its_handler_owns_ends_with_it() {
    let before = bpf_objects();
    let place = Place::default();
    let (owned, calls) = (Arc::clone(&place), Arc::new(()));
    let (held, weak) = (Arc::clone(&calls), Arc::downgrade(&calls));
    let collector = builder()
        .spawn_with(move |_: &[CollectorEvent]| {
            let _held = &held;
            if let Some(collector) = owned.lock().unwrap().as_mut() {
                collector.stop().unwrap();
            }
        })
        .unwrap();
    *place.lock().unwrap() = Some(collector);
    drop((place, calls));
    until("the function is still there", || {
        traffic();
        weak.upgrade().is_none()
    });
    nothing_left_but(&before);
}

/// What a function was handed before it panicked counts.
#[test]
fn what_was_handed_out_before_a_panic_counts() {
    let handed = Arc::new(Mutex::new((0, Vec::new())));
    let all = Arc::clone(&handed);
    let mut collector = builder()
        .spawn_with(move |events: &[CollectorEvent]| {
            let mut handed = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            handed.0 += events.iter().filter(|event| event.kind().is_some()).count() as u64;
            handed.1.extend_from_slice(events);
            if handed.0 > 20 {
                drop(handed);
                panic!("as the test wants it");
            }
        })
        .unwrap();
    until("still running", || {
        traffic();
        !collector.is_running()
    });
    collector.stop().unwrap();
    assert_eq!(collector.stats().events, handed.lock().unwrap().0);
    assert_ne!(collector.stats(), Stats::default());
}

/// What this process prints on stderr while it does that.
fn printed(work: impl FnOnce()) -> String {
    let path = format!("/tmp/tcptop-stderr-{}", std::process::id());
    let file = fs::File::create(&path).unwrap();
    // SAFETY: this process's own descriptors.
    let kept = unsafe { libc::dup(2) };
    // SAFETY: the same.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), 2) };
    work();
    // SAFETY: the same.
    unsafe { libc::dup2(kept, 2) };
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    text
}

fn limit(which: libc::__rlimit_resource_t, to: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain data.
    unsafe {
        assert_eq!(libc::getrlimit(which, &raw mut limit), 0);
        limit.rlim_cur = to.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(which, &raw const limit), 0);
    }
}

/// Without descriptors or memory a start runs or says what there is too little of; it prints nothing and leaves nothing.
#[test]
fn a_start_with_too_little_says_so_and_prints_nothing() {
    let before = bpf_objects();
    // A Poller: a channel would take its memory by way of the allocator, which ends the program if there is none.
    let start = |parent: &mut std::os::unix::net::UnixStream, which, to| {
        let mut result = None;
        let text = printed(|| {
            limit(which, to);
            result = Some(builder().open().map(drop));
            limit(which, u64::MAX);
        });
        assert_eq!(text, "");
        let told = match result.unwrap() {
            Ok(()) => 0,
            Err(e) => {
                let (text, words) = (
                    format!("{e:?}"),
                    [
                        "RLIMIT_NOFILE",
                        "Too many open files",
                        "os error 24",
                        "os error 12",
                        "Cannot allocate",
                        "out of memory",
                        "cannot start",
                        "cannot begin",
                    ],
                );
                assert!(words.iter().any(|word| text.contains(word)), "{text}");
                1
            }
        };
        tell(parent, told);
    };
    for (which, step, most) in [(libc::RLIMIT_NOFILE, 7, 91), (libc::RLIMIT_AS, 3 << 20, 42 << 20)] {
        let (mut refused, mut started) = (0, 0);
        // A start takes a guest seconds.
        let step = if is_slow() { 4 * step } else { step };
        for more in (0..most).step_by(step) {
            let mut child = Child::fork(|parent| {
                let now = if which == libc::RLIMIT_NOFILE {
                    fs::read_dir("/proc/self/fd").unwrap().count() as u64
                } else {
                    let pages = fs::read_to_string("/proc/self/statm").unwrap();
                    // Room for the heap that the start itself needs.
                    (2 << 20) + 4096 * pages.split(' ').next().unwrap().parse::<u64>().unwrap()
                };
                start(parent, which, now + more as u64);
            });
            match child.hear() {
                0 => started += 1,
                _ => refused += 1,
            }
            child.wait();
        }
        assert!(refused > 0 && started > 0, "{refused} refused, {started} started");
    }
    nothing_left_but(&before);
}
