// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who an event says it was: one process as it was at the time of the call, and never half of it another one.

use crate::harness::{AFTERMATH, Trace, builder, is_slow};
use crate::net::{Cgroup, Child, become_nobody, hear, port, recv, rename, send, tcp_pair, tell};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Read};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tcptop::{
    CgroupId, CollectorEvent, EventKind, Granularity, LinuxCollectorBuilder, Process, Protocol, Provenance,
    Transfer,
};

/// What tells one process from another in an event.
type Who = (u32, String, u32, Option<CgroupId>);

fn who(process: &Process) -> Who {
    (process.pid, process.name.to_string(), process.uid, process.cgroup_id)
}

/// What a stream of events of one port has said of processes.
#[derive(Default)]
struct Heard {
    calls: AtomicU64,
    /// As owner, and as actor.
    seen: Mutex<[BTreeMap<Who, u64>; 2]>,
}

impl Heard {
    fn take(&self, events: &[CollectorEvent], local_port: u16) {
        let mut seen = self.seen.lock().unwrap();
        let ours = |t: &&Transfer| t.connection.key.local_port == local_port;
        for t in events.iter().filter_map(CollectorEvent::transfer).filter(ours) {
            self.calls.fetch_add(t.calls.into(), Ordering::Relaxed);
            for (role, process) in [t.connection.owner, t.actor].iter().enumerate() {
                let process = process.as_ref().expect("processes of calls are known");
                *seen[role].entry(who(process)).or_default() += 1;
            }
        }
    }
}

/// Two processes with names, users and cgroups of their own, on two processors, which make small sends on one socket as fast
/// as they can. What is said of them is one of two things.
fn never_mixed(configured: LinuxCollectorBuilder, socket: OwnedFd, local_port: u16) {
    let wanted = if is_slow() { 2_000 } else { 1_000_000 };
    let heard = Arc::new(Heard::default());
    let sink = Arc::clone(&heard);
    let configured = configured.port(local_port).ring_bytes(64 << 20);
    let mut collector = configured.build().unwrap();
    collector.start_with(move |events: &[CollectorEvent]| sink.take(events, local_port)).unwrap();
    let cgroups = [Cgroup::named("a"), Cgroup::named("b")];
    let mut children: Vec<_> = [("AAAAAAAAAAAAAAA", 1111), ("BBBBBBBBBBBBBBB", 2222)]
        .iter()
        .zip(&cgroups)
        .enumerate()
        .map(|(processor, ((name, uid), cgroup))| {
            let socket = socket.try_clone().unwrap();
            Child::fork(move |parent| {
                pin(processor);
                cgroup.enter();
                rename(name);
                become_nobody(*uid);
                tell(parent, 1);
                loop {
                    send(&socket, &[1; 8], libc::MSG_DONTWAIT);
                }
            })
        })
        .collect();
    for child in &mut children {
        child.hear();
    }
    let expected: Vec<Who> = children
        .iter()
        .zip([("AAAAAAAAAAAAAAA", 1111), ("BBBBBBBBBBBBBBB", 2222)])
        .zip(&cgroups)
        .map(|((child, (name, uid)), cgroup)| (child.pid, name.to_owned(), uid, Some(cgroup.id())))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while heard.calls.load(Ordering::Relaxed) < wanted {
        assert!(Instant::now() < deadline, "{} calls of {wanted}", heard.calls.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(children);
    collector.stop().unwrap();
    for (role, seen) in ["owner", "actor"].iter().zip(&*heard.seen.lock().unwrap()) {
        let mixed: Vec<_> = seen.iter().filter(|(who, _)| !expected.contains(who)).collect();
        assert!(mixed.is_empty(), "{role}: {mixed:?}, expected {expected:?}");
        assert!(seen.len() == 2 || *role == "owner", "both have sent: {seen:?}");
    }
}

fn pin(processor: usize) {
    // SAFETY: plain data, and a mask as long as is said. Where there is one processor only both run on that.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// A stream that a thread reads away.
fn tcp_into_the_void() -> (OwnedFd, u16) {
    let (client, mut server) = tcp_pair();
    let local = port(&client);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while server.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    (client.into(), local)
}

/// A connected socket; what is sent fills the peer's queue and then goes nowhere.
fn udp_into_the_void() -> (OwnedFd, UdpSocket, u16) {
    let [socket, peer] = [0; 2].map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    socket.connect(peer.local_addr().unwrap()).unwrap();
    let local = socket.local_addr().unwrap().port();
    (socket.into(), peer, local)
}

/// In guests, where a start takes seconds, the one that has most to tell.
fn granularities() -> impl Iterator<Item = Granularity> {
    let all = [Granularity::PerCall, Granularity::Interval(Duration::from_millis(1))];
    all.into_iter().take(if is_slow() { 1 } else { 2 })
}

/// 61: two processes on one TCP connection, an event per call, and coalesced by a millisecond.
#[test]
fn processes_on_one_connection_are_never_mixed() {
    for granularity in granularities() {
        let (socket, local) = tcp_into_the_void();
        never_mixed(builder().granularity(granularity), socket, local);
    }
}

/// 61: the same with UDP.
#[test]
fn processes_on_one_udp_socket_are_never_mixed() {
    for granularity in granularities() {
        let (socket, _peer, local) = udp_into_the_void();
        never_mixed(builder().granularity(granularity), socket, local);
    }
}

/// 62: a process sends, takes another name and sends, another user, another cgroup: each event says what it was then.
#[test]
fn a_process_is_as_it_was_at_the_time_of_the_call() {
    let mut trace = Trace::start();
    let (client, mut server) = tcp_pair();
    let c = port(&client);
    let (_udp, _peer, u) = udp_into_the_void();
    let cgroup = Cgroup::new();
    let mut child = Child::fork(|parent| {
        let steps: [&dyn Fn(); 4] =
            [&|| rename("first"), &|| rename("second"), &|| cgroup.enter(), &|| become_nobody(4321)];
        for step in steps {
            step();
            assert_eq!(send(&client, &[1; 10], 0), 10);
            assert_eq!(send(&_udp, &[1; 10], 0), 10);
            tell(parent, 1);
            hear(parent);
        }
    });
    let home = CgroupId::new(own_cgroup_of(child.pid, &mut child));
    for _ in 0..3 {
        server.read_exact(&mut [0; 10]).unwrap();
        // What waits for the end of an interval is one process's as it was.
        child.tell(1);
        child.hear();
    }
    server.read_exact(&mut [0; 10]).unwrap();
    let expected: BTreeMap<Who, u64> = [
        ("first", 0, home),
        ("second", 0, home),
        ("second", 0, Some(cgroup.id())),
        ("second", 4321, Some(cgroup.id())),
    ]
    .map(|(name, uid, cgroup)| ((child.pid, name.to_owned(), uid, cgroup), 10))
    .into();
    for (protocol, local) in [(Protocol::Tcp, c), (Protocol::Udp, u)] {
        let shares = |t: &Trace| {
            let mut shares = BTreeMap::<Who, u64>::new();
            let ours = |t: &&Transfer| {
                let key = t.connection.key;
                key.protocol == protocol && key.local_port == local && t.bytes > 0
            };
            for t in t.transfers().filter(ours) {
                *shares.entry(who(&t.actor.unwrap())).or_default() += t.bytes;
            }
            shares
        };
        trace.until(&format!("{expected:?} of {protocol}"), |t| (shares(t) == expected).then_some(()));
    }
    let row = trace.tcp(c, port(&server)).unwrap();
    assert_eq!(row.owner.map(|o| who(&o)), Some((child.pid, "second".into(), 4321, Some(cgroup.id()))));
    child.tell(1);
    child.wait();
}

/// The cgroup in which a child is that has just told that it has sent.
fn own_cgroup_of(pid: u32, child: &mut Child) -> u64 {
    child.hear();
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    Cgroup::id_of(path)
}

/// 63: a process sends 5,000,000 bytes; an idle child that has inherited the socket closes it last. The bytes stay its own.
#[test]
fn who_closes_last_does_not_own_what_others_moved() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let mut sender = Child::fork(|parent| {
        let idle = Child::fork(|of_child| _ = hear(of_child));
        assert_eq!(hear(parent), 1);
        for _ in 0..100 {
            assert_eq!(send(&client, &[1; 50_000], 0), 50_000);
        }
        tell(parent, idle.pid.into());
        // Ends before the idle one, which has only been told to end by that.
        hear(parent);
        let mut idle = idle;
        // SAFETY: our own descriptor, which nobody else uses any more.
        unsafe { libc::close(client.as_raw_fd()) };
        idle.tell(1);
        idle.wait();
    });
    drop(client);
    sender.tell(1);
    let mut received = 0;
    while received < 5_000_000 {
        received += recv(&server, 1 << 20, 0);
    }
    sender.hear();
    sender.tell(1);
    closed_by_its_user(&mut trace, (c, s), sender.pid);
    sender.wait();
}

/// 63: an unprivileged process sends as much and hands the socket to a daemon of root's, which closes it.
#[test]
fn a_daemon_that_is_handed_a_socket_does_not_own_what_was_sent() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut sender = Child::fork(|parent| {
        become_nobody(65534);
        for _ in 0..100 {
            assert_eq!(send(&client, &[1; 50_000], 0), 50_000);
        }
        hand_over(&theirs, client.as_fd().as_raw_fd());
        tell(parent, 1);
    });
    drop(client);
    let mut received = 0;
    while received < 5_000_000 {
        received += recv(&server, 1 << 20, 0);
    }
    sender.hear();
    let pid = sender.pid;
    sender.wait();
    drop(take_over(&ours));
    closed_by_its_user(&mut trace, (c, s), pid);
}

fn closed_by_its_user(trace: &mut Trace, (c, s): (u16, u16), user: u32) {
    let row = trace.closed(c, s);
    trace.listen(AFTERMATH);
    assert_eq!((row.pid(), row.provenance, row.bytes_out), (Some(user), Provenance::Seen, 5_000_000));
    let ours = |e: &&CollectorEvent| crate::harness::ports(e) == (c, s);
    let events: Vec<_> = trace.seen.iter().filter(ours).collect();
    assert!(events.iter().any(|e| e.kind() == Some(EventKind::Closed)));
    // What was before the first send is the one's that connected, which is this process.
    let sent = events.iter().skip_while(|e| e.kind() != Some(EventKind::TcpSend));
    for event in sent {
        assert_eq!(event.connection().unwrap().owner.map(|o| o.pid), Some(user), "{event:?}");
    }
}

/// SCM_RIGHTS: one descriptor along with one byte.
fn hand_over(channel: &UnixStream, fd: i32) {
    let mut control = [0_u8; 32];
    let byte = [IoSlice::new(&[1])];
    // SAFETY: the message and what it points at outlive the call; the control buffer is aligned by the header macros.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = byte.as_ptr() as *mut _;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(channel.as_raw_fd(), &raw const message, 0), 1);
    }
}

fn take_over(channel: &UnixStream) -> OwnedFd {
    use std::os::fd::FromRawFd;
    let (mut control, mut byte) = ([0_u8; 32], [0_u8]);
    let mut into = [IoSliceMut::new(&mut byte)];
    // SAFETY: as in `hand_over`; the descriptor that arrives is ours.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = into.as_mut_ptr().cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
        assert_eq!(libc::recvmsg(channel.as_raw_fd(), &raw mut message, 0), 1);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
    }
}

/// 64: a connection that is older than the tracer and is closed by a process that was never seen to use it.
#[test]
fn who_only_closes_is_told_as_that() {
    let (client, server) = tcp_pair();
    let (c, s) = (port(&client), port(&server));
    let mut trace = Trace::fresh();
    drop(client);
    let row = trace.closed(c, s);
    assert_eq!((row.pid(), row.provenance), (Some(std::process::id()), Provenance::Closer));
    drop(server);
}

/// 65: an unprivileged process fills the option memory of its own socket (here: of all of its namespace) and moves
/// 20,000,000 bytes: they are all there.
#[test]
fn no_option_memory_hides_a_connection() {
    let mut trace = Trace::start();
    let mut child = Child::fork(|parent| {
        crate::net::enter_own_network();
        // Of the initial namespace only, before Linux 6.8.
        drop(std::fs::write("/proc/sys/net/core/optmem_max", "1"));
        become_nobody(65534);
        let (client, server) = tcp_pair();
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
        let reader = std::thread::spawn(move || {
            let mut received = 0;
            while received < 20_000_000 {
                received += recv(&server, 1 << 20, 0);
            }
        });
        for _ in 0..20 {
            let mut left = 1_000_000;
            while left > 0 {
                left -= send(&client, &vec![1; left as usize], 0);
            }
        }
        reader.join().unwrap();
    });
    let (c, s) = (child.hear() as u16, child.hear() as u16);
    let pid = child.pid;
    child.wait();
    for (local, remote, moved) in [(c, s, (0, 20_000_000)), (s, c, (20_000_000, 0))] {
        let row = trace.closed(local, remote);
        assert_eq!(((row.bytes_in, row.bytes_out), row.pid()), (moved, Some(pid)));
    }
}
