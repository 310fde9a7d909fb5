// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs that do nothing, or count and do nothing else, at the hooks of a backend: the least that any tracer with these
//! hooks costs, and the least that one costs which keeps an account of each socket, or tells of each call.

use crate::loads::{SECOND, pin};
use crate::object;
use libbpf_rs::{Link, MapCore, MapHandle, Object, RingBufferBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tcptop::Backend;

/// They are attached while this is there.
pub(crate) struct Floor {
    _links: Vec<Link>,
    _object: Object,
    _reader: Option<Reader>,
}

impl Floor {
    /// `programs`: `nothing`, `counting` or `writing`.
    pub(crate) fn attach(programs: &str, backend: Backend) -> Self {
        let mut open = object::open(programs);
        for mut program in open.progs_mut() {
            let name = program.name().to_string_lossy();
            let wanted = name.starts_with("base_") || name.starts_with(backend.as_str());
            program.set_autoload(wanted);
        }
        let object = open.load().expect("a backend's hooks are there where it runs");
        let records = object.maps().find(|map| map.name() == "records");
        let reader = records.map(|map| Reader::start(MapHandle::try_from(&map).expect("a map")));
        let loaded = object.progs_mut().filter(|program| program.autoload());
        let links = loaded.map(|program| program.attach().expect("it is loaded")).collect();
        Self { _links: links, _object: object, _reader: reader }
    }
}

/// Looks at a ring every few milliseconds, so that there is room in it.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(records: MapHandle) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            pin(SECOND);
            let mut builder = RingBufferBuilder::new();
            builder.add(&records, |_| 0).expect("a ring");
            let ring = builder.build().expect("memory");
            while !is_over.load(Ordering::Relaxed) {
                ring.consume_raw();
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
