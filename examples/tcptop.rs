// SPDX-License-Identifier: MIT OR Apache-2.0
//! tcptop: which process exchanges how many bytes with whom. Uses nothing but the public API of the library.

use clap::Parser;
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select_biased, tick};
use serde_json::{Map, Value, json};
use std::io::{self, ErrorKind, Write, stderr, stdout};
use std::time::{Duration, Instant, UNIX_EPOCH};
use std::{cmp::Reverse, error::Error, iter, process, thread};
use tcptop::{
    Backend, Capabilities, CgroupId, CloseReason, CollectorEvent, ConnectFailure, ConnectionRecord,
    ConnectionTable, Feature, Granularity, KernelTime, LinuxCollector, LinuxCollectorBuilder, NetNs, Process,
    Protocol, Provenance, Role, Stats, Survey, TcpState, Visibility,
};

/// How often it is looked whether ends were lost.
const SURVEY_EVERY: Duration = Duration::from_secs(30);
/// If something was lost, that is worth a look; but not all the time.
const SURVEY_AGAIN: Duration = Duration::from_secs(5);

/// Shows which process exchanges how many bytes with whom over TCP and UDP
#[derive(Debug, Parser)]
#[command(version)]
#[rustfmt::skip] // one line of help, one of code
struct Options {
    /// Print JSON Lines instead of tables
    #[arg(long)] json: bool,
    /// End after this time; without it: at Ctrl-C
    #[arg(long, value_name = "SECS", value_parser = seconds)] duration: Option<Duration>,
    /// Time from one table to the next; rates are over as long, but at least a second and twice --granularity
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "1")] interval: Duration,
    /// Report every call, or each socket and direction at most once in this time, such as 100ms or 1s
    #[arg(long, value_name = "call|TIME", default_value = "100ms")] granularity: Granularity,
    /// How to look into the kernel
    #[arg(long, value_parser = ["auto", "fentry", "kprobe", "tracepoint"], default_value = "auto")] backend: String,
    /// Only connections of this process
    #[arg(long, value_name = "N")] pid: Option<u32>,
    /// Only connections with this local or remote port
    #[arg(long, value_name = "N")] port: Option<u16>,
    /// Only this protocol
    #[arg(long, value_name = "tcp|udp")] protocol: Option<Protocol>,
    /// Do not try out, by some bytes over loopback, whether everything is seen that should be
    #[arg(long)] no_self_test: bool,
    /// Leave out connections that exist already, until something happens on them
    #[arg(long)] no_bootstrap: bool,
    /// Print every event as it comes (default with --json)
    #[arg(long, overrides_with = "no_events")] events: bool,
    /// Print no events, not even losses, which else are printed without --json, too
    #[arg(long, overrides_with = "events")] no_events: bool,
}

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    let seconds = Duration::try_from_secs_f64(text.parse()?)?;
    if seconds.as_millis() < 100 { Err("must be at least 0.1".into()) } else { Ok(seconds) }
}

fn collector(options: &Options) -> LinuxCollectorBuilder {
    let backend: Option<Backend> = options.backend.parse().ok(); // None of them is `auto`.
    let builder = LinuxCollector::builder().granularity(options.granularity).self_test(!options.no_self_test);
    let builder = backend.into_iter().fold(builder, LinuxCollectorBuilder::backend);
    let builder = options.protocol.into_iter().fold(builder, LinuxCollectorBuilder::protocol);
    let builder = options.port.into_iter().fold(builder, LinuxCollectorBuilder::port);
    options.pid.into_iter().fold(builder, LinuxCollectorBuilder::pid)
}

fn main() -> process::ExitCode {
    match run(&Options::parse()) {
        // A reader that has seen enough, as in `| head`, is no error.
        Err(e) if e.downcast_ref().map(io::Error::kind) != Some(ErrorKind::BrokenPipe) => {
            // If stderr is gone too, there is nobody to tell.
            let causes =
                iter::successors(e.source(), |&cause| cause.source()).map(|cause| format!(": {cause}"));
            let _ = writeln!(stderr(), "tcptop: {e}{}", causes.collect::<String>());
            process::ExitCode::FAILURE
        }
        _ => process::ExitCode::SUCCESS,
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let (stop, stopped) = bounded(1);
    // Who asks again while this waits for its reader does not want to wait.
    ctrlc::set_handler(move || stop.try_send(()).unwrap_or_else(|_| process::exit(1)))?;
    let (mut collector, events) = collector(options).spawn()?;
    let linger = if options.json { Duration::MAX } else { options.interval + Duration::from_secs(5) };
    let every = if let Granularity::Interval(every) = options.granularity { every } else { Duration::ZERO };
    let window = options.interval.max(Duration::from_secs(1)).max(2 * every);
    let mut table = ConnectionTable::new().linger(linger).rate_window(window).max_connections(1 << 20);
    if !options.no_bootstrap {
        match collector.bootstrap_existing() {
            // Memory is given back meanwhile: else all would be there twice.
            Ok(mut all) => table.merge_bootstrap(iter::from_fn(|| {
                all.shrink_to(all.len().next_multiple_of(8192));
                all.pop()
            })),
            Err(e) => writeln!(stderr(), "tcptop: existing connections are left out: {e:?}")?,
        }
    }
    // After the search: only now it is known how much it has found.
    collector.capabilities().map_or(Ok(()), |can| start(options, &can))?;
    thread::scope(|scope| {
        let ((ask, asked), (tell, surveys)) = (bounded(1), bounded(1));
        scope.spawn(|| survey(&collector, asked, tell));
        watch(options, &mut table, &events, &stopped, &ask, &surveys)
    })?;
    collector.stop()?;
    events.iter().try_for_each(|event| report(options, &mut table, &event))?;
    Ok(if options.json { end_lines(&mut table, &collector.stats()) } else { show(&mut table) }?)
}

/// Beside the rest, because it may take a while. Ends when nobody asks any more.
fn survey(collector: &LinuxCollector, asked: Receiver<()>, tell: Sender<tcptop::Result<Survey>>) {
    // Who asks may be gone by now.
    asked.iter().for_each(|()| drop(tell.send(collector.survey())));
}

/// Until it is time to end.
fn watch(
    options: &Options,
    table: &mut ConnectionTable,
    events: &Receiver<CollectorEvent>,
    stopped: &Receiver<()>,
    ask: &Sender<()>,
    surveys: &Receiver<tcptop::Result<Survey>>,
) -> Result<(), Box<dyn Error>> {
    let (end, looks) = (options.duration.map_or_else(never, after), tick(Duration::from_millis(100)));
    let tables = if options.json { never() } else { tick(options.interval) };
    let (mut asked, mut is_told, mut pause) = (Instant::now(), false, SURVEY_EVERY);
    loop {
        select_biased! {
            recv(stopped) -> _ => return Ok(()),
            recv(end) -> _ => return Ok(()),
            recv(looks) -> _ => {
                if nobody_reads() {
                    return Ok(());
                }
                if asked.elapsed() >= pause && ask.try_send(()).is_ok() {
                    (asked, pause) = (Instant::now(), SURVEY_EVERY);
                }
            }
            recv(surveys) -> survey => match survey? {
                Ok(survey) => {
                    table.reconcile(&survey);
                }
                Err(e) if !is_told => {
                    is_told = true;
                    writeln!(stderr(), "tcptop: ends that get lost are not found out: {e:?}")?;
                }
                Err(_) => {}
            },
            recv(tables) -> _ => show(table)?,
            recv(events) -> event => {
                let event = event?;
                if matches!(event, CollectorEvent::Lost(_)) {
                    pause = SURVEY_AGAIN;
                }
                report(options, table, &event)?;
            }
        }
    }
}

/// A write would tell, too, but there may be nothing to write.
fn nobody_reads() -> bool {
    let mut output = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    // SAFETY: a pointer to one pollfd, which outlives the call.
    unsafe { libc::poll(&mut output, 1, 0) > 0 }
}

fn start(options: &Options, can: &Capabilities) -> io::Result<()> {
    if !options.json {
        writeln!(stdout(), "tracing with {} on Linux {}", can.backend(), can.kernel())?;
        can.self_test().iter().filter(|c| c.has_failed()).try_for_each(|c| writeln!(stdout(), "  {c}"))?;
        can.rejected_backends().iter().try_for_each(|step| writeln!(stdout(), "  not with {step}"))?;
        return match can.visibility(Feature::Existing) {
            Visibility::Limited(how) if !options.no_bootstrap => {
                writeln!(stderr(), "tcptop: existing connections are shown with limits: {how}")
            }
            _ => Ok(()),
        };
    }
    let (now, wall) = (KernelTime::now(), UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64));
    let start = json!({"type": "start", "time_ns": now.as_nanos(), "unix_time_ns": wall,
        "backend": can.backend().as_str(), "kernel": can.kernel(), "capabilities": {
        "features": can.features().map(|(f, v)| (f.to_string(), v.to_string().into())).collect::<Map<_, _>>(),
        "bootstrap": can.bootstrap().as_str(), "self_test": texts(can.self_test()),
        "rejected_backends": texts(can.rejected_backends()),
        "missing_programs": texts(can.missing_programs())}});
    writeln!(stdout(), "{}", json_line(&start))
}

/// As JSON, with an escape for each character that a terminal might obey, or hide: a process chooses its name.
fn json_line(object: &Value) -> String {
    let is_plain = |c: &char| *c != '\u{7f}' && (c.is_ascii() || c.escape_debug().len() == 1);
    let mut line = String::new();
    for c in object.to_string().chars() {
        match Some(c).filter(is_plain) {
            Some(plain) => line.push(plain),
            None => line.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    line
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(T::to_string).collect()
}

fn report(options: &Options, table: &mut ConnectionTable, event: &CollectorEvent) -> io::Result<()> {
    table.apply(event);
    let &Options { json, events, no_events, .. } = options;
    let is_told = !no_events && (json || events || matches!(event, CollectorEvent::Lost(_)));
    if is_told { writeln!(stdout(), "{}", event_line(table, event, json)) } else { Ok(()) }
}

fn event_line(table: &ConnectionTable, event: &CollectorEvent, json: bool) -> String {
    use CollectorEvent::*;
    // What the event does not know of its owner, the table may.
    let (mut actor, owner) = (None, event.connection().and_then(|info| table.owner_of(info)));
    let what = match event {
        TcpSend(t) | TcpRecv(t) | UdpSend(t) | UdpRecv(t) => {
            actor = t.actor;
            json!({"bytes": t.bytes, "calls": t.calls, "total_bytes": t.total_bytes, "rtt_us": micros(t.rtt)})
        }
        TcpStateChange(s) => json!({"provenance": owner.map_or(Provenance::Unknown, |(_, how)| how).as_str(),
            "old_state": s.old_state.as_str(), "new_state": s.new_state.as_str(), "error": s.error}),
        Closed(c) if c.connection.key.protocol == Protocol::Udp => json!({}),
        Closed(c) => json!({"bytes_in": c.totals.bytes_in, "bytes_out": c.totals.bytes_out,
            "packets_in": c.totals.packets_in, "packets_out": c.totals.packets_out, "rtt_us": micros(c.rtt),
            "min_rtt_us": micros(c.min_rtt), "retransmits": c.retransmits, "error": c.error,
            "duration_us": micros(c.duration), "reason": c.reason.map(CloseReason::as_str)}),
        Opened(o) => json!({"role": o.role.as_str(), "rtt_us": micros(o.rtt)}),
        ConnectFailed(f) => json!({"reason": f.reason.as_str(), "error": f.error,
            "duration_us": micros(f.duration)}),
        Lost(l) => json!({"type": "lost", "kind": l.kind.as_str(), "place": l.place.as_str(),
            "count": l.count}),
        _ => Value::Null,
    };
    let (Some(kind), Some(info)) = (event.kind(), event.connection()) else { return json_line(&what) };
    if !json {
        let who = owner.map_or("-".into(), |(p, _)| format!("{}[{}]", p.name.escaped(), p.pid));
        return format!("{kind} {} {who} {what}", info.key);
    }
    let (mut record, owner) = (ConnectionRecord::new(info.key, info.time), owner.map(|(process, _)| process));
    (record.socket, record.netns, record.owner) = (Some(info.socket), info.netns, owner);
    json_line(&object(kind.as_str(), &record, actor, what))
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.map(|time| time.as_micros() as u64)
}

/// Who and where, and what.
fn object(name: &str, r: &ConnectionRecord, actor: Option<Process>, what: Value) -> Value {
    let mut object = json!({"type": name, "time_ns": r.last_seen.as_nanos(), "socket": r.socket,
        "protocol": r.key.protocol.as_str(), "local_addr": r.key.local_addr.to_string(),
        "local_port": r.key.local_port, "remote_addr": r.key.remote_addr.to_string(),
        "remote_port": r.key.remote_port, "pid": r.pid(), "process": r.process_name().map(|name| name.to_string()),
        "actor_pid": actor.map(|a| a.pid), "actor": actor.map(|a| a.name.to_string()), "uid": r.owner.map(|o| o.uid),
        "netns": r.netns.map(NetNs::get), "cgroup": r.owner.and_then(|o| o.cgroup_id).map(CgroupId::get)});
    if let (Some(object), Value::Object(what)) = (object.as_object_mut(), what) {
        object.extend(what);
    }
    object
}

fn end_lines(table: &mut ConnectionTable, stats: &Stats) -> io::Result<()> {
    for r in table.records_at(KernelTime::now()) {
        let what = json!({"role": r.role.map(Role::as_str), "tcp_state": r.tcp_state.map(TcpState::as_str), "bytes_in": r.bytes_in,
            "bytes_out": r.bytes_out, "packets_in": r.packets_in, "packets_out": r.packets_out, "rtt_us": micros(r.rtt),
            "min_rtt_us": micros(r.min_rtt), "retransmits": r.retransmits, "duration_us": micros(Some(r.duration())),
            "reason": r.close_reason.map(CloseReason::as_str).or(r.connect_failure.map(ConnectFailure::as_str)),
            "error": r.error, "rate_in": r.rate_in, "rate_out": r.rate_out, "is_partial": r.is_partial, "is_closed": r.is_closed,
            "is_end_seen": r.is_end_seen});
        writeln!(stdout(), "{}", json_line(&object("connection", r, None, what)))?;
    }
    let stats = json!({"type": "stats", "events": stats.events, "lost": stats.lost_total(),
        "losses": stats.losses.iter().map(|(kind, place, count)| json!({"kind": kind.as_str(),
            "place": place.as_str(), "count": count})).collect::<Vec<_>>(), "unknown_records": stats.unknown_records,
        "audit_mismatches": stats.audit_mismatches, "kernel_memory_bytes": stats.kernel_memory_bytes, "evicted": table.evicted()});
    writeln!(stdout(), "{}", json_line(&stats))
}

/// What the table has given back the allocator of glibc keeps, which may be hundreds of megabytes after a storm.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes any number, see malloc_trim(3).
    unsafe {
        libc::malloc_trim(0);
    }
}

fn show(table: &mut ConnectionTable) -> io::Result<()> {
    const HEAD: &str = "PROTO\tLOCAL\tREMOTE\tSTATE\tPID\tPROCESS\tIN/s\tOUT/s\tIN\tOUT\tRTT";
    let before = table.len();
    let left = table.records_at(KernelTime::now()).count();
    if before - left > 10_000 {
        give_memory_back();
    }
    let mut all: Vec<_> = table.records_at(KernelTime::now()).collect();
    all.sort_by_key(|r| Reverse(((r.rate_in + r.rate_out) as u64, r.bytes_in + r.bytes_out)));
    let (top, rest) = all.split_at(all.len().min(25));
    let rate = |of: fn(&ConnectionRecord) -> f64| amount(all.iter().map(|r| of(r)).fold(0.0, |a, b| a + b));
    let (n, rate_in, rate_out) = (all.len(), rate(|r| r.rate_in), rate(|r| r.rate_out));
    let idle = if all.iter().any(|r| r.rate_in + r.rate_out > 0.0) { "" } else { ": nothing moved" };
    let legend = if top.iter().any(|r| r.is_partial) {
        "~ at least: counted since tcptop started, or past what it sees\n"
    } else {
        ""
    };
    let more = if rest.is_empty() { String::new() } else { format!("… and {} more\n", rest.len()) };
    let rows = aligned(&iter::once(HEAD.into()).chain(top.iter().map(|r| row(r))).collect::<Vec<_>>());
    write!(stdout(), "\n{n} connections, {rate_in}/s in, {rate_out}/s out{idle}\n{rows}{more}{legend}")
}

fn row(r: &ConnectionRecord) -> String {
    let ends = [r.key.local(), r.key.remote()];
    let ends = ends.map(|end| if end.port() == 0 { "*".into() } else { end.to_string() });
    let state = match r.tcp_state {
        // Its end was lost, and found out later.
        Some(_) if r.is_closed && !r.is_end_seen => "gone",
        Some(state) => state.as_str(),
        None => {
            if r.is_closed {
                "close"
            } else {
                "-"
            }
        }
    };
    let pid = r.pid().map_or("-".into(), |pid| pid.to_string());
    // Escaped, because a process chooses its name: it must not talk to the terminal.
    let process = r.process_name().map_or("-".into(), |name| name.escaped().to_string());
    let rates = [r.rate_in, r.rate_out].map(amount).join("\t");
    let partial = if r.is_partial { "~" } else { "" };
    let totals = [r.bytes_in, r.bytes_out].map(|n| format!("{partial}{}", amount(n as f64))).join("\t");
    let rtt = r.rtt.map_or("-".into(), |rtt| format!("{:.2}ms", rtt.as_secs_f64() * 1000.0));
    format!("{}\t{}\t{state}\t{pid}\t{process}\t{rates}\t{totals}\t{rtt}", r.key.protocol, ends.join("\t"))
}

/// Text begins at the left of its column, numbers end at the right.
fn aligned(rows: &[String]) -> String {
    let cells = |i| rows.iter().filter_map(move |row| row.split('\t').nth(i));
    let width: Vec<usize> =
        (0..11).map(|i| cells(i).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let pad = |(i, s): (usize, &str)| {
        if i < 6 { format!("{s:<0$}", width[i]) } else { format!("{s:>0$}", width[i]) }
    };
    let line = |row: &String| row.split('\t').enumerate().map(pad).collect::<Vec<_>>().join("  ") + "\n";
    rows.iter().map(line).collect()
}

/// Bytes in steps of 1024.
fn amount(bytes: f64) -> String {
    let step = (bytes.max(1.0).log2() as usize / 10).min(4);
    format!("{:.*}{}", step.min(1), bytes / 1024_f64.powi(step as i32), ["", "K", "M", "G", "T"][step])
}
