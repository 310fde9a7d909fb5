// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of others on control groups: a load balancer for sockets, and a packet filter.

use libbpf_rs::libbpf_sys as sys;
use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One instruction: code, target and source register, offset, number.
fn op(code: u8, to: u8, from: u8, off: i16, imm: u32) -> sys::bpf_insn {
    let mut insn = sys::bpf_insn { code, off, imm: imm as i32, ..Default::default() };
    insn.set_dst_reg(to);
    insn.set_src_reg(from);
    insn
}

/// In struct bpf_sock_addr.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// Where the address is `from`, it becomes `to`; always lets the call go on.
fn rewrite(from: SocketAddrV4, to: SocketAddrV4) -> Vec<sys::bpf_insn> {
    let ip = |a: SocketAddrV4| u32::from_ne_bytes(a.ip().octets());
    let port = |a: SocketAddrV4| u32::from(a.port().to_be());
    vec![
        op(0x61, 2, 1, USER_IP4, 0),
        op(0x56, 2, 0, 6, ip(from)),
        op(0x61, 2, 1, USER_PORT, 0),
        op(0x56, 2, 0, 4, port(from)),
        op(0xb4, 2, 0, 0, ip(to)),
        op(0x63, 1, 2, USER_IP4, 0),
        op(0xb4, 2, 0, 0, port(to)),
        op(0x63, 1, 2, USER_PORT, 0),
        op(0xb7, 0, 0, 0, 1),
        op(0x95, 0, 0, 0, 0),
    ]
}

fn load(kind: sys::bpf_prog_type, at: sys::bpf_attach_type, code: &[sys::bpf_insn]) -> OwnedFd {
    let mut options = sys::bpf_prog_load_opts {
        sz: size_of::<sys::bpf_prog_load_opts>() as _,
        expected_attach_type: at,
        ..Default::default()
    };
    let (name, license) = (c"tcptop_test", c"Dual MIT/GPL");
    // SAFETY: the code is as long as is said, and what comes back is ours.
    unsafe {
        let fd = sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            license.as_ptr(),
            code.as_ptr(),
            code.len() as _,
            &raw mut options,
        );
        assert!(fd >= 0, "program: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn attach(cgroup: &File, program: &OwnedFd, at: sys::bpf_attach_type) -> OwnedFd {
    // SAFETY: what comes back is ours.
    unsafe {
        let fd = sys::bpf_link_create(program.as_raw_fd(), cgroup.as_raw_fd(), at, std::ptr::null());
        assert!(fd >= 0, "link: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

/// Programs that are attached as long as this is there.
pub(crate) struct Attached(#[expect(dead_code, reason = "kept for what its drop does")] Vec<OwnedFd>);

/// Whoever sends to `service` sends to `backend`, and is answered by `service`.
pub(crate) fn balance(cgroup: &File, service: SocketAddrV4, backend: SocketAddrV4) -> Attached {
    let there = rewrite(service, backend);
    let back = rewrite(backend, service);
    let programs = [
        (sys::BPF_CGROUP_INET4_CONNECT, &there),
        (sys::BPF_CGROUP_UDP4_SENDMSG, &there),
        (sys::BPF_CGROUP_UDP4_RECVMSG, &back),
    ];
    let attached = programs
        .iter()
        .map(|&(at, code)| attach(cgroup, &load(sys::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, at, code), at));
    Attached(attached.collect())
}

/// Lets no packet of its processes out.
pub(crate) fn refuse_packets(cgroup: &File) -> Attached {
    let code = [op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)];
    let at = sys::BPF_CGROUP_INET_EGRESS;
    Attached(vec![attach(cgroup, &load(sys::BPF_PROG_TYPE_CGROUP_SKB, at, &code), at)])
}
