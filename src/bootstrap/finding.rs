// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is told about the way in which connections were found.

use crate::capabilities::{Bootstrap, Capabilities, Feature, Visibility};

/// How connections are found, and what stands in the way of more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(super) way: Bootstrap,
    /// Why it is not a better way, and what was left out on this one.
    pub(super) limits: Vec<String>,
}

impl Finding {
    pub(super) fn new(way: Bootstrap, limits: impl IntoIterator<Item = String>) -> Self {
        Self { way, limits: limits.into_iter().collect() }
    }

    pub(crate) fn tell(&self, capabilities: &mut Capabilities) {
        let by_proc = (self.way == Bootstrap::Procfs).then_some("out of /proc, without totals");
        let limits: Vec<&str> = by_proc.into_iter().chain(self.limits.iter().map(String::as_str)).collect();
        let visibility =
            if limits.is_empty() { Visibility::Exact } else { Visibility::Limited(limits.join("; ")) };
        capabilities.bootstrap = self.way;
        capabilities.set(Feature::Existing, visibility);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(way: Bootstrap, limits: &[&str]) -> (Bootstrap, String) {
        let mut can = Capabilities::of_nothing();
        Finding::new(way, limits.iter().map(|&limit| limit.into())).tell(&mut can);
        (can.bootstrap, can.visibility(Feature::Existing).to_string())
    }

    #[test]
    fn only_sock_diag_without_limits_is_exact() {
        use Bootstrap::{Procfs, SockDiag};
        assert_eq!(told(SockDiag, &[]), (SockDiag, "exact".into()));
        assert_eq!(told(SockDiag, &["a", "b"]), (SockDiag, "limited: a; b".into()));
        assert_eq!(told(Procfs, &[]), (Procfs, "limited: out of /proc, without totals".into()));
        assert_eq!(told(Procfs, &["a"]), (Procfs, "limited: out of /proc, without totals; a".into()));
    }
}
