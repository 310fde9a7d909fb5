// SPDX-License-Identifier: MIT OR Apache-2.0

use super::features::visibility;
use super::*;
use std::collections::BTreeSet;
use std::fs;

const FUNCTIONS: [(&str, usize); 18] = [
    ("tcp_sendmsg", 3),
    ("tcp_sendmsg_locked", 3),
    ("tcp_recvmsg", 5),
    ("inet_csk_accept", 2),
    ("udp_sendmsg", 3),
    ("udpv6_sendmsg", 3),
    ("udp_push_pending_frames", 1),
    ("udp_v6_push_pending_frames", 1),
    ("ip_send_skb", 2),
    ("ip6_send_skb", 1),
    ("skb_consume_udp", 3),
    ("udp_destroy_sock", 1),
    ("udpv6_destroy_sock", 1),
    ("tcp_bpf_sendmsg", 3),
    ("tcp_bpf_recvmsg", 5),
    ("tcp_bpf_recvmsg_parser", 5),
    ("tcp_v4_connect", 3),
    ("tcp_v6_connect", 3),
];

const TRACEPOINTS: [(&str, usize); 7] = [
    ("inet_sock_set_state", 3),
    ("tcp_rcv_space_adjust", 1),
    ("tcp_destroy_sock", 1),
    ("tcp_retransmit_skb", 2),
    ("tcp_probe", 2),
    ("sock_send_length", 3),
    ("sock_recv_length", 3),
];

/// With all events.
fn plan(backend: Backend, facts: &Facts) -> Result<Plan, String> {
    super::plan(backend, facts, &[])
}

/// A kernel on which everything works, such as a distribution's 6.12.
fn everything() -> Facts {
    Facts {
        typed_tracepoints: Ok(()),
        ring_buffer: true,
        cookie: true,
        task_btf: true,
        cast: true,
        fexit: Ok(()),
        kprobe: Ok(()),
        functions: FUNCTIONS.into(),
        tracepoints: TRACEPOINTS.into(),
        cgroup: Ok(()),
        all_cgroups: true,
        preemptible: false,
    }
}

#[test]
fn backup_programs_come_last_and_those_of_calls_only_where_tasks_are_preempted() {
    let second = |facts: &Facts, backend| {
        let plan = plan(backend, facts).unwrap();
        let names = names(&plan);
        let first = names.iter().position(|n| n.ends_with("_2") && !n.starts_with("fexit_accept")).unwrap();
        assert!(names[first..].iter().all(|n| n.ends_with("_2")), "{names:?}");
        assert!(names[first..].iter().all(|n| names.contains(&n.trim_end_matches("_2"))), "{names:?}");
        (names.len() - first, plan.calls_run_twice)
    };
    let mut facts = everything();
    assert_eq!(Backend::ALL.map(|b| second(&facts, b)), [(2, false); 3]);
    facts.preemptible = true;
    assert_eq!(Backend::ALL.map(|b| second(&facts, b)), [(10, true), (3, false), (5, true)]);
}

/// The names in C: each follows a line with its section.
fn in_c() -> BTreeSet<String> {
    let sources = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/bpf")).unwrap();
    let headers = sources.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "h");
    let text: String = headers.map(|path| fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<_> = text.lines().collect();
    let programs = lines.windows(2).filter(|pair| pair[0].starts_with("SEC(\"?"));
    let name = |line: &str| {
        let words = line.strip_prefix("int ").unwrap().trim_start_matches("BPF_PROG(");
        let words = words.trim_start_matches("BPF_KPROBE(");
        words.split([',', '(']).next().unwrap().to_owned()
    };
    programs.map(|pair| name(pair[1])).collect()
}

#[test]
fn each_program_has_its_row_and_each_row_its_program() {
    let rows = Backend::ALL.into_iter().flat_map(|backend| programs(backend, true));
    let rows: BTreeSet<_> = rows.map(|program| program.name.to_owned()).collect();
    assert_eq!(rows, in_c());
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.programs.iter().map(|p| p.name).collect()
}

#[test]
fn every_backend_has_the_base_and_its_own_programs_and_misses_nothing() {
    for backend in Backend::ALL {
        let plan = plan(backend, &everything()).unwrap();
        let names = names(&plan);
        assert_eq!(names[..3], ["tcp_set_state", "tcp_chunk_in", "tcp_destroy"]);
        assert_eq!(plan.missing, []);
        let foreign = match backend {
            Backend::Fentry => ["kprobe_", "sock_", "cgroup_"],
            Backend::Kprobe => ["fexit_", "sock_", "cgroup_"],
            Backend::Tracepoint => ["fexit_", "fentry_", "kprobe_"],
        };
        assert!(!names.iter().any(|n| foreign.iter().any(|f| n.starts_with(f))), "{names:?}");
    }
}

#[test]
fn programs_are_chosen_by_argument_counts_never_by_version() {
    let mut facts = everything();
    let with = |facts: &Facts| names(&plan(Backend::Fentry, facts).unwrap());
    assert!(with(&facts).contains(&"fexit_accept_2") && !with(&facts).contains(&"fexit_accept_4"));
    facts.functions.insert("inet_csk_accept", 4);
    assert!(with(&facts).contains(&"fexit_accept_4") && !with(&facts).contains(&"fexit_accept_2"));
    facts.functions.insert("inet_csk_accept", 3);
    let plan3 = plan(Backend::Fentry, &facts).unwrap();
    assert!(!names(&plan3).iter().any(|n| n.starts_with("fexit_accept")));
    assert!(plan3.missing[0].1.contains("3 arguments"), "{:?}", plan3.missing);
    facts.functions.insert("tcp_recvmsg", 6);
    assert_eq!(plan(Backend::Fentry, &facts).unwrap().recvmsg_args, 6);
}

/// At the exit of a function with other arguments than those a program is made for, one of them would be its return value.
#[test]
fn no_program_runs_where_the_arguments_are_others_than_it_reads() {
    let with = |backend, name: &'static str, n: usize| {
        let mut facts = everything();
        let listed =
            if facts.functions.contains_key(name) { &mut facts.functions } else { &mut facts.tracepoints };
        assert!(listed.insert(name, n).is_some(), "{name}");
        plan(backend, &facts)
    };
    let runs = |backend, name, n, program| with(backend, name, n).is_ok_and(|p| names(&p).contains(&program));
    for backend in Backend::ALL {
        for program in programs(backend, true) {
            let (exact, least) = match program.target {
                Target::Exit(_, made_for) => (true, made_for[0]),
                Target::Entry(_, n) | Target::Kprobe(_, n) | Target::Tracepoint(_, n) => (false, n),
                Target::Cgroup | Target::CgroupFirst => continue,
            };
            let (name, program) = (program.target.hook().unwrap(), program.name.trim_end_matches("_2"));
            // In no kernel of today: see the test of sendpage. And accept() has a program for each number.
            if matches!(name, "do_tcp_sendpages" | "ip_append_page" | "udp_sendpage" | "inet_csk_accept") {
                continue;
            }
            assert!(runs(backend, name, least, program), "{program}");
            assert!(!runs(backend, name, least - 1, program), "{program}");
            // What was added at the end is in nobody's way, but at an exit.
            assert_eq!(runs(backend, name, 9, program), !exact, "{program}");
        }
    }
    for n in [3, 7] {
        let reason = with(Backend::Fentry, "tcp_recvmsg", n).unwrap_err();
        assert!(reason.contains(&format!("tcp_recvmsg has {n} arguments")), "{reason}");
    }
    let missing = with(Backend::Fentry, "udp_sendmsg", 4).unwrap().missing;
    assert!(missing[0].1.contains("udp_sendmsg has 4 arguments"), "{missing:?}");
}

#[test]
fn what_fails_at_once_is_seen_at_the_exit_of_connect_alone() {
    let seen = |backend, facts: &Facts| {
        let plan = plan(backend, facts).unwrap();
        let all = features(&plan);
        all.into_iter().find(|(feature, _)| *feature == Feature::ConnectFailure).unwrap().1
    };
    let mut facts = everything();
    assert_eq!(seen(Backend::Fentry, &facts), Visibility::Exact);
    for backend in [Backend::Kprobe, Backend::Tracepoint] {
        assert!(matches!(seen(backend, &facts), Visibility::Limited(why) if why.contains("no route")));
    }
    facts.functions.remove("tcp_v6_connect");
    assert_eq!(seen(Backend::Fentry, &facts), Visibility::Limited("IPv4 only".into()));
}

#[test]
fn for_events_that_nobody_wants_no_program_is_loaded_or_missed() {
    let mut facts = everything();
    for backend in Backend::ALL {
        let [with, without] =
            [&[][..], &[EventKind::TcpRetransmit]].map(|unwanted| super::plan(backend, &facts, unwanted));
        let (mut with, without) = (with.unwrap(), without.unwrap());
        assert!(names(&with).contains(&"tcp_retransmit"));
        with.programs.retain(|program| program.name != "tcp_retransmit");
        assert_eq!(with, without);
    }
    facts.tracepoints.remove("tcp_retransmit_skb");
    let missing = |unwanted: &[_]| super::plan(Backend::Fentry, &facts, unwanted).unwrap().missing.len();
    assert_eq!([missing(&[]), missing(&[EventKind::TcpRetransmit])], [1, 0]);
}

#[test]
fn sendpage_is_used_where_it_is_and_not_missed_where_it_is_not() {
    let mut facts = everything();
    assert!(!names(&plan(Backend::Fentry, &facts).unwrap()).contains(&"fexit_tcp_sendpages"));
    facts.functions.insert("do_tcp_sendpages", 5);
    assert!(names(&plan(Backend::Fentry, &facts).unwrap()).contains(&"fexit_tcp_sendpages"));
}

#[test]
fn a_backend_that_cannot_run_says_why() {
    let mut facts = everything();
    facts.fexit = Err("cannot be loaded: Operation not permitted".into());
    facts.kprobe = Err("cannot be attached: No such file".into());
    assert!(plan(Backend::Fentry, &facts).unwrap_err().contains("not permitted"));
    assert!(plan(Backend::Kprobe, &facts).unwrap_err().contains("No such file"));
    assert!(plan(Backend::Tracepoint, &facts).is_ok());
    facts.tracepoints.remove("sock_send_length");
    let reason = plan(Backend::Tracepoint, &facts).unwrap_err();
    assert!(reason.contains("sock_send_length") && reason.contains("6.3"), "{reason}");
    facts.typed_tracepoints = Err("no BTF".into());
    for backend in Backend::ALL {
        assert_eq!(plan(backend, &facts).unwrap_err(), "no BTF");
    }
}

#[test]
fn one_missing_place_costs_one_feature_and_not_the_backend() {
    let mut facts = everything();
    facts.functions.remove("skb_consume_udp");
    let plan = plan(Backend::Fentry, &facts).unwrap();
    assert_eq!(plan.missing.len(), 1);
    let features = features(&plan);
    let of = |feature| features.iter().find(|(f, _)| *f == feature).unwrap().1.clone();
    assert_eq!(of(Feature::UdpRecv), Visibility::Unseen);
    assert_eq!(of(Feature::UdpSend), Visibility::Exact);
    assert_eq!(of(Feature::TcpTotals), Visibility::Exact);
}

#[test]
fn without_hooks_of_ipv6_datagrams_of_ipv4_are_seen() {
    let mut facts = everything();
    facts.functions.retain(|name, _| !["udpv6_", "udp_v6_", "ip6_"].iter().any(|v6| name.starts_with(v6)));
    let v4 = || Visibility::Limited("IPv4 only".into());
    let of = |backend| {
        let plan = plan(backend, &facts).unwrap();
        let features = features(&plan);
        [Feature::UdpSend, Feature::UdpSendPeer, Feature::UdpClose]
            .map(|feature| features.iter().find(|(f, _)| *f == feature).unwrap().1.clone())
    };
    assert_eq!(of(Backend::Fentry), [v4(), v4(), v4()]);
    let entry = "IPv4 only; what a packet filter of this machine refuses to send counts too";
    assert_eq!(of(Backend::Kprobe), [Visibility::Limited(entry.into()), v4(), v4()]);
}

#[test]
fn without_cgroup2_only_the_peers_of_unconnected_udp_sockets_are_unseen() {
    let facts = Facts { cgroup: Err("no cgroup2 hierarchy is mounted".into()), ..everything() };
    let plan = plan(Backend::Tracepoint, &facts).unwrap();
    let features = features(&plan);
    let of = |feature| features.iter().find(|(f, _)| *f == feature).unwrap().1.clone();
    assert_eq!(of(Feature::UdpSendPeer), Visibility::Unseen);
    assert_eq!(of(Feature::UdpRecvPeer), Visibility::Unseen);
    assert_eq!(of(Feature::UdpClose), Visibility::Unseen);
    assert!(matches!(of(Feature::UdpSend), Visibility::Limited(_)));
    assert_eq!(plan.missing.len(), 7);
    assert!(!plan.all_sends_are_noted());
}

#[test]
fn in_a_cgroup_namespace_what_cgroup_programs_see_is_limited() {
    let facts = Facts { all_cgroups: false, ..everything() };
    let plan = plan(Backend::Tracepoint, &facts).unwrap();
    assert!(!plan.all_sends_are_noted());
    let features = features(&plan);
    for feature in [Feature::UdpSendPeer, Feature::UdpRecvPeer, Feature::UdpClose] {
        let (_, visibility) = features.iter().find(|(f, _)| *f == feature).unwrap();
        assert!(
            matches!(visibility, Visibility::Limited(why) if why.contains("cgroup namespace")),
            "{visibility}"
        );
    }
}

#[test]
fn what_others_make_of_addresses_is_told_where_programs_cannot_come_first() {
    let mut plan = plan(Backend::Tracepoint, &everything()).unwrap();
    assert!(plan.all_sends_are_noted());
    for comes_first in [true, false] {
        plan.comes_first = comes_first;
        let features = features(&plan);
        let (_, peer) = features.iter().find(|(f, _)| *f == Feature::UdpRecvPeer).unwrap();
        assert_eq!(peer.to_string().contains("rewrites"), !comes_first, "{peer}");
    }
}

#[test]
fn datagrams_from_before_connect_are_told_where_nothing_sees_that() {
    for name in ["cgroup_connect4", "cgroup_connect6"] {
        let mut plan = plan(Backend::Tracepoint, &everything()).unwrap();
        let peer = |plan: &Plan| visibility(Feature::UdpRecvPeer, plan).to_string();
        assert!(!peer(&plan).contains("before connect()"));
        plan.programs.retain(|program| program.name != name);
        assert!(peer(&plan).contains("before connect()"), "{}", peer(&plan));
    }
}

#[test]
fn older_kernels_do_without_what_they_have_not() {
    let old = Facts { cookie: false, task_btf: false, cast: false, ..everything() };
    let plan_old = plan(Backend::Fentry, &old).unwrap();
    assert!(!plan_old.use_cookie && !plan_old.use_task_btf && !plan_old.use_cast);
    let features = features(&plan_old);
    assert!(features.contains(&(Feature::SocketCookie, Visibility::Unseen)));
}

#[test]
fn every_feature_of_every_backend_has_an_answer() {
    for backend in Backend::ALL {
        let plan = plan(backend, &everything()).unwrap();
        let all = features(&plan);
        assert_eq!(all.len(), Feature::ALL.len());
        let unseen: Vec<_> = all.iter().filter(|(_, v)| *v == Visibility::Unseen).map(|(f, _)| *f).collect();
        assert_eq!(unseen, [Feature::Existing], "{backend}");
        let none = features(&Plan { programs: Vec::new(), ..plan });
        assert!(none.contains(&(Feature::UdpClose, Visibility::Unseen)));
    }
}
