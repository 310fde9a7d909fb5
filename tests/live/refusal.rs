// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel that refuses something, to one thread of ours: by seccomp(2), by taking away a capability.

use crate::net::checked;
use std::thread;

/// A system call, and its first argument.
pub(crate) type Call = (i64, u32);

/// enum bpf_cmd, include/uapi/linux/bpf.h.
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
            filter(calls, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
            work()
        };
        scope.spawn(refused).join().unwrap()
    })
}

/// Does this on a thread that may not enter network namespaces.
pub(crate) fn without_cap_sys_admin<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let drop_it = || {
        // struct __user_cap_header_struct (version 3, this thread); of each half: effective, permitted, inheritable.
        let (header, mut sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
        // SAFETY: both are as long as this version has it.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()), 0);
            sets[0] &= !(1 << CAP_SYS_ADMIN);
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
        }
    };
    thread::scope(|scope| {
        let refused = || {
            drop_it();
            work()
        };
        scope.spawn(refused).join().unwrap()
    })
}

/// Puts a filter on the calling thread and those that it begins.
fn filter(calls: &[Call], action: u32) {
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
        checked(unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const program) as isize });
    assert_eq!(done, 0, "seccomp");
}
