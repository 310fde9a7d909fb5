// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of each sum that comes from connections which have left the table.

use crate::model::{CgroupId, ConnectionKey, KernelTime, Process, Protocol};
use crate::sums::{Group, GroupBy};
use foldhash::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

/// How many groups without a connection are kept where the user does not say; some 250 bytes each.
const DEFAULT_LIMIT: usize = 4096;

/// Cumulative counts of a connection, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) packets_in: u64,
    pub(super) packets_out: u64,
    pub(super) retransmits: u64,
    /// Of the bytes those that have moved since the tracer started.
    pub(super) traced_in: u64,
    pub(super) traced_out: u64,
}

impl Amount {
    fn each(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            bytes_in: combine(self.bytes_in, other.bytes_in),
            bytes_out: combine(self.bytes_out, other.bytes_out),
            packets_in: combine(self.packets_in, other.packets_in),
            packets_out: combine(self.packets_out, other.packets_out),
            retransmits: combine(self.retransmits, other.retransmits),
            traced_in: combine(self.traced_in, other.traced_in),
            traced_out: combine(self.traced_out, other.traced_out),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }
}

/// What a connection, or many, add to the sum of their group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) amount: Amount,
    pub(super) connections: u64,
    pub(super) min_rtt: Option<Duration>,
    pub(super) last_seen: KernelTime,
    pub(super) is_partial: bool,
}

impl Share {
    pub(super) fn add(&mut self, other: &Self) {
        self.amount = self.amount.plus(other.amount);
        self.connections += other.connections;
        self.min_rtt = self.min_rtt.into_iter().chain(other.min_rtt).min();
        self.last_seen = self.last_seen.max(other.last_seen);
        self.is_partial |= other.is_partial;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections == 0 && self.amount == Amount::default()
    }
}

/// What names a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Process { pid: u32, started: u64 },
    RemoteHost(IpAddr),
    Cgroup(CgroupId),
    LocalPort(Protocol, u16),
    RemotePort(Protocol, u16),
    ProcessAndHost { pid: u32, started: u64, host: IpAddr },
    Unknown,
}

impl Name {
    pub(super) fn of(by: GroupBy, key: &ConnectionKey, owner: Option<&Process>) -> Self {
        let host = Some(key.remote_addr).filter(|ip| !ip.is_unspecified());
        let port =
            |port: u16, name: fn(Protocol, u16) -> Self| Some(name(key.protocol, port)).filter(|_| port != 0);
        let known = match by {
            GroupBy::Process => owner.map(Self::of_process),
            GroupBy::RemoteHost => host.map(Self::RemoteHost),
            GroupBy::Cgroup => owner.and_then(|owner| owner.cgroup_id).map(Self::Cgroup),
            GroupBy::LocalPort => port(key.local_port, Self::LocalPort),
            GroupBy::RemotePort => port(key.remote_port, Self::RemotePort),
            GroupBy::ProcessAndHost => owner.zip(host).map(|(owner, host)| Self::ProcessAndHost {
                pid: owner.pid,
                started: start_tick(owner),
                host,
            }),
        };
        known.unwrap_or(Self::Unknown)
    }

    pub(super) fn of_process(process: &Process) -> Self {
        Self::Process { pid: process.pid, started: start_tick(process) }
    }

    /// The group for users. `process` is the latest that is known of it.
    pub(super) fn group(self, process: Option<Process>) -> Group {
        match (self, process) {
            (Self::Process { .. }, Some(process)) => Group::Process(process),
            (Self::ProcessAndHost { host, .. }, Some(process)) => Group::ProcessAndHost(process, host),
            (Self::RemoteHost(address), _) => Group::RemoteHost(address),
            (Self::Cgroup(id), _) => Group::Cgroup(id),
            (Self::LocalPort(protocol, port), _) => Group::LocalPort(protocol, port),
            (Self::RemotePort(protocol, port), _) => Group::RemotePort(protocol, port),
            (Self::Unknown | Self::Process { .. } | Self::ProcessAndHost { .. }, _) => Group::Unknown,
        }
    }
}

/// The start time in ticks of 10 ms, as /proc has it, too.
fn start_tick(process: &Process) -> u64 {
    process.start_time_ns / 10_000_000
}

/// Of connections that have left the table, or the process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub(super) share: Share,
    pub(super) process: Option<Process>,
}

/// What is remembered of a group from one look to the next. There may be as many as there are connections.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupState {
    kept: Option<Box<Kept>>,
    /// New bytes, in and out, at the latest look.
    pub(super) looked: [u64; 2],
    /// Where its sum is while one is made.
    pub(super) at: u32,
}

impl GroupState {
    pub(super) fn kept(&self) -> Kept {
        self.kept.as_deref().copied().unwrap_or_default()
    }

    fn keep(&mut self) -> &mut Kept {
        self.kept.get_or_insert_default()
    }
}

/// All groups of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Grouping {
    pub(super) groups: HashMap<Name, GroupState>,
    /// Groups that were too many.
    pub(super) other: GroupState,
    /// With how many groups it is next looked which of them have no connection.
    next_trim: usize,
}

impl Grouping {
    fn keep(&mut self, name: Name, owner: Option<Process>, share: &Share) {
        let kept = self.groups.entry(name).or_default().keep();
        if kept.process.is_none() || share.last_seen >= kept.share.last_seen {
            kept.process = owner.or(kept.process);
        }
        kept.share.add(share);
    }

    /// Keeps at most `limit` groups that are not in use, those that were seen last.
    fn trim(&mut self, limit: usize, is_in_use: impl Fn(&Name) -> bool) {
        let unused = self.groups.iter().filter(|(name, _)| !is_in_use(name) && **name != Name::Unknown);
        let mut unused: Vec<_> = unused.map(|(&name, state)| (state.kept().share.last_seen, name)).collect();
        let surplus = unused.len().saturating_sub(limit);
        if surplus > 0 {
            unused.select_nth_unstable_by_key(surplus - 1, |(last_seen, _)| *last_seen);
        }
        for (_, name) in &unused[..surplus] {
            if let Some(state) = self.groups.remove(name) {
                self.other.keep().share.add(&state.kept().share);
                self.other.looked = [0, 1].map(|way| self.other.looked[way] + state.looked[way]);
            }
        }
        self.next_trim = 2 * self.groups.len().max(limit);
    }
}

/// The groups of each kind.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    all: [Grouping; GroupBy::ALL.len()],
    limit: usize,
}

impl Default for Groups {
    fn default() -> Self {
        Self { all: Default::default(), limit: DEFAULT_LIMIT }
    }
}

impl Groups {
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.all.iter_mut().for_each(|grouping| grouping.next_trim = 0);
    }

    pub(super) fn by(&mut self, by: GroupBy) -> &mut Grouping {
        &mut self.all[by as usize]
    }

    /// A connection with this key and owner has left the table, or this owner.
    pub(super) fn keep(&mut self, key: &ConnectionKey, owner: Option<Process>, share: &Share) {
        if share.is_empty() {
            return;
        }
        for by in GroupBy::ALL {
            self.by(by).keep(Name::of(by, key, owner.as_ref()), owner, share);
        }
    }

    /// Whether there may be too many groups of this kind.
    pub(super) fn is_crowded(&self, by: GroupBy) -> bool {
        let Grouping { groups, next_trim, .. } = &self.all[by as usize];
        groups.len() > self.limit.max(*next_trim)
    }

    pub(super) fn trim(&mut self, by: GroupBy, in_use: &HashSet<Name>) {
        let limit = self.limit;
        self.by(by).trim(limit, |name| in_use.contains(name));
    }

    #[cfg(test)]
    pub(super) fn len(&self, by: GroupBy) -> usize {
        self.all[by as usize].groups.len()
    }
}
