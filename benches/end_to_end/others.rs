// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other tools that watch the same traffic, where this machine has them: what they cost it, and what they say of it.

use crate::example;
use crate::loads::{Churn, Load, PingPong, UdpBlast, unpin};
use crate::ratio::{Ratio, slice};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

const PAIRS: usize = 6;
/// A tool takes long to start: so often is measured while it runs.
const SLICES: usize = 2;
/// Until every tool here has attached, opened and read what it wants to.
const START: Duration = Duration::from_millis(2500);
/// In which the traffic passes whose bytes are compared; and in which tools show it that look once per second.
const LEDGER: Duration = Duration::from_millis(300);
const SHOW: Duration = Duration::from_millis(2500);
const LOADS: usize = 3;

struct Tool {
    name: &'static str,
    /// What must be there.
    program: &'static str,
    command: fn() -> Command,
    /// What it says this process has sent, out of all that it has printed.
    sent: fn(&str, Us) -> u64,
}

/// How tools call this process.
#[derive(Clone)]
struct Us {
    pid: u32,
    name: String,
}

const TOOLS: [Tool; 5] = [
    Tool { name: "tcptop (the example)", program: "true", command: tcptop, sent: sent_by_tcptop },
    Tool {
        name: "bpftrace, two tracepoints",
        program: "bpftrace",
        command: bpftrace,
        sent: sent_by_bpftrace,
    },
    Tool { name: "nethogs", program: "nethogs", command: nethogs, sent: sent_by_nethogs },
    Tool { name: "bandwhich", program: "bandwhich", command: bandwhich, sent: sent_by_bandwhich },
    Tool { name: "ss -tinp, each second", program: "ss", command: ss, sent: sent_by_ss },
];

/// Measures all that are here.
pub(crate) fn print() {
    println!(
        "\n{:<28} {:>20} {:>20} {:>20} {:>8}   bytes sent, of",
        "tool", "1-byte ping-pong", "64-byte UDP", "churn", "its CPU"
    );
    for tool in &TOOLS {
        if is_here(tool.program) {
            tool.print();
        } else {
            println!("{:<28} not on this machine", tool.name);
        }
    }
}

fn is_here(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn loads() -> [Box<dyn Load>; LOADS] {
    [Box::new(PingPong::new()), Box::new(UdpBlast::new()), Box::new(Churn::new())]
}

impl Tool {
    fn print(&self) {
        let (ratios, cpu) = self.cost();
        let [ping_pong, udp, churn] = ratios.map(|ratios| Ratio::of(ratios).to_string());
        let (said, moved) = self.ledger();
        println!("{:<28} {ping_pong:>20} {udp:>20} {churn:>20} {cpu:>6.1} %   {said} of {moved}", self.name);
    }

    /// How much slower each traffic is while the tool runs, in turns; and the tool's share of a processor meanwhile.
    fn cost(&self) -> ([Vec<f64>; LOADS], f64) {
        let mut loads = loads();
        let mut ratios = [const { Vec::new() }; LOADS];
        let (mut busy, mut time) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..PAIRS {
            let running = self.start();
            let (before, begin) = (running.busy(), Instant::now());
            let with = measure(&mut loads);
            busy += running.busy() - before;
            time += begin.elapsed();
            drop(running.end());
            let without = measure(&mut loads);
            for (ratios, (with, without)) in ratios.iter_mut().zip(with.into_iter().zip(without)) {
                ratios.extend(with.into_iter().zip(without).map(|(with, without)| with / without));
            }
        }
        (ratios, 100.0 * busy.as_secs_f64() / time.as_secs_f64())
    }

    /// What the tool says this process has sent, and what it has.
    fn ledger(&self) -> (u64, u64) {
        const BYTES_SENT: [u64; LOADS] = [2, 64, 2];
        let running = self.start();
        let mut loads = loads();
        let moved = loads.iter_mut().zip(BYTES_SENT).map(|(load, bytes)| bytes * load.run(LEDGER)).sum();
        thread::sleep(SHOW);
        let output = running.end();
        let name = fs::read_to_string("/proc/self/comm").expect("/proc").trim().to_owned();
        ((self.sent)(&output, Us { pid: std::process::id(), name }), moved)
    }

    fn start(&self) -> Running {
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tool-output");
        let file = File::create(&output).expect("cargo's directory");
        let mut command = (self.command)();
        unpin();
        let child = command.stdout(file).stderr(std::process::Stdio::null()).spawn().expect("it is here");
        thread::sleep(START);
        Running { child, output }
    }
}

fn measure(loads: &mut [Box<dyn Load>; LOADS]) -> [Vec<f64>; LOADS] {
    loads.each_mut().map(|load| (0..SLICES).map(|_| slice(load.as_mut())).collect())
}

struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    /// Processor time of the tool and of the children that it has waited for: proc_pid_stat(5), in ticks of 10 ms.
    fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks =
            after_name.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// Ends it as a user would, and returns what it has printed.
    fn end(mut self) -> String {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).expect("a child");
        }
        self.child.wait().expect("a child");
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }
}

fn tcptop() -> Command {
    let mut command = Command::new(example::path());
    command.args(["--json", "--no-events"]);
    command
}

fn sent_by_tcptop(output: &str, us: Us) -> u64 {
    let rows = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    rows.filter(|row| row["type"] == "connection" && row["pid"] == us.pid)
        .filter_map(|row| row["bytes_out"].as_u64())
        .sum()
}

/// It wants these file systems, which not every machine has mounted: so it gets them in a mount namespace of its own.
fn bpftrace() -> Command {
    let script = "
        mount -t tracefs tracefs /sys/kernel/tracing; mount -t debugfs debugfs /sys/kernel/debug
        exec bpftrace -e 'tracepoint:sock:sock_send_length /args->ret > 0/ { @sent[pid] = sum(args->ret); }
                          tracepoint:sock:sock_recv_length /args->ret > 0/ { @received[pid] = sum(args->ret); }'";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command
}

fn sent_by_bpftrace(output: &str, us: Us) -> u64 {
    let prefix = format!("@sent[{}]: ", us.pid);
    output.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or(0)
}

fn nethogs() -> Command {
    let mut command = Command::new("nethogs");
    // Totals in bytes, once per second, as text; UDP too.
    command.args(["-a", "-C", "-t", "-v", "2", "-d", "1", "lo"]);
    command
}

fn sent_by_nethogs(output: &str, us: Us) -> u64 {
    let of_us = format!("/{}/", us.pid);
    let rows = output.lines().filter(|line| line.contains(&of_us));
    rows.filter_map(|row| row.split('\t').nth(1)?.parse::<f64>().ok()).fold(0.0, f64::max) as u64
}

fn bandwhich() -> Command {
    let mut command = Command::new("bandwhich");
    command.args(["--raw", "--no-resolve", "--processes", "--interface", "lo"]);
    command
}

/// `process: <TIME> "NAME" up/down Bps: UP/DOWN connections: N`, once per second.
fn sent_by_bandwhich(output: &str, us: Us) -> u64 {
    let of_us = format!("\"{}\"", us.name);
    let rows = output.lines().filter(|line| line.starts_with("process:") && line.contains(&of_us));
    rows.filter_map(|row| row.split("Bps: ").nth(1)?.split('/').next()?.parse::<u64>().ok()).sum()
}

fn ss() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do ss -OtinpH; sleep 1; done"]);
    command
}

/// The most that it has said of each socket.
fn sent_by_ss(output: &str, us: Us) -> u64 {
    let of_us = format!("pid={},", us.pid);
    let mut sockets = HashMap::<_, u64>::new();
    for line in output.lines().filter(|line| line.contains(&of_us)) {
        let addresses: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        let sent = line.split("bytes_sent:").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        let most = sockets.entry(addresses).or_default();
        *most = sent.unwrap_or(0).max(*most);
    }
    sockets.values().sum()
}
