// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live view on a terminal of its own: what keys do, and that the terminal is given back.

use super::tcptop;
use crate::net::{port, send, tcp_pair};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Stdio};
use std::time::{Duration, Instant};

/// A program on a terminal, as a user has it: 24 lines of 80 columns.
struct Terminal {
    program: Process,
    ours: File,
    screen: vt100::Parser,
}

impl Terminal {
    fn start(arguments: &[&str]) -> Self {
        let (mut ours, mut theirs) = (0, 0);
        let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: pointers to two descriptors and a size; no name and no settings are asked for.
        let made = unsafe {
            let (name, settings) = (std::ptr::null_mut(), std::ptr::null_mut());
            libc::openpty(&raw mut ours, &raw mut theirs, name, settings, &raw mut size)
        };
        assert_eq!(made, 0);
        // SAFETY: new descriptors, which are ours.
        let (ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
        // The program must not keep its terminal alive.
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
        let mut command = tcptop(arguments);
        let end = || Stdio::from(theirs.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
        let to_front = || {
            // SAFETY: a session of its own, with the terminal on descriptor 0.
            unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 }
                .then_some(())
                .ok_or_else(std::io::Error::last_os_error)
        };
        // SAFETY: only system calls between fork and exec.
        let program = unsafe { command.pre_exec(to_front) }.spawn().unwrap();
        // SAFETY: touches no memory.
        let set = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(set, 0);
        Self { program, ours, screen: vt100::Parser::new(24, 80, 0) }
    }

    /// Sends keys, and waits until all of these texts are on the screen, and this one is not.
    fn press(&mut self, keys: &str, expected: &[&str], gone: Option<&str>) {
        self.ours.write_all(keys.as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = self.screen.screen().contents();
            if expected.iter().all(|part| text.contains(part)) && gone.is_none_or(|part| !text.contains(part))
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {keys:?} there is no {expected:?}, or {gone:?}:\n{text}"
            );
            self.read();
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 1 << 16];
        match self.ours.read(&mut bytes) {
            Ok(n) => self.screen.process(&bytes[..n]),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    /// Its exit status, and what is on the terminal then.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.read();
            if let Some(status) = self.program.try_wait().unwrap() {
                self.read();
                let screen = self.screen.screen();
                assert!(!screen.alternate_screen() && !screen.hide_cursor());
                assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
                return (status.code(), screen.contents());
            }
            assert!(Instant::now() < deadline, "it goes on:\n{}", self.screen.screen().contents());
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Each view, a filter, details, help, pause, bits; at the end the terminal is as before, and nothing is printed on it.
#[test]
fn the_live_view_answers_keys() {
    let (client, server) = tcp_pair();
    assert_eq!(send(&client, &[1; 3000], 0), 3000);
    let at = port(&client).to_string();
    let mut terminal = Terminal::start(&["--port", &at, "--interval", "0.3"]);
    terminal.press("", &["1 Connections", "PROCESS", "OUT/s", "2 open", &format!(":{at}")], None);
    terminal.press("2", &["▸ live", "2.9K"], Some("STATE"));
    terminal.press("3", &["REMOTE HOST", "127.0.0.1"], Some("▸ live"));
    terminal.press("4", &["CGROUP"], None);
    terminal.press("1", &["STATE", "established"], None);
    terminal.press("/port:1\r", &["/port:1  0 rows"], Some(&format!(":{at}")));
    terminal.press("\u{1b}", &["established", "q quit"], None);
    terminal.press("d", &["Details", "found among the open files", "command", "peak"], None);
    terminal.press("?", &["Help", "to the background"], None);
    terminal.press("? ", &["PAUSED"], Some("Help"));
    terminal.press(" uu", &["0b/s"], Some("PAUSED"));
    terminal.press("l", &["What runs", "tracing with"], None);
    terminal.press("\u{1b}", &["Details"], Some("What runs"));
    terminal.press("df", &["order kept"], Some("Details"));
    terminal.press("n", &["localhost:"], None);
    terminal.press("2", &["PROCESS"], Some("STATE"));
    terminal.press("\r", &["▾", "tcp localhost:"], None);
    terminal.press("q", &[], Some("PROCESS"));
    assert_eq!(terminal.end(), (Some(0), String::new()));
    drop(server);
}

/// Ctrl-C and SIGTERM give the terminal back, too.
#[test]
fn the_terminal_is_given_back() {
    let mut terminal = Terminal::start(&["--port", "1"]);
    terminal.press("", &["1 Connections"], None);
    terminal.press("\u{3}", &[], Some("Connections"));
    assert_eq!(terminal.end(), (Some(0), String::new()));
    let mut terminal = Terminal::start(&["--port", "1"]);
    terminal.press("", &["1 Connections"], None);
    // SAFETY: signals our own child.
    assert_eq!(unsafe { libc::kill(terminal.program.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(terminal.end(), (Some(0), String::new()));
}

/// --plain: tables, as without a terminal.
#[test]
fn tables_can_be_had_on_a_terminal_too() {
    let terminal = Terminal::start(&["--port", "1", "--plain", "--duration", "0.2"]);
    let (code, text) = terminal.end();
    assert!(code == Some(0) && text.contains("tracing with ") && text.contains("PROTO"), "{text:?}");
}

/// A terminal that goes, as a window or a connection by ssh does, is an end like any other.
#[test]
fn without_its_terminal_the_view_ends() {
    let mut terminal = Terminal::start(&[]);
    terminal.press("", &["Connections"], None);
    terminal.ours = File::open("/dev/null").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = terminal.program.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "{status}");
}

/// What is pasted is text for the filter, and no keys.
#[test]
fn what_is_pasted_is_no_key() {
    let mut terminal = Terminal::start(&[]);
    terminal.press("", &["Connections"], None);
    terminal.press("\u{1b}[200~q\u{1b}[201~/\u{1b}[200~abc\n q\u{1b}[201~", &["/abc q_"], None);
    terminal.press("\u{1b}", &["q quit"], Some("/abc"));
    terminal.ours.write_all(b"q").unwrap();
    assert_eq!(terminal.end().0, Some(0));
}
