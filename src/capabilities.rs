// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features that a running collector sees on this kernel, and the reasons for each gap.

use crate::model::{display_as_str, from_str_by_name};
use std::fmt;
use std::net::IpAddr;

/// A family of kernel hooks.
///
/// All backends use `sock:inet_sock_set_state` and two more TCP tracepoints, which give the TCP totals. The backends
/// differ in how they see calls and UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Backend {
    /// fentry and fexit trampolines on the send and receive functions. This backend sees most and costs least.
    Fentry,
    /// kprobes at the entry of the same functions.
    Kprobe,
    /// Tracepoints `sock:sock_send_length` and `sock:sock_recv_length` (Linux 6.3 and later), with cgroup hooks. This
    /// backend works where trampolines and kprobes are forbidden.
    Tracepoint,
}

impl Backend {
    /// All backends, best first.
    pub const ALL: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Tracepoint];

    /// Lower-case name: `fentry`, `kprobe` or `tracepoint`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

from_str_by_name!(Backend, Self::ALL, "backend", "fentry, kprobe or tracepoint");
from_str_by_name!(Bootstrap, [Self::SockDiag, Self::Procfs], "bootstrap", "sock_diag or procfs");

display_as_str!(Backend, Bootstrap, Feature);

/// A way to find existing connections, best first. These are connections that are older than the tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Bootstrap {
    /// sock_diag(7), if the kernel has INET_DIAG: it has totals, states and socket ids.
    ///
    /// A BPF iterator over the files of all processes finds the owners. If there is no iterator, a scan of /proc finds
    /// them.
    #[default]
    SockDiag,
    /// The socket tables and processes in /proc: always there, but without totals and socket ids.
    Procfs,
}

impl Bootstrap {
    /// Lower-case name: `sock_diag` or `procfs`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SockDiag => "sock_diag",
            Self::Procfs => "procfs",
        }
    }
}

/// The features that the running backend sees, how well, and why not better.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Capabilities {
    backend: Backend,
    kernel: String,
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_map"))]
    features: Vec<(Feature, Visibility)>,
    rejected_backends: Vec<Unavailable<Backend>>,
    missing_programs: Vec<Unavailable<String>>,
    bootstrap: Bootstrap,
    self_test: Vec<SelfCheck>,
}

#[cfg(feature = "serde")]
fn as_map<S: serde::Serializer>(
    features: &[(Feature, Visibility)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(features.iter().map(|(feature, visibility)| (feature, visibility)))
}

impl Capabilities {
    /// The capabilities of programs that run, before any self-test or search.
    pub(crate) fn new(
        backend: Backend,
        kernel: String,
        features: Vec<(Feature, Visibility)>,
        rejected_backends: Vec<Unavailable<Backend>>,
        missing_programs: Vec<Unavailable<String>>,
    ) -> Self {
        let (bootstrap, self_test) = (Bootstrap::default(), Vec::new());
        Self { backend, kernel, features, rejected_backends, missing_programs, bootstrap, self_test }
    }

    /// The same with the results of a self-test. A failed check adds a limit to its feature; no check removes one.
    pub(crate) fn with_self_test(mut self, checks: Vec<SelfCheck>) -> Self {
        for check in &checks {
            let SelfTestResult::Failed(why) = &check.result else { continue };
            log::error!("{check}");
            let finding = format!("the self-test over {}: {why}", check.address);
            self.set(check.feature, self.visibility(check.feature).clone().within(&finding));
        }
        Self { self_test: checks, ..self }
    }

    /// The same with the expected way to find existing connections.
    pub(crate) fn with_existing(mut self, way: Bootstrap, visibility: Visibility) -> Self {
        self.set_existing(way, visibility);
        self
    }

    /// Records how a search has found existing connections.
    pub(crate) fn set_existing(&mut self, way: Bootstrap, visibility: Visibility) {
        self.bootstrap = way;
        self.set(Feature::Existing, visibility);
    }

    fn set(&mut self, feature: Feature, visibility: Visibility) {
        match self.features.iter_mut().find(|(known, _)| *known == feature) {
            Some((_, known)) => *known = visibility,
            None => self.features.push((feature, visibility)),
        }
    }

    /// The backend that runs.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Kernel release (`uname -r`).
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// How well the backend sees this feature.
    pub fn visibility(&self, feature: Feature) -> &Visibility {
        self.features().find(|(known, _)| *known == feature).map_or(&Visibility::Unseen, |(_, v)| v)
    }

    /// All features, and how well the backend sees each.
    pub fn features(&self) -> impl Iterator<Item = (Feature, &Visibility)> {
        self.features.iter().map(|(feature, visibility)| (*feature, visibility))
    }

    /// The better backends that were tried first, and why each does not run.
    pub fn rejected_backends(&self) -> &[Unavailable<Backend>] {
        &self.rejected_backends
    }

    /// The programs of the running backend that could not be loaded or attached, and why. Names are those in `src/bpf`.
    pub fn missing_programs(&self) -> &[Unavailable<String>] {
        &self.missing_programs
    }

    /// How the latest [`bootstrap_existing`](crate::LinuxCollector::bootstrap_existing) has found existing connections.
    ///
    /// Before the first search it is the expected way. The limit of [`Feature::Existing`] says why there is no better
    /// way.
    pub fn bootstrap(&self) -> Bootstrap {
        self.bootstrap
    }

    /// The results of the self-test; empty without [`self_test`](crate::LinuxCollectorBuilder::self_test) or with a
    /// filter.
    pub fn self_test(&self) -> &[SelfCheck] {
        &self.self_test
    }
}

/// One check of the self-test: did events report the bytes that it moved over loopback?
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SelfCheck {
    /// The feature that was tested.
    pub feature: Feature,
    /// The loopback address that was used, of IPv4 or IPv6.
    pub address: IpAddr,
    /// The result.
    pub result: SelfTestResult,
}

impl fmt::Display for SelfCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}: {}", self.feature, self.address, self.result)
    }
}

/// The result of one check of the self-test.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum SelfTestResult {
    /// Events reported every byte.
    Passed,
    /// Bytes are missing; the text says how many. It becomes a limit of the feature ([`Visibility::Limited`]), unless
    /// the feature is [`Visibility::Unseen`] anyway.
    Failed(String),
    /// The check could not run, for instance because this machine has no IPv6. The text says why.
    Skipped(String),
}

impl SelfCheck {
    /// Is the result [`SelfTestResult::Failed`]?
    pub fn has_failed(&self) -> bool {
        matches!(self.result, SelfTestResult::Failed(_))
    }
}

impl fmt::Display for SelfTestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

/// A kind of information that a collector can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Feature {
    /// TCP totals in both directions.
    TcpTotals,
    /// TCP sends, reported when they happen, with the process that made them.
    TcpSend,
    /// TCP receives, reported when they happen, with the process that made them.
    TcpRecv,
    /// Bytes of UDP datagrams that a process sent.
    UdpSend,
    /// Bytes of UDP datagrams that a process consumed.
    UdpRecv,
    /// The destination of datagrams from unconnected UDP sockets.
    UdpSendPeer,
    /// The source of datagrams to unconnected UDP sockets.
    UdpRecvPeer,
    /// The end of UDP sockets.
    UdpClose,
    /// TCP connections that could not be established.
    ConnectFailure,
    /// The owner of an accepted connection before its first use.
    AcceptOwner,
    /// Socket ids are the kernel's socket cookies.
    SocketCookie,
    /// Existing connections with their totals and owners, in all network namespaces. Limited until
    /// [`bootstrap_existing`](crate::NetworkCollector::bootstrap_existing) has searched for them.
    Existing,
}

impl Feature {
    /// All features.
    pub const ALL: [Self; 12] = [
        Self::TcpTotals,
        Self::TcpSend,
        Self::TcpRecv,
        Self::UdpSend,
        Self::UdpRecv,
        Self::UdpSendPeer,
        Self::UdpRecvPeer,
        Self::UdpClose,
        Self::ConnectFailure,
        Self::AcceptOwner,
        Self::SocketCookie,
        Self::Existing,
    ];

    /// Lower-case name, such as `udp_recv_peer`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TcpTotals => "tcp_totals",
            Self::TcpSend => "tcp_send",
            Self::TcpRecv => "tcp_recv",
            Self::UdpSend => "udp_send",
            Self::UdpRecv => "udp_recv",
            Self::UdpSendPeer => "udp_send_peer",
            Self::UdpRecvPeer => "udp_recv_peer",
            Self::UdpClose => "udp_close",
            Self::ConnectFailure => "connect_failure",
            Self::AcceptOwner => "accept_owner",
            Self::SocketCookie => "socket_cookie",
            Self::Existing => "existing",
        }
    }
}

/// How well a feature is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Visibility {
    /// Exactly, on this kernel with this backend.
    Exact,
    /// With the limits that the text names.
    Limited(String),
    /// Not at all.
    Unseen,
}

impl Visibility {
    /// The same with one more limit. An unseen feature stays unseen.
    pub(crate) fn within(self, limit: &str) -> Self {
        match self {
            Self::Exact => Self::Limited(limit.into()),
            Self::Limited(known) => Self::Limited(format!("{known}; {limit}")),
            Self::Unseen => Self::Unseen,
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Limited(how) => write!(f, "limited: {how}"),
            Self::Unseen => f.write_str("unseen"),
        }
    }
}

/// A backend or a program that does not run here, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Unavailable<T> {
    /// The [`Backend`], or the name of the program.
    pub what: T,
    /// Why it does not run, as a text for people.
    pub reason: String,
}

impl<T> Unavailable<T> {
    pub(crate) fn new(what: T, reason: String) -> Self {
        Self { what, reason }
    }
}

impl<T: fmt::Display> fmt::Display for Unavailable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(features: &[(Feature, Visibility)]) -> Capabilities {
        Capabilities::new(Backend::Kprobe, "6.1.0".into(), features.to_vec(), Vec::new(), Vec::new())
    }

    fn failed(feature: Feature, address: [u8; 4], why: &str) -> SelfCheck {
        SelfCheck { feature, address: address.into(), result: SelfTestResult::Failed(why.into()) }
    }

    #[test]
    fn a_failed_check_adds_a_limit_and_removes_none() {
        use Visibility::{Exact, Limited, Unseen};
        let known = || Limited("counted at the start of the call".into());
        let before = [(Feature::TcpSend, Exact), (Feature::UdpSend, known()), (Feature::UdpRecv, Unseen)];
        let missed = before.each_ref().map(|(feature, _)| failed(*feature, [127, 0, 0, 1], "no bytes"));
        let can = capabilities(&before).with_self_test(missed.to_vec());
        let after: Vec<_> = before.iter().map(|(feature, _)| can.visibility(*feature).clone()).collect();
        let finding = "the self-test over 127.0.0.1: no bytes";
        let both = format!("counted at the start of the call; {finding}");
        assert_eq!(after, [Limited(finding.into()), Limited(both), Unseen]);
        assert_eq!(can.self_test, missed);
        let order: Vec<_> = can.features().map(|(feature, _)| feature).collect();
        assert_eq!(order, [Feature::TcpSend, Feature::UdpSend, Feature::UdpRecv], "each stays in its place");
    }

    #[test]
    fn the_limit_names_each_address_of_a_failed_check() {
        let can = capabilities(&[(Feature::UdpSend, Visibility::Exact)]).with_self_test(vec![
            failed(Feature::UdpSend, [127, 0, 0, 1], "a"),
            failed(Feature::UdpSend, [127, 0, 0, 2], "b"),
        ]);
        let text = can.visibility(Feature::UdpSend).to_string();
        assert_eq!(text, "limited: the self-test over 127.0.0.1: a; the self-test over 127.0.0.2: b");
    }

    #[test]
    fn a_passed_or_skipped_check_changes_nothing() {
        let results = [SelfTestResult::Passed, SelfTestResult::Skipped("no IPv6".into())];
        let check = |result| SelfCheck { feature: Feature::UdpSend, address: [127, 0, 0, 1].into(), result };
        let can = capabilities(&[(Feature::UdpSend, Visibility::Exact)])
            .with_self_test(results.map(check).to_vec());
        assert_eq!(can.visibility(Feature::UdpSend), &Visibility::Exact);
    }
}
