// SPDX-License-Identifier: MIT OR Apache-2.0
//! JSON Lines and CSV: see docs/json.md.

use crate::cgroups;
use serde_json::{Map, Value, json};
use std::time::{Duration, UNIX_EPOCH};
use tcptop::{
    Capabilities, CgroupId, CloseReason, CollectorEvent, ConnectFailure, ConnectionRecord, ConnectionTable,
    Group, KernelTime, NetNs, Process, Protocol, Provenance, Role, Stats, Sum, TcpState,
};

/// Of the lines, as docs/json.schema.json has them. It changes when a field goes or means something else.
const FORMAT: u32 = 1;

pub(crate) fn start(can: &Capabilities) -> String {
    let (now, wall) = (KernelTime::now(), UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64));
    line(&json!({"type": "start", "format": FORMAT, "time_ns": now.as_nanos(), "unix_time_ns": wall,
        "backend": can.backend().as_str(), "kernel": can.kernel(), "capabilities": {
        "features": can.features().map(|(f, v)| (f.to_string(), v.to_string().into())).collect::<Map<_, _>>(),
        "bootstrap": can.bootstrap().as_str(), "self_test": texts(can.self_test()),
        "rejected_backends": texts(can.rejected_backends()),
        "missing_programs": texts(can.missing_programs())}}))
}

/// With an escape for each character that a terminal might obey, or hide: a process chooses its name.
fn line(object: &Value) -> String {
    let is_plain = |c: &char| *c != '\u{7f}' && (c.is_ascii() || c.escape_debug().len() == 1);
    let mut line = String::new();
    for c in object.to_string().chars() {
        match Some(c).filter(is_plain) {
            Some(plain) => line.push(plain),
            None => line.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    line
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(T::to_string).collect()
}

/// One line for an event: JSON, or words for people.
pub(crate) fn event(table: &ConnectionTable, event: &CollectorEvent, json: bool) -> String {
    use CollectorEvent::*;
    // What the event does not know of its owner, the table may.
    let (mut actor, owner) = (None, event.connection().and_then(|info| table.owner_of(info)));
    let what = match event {
        TcpSend(t) | TcpRecv(t) | UdpSend(t) | UdpRecv(t) => {
            actor = t.actor;
            json!({"bytes": t.bytes, "calls": t.calls, "total_bytes": t.total_bytes, "rtt_us": micros(t.rtt)})
        }
        TcpStateChange(s) => json!({"provenance": owner.map_or(Provenance::Unknown, |(_, how)| how).as_str(),
            "old_state": s.old_state.as_str(), "new_state": s.new_state.as_str(), "error": s.error}),
        Closed(c) if c.connection.key.protocol == Protocol::Udp => json!({}),
        Closed(c) => json!({"bytes_in": c.totals.bytes_in, "bytes_out": c.totals.bytes_out,
            "packets_in": c.totals.packets_in, "packets_out": c.totals.packets_out, "rtt_us": micros(c.rtt),
            "min_rtt_us": micros(c.min_rtt), "retransmits": c.retransmits, "error": c.error,
            "duration_us": micros(c.duration), "reason": c.reason.map(CloseReason::as_str)}),
        Opened(o) => json!({"role": o.role.as_str(), "rtt_us": micros(o.rtt)}),
        ConnectFailed(f) => json!({"reason": f.reason.as_str(), "error": f.error,
            "duration_us": micros(f.duration)}),
        TcpRetransmit(r) => json!({"state": r.state.as_str(), "segments": r.segments,
            "total_segments": r.total_segments}),
        Lost(l) => json!({"type": "lost", "kind": l.kind.as_str(), "place": l.place.as_str(),
            "count": l.count}),
        _ => Value::Null,
    };
    if let (false, Lost(l)) = (json, event) {
        return format!("{} events lost: {}, at the place {}", l.count, l.kind, l.place);
    }
    let (Some(kind), Some(info)) = (event.kind(), event.connection()) else { return line(&what) };
    if !json {
        let who = owner.map_or("-".into(), |(p, _)| format!("{}[{}]", p.name.escaped(), p.pid));
        return format!("{kind} {} {who} {what}", info.key);
    }
    let (mut record, owner) = (ConnectionRecord::new(info.key, info.time), owner.map(|(process, _)| process));
    (record.socket, record.netns, record.owner) = (Some(info.socket), info.netns, owner);
    line(&object(kind.as_str(), &record, actor, what))
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_micros() as u64)
}

/// What all lines of a connection have in common, and what this one has beside it.
fn object(name: &str, r: &ConnectionRecord, actor: Option<Process>, what: Value) -> Value {
    let mut object = json!({"type": name, "time_ns": r.last_seen.as_nanos(), "socket": r.socket,
        "protocol": r.key.protocol.as_str(), "local_addr": r.key.local_addr.to_string(),
        "local_port": r.key.local_port, "remote_addr": r.key.remote_addr.to_string(),
        "remote_port": r.key.remote_port, "pid": r.pid(), "process": r.process_name().map(|name| name.to_string()),
        "actor_pid": actor.map(|a| a.pid), "actor": actor.map(|a| a.name.to_string()), "uid": r.owner.map(|o| o.uid),
        "netns": r.netns.map(NetNs::get), "cgroup": r.owner.and_then(|o| o.cgroup_id).map(CgroupId::get)});
    if let (Some(object), Value::Object(what)) = (object.as_object_mut(), what) {
        object.extend(what);
    }
    object
}

fn record(r: &ConnectionRecord) -> Value {
    let what = json!({"role": r.role.map(Role::as_str), "tcp_state": r.tcp_state.map(TcpState::as_str),
        "bytes_in": r.bytes_in, "bytes_out": r.bytes_out, "packets_in": r.packets_in, "packets_out": r.packets_out,
        "rtt_us": micros(r.rtt), "min_rtt_us": micros(r.min_rtt), "retransmits": r.retransmits,
        "duration_us": micros(Some(r.duration())),
        "reason": r.close_reason.map(CloseReason::as_str).or(r.connect_failure.map(ConnectFailure::as_str)),
        "error": r.error, "rate_in": r.rate_in, "rate_out": r.rate_out, "is_partial": r.is_partial,
        "is_closed": r.is_closed, "is_end_seen": r.is_end_seen});
    object("connection", r, None, what)
}

pub(crate) fn connection(r: &ConnectionRecord) -> String {
    line(&record(r))
}

/// The same fields as a connection's JSON, but for the type, and for the actor, which connections do not have.
fn csv_fields(r: &ConnectionRecord) -> impl Iterator<Item = (String, Value)> {
    let fields = match record(r) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.into_iter().filter(|(name, _)| !matches!(name.as_str(), "type" | "actor_pid" | "actor"))
}

pub(crate) fn csv_header() -> String {
    let key = tcptop::ConnectionKey::new(Protocol::Tcp, [0, 0, 0, 0].into(), 0, [0, 0, 0, 0].into(), 0);
    let any = ConnectionRecord::new(key, KernelTime(0));
    csv_fields(&any).map(|(name, _)| name).collect::<Vec<_>>().join(",")
}

/// RFC 4180: text with a comma, a quotation mark or a line's end is in quotation marks.
pub(crate) fn csv_row(r: &ConnectionRecord) -> String {
    let cell = |(_, value): (String, Value)| match value {
        Value::Null => String::new(),
        Value::String(text) => {
            let text: String = text.chars().map(plain).collect();
            if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
        }
        other => other.to_string(),
    };
    csv_fields(r).map(cell).collect::<Vec<_>>().join(",")
}

/// CSV has no escapes.
fn plain(c: char) -> char {
    let is_plain = c == '"' || c == '\'' || c == '\\' || c.escape_debug().len() == 1;
    if is_plain { c } else { '?' }
}

pub(crate) fn sum(sum: &Sum) -> String {
    let (process, pid) = match sum.group {
        Group::Process(process) | Group::ProcessAndHost(process, _) => {
            (Some(process.name.to_string()), Some(process.pid))
        }
        _ => (None, None),
    };
    let cgroup = match sum.group {
        Group::Cgroup(id) => cgroups::find(id).map(|path| format!("/{path}")),
        _ => None,
    };
    line(
        &json!({"type": "sum", "group": sum.group.to_string(), "process": process, "pid": pid, "cgroup_path": cgroup, "open": sum.open,
        "connections": sum.connections, "bytes_in": sum.bytes_in, "bytes_out": sum.bytes_out,
        "packets_in": sum.packets_in, "packets_out": sum.packets_out, "traced_bytes_in": sum.traced_bytes_in,
        "traced_bytes_out": sum.traced_bytes_out, "retransmits": sum.retransmits, "rtt_us": micros(sum.rtt),
        "min_rtt_us": micros(sum.min_rtt), "is_partial": sum.is_partial}),
    )
}

pub(crate) fn stats(stats: &Stats, evicted: u64) -> String {
    line(&json!({"type": "stats", "events": stats.events, "lost": stats.lost_total(),
        "losses": stats.losses.iter().map(|(kind, place, count)| json!({"kind": kind.as_str(),
            "place": place.as_str(), "count": count})).collect::<Vec<_>>(), "unknown_records": stats.unknown_records,
        "audit_mismatches": stats.audit_mismatches, "kernel_memory_bytes": stats.kernel_memory_bytes,
        "evicted": evicted}))
}
