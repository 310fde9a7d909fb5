// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which programs to use: a pure function of facts about the kernel.

use crate::capabilities::{Backend, Feature, Visibility};
use crate::event::EventKind;
use std::collections::BTreeMap;

/// What is known of the running kernel. Collected by `kernel::facts`; presence in BTF is not permission, so
/// `fexit` and `kprobe` come from really loading and attaching.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Programs with typed tracepoint arguments load.
    pub(crate) typed_tracepoints: Result<(), String>,
    /// There is a ring buffer.
    pub(crate) ring_buffer: bool,
    /// Tracing programs may ask for socket cookies.
    pub(crate) cookie: bool,
    /// Tracing programs get the current task with its type.
    pub(crate) task_btf: bool,
    /// Programs may give an address a type.
    pub(crate) cast: bool,
    /// A trampoline can be attached, or why not.
    pub(crate) fexit: Result<(), String>,
    /// A kprobe can be attached, or why not.
    pub(crate) kprobe: Result<(), String>,
    /// Functions in BTF, with the number of their arguments.
    pub(crate) functions: BTreeMap<&'static str, usize>,
    /// Tracepoints in BTF, likewise.
    pub(crate) tracepoints: BTreeMap<&'static str, usize>,
    /// Cgroup programs can be used, or why not.
    pub(crate) cgroup: Result<(), String>,
    /// The root at which they attach is the machine's, and not that of a cgroup namespace.
    pub(crate) all_cgroups: bool,
    /// A task may lose its processor in the middle of a program.
    pub(crate) preemptible: bool,
}

/// Where a program attaches, and how many arguments it reads there: the kernel checks neither what they are nor that they are
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Trampoline at the exit of a function with one of these numbers of arguments. The return value comes after them, so a
    /// program that is made for fewer would take an argument for it.
    Exit(&'static str, &'static [usize]),
    /// Trampoline at the entry of a function with so many arguments, or more after them.
    Entry(&'static str, usize),
    /// kprobe at the entry of a function, likewise.
    Kprobe(&'static str, usize),
    /// Typed tracepoint, likewise.
    Tracepoint(&'static str, usize),
    /// Root of the cgroup2 hierarchy.
    Cgroup,
    /// The same, before the programs of all others where this kernel can order them (Linux 6.15).
    CgroupFirst,
}

impl Target {
    /// The kernel's name of the place.
    pub(crate) fn hook(self) -> Option<&'static str> {
        match self {
            Exit(hook, _) | Entry(hook, _) | Kprobe(hook, _) | Tracepoint(hook, _) => Some(hook),
            Cgroup | CgroupFirst => None,
        }
    }

    /// Is what the program reads there what it is taken for, as far as the number of arguments tells?
    fn fits(self, arguments: usize) -> bool {
        match self {
            Exit(_, made_for) => made_for.contains(&arguments),
            Entry(_, read) | Kprobe(_, read) | Tracepoint(_, read) => arguments >= read,
            Cgroup | CgroupFirst => true,
        }
    }

    /// Which events are lost when the kernel skips a program there, if any are.
    pub(crate) fn reports(self) -> Option<EventKind> {
        match self.hook()? {
            "inet_sock_set_state" => Some(EventKind::TcpStateChange),
            "tcp_destroy_sock" | "udp_destroy_sock" | "udpv6_destroy_sock" => Some(EventKind::Closed),
            "tcp_sendmsg" | "tcp_sendmsg_locked" | "do_tcp_sendpages" | "tcp_probe" => {
                Some(EventKind::TcpSend)
            }
            "tcp_recvmsg" | "tcp_rcv_space_adjust" => Some(EventKind::TcpRecv),
            "tcp_v4_connect" | "tcp_v6_connect" => Some(EventKind::ConnectFailed),
            // The last two are for TCP too, where the next event repairs it.
            "udp_sendmsg" | "udpv6_sendmsg" | "ip_append_page" | "udp_sendpage" | "ip_send_skb"
            | "ip6_send_skb" | "sock_send_length" => Some(EventKind::UdpSend),
            "skb_consume_udp" | "sock_recv_length" => Some(EventKind::UdpRecv),
            _ => None,
        }
    }
}

/// A program of `src/bpf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its name in C.
    pub(crate) name: &'static str,
    /// Where it attaches.
    pub(crate) target: Target,
    /// Without it the backend is useless.
    pub(crate) essential: bool,
}

const fn program(name: &'static str, target: Target, essential: bool) -> Program {
    Program { name, target, essential }
}

use Target::{Cgroup, CgroupFirst, Entry, Exit, Kprobe, Tracepoint};

const BASE: [Program; 3] = [
    program("tcp_set_state", Tracepoint("inet_sock_set_state", 3), true),
    program("tcp_chunk_in", Tracepoint("tcp_rcv_space_adjust", 1), true),
    program("tcp_destroy", Tracepoint("tcp_destroy_sock", 1), true),
];

const FENTRY: [Program; 19] = [
    program("fexit_tcp_sendmsg", Exit("tcp_sendmsg_locked", &[3]), true),
    program("fexit_tcp_recvmsg", Exit("tcp_recvmsg", &[4, 5, 6]), true),
    program("fexit_tcp_sendpages", Exit("do_tcp_sendpages", &[5]), false),
    program("fexit_accept_4", Exit("inet_csk_accept", &[4]), false),
    program("fexit_accept_2", Exit("inet_csk_accept", &[2]), false),
    program("fexit_tcp_v4_connect", Exit("tcp_v4_connect", &[3]), false),
    program("fexit_tcp_v6_connect", Exit("tcp_v6_connect", &[3]), false),
    program("fentry_sockmap_send", Entry("tcp_bpf_sendmsg", 1), false),
    program("fentry_sockmap_recv", Entry("tcp_bpf_recvmsg", 1), false),
    program("fentry_sockmap_parser", Entry("tcp_bpf_recvmsg_parser", 1), false),
    program("fexit_udp_sendmsg", Exit("udp_sendmsg", &[3]), false),
    program("fexit_udpv6_sendmsg", Exit("udpv6_sendmsg", &[3]), false),
    program("fexit_ip_append_page", Exit("ip_append_page", &[6]), false),
    program("fexit_udp_sendpage", Exit("udp_sendpage", &[5]), false),
    program("fentry_udp_push", Entry("udp_push_pending_frames", 1), false),
    program("fentry_udp_v6_push", Entry("udp_v6_push_pending_frames", 1), false),
    program("fentry_skb_consume_udp", Entry("skb_consume_udp", 3), false),
    program("fentry_udp_destroy_sock", Entry("udp_destroy_sock", 1), false),
    program("fentry_udpv6_destroy_sock", Entry("udpv6_destroy_sock", 1), false),
];

const KPROBE: [Program; 11] = [
    program("kprobe_tcp_sendmsg", Kprobe("tcp_sendmsg", 1), true),
    program("kprobe_tcp_recvmsg", Kprobe("tcp_recvmsg", 1), true),
    program("tcp_segment_in", Tracepoint("tcp_probe", 1), false),
    program("kprobe_sockmap_send", Kprobe("tcp_bpf_sendmsg", 1), false),
    program("kprobe_sockmap_recv", Kprobe("tcp_bpf_recvmsg", 1), false),
    program("kprobe_sockmap_parser", Kprobe("tcp_bpf_recvmsg_parser", 1), false),
    program("kprobe_ip_send_skb", Kprobe("ip_send_skb", 2), false),
    program("kprobe_ip6_send_skb", Kprobe("ip6_send_skb", 1), false),
    program("kprobe_skb_consume_udp", Kprobe("skb_consume_udp", 3), false),
    program("kprobe_udp_destroy_sock", Kprobe("udp_destroy_sock", 1), false),
    program("kprobe_udpv6_destroy_sock", Kprobe("udpv6_destroy_sock", 1), false),
];

const TRACEPOINT: [Program; 9] = [
    program("sock_send", Tracepoint("sock_send_length", 3), true),
    program("sock_recv", Tracepoint("sock_recv_length", 3), true),
    program("cgroup_sendmsg4", Cgroup, false),
    program("cgroup_sendmsg6", Cgroup, false),
    program("cgroup_recvmsg4", CgroupFirst, false),
    program("cgroup_recvmsg6", CgroupFirst, false),
    program("cgroup_connect4", Cgroup, false),
    program("cgroup_connect6", Cgroup, false),
    program("cgroup_sock_release", Cgroup, false),
];

/// Second programs on hooks where an interrupt can come in between: the kernel skips a program that runs already.
const BASE_UNDERSTUDIES: [Program; 2] = [
    program("tcp_set_state_2", Tracepoint("inet_sock_set_state", 3), false),
    program("tcp_destroy_2", Tracepoint("tcp_destroy_sock", 1), false),
];

/// The same for hooks in system calls, where only another task can.
const CALL_UNDERSTUDIES: [Program; 1] =
    [program("tcp_chunk_in_2", Tracepoint("tcp_rcv_space_adjust", 1), false)];

const FENTRY_UNDERSTUDIES: [Program; 7] = [
    program("fexit_tcp_sendmsg_2", Exit("tcp_sendmsg_locked", &[3]), false),
    program("fexit_tcp_recvmsg_2", Exit("tcp_recvmsg", &[4, 5, 6]), false),
    program("fexit_udp_sendmsg_2", Exit("udp_sendmsg", &[3]), false),
    program("fexit_udpv6_sendmsg_2", Exit("udpv6_sendmsg", &[3]), false),
    program("fentry_skb_consume_udp_2", Entry("skb_consume_udp", 3), false),
    program("fentry_udp_destroy_sock_2", Entry("udp_destroy_sock", 1), false),
    program("fentry_udpv6_destroy_sock_2", Entry("udpv6_destroy_sock", 1), false),
];

const TRACEPOINT_UNDERSTUDIES: [Program; 2] = [
    program("sock_send_2", Tracepoint("sock_send_length", 3), false),
    program("sock_recv_2", Tracepoint("sock_recv_length", 3), false),
];

/// Every program that a backend would like to have. Understudies come last: programs on a tracepoint run in the order
/// in which they were attached.
pub(crate) fn programs(backend: Backend, call_understudies: bool) -> impl Iterator<Item = Program> {
    let (own, understudies): (&[Program], &[Program]) = match backend {
        Backend::Fentry => (&FENTRY, &FENTRY_UNDERSTUDIES),
        // kprobes run with preemption disabled.
        Backend::Kprobe => (&KPROBE, &[]),
        Backend::Tracepoint => (&TRACEPOINT, &TRACEPOINT_UNDERSTUDIES),
    };
    let understudies = CALL_UNDERSTUDIES.iter().chain(understudies).filter(move |_| call_understudies);
    BASE.iter().chain(own).chain(&BASE_UNDERSTUDIES).chain(understudies).copied()
}

/// What to load, and how to set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) backend: Backend,
    pub(crate) programs: Vec<Program>,
    /// Programs that this kernel has no place for, and why. Variants of one program for other kernels are not
    /// listed.
    pub(crate) missing: Vec<(&'static str, String)>,
    pub(crate) use_cookie: bool,
    pub(crate) use_task_btf: bool,
    pub(crate) use_cast: bool,
    pub(crate) recvmsg_args: u32,
    /// The understudies of hooks in system calls are among the programs.
    pub(crate) calls_run_twice: bool,
    /// See [`Facts::all_cgroups`].
    pub(crate) all_cgroups: bool,
    /// Programs that want to come first among those of cgroups do; known when they are attached.
    pub(crate) comes_first: bool,
}

impl Plan {
    /// Whether every send on a UDP socket without a peer leaves a note of where it goes.
    pub(crate) fn all_sends_are_noted(&self) -> bool {
        let has = |name| self.programs.iter().any(|program| program.name == name);
        self.all_cgroups && has("cgroup_sendmsg4") && has("cgroup_sendmsg6")
    }
}

/// The plan for a backend, or why it cannot run.
pub(crate) fn plan(backend: Backend, facts: &Facts) -> Result<Plan, String> {
    facts.typed_tracepoints.clone()?;
    match backend {
        Backend::Fentry => facts.fexit.clone()?,
        Backend::Kprobe => facts.kprobe.clone()?,
        Backend::Tracepoint => {}
    }
    let mut plan = Plan {
        backend,
        programs: Vec::new(),
        missing: Vec::new(),
        use_cookie: facts.cookie,
        use_task_btf: facts.task_btf,
        use_cast: facts.cast,
        calls_run_twice: facts.preemptible && backend != Backend::Kprobe,
        all_cgroups: facts.all_cgroups,
        comes_first: true,
        recvmsg_args: facts.functions.get("tcp_recvmsg").map_or(0, |&n| u32::try_from(n).unwrap_or(0)),
    };
    for program in programs(backend, facts.preemptible) {
        match absence(program, backend, facts) {
            Presence::Present => plan.programs.push(program),
            Presence::OtherVariant => {}
            Presence::Absent(reason) if program.essential => return Err(reason),
            Presence::Absent(reason) => plan.missing.push((program.name, reason)),
        }
    }
    Ok(plan)
}

enum Presence {
    Present,
    /// The kernel has the place, in a form that another program fits, or has replaced it.
    OtherVariant,
    Absent(String),
}

fn absence(program: Program, backend: Backend, facts: &Facts) -> Presence {
    let (name, listed) = match program.target {
        Cgroup | CgroupFirst => {
            return facts.cgroup.clone().map_or_else(Presence::Absent, |()| Presence::Present);
        }
        Tracepoint(name, _) => (name, facts.tracepoints.get(name)),
        Exit(name, _) | Entry(name, _) | Kprobe(name, _) => (name, facts.functions.get(name)),
    };
    let Some(&arguments) = listed else { return no_such_place(program.target, name) };
    if program.target.fits(arguments) {
        return Presence::Present;
    }
    let fits_here = |other: Program| other.target.hook() == Some(name) && other.target.fits(arguments);
    if programs(backend, false).any(fits_here) {
        return Presence::OtherVariant;
    }
    Presence::Absent(format!("{name} has {arguments} arguments on this kernel, which no program is made for"))
}

fn no_such_place(target: Target, name: &str) -> Presence {
    match target {
        // Gone since 6.5, where sendfile(2) goes through tcp_sendmsg() and udp_sendmsg().
        _ if matches!(name, "do_tcp_sendpages" | "ip_append_page" | "udp_sendpage") => Presence::OtherVariant,
        // A kernel may have no sockmaps, and the last of these is younger than the others.
        _ if name.starts_with("tcp_bpf_") => Presence::OtherVariant,
        Tracepoint(..) => Presence::Absent(format!("the kernel has no tracepoint {name}{}", since(name))),
        _ => Presence::Absent(format!("the kernel has no function {name}")),
    }
}

fn since(tracepoint: &str) -> &'static str {
    if tracepoint.starts_with("sock_send") || tracepoint.starts_with("sock_recv") {
        " (Linux 6.3 and later have it)"
    } else {
        ""
    }
}

/// What the programs that really run can see.
pub(crate) fn features(plan: &Plan, running: &[&str]) -> Vec<(Feature, Visibility)> {
    Feature::ALL.iter().map(|&feature| (feature, visibility(feature, plan, running))).collect()
}

fn visibility(feature: Feature, plan: &Plan, running: &[&str]) -> Visibility {
    let by = |name| if running.contains(&name) { Visibility::Exact } else { Visibility::Unseen };
    // One program for each family. A kernel may have no IPv6, or as a module, where no program attaches.
    let by_both = |v4, v6| if running.contains(&v6) { by(v4) } else { by(v4).within("IPv4 only") };
    // What cgroup programs see, of which the root may be that of a namespace.
    let in_cgroups = |seen: Visibility| if plan.all_cgroups { seen } else { seen.within(OWN_CGROUPS) };
    match (feature, plan.backend) {
        (Feature::TcpTotals, _) => Visibility::Exact,
        (Feature::TcpSend | Feature::TcpRecv, Backend::Fentry | Backend::Tracepoint) => Visibility::Exact,
        (Feature::TcpSend, Backend::Kprobe) => {
            by("tcp_segment_in").within("reported when the peer acknowledges, for the last process that sent")
        }
        (Feature::TcpRecv, Backend::Kprobe) => {
            Visibility::Limited("calls are counted by chunks of data consumed".into())
        }
        (Feature::UdpSend | Feature::UdpSendPeer, Backend::Fentry) => {
            by_both("fexit_udp_sendmsg", "fexit_udpv6_sendmsg")
        }
        (Feature::UdpSend, Backend::Kprobe) => by_both("kprobe_ip_send_skb", "kprobe_ip6_send_skb")
            .within("what a packet filter of this machine refuses to send counts too"),
        (Feature::UdpSend, Backend::Tracepoint) => Visibility::Limited(
            "a datagram that setsockopt uncorks counts with the next send or at the end, and MSG_PROBE counts".into(),
        ),
        (Feature::UdpRecv, Backend::Tracepoint) => Visibility::Exact,
        (Feature::UdpRecv | Feature::UdpRecvPeer, Backend::Fentry) => by("fentry_skb_consume_udp"),
        (Feature::UdpRecv | Feature::UdpRecvPeer, Backend::Kprobe) => by("kprobe_skb_consume_udp"),
        (Feature::UdpSendPeer, Backend::Kprobe) => by_both("kprobe_ip_send_skb", "kprobe_ip6_send_skb"),
        (Feature::UdpSendPeer, Backend::Tracepoint) => {
            in_cgroups(by_both("cgroup_sendmsg4", "cgroup_sendmsg6"))
        }
        (Feature::UdpRecvPeer, Backend::Tracepoint) => {
            let seen = by_both("cgroup_recvmsg4", "cgroup_recvmsg6")
                .within("unknown where the reader does not ask for the address (recv, read)");
            in_cgroups(if plan.comes_first { seen } else { seen.within(REWRITTEN) })
        }
        (Feature::UdpClose, Backend::Fentry) => {
            by_both("fentry_udp_destroy_sock", "fentry_udpv6_destroy_sock")
        }
        (Feature::UdpClose, Backend::Kprobe) => {
            by_both("kprobe_udp_destroy_sock", "kprobe_udpv6_destroy_sock")
        }
        (Feature::UdpClose, Backend::Tracepoint) => in_cgroups(by("cgroup_sock_release")),
        (Feature::ConnectFailure, _) => match by_both("fexit_tcp_v4_connect", "fexit_tcp_v6_connect") {
            Visibility::Unseen => Visibility::Limited(AT_ONCE.into()),
            seen => seen,
        },
        (Feature::AcceptOwner, backend) => accept_owner(backend, running),
        (Feature::SocketCookie, _) if !plan.use_cookie => Visibility::Unseen,
        (Feature::SocketCookie, Backend::Kprobe) => {
            Visibility::Limited("TCP only: a kprobe cannot ask for a UDP socket's cookie".into())
        }
        (Feature::SocketCookie, _) => Visibility::Exact,
        // No program finds those: `Finding::tell` knows better.
        (Feature::Existing, _) => Visibility::Unseen,
    }
}

const REWRITTEN: &str = "what a program of a cgroup makes of it where one rewrites it";

const AT_ONCE: &str =
    "not where connect() fails before it has chosen a local port (no route, one that forbids)";

const OWN_CGROUPS: &str =
    "only of processes in the cgroup namespace of this one: mount the host's cgroup2 to see all";

fn accept_owner(backend: Backend, running: &[&str]) -> Visibility {
    if backend == Backend::Fentry && running.iter().any(|name| name.starts_with("fexit_accept")) {
        Visibility::Exact
    } else {
        Visibility::Limited(
            "the process that listens, until the connection is used; unknown where several listen".into(),
        )
    }
}

#[cfg(test)]
mod tests;
