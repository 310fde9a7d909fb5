// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example's live view on a terminal: what it takes of a processor and of memory, and how soon it answers a key.

use crate::{example, existing};
use crossbeam_channel::{Receiver, unbounded};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Each of them moves a byte per second, which makes a thousand rows with rates.
const PAIRS: usize = 500;
const SECONDS: u64 = 10;
/// Each key shows another tab.
const KEYS: [&str; 6] = ["2", "3", "4", "5", "6", "1"];

/// The part of a processor, the most memory, and the longest time until a key was answered.
pub(crate) fn cost() -> String {
    let stop = AtomicBool::new(false);
    let pairs = existing::pairs(PAIRS);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let next = Instant::now() + Duration::from_secs(1);
                pairs.iter().for_each(exchange);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let found = measure();
        stop.store(true, Ordering::Relaxed);
        found
    })
}

fn exchange((client, server): &(TcpStream, TcpStream)) {
    let (mut client, mut server) = (client, server);
    client.write_all(&[1]).expect("a connection");
    server.read_exact(&mut [0]).expect("a connection");
}

fn measure() -> String {
    let (mut view, mut terminal, output) = start();
    // The start, the search for existing connections and the first tables.
    output.recv_timeout(Duration::from_secs(30)).expect("it shows something");
    thread::sleep(Duration::from_secs(3));
    let (before, begin) = (processor_time(&view), Instant::now());
    thread::sleep(Duration::from_secs(SECONDS));
    let part = (processor_time(&view) - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    let answers: Vec<_> =
        KEYS.iter().cycle().take(24).map(|key| answer(&mut terminal, &output, key)).collect();
    let memory = example::peak_of(view.id()).expect("it runs");
    terminal.write_all(b"q").expect("a terminal");
    view.wait().expect("a child");
    let slowest = answers.iter().max().expect("some");
    format!("{:.1} % of a core, {memory} MiB, keys {slowest:.0?}", 100.0 * part)
}

/// The view, its terminal, and what comes out of it.
fn start() -> (Child, File, Receiver<usize>) {
    let (mut ours, mut theirs) = (0, 0);
    let mut size = libc::winsize { ws_row: 60, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: pointers to two descriptors and a size; no name and no settings are asked for. The descriptors are new.
    let (ours, theirs) = unsafe {
        let (name, settings) = (std::ptr::null_mut(), std::ptr::null_mut());
        assert_eq!(libc::openpty(&raw mut ours, &raw mut theirs, name, settings, &raw mut size), 0);
        (File::from_raw_fd(ours), File::from_raw_fd(theirs))
    };
    let end = || Stdio::from(theirs.try_clone().expect("a descriptor"));
    let mut command = Command::new(example::path());
    command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
    // SAFETY: system calls only, between fork and exec. A session of its own, with the terminal on descriptor 0.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let view = command.spawn().expect("it was just built");
    let (tell, output) = unbounded();
    let mut reader = ours.try_clone().expect("a descriptor");
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(read @ 1..) = reader.read(&mut bytes) {
            // Nobody may want to know any more.
            let _ = tell.send(read);
        }
    });
    (view, ours, output)
}

/// Until something comes. In between comes nothing but a refresh per second, which makes a few of the answers too early.
fn answer(terminal: &mut File, output: &Receiver<usize>, key: &str) -> Duration {
    thread::sleep(Duration::from_millis(130));
    output.try_iter().for_each(drop);
    let begin = Instant::now();
    terminal.write_all(key.as_bytes()).expect("a terminal");
    output.recv_timeout(Duration::from_secs(10)).expect("an answer");
    begin.elapsed()
}

/// In user space and in the kernel, of all threads.
fn processor_time(child: &Child) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it runs");
    let after_name = &stat[stat.rfind(')').expect("a name") + 2..];
    let ticks = after_name.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    // SAFETY: touches no memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis(ticks.sum::<u64>() * 1000 / per_second)
}
