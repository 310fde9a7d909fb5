// SPDX-License-Identifier: MIT OR Apache-2.0
//! Filters by cgroup: one alone, or one with all below it.

use crate::harness::{Trace, builder};
use crate::net::{Cgroup, Child, hear, port, recv, send, tcp_pair, tell};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use tcptop::{CgroupId, CollectorEvent, LinuxCollectorBuilder};

/// A process in a cgroup of its own, with a connection that exists. Each time it is told so, it makes another one.
fn work(parent: &mut UnixStream, group: &Cgroup) {
    group.enter();
    let _existing = tcp_pair();
    tell(parent, 0);
    while hear(parent) == 1 {
        let (client, server) = tcp_pair();
        assert_eq!((send(&client, &[1; 10], 0), recv(&server, 10, 0)), (10, 10));
        tell(parent, port(&client).into());
        tell(parent, port(&server).into());
    }
}

fn worker(group: &Cgroup) -> Child {
    let mut child = Child::fork(|parent| work(parent, group));
    child.hear();
    child
}

/// Cgroups below each other and beside each other, with a process in each.
struct Groups {
    workers: Vec<(&'static str, Child)>,
    /// Those that are below others come last, and are dropped first.
    groups: Vec<(&'static str, Cgroup)>,
}

impl Groups {
    fn new(names: &[&'static str]) -> Self {
        let mut all = Self { workers: Vec::new(), groups: Vec::new() };
        names.iter().for_each(|name| all.add(name));
        all
    }

    fn add(&mut self, name: &'static str) {
        let group = Cgroup::named(name);
        self.workers.push((name, worker(&group)));
        self.groups.push((name, group));
    }

    fn id(&self, name: &str) -> CgroupId {
        self.groups.iter().find(|(known, _)| *known == name).unwrap().1.id()
    }

    /// The names of those whose processes are among these.
    fn named(&self, pids: &BTreeSet<u32>) -> Vec<&'static str> {
        let wanted = self.workers.iter().filter(|(_, worker)| pids.contains(&worker.pid));
        wanted.map(|(name, _)| *name).collect()
    }

    /// All make a connection. The names of those of which events tell, and of those whose connections are found to exist;
    /// `last` is one of them, and the last one to make its connection.
    fn seen(&mut self, builder: LinuxCollectorBuilder, last: &str) -> [Vec<&'static str>; 2] {
        let mut trace = Trace::with(builder);
        self.seen_by(&mut trace, last)
    }

    fn seen_by(&mut self, trace: &mut Trace, last: &str) -> [Vec<&'static str>; 2] {
        let place = self.workers.iter().position(|(name, _)| *name == last).unwrap();
        let last = self.workers.remove(place);
        self.workers.push(last);
        let made = self.workers.iter_mut().map(|(_, worker)| {
            worker.tell(1);
            (worker.hear() as u16, worker.hear() as u16)
        });
        let (client, server) = made.last().unwrap();
        assert_eq!(trace.closed(client, server).bytes_out, 10);
        let owners = trace.seen.iter().filter_map(CollectorEvent::connection).filter_map(|info| info.owner);
        let by_events = owners.map(|owner| owner.pid).collect();
        let existing = trace.collector.bootstrap_existing().unwrap();
        let found = existing.iter().filter_map(|row| row.pid()).collect();
        [self.named(&by_events), self.named(&found)]
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.workers.clear();
        while self.groups.pop().is_some() {}
    }
}

fn both<'a>(names: &[&'a str]) -> [Vec<&'a str>; 2] {
    [names.to_vec(), names.to_vec()]
}

/// 93: a cgroup with all that is below it, also what is made after the start; beside it others, in one trace and one by one.
#[test]
fn a_cgroup_tree_is_all_below_it_and_nothing_beside_it() {
    let mut groups = Groups::new(&["-beside", "-top", "-top/a", "-top/a/b"]);
    let mut trace = Trace::with(builder().cgroup_tree(groups.id("-top")));
    assert_eq!(groups.seen_by(&mut trace, "-top/a/b"), both(&["-top", "-top/a", "-top/a/b"]));
    groups.add("-top/a/later");
    trace.seen.clear();
    let all = both(&["-top", "-top/a", "-top/a/b", "-top/a/later"]);
    assert_eq!(groups.seen_by(&mut trace, "-top/a/later"), all);
    trace.stop();

    let of_two = builder().cgroup_tree(groups.id("-top/a")).cgroup(groups.id("-beside"));
    let all = both(&["-top/a", "-top/a/b", "-top/a/later", "-beside"]);
    assert_eq!(groups.seen(of_two, "-beside"), all);
    let alone = builder().cgroup(groups.id("-top")).cgroup(groups.id("-top/a/b"));
    assert_eq!(groups.seen(alone, "-top/a/b"), both(&["-top", "-top/a/b"]));
}
