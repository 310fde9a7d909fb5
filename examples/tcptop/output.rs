// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where and how all is printed.

use crate::limits;
use crate::lines;
use crate::options::Options;
use crate::rows::{self, FINAL, Field, LIVE, amount, millis};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write, stderr, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;
use tcptop::{
    Capabilities, CollectorEvent, ConnectionRecord, ConnectionTable, Feature, GroupBy, KernelTime, Stats,
    Sum, Visibility,
};

pub(crate) struct Output<'a> {
    options: &'a Options,
    /// Standard output: only of that it is looked whether somebody reads.
    is_stdout: bool,
    to: RefCell<Box<dyn Write>>,
    /// The first error of a report on a command, which goes on all the same.
    failure: RefCell<Option<io::Error>>,
}

impl<'a> Output<'a> {
    pub(crate) fn new(options: &'a Options) -> io::Result<Self> {
        let (to, is_stdout): (Box<dyn Write>, _) = match &options.output {
            Some(path) => {
                let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
                // What others exchange is not for everybody to read.
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
                (Box::new(file.map_err(named)?), false)
            }
            // The command has standard output for itself.
            None if !options.command.is_empty() => (Box::new(stderr()), false),
            None => (Box::new(stdout()), true),
        };
        Ok(Self { options, is_stdout, to: RefCell::new(to), failure: RefCell::default() })
    }

    fn line(&self, line: &str) -> io::Result<()> {
        let written = writeln!(self.to.borrow_mut(), "{line}");
        self.written(written)
    }

    /// Many lines at once.
    fn lines(&self, mut lines: impl Iterator<Item = String>) -> io::Result<()> {
        let mut to = self.to.borrow_mut();
        let mut buffer = BufWriter::new(&mut *to);
        let written = lines.try_for_each(|line| writeln!(buffer, "{line}")).and_then(|()| buffer.flush());
        drop(buffer);
        drop(to);
        self.written(written)
    }

    /// A command must not end, nor lose its exit status, because of its report: nothing is written any more then.
    fn written(&self, written: io::Result<()>) -> io::Result<()> {
        match written {
            Err(e) if !self.options.command.is_empty() => {
                *self.to.borrow_mut() = Box::new(io::sink());
                self.failure.borrow_mut().get_or_insert(e);
                Ok(())
            }
            written => written,
        }
    }

    /// Why the report on a command is not complete.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.failure.take()
    }

    /// A write would tell, too, but there may be nothing to write.
    pub(crate) fn nobody_reads(&self) -> bool {
        let mut output = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
        // SAFETY: a pointer to one pollfd, which outlives the call.
        self.is_stdout && unsafe { libc::poll(&mut output, 1, 0) > 0 }
    }

    /// What runs, and what it does not see.
    pub(crate) fn start(&self, can: &Capabilities) -> io::Result<()> {
        if self.options.json {
            return self.line(&lines::start(can));
        }
        let searched = !self.options.no_bootstrap && self.options.command.is_empty();
        if self.options.shows_tables() {
            return self.lines(limits::lines(can, searched).into_iter());
        }
        match can.visibility(Feature::Existing) {
            Visibility::Limited(how) if searched => {
                tell(&format!("existing connections are shown with limits: {how}"));
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn event(&self, table: &ConnectionTable, event: &CollectorEvent) -> io::Result<()> {
        let &Options { json, events, no_events, csv, .. } = self.options;
        let is_told = !no_events && !csv && (json || events || matches!(event, CollectorEvent::Lost(_)));
        if is_told { self.line(&lines::event(table, event, json)) } else { Ok(()) }
    }

    /// While it runs.
    pub(crate) fn tables(&self, table: &mut ConnectionTable) -> io::Result<()> {
        let before = table.len();
        drop(table.records_at(KernelTime::now()));
        give_memory_back_after(before, table);
        let (now, linger) = (KernelTime::now(), self.options.linger());
        let wanted = |r: &&ConnectionRecord| self.options.wants(r) && rows::is_recent(r, now, linger);
        let all: Vec<_> = table.records().filter(wanted).collect();
        let rate =
            |of: fn(&ConnectionRecord) -> f64| amount(all.iter().map(|r| of(r)).fold(0.0, |a, b| a + b));
        let (n, rate_in, rate_out) = (all.len(), rate(|r| r.rate_in), rate(|r| r.rate_out));
        let idle = if all.iter().any(|r| r.rate_in + r.rate_out > 0.0 || r.new_bytes_in + r.new_bytes_out > 0)
        {
            ""
        } else {
            ": nothing moved"
        };
        let text = self.table(&LIVE, all);
        self.line(&format!("\n{n} connections, {rate_in}/s in, {rate_out}/s out{idle}\n{text}"))
    }

    /// Rows in their order, what was left out, and what the signs mean. Without the last end of a line.
    fn table(&self, fields: &[&[Field<ConnectionRecord>]], all: Vec<&ConnectionRecord>) -> String {
        let order = self.options.order();
        let (first, rest) = rows::first(all, self.options.rows(), |a, b| order.compare(a, b));
        let mut text = rows::table(fields, &first);
        if rest > 0 {
            text += &format!("… and {rest} more\n");
        }
        if first.iter().any(|r| r.is_partial) {
            text += "~ at least: counted since tcptop started, or past what it sees\n";
        }
        text.trim_end().to_owned()
    }

    /// All that is known, when it ends: without the connections if the live view has shown them.
    pub(crate) fn end(
        &self,
        table: &mut ConnectionTable,
        stats: &Stats,
        took: Duration,
        is_shown: bool,
    ) -> io::Result<()> {
        if self.options.shows_tables() {
            if !is_shown {
                self.tables(table)?;
            }
        } else {
            self.connections(table, took)?;
        }
        if let Some(by) = self.options.summary {
            self.sums(by, table)?;
        }
        if table.evicted() > 0 && !self.options.json {
            tell("some connections are left out, because there were more than --max-rows");
        }
        if self.options.json { self.line(&lines::stats(stats, table.evicted())) } else { Ok(()) }
    }

    fn connections(&self, table: &mut ConnectionTable, took: Duration) -> io::Result<()> {
        let wanted = |r: &&ConnectionRecord| self.options.wants(r);
        let all: Vec<_> = table.records_at(KernelTime::now()).filter(wanted).collect();
        let &Options { json, csv, .. } = self.options;
        if json || csv {
            let order = self.options.order();
            let rows = match self.options.sort {
                None if self.options.top.is_none() => all,
                _ => rows::first(all, self.options.rows(), |a, b| order.compare(a, b)).0,
            };
            let line = if json { lines::connection } else { lines::csv_row };
            return self.lines(csv.then(lines::csv_header).into_iter().chain(rows.into_iter().map(line)));
        }
        if self.options.command.is_empty() {
            return self.line(&self.table(&FINAL, all));
        }
        let bytes = |of: fn(&ConnectionRecord) -> u64| amount(all.iter().map(|r| of(r)).sum::<u64>() as f64);
        let (n, bytes_in, bytes_out) = (all.len(), bytes(|r| r.bytes_in), bytes(|r| r.bytes_out));
        let head = format!("\n{n} connections, {bytes_in} in, {bytes_out} out, {:.1} s", took.as_secs_f64());
        if n == 0 { self.line(&head) } else { self.line(&format!("{head}\n{}", self.table(&FINAL, all))) }
    }

    fn sums(&self, by: GroupBy, table: &mut ConnectionTable) -> io::Result<()> {
        let all = self.options.sums(by, table);
        let (sums, rest) = rows::first(all, self.options.rows(), |one, other| {
            let most_first = rows::traced(other).cmp(&rows::traced(one));
            most_first.then_with(|| rows::group(one).cmp(&rows::group(other)))
        });
        if self.options.json {
            return self.lines(sums.iter().map(lines::sum));
        }
        let fields: [&[Field<Sum>]; 2] = [
            match by {
                GroupBy::Process => &[Field::text("PROCESS", rows::group)],
                GroupBy::RemoteHost => &[Field::text("REMOTE HOST", rows::group)],
                GroupBy::Cgroup => &[Field::text("CGROUP", rows::group)],
                GroupBy::LocalPort => &[Field::text("LOCAL PORT", rows::group)],
                GroupBy::ProcessAndHost => &[
                    Field::text("PROCESS", rows::group_process),
                    Field::text("REMOTE HOST", rows::group_host),
                ],
                _ => &[Field::text("REMOTE PORT", rows::group)],
            },
            &[
                Field::number("CONNECTIONS", |s| s.connections.to_string()),
                Field::number("OPEN", |s| s.open.to_string()),
                Field::number("NEW IN", |s| amount(s.traced_bytes_in as f64)),
                Field::number("NEW OUT", |s| amount(s.traced_bytes_out as f64)),
                Field::number("IN", |s| amount(s.bytes_in as f64)),
                Field::number("OUT", |s| amount(s.bytes_out as f64)),
                Field::number("RETRANS", |s| s.retransmits.to_string()),
                Field::number("RTT", |s| millis(s.rtt)),
            ],
        ];
        let more = if rest > 0 { format!("… and {rest} more\n") } else { String::new() };
        let rows: Vec<_> = sums.iter().collect();
        self.line(format!("\n{}{more}", rows::table(&fields, &rows)).trim_end())
    }
}

/// Tells the user. If standard error is gone, there is nobody to tell.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(stderr(), "tcptop: {text}");
}

/// If many rows have gone since there were so many.
pub(crate) fn give_memory_back_after(before: usize, table: &ConnectionTable) {
    if before.saturating_sub(table.len()) > 10_000 {
        give_memory_back();
    }
}

/// What was given back the allocator of glibc keeps, which may be hundreds of megabytes after a storm.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes any number, see malloc_trim(3).
    unsafe {
        libc::malloc_trim(0);
    }
}
