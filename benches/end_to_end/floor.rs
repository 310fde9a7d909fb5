// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that do nothing, or count and do nothing else, at the hooks of a backend: the least that any tracer with these
//! hooks costs, and the least that one costs which keeps an account of each socket.

use crate::object;
use libbpf_rs::{Link, Object};
use tcptop::Backend;

/// They are attached while this is there.
pub(crate) struct Floor {
    _links: Vec<Link>,
    _object: Object,
}

impl Floor {
    /// `programs`: `nothing` or `counting`.
    pub(crate) fn attach(programs: &str, backend: Backend) -> Self {
        let mut open = object::open(programs);
        for mut program in open.progs_mut() {
            let name = program.name().to_string_lossy();
            let wanted = name.starts_with("base_") || name.starts_with(backend.as_str());
            program.set_autoload(wanted);
        }
        let object = open.load().expect("a backend's hooks are there where it runs");
        let loaded = object.progs_mut().filter(|program| program.autoload());
        let links = loaded.map(|program| program.attach().expect("it is loaded")).collect();
        Self { _links: links, _object: object }
    }
}
