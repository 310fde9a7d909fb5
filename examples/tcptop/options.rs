// SPDX-License-Identifier: MIT OR Apache-2.0
//! The options, and what they mean to the library.

use crate::cgroups;
use crate::live::filter::Filter;
use crate::live::look::Theme;
use crate::rows::{self, Column};
use clap::Parser;
use clap_complete::Shell;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tcptop::{
    AddressFamily, Backend, CgroupId, ConnectionRecord, ConnectionTable, Granularity, GroupBy, KernelTime,
    LinuxCollector, LinuxCollectorBuilder, NetNs, Protocol, Sum,
};

/// Shows which process exchanges how many bytes with whom over TCP and UDP
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES, allow_negative_numbers = true)]
#[rustfmt::skip] // one line of help, one of code
pub(crate) struct Options {
    /// Print tables again and again, as without a terminal, and not the live view
    #[arg(long, help_heading = "Output")] pub(crate) plain: bool,
    /// Print JSON Lines: events as they come, connections and statistics at the end
    #[arg(long, help_heading = "Output", conflicts_with = "csv")] pub(crate) json: bool,
    /// Print all connections as CSV at the end
    #[arg(long, help_heading = "Output")] pub(crate) csv: bool,
    /// Print the existing connections, and end
    #[arg(long, help_heading = "Output", conflicts_with_all = ["duration", "no_bootstrap", "command", "fail_over"])] pub(crate) once: bool,
    /// At the end, print sums by process, remote_host, cgroup, local_port, remote_port or process_and_host
    #[arg(long, help_heading = "Output", value_name = "GROUP", conflicts_with = "csv")] pub(crate) summary: Option<GroupBy>,
    /// Print so many rows at most: by default 25 in tables, all in JSON and CSV (not in the live view)
    #[arg(long, help_heading = "Output", value_name = "N")] pub(crate) top: Option<usize>,
    /// Order of the rows: rate, total, in, out, rtt, retransmits, duration, pid, process, local, remote or state
    #[arg(long, help_heading = "Output", value_enum, value_name = "COLUMN", hide_possible_values = true)] pub(crate) sort: Option<Column>,
    /// Write to this file and not to standard output (with COMMAND: standard error)
    #[arg(short, long, help_heading = "Output", value_name = "FILE")] pub(crate) output: Option<PathBuf>,
    /// Exit with status 3 if more bytes moved than this, in and out together, such as 500K or 2G
    #[arg(long, help_heading = "Output", value_name = "BYTES", value_parser = bytes)] pub(crate) fail_over: Option<u64>,
    /// Print every event as it comes (default with --json)
    #[arg(long, help_heading = "Output", overrides_with = "no_events")] pub(crate) events: bool,
    /// Print no events, and no losses (which are printed by default, also without --json)
    #[arg(long, help_heading = "Output", overrides_with = "events")] pub(crate) no_events: bool,

    /// Show names of hosts, which asks the name server for each on the screen (live view; key n)
    #[arg(long, help_heading = "Output")] pub(crate) names: bool,
    /// For a dark or a light background (live view; default: what the terminal says, else dark)
    #[arg(long, help_heading = "Output", value_enum, value_name = "dark|light", hide_possible_values = true)] pub(crate) theme: Option<Theme>,

    /// Only rows and sums (not events) that match: words and terms such as remote:10.0.0.0/8; key ? in the live view lists them
    #[arg(long, help_heading = "Filters", value_name = "WORDS", value_parser = filter)] pub(crate) filter: Option<Filter>,
    /// Only connections of this process; may be repeated
    #[arg(long, help_heading = "Filters", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))] pub(crate) pid: Vec<u32>,
    /// Only connections with this local or remote port; may be repeated
    #[arg(long, help_heading = "Filters", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))] pub(crate) port: Vec<u16>,
    /// Only processes in this cgroup or below it: a path, or the id; may be repeated
    #[arg(long, help_heading = "Filters", value_name = "PATH|ID", value_parser = cgroup)] pub(crate) cgroup: Vec<CgroupId>,
    /// Only this network namespace: the pid of a process in it, or a path as in /run/netns
    #[arg(long, help_heading = "Filters", value_name = "PID|PATH", value_parser = netns)] pub(crate) netns: Option<NetNs>,
    /// Only this protocol
    #[arg(long, help_heading = "Filters", value_name = "tcp|udp")] pub(crate) protocol: Option<Protocol>,
    /// Only peers with such an address
    #[arg(long, help_heading = "Filters", value_name = "ipv4|ipv6")] pub(crate) family: Option<AddressFamily>,
    /// Leave out connections over loopback
    #[arg(long, help_heading = "Filters")] pub(crate) no_loopback: bool,

    /// End after this time; without it: at Ctrl-C
    #[arg(long, help_heading = "Tracing", value_name = "SECS", value_parser = seconds)] pub(crate) duration: Option<Duration>,
    /// Time from one table to the next; rates are over as long, but at least a second and twice --granularity
    #[arg(long, help_heading = "Tracing", value_name = "SECS", value_parser = seconds, default_value = "1")] pub(crate) interval: Duration,
    /// Report every call, or each socket and direction at most once in this time, such as 100ms or 1s
    #[arg(long, help_heading = "Tracing", value_name = "call|TIME", value_parser = granularity, default_value = "100ms")] pub(crate) granularity: Granularity,
    /// Rows at most, which bounds the memory: some 700 bytes each; those seen least recently go
    #[arg(long, help_heading = "Tracing", value_name = "N", default_value = "131072")] pub(crate) max_rows: usize,
    /// Report each retransmission of TCP segments
    #[arg(long, help_heading = "Tracing")] pub(crate) retransmits: bool,
    /// How to look into the kernel
    #[arg(long, help_heading = "Tracing", value_parser = ["auto", "fentry", "kprobe", "tracepoint"], default_value = "auto")] pub(crate) backend: String,
    /// Do not try out, by some bytes over loopback, whether everything is seen that should be
    #[arg(long, help_heading = "Tracing")] pub(crate) no_self_test: bool,
    /// Leave out connections that exist already, until something happens on them
    #[arg(long, help_heading = "Tracing")] pub(crate) no_bootstrap: bool,

    /// Keep all privileges; without it, the threads that talk to the user give up all once tcptop traces, and others all but a few
    #[arg(long, help_heading = "Tracing")] pub(crate) keep_privileges: bool,

    /// Print the completions of this shell, and end
    #[arg(long, value_name = "SHELL")] pub(crate) completions: Option<Shell>,
    /// Print the manual page, and end
    #[arg(long)] pub(crate) man: bool,

    /// Run this command, trace it with all its children, and exit with its status
    #[arg(last = true, value_name = "COMMAND")] pub(crate) command: Vec<OsString>,
}

/// Events that wait while the screen is drawn, which takes some tens of milliseconds where there are many connections.
const CHANNEL: usize = 16_384;

const EXAMPLES: &str = "\
Examples:
  tcptop --once --sort total           what each connection has moved so far
  tcptop --port 443 --summary process  until Ctrl-C, then sums by process
  tcptop --json | jq                   each event as it comes
  tcptop --filter remote:10.0.0.0/8    who talks to this network
  tcptop -- cargo fetch                what a command exchanges, and with whom

Amounts are bytes; K, M, G and T are powers of 1024.

Exit status: 0; 1 for an error; 2 for wrong options; 3 for --fail-over; with COMMAND, its
own, 128 and the number of the signal that ended it, or 127 if there is no such command.";

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    let seconds = Duration::try_from_secs_f64(text.parse()?)?;
    if seconds.as_millis() < 100 { Err("must be at least 0.1".into()) } else { Ok(seconds) }
}

fn granularity(text: &str) -> Result<Granularity, Box<dyn Error + Send + Sync>> {
    match text.parse()? {
        Granularity::Interval(Duration::ZERO) => Err("must be more than 0".into()),
        granularity => Ok(granularity),
    }
}

/// Steps of 1024, as in the tables.
fn bytes(text: &str) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let steps = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 1,
        "M" | "MiB" => 2,
        "G" | "GiB" => 3,
        "T" | "TiB" => 4,
        _ => return Err("expected a number with K, M, G or T, or without".into()),
    };
    digits.parse::<u64>()?.checked_mul(1 << (10 * steps)).ok_or_else(|| "too many bytes".into())
}

/// An id, a path, or a path below the usual place of the hierarchy.
fn cgroup(text: &str) -> Result<CgroupId, Box<dyn Error + Send + Sync>> {
    if let Ok(id) = text.parse() {
        return CgroupId::new(id).ok_or_else(|| "0 is no cgroup".into());
    }
    let path = Path::new(text);
    let root = cgroups::mount().unwrap_or_else(|| "/sys/fs/cgroup".into());
    let below = root.join(text.trim_start_matches('/'));
    let none = |e| format!("no cgroup at {}, nor at {}: {e}", path.display(), below.display());
    Ok(CgroupId::of_path(path).or_else(|e| CgroupId::of_path(&below).map_err(|_| none(e)))?)
}

fn filter(text: &str) -> Result<Filter, String> {
    let filter = Filter::new(text);
    let wrong = filter.wrong().map(|word| format!("`{word}` is not understood"));
    wrong.map_or(Ok(filter), Err)
}

/// NSFS_MAGIC of include/uapi/linux/magic.h.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

fn netns(text: &str) -> Result<NetNs, Box<dyn Error + Send + Sync>> {
    if let Ok(pid) = text.parse() {
        return Ok(NetNs::of_process(pid)?);
    }
    let is_namespace = rustix::fs::statfs(text)?.f_type == NSFS;
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(text)?);
    u32::try_from(inode)
        .ok()
        .filter(|_| is_namespace)
        .and_then(NetNs::new)
        .ok_or_else(|| "not a network namespace".into())
}

impl Options {
    /// Whether this row is wanted. Where the kernel cannot judge a port, because the peer is unknown, it lets all pass.
    pub(crate) fn wants(&self, r: &ConnectionRecord) -> bool {
        rows::has_port(r, &self.port) && self.filter.as_ref().is_none_or(|filter| filter.passes(r))
    }

    /// Whether not all rows are wanted that the kernel lets pass.
    fn chooses_rows(&self) -> bool {
        self.filter.is_some() || !self.port.is_empty()
    }

    /// The sums of the wanted rows. If all are wanted, those of ended connections that are forgotten by now, too.
    pub(crate) fn sums(&self, by: GroupBy, table: &mut ConnectionTable) -> Vec<Sum> {
        let now = KernelTime::now();
        if self.chooses_rows() { table.sums_of(by, now, |r| self.wants(r)) } else { table.sums(by, now) }
    }

    /// Not with a command: it shall have all that this program has, and signals are passed on to it.
    pub(crate) fn gives_privileges_up(&self) -> bool {
        !self.keep_privileges && self.command.is_empty()
    }

    /// How long ended connections are shown.
    pub(crate) fn linger(&self) -> Duration {
        self.interval + Duration::from_secs(5)
    }

    /// Whether no ended connection may be forgotten, because it counts at the end.
    pub(crate) fn keeps_all(&self) -> bool {
        let counts = self.summary.is_some() || self.fail_over.is_some();
        !self.shows_tables() || (self.chooses_rows() && counts)
    }

    /// A collector as these options want it.
    pub(crate) fn collector(&self) -> LinuxCollectorBuilder {
        let backend: Option<Backend> = self.backend.parse().ok(); // None of them is `auto`.
        let self_test = !self.no_self_test && !self.once && self.command.is_empty();
        let builder = LinuxCollector::builder()
            .granularity(self.granularity)
            .channel_capacity(CHANNEL)
            .self_test(self_test)
            .loopback(!self.no_loopback)
            .retransmits(self.retransmits);
        let builder = backend.into_iter().fold(builder, LinuxCollectorBuilder::backend);
        let builder = self.protocol.into_iter().fold(builder, LinuxCollectorBuilder::protocol);
        let builder = self.family.into_iter().fold(builder, LinuxCollectorBuilder::family);
        let builder = self.netns.into_iter().fold(builder, LinuxCollectorBuilder::netns);
        let builder = self.port.iter().copied().fold(builder, LinuxCollectorBuilder::port);
        let builder = self.cgroup.iter().copied().fold(builder, LinuxCollectorBuilder::cgroup_tree);
        self.pid.iter().copied().fold(builder, LinuxCollectorBuilder::pid)
    }

    /// Whether the live view is wanted, where there is a terminal.
    pub(crate) fn is_live(&self) -> bool {
        self.shows_tables() && !self.plain && !self.events && self.output.is_none()
    }

    /// Whether rows are printed again and again.
    pub(crate) fn shows_tables(&self) -> bool {
        !self.json && !self.csv && !self.once && self.command.is_empty()
    }

    /// How many rows are printed.
    pub(crate) fn rows(&self) -> usize {
        let is_table = !self.json && !self.csv && !self.once;
        self.top.unwrap_or(if is_table { 25 } else { usize::MAX })
    }

    /// The order of the rows; by default the busiest first while it runs, then those that have moved most.
    pub(crate) fn order(&self) -> Column {
        self.sort.unwrap_or(if self.shows_tables() { Column::Rate } else { Column::Total })
    }
}
