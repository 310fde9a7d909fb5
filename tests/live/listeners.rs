// SPDX-License-Identifier: MIT OR Apache-2.0
//! The owner of a connection that was accepted and that nobody has used yet: the process that listens.

use crate::harness::Trace;
use crate::net::{
    Child, checked, enter_own_network, hear, pair_by, port, run, set_option, sockaddr, socket, tell,
};
use std::mem::size_of_val;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use tcptop::{ConnectionInfo, Provenance, TcpState};

/// linux/in.h
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;

/// A socket that listens at this address, after it was made ready in this way.
fn listen_at(addr: [u8; 4], port: u16, prepare: impl FnOnce(&OwnedFd)) -> TcpListener {
    let listener = socket(libc::AF_INET, libc::SOCK_STREAM);
    prepare(&listener);
    let addr = sockaddr(addr, port);
    // SAFETY: an address that is as long as is said.
    let bound = checked(unsafe {
        let length = size_of_val(&addr) as libc::socklen_t;
        libc::bind(listener.as_raw_fd(), (&raw const addr).cast(), length) as isize
    });
    // SAFETY: touches no memory.
    assert_eq!((bound, unsafe { libc::listen(listener.as_raw_fd(), 5) }), (0, 0));
    listener.into()
}

/// The server's end of the connection from port `c` as it became established: nobody has used it by then.
fn established(trace: &mut Trace, l: u16, c: u16) -> ConnectionInfo {
    trace.until("ESTABLISHED", |t| {
        let is_it = |s: &&tcptop::StateChange| {
            s.connection.key.remote_port == c && s.new_state == TcpState::Established
        };
        t.states(l).into_iter().find(is_it).map(|s| s.connection)
    })
}

/// 97: more sockets than can be remembered listen and end, with ports that the kernel chose late. Each is forgotten.
#[test]
fn listeners_that_have_ended_leave_room_for_others() {
    let mut trace = Trace::start();
    for n in 0..4200_u16 {
        let [high, low] = n.to_be_bytes();
        let listener = listen_at([127, 7, high, low], 0, |listener| {
            set_option(listener, libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        });
        assert_ne!(listener.local_addr().unwrap().port(), 0);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, _server) = pair_by(&listener);
    let info = established(&mut trace, listener.local_addr().unwrap().port(), port(&client));
    assert_eq!(
        (info.owner.map(|owner| owner.pid), info.provenance),
        (Some(std::process::id()), Provenance::Inherited)
    );
}

/// Listens at all addresses, on one device.
fn on_device(device: &'static str, port: u16) -> Child {
    let mut child = Child::fork(move |parent| {
        let _listener = listen_at([0; 4], port, |listener| {
            let mut name = [0_u8; 16];
            name[..device.len()].copy_from_slice(device.as_bytes());
            set_option(listener, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name);
        });
        tell(parent, 1);
        hear(parent);
    });
    assert_eq!(child.hear(), 1);
    child
}

/// 98: two processes listen at one port, each on a device of its own. What comes by one device is not the other one's, also if
/// that alone began to listen while tcptop runs.
#[test]
fn listeners_on_different_devices_are_told_apart() {
    const OLDER: u16 = 7198;
    const NEW: u16 = 7298;
    let mut network = Child::fork(|parent| {
        enter_own_network();
        run("ip link add va type veth peer name vb && ip addr add 10.9.8.1/24 dev va && ip link set va up");
        let older = on_device("lo", OLDER);
        tell(parent, 1);
        hear(parent);
        let on_va = on_device("va", OLDER);
        let new = [on_device("va", NEW), on_device("lo", NEW)];
        tell(parent, on_va.pid.into());
        tell(parent, new[1].pid.into());
        let clients = [OLDER, NEW].map(|port| TcpStream::connect(("127.0.0.1", port)).unwrap());
        for client in &clients {
            tell(parent, port(client).into());
        }
        hear(parent);
        drop(older);
    });
    network.hear();
    let mut trace = Trace::fresh();
    network.tell(1);
    let [on_va, on_lo] = [(); 2].map(|()| Some(network.hear() as u32));
    let [to_older, to_new] = [(); 2].map(|()| network.hear() as u16);
    let older = established(&mut trace, OLDER, to_older);
    assert_ne!(older.owner.map(|owner| owner.pid), on_va);
    let new = established(&mut trace, NEW, to_new);
    assert_eq!((new.owner.map(|owner| owner.pid), new.provenance), (on_lo, Provenance::Inherited));
    network.tell(1);
    network.wait();
}
