// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sockets there were at a moment.

use crate::model::{KernelTime, NetNs, Protocol};
use foldhash::HashSet;

/// The ids of all sockets that the kernel has listed, as [`LinuxCollector::survey`](crate::LinuxCollector::survey) has
/// asked for, to [reconcile](crate::ConnectionTable::reconcile) a table with.
#[derive(Clone, Debug)]
#[must_use = "a table learns of lost ends by `reconcile`"]
pub struct Survey {
    began: KernelTime,
    /// Whose sockets have the same ids in events.
    protocols: Vec<Protocol>,
    namespaces: HashSet<NetNs>,
    sockets: HashSet<u64>,
}

impl Survey {
    pub(crate) fn new(began: KernelTime, protocols: Vec<Protocol>) -> Self {
        Self { began, protocols, namespaces: HashSet::default(), sockets: HashSet::default() }
    }

    /// All sockets of this network namespace.
    pub(crate) fn add(&mut self, netns: NetNs, sockets: impl IntoIterator<Item = u64>) {
        self.namespaces.insert(netns);
        self.sockets.extend(sockets);
    }

    /// When it began.
    pub fn began(&self) -> KernelTime {
        self.began
    }

    /// Whether a socket of this protocol and network namespace would be among those that it [shows](Self::shows). Not where
    /// the namespace could not be entered or not be listed whole, and not where events have other ids than the kernel.
    pub fn covers(&self, protocol: Protocol, netns: NetNs) -> bool {
        self.protocols.contains(&protocol) && self.namespaces.contains(&netns)
    }

    /// Whether the socket with this id was listed.
    pub fn shows(&self, socket: u64) -> bool {
        self.sockets.contains(&socket)
    }
}
