// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listed sockets by sock_diag(7). It has totals and cookies but no processes, and needs no privilege.

use super::{ListedSocket, sockets};
use crate::model::{ConnectionKey, KernelTime, NetNs, Protocol, TcpState};
use crate::record::ConnectionRecord;
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator, Parseable,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, INET_DIAG_INFO, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{SOCK_DIAG_BY_FAMILY, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use std::io;
use std::time::Duration;

/// The kernel hands out at most this much at once (netlink_dump()).
const PIECE: usize = 32 << 10;

/// A listener has no peer, and a closed socket has none any more. A socket in TIME_WAIT has reported its end.
const NO_CONNECTIONS: StateFlags = StateFlags::LISTEN.union(StateFlags::CLOSE).union(StateFlags::TIME_WAIT);

/// Asks for struct tcp_info.
const WITH_TOTALS: ExtensionFlags = ExtensionFlags::INFO;

/// Does the kernel have INET_DIAG, built in or as a module? If not, says why.
pub(super) fn is_there() -> Result<(), String> {
    [IPPROTO_TCP, IPPROTO_UDP].into_iter().try_for_each(|protocol| {
        dump(AF_INET, protocol, ExtensionFlags::empty(), StateFlags::empty(), |_, _| {})
    })
}

/// The connections of the calling thread's network namespace.
pub(super) fn read(netns: Option<NetNs>) -> Result<Vec<ListedSocket>, String> {
    // While a vector grows, its contents are in memory twice, and holes remain.
    let mut found = Vec::with_capacity(sockets::count());
    for family in [AF_INET, AF_INET6] {
        dump(family, IPPROTO_TCP, WITH_TOTALS, NO_CONNECTIONS.complement(), |header, attributes| {
            found.extend(tcp(header, attributes, netns))
        })?;
        dump(family, IPPROTO_UDP, ExtensionFlags::empty(), StateFlags::all(), |header, _| {
            found.push(connection(header, Protocol::Udp, netns))
        })?;
    }
    Ok(found)
}

/// The ids of all sockets of the calling thread's network namespace. Placeholders of ended connections are among them,
/// with ids that no socket has.
pub(super) fn ids() -> Result<Vec<u64>, String> {
    let mut ids = Vec::with_capacity(sockets::count());
    for family in [AF_INET, AF_INET6] {
        for (protocol, states) in
            [(IPPROTO_TCP, NO_CONNECTIONS.complement()), (IPPROTO_UDP, StateFlags::all())]
        {
            dump(family, protocol, ExtensionFlags::empty(), states, |header, _| ids.push(id(header)))?;
        }
    }
    Ok(ids)
}

/// Asks for the sockets of one family and protocol in these states, and hands out each with its attributes.
fn dump(
    family: u8,
    protocol: u8,
    extensions: ExtensionFlags,
    states: StateFlags,
    mut each: impl FnMut(&InetResponseHeader, &[u8]),
) -> Result<(), String> {
    let refused = |e| format!("sock_diag: {e}");
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(refused)?;
    socket.bind_auto().map_err(refused)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(refused)?;
    socket.send(&request(family, protocol, extensions, states), 0).map_err(refused)?;
    let mut answer = Vec::with_capacity(PIECE);
    loop {
        answer.clear();
        match socket.recv(&mut answer, 0) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            received => received.map_err(refused)?,
        };
        let end = take_apart(&answer, &mut each);
        if let Some(end) = end.map_err(|e| format!("sock_diag: the answer is not understood: {e}"))? {
            return end.map_err(refused);
        }
    }
}

/// Hands out each socket of an answer, without a copy, because there may be hundreds of thousands. If this is the last
/// answer, returns how it ends.
fn take_apart(
    answer: &[u8],
    each: &mut impl FnMut(&InetResponseHeader, &[u8]),
) -> Result<Option<io::Result<()>>, DecodeError> {
    let mut rest = answer;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        if message.message_type() != SOCK_DIAG_BY_FAMILY {
            return end(rest).map(Some);
        }
        let header = InetResponseHeader::parse(message.payload())?;
        each(&header, &message.payload()[header.buffer_len()..]);
        let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGNTO.into());
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(None)
}

/// Decodes the end of the last answer: success, or an error of the kernel.
fn end(message: &[u8]) -> Result<io::Result<()>, DecodeError> {
    let code = match NetlinkMessage::<SockDiagMessage>::deserialize(message)?.payload {
        NetlinkPayload::Done(done) => done.code,
        NetlinkPayload::Error(e) => e.raw_code(),
        other => return Err(format!("{other:?}").into()),
    };
    Ok(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) })
}

fn request(family: u8, protocol: u8, extensions: ExtensionFlags, states: StateFlags) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The listed TCP socket. None if this is not a socket: a placeholder of an ended connection, which the kernel shows in
/// the state FIN_WAIT2, or a request to a listener. Neither has a struct tcp_info.
fn tcp(header: &InetResponseHeader, attributes: &[u8], netns: Option<NetNs>) -> Option<ListedSocket> {
    let info =
        NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == INET_DIAG_INFO)?;
    let (inode, mut record) = connection(header, Protocol::Tcp, netns);
    let state = info.value().first().copied().unwrap_or(header.state);
    record.tcp_state = Some(TcpState::from_kernel(state.into()));
    put_totals(&mut record, info.value(), header.recv_queue);
    Some((inode, record))
}

fn id(header: &InetResponseHeader) -> u64 {
    u64::from_ne_bytes(header.socket_id.cookie)
}

fn connection(header: &InetResponseHeader, protocol: Protocol, netns: Option<NetNs>) -> ListedSocket {
    let id = &header.socket_id;
    let remote = (id.destination_address, id.destination_port);
    let key = ConnectionKey::new(protocol, id.source_address, id.source_port, remote.0, remote.1);
    let record = ConnectionRecord {
        socket: Some(self::id(header)),
        netns,
        is_partial: true,
        ..ConnectionRecord::new(key, KernelTime(0))
    };
    (header.inode.into(), record)
}

/// Computes the totals from struct tcp_info (include/uapi/linux/tcp.h), by the same sums as in `src/bpf/totals.h`. The
/// record stays partial if the structure is too short (before 4.19).
///
/// The kernel first looks up how many bytes are unread. Then it locks the socket and fills the structure, with the
/// state. Bytes that arrive in between count as read, until an event of the connection corrects this.
fn put_totals(record: &mut ConnectionRecord, info: &[u8], unread: u32) {
    use TcpState::{CloseWait, Closing, FinWait1, LastAck};
    let Some(info) = TcpInfo::read(info) else { return };
    let TcpInfo { rtt, min_rtt, retransmits, received, segs_out, segs_in, unsent, sent, retransmitted } =
        info;
    let state = record.tcp_state;
    // A FIN takes a sequence number but is not a byte: one that is queued and not sent, and one that has arrived.
    let waits = unsent > 0 && matches!(state, Some(FinWait1 | LastAck | Closing));
    let has_come = matches!(state, Some(CloseWait | LastAck | Closing));
    record.bytes_out =
        sent.wrapping_sub(retransmitted).wrapping_add(unsent.into()).wrapping_sub(waits.into());
    let read = received.saturating_sub(unread.into());
    record.bytes_in = read.min(received.saturating_sub(has_come.into()));
    (record.packets_in, record.packets_out) = (segs_in.into(), segs_out.into());
    // Without a sample, the kernel's least round-trip time has all bits set.
    [record.rtt, record.min_rtt] =
        [rtt, min_rtt].map(|us| (1..u32::MAX).contains(&us).then(|| Duration::from_micros(us.into())));
    record.retransmits = Some(retransmits);
    record.is_partial = false;
}

struct TcpInfo {
    rtt: u32,
    min_rtt: u32,
    retransmits: u32,
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
            min_rtt: u32_at(148)?,
            retransmits: u32_at(100)?,
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
        info[100..104].copy_from_slice(&3_u32.to_ne_bytes());
        info[148..152].copy_from_slice(&60_u32.to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info[136..140].copy_from_slice(&5_u32.to_ne_bytes());
        info[140..144].copy_from_slice(&6_u32.to_ne_bytes());
        info[144..148].copy_from_slice(&unsent.to_ne_bytes());
        info[200..208].copy_from_slice(&sent.to_ne_bytes());
        info[208..216].copy_from_slice(&retransmitted.to_ne_bytes());
        info
    }

    /// A message as netlink(7) frames it.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0], &[0; 8]];
        [&header.concat(), payload].concat()
    }

    /// struct inet_diag_msg of 10.0.0.1:80 and 10.0.0.2:5000, with these attributes after it.
    fn socket(state: u8, attributes: &[u8]) -> Vec<u8> {
        let mut diag = vec![2, state, 0, 0, 0, 80, 0x13, 0x88];
        diag.extend(
            [[10, 0, 0, 1], [0; 4], [0; 4], [0; 4], [10, 0, 0, 2], [0; 4], [0; 4], [0; 4]].as_flattened(),
        );
        diag.extend([0_u32, 7, 0, 0, 100, 0, 1000, 4711].map(u32::to_ne_bytes).as_flattened());
        [&diag, attributes].concat()
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
    }

    /// The TCP connections in an answer, and how it ends.
    fn taken(answer: &[u8]) -> Result<(Vec<ListedSocket>, Option<io::Result<()>>), DecodeError> {
        let mut found = Vec::new();
        let end = take_apart(answer, &mut |header, attributes| {
            found.extend(tcp(header, attributes, NetNs::new(9)))
        })?;
        Ok((found, end))
    }

    #[test]
    fn sockets_are_told_from_placeholders() {
        let info = [&[1][..], &info(1000, 0, 5000, 300)[1..]].concat();
        let established = socket(1, &[attribute(7, &[0; 4]), attribute(INET_DIAG_INFO, &info)].concat());
        let answer = [message(20, &established), message(20, &socket(5, &attribute(7, &[0; 4])))].concat();
        let (found, end) = taken(&answer).unwrap();
        assert!(end.is_none(), "there is more");
        let [(inode, row)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((*inode, row.socket, row.netns), (4711, Some(7), NetNs::new(9)));
        assert_eq!(row.key.to_string(), "tcp 10.0.0.1:80 -> 10.0.0.2:5000");
        assert_eq!((row.tcp_state, row.bytes_in, row.bytes_out), (Some(TcpState::Established), 900, 4700));
    }

    #[test]
    fn the_end_of_a_dump_may_be_an_error() {
        let end = |bytes: &[u8]| taken(bytes).unwrap().1.map(|end| end.map_err(|e| e.raw_os_error()));
        assert_eq!(end(&message(3, &0_i32.to_ne_bytes())), Some(Ok(())));
        assert_eq!(end(&message(3, &(-2_i32).to_ne_bytes())), Some(Err(Some(2))), "no such module");
        let error = [&(-1_i32).to_ne_bytes()[..], &[0; 16]].concat();
        assert_eq!(end(&message(2, &error)), Some(Err(Some(1))));
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        let whole = message(20, &socket(1, &attribute(INET_DIAG_INFO, &info(1, 2, 3, 4))));
        for end in 1..whole.len() {
            assert!(taken(&whole[..end]).is_err(), "{end} bytes");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                drop(taken(&damaged));
            }
        }
    }

    fn record_of(state: TcpState, info: &[u8], unread: u32) -> ConnectionRecord {
        let key = ConnectionKey::new(Protocol::Tcp, [1, 1, 1, 1].into(), 1, [2, 2, 2, 2].into(), 2);
        let record = ConnectionRecord::new(key, KernelTime(0));
        let mut record = ConnectionRecord { tcp_state: Some(state), is_partial: true, ..record };
        put_totals(&mut record, info, unread);
        record
    }

    #[test]
    fn totals_leave_out_unread_bytes_and_fins() {
        let row = record_of(TcpState::Established, &info(1000, 40, 5000, 300), 600);
        assert_eq!((row.bytes_in, row.bytes_out, row.is_partial), (400, 4740, false));
        assert_eq!((row.packets_in, row.packets_out, row.rtt), (6, 5, Some(Duration::from_micros(70))));
        assert_eq!((row.min_rtt, row.retransmits), (Some(Duration::from_micros(60)), Some(3)));
        let mut without_sample = info(0, 0, 0, 0);
        without_sample[148..152].fill(0xff);
        assert_eq!(record_of(TcpState::SynSent, &without_sample, 0).min_rtt, None);
        let row = record_of(TcpState::CloseWait, &info(501, 0, 0, 0), 0);
        assert_eq!(row.bytes_in, 500, "all but the FIN");
        let row = record_of(TcpState::CloseWait, &info(501, 0, 0, 0), 101);
        assert_eq!(row.bytes_in, 400, "the FIN waits with the rest");
        let row = record_of(TcpState::FinWait1, &info(0, 41, 5000, 0), 0);
        assert_eq!(row.bytes_out, 5040, "the FIN waits to be sent");
    }

    #[test]
    fn an_old_kernels_shorter_answer_leaves_the_record_partial() {
        let row = record_of(TcpState::Established, &info(1000, 40, 5000, 300)[..160], 0);
        assert_eq!((row.bytes_in, row.bytes_out, row.is_partial), (0, 0, true));
    }
}
