// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel that refuses something, to one thread of ours: by seccomp(2), by taking away a capability.

use crate::net::checked;
use crossbeam_channel::bounded;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

/// A system call, and its first argument.
pub(crate) type Call = (i64, u32);

/// enum bpf_cmd, include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: u32 = 17;
const BPF_LINK_CREATE: u32 = 28;
const BPF_ITER_CREATE: u32 = 33;

/// To look at an iterator.
pub(crate) const ITERATORS: Call = (libc::SYS_bpf, BPF_ITER_CREATE);
/// To ask sock_diag(7), or any other netlink service.
pub(crate) const NETLINK: Call = (libc::SYS_socket, libc::AF_NETLINK as u32);

const CAP_SYS_ADMIN: u32 = 21;

/// Does this on a thread for which these calls fail with EPERM.
pub(crate) fn without<T: Send>(calls: &[Call], work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let refused = || {
            filter(calls, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0);
            work()
        };
        scope.spawn(refused).join().unwrap()
    })
}

/// Does this on a thread that may not enter network namespaces.
pub(crate) fn without_cap_sys_admin<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    with_capabilities(|all| all & !(1 << CAP_SYS_ADMIN), work)
}

/// Does this on a thread that has these capabilities of those it had.
pub(crate) fn with_capabilities<T: Send>(
    which: impl FnOnce(u64) -> u64 + Send,
    work: impl FnOnce() -> T + Send,
) -> T {
    let change = || {
        // struct __user_cap_header_struct (version 3, this thread); of each half: effective, permitted, inheritable.
        let (header, mut sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
        // SAFETY: both are as long as this version has it.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) }, 0);
        let effective = which(u64::from(sets[0]) | u64::from(sets[3]) << 32);
        (sets[0], sets[3]) = (effective as u32, (effective >> 32) as u32);
        // SAFETY: the same.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }, 0);
    };
    thread::scope(|scope| {
        let changed = || {
            change();
            work()
        };
        scope.spawn(changed).join().unwrap()
    })
}

/// What is refused to a BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Load,
    Attach,
}

/// Does this on a thread for which one BPF program cannot be loaded, or attached: EPERM. (Another thread, which the
/// kernel asks before each such call, looks who it is about.)
pub(crate) fn without_program<T: Send>(what: Refused, program: &str, work: impl FnOnce() -> T + Send) -> T {
    let commands: &[u32] = match what {
        Refused::Load => &[BPF_PROG_LOAD],
        Refused::Attach => &[BPF_RAW_TRACEPOINT_OPEN, BPF_LINK_CREATE],
    };
    let calls: Vec<Call> = commands.iter().map(|&command| (libc::SYS_bpf, command)).collect();
    let (tell, told) = bounded(1);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let fd = filter(&calls, libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
            // SAFETY: a new file descriptor, which is ours.
            tell.send(unsafe { OwnedFd::from_raw_fd(fd as i32) }).unwrap();
            work()
        });
        let questions = told.recv().unwrap();
        while !worker.is_finished() {
            answer(&questions, program);
        }
        worker.join().unwrap()
    })
}

/// Puts a filter on the calling thread and those that it begins.
fn filter(calls: &[Call], action: u32, flags: u64) -> isize {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Where struct seccomp_data has the number and the lower half of the first argument.
    let (number, argument) = (0, 16);
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = Vec::new();
    for &(call, first) in calls {
        steps.extend([step(LOAD, number, 0), step(IF_EQUAL, call as u32, 3)]);
        steps.extend([step(LOAD, argument, 0), step(IF_EQUAL, first, 1), step(RETURN, action, 0)]);
    }
    steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program is as long as is said.
    let done =
        checked(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) as isize });
    assert!(done >= 0, "seccomp: {done}");
    done
}

/// Answers a question of the kernel's if there is one.
fn answer(questions: &OwnedFd, program: &str) {
    let mut poll = libc::pollfd { fd: questions.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, as is said.
    if unsafe { libc::poll(&raw mut poll, 1, 20) } != 1 || poll.revents & libc::POLLIN == 0 {
        return;
    }
    // SAFETY: integers; the kernel wants zeros.
    let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: as long as the request says.
    if unsafe { libc::ioctl(questions.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question) } != 0 {
        return;
    }
    let is_it = program_of(&question.data.args) == program;
    let (error, flags) =
        if is_it { (-libc::EPERM, 0) } else { (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32) };
    let answer = libc::seccomp_notif_resp { id: question.id, val: 0, error, flags };
    // SAFETY: as long as the request says.
    unsafe { libc::ioctl(questions.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
}

/// The name of the program that a call of bpf(2) is about. The thread that made it waits, so its arguments stay.
fn program_of(args: &[u64; 6]) -> String {
    // Where union bpf_attr has the name or the file descriptor.
    let at = match args[0] as u32 {
        BPF_PROG_LOAD => 48,
        BPF_RAW_TRACEPOINT_OPEN => 8,
        _ => 0,
    };
    assert!(args[2] >= at + 16, "{args:?}");
    let place = (args[1] + at) as *const u8;
    if args[0] as u32 == BPF_PROG_LOAD {
        // SAFETY: memory of this process, which the thread that waits keeps.
        return name(unsafe { *place.cast() });
    }
    // SAFETY: the same.
    program_behind(unsafe { place.cast::<u32>().read_unaligned() })
}

fn program_behind(fd: u32) -> String {
    // The first members of struct bpf_prog_info.
    let mut info = [0_u8; 80];
    // Its part of union bpf_attr: the file descriptor, the length, the address.
    let attr = [u64::from(fd) | (info.len() as u64) << 32, info.as_mut_ptr() as u64];
    // SAFETY: both are as long as is said.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    name(*info[64..].first_chunk().unwrap())
}

fn name(bytes: [u8; 16]) -> String {
    CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
}
