// SPDX-License-Identifier: MIT OR Apache-2.0
//! The outcome of a search: the source of the connections, and its limits.

use crate::capabilities::{Bootstrap, Visibility};

/// The source of existing connections, and the limits of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(super) way: Bootstrap,
    /// Why no better source was used, and what was left out.
    pub(super) limits: Vec<String>,
}

impl Outcome {
    pub(super) fn new(way: Bootstrap, limits: impl IntoIterator<Item = String>) -> Self {
        Self { way, limits: limits.into_iter().collect() }
    }

    pub(crate) fn way(&self) -> Bootstrap {
        self.way
    }

    /// How well existing connections are seen.
    pub(crate) fn visibility(&self) -> Visibility {
        let by_proc = (self.way == Bootstrap::Procfs).then_some("out of /proc, without totals");
        let limits: Vec<&str> = by_proc.into_iter().chain(self.limits.iter().map(String::as_str)).collect();
        if limits.is_empty() { Visibility::Exact } else { Visibility::Limited(limits.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(way: Bootstrap, limits: &[&str]) -> String {
        Outcome::new(way, limits.iter().map(|&limit| limit.into())).visibility().to_string()
    }

    #[test]
    fn only_sock_diag_without_limits_is_exact() {
        use Bootstrap::{Procfs, SockDiag};
        assert_eq!(seen(SockDiag, &[]), "exact");
        assert_eq!(seen(SockDiag, &["a", "b"]), "limited: a; b");
        assert_eq!(seen(Procfs, &[]), "limited: out of /proc, without totals");
        assert_eq!(seen(Procfs, &["a"]), "limited: out of /proc, without totals; a");
    }
}
