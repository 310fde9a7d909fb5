// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which process exchanges how many bytes with whom over TCP and UDP, and how well each connection does: as typed
//! events, exact to the byte, through eBPF.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use tcptop::{ConnectionTable, KernelTime, LinuxCollector};
//!
//! let (mut collector, events) = LinuxCollector::builder().spawn()?;
//! let mut table = ConnectionTable::new().linger(Duration::from_secs(60));
//! table.merge_bootstrap(collector.bootstrap_existing()?);
//! let end = Instant::now() + Duration::from_secs(10);
//! while let Ok(event) = events.recv_deadline(end) {
//!     table.apply(&event);
//! }
//! for row in table.snapshot(KernelTime::now()) {
//!     let name = row.process_name().unwrap_or_default();
//!     let name = name.escaped();
//!     println!("{} {name}: {} in, {} out, rtt {:?}", row.key, row.bytes_in, row.bytes_out, row.rtt);
//! }
//! collector.stop()?;
//! # Ok::<(), tcptop::Error>(())
//! ```
//!
//! # What is where
//! - [`LinuxCollector`] loads the eBPF programs and reads what they report on a thread of its own; [`NetworkCollector`]
//!   is what it implements. It is blocking and needs no async runtime. For programs with a loop of their own there is
//!   [`Poller`], which has a descriptor to wait for instead of the thread.
//! - [`CollectorEvent`] is what comes out of the channel: sends and receives, TCP state changes, ends, losses.
//! - [`ConnectionTable`] folds events into one [`ConnectionRecord`] per connection, with rates, and into one [`Sum`] per
//!   process, remote host, cgroup or port.
//! - [`Capabilities`] says what can be seen on this kernel and why not more; [`Stats`] counts what was delivered and
//!   what was lost, and where.
//!
//! # What the numbers mean
//! - Bytes are payload: *out* is what the kernel accepted from the program, not what the program asked for; *in* is what
//!   the program consumed. Peeking counts nothing. sendfile, splice and zero-copy count like any other way.
//! - TCP totals are the kernel's own, computed from `struct tcp_sock`, so they are complete for connections that are
//!   older than the tracer, too. Each event carries the cumulative total beside what is new: a lost event loses no bytes.
//! - The owner of a connection is never guessed: see [`Provenance`].
//!
//! # Requirements
//! Linux 5.8 or later with BTF, on x86_64 or arm64; root, or the capabilities CAP_BPF, CAP_PERFMON and, for the
//! tracepoint backend's view of unconnected UDP sockets, CAP_NET_ADMIN. (For kprobes kernels of Debian also want
//! CAP_SYS_ADMIN while the sysctl kernel.perf_event_paranoid is above 2. Existing connections of other network namespaces
//! take CAP_SYS_ADMIN, their owners out of /proc CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Before Linux 5.11 maps count
//! against RLIMIT_MEMLOCK, which libbpf raises if it may: CAP_SYS_RESOURCE.) Tested on 5.10, 6.1, 6.12, 6.18 and 7.
//!
//! # Features
//! - `serde`: `Serialize` and `Deserialize` for events, records and statistics, `Serialize` for capabilities.
//! - `vendored`: builds libelf and zlib from source; `static`: links them statically.
//!
//! The library never prints: what it has to say beyond errors goes to the [`log`] façade.
//!
//! # Pages
//! [Embedding](_docs::embedding), [numbers](_docs::numbers), [backends](_docs::backends), [limits](_docs::limits),
//! [privileges](_docs::privileges), [JSON](_docs::json), [troubleshooting](_docs::troubleshooting),
//! [design](_docs::design).

#[cfg(doc)]
#[path = "docs.rs"]
pub mod _docs;
mod bootstrap;
mod builder;
mod capabilities;
mod clock;
mod collector;
mod config;
mod decode;
mod error;
mod event;
mod forks;
mod host;
mod initial;
mod kernel;
mod model;
mod mounts;
mod output;
mod plan;
mod poller;
mod reader;
mod record;
mod run;
mod self_test;
mod shared;
mod sink;
mod stats;
mod sums;
mod survey;
mod table;
mod threads;
mod tracer;
mod wire;

/// The channels in which events come.
pub use crossbeam_channel;

pub use builder::LinuxCollectorBuilder;
pub use capabilities::{
    Backend, Bootstrap, Capabilities, Feature, SelfCheck, SelfTestResult, Unavailable, Visibility,
};
pub use collector::{LinuxCollector, NetworkCollector};
pub use config::{Granularity, WhenFull};
pub use error::{Error, Result};
pub use event::{
    CloseReason, Closed, CollectorEvent, ConnectFailed, ConnectFailure, ConnectionInfo, EventKind, LossPlace,
    Lost, Opened, StateChange, Totals, Transfer,
};
pub use model::{
    AddressFamily, CgroupId, ConnectionKey, Direction, KernelTime, NetNs, ParseError, Process, ProcessName,
    Protocol, Provenance, Role, TcpState,
};
pub use output::EventHandler;
pub use poller::Poller;
pub use record::ConnectionRecord;
pub use run::Events;
pub use stats::{LossTable, Stats};
pub use sums::{Group, GroupBy, Sum};
pub use survey::Survey;
pub use table::ConnectionTable;

/// For this crate's benchmarks: the event in a record of its own kernel side. No part of the interface.
#[doc(hidden)]
pub fn decode(record: &[u8]) -> Option<CollectorEvent> {
    decode::event(record).ok()
}

/// The examples in the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
