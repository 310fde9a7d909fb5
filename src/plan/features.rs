// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs of a plan can see.

use super::Plan;
use crate::capabilities::{Backend, Feature, Visibility};
use crate::model::AddressFamily;

/// What is seen of each feature, if all programs of the plan run.
pub(crate) fn features(plan: &Plan) -> Vec<(Feature, Visibility)> {
    Feature::ALL.iter().map(|&feature| (feature, visibility(feature, plan))).collect()
}

pub(super) fn visibility(feature: Feature, plan: &Plan) -> Visibility {
    let seen = match feature {
        Feature::SocketCookie if plan.use_cookie => Visibility::Exact,
        // No program finds existing connections: the search for them says how well they are seen.
        Feature::SocketCookie | Feature::Existing => Visibility::Unseen,
        _ => by_programs(feature, plan),
    };
    limits(feature, plan).into_iter().fold(seen, Visibility::within)
}

/// A kernel may have no IPv6, or as a module, where no program attaches.
fn by_programs(feature: Feature, plan: &Plan) -> Visibility {
    let see = |family| {
        let mut able = plan.programs.iter().filter(|program| program.shows.contains(&feature));
        able.any(|program| program.family.is_none_or(|only| only == family))
    };
    match (see(AddressFamily::Ipv4), see(AddressFamily::Ipv6)) {
        (true, true) => Visibility::Exact,
        (true, false) => Visibility::Limited("IPv4 only".into()),
        (false, true) => Visibility::Limited("IPv6 only".into()),
        (false, false) => without_programs(feature),
    }
}

/// What the rest tells of a feature whose own programs do not run.
fn without_programs(feature: Feature) -> Visibility {
    match feature {
        Feature::ConnectFailure => Visibility::Limited(
            "not where connect() fails before it has chosen a local port (no route, one that forbids)".into(),
        ),
        Feature::AcceptOwner => Visibility::Limited(
            "the process that listens, until the connection is used; unknown where several listen".into(),
        ),
        _ => Visibility::Unseen,
    }
}

fn limits(feature: Feature, plan: &Plan) -> Vec<&'static str> {
    let mut limits = match (feature, plan.backend) {
        (Feature::TcpSend, Backend::Kprobe) => {
            vec!["reported when the peer acknowledges, for the last process that sent"]
        }
        (Feature::TcpRecv, Backend::Kprobe) => vec!["calls are counted by chunks of data consumed"],
        (Feature::UdpSend, Backend::Kprobe) => {
            vec!["what a packet filter of this machine refuses to send counts too"]
        }
        (Feature::SocketCookie, Backend::Kprobe) => {
            vec!["TCP only: a kprobe cannot ask for a UDP socket's cookie"]
        }
        (Feature::UdpSend, Backend::Tracepoint) => vec![
            "a datagram that setsockopt uncorks counts with the next send or at the end, and MSG_PROBE counts",
        ],
        (Feature::UdpRecvPeer, Backend::Tracepoint) => {
            vec!["unknown where the reader does not ask for the address (recv, read)"]
        }
        _ => Vec::new(),
    };
    if plan.backend == Backend::Tracepoint {
        if feature == Feature::UdpRecvPeer && !plan.comes_first {
            limits.push("what a program of a cgroup makes of it where one rewrites it");
        }
        let has = |name| plan.programs.iter().any(|program| program.name == name);
        if feature == Feature::UdpRecvPeer && !(has("cgroup_connect4") && has("cgroup_connect6")) {
            limits.push("the peer of the socket also for datagrams that came before connect()");
        }
        let by_cgroup_programs =
            matches!(feature, Feature::UdpSendPeer | Feature::UdpRecvPeer | Feature::UdpClose);
        if by_cgroup_programs && !plan.all_cgroups {
            limits.push(
                "only of processes in the cgroup namespace of this one: mount the host's cgroup2 to see all",
            );
        }
    }
    limits
}
