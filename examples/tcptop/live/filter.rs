// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is typed after `/`: words and `name:value`, all of which a connection must match.

use crate::cgroups;
use regex::{Regex, RegexBuilder};
use std::net::IpAddr;
use tcptop::{ConnectionRecord, Protocol, Role, TcpState};

/// Nothing passes a word that makes no sense: the screen says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    Word(String),
    Pattern(Regex),
    Pid(u32),
    Port(u16),
    Host(Ends, IpAddr, u32),
    State(String),
    Protocol(Protocol),
    Role(Role),
    Cgroup(String),
    Not(Box<Term>),
    Wrong(String),
}

/// Which address is meant.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Local,
    Remote,
    Either,
}

/// What `state:` knows beside the kernel's states.
const STATES: [&str; 10] = [
    FAILED,
    "gone",
    "refused",
    "reset",
    "timed_out",
    "unreachable",
    "forbidden",
    "no_local_port",
    "aborted",
    "other",
];
/// A connect that failed, for whatever reason.
const FAILED: &str = "failed";

impl Filter {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), terms: text.split_whitespace().map(term).collect() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The first word that makes no sense.
    pub(crate) fn wrong(&self) -> Option<&str> {
        self.terms.iter().find_map(|term| match term {
            Term::Wrong(word) => Some(word.as_str()),
            _ => None,
        })
    }

    pub(crate) fn passes(&self, r: &ConnectionRecord) -> bool {
        self.terms.iter().all(|term| term.passes(r))
    }
}

impl Term {
    fn passes(&self, r: &ConnectionRecord) -> bool {
        match self {
            Self::Word(word) => words(r).to_lowercase().contains(word),
            Self::Pattern(pattern) => pattern.is_match(&words(r)),
            Self::Pid(pid) => r.pid() == Some(*pid),
            Self::Port(port) => [r.key.local_port, r.key.remote_port].contains(port),
            Self::Host(ends, network, bits) => {
                let is_local = is_in(r.key.local_addr, *network, *bits);
                let is_remote = is_in(r.key.remote_addr, *network, *bits);
                match ends {
                    Ends::Local => is_local,
                    Ends::Remote => is_remote,
                    Ends::Either => is_local || is_remote,
                }
            }
            Self::State(state) => {
                let has_failed = r.connect_failure.is_some() && FAILED.starts_with(state.as_str());
                has_failed || crate::rows::state(r).starts_with(state.as_str())
            }
            Self::Protocol(protocol) => r.key.protocol == *protocol,
            Self::Role(role) => r.role == Some(*role),
            Self::Cgroup(part) => cgroup(r).is_some_and(|name| name.to_lowercase().contains(part)),
            Self::Not(term) => !term.passes(r),
            Self::Wrong(_) => false,
        }
    }
}

/// What words are looked for in.
fn words(r: &ConnectionRecord) -> String {
    let name = r.process_name().map(|name| name.to_string()).unwrap_or_default();
    let cgroup = cgroup(r).unwrap_or_default();
    let state = crate::rows::state(r);
    format!("{} {} {} {name} {state} {cgroup}", r.key.protocol, r.key.local(), r.key.remote())
}

fn cgroup(r: &ConnectionRecord) -> Option<String> {
    r.owner.and_then(|owner| owner.cgroup_id).map(cgroups::name)
}

fn term(word: &str) -> Term {
    if let Some(rest) = word.strip_prefix('!') {
        return match term(rest) {
            Term::Wrong(_) => Term::Wrong(word.to_owned()),
            term => Term::Not(Box::new(term)),
        };
    }
    let wrong = || Term::Wrong(word.to_owned());
    let Some((name, value)) = word.split_once(':').filter(|(name, _)| name.chars().all(char::is_alphabetic))
    else {
        return match word.strip_prefix('~') {
            Some(pattern) => {
                let pattern = RegexBuilder::new(pattern).case_insensitive(true).size_limit(1 << 20).build();
                pattern.map_or_else(|_| wrong(), Term::Pattern)
            }
            None => Term::Word(word.to_lowercase()),
        };
    };
    let term = match name {
        "pid" => value.parse().ok().map(Term::Pid),
        "port" => value.parse().ok().map(Term::Port),
        "host" => host(Ends::Either, value),
        "local" => host(Ends::Local, value),
        "remote" => host(Ends::Remote, value),
        "state" => state(value),
        "cgroup" => Some(Term::Cgroup(value.to_lowercase())),
        "proto" => value.to_lowercase().parse().ok().map(Term::Protocol),
        "dir" => match value {
            "in" => Some(Term::Role(Role::Server)),
            "out" => Some(Term::Role(Role::Client)),
            _ => None,
        },
        // Not a name of ours: the begin of an IPv6 address, perhaps.
        _ => return Term::Word(word.to_lowercase()),
    };
    term.unwrap_or_else(wrong)
}

/// The begin of a state's name.
fn state(text: &str) -> Option<Term> {
    let text = text.to_lowercase();
    let kernel = (1..=12).map(|number| TcpState::from_kernel(number).as_str());
    let is_known = kernel.chain(STATES).any(|name| name.starts_with(&text));
    is_known.then_some(Term::State(text))
}

/// An address, or a network such as 10.0.0.0/8.
fn host(ends: Ends, text: &str) -> Option<Term> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|bits| *bits <= all))?;
    Some(Term::Host(ends, address, bits))
}

fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (address, network, all) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(u32::from(address)), u128::from(u32::from(network)), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (u128::from(address), u128::from(network), 128),
        _ => return false,
    };
    (address ^ network).checked_shr(all - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcptop::{CgroupId, ConnectionKey, KernelTime, Process};

    fn record() -> ConnectionRecord {
        let key = ConnectionKey::new(Protocol::Tcp, [10, 1, 2, 3].into(), 43210, [192, 0, 2, 7].into(), 443);
        let mut record = ConnectionRecord::new(key, KernelTime(1));
        (record.owner, record.role) = (Some(Process::new(812, "Curl")), Some(Role::Client));
        record.tcp_state = Some(TcpState::Established);
        // No cgroup has this id, so that its name is the number.
        record.owner.as_mut().unwrap().cgroup_id = CgroupId::new(u64::MAX / 2);
        record
    }

    #[test]
    fn all_terms_must_pass() {
        let passes = |text: &str| Filter::new(text).passes(&record());
        for text in
            ["", "curl", "CUR 443", "pid:812", "port:443", "port:43210", "host:10.0.0.0/8", "host:192.0.2.7"]
        {
            assert!(passes(text), "{text}");
        }
        for text in [
            "state:est",
            "proto:tcp dir:out",
            "~^tcp.*curl",
            "host:0.0.0.0/0",
            "192.0.2",
            "local:10.0.0.0/8",
            "!remote:10.0.0.0/8",
            "!wget",
            "cgroup:922337203685477",
        ] {
            assert!(passes(text), "{text}");
        }
        for text in [
            "wget",
            "curl pid:813",
            "port:44",
            "host:11.0.0.0/8",
            "host:::/0",
            "dir:in",
            "proto:udp",
            "state:close",
            "state:failed",
            "remote:10.0.0.0/8",
            "!curl",
            "cgroup:docker",
        ] {
            assert!(!passes(text), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for text in [
            "pid:x",
            "port:70000",
            "host:10.0.0.0/33",
            "host:nowhere",
            "dir:up",
            "proto:sctp",
            "state:bogus",
            "!port:x",
            "~(",
        ] {
            let filter = Filter::new(text);
            assert_eq!((filter.wrong(), filter.passes(&record())), (Some(text), false));
        }
        assert_eq!(Filter::new("fe80::1 x:y").wrong(), None);
    }
}
