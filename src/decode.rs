// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of a record to an event. Pure: no kernel, no state; no allocation for a record.

use crate::event::{
    CloseReason, Closed, CollectorEvent, ConnectFailed, ConnectionInfo, EventKind, LossPlace, Lost, Opened,
    Retransmit, StateChange, Totals, Transfer,
};
use crate::model::{
    CgroupId, ConnectionKey, Direction, KernelTime, NetNs, Process, ProcessName, Protocol, Provenance, Role,
    TcpState,
};
use crate::stats::LossTable;
use crate::wire::{
    self, meanings, tt_conn, tt_counters, tt_end, tt_flags, tt_holder, tt_kind, tt_process, tt_provenance,
    tt_state, tt_transfer,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const KINDS: [EventKind; tt_kind::TT_KINDS.0 as usize] = meanings!(tt_kind up to TT_KINDS: [
    TT_TCP_SEND => EventKind::TcpSend,
    TT_TCP_RECV => EventKind::TcpRecv,
    TT_UDP_SEND => EventKind::UdpSend,
    TT_UDP_RECV => EventKind::UdpRecv,
    TT_TCP_STATE => EventKind::TcpStateChange,
    TT_CLOSED => EventKind::Closed,
    TT_RETRANSMIT => EventKind::TcpRetransmit,
]);

const PROVENANCES: [Provenance; tt_provenance::TT_PROVENANCES.0 as usize] = meanings!(tt_provenance up to TT_PROVENANCES: [
    TT_UNKNOWN => Provenance::Unknown,
    TT_INHERITED => Provenance::Inherited,
    TT_SEEN => Provenance::Seen,
    TT_CLOSER => Provenance::Closer,
]);

const ENDS: [Option<CloseReason>; tt_end::TT_ENDS.0 as usize] = meanings!(tt_end up to TT_ENDS: [
    TT_OPEN => None,
    TT_ORDERLY => Some(CloseReason::Orderly),
    TT_RESET => Some(CloseReason::Reset),
    TT_TIMED_OUT => Some(CloseReason::TimedOut),
    TT_ABORTED => Some(CloseReason::Aborted),
]);

/// Why a record cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// A kind that this version does not know.
    UnknownKind,
    /// Of a known kind, but its length or a field is wrong.
    Malformed(EventKind),
}

/// The event in a record of the ring buffer.
pub(crate) fn event(record: &[u8]) -> Result<CollectorEvent, Undecodable> {
    fast_event(record).map_or_else(|| full_event(record), Ok)
}

/// The fast path: an event over IPv4 by processes with clean names, which most records are. None for all others.
///
/// It writes each field where the event will be. A processor stalls when it copies in words what it has just written in
/// bytes, and the record comes from another processor's cache anyway.
#[inline(always)]
pub(crate) fn fast_event(record: &[u8]) -> Option<CollectorEvent> {
    let t = wire::view(record).filter(|t| fits_fast_path(t))?;
    match kind(record)? {
        EventKind::TcpSend => Some(CollectorEvent::TcpSend(fast_transfer(t, Direction::Out))),
        EventKind::TcpRecv => Some(CollectorEvent::TcpRecv(fast_transfer(t, Direction::In))),
        EventKind::UdpSend => Some(CollectorEvent::UdpSend(fast_transfer(t, Direction::Out))),
        EventKind::UdpRecv => Some(CollectorEvent::UdpRecv(fast_transfer(t, Direction::In))),
        _ => None,
    }
}

/// The full path: any record.
#[inline(never)]
pub(crate) fn full_event(record: &[u8]) -> Result<CollectorEvent, Undecodable> {
    let kind = kind(record).ok_or(Undecodable::UnknownKind)?;
    let event = match kind {
        EventKind::TcpSend => transfer(record, Direction::Out).map(CollectorEvent::TcpSend),
        EventKind::TcpRecv => transfer(record, Direction::In).map(CollectorEvent::TcpRecv),
        EventKind::UdpSend => transfer(record, Direction::Out).map(CollectorEvent::UdpSend),
        EventKind::UdpRecv => transfer(record, Direction::In).map(CollectorEvent::UdpRecv),
        EventKind::TcpStateChange => state_change(record).map(failure_at_once),
        EventKind::Closed => closed(record).map(CollectorEvent::Closed),
        EventKind::TcpRetransmit => retransmit(record).map(CollectorEvent::TcpRetransmit),
        EventKind::Opened | EventKind::ConnectFailed => None,
    };
    event.ok_or(Undecodable::Malformed(kind))
}

fn kind(record: &[u8]) -> Option<EventKind> {
    let number = u32::from_ne_bytes(*record.first_chunk()?);
    KINDS.get(number as usize).copied()
}

/// A connect() that fails before it changes the socket's state is recorded as a change from CLOSE to CLOSE.
fn failure_at_once(change: StateChange) -> CollectorEvent {
    let StateChange { connection, old_state, new_state, error, .. } = change;
    match (old_state, new_state) {
        (TcpState::Close, TcpState::Close) => {
            CollectorEvent::ConnectFailed(ConnectFailed::new(connection, error))
        }
        _ => CollectorEvent::TcpStateChange(change),
    }
}

/// The event that a state change implies: its connection is established, or will never be.
pub(crate) fn derived_event(event: &CollectorEvent, record: &[u8]) -> Option<CollectorEvent> {
    use TcpState::{Close, Established, SynRecv, SynSent};
    let CollectorEvent::TcpStateChange(change) = event else { return None };
    let StateChange { connection, old_state, new_state, error, rtt, .. } = *change;
    let s: tt_state = wire::read(record)?;
    let event = match (old_state, new_state) {
        (SynSent | SynRecv, Established) => {
            let role = if has(&s, tt_flags::TT_ACTIVE) { Role::Client } else { Role::Server };
            CollectorEvent::Opened(Opened { connection, role, rtt })
        }
        (SynSent | SynRecv, Close) => {
            // The kernel does not tell when a peer's SYN came.
            let duration = lasted(&s).filter(|_| old_state == SynSent);
            CollectorEvent::ConnectFailed(ConnectFailed { duration, ..ConnectFailed::new(connection, error) })
        }
        _ => return None,
    };
    Some(event)
}

/// Whether it is a state record and not a transfer.
pub(crate) fn is_of_state(record: &[u8]) -> bool {
    matches!(kind(record), Some(EventKind::TcpStateChange | EventKind::Closed | EventKind::TcpRetransmit))
}

/// Whether it is the record of a connection's end.
pub(crate) fn is_end(record: &[u8]) -> bool {
    kind(record) == Some(EventKind::Closed)
}

/// Whether the record of an end says that reports add up to more or less than the socket moved.
pub(crate) fn has_audit_mismatch(event: &CollectorEvent, record: &[u8]) -> bool {
    let is_end = matches!(event, CollectorEvent::Closed(_));
    is_end && wire::read(record).is_some_and(|s| has(&s, tt_flags::TT_UNBALANCED))
}

fn has(s: &tt_state, flag: tt_flags) -> bool {
    u32::from(s.flags) & flag.0 != 0
}

/// Whether [`fast_event`] decodes it: it is valid, over IPv4, and names two processes in clean ASCII.
#[inline(always)]
fn fits_fast_path(t: &tt_transfer) -> bool {
    let is_named = |process: &tt_process| process.pid != 0 && ProcessName::is_clean(&process.comm);
    is_valid(&t.conn) && t.conn.family == 4 && is_named(&t.owner) && is_named(&t.actor)
}

fn is_valid(conn: &tt_conn) -> bool {
    matches!(conn.protocol, 6 | 17)
        && matches!(conn.family, 4 | 6)
        && usize::from(conn.provenance) < PROVENANCES.len()
}

/// Of a record that [`fits_fast_path`].
#[inline(always)]
fn fast_transfer(t: &tt_transfer, direction: Direction) -> Transfer {
    let tt_transfer {
        kind: _,
        rtt_us,
        conn,
        owner,
        actor,
        actor_id: _,
        bytes,
        total_bytes,
        total_packets,
        calls,
        span_us,
    } = t;
    Transfer {
        connection: fast_connection(conn, owner),
        direction,
        until: KernelTime(conn.time.saturating_add(u64::from(*span_us) * 1000)),
        actor: fast_process(actor),
        bytes: *bytes,
        calls: *calls,
        total_bytes: *total_bytes,
        total_packets: *total_packets,
        rtt: rtt(*rtt_us),
    }
}

fn transfer(record: &[u8], direction: Direction) -> Option<Transfer> {
    let t: tt_transfer = wire::read(record)?;
    Some(Transfer {
        connection: connection(&t.conn, &t.owner)?,
        actor: process(&t.actor),
        ..fast_transfer(&t, direction)
    })
}

fn state_change(record: &[u8]) -> Option<StateChange> {
    let s: tt_state = wire::read(record)?;
    Some(StateChange {
        connection: connection(&s.conn, &s.owner)?,
        old_state: TcpState::from_kernel(s.old_state.into()),
        new_state: TcpState::from_kernel(s.new_state.into()),
        error: (s.error != 0).then_some(s.error),
        totals: has(&s, tt_flags::TT_HAS_TOTALS).then(|| totals(&s)),
        rtt: rtt(s.rtt_us),
    })
}

fn retransmit(record: &[u8]) -> Option<Retransmit> {
    let s: tt_state = wire::read(record)?;
    Some(Retransmit {
        connection: connection(&s.conn, &s.owner)?,
        state: TcpState::from_kernel(s.new_state.into()),
        segments: s.segments,
        total_segments: s.retransmits,
    })
}

fn closed(record: &[u8]) -> Option<Closed> {
    let s: tt_state = wire::read(record)?;
    Some(Closed {
        connection: connection(&s.conn, &s.owner)?,
        totals: totals(&s),
        rtt: rtt(s.rtt_us),
        min_rtt: rtt(s.min_rtt_us),
        retransmits: s.retransmits,
        duration: lasted(&s),
        reason: *ENDS.get(usize::from(s.end))?,
        error: (s.error != 0).then_some(s.error),
    })
}

fn lasted(s: &tt_state) -> Option<Duration> {
    (s.lasted_ns != 0).then(|| Duration::from_nanos(s.lasted_ns))
}

fn totals(s: &tt_state) -> Totals {
    Totals {
        bytes_in: s.bytes_in,
        bytes_out: s.bytes_out,
        packets_in: s.packets_in,
        packets_out: s.packets_out,
    }
}

/// The kernel's zero means that there is no sample yet.
#[inline(always)]
fn rtt(us: u32) -> Option<Duration> {
    (us != 0).then(|| Duration::from_micros(us.into()))
}

fn connection(conn: &tt_conn, owner: &tt_process) -> Option<ConnectionInfo> {
    is_valid(conn).then_some(())?;
    let fast = fast_connection(conn, owner);
    let key = if conn.family == 6 { v6_key(conn, fast.key.protocol) } else { fast.key };
    Some(ConnectionInfo { key, owner: process(owner), ..fast })
}

/// Folds IPv4-mapped addresses to IPv4.
fn v6_key(conn: &tt_conn, protocol: Protocol) -> ConnectionKey {
    let [local, remote] = [conn.local_addr, conn.remote_addr].map(|addr| Ipv6Addr::from(addr).into());
    ConnectionKey::new(protocol, local, conn.local_port, remote, conn.remote_port)
}

/// Of a valid record: takes its addresses for IPv4, and the name of the owner for clean.
#[inline(always)]
fn fast_connection(conn: &tt_conn, owner: &tt_process) -> ConnectionInfo {
    let tt_conn {
        time,
        socket,
        since,
        netns,
        local_port,
        remote_port,
        local_addr,
        remote_addr,
        family: _,
        protocol,
        provenance,
        uncounted,
        pad: _,
    } = conn;
    ConnectionInfo {
        time: KernelTime(*time),
        socket: *socket,
        since: KernelTime(*since),
        key: ConnectionKey {
            protocol: if *protocol == 17 { Protocol::Udp } else { Protocol::Tcp },
            local_addr: v4(local_addr),
            local_port: *local_port,
            remote_addr: v4(remote_addr),
            remote_port: *remote_port,
        },
        netns: NetNs::new(*netns),
        is_partial: *uncounted != 0,
        owner: fast_process(owner),
        provenance: match PROVENANCES.get(usize::from(*provenance)) {
            Some(known) if is_somebody(owner) => *known,
            _ => Provenance::Unknown,
        },
    }
}

#[inline(always)]
fn v4(&[a, b, c, d, ..]: &[u8; 16]) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}

fn process(p: &tt_process) -> Option<Process> {
    fast_process(p).map(|fast| Process { name: ProcessName::from_kernel(p.comm), ..fast })
}

#[inline(always)]
fn fast_process(p: &tt_process) -> Option<Process> {
    let tt_process { start_ns, cgroup, pid, uid, ref comm } = *p;
    is_somebody(p).then_some(Process {
        pid,
        name: ProcessName::from_clean(comm),
        uid,
        start_time_ns: start_ns,
        cgroup_id: CgroupId::new(cgroup),
    })
}

#[inline(always)]
fn is_somebody(p: &tt_process) -> bool {
    p.pid != 0 || p.comm[0] != 0
}

/// A process that holds the socket with this inode.
pub(crate) fn holder(record: &[u8]) -> Option<(u64, Process)> {
    let tt_holder { inode, process: holder } = wire::read(record)?;
    Some((inode, process(&holder)?))
}

/// The kernel side's losses.
pub(crate) fn losses(counters: &tt_counters) -> LossTable {
    let mut table = LossTable::default();
    for (number, kind) in KINDS.into_iter().enumerate() {
        table.add(kind, LossPlace::Ring, counters.ring[number]);
        table.add(kind, LossPlace::Storage, counters.storage[number]);
    }
    table
}

/// Loss reports for what `now` has more than `before`.
pub(crate) fn loss_reports(before: &LossTable, now: &LossTable) -> Vec<Lost> {
    now.iter()
        .map(|(kind, place, count)| Lost::new(kind, place, count - before.get(kind, place).min(count)))
        .filter(|lost| lost.count > 0)
        .collect()
}

#[cfg(test)]
mod tests;
