// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets in a sockmap whose program hands what one of them sends to the other, past TCP, as service meshes do.

use crate::harness::Trace;
use crate::net::{checked, port, recv, send, tcp_pair};
use crate::tcp::{finish, moved};
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_MSG: u32 = 16;
const BPF_SK_MSG_VERDICT: u32 = 7;
const BPF_FUNC_MSG_REDIRECT_MAP: u64 = 60;
const BPF_F_INGRESS: u64 = 1;
const SK_PASS: u64 = 1;

/// bpf(2) with one of the shapes of its argument.
fn bpf<T>(command: i32, argument: &T) -> isize {
    let at = std::ptr::from_ref(argument);
    // SAFETY: the argument is as long as is said, and what it points to lives.
    checked(unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of_val(argument)) as isize })
}

fn descriptor(returned: isize) -> OwnedFd {
    assert!(returned >= 0, "{returned}");
    // SAFETY: a new descriptor, which is ours.
    unsafe { OwnedFd::from_raw_fd(returned as i32) }
}

/// One instruction: operation, registers (destination, and source in the upper half), immediate value.
const fn instruction(operation: u8, registers: u8, value: u64) -> u64 {
    operation as u64 | (registers as u64) << 8 | value << 32
}

const MOVE_VALUE: u8 = 0xb7;
const LOAD_MAP: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Two sockets in a map. What the first sends is what the program decides: to the second, past TCP, or nothing special. What
/// the second sends goes its way, for only the first one has the program.
struct Sockmap {
    _maps: [OwnedFd; 2],
    _program: OwnedFd,
}

impl Sockmap {
    fn of(first: &impl AsRawFd, second: &impl AsRawFd, redirects: bool) -> Self {
        // map_type, key_size, value_size, max_entries
        let maps = [(); 2].map(|()| descriptor(bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_SOCKMAP, 4, 4, 1])));
        // This one has no program.
        put(&maps[0], second.as_raw_fd());
        let redirect = [
            // r1 is the message already
            instruction(LOAD_MAP, 0x12, maps[0].as_raw_fd() as u64),
            0,
            instruction(MOVE_VALUE, 3, 0),
            instruction(MOVE_VALUE, 4, BPF_F_INGRESS),
            instruction(CALL, 0, BPF_FUNC_MSG_REDIRECT_MAP),
            instruction(EXIT, 0, 0),
        ];
        let pass = [instruction(MOVE_VALUE, 0, SK_PASS), instruction(EXIT, 0, 0)];
        let code: &[u64] = if redirects { &redirect } else { &pass };
        let license = c"GPL";
        // prog_type and insn_cnt, insns, license, log_level and log_size, log_buf
        let load = [
            u64::from(BPF_PROG_TYPE_SK_MSG) | (code.len() as u64) << 32,
            code.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
        ];
        let program = descriptor(bpf(BPF_PROG_LOAD, &load));
        // target_fd, attach_bpf_fd, attach_type, attach_flags
        let attach = [maps[1].as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_SK_MSG_VERDICT, 0];
        assert_eq!(bpf(BPF_PROG_ATTACH, &attach), 0);
        put(&maps[1], first.as_raw_fd());
        Self { _maps: maps, _program: program }
    }
}

/// Puts a socket into a map, at its only place.
fn put(map: &OwnedFd, socket: i32) {
    let key = 0_u32;
    // map_fd, key, value, flags
    let update = [map.as_raw_fd() as u64, &raw const key as u64, &raw const socket as u64, 0];
    assert_eq!(bpf(BPF_MAP_UPDATE_ELEM, &update), 0);
}

/// 85: 4000 bytes that go past TCP are in no counter of it: both ends are marked as partial, from the first of these calls to
/// the end, and the bytes of the other direction, which TCP carries, are all there.
#[test]
fn what_a_sockmap_redirects_is_marked() {
    for start in [Trace::start, Trace::per_call] {
        let mut trace = start();
        let (client, server) = tcp_pair();
        let (c, s) = (port(&client), port(&server));
        assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
        trace.until("both ends", |t| t.tcp(c, s).and(t.tcp(s, c)).map(drop));
        let marks = |t: &Trace| [(c, s), (s, c)].map(|(l, r)| t.tcp(l, r).is_some_and(|row| row.is_partial));
        assert_eq!(marks(&trace), [false; 2]);
        let sockmap = Sockmap::of(&client, &server, true);
        for _ in 0..4 {
            assert_eq!(send(&client, &[1; 1000], 0), 1000);
            assert_eq!(recv(&server, 1000, libc::MSG_WAITALL), 1000);
        }
        trace.until("the marks", |t| (marks(t) == [true; 2]).then_some(()));
        assert_eq!((send(&server, &[1; 300], 0), recv(&client, 300, libc::MSG_WAITALL)), (300, 300));
        drop(sockmap);
        let (client_row, server_row) = finish(&mut trace, client, server);
        assert!(client_row.is_partial && server_row.is_partial);
        assert_eq!((moved(&client_row), moved(&server_row)), ((10, 300), (300, 10)));
    }
}

/// A sockmap whose program lets everything pass changes no byte: TCP carries all of them.
#[test]
fn what_a_sockmap_lets_pass_counts() {
    let mut trace = Trace::start();
    let (client, server) = tcp_pair();
    let sockmap = Sockmap::of(&client, &server, false);
    for _ in 0..4 {
        assert_eq!((send(&client, &[1; 500], 0), recv(&server, 500, libc::MSG_WAITALL)), (500, 500));
    }
    drop(sockmap);
    let (client_row, server_row) = finish(&mut trace, client, server);
    assert_eq!((moved(&client_row), moved(&server_row)), ((2000, 0), (0, 2000)));
}
