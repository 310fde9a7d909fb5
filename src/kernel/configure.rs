// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs are told before they run: constants, the sizes of maps, and the filters.

use super::session::FIRST_EPOCH;
use super::skel::{OpenTcptopSkel, TcptopSkel, rodata};
use crate::capabilities::Backend;
use crate::config::{Config, DEFAULT_FLOWS, Filter};
use crate::host;
use crate::model::{AddressFamily, NetNs, Protocol};
use crate::plan::Plan;
use crate::wire::tt_cgroup;
use libbpf_rs::{MapCore, MapFlags};
use std::hash::{BuildHasher, RandomState};

/// Constants, and the maps that there will be with their sizes.
pub(super) fn before_load(
    open: &mut OpenTcptopSkel<'_>,
    config: &Config,
    plan: &Plan,
) -> libbpf_rs::Result<()> {
    let rooms = Rooms::of(config);
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.interval_ns = config.interval_ns();
        rodata.bank_slots = rooms.bank_slots();
        rodata.common_slots = rooms.flows;
        rodata.cookie_mask = rooms.sockets.next_power_of_two() - 1;
        rodata.use_cookie = plan.use_cookie;
        rodata.use_task_btf = plan.use_task_btf;
        rodata.use_cast = plan.use_cast;
        rodata.chunks_are_calls = plan.backend == Backend::Kprobe;
        rodata.recvmsg_args = plan.recvmsg_args;
        rodata.calls_run_twice = plan.calls_run_twice;
        rodata.identity_secret = secret();
        rodata.notes_are_complete = plan.all_sends_are_noted();
        set_filter(rodata, &config.filter);
    }
    if let Some(bss) = open.maps.bss_data.as_deref_mut() {
        // Zero is the epoch of slots that there never were.
        bss.control.epoch = FIRST_EPOCH;
    }
    let ring = u32::try_from(config.ring_bytes).unwrap_or(u32::MAX);
    open.maps.events.set_max_entries(ring)?;
    size_maps(open, &rooms, plan)?;
    make_filter_maps(open, &config.filter)
}

fn set_filter(rodata: &mut rodata, filter: &Filter) {
    rodata.filters = *filter != Filter::default();
    rodata.filter_pids = !filter.pids.is_empty();
    rodata.filter_cgroups = filter.is_by_cgroup();
    rodata.filter_trees = !filter.cgroup_trees.is_empty();
    rodata.filter_ports = !filter.ports.is_empty();
    for &port in &filter.ports {
        rodata.wanted_ports[usize::from(port) / 64] |= 1 << (port % 64);
    }
    rodata.filter_protocol = match filter.protocol {
        None => 0,
        Some(Protocol::Tcp) => 6,
        Some(Protocol::Udp) => 17,
    };
    rodata.filter_family = match filter.family {
        None => 0,
        Some(AddressFamily::Ipv4) => 4,
        Some(AddressFamily::Ipv6) => 6,
    };
    rodata.filter_loopback = filter.no_loopback;
    rodata.filter_netns = filter.netns.map_or(0, NetNs::get);
}

fn size_maps(open: &mut OpenTcptopSkel<'_>, rooms: &Rooms, plan: &Plan) -> libbpf_rs::Result<()> {
    let threads = THREADS.saturating_add(kept_back_by_processors());
    let maps = &mut open.maps;
    maps.udp_flows.set_max_entries(rooms.flows)?;
    maps.slots.set_max_entries(rooms.bank_slots().saturating_mul(2))?;
    maps.sockets.set_max_entries(rooms.sockets)?;
    maps.states.set_max_entries(rooms.sockets)?;
    maps.free_states.set_max_entries(rooms.sockets)?;
    maps.cached_states.set_max_entries(rooms.sockets.next_power_of_two())?;
    maps.thread_turns.set_autocreate(plan.calls_run_twice)?;
    maps.thread_turns.set_max_entries(threads)?;
    maps.noted_peers.set_max_entries(threads)?;
    maps.noted_peers.set_autocreate(plan.backend == Backend::Tracepoint)
}

/// So many cgroups below the wanted ones, or elsewhere, are remembered.
const REMEMBERED_CGROUPS: usize = 4096;

fn make_filter_maps(open: &mut OpenTcptopSkel<'_>, filter: &Filter) -> libbpf_rs::Result<()> {
    let entries = |named: usize| u32::try_from(named.max(1)).unwrap_or(u32::MAX);
    let cgroups = filter.cgroups.len() + filter.cgroup_trees.len();
    let remembered = if filter.cgroup_trees.is_empty() { 0 } else { REMEMBERED_CGROUPS };
    let maps = &mut open.maps;
    maps.wanted_pids.set_autocreate(!filter.pids.is_empty())?;
    maps.wanted_pids.set_max_entries(entries(filter.pids.len()))?;
    maps.wanted_cgroups.set_autocreate(filter.is_by_cgroup())?;
    maps.wanted_cgroups.set_max_entries(entries(cgroups + remembered))
}

/// The processes and cgroups of the filter, before any program runs.
pub(super) fn after_load(skel: &TcptopSkel<'_>, filter: &Filter) -> libbpf_rs::Result<()> {
    for pid in &filter.pids {
        skel.maps.wanted_pids.update(&pid.to_ne_bytes(), &[1], MapFlags::ANY)?;
    }
    // Trees last: a cgroup that is named in both ways is one.
    let (alone, trees) = (tt_cgroup::TT_WANTED, tt_cgroup::TT_TREE_WANTED);
    let alone = filter.cgroups.iter().map(|id| (id, alone));
    for (id, how) in alone.chain(filter.cgroup_trees.iter().map(|id| (id, trees))) {
        skel.maps.wanted_cgroups.update(&id.get().to_ne_bytes(), &[how.0 as u8], MapFlags::ANY)?;
    }
    Ok(())
}

/// For how many sockets, and how many flows and reports, there is room in the maps.
struct Rooms {
    sockets: u32,
    flows: u32,
}

/// Fewer are not worth saving: what has no room for its state is not counted at all.
const LEAST_SOCKETS: u32 = 1024;

impl Rooms {
    fn of(config: &Config) -> Self {
        let wanted = config.max_sockets.map(|sockets| u32::try_from(sockets).unwrap_or(u32::MAX));
        let sockets = wanted.map_or_else(host::room_for_sockets, |sockets| sockets.max(LEAST_SOCKETS));
        Self { sockets, flows: wanted.unwrap_or(DEFAULT_FLOWS) }
    }

    fn bank_slots(&self) -> u32 {
        self.flows.saturating_add(self.flows.div_ceil(2))
    }
}

/// Numbers that no traced program knows, from the randomness that the standard library's hash tables have.
fn secret<const N: usize>() -> [u64; N] {
    std::array::from_fn(|i| RandomState::new().hash_one(i))
}

/// So many threads may be in a call on a UDP socket at once, see `thread_turns` and `noted_peers`.
const THREADS: u32 = 8192;

/// An LRU map gives each processor free entries to itself, up to 128: so many more it must have, or the processors of a large
/// machine have them all, and take away from each other what is in use.
fn kept_back_by_processors() -> u32 {
    let processors = libbpf_rs::num_possible_cpus().unwrap_or(1);
    u32::try_from(processors).unwrap_or(u32::MAX).saturating_mul(128)
}
