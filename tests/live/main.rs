// SPDX-License-Identifier: MIT OR Apache-2.0
//! Live tests: real sockets, real kernels. Every expected number is one that the test itself moved or that the kernel
//! told it. They need root; one at a time (`--test-threads=1`), because some look at all of the kernel's BPF programs.
//! `TCPTOP_TEST_BACKEND` names the backend under test, `TCPTOP_TEST_CLI` the example program, beside
//! which the small examples are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "a test that cannot go on shall say where"
)]

mod audit;
mod cgroups;
mod cli;
mod collector;
mod connecting;
mod crowds;
mod datagrams;
mod degraded;
mod embed;
mod ends;
mod examples;
mod existing;
mod fault_injection;
mod filters;
mod foreign;
mod handover;
mod harmless;
mod harness;
mod hidden;
mod identity;
mod intervals;
mod kernel;
mod lifecycle;
mod listeners;
mod misses;
mod namespaces;
mod net;
mod once;
mod owner;
mod paths;
mod peers;
mod poller;
mod reasons;
mod redirected;
mod retransmits;
mod rewriter;
mod scenarios;
mod soak;
mod storm;
mod tcp;
mod udp;
mod unsent;
mod vanished;
mod wraps;
