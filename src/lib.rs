// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shows which process exchanges how many bytes with which peer over TCP and UDP: as typed events, exact to the byte,
//! through eBPF. TCP connections also have their round-trip times and retransmissions.
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
//! - [`LinuxCollector`] loads the eBPF programs, and reads events on a thread of its own. It needs no async runtime.
//! - [`Poller`] is the same without a reader thread, for programs with a loop of their own. It has a descriptor to wait
//!   for.
//! - [`NetworkCollector`] is the trait for programs that also use other sources of events.
//! - [`CollectorEvent`] is a send or receive, a TCP state change, a begin or end of a connection, or a report of
//!   losses.
//! - [`ConnectionTable`] folds events into one [`ConnectionRecord`] per connection, with rates, and into one [`Sum`] per
//!   process, remote host, cgroup or port.
//! - [`Capabilities`] lists the features that work on this kernel, with the reasons for each gap.
//! - [`Stats`] counts the delivered events, and the lost events by kind and place.
//!
//! # What the numbers mean
//! - Bytes are payload. *Out* counts the bytes that the kernel accepted from the process. *In* counts the bytes that
//!   the process consumed. A peek counts nothing. sendfile, splice and zero-copy count like other calls.
//! - TCP totals are computed from the kernel's own `struct tcp_sock`. So they are also complete for connections that
//!   are older than the tracer. Each transfer carries the total beside the new bytes, so a lost event loses no bytes.
//! - The owner of a connection is never guessed: see [`Provenance`].
//!
//! # Requirements
//! Linux 5.8 or later on x86_64, or 5.12 on arm64, with BTF. Tested on 5.10, 6.1, 6.12, 6.18 and 7.3, and 6.12 on arm64.
//!
//! Run as root, or with CAP_BPF and CAP_PERFMON. Some features need more:
//!
//! | capability | for |
//! |---|---|
//! | CAP_NET_ADMIN | tracepoint backend: peers of unconnected UDP sockets, ends of UDP sockets |
//! | CAP_SYS_ADMIN | existing connections of other network namespaces |
//! | CAP_SYS_PTRACE | the network namespaces of other users' processes |
//! | CAP_SYS_ADMIN | kprobes on Debian's kernels, while the sysctl kernel.perf_event_paranoid is above 2 |
//! | CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH | owners of existing connections, if they come from /proc |
//! | CAP_SYS_RESOURCE | before Linux 5.11: to raise RLIMIT_MEMLOCK, against which maps count; libbpf does this |
//!
//! # Features
//! - `serde`: `Serialize` and `Deserialize` for events, records and statistics, `Serialize` for capabilities.
//! - `vendored`: builds libelf and zlib from source.
//! - `static`: links libelf and zlib statically.
//!
//! The library never prints. Messages beyond errors go to the [`log`] façade.
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

/// The crate of the channels in which events come.
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
    Lost, Opened, Retransmit, StateChange, Totals, Transfer,
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

/// Decodes a record of the kernel side, for this crate's benchmarks. Not a part of the interface.
#[doc(hidden)]
pub fn decode(record: &[u8]) -> Option<CollectorEvent> {
    decode::event(record).ok()
}

/// The examples in the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
