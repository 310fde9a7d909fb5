// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of a record to an event. Pure: no kernel, no state, no allocation.

use crate::event::{
    Closed, CollectorEvent, ConnectionInfo, EventKind, LossPlace, Lost, StateChange, Totals, Transfer,
};
use crate::model::{ConnectionKey, KernelTime, Process, ProcessName, Protocol, Provenance, TcpState};
use crate::stats::LossTable;
use crate::wire::{self, KINDS, tt_conn, tt_counters, tt_process, tt_state, tt_transfer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why a record is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// A kind that this version does not know.
    UnknownKind,
    /// Of a known kind, but its length or a field is wrong.
    Malformed(EventKind),
}

/// The event in a record of the ring buffer.
pub(crate) fn event(record: &[u8]) -> Result<CollectorEvent, Undecodable> {
    let kind = record
        .first_chunk()
        .and_then(|kind| EventKind::ALL.get(u32::from_ne_bytes(*kind) as usize))
        .ok_or(Undecodable::UnknownKind)?;
    let malformed = Undecodable::Malformed(*kind);
    match kind {
        EventKind::TcpSend => transfer(record).map(CollectorEvent::TcpSend),
        EventKind::TcpRecv => transfer(record).map(CollectorEvent::TcpRecv),
        EventKind::UdpSend => transfer(record).map(CollectorEvent::UdpSend),
        EventKind::UdpRecv => transfer(record).map(CollectorEvent::UdpRecv),
        EventKind::TcpStateChange => state_change(record).map(CollectorEvent::TcpStateChange),
        EventKind::Closed => closed(record).map(CollectorEvent::Closed),
    }
    .ok_or(malformed)
}

fn transfer(record: &[u8]) -> Option<Transfer> {
    let tt_transfer { kind: _, rtt_us, conn, actor, bytes, total_bytes, total_packets, calls, pad: _ } =
        wire::read(record)?;
    Some(Transfer {
        connection: connection(&conn)?,
        actor: process(&actor),
        bytes,
        calls,
        total_bytes,
        total_packets,
        rtt_us: rtt(rtt_us),
    })
}

fn state_change(record: &[u8]) -> Option<StateChange> {
    let s: tt_state = wire::read(record)?;
    Some(StateChange {
        connection: connection(&s.conn)?,
        old_state: TcpState::from_kernel(s.old_state.into()),
        new_state: TcpState::from_kernel(s.new_state.into()),
        error: (s.error != 0).then_some(s.error),
        totals: (s.has_totals != 0).then(|| totals(&s)),
        rtt_us: rtt(s.rtt_us),
    })
}

fn closed(record: &[u8]) -> Option<Closed> {
    let s: tt_state = wire::read(record)?;
    Some(Closed { connection: connection(&s.conn)?, totals: totals(&s), rtt_us: rtt(s.rtt_us) })
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
fn rtt(us: u32) -> Option<u32> {
    (us != 0).then_some(us)
}

fn connection(conn: &tt_conn) -> Option<ConnectionInfo> {
    let tt_conn {
        time,
        socket,
        since,
        owner,
        netns,
        local_port,
        remote_port,
        local_addr,
        remote_addr,
        family,
        protocol,
        provenance,
        pad: _,
    } = *conn;
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let (local, remote) = (address(family, local_addr)?, address(family, remote_addr)?);
    let owner = process(&owner);
    let provenance = match (provenance, owner) {
        (_, None) | (0, _) => Provenance::Unknown,
        (1, _) => Provenance::Inherited,
        (2, _) => Provenance::Seen,
        _ => return None,
    };
    Some(ConnectionInfo {
        time: KernelTime(time),
        socket,
        since: KernelTime(since),
        key: ConnectionKey::new(protocol, local, local_port, remote, remote_port),
        netns,
        owner,
        provenance,
    })
}

fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

fn process(p: &tt_process) -> Option<Process> {
    let tt_process { start_ns, cgroup, pid, uid, comm } = *p;
    (pid != 0).then(|| Process {
        pid,
        name: ProcessName::from_kernel(comm),
        uid,
        start_time_ns: start_ns,
        cgroup_id: cgroup,
    })
}

/// The kernel side's losses, summed over the CPUs' counters.
pub(crate) fn losses<'a>(per_cpu: impl IntoIterator<Item = &'a [u8]>) -> LossTable {
    let mut table = LossTable::default();
    for cpu in per_cpu {
        let Some(tt_counters { ring, storage }) = wire::read(cpu) else { continue };
        for (kind, k) in EventKind::ALL.into_iter().zip(0..KINDS) {
            table.add(kind, LossPlace::Ring, ring[k]);
            table.add(kind, LossPlace::Storage, storage[k]);
        }
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
