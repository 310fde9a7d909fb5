// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways to find what exists already, tried one after the other, and what is told about that.

use crate::capabilities::{Bootstrap, Capabilities, Feature, Visibility};

/// How connections are found, and what stands in the way of more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(super) way: Bootstrap,
    /// Why each better way was not taken, and what was left out on this one.
    pub(super) limits: Vec<String>,
}

impl Finding {
    pub(crate) fn tell(&self, capabilities: &mut Capabilities) {
        let by_proc = (self.way == Bootstrap::Procfs).then_some("out of /proc, without totals");
        let limits: Vec<&str> = by_proc.into_iter().chain(self.limits.iter().map(String::as_str)).collect();
        let visibility =
            if limits.is_empty() { Visibility::Exact } else { Visibility::Limited(limits.join("; ")) };
        capabilities.bootstrap = self.way;
        capabilities.set(Feature::Existing, visibility);
    }
}

/// A way, and what it finds, or why it cannot be taken.
pub(super) type Attempt<'a, T> = (Bootstrap, &'a dyn Fn() -> Result<T, String>);

/// What the first attempt that works has found, of the wanted way and those after it; none if that leaves /proc, for
/// which there is no attempt.
pub(super) fn first_that_works<T>(wanted: Bootstrap, attempts: [Attempt<'_, T>; 2]) -> (Option<T>, Finding) {
    let mut limits = Vec::new();
    for (way, attempt) in attempts.into_iter().filter(|(way, _)| *way >= wanted) {
        match attempt() {
            Ok(found) => return (Some(found), Finding { way, limits }),
            Err(reason) => limits.push(reason),
        }
    }
    (None, Finding { way: Bootstrap::Procfs, limits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Bootstrap::{Iterators, Procfs, SockDiag};

    /// What is found if these ways work, and the limits that are told.
    fn told(
        wanted: Bootstrap,
        iterators: bool,
        sock_diag: bool,
    ) -> (Option<&'static str>, Bootstrap, String) {
        let answer = |works: bool, name: &'static str| works.then_some(name).ok_or(format!("no {name}"));
        let attempts: [Attempt<'_, _>; 2] =
            [(Iterators, &|| answer(iterators, "iterators")), (SockDiag, &|| answer(sock_diag, "sock_diag"))];
        let (found, finding) = first_that_works(wanted, attempts);
        let mut can = Capabilities::of_nothing();
        finding.tell(&mut can);
        (found, can.bootstrap, can.visibility(Feature::Existing).to_string())
    }

    #[test]
    fn each_way_that_does_not_work_is_followed_by_the_next_and_named() {
        let exact = "exact".to_owned();
        assert_eq!(told(Iterators, true, true), (Some("iterators"), Iterators, exact.clone()));
        let without_iterators = "limited: no iterators".to_owned();
        assert_eq!(told(Iterators, false, true), (Some("sock_diag"), SockDiag, without_iterators));
        let with_neither = "limited: out of /proc, without totals; no iterators; no sock_diag".to_owned();
        assert_eq!(told(Iterators, false, false), (None, Procfs, with_neither));
        assert_eq!(told(SockDiag, true, true), (Some("sock_diag"), SockDiag, exact));
    }

    #[test]
    fn no_better_way_is_tried_than_the_wanted_one() {
        let without = "limited: out of /proc, without totals; no sock_diag".to_owned();
        assert_eq!(told(SockDiag, true, false), (None, Procfs, without));
        let as_wanted = "limited: out of /proc, without totals".to_owned();
        assert_eq!(told(Procfs, true, true), (None, Procfs, as_wanted));
    }
}
