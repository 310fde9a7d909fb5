// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this program gives up: at first what it never needs, and once it traces, in the threads that talk to the user, all.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetError, RulesetStatus};

/// For tracing and the search for existing connections; see docs/privileges.md.
const NEEDED: [Capability; 7] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYS_RESOURCE,
];

/// Keeps only what is needed, in this thread and those that it starts from now on.
pub(crate) fn keep_needed() -> Result<(), CapsError> {
    keep(&NEEDED.into_iter().collect())
}

/// Gives up all capabilities, and the right to write files and to execute programs where the kernel has Landlock: in this
/// thread and those that it starts from now on. Those of the tracer keep what they have.
pub(crate) fn give_up() -> Result<(), Box<dyn std::error::Error>> {
    keep(&CapsHashSet::new())?;
    forbid_writes()?;
    Ok(())
}

/// The effective ones first: they must be among the permitted ones.
fn keep(wanted: &CapsHashSet) -> Result<(), CapsError> {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let kept = caps::read(None, set)?.intersection(wanted).copied().collect();
        caps::set(None, set, &kept)?;
    }
    Ok(())
}

/// Files that are open stay as they are. Without the right to make ioctl() calls, which came with the fifth version: the view asks
/// the terminal for its size.
fn forbid_writes() -> Result<RulesetStatus, RulesetError> {
    let rights = AccessFs::from_write(ABI::V4) | AccessFs::Execute;
    Ok(Ruleset::default().handle_access(rights)?.create()?.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::process::Command;
    use std::thread;

    /// In a thread of its own, which takes the restriction with it.
    #[test]
    fn what_is_forbidden_fails_and_the_rest_goes_on() {
        let path = std::env::temp_dir().join(format!("tcptop-forbidden-{}", std::process::id()));
        let file = path.clone();
        let (status, made, read, run) = thread::spawn(move || {
            keep(&CapsHashSet::new()).unwrap();
            let status = forbid_writes().unwrap();
            let read = fs::read_to_string("/proc/self/status").is_ok();
            (status, File::create(file).is_ok(), read, Command::new("/bin/true").status().is_ok())
        })
        .join()
        .unwrap();
        // Nothing is there if it was forbidden.
        let _ = fs::remove_file(path);
        assert!(read);
        match status {
            RulesetStatus::NotEnforced => {
                assert_eq!((made, run), (true, true), "this kernel has no Landlock")
            }
            _ => assert_eq!((made, run), (false, false), "{status:?}"),
        }
    }

    #[test]
    fn only_what_is_needed_is_kept() {
        let (before, after) = thread::spawn(|| {
            let before = caps::read(None, CapSet::Effective).unwrap();
            keep_needed().unwrap();
            (before, caps::read(None, CapSet::Effective).unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(after, before.into_iter().filter(|cap| NEEDED.contains(cap)).collect());
    }
}
