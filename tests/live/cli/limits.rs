// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is not found of existing connections is said, after the search.

use super::{json, path, tcptop};
use crate::harness::{Trace, wanted_backend};
use crate::net::{Child, enter_own_network, hear, tcp_pair, tell};
use std::process::{Command, Output};
use tcptop::Backend;

/// As an ordinary user with the capabilities that the documentation names, and nothing else.
fn as_a_user(arguments: &[&str]) -> Output {
    // The user nobody may not enter the place of the build.
    let copy = std::env::temp_dir().join(format!("tcptop-user-{}", std::process::id()));
    std::fs::copy(path(), &copy).unwrap();
    let mut command = Command::new("setpriv");
    let which = "-all,+bpf,+perfmon,+net_admin";
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", which, "--ambient-caps", which]).arg(&copy).args(arguments);
    if let Some(backend) = wanted_backend() {
        command.args(["--backend", backend.as_str()]);
    }
    let output = command.output().unwrap();
    std::fs::remove_file(copy).unwrap();
    output
}

/// A user cannot enter the namespaces of others, nor see which they are: rows are missing, and nobody may think that this
/// were all.
#[test]
fn a_user_learns_what_is_hidden_from_him() {
    if Trace::start().backend() == Backend::Kprobe {
        // Debian's kernels want more of who attaches kprobes.
        return;
    }
    let mut other = Child::fork(|parent| {
        enter_own_network();
        let _pair = tcp_pair();
        tell(parent, 1);
        hear(parent);
    });
    other.hear();
    let hidden = "processes whose network namespace is not shown: ";
    let output = as_a_user(&["--json", "--duration", "0.5"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let start =
        json(text.lines().next().unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&output.stderr))));
    let existing = start["capabilities"]["features"]["existing"].as_str().unwrap();
    assert!(existing.starts_with("limited: ") && existing.contains(hidden), "{existing}");
    let output = as_a_user(&["--duration", "0.5"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("  existing: limited: ") && line.contains(hidden)),
        "{text}"
    );
    other.tell(1);
    other.wait();
}

#[test]
fn what_was_not_searched_for_is_not_called_exact() {
    let output = tcptop(&["--json", "--duration", "0.5", "--no-bootstrap"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let start = json(text.lines().next().unwrap());
    let existing = start["capabilities"]["features"]["existing"].as_str().unwrap();
    assert!(existing.contains("not searched for yet"), "{existing}");
}
