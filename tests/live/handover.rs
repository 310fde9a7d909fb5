// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets that pass from one process to another, and processes that change or go.

use crate::harness::{AFTERMATH, Answer, Trace, absent, answer, skipped};
use crate::net::{Child, checked, enter_own_network, hear, netem, port, recv, send, tcp_pair, tell};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::thread;
use tcptop::{EventKind, Feature, Provenance, TcpState, Transfer, Visibility};

/// Room for one file descriptor beside a message.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fd: RawFd,
    pad: i32,
}

/// sendmsg(2) or recvmsg(2) of one byte with one file descriptor (SCM_RIGHTS).
fn pass(channel: &UnixStream, fd: Option<RawFd>) -> RawFd {
    let mut byte = [0_u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let header = libc::cmsghdr { cmsg_len: 20, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
    let mut control = Control { header, fd: fd.unwrap_or(-1), pad: 0 };
    // SAFETY: all zeros is a message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), size_of::<Control>());
    // SAFETY: the message points to buffers that are as long as is said.
    let n = checked(unsafe {
        match fd {
            Some(_) => libc::sendmsg(channel.as_raw_fd(), &raw const message, 0),
            None => libc::recvmsg(channel.as_raw_fd(), &raw mut message, 0),
        }
    });
    assert_eq!(n, 1);
    control.fd
}

/// 38: this process connects and sends 100, hands the socket to a worker that it has started before, and closes it; the
/// worker sends 200. The worker owns it in the end, and each has its share.
#[test]
fn a_socket_handed_over_belongs_to_who_uses_it() {
    let mut trace = Trace::start();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut worker = Child::fork(move |parent| {
        // SAFETY: the file descriptor was made for this process.
        let socket = unsafe { OwnedFd::from_raw_fd(pass(&theirs, None)) };
        assert_eq!(send(&socket, &[1; 200], 0), 200);
        // Who closes a socket last uses it last.
        hear(parent);
    });
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    assert_eq!(send(&client, &[1; 100], 0), 100);
    server.read_exact(&mut [0; 100]).unwrap();
    // Whatever is reported with the acknowledgement (kprobes) is, before another process sends.
    trace.until("the first bytes", |t| t.tcp(c, s).filter(|row| row.bytes_out == 100).map(drop));
    pass(&ours, Some(client.as_raw_fd()));
    drop(client);
    server.read_exact(&mut [0; 200]).unwrap();
    let pid = worker.pid;
    worker.tell(1);
    worker.wait();
    drop(server);
    let row = trace.closed(c, s);
    trace.listen(AFTERMATH);
    assert_eq!((row.pid(), row.provenance, row.bytes_out), (Some(pid), Provenance::Seen, 300));
    let mut shares = BTreeMap::<u32, u64>::new();
    for t in trace.transfers().filter(|t| t.connection.key.local_port == c && t.bytes > 0) {
        *shares.entry(t.actor.unwrap().pid).or_default() += t.bytes;
    }
    assert_eq!(shares, BTreeMap::from([(std::process::id(), 100), (pid, 200)]));
}

/// 37: what one process has sent is not acknowledged yet when another one looks for data on the same socket, or shuts it
/// down: it is not that one's.
#[test]
fn what_was_sent_stays_with_the_sender_until_it_is_acknowledged() {
    let mut trace = Trace::start();
    let mut sender = Child::fork(|parent| {
        enter_own_network();
        if !netem("delay 200ms") {
            return tell(parent, 0);
        }
        let pairs = [tcp_pair(), tcp_pair()];
        let [one, two] = pairs.each_ref().map(|(client, _)| client);
        assert_eq!((send(one, &[1; 1000], 0), send(two, &[1; 500], 0)), (1000, 500));
        Child::fork(|_| {
            assert_eq!(recv(one, 1, libc::MSG_DONTWAIT), -(libc::EAGAIN as isize));
            two.shutdown(Shutdown::Write).unwrap();
        })
        .wait();
        [one, two].iter().for_each(|client| tell(parent, port(client).into()));
        hear(parent);
    });
    let one = sender.hear() as u16;
    if one == 0 {
        sender.wait();
        return absent(37, "a kernel without netem");
    }
    let two = sender.hear() as u16;
    for (local, bytes) in [(one, 1000), (two, 500)] {
        let of_flow = |t: &&Transfer| t.connection.key.local_port == local && t.bytes > 0;
        trace.until("what was sent", |t| {
            (t.transfers().filter(of_flow).map(|t| t.bytes).sum::<u64>() == bytes).then_some(())
        });
        assert!(trace.transfers().filter(of_flow).all(|t| t.actor.map(|a| a.pid) == Some(sender.pid)));
    }
    sender.tell(1);
    sender.wait();
}

/// 39: a child accepts on a listener that this process made, and has not used the connection yet, with a client that is
/// a third process: the owner is the child, or what the table of scenarios says; never the client.
#[test]
fn a_child_that_accepts_owns_the_connection() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let accepting = listener.try_clone().unwrap();
    let mut acceptor = Child::fork(move |parent| {
        let (_socket, peer) = accepting.accept().unwrap();
        tell(parent, peer.port().into());
        hear(parent);
    });
    let mut client = Child::fork(move |parent| {
        let stream = TcpStream::connect(("127.0.0.1", l)).unwrap();
        hear(parent);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        hear(parent);
    });
    let c = acceptor.hear() as u16;
    client.tell(1);
    let change = trace.until("CLOSE_WAIT", |t| {
        let of_ours = |s: &&tcptop::StateChange| s.connection.key.remote_port == c;
        t.states(l).into_iter().filter(of_ours).find(|s| s.new_state == TcpState::CloseWait).copied()
    });
    let info = change.connection;
    let expected = match answer(39, trace.backend()) {
        Answer::Exact => (Some(acceptor.pid), Provenance::Seen),
        Answer::Lesser => (Some(std::process::id()), Provenance::Inherited),
    };
    assert_eq!((info.owner.map(|o| o.pid), info.provenance), expected);
    let is_exact = trace.sees(Feature::AcceptOwner) == Visibility::Exact;
    assert_eq!(is_exact, answer(39, trace.backend()) == Answer::Exact);
    acceptor.tell(1);
    client.tell(1);
    acceptor.wait();
    client.wait();
}

/// 40: a process connects and becomes another program, which sends: the same pid, the new name.
#[test]
fn after_exec_the_name_is_the_new_one() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let child = Child::fork(move |_| {
        let client = TcpStream::connect(("127.0.0.1", l)).unwrap();
        assert_eq!(send(&client, &[1; 5], 0), 5);
        // SAFETY: a copy of the file descriptor under a number that the shell knows, which survives exec(2).
        assert_eq!(unsafe { libc::dup2(client.as_raw_fd(), 9) }, 9);
        let error = std::process::Command::new("sh").args(["-c", "printf 0123456789 >&9"]).exec();
        panic!("{error}");
    });
    let (mut server, peer) = listener.accept().unwrap();
    let mut all = Vec::new();
    server.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 15);
    let pid = child.pid;
    child.wait();
    drop(server);
    let row = trace.closed(peer.port(), l);
    assert_eq!((row.pid(), row.bytes_out), (Some(pid), 15));
    assert_eq!(row.process_name().unwrap(), "sh");
}

/// 41: a process is killed with two connections open, one with bytes unread: both end, and were its own.
#[test]
fn a_killed_process_ends_its_connections() {
    let mut trace = Trace::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let mut child = Child::fork(move |parent| {
        let clients = [0, 1].map(|_| TcpStream::connect(("127.0.0.1", l)).unwrap());
        for client in &clients {
            assert_eq!(send(client, &[1; 123], 0), 123);
        }
        tell(parent, 1);
        hear(parent);
    });
    let mut servers = [0, 1].map(|_| listener.accept().unwrap());
    child.hear();
    assert_eq!(send(&servers[0].0, &[2; 50], 0), 50);
    for (server, _) in &mut servers {
        server.read_exact(&mut [0; 123]).unwrap();
    }
    let pid = child.pid;
    // Killed by its end.
    drop(child);
    let ends = servers.map(|(server, peer)| (recv(&server, 1, 0), peer.port()));
    assert_eq!(ends.map(|end| end.0), [-(libc::ECONNRESET as isize), 0]);
    for (_, c) in ends {
        let row = trace.closed(c, l);
        assert_eq!((row.pid(), row.bytes_out, row.bytes_in, row.is_closed), (Some(pid), 123, 0, true));
        let row = trace.closed(l, c);
        assert_eq!((row.pid(), row.bytes_in), (Some(std::process::id()), 123));
    }
}

/// Field 22 of /proc/<pid>/stat (proc_pid_stat(5)): when the process started, in ticks of 10 ms since boot.
pub(crate) fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    fields.split(' ').nth(19).unwrap().parse().unwrap()
}

/// 44: a process sends 10 bytes on a socket and ends; another gets its pid and sends 20 on the same socket. The owner is
/// the second one, which only the start time can tell.
#[test]
fn a_reused_pid_is_another_process() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let shared = client.try_clone().unwrap();
    let mut first = Child::fork(move |parent| {
        assert_eq!(send(&shared, &[1; 10], 0), 10);
        tell(parent, 1);
        hear(parent);
    });
    first.hear();
    server.read_exact(&mut [0; 10]).unwrap();
    let pid = first.pid;
    let before = trace.until("the first owner", |t| t.tcp(c, s).filter(|row| row.bytes_out == 10)?.owner);
    assert_eq!((before.pid, before.start_time_ns / 10_000_000), (pid, start_ticks(pid)));
    first.tell(1);
    first.wait();
    // The start times must differ in ticks.
    thread::sleep(std::time::Duration::from_millis(30));
    let shared = client.try_clone().unwrap();
    let mut second = Child::fork_as(pid, move |parent| {
        assert_eq!(send(&shared, &[1; 20], 0), 20);
        tell(parent, 1);
        hear(parent);
    });
    second.hear();
    assert_eq!(second.pid, pid);
    server.read_exact(&mut [0; 20]).unwrap();
    let after = trace.until("the second owner", |t| {
        t.tcp(c, s).filter(|row| row.bytes_out == 30).and_then(|row| row.owner)
    });
    assert_eq!((after.pid, after.start_time_ns / 10_000_000), (pid, start_ticks(pid)));
    assert!(after.start_time_ns > before.start_time_ns);
    second.tell(1);
    second.wait();
    drop((client, server));
    trace.closed(c, s);
}

/// Four processes send on one socket at the same time, a thousand times each, in sizes of their own. Returns what each has
/// sent, and what the actors' shares say.
fn contend(trace: &mut Trace) -> [BTreeMap<u32, u64>; 2] {
    const SENDS: usize = 1000;
    let (client, mut server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let senders: Vec<_> = [11, 23, 37, LONGEST_SEND]
        .into_iter()
        .map(|size| {
            let shared = client.try_clone().unwrap();
            let child = Child::fork(move |_| {
                for _ in 0..SENDS {
                    assert_eq!(send(&shared, &vec![1; size], 0), size as isize);
                }
            });
            (child, (size * SENDS) as u64)
        })
        .collect();
    let sent: BTreeMap<u32, u64> = senders.iter().map(|(child, sent)| (child.pid, *sent)).collect();
    let total = sent.values().sum();
    drop(client);
    assert_eq!(std::io::copy(&mut (&mut server).take(total), &mut std::io::sink()).unwrap(), total);
    senders.into_iter().for_each(|(child, _)| child.wait());
    drop(server);
    assert_eq!(trace.closed(c, s).bytes_out, total);
    trace.listen(AFTERMATH);
    trace.stop();
    let mut shares = BTreeMap::<u32, u64>::new();
    for t in trace.transfers().filter(|t| t.connection.key.local_port == c && t.bytes > 0) {
        *shares.entry(t.actor.expect("an actor").pid).or_default() += t.bytes;
    }
    assert_eq!(shares.values().sum::<u64>(), total);
    [sent, shares]
}

const LONGEST_SEND: usize = 51;

/// For how many sends the kernel has run no program. TCP and UDP have one tracepoint, whose losses count as those of UDP.
fn skipped_sends(trace: &Trace) -> u64 {
    skipped(&trace.collector.stats(), &[EventKind::TcpSend, EventKind::UdpSend])
}

/// The shares are what each has sent. A send for which the kernel has run no program, which is counted, goes to whoever
/// is the owner in the end.
fn check_shares(trace: &Trace, [sent, shares]: &[BTreeMap<u32, u64>; 2]) {
    let skipped = skipped_sends(trace);
    let share = |pid| shares.get(pid).copied().unwrap_or(0);
    let strayed = sent.iter().map(|(pid, sent)| sent.saturating_sub(share(pid))).sum::<u64>();
    assert!(strayed <= LONGEST_SEND as u64 * skipped, "{shares:?} instead of {sent:?}, {skipped} skipped");
}

/// All actors have sent. Where the kernel has run no program for sends, it may be the one who connected, too.
fn check_actors(trace: &Trace, [sent, shares]: &[BTreeMap<u32, u64>; 2]) {
    let skipped = skipped_sends(trace);
    let may_be = |pid: &u32| sent.contains_key(pid) || skipped > 0 && *pid == std::process::id();
    let strangers: Vec<_> = shares.keys().filter(|pid| !may_be(pid)).collect();
    assert!(strangers.is_empty(), "{strangers:?}: {shares:?} of {sent:?}, {skipped} skipped");
}

/// 37: four processes send on one socket at the same time: the actors' shares are what each has sent, or what the table of
/// scenarios says; they add up to the total in any case.
#[test]
fn shares_add_up_under_contention() {
    let mut trace = Trace::fresh();
    let both = contend(&mut trace);
    match answer(37, trace.backend()) {
        Answer::Exact => check_shares(&trace, &both),
        Answer::Lesser => {
            check_actors(&trace, &both);
            assert_ne!(trace.sees(Feature::TcpSend), Visibility::Exact);
        }
    }
}

/// 37: the same with an event for each call.
#[test]
fn shares_add_up_under_contention_with_an_event_per_call() {
    let mut trace = Trace::per_call();
    let both = contend(&mut trace);
    match answer(37, trace.backend()) {
        Answer::Exact => check_shares(&trace, &both),
        Answer::Lesser => check_actors(&trace, &both),
    }
}
