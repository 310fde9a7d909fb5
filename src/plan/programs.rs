// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs of `src/bpf`: one row each.

use crate::capabilities::{Backend, Feature};
use crate::event::EventKind;
use crate::model::AddressFamily;

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

use Target::{Cgroup, CgroupFirst, Entry, Exit, Kprobe, Tracepoint};

impl Target {
    /// The kernel's name of the place.
    pub(crate) fn hook(self) -> Option<&'static str> {
        match self {
            Exit(hook, _) | Entry(hook, _) | Kprobe(hook, _) | Tracepoint(hook, _) => Some(hook),
            Cgroup | CgroupFirst => None,
        }
    }

    /// Is what the program reads there what it is taken for, as far as the number of arguments tells?
    pub(super) fn fits(self, arguments: usize) -> bool {
        match self {
            Exit(_, made_for) => made_for.contains(&arguments),
            Entry(_, read) | Kprobe(_, read) | Tracepoint(_, read) => arguments >= read,
            Cgroup | CgroupFirst => true,
        }
    }
}

/// A program of `src/bpf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its name in C.
    pub(crate) name: &'static str,
    /// The backend that uses it; none if all do.
    backend: Option<Backend>,
    /// Where it attaches.
    pub(crate) target: Target,
    /// Which events are lost when the kernel skips it.
    pub(crate) reports: Option<EventKind>,
    /// The backend is useless without it.
    pub(crate) essential: bool,
    /// Not every kernel has its hook, and nothing is missed where it does not.
    pub(super) dispensable: bool,
    /// The first kernel with its hook, where others may lack it.
    pub(super) since: Option<&'static str>,
    /// Which features need it.
    pub(super) shows: &'static [Feature],
    /// It sees sockets of this family only.
    pub(super) family: Option<AddressFamily>,
    backup: Option<Backup>,
}

/// A second program on the same hook, by name. The kernel skips a program that already runs on this CPU; then the other one
/// does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backup {
    /// An interrupt can come in between.
    Always(&'static str),
    /// The hook is in a system call, so only another task can.
    IfPreemptible(&'static str),
}

use Backup::{Always, IfPreemptible};

impl Program {
    const fn new(backend: Option<Backend>, name: &'static str, target: Target) -> Self {
        Self {
            name,
            backend,
            target,
            reports: None,
            essential: false,
            dispensable: false,
            since: None,
            shows: &[],
            family: None,
            backup: None,
        }
    }

    const fn reports(self, kind: EventKind) -> Self {
        Self { reports: Some(kind), ..self }
    }

    const fn essential(self) -> Self {
        Self { essential: true, ..self }
    }

    const fn dispensable(self) -> Self {
        Self { dispensable: true, ..self }
    }

    const fn since(self, release: &'static str) -> Self {
        Self { since: Some(release), ..self }
    }

    const fn shows(self, features: &'static [Feature]) -> Self {
        Self { shows: features, ..self }
    }

    const fn of(self, family: AddressFamily) -> Self {
        Self { family: Some(family), ..self }
    }

    const fn backup(self, backup: Backup) -> Self {
        Self { backup: Some(backup), ..self }
    }

    /// The backup program, where there is one and it can be of use.
    fn backup_program(self, preemptible: bool) -> Option<Self> {
        let name = match self.backup? {
            Always(name) => name,
            IfPreemptible(name) => preemptible.then_some(name)?,
        };
        let Self { backend, target, reports, .. } = self;
        Some(Self { reports, ..Self::new(backend, name, target) })
    }
}

/// Every program that a backend would like to have. Backup programs come last, and run last: programs on a tracepoint run in
/// the order in which they were attached.
pub(crate) fn programs(backend: Backend, preemptible: bool) -> impl Iterator<Item = Program> {
    let own = move || PROGRAMS.into_iter().filter(move |p| p.backend.is_none_or(|of| of == backend));
    own().chain(own().filter_map(move |program| program.backup_program(preemptible)))
}

const fn all(name: &'static str, target: Target) -> Program {
    Program::new(None, name, target)
}

const fn fentry(name: &'static str, target: Target) -> Program {
    Program::new(Some(Backend::Fentry), name, target)
}

/// kprobes run with preemption disabled: they need no backup programs.
const fn kprobe(name: &'static str, target: Target) -> Program {
    Program::new(Some(Backend::Kprobe), name, target)
}

const fn tracepoint(name: &'static str, target: Target) -> Program {
    Program::new(Some(Backend::Tracepoint), name, target)
}

use AddressFamily::{Ipv4, Ipv6};
use Feature as F;

#[rustfmt::skip]
const PROGRAMS: [Program; 43] = [
    all("tcp_set_state", Tracepoint("inet_sock_set_state", 3))
        .reports(EventKind::TcpStateChange).essential().shows(&[F::TcpTotals]).backup(Always("tcp_set_state_2")),
    all("tcp_chunk_in", Tracepoint("tcp_rcv_space_adjust", 1))
        .reports(EventKind::TcpRecv).essential().backup(IfPreemptible("tcp_chunk_in_2")),
    all("tcp_destroy", Tracepoint("tcp_destroy_sock", 1))
        .reports(EventKind::Closed).essential().backup(Always("tcp_destroy_2")),
    all("tcp_retransmit", Tracepoint("tcp_retransmit_skb", 2)).reports(EventKind::TcpRetransmit),

    fentry("fexit_tcp_sendmsg", Exit("tcp_sendmsg_locked", &[3]))
        .reports(EventKind::TcpSend).essential().shows(&[F::TcpSend]).backup(IfPreemptible("fexit_tcp_sendmsg_2")),
    fentry("fexit_tcp_recvmsg", Exit("tcp_recvmsg", &[4, 5, 6]))
        .reports(EventKind::TcpRecv).essential().shows(&[F::TcpRecv]).backup(IfPreemptible("fexit_tcp_recvmsg_2")),
    // This and the two other hooks of pages are gone since 6.5: sendfile(2) goes through tcp_sendmsg() and udp_sendmsg().
    fentry("fexit_tcp_sendpages", Exit("do_tcp_sendpages", &[5])).reports(EventKind::TcpSend).dispensable(),
    fentry("fexit_accept_4", Exit("inet_csk_accept", &[4])).shows(&[F::AcceptOwner]),
    fentry("fexit_accept_2", Exit("inet_csk_accept", &[2])).shows(&[F::AcceptOwner]),
    fentry("fexit_tcp_v4_connect", Exit("tcp_v4_connect", &[3]))
        .reports(EventKind::ConnectFailed).shows(&[F::ConnectFailure]).of(Ipv4),
    fentry("fexit_tcp_v6_connect", Exit("tcp_v6_connect", &[3]))
        .reports(EventKind::ConnectFailed).shows(&[F::ConnectFailure]).of(Ipv6),
    // A kernel may have no sockmaps, and the last of these hooks is younger than the others.
    fentry("fentry_sockmap_send", Entry("tcp_bpf_sendmsg", 1)).dispensable(),
    fentry("fentry_sockmap_recv", Entry("tcp_bpf_recvmsg", 1)).dispensable(),
    fentry("fentry_sockmap_parser", Entry("tcp_bpf_recvmsg_parser", 1)).dispensable(),
    fentry("fexit_udp_sendmsg", Exit("udp_sendmsg", &[3]))
        .reports(EventKind::UdpSend).shows(&[F::UdpSend, F::UdpSendPeer]).of(Ipv4)
        .backup(IfPreemptible("fexit_udp_sendmsg_2")),
    fentry("fexit_udpv6_sendmsg", Exit("udpv6_sendmsg", &[3]))
        .reports(EventKind::UdpSend).shows(&[F::UdpSend, F::UdpSendPeer]).of(Ipv6)
        .backup(IfPreemptible("fexit_udpv6_sendmsg_2")),
    fentry("fexit_ip_append_page", Exit("ip_append_page", &[6])).reports(EventKind::UdpSend).dispensable(),
    fentry("fexit_udp_sendpage", Exit("udp_sendpage", &[5])).reports(EventKind::UdpSend).dispensable(),
    fentry("fentry_udp_push", Entry("udp_push_pending_frames", 1)),
    fentry("fentry_udp_v6_push", Entry("udp_v6_push_pending_frames", 1)),
    fentry("fentry_skb_consume_udp", Entry("skb_consume_udp", 3))
        .reports(EventKind::UdpRecv).shows(&[F::UdpRecv, F::UdpRecvPeer])
        .backup(IfPreemptible("fentry_skb_consume_udp_2")),
    fentry("fentry_udp_destroy_sock", Entry("udp_destroy_sock", 1))
        .reports(EventKind::Closed).shows(&[F::UdpClose]).of(Ipv4)
        .backup(IfPreemptible("fentry_udp_destroy_sock_2")),
    fentry("fentry_udpv6_destroy_sock", Entry("udpv6_destroy_sock", 1))
        .reports(EventKind::Closed).shows(&[F::UdpClose]).of(Ipv6)
        .backup(IfPreemptible("fentry_udpv6_destroy_sock_2")),

    kprobe("kprobe_tcp_sendmsg", Kprobe("tcp_sendmsg", 1)).reports(EventKind::TcpSend).essential(),
    kprobe("kprobe_tcp_recvmsg", Kprobe("tcp_recvmsg", 1))
        .reports(EventKind::TcpRecv).essential().shows(&[F::TcpRecv]),
    kprobe("tcp_segment_in", Tracepoint("tcp_probe", 1)).reports(EventKind::TcpSend).shows(&[F::TcpSend]),
    kprobe("kprobe_sockmap_send", Kprobe("tcp_bpf_sendmsg", 1)).dispensable(),
    kprobe("kprobe_sockmap_recv", Kprobe("tcp_bpf_recvmsg", 1)).dispensable(),
    kprobe("kprobe_sockmap_parser", Kprobe("tcp_bpf_recvmsg_parser", 1)).dispensable(),
    kprobe("kprobe_ip_send_skb", Kprobe("ip_send_skb", 2))
        .reports(EventKind::UdpSend).shows(&[F::UdpSend, F::UdpSendPeer]).of(Ipv4),
    kprobe("kprobe_ip6_send_skb", Kprobe("ip6_send_skb", 1))
        .reports(EventKind::UdpSend).shows(&[F::UdpSend, F::UdpSendPeer]).of(Ipv6),
    kprobe("kprobe_skb_consume_udp", Kprobe("skb_consume_udp", 3))
        .reports(EventKind::UdpRecv).shows(&[F::UdpRecv, F::UdpRecvPeer]),
    kprobe("kprobe_udp_destroy_sock", Kprobe("udp_destroy_sock", 1))
        .reports(EventKind::Closed).shows(&[F::UdpClose]).of(Ipv4),
    kprobe("kprobe_udpv6_destroy_sock", Kprobe("udpv6_destroy_sock", 1))
        .reports(EventKind::Closed).shows(&[F::UdpClose]).of(Ipv6),

    // These two report TCP, too; there the next event makes up for one that is skipped.
    tracepoint("sock_send", Tracepoint("sock_send_length", 3))
        .reports(EventKind::UdpSend).essential().since("6.3").shows(&[F::TcpSend, F::UdpSend])
        .backup(IfPreemptible("sock_send_2")),
    tracepoint("sock_recv", Tracepoint("sock_recv_length", 3))
        .reports(EventKind::UdpRecv).essential().since("6.3").shows(&[F::TcpRecv, F::UdpRecv])
        .backup(IfPreemptible("sock_recv_2")),
    tracepoint("cgroup_sendmsg4", Cgroup).shows(&[F::UdpSendPeer]).of(Ipv4),
    tracepoint("cgroup_sendmsg6", Cgroup).shows(&[F::UdpSendPeer]).of(Ipv6),
    tracepoint("cgroup_recvmsg4", CgroupFirst).shows(&[F::UdpRecvPeer]).of(Ipv4),
    tracepoint("cgroup_recvmsg6", CgroupFirst).shows(&[F::UdpRecvPeer]).of(Ipv6),
    tracepoint("cgroup_connect4", Cgroup),
    tracepoint("cgroup_connect6", Cgroup),
    tracepoint("cgroup_sock_release", Cgroup).shows(&[F::UdpClose]),
];
