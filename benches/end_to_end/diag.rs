// SPDX-License-Identifier: MIT OR Apache-2.0
//! sock_diag(7), asked for all TCP sockets with their totals, and not listened to.

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

pub(crate) fn pass_by() {
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let socket = Socket::new(NETLINK_SOCK_DIAG).expect("INET_DIAG");
        socket.send(&request(family, socket_id), 0).expect("it is asked");
        let mut answer = Vec::with_capacity(32 << 10);
        while !is_last(&answer) {
            answer.clear();
            socket.recv(&mut answer, 0).expect("it answers");
        }
    }
}

/// Whether this ends with the message that says so, which is the last one and 20 bytes long.
fn is_last(answer: &[u8]) -> bool {
    let last = answer.len().checked_sub(20).and_then(|at| NetlinkBuffer::new_checked(&answer[at..]).ok());
    last.is_some_and(|message| message.message_type() == NLMSG_DONE)
}

fn request(family: u8, socket_id: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let states = StateFlags::all().difference(StateFlags::LISTEN | StateFlags::TIME_WAIT);
    let (protocol, extensions) = (IPPROTO_TCP, ExtensionFlags::INFO);
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
