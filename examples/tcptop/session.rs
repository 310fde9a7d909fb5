// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the start of tracing to its end.

use crate::command::Command;
use crate::live::{self, Live};
use crate::names::Executables;
use crate::options::Options;
use crate::output::{self, Output, tell};
use crate::privileges;
use crate::rows;
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select_biased, tick};
use ratatui::crossterm::event::Event;
use std::error::Error;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{iter, thread};
use tcptop::{Capabilities, CollectorEvent, ConnectionTable, Granularity, GroupBy, LinuxCollector, Survey};

/// How often it is looked whether ends were lost.
const SURVEY_EVERY: Duration = Duration::from_secs(30);
/// If something was lost, that is worth a look; but not all the time.
const SURVEY_AGAIN: Duration = Duration::from_secs(5);

/// The exit status of --fail-over.
const TOO_MUCH: u8 = 3;
/// As shells have it: there is no such command, or it cannot be run.
const NO_COMMAND: u8 = 127;
const NOT_RUN: u8 = 126;

pub(crate) fn run(
    options: &Options,
    output: &Output<'_>,
    stopped: &Receiver<i32>,
) -> Result<ExitCode, Box<dyn Error>> {
    let command =
        Some(options).filter(|o| !o.command.is_empty()).map(|o| Command::new(&o.command)).transpose()?;
    let builder =
        command.iter().fold(options.collector(), |builder, command| builder.cgroup_tree(command.cgroup()));
    let (mut collector, events) = builder.spawn()?;
    let mut table = new_table(options);
    if !options.no_bootstrap && command.is_none() {
        bootstrap(&collector, &mut table);
        output::give_memory_back();
    }
    // After the search: only now it is known how much it has found.
    let can = collector.capabilities();
    let is_live = options.is_live() && live::is_possible();
    can.as_ref().filter(|_| !is_live).map_or(Ok(()), |can| output.start(can))?;
    let began = Instant::now();
    let running = match command.map(Command::start).transpose() {
        Ok(running) => running,
        Err(e) => {
            tell(&e.to_string());
            return Ok(ExitCode::from(if e.kind() == ErrorKind::NotFound { NO_COMMAND } else { NOT_RUN }));
        }
    };
    if !options.once {
        let ended = running.as_ref().map_or_else(never, |command| command.ended.clone());
        let session = Session { options, output, collector: &collector, events: &events, stopped, ended };
        let signal = session.watch(&mut table, can.as_ref().filter(|_| is_live))?;
        signal.zip(running.as_ref()).map_or(Ok(()), |(signal, command)| command.pass_on(signal))?;
    }
    let took = began.elapsed();
    collector.stop()?;
    // What moves meanwhile is no part of what there was.
    for event in events.iter().filter(|_| !options.once) {
        table.apply(&event);
        output.event(&table, &event)?;
    }
    let moved = moved(options, &mut table);
    output.end(&mut table, &collector.stats(), took, is_live)?;
    let status = running.map(|command| command.status()).transpose()?;
    let too_much = options.fail_over.filter(|most| moved > *most);
    if let Some(most) = too_much {
        tell(&format!("{moved} bytes moved, more than {most}"));
    }
    // A reader that has seen enough, as in `| head`, is no error.
    let failure = output.failure().filter(|e| e.kind() != ErrorKind::BrokenPipe);
    failure.iter().for_each(|e| tell(&format!("the report is not complete: {e}")));
    Ok(match status {
        None | Some(0) if too_much.is_some() => ExitCode::from(TOO_MUCH),
        None | Some(0) if failure.is_some() => ExitCode::FAILURE,
        status => ExitCode::from(status.unwrap_or(0)),
    })
}

/// How many bytes moved while this ran. Only for --fail-over.
fn moved(options: &Options, table: &mut ConnectionTable) -> u64 {
    let sums = options.fail_over.map(|_| options.sums(GroupBy::Process, table));
    sums.into_iter().flatten().map(|sum| rows::traced(&sum)).sum()
}

fn new_table(options: &Options) -> ConnectionTable {
    let linger = if options.keeps_all() { Duration::MAX } else { options.linger() };
    let every = if let Granularity::Interval(every) = options.granularity { every } else { Duration::ZERO };
    let window = options.interval.max(Duration::from_secs(1)).max(2 * every);
    ConnectionTable::new().linger(linger).rate_window(window).max_connections(options.max_rows)
}

fn bootstrap(collector: &LinuxCollector, table: &mut ConnectionTable) {
    match collector.bootstrap_existing() {
        // Memory is given back meanwhile: else all would be there twice.
        Ok(mut all) => table.merge_bootstrap(iter::from_fn(|| {
            all.shrink_to(all.len().next_multiple_of(8192));
            all.pop()
        })),
        Err(e) => tell(&format!("existing connections are left out: {e:?}")),
    }
}

/// Beside the rest, because it may take a while. Ends when nobody asks any more.
fn survey(collector: &LinuxCollector, asked: Receiver<()>, tell: Sender<tcptop::Result<Survey>>) {
    // Who asks may be gone by now.
    asked.iter().for_each(|()| drop(tell.send(collector.survey())));
}

/// What stays the same while it runs.
struct Session<'a> {
    options: &'a Options,
    output: &'a Output<'a>,
    collector: &'a LinuxCollector,
    events: &'a Receiver<CollectorEvent>,
    stopped: &'a Receiver<i32>,
    /// The command has ended.
    ended: Receiver<()>,
}

impl Session<'_> {
    /// Until the end. Shows the live view if it has these capabilities to show. Returns the signal that asked for the end, if
    /// one did.
    fn watch(
        &self,
        table: &mut ConnectionTable,
        can: Option<&Capabilities>,
    ) -> Result<Option<i32>, Box<dyn Error>> {
        thread::scope(|scope| {
            let ((ask, asked), (tell, surveys)) = (bounded(1), bounded(1));
            scope.spawn(|| survey(self.collector, asked, tell));
            // To read paths of executables takes rights that are given up.
            let executables = can.map(|_| Executables::of_proc());
            if self.options.gives_privileges_up() {
                privileges::give_up()?;
            }
            let live = can.zip(executables);
            let live =
                live.map(|(can, executables)| Live::start(self.options, can, executables)).transpose()?;
            let (live, input) = live.map_or((None, never()), |(live, input)| (Some(live), input));
            let (asked, pause) = (Instant::now(), SURVEY_EVERY);
            let mut watch = Watch { session: self, live, table, ask, asked, pause, is_told: false };
            watch.until_the_end(&surveys, &input)
        })
    }
}

struct Watch<'a> {
    session: &'a Session<'a>,
    live: Option<Live>,
    table: &'a mut ConnectionTable,
    ask: Sender<()>,
    asked: Instant,
    pause: Duration,
    /// The user knows that surveys fail.
    is_told: bool,
}

impl Watch<'_> {
    /// Returns the signal that asked for the end, if one did.
    fn until_the_end(
        &mut self,
        surveys: &Receiver<tcptop::Result<Survey>>,
        input: &Receiver<Event>,
    ) -> Result<Option<i32>, Box<dyn Error>> {
        let &Session { options, output, events, stopped, ref ended, .. } = self.session;
        let (end, looks) = (options.duration.map_or_else(never, after), tick(Duration::from_millis(100)));
        let tables = if options.shows_tables() { tick(options.interval) } else { never() };
        loop {
            select_biased! {
                recv(stopped) -> signal => return Ok(signal.ok()),
                recv(end) -> _ => return Ok(None),
                recv(ended) -> _ => return Ok(None),
                recv(looks) -> _ => {
                    if output.nobody_reads() {
                        return Ok(None);
                    }
                    if self.asked.elapsed() >= self.pause && self.ask.try_send(()).is_ok() {
                        (self.asked, self.pause) = (Instant::now(), SURVEY_EVERY);
                    }
                }
                recv(surveys) -> survey => self.reconcile(survey?),
                recv(tables) -> _ => match &mut self.live {
                    Some(live) => live.refresh(self.table, self.session.collector.stats())?,
                    None => output.tables(self.table)?,
                },
                recv(input) -> event => {
                    // The other end is gone if the terminal is.
                    let goes_on = match (&mut self.live, event) {
                        (Some(live), Ok(event)) => live.input(&event, input.is_empty(), self.table)?,
                        _ => false,
                    };
                    if !goes_on {
                        return Ok(None);
                    }
                }
                recv(events) -> event => self.apply(&event?)?,
            }
        }
    }

    fn apply(&mut self, event: &CollectorEvent) -> std::io::Result<()> {
        if matches!(event, CollectorEvent::Lost(_)) {
            self.pause = SURVEY_AGAIN;
        }
        self.table.apply(event);
        if self.live.is_some() { Ok(()) } else { self.session.output.event(self.table, event) }
    }

    fn reconcile(&mut self, survey: tcptop::Result<Survey>) {
        match survey {
            Ok(survey) => drop(self.table.reconcile(&survey)),
            Err(_) if self.is_told => {}
            Err(e) => {
                self.is_told = true;
                let note = format!("ends that get lost are not found out: {e:?}");
                match &mut self.live {
                    Some(live) => live.note(note),
                    None => tell(&note),
                }
            }
        }
    }
}
