// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets by sock_diag(7): like the iterators it knows totals and cookies, and like /proc it needs no privilege. It does
//! not know processes.

use super::{Found, sockets};
use crate::model::{ConnectionKey, KernelTime, Protocol, TcpState};
use crate::record::ConnectionRecord;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagMessage, SockDiagMessage::InetResponse as Response};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// The connections of the calling thread's network namespace.
pub(super) fn read(netns: u32) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for (number, protocol) in [(IPPROTO_TCP, Protocol::Tcp), (IPPROTO_UDP, Protocol::Udp)] {
            dump(family, number, |response| found.extend(connection(response, protocol, netns)))?;
        }
    }
    Ok(found)
}

/// Asks for all sockets of one kind (INET_DIAG has to be in the kernel, or loadable).
fn dump(family: u8, protocol: u8, mut each: impl FnMut(&InetResponse)) -> Result<(), String> {
    let refused = |e| format!("sock_diag: {e}");
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(refused)?;
    socket.bind_auto().map_err(refused)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(refused)?;
    socket.send(&request(family, protocol), 0).map_err(refused)?;
    loop {
        let (answer, _) = socket.recv_from_full().map_err(refused)?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|e| format!("sock_diag: an answer that is not understood: {e}"))?;
            match message.payload {
                NetlinkPayload::InnerMessage(Response(response)) => each(&response),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) => return Err(refused(e.to_io())),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn request(family: u8, protocol: u8) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn connection(response: &InetResponse, protocol: Protocol, netns: u32) -> Option<Found> {
    let (header, id) = (&response.header, &response.header.socket_id);
    let (inode, state) = (u64::from(header.inode), TcpState::from_kernel(header.state.into()));
    let is_tcp = protocol == Protocol::Tcp;
    if is_tcp && !sockets::is_connection(state, inode) {
        return None;
    }
    let remote = (id.destination_address, id.destination_port);
    let key = ConnectionKey::new(protocol, id.source_address, id.source_port, remote.0, remote.1);
    let mut record = ConnectionRecord {
        socket: Some(u64::from_ne_bytes(id.cookie)),
        netns,
        tcp_state: is_tcp.then_some(state),
        is_partial: true,
        ..ConnectionRecord::new(key, KernelTime(0))
    };
    let info =
        response.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
    if let Some(info) = info.filter(|_| is_tcp) {
        put_totals(&mut record, info, header.recv_queue);
    }
    Some((inode, record))
}

/// The totals out of struct tcp_info (include/uapi/linux/tcp.h), by the same sums as in `src/bpf/totals.h`. Left partial
/// where the kernel's is too short (before 4.19).
fn put_totals(record: &mut ConnectionRecord, info: &[u8], unread: u32) {
    use TcpState::{CloseWait, Closing, FinWait1, LastAck};
    let Some(TcpInfo { rtt, received, segs_out, segs_in, unsent, sent, retransmitted }) = TcpInfo::read(info)
    else {
        return;
    };
    let state = record.tcp_state;
    // A FIN that is queued but not sent, and one that has come, take a number each and are no bytes.
    let waits = unsent > 0 && matches!(state, Some(FinWait1 | LastAck | Closing));
    let has_come = matches!(state, Some(CloseWait | LastAck | Closing));
    record.bytes_out = sent.wrapping_sub(retransmitted) + u64::from(unsent) - u64::from(waits);
    let read = received.saturating_sub(unread.into());
    record.bytes_in = read.min(received.saturating_sub(has_come.into()));
    (record.packets_in, record.packets_out) = (segs_in.into(), segs_out.into());
    record.rtt_us = (rtt != 0).then_some(rtt);
    record.is_partial = false;
}

struct TcpInfo {
    rtt: u32,
    received: u64,
    segs_out: u32,
    segs_in: u32,
    unsent: u32,
    sent: u64,
    retransmitted: u64,
}

impl TcpInfo {
    fn read(info: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let u64_at = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        Some(Self {
            rtt: u32_at(68)?,
            received: u64_at(128)?,
            segs_out: u32_at(136)?,
            segs_in: u32_at(140)?,
            unsent: u32_at(144)?,
            sent: u64_at(200)?,
            retransmitted: u64_at(208)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(received: u64, unsent: u32, sent: u64, retransmitted: u64) -> Vec<u8> {
        let mut info = vec![0; 232];
        info[68..72].copy_from_slice(&70_u32.to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info[136..140].copy_from_slice(&5_u32.to_ne_bytes());
        info[140..144].copy_from_slice(&6_u32.to_ne_bytes());
        info[144..148].copy_from_slice(&unsent.to_ne_bytes());
        info[200..208].copy_from_slice(&sent.to_ne_bytes());
        info[208..216].copy_from_slice(&retransmitted.to_ne_bytes());
        info
    }

    fn told(state: TcpState, info: &[u8], unread: u32) -> ConnectionRecord {
        let key = ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), 1, [2, 2, 2, 2].into(), 2);
        let record = ConnectionRecord::new(key, KernelTime(0));
        let mut record = ConnectionRecord { tcp_state: Some(state), is_partial: true, ..record };
        put_totals(&mut record, info, unread);
        record
    }

    #[test]
    fn totals_leave_out_what_waits_and_what_is_no_byte() {
        let row = told(TcpState::Established, &info(1000, 40, 5000, 300), 600);
        assert_eq!((row.bytes_in, row.bytes_out, row.is_partial), (400, 4740, false));
        assert_eq!((row.packets_in, row.packets_out, row.rtt_us), (6, 5, Some(70)));
        let row = told(TcpState::CloseWait, &info(501, 0, 0, 0), 0);
        assert_eq!(row.bytes_in, 500, "all but the FIN");
        let row = told(TcpState::CloseWait, &info(501, 0, 0, 0), 101);
        assert_eq!(row.bytes_in, 400, "the FIN waits with the rest");
        let row = told(TcpState::FinWait1, &info(0, 41, 5000, 0), 0);
        assert_eq!(row.bytes_out, 5040, "the FIN waits to be sent");
    }

    #[test]
    fn an_old_kernels_shorter_answer_leaves_the_record_partial() {
        let row = told(TcpState::Established, &info(1000, 40, 5000, 300)[..160], 0);
        assert_eq!((row.bytes_in, row.bytes_out, row.is_partial), (0, 0, true));
    }
}
