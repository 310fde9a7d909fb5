// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tracer costs, end to end, and how fast it is: `cargo bench --bench end_to_end` as root.
//!
//! Traffic is slowed down by what is hooked into it. Each figure is the time per operation with the tracer to that
//! without, from slices of the same run that alternate, so that it does not matter how fast this machine is or what else
//! it does. Shown are the median of the slices' ratios and, in brackets, their quartiles.

#![allow(
    clippy::expect_used,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "a benchmark that cannot go on shall say where"
)]

mod delay;
mod diag;
mod example;
mod existing;
mod flood;
mod floor;
mod loads;
mod many;
mod object;
mod others;
mod programs;
mod ratio;
mod view;

use loads::{Churn, Load, PingPong, Stream, UdpBlast};
use std::time::Duration;
use tcptop::{Backend, Granularity, LinuxCollector};

type MakeLoad = fn() -> Box<dyn Load>;

/// Name, traffic, and what must be reached by default and with an event per call.
const LOADS: [(&str, MakeLoad, &str, &str); 4] = [
    ("1-byte TCP ping-pong, one core", || Box::new(PingPong::new()), "1.04", "1.10"),
    ("64-byte UDP blast, one core", || Box::new(UdpBlast::new()), "1.05", "1.11"),
    ("churn: connect, 1 byte each way, close", || Box::new(Churn::new()), "1.06", ""),
    ("64 KiB stream across cores", || Box::new(Stream::new()), "the noise", ""),
];

/// What is hooked in for comparison.
const FLOORS: [(&str, &str); 3] = [
    ("nothing", "programs that do nothing"),
    ("counting", "programs that only count"),
    ("writing", "programs that only tell of each call"),
];

const DEFAULT: Granularity = Granularity::Interval(Duration::from_millis(100));

fn main() {
    if std::env::args().nth(1).as_deref() == Some(existing::HOLD) {
        return existing::hold();
    }
    // As `cargo test --bench end_to_end` calls it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return object::compile_all();
    }
    // What cargo and other harnesses pass on: --bench, and a name to select by.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|part| name.contains(part.as_str()));
    loads::pin(loads::FIRST);
    let (collector, _) = LinuxCollector::builder().spawn().expect("tracing needs root");
    let backend = collector.capabilities().expect("it runs").backend();
    drop(collector);
    println!("backend {backend}\n{:<60} {:>22}   must reach", "what", "measured");
    for (name, load, by_default, per_call) in LOADS {
        for (mode, granularity, target) in
            [("default", DEFAULT, by_default), ("per call", Granularity::PerCall, per_call)]
        {
            let name = format!("{name}, {mode}");
            if is_wanted(&name) {
                let found = ratio::measure(load().as_mut(), granularity);
                println!("{name:<60} {:>22}   {target}", found.ratio.to_string());
                println!("    {:.2?} without it; {}", found.without, found.tool);
            }
        }
        for (programs, what) in FLOORS {
            let name = format!("{name}, {what}");
            if is_wanted(&name) {
                let found = ratio::floor(load().as_mut(), programs, backend);
                println!("{name:<60} {:>22}   a limit", found.to_string());
            }
        }
    }
    for (name, how) in
        [("delay, rare events", delay::rare as fn() -> delay::Delay), ("delay, many events", delay::many)]
    {
        if is_wanted(name) {
            println!("{name:<60} {:>22}   p99 5 ms", how().to_string());
        }
    }
    let idle = "the tracer without traffic";
    if is_wanted(idle) {
        println!("{idle:<60} {:>22}   nothing to measure", ratio::idle());
    }
    let under_load = "the tracer under load";
    if is_wanted(under_load) {
        let found = ratio::loaded(&mut UdpBlast::new(), 2);
        println!("{under_load:<60} {found:>22}   0.5 % at 350,000 calls/s");
    }
    let floods = [
        ("events folded, one by one", flood::single as fn() -> flood::Flood, "8 M/s, 100 ns"),
        ("events folded, in batches", flood::batches, "10 M/s, 15 ns"),
        ("events only handed out, in batches", flood::handed_out, "a limit"),
        ("their records only read", flood::only_read, "the limit"),
    ];
    for (name, how, target) in floods {
        if is_wanted(name) {
            println!("{name:<60} {:>22}   {target}", how().to_string());
        }
    }
    let crowd = "a record's way into the ring";
    if is_wanted(crowd) {
        many::print(crowd);
    }
    let (view, crowded) = ("live view, 1,000 connections", "live view, 100,000 connections");
    if is_wanted(view) {
        println!("{view:<60} {:>22}   3 %, 50 ms", view::cost());
    }
    if is_wanted(crowded) {
        let _crowd = existing::Crowd::new();
        println!("{crowded:<60} {:>22}   10 %, 80 MiB, 50 ms", view::cost());
    }
    let (find, memory) = ("100,000 sockets found", "100,000 connections, memory of the example");
    if is_wanted(find) || is_wanted(memory) {
        let crowd = existing::Crowd::new();
        println!("{find:<60} {:>22}   100 ms, ss/15", crowd.find());
        println!("{:<60} {:>22}   a limit", "    passed by, without a look", crowd.pass_by());
        println!("{memory:<60} {:>22}   64 MiB", crowd.memory_of_example());
    }
    if is_wanted("programs") {
        Backend::ALL.into_iter().for_each(programs::print);
    }
    if is_wanted("other tools") {
        others::print();
    }
}
