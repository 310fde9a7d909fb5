// SPDX-License-Identifier: MIT OR Apache-2.0
//! First, do no harm: the calls of a program have the same outcomes with and without a tracer, whatever state that is in.
//!
//! A new condition is a world that both runs have (`World`), or something done to the tracer (`Tracer`).

use crate::harness::{builder, is_slow};
use crate::net::{
    Cgroup, Child, checked, connect, enter_own_network, hear, recv, run, send, sockaddr, socket, tcp_pair,
    tell,
};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tcptop::{Granularity, LinuxCollectorBuilder};

/// What each call of the program returned, or its errno, negative; with its name.
type Outcomes = Vec<(&'static str, i64)>;

/// What makes the program's surroundings, in its process: before it begins, and when it listens.
type World = (fn(), fn());

/// A program that does what programs do, and knows nothing of a tracer.
fn program(when_it_listens: fn()) -> Outcomes {
    let mut met = Outcomes::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    when_it_listens();
    listeners_children(&listener, &mut met);
    what_fails(&listener, &mut met);
    datagrams(&mut met);
    option_memory(&mut met);
    met
}

/// Accepts what was connected; none within a time is an outcome, too.
fn accept(listener: &TcpListener) -> Result<TcpStream, isize> {
    let mut fd = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, as is said.
    let ready = unsafe { libc::poll(&raw mut fd, 1, if is_slow() { 2000 } else { 500 }) };
    if ready != 1 {
        return Err(-(libc::ETIMEDOUT as isize));
    }
    listener.accept().map(|(stream, _)| stream).map_err(|e| -(e.raw_os_error().unwrap_or(0) as isize))
}

fn listeners_children(listener: &TcpListener, met: &mut Outcomes) {
    let addr = sockaddr([127, 0, 0, 1], listener.local_addr().unwrap().port());
    for _ in 0..8 {
        let client = socket(libc::AF_INET, libc::SOCK_STREAM);
        met.push(("connect", connect(&client, &addr) as i64));
        let server = match accept(listener) {
            Ok(server) => server,
            Err(errno) => {
                met.push(("accept", errno as i64));
                continue;
            }
        };
        met.push(("accept", 0));
        for size in [1, 1000, 70_000] {
            met.push(("send", send(&client, &vec![1; size], 0) as i64));
            met.push(("recv", recv(&server, size, libc::MSG_WAITALL) as i64));
            met.push(("answer", send(&server, &[2; 10], 0) as i64));
            met.push(("recv answer", recv(&client, 10, libc::MSG_WAITALL) as i64));
        }
        drop(client);
        met.push(("end", recv(&server, 10, 0) as i64));
        met.push(("send after the end", send(&server, &[1; 10], 0) as i64));
    }
}

fn what_fails(listener: &TcpListener, met: &mut Outcomes) {
    let taken = sockaddr([127, 0, 0, 1], listener.local_addr().unwrap().port());
    let other = socket(libc::AF_INET, libc::SOCK_STREAM);
    // SAFETY: the address is as long as is said.
    let bound = checked(unsafe {
        libc::bind(other.as_raw_fd(), (&raw const taken).cast(), size_of_val(&taken) as u32) as isize
    });
    met.push(("bind", bound as i64));
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    met.push(("connect to nobody", connect(&other, &sockaddr([127, 0, 0, 1], unused)) as i64));
    met.push(("send to nobody", send(&other, &[1; 10], 0) as i64));
    let (client, server) = tcp_pair();
    client.set_nonblocking(true).unwrap();
    met.push(("recv of nothing", recv(&client, 10, 0) as i64));
    drop(server);
}

fn datagrams(met: &mut Outcomes) {
    let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let errno = |e: std::io::Error| -i64::from(e.raw_os_error().unwrap_or(0));
    for size in [0, 1, 1000, 60_000, 66_000] {
        let sent = from.send_to(&vec![1; size], to.local_addr().unwrap());
        let came = if sent.is_ok() { to.recv_from(&mut vec![0; 70_000]).map(|(n, _)| n) } else { Ok(0) };
        met.push(("sendto", sent.map_or_else(errno, |n| n as i64)));
        met.push(("recvfrom", came.map_or_else(errno, |n| n as i64)));
    }
    from.connect(to.local_addr().unwrap()).unwrap();
    drop(to);
    for _ in 0..2 {
        met.push(("send to a closed port", from.send(&[1; 10]).map_or_else(errno, |n| n as i64)));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the kernel keeps for a socket beside its buffers, each until it refuses: filters, memberships, notices of
/// zero-copy, control data. What a tracer keeps there is missing to the program.
fn option_memory(met: &mut Outcomes) {
    let (client, server) = tcp_pair();
    met.push(("send", send(&client, &[1; 100], 0) as i64));
    met.push(("recv", recv(&server, 100, libc::MSG_WAITALL) as i64));
    let set = |socket: &dyn AsRawFd, level, name, value: &[u8]| {
        // SAFETY: the value is as long as is said.
        checked(unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as u32)
                as isize
        }) as i64
    };
    for steps in [1_usize, 8, 32, 256] {
        let pass =
            libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX };
        let mut filter = vec![pass; steps];
        let program = libc::sock_fprog { len: steps as u16, filter: filter.as_mut_ptr() };
        // SAFETY: plain data, as long as it is.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const program).cast(), size_of_val(&program)) };
        met.push(("SO_ATTACH_FILTER", set(&client, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, bytes)));
    }
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    met.push(("sendto", udp.send_to(&[1; 10], udp.local_addr().unwrap()).map_or(-1, |n| n as i64)));
    for last in 1..=20 {
        let member: [u8; 12] = [239, 1, 1, 1, 127, 0, 0, 1, 10, 0, 0, last];
        let name = libc::IP_ADD_SOURCE_MEMBERSHIP;
        met.push(("IP_ADD_SOURCE_MEMBERSHIP", set(&udp, libc::IPPROTO_IP, name, &member)));
    }
    met.push(("SO_ZEROCOPY", set(&client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32.to_ne_bytes())));
    for _ in 0..8 {
        met.push(("MSG_ZEROCOPY", send(&client, &[1; 2000], libc::MSG_ZEROCOPY) as i64));
    }
    for count in [1, 4, 16, 64, 256] {
        met.push(("control data", send_control(&udp, count)));
    }
}

/// Sends a datagram with so many times the same piece of control data: the kernel takes memory for all of them.
fn send_control(udp: &UdpSocket, count: usize) -> i64 {
    // struct cmsghdr with IP_TTL: length, level, type, an int, padding.
    let piece = [20_u64, u64::from(libc::IP_TTL as u32) << 32 | libc::IPPROTO_IP as u64, 9];
    let control = piece.repeat(count);
    let mut to = sockaddr([127, 0, 0, 1], udp.local_addr().unwrap().port());
    let mut data = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    // SAFETY: plain data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = size_of_val(&to) as u32;
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_ptr().cast_mut().cast();
    message.msg_controllen = size_of_val(control.as_slice());
    // SAFETY: all is as long as is said.
    checked(unsafe { libc::sendmsg(udp.as_raw_fd(), &raw const message, 0) }) as i64
}

/// Runs it in a process of its own.
fn outcomes(world: World, meanwhile: impl FnOnce()) -> Outcomes {
    let mut child = Child::fork(|parent| {
        world.0();
        hear(parent);
        let met = program(world.1);
        tell(parent, met.len() as u64);
        for (name, outcome) in met {
            tell(parent, name.as_ptr() as u64);
            tell(parent, name.len() as u64);
            tell(parent, outcome as u64);
        }
    });
    child.tell(1);
    meanwhile();
    let count = child.hear();
    let met: Outcomes = (0..count)
        .map(|_| {
            let (place, length) = (child.hear() as *const u8, child.hear() as usize);
            // SAFETY: a literal of this program, which is at the same place in a process that was forked.
            let name = unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(place, length)) };
            (name, child.hear() as i64)
        })
        .collect();
    child.wait();
    assert!(met.len() > 70, "{met:?}");
    met
}

/// A tracer in a process of its own.
struct Tracer(Child);

impl Tracer {
    fn start(builder: LinuxCollectorBuilder) -> Self {
        Self::start_where(builder, || ())
    }

    /// In surroundings that it makes for itself first.
    fn start_where(builder: LinuxCollectorBuilder, enter: impl FnOnce()) -> Self {
        let mut child = Child::fork(|parent| {
            enter();
            let (_collector, events) = builder.spawn().unwrap();
            tell(parent, 1);
            events.for_each(drop);
        });
        child.hear();
        Self(child)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::kill(self.0.pid as i32, signal) }, 0);
    }
}

/// Everything that the program meets beside this tracer, or these, it meets without.
fn harms_nobody(world: World, tracers: &[Tracer], meanwhile: impl FnOnce(&[Tracer]), alone: &Outcomes) {
    let traced = outcomes(world, || meanwhile(tracers));
    let differ: Vec<_> = alone.iter().zip(&traced).filter(|(alone, traced)| alone != traced).collect();
    assert!(differ.is_empty() && alone.len() == traced.len(), "alone, traced: {differ:#?}");
}

const AS_IT_IS: World = (enter_own_network, || ());

#[test]
fn a_tracer_changes_no_outcome() {
    let alone = outcomes(AS_IT_IS, || ());
    for builder in [builder(), builder().granularity(Granularity::PerCall)] {
        harms_nobody(AS_IT_IS, &[Tracer::start(builder)], |_| (), &alone);
    }
}

#[test]
fn two_tracers_change_no_outcome() {
    let alone = outcomes(AS_IT_IS, || ());
    harms_nobody(AS_IT_IS, &[(); 2].map(|()| Tracer::start(builder())), |_| (), &alone);
}

#[test]
fn a_frozen_tracer_with_no_room_changes_no_outcome() {
    let alone = outcomes(AS_IT_IS, || ());
    let small = builder().ring_bytes(1).max_sockets(1);
    for builder in [builder(), small.clone(), small.granularity(Granularity::PerCall)] {
        let tracer = Tracer::start(builder);
        tracer.signal(libc::SIGSTOP);
        harms_nobody(AS_IT_IS, &[tracer], |_| (), &alone);
    }
}

#[test]
fn a_tracer_that_is_killed_changes_no_outcome() {
    let alone = outcomes(AS_IT_IS, || ());
    for wait in [0, 5, 20] {
        let killed = |tracers: &[Tracer]| {
            std::thread::sleep(Duration::from_millis(wait));
            tracers[0].signal(libc::SIGKILL);
        };
        harms_nobody(AS_IT_IS, &[Tracer::start(builder())], killed, &alone);
    }
}

/// A cgroup that limits memory: of version 2, or where another hierarchy has that controller of version 1.
struct MemoryCgroup {
    path: String,
    files: [&'static str; 2],
}

impl MemoryCgroup {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|mount| mount[2] == "cgroup" && mount[3].split(',').any(|option| option == "memory"));
        let (root, files) = match mount {
            Some(mount) => (mount[1].to_owned(), ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            None => {
                let root = Cgroup::root();
                std::fs::write(format!("{root}/cgroup.subtree_control"), "+memory").unwrap();
                (root, ["memory.max", "memory.current"])
            }
        };
        let path = format!("{root}/tcptop-memory-{}", std::process::id());
        std::fs::create_dir(&path).unwrap();
        Self { path, files }
    }

    fn enter(&self) {
        std::fs::write(format!("{}/cgroup.procs", self.path), "0").unwrap();
        if self.files[0] == "memory.max" {
            // Version 2 ends processes to get below a lower limit.
            std::fs::write("/proc/self/oom_score_adj", "-1000").unwrap();
        }
    }

    fn read(&self, file: &str) -> u64 {
        std::fs::read_to_string(format!("{}/{file}", self.path)).unwrap().trim().parse().unwrap()
    }

    /// Lowers the limit to what is used. One below it, which version 1 then refuses, makes the kernel first take back what
    /// processors have laid in.
    fn fill(&self) {
        let [limit, usage] = self.files;
        for below in [1 << 20, 0] {
            let bytes = (self.read(usage) - below).to_string();
            drop(std::fs::write(format!("{}/{limit}", self.path), bytes));
        }
        assert!(self.read(usage) + (1 << 16) > self.read(limit), "there is room left");
    }
}

impl Drop for MemoryCgroup {
    /// When the tracer in it has ended.
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.path));
    }
}

/// Nothing that a socket needs of a tracer is allocated when it is needed. (The tracer is frozen, for it would need memory
/// itself.)
#[test]
fn a_tracer_whose_memory_is_full_changes_no_outcome() {
    let alone = outcomes(AS_IT_IS, || ());
    for builder in [builder(), builder().granularity(Granularity::PerCall)] {
        let memory = MemoryCgroup::new();
        let tracer = Tracer::start_where(builder, || memory.enter());
        tracer.signal(libc::SIGSTOP);
        memory.fill();
        harms_nobody(AS_IT_IS, &[tracer], |_| (), &alone);
    }
}

/// From now on sockets may keep so little beside their buffers in this network namespace; where the kernel has that limit
/// for all of them only (before Linux 6.8), in the whole guest.
fn option_memory_of<const BYTES: u32>() {
    const PATH: &str = "/proc/sys/net/core/optmem_max";
    if std::fs::exists(PATH).unwrap() {
        std::fs::write(PATH, BYTES.to_string()).unwrap();
    } else {
        assert!(is_slow(), "this machine is not ours");
        run(&format!("nsenter -t 1 -n sysctl -qw net.core.optmem_max={BYTES}"));
    }
}

fn changes_nothing_with(limits: &[fn()]) {
    let worlds = limits.iter().map(|&limit| (enter_own_network as fn(), limit));
    for world in worlds {
        let alone = outcomes(world, || ());
        harms_nobody(world, &[Tracer::start(builder())], |_| (), &alone);
    }
}

#[test]
fn little_option_memory_changes_no_outcome() {
    changes_nothing_with(&[option_memory_of::<300>, option_memory_of::<400>, option_memory_of::<500>]);
    changes_nothing_with(&[option_memory_of::<1000>, option_memory_of::<2000>, option_memory_of::<20_480>]);
}
