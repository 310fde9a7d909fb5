// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets, raw calls and child processes for the scenarios.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::size_of_val;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use tcptop::{CgroupId, NetNs};

/// What a call returned, or its errno, negative.
pub(crate) fn checked(ret: isize) -> isize {
    if ret >= 0 { ret } else { -(std::io::Error::last_os_error().raw_os_error().unwrap_or(0) as isize) }
}

pub(crate) fn send(socket: &impl AsRawFd, bytes: &[u8], flags: i32) -> isize {
    // SAFETY: the buffer is as long as is said.
    checked(unsafe {
        libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags | libc::MSG_NOSIGNAL)
    })
}

pub(crate) fn recv(socket: &impl AsRawFd, len: usize, flags: i32) -> isize {
    let mut bytes = vec![0_u8; len];
    // SAFETY: the buffer is as long as is said.
    checked(unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), len, flags) })
}

pub(crate) fn set_option<T>(socket: &impl AsRawFd, level: i32, name: i32, value: T) {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is as long as is said.
    let ret = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    assert_eq!(ret, 0, "setsockopt: {}", std::io::Error::last_os_error());
}

pub(crate) fn get_option<T>(socket: &impl AsRawFd, level: i32, name: i32) -> T {
    // SAFETY: options are plain data, all zeros are a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is as long as is said.
    let ret =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(ret, 0, "getsockopt: {}", std::io::Error::last_os_error());
    value
}

/// SO_COOKIE: the kernel's own id of a socket.
pub(crate) fn cookie(socket: &impl AsRawFd) -> u64 {
    get_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// A connected pair over 127.0.0.1: client, server.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    pair_by(&TcpListener::bind("127.0.0.1:0").unwrap())
}

/// A pair by this listener, at the address that it has.
pub(crate) fn pair_by(listener: &TcpListener) -> (TcpStream, TcpStream) {
    pair_at(listener, listener.local_addr().unwrap())
}

/// A pair by this listener, at one of the addresses where it listens.
pub(crate) fn pair_at(listener: &TcpListener, to: impl ToSocketAddrs) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(to).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

pub(crate) fn port(socket: &TcpStream) -> u16 {
    socket.local_addr().unwrap().port()
}

/// A close that resets instead of ending orderly.
pub(crate) fn reset(socket: TcpStream) {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Moves this process into a network namespace of its own, where it can talk to itself.
pub(crate) fn enter_own_network() {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    run("ip link set lo up");
}

/// Makes the loopback device of an own network bad in this way; false where the kernel has nothing for that.
pub(crate) fn netem(how: &str) -> bool {
    let netem = format!("qdisc add dev lo root netem {how}");
    let made = std::process::Command::new("tc").args(netem.split(' ')).output().unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    let is_unknown = why.contains("qdisc kind is unknown") || why.contains("No such file");
    assert!(made.status.success() || is_unknown, "{why}");
    made.status.success()
}

/// Runs a piece of shell script, which must succeed.
pub(crate) fn run(script: &str) {
    let status = std::process::Command::new("sh").args(["-c", script]).status().expect("a shell");
    assert!(status.success(), "{script}");
}

/// Gives this process another name.
pub(crate) fn rename(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a string that ends with zero. The calling thread is the only one of a forked child, and so its leader.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
}

/// Makes this process another user's, without any privilege.
pub(crate) fn become_nobody(uid: u32) {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { (libc::setresgid(uid, uid, uid), libc::setresuid(uid, uid, uid)) }, (0, 0));
}

/// A control group of its own, as long as this is there.
pub(crate) struct Cgroup(String);

impl Cgroup {
    pub(crate) fn new() -> Self {
        Self::named("")
    }

    /// For tests that need several.
    pub(crate) fn named(name: &str) -> Self {
        let path = format!("{}/tcptop-{}{name}", Self::root(), std::process::id());
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where the hierarchy is mounted.
    pub(crate) fn root() -> String {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2");
        mount.split(' ').nth(1).unwrap().to_owned()
    }

    /// The id of the one that /proc names like this.
    pub(crate) fn id_of(path: &str) -> u64 {
        std::fs::metadata(format!("{}{path}", Self::root())).unwrap().ino()
    }

    /// To attach programs to.
    pub(crate) fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }

    /// The same of that in which all are.
    pub(crate) fn open_root() -> File {
        File::open(Self::root()).unwrap()
    }

    pub(crate) fn id(&self) -> CgroupId {
        CgroupId::new(std::fs::metadata(&self.0).unwrap().ino()).expect("not 0")
    }

    /// Takes the calling process in.
    pub(crate) fn enter(&self) {
        std::fs::write(format!("{}/cgroup.procs", self.0), "0").unwrap();
    }
}

impl Drop for Cgroup {
    /// Whoever is still in it keeps it.
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}

/// A forked process that does something with sockets; it shares nothing with the collector.
pub(crate) struct Child {
    pub(crate) pid: u32,
    channel: UnixStream,
}

impl Child {
    /// Forks; the child runs `work` and exits, with 1 if it panics.
    pub(crate) fn fork(work: impl FnOnce(&mut UnixStream)) -> Self {
        // SAFETY: the child uses sockets and memory only, and leaves without running the parent's destructors.
        Self::begin(|| unsafe { libc::fork() as isize }, work)
    }

    /// As many as there are processors, so that each has one.
    pub(crate) fn fork_for_each_processor(work: impl Fn(&mut UnixStream)) -> Vec<Self> {
        let processors = std::thread::available_parallelism().unwrap().get();
        (0..processors).map(|_| Self::fork(&work)).collect()
    }

    /// The same as [`fork`](Self::fork), under a pid that was another process's before (clone3(2), Linux 5.5).
    pub(crate) fn fork_as(pid: u32, work: impl FnOnce(&mut UnixStream)) -> Self {
        let wanted = [pid];
        // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        // set_tid_size.
        let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, wanted.as_ptr() as u64, 1_u64];
        // SAFETY: as fork(2), with arguments that are as long as is said.
        let clone = || unsafe {
            libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) as isize
        };
        Self::begin(clone, work)
    }

    fn begin(fork: impl FnOnce() -> isize, work: impl FnOnce(&mut UnixStream)) -> Self {
        let (channel, mut inner) = UnixStream::pair().unwrap();
        let pid = fork();
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            drop(channel);
            // What a test prints is kept in memory until its end, where nobody would look for it in this process.
            std::panic::set_hook(Box::new(|panic| drop(writeln!(std::io::stderr(), "child: {panic}"))));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut inner)));
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        Self { pid: pid as u32, channel }
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> NetNs {
        let inode = std::fs::metadata(format!("/proc/{}/ns/net", self.pid)).unwrap().ino();
        NetNs::new(u32::try_from(inode).unwrap()).expect("not 0")
    }

    /// A number from the child.
    pub(crate) fn hear(&mut self) -> u64 {
        hear(&mut self.channel)
    }

    /// A number to the child.
    pub(crate) fn tell(&mut self, number: u64) {
        tell(&mut self.channel, number);
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn wait(self) {
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(self.pid as i32, &raw mut status, 0) };
        let pid = self.pid;
        // Gone: nothing for Drop to do.
        std::mem::forget(self);
        assert_eq!(status, 0, "child {pid} failed");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child; it may be gone already.
        unsafe {
            libc::kill(self.pid as i32, libc::SIGKILL);
            libc::waitpid(self.pid as i32, std::ptr::null_mut(), 0);
        }
    }
}

pub(crate) fn hear(channel: &mut UnixStream) -> u64 {
    let mut bytes = [0; 8];
    channel.read_exact(&mut bytes).expect("the other side speaks");
    u64::from_ne_bytes(bytes)
}

pub(crate) fn tell(channel: &mut UnixStream, number: u64) {
    channel.write_all(&number.to_ne_bytes()).expect("the other side listens");
}

/// A socket as `socket(2)` makes it.
pub(crate) fn socket(family: i32, kind: i32) -> OwnedFd {
    socket_of(family, kind, 0).unwrap_or_else(|errno| panic!("socket: {errno}"))
}

/// The same of any protocol; its errno, negative, where there is none.
pub(crate) fn socket_of(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, isize> {
    // SAFETY: makes a new file descriptor, which is ours.
    unsafe {
        let fd = checked(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) as isize);
        if fd < 0 { Err(fd) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// An IPv4 address for the calls that want one.
pub(crate) fn sockaddr(addr: [u8; 4], port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr) },
        sin_zero: [0; 8],
    }
}

pub(crate) fn connect(socket: &impl AsRawFd, addr: &libc::sockaddr_in) -> isize {
    // SAFETY: the address is as long as is said.
    checked(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const *addr).cast(), size_of_val(addr) as libc::socklen_t)
            as isize
    })
}

/// Sends from a UDP socket to a port of 127.0.0.1.
pub(crate) fn send_to(socket: &impl AsRawFd, bytes: &[u8], port: u16, flags: i32) -> isize {
    let to = sockaddr([127, 0, 0, 1], port);
    // SAFETY: bytes and an address that are as long as is said.
    checked(unsafe {
        let (address, length) = ((&raw const to).cast(), size_of_val(&to) as libc::socklen_t);
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags, address, length)
    })
}
