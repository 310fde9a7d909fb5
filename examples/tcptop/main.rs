// SPDX-License-Identifier: MIT OR Apache-2.0
//! tcptop: which process exchanges how many bytes with whom. Uses nothing but the public API of the library.

mod cgroups;
mod command;
mod limits;
mod lines;
mod live;
mod names;
mod options;
mod output;
mod privileges;
mod rows;
mod session;

use clap::{CommandFactory as _, Parser as _};
use crossbeam_channel::{Receiver, bounded};
use options::Options;
use output::{Output, tell};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::{self, ErrorKind, Write, stdout};
use std::process::{self, ExitCode};
use std::{iter, thread};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(status) => status,
        // A reader that has seen enough, as in `| head`, is no error.
        Err(e) if e.downcast_ref().map(io::Error::kind) == Some(ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(e) => {
            let causes =
                iter::successors(e.source(), |&cause| cause.source()).map(|cause| format!(": {cause}"));
            tell(&format!("{e}{}", causes.collect::<String>()));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(shell) = options.completions {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Options::command(), "tcptop", &mut text);
        stdout().write_all(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.man {
        clap_mangen::Man::new(Options::command()).render(&mut stdout())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Before signals are caught: to open a FIFO may take for ever, and shall be ended by them.
    let output = Output::new(options)?;
    if options.gives_privileges_up() {
        privileges::keep_needed()?;
    }
    session::run(options, &output, &signals(!options.command.is_empty())?)
}

/// Signals that ask for an end. What the terminal sends goes to a command as well, and ends this program by ending the
/// command.
fn signals(with_command: bool) -> io::Result<Receiver<i32>> {
    let (stop, stopped) = bounded(1);
    // As nohup(1) wants it, also for the command.
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let mut all = Signals::new([SIGTERM, SIGINT, SIGQUIT].into_iter().chain(hangup))?;
    let ends: &[_] = if with_command { &[SIGTERM, SIGHUP] } else { &[SIGTERM, SIGHUP, SIGINT, SIGQUIT] };
    thread::spawn(move || {
        for signal in all.forever().filter(|signal| ends.contains(signal)) {
            // Who asks again while this waits for its reader does not want to wait.
            stop.try_send(signal).unwrap_or_else(|_| process::exit(1));
        }
    });
    Ok(stopped)
}

/// Whoever started this program wants it to ignore this signal.
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: reads the action of a signal into memory that is large enough; it is there if the call succeeds.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
