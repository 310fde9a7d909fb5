// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example program as a user meets it: its JSON, its options, its ends, and what it says when it cannot work.

mod hostile;
mod json;
mod limits;
mod options;
mod privileges;
mod screen;
mod scripts;

use crate::collector::{bpf_objects, nothing_left_but};
use crate::harness::wanted_backend;
use jsonschema::Validator;
use serde_json::Value;
use std::ffi::CStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Process, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub(crate) fn path() -> PathBuf {
    let path = std::env::var_os("TCPTOP_TEST_CLI").map_or_else(beside_this_test, PathBuf::from);
    assert!(path.exists(), "{} is missing: build it with `cargo build --examples`", path.display());
    path
}

/// target/<profile>/deps/live-… -> target/<profile>/examples/tcptop
fn beside_this_test() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples/tcptop")
}

fn tcptop(arguments: &[&str]) -> Command {
    let mut command = Command::new(path());
    if let Some(backend) = wanted_backend() {
        if !arguments.contains(&"--backend") {
            command.args(["--backend", backend.as_str()]);
        }
    }
    // Last, because what follows "--" is no option.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A tcptop, or another example, that runs, and the lines it prints.
pub(crate) struct Running {
    process: Process,
    lines: Option<BufReader<std::process::ChildStdout>>,
}

impl Drop for Running {
    /// A test that fails must leave no tracer to the ones after it.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    /// Returns when tracing is live.
    fn start(arguments: &[&str]) -> (Self, Value) {
        let (running, start) = Self::start_text(arguments);
        (running, json(&start))
    }

    /// The same without --json.
    fn start_text(arguments: &[&str]) -> (Self, String) {
        Self::start_command(&mut tcptop(arguments))
    }

    pub(crate) fn start_command(command: &mut Command) -> (Self, String) {
        let mut process = command.spawn().unwrap();
        let lines = process.stdout.take().map(BufReader::new);
        let mut running = Self { process, lines };
        let start = running.line().expect("a start line");
        (running, start)
    }

    pub(crate) fn line(&mut self) -> Option<String> {
        let mut text = String::new();
        self.lines.as_mut()?.read_line(&mut text).unwrap();
        (!text.is_empty()).then_some(text)
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: signals our own child.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, signal) }, 0);
    }

    /// Closes its output, as a reader does that has seen enough.
    fn close_output(&mut self) {
        self.lines = None;
    }

    /// The rest of its lines, its exit status, and what it wrote to stderr.
    fn finish(self) -> (Vec<Value>, i32, String) {
        let (lines, code, errors) = self.finish_text();
        (lines.iter().map(|line| json(line)).collect(), code, errors)
    }

    /// The same without --json.
    pub(crate) fn finish_text(mut self) -> (Vec<String>, i32, String) {
        let lines = std::iter::from_fn(|| self.line()).collect();
        let mut errors = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.process.wait().unwrap();
        (lines, status.code().unwrap_or(-1), errors)
    }
}

/// A line of JSON, which is as docs/json.schema.json says.
fn json(line: &str) -> Value {
    static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(include_str!("../../docs/json.schema.json")).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    });
    let value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    if let Err(e) = SCHEMA.validate(&value) {
        panic!("{e}: {line}");
    }
    value
}

fn is(value: &Value, name: &str) -> bool {
    value["type"] == name
}

/// SIGTERM and SIGINT are orderly ends: exit 0, and the statistics last.
#[test]
fn signals_end_it_cleanly() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (running, _) = Running::start(&["--json"]);
        running.signal(signal);
        let (lines, code, errors) = running.finish();
        assert_eq!((code, errors.as_str()), (0, ""), "signal {signal}");
        assert!(lines.last().is_some_and(|line| is(line, "stats")), "signal {signal}: {lines:?}");
    }
}

/// As nohup(1) wants it, and the command that is traced inherits that.
#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let ignored = |arguments: &[&str]| {
        let mut command = tcptop(arguments);
        // SAFETY: a system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                Ok(())
            })
        };
        command
    };
    let (running, _) = Running::start_command(&mut ignored(&["--json", "--duration", "1.5"]));
    let begin = Instant::now();
    running.signal(libc::SIGHUP);
    let (lines, code, errors) = running.finish();
    assert!(code == 0 && lines.last().is_some_and(|line| is(line, "stats")), "{code} {errors}");
    assert!(begin.elapsed() > Duration::from_secs(1), "it has ended before its time");

    let mut command = ignored(&["--", "sh", "-c", "echo ready; sleep 1; echo survived"]);
    let (running, ready) = Running::start_command(&mut command);
    assert_eq!(ready, "ready\n");
    running.signal(libc::SIGHUP);
    let (lines, code, errors) = running.finish_text();
    assert_eq!((lines, code), (vec!["survived\n".to_owned()], 0), "{errors}");
}

/// A plain table, which has the connection that is busy.
#[test]
fn without_json_it_prints_tables() {
    let (mut client, mut server) = crate::net::tcp_pair();
    let command = tcptop(&["--duration", "1.5", "--interval", "0.5"]).spawn().unwrap();
    let ports = format!("127.0.0.1:{}  127.0.0.1:{}", crate::net::port(&client), crate::net::port(&server));
    let output = std::thread::spawn(move || command.wait_with_output().unwrap());
    while !output.is_finished() {
        client.write_all(&[1; 5000]).unwrap();
        server.read_exact(&mut [0; 5000]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = output.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("PROTO") && text.contains("PROCESS"), "{text}");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join("  ");
    let row = text.lines().map(words).rfind(|line| line.contains(&ports));
    let row = row.unwrap_or_else(|| panic!("no row with {ports}:\n{text}"));
    assert!(row.contains(&std::process::id().to_string()) && row.contains("established"), "{row}");
}

/// A reader that has seen enough is no error.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (mut running, _) = Running::start(&["--json", "--granularity", "call"]);
    running.close_output();
    for _ in 0..50 {
        let (client, server) = crate::net::tcp_pair();
        assert_eq!(crate::net::send(&client, &[1; 3], 0), 3);
        assert_eq!(crate::net::recv(&server, 3, 0), 3);
        std::thread::sleep(Duration::from_millis(20));
        if running.process.try_wait().unwrap().is_some() {
            break;
        }
    }
    let (_, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
}

/// SIGKILL leaves no program and no link in the kernel. Where debugfs is not mounted, as in a container, there were as many
/// of them: whether the kernel preempts tasks, and programs need backup programs, is found out all the same.
#[test]
fn killed_it_leaves_nothing_in_the_kernel() {
    let programs = |command: &mut Command| {
        let before = bpf_objects();
        let (mut running, _) = Running::start_command(command);
        let count = bpf_objects().0.iter().filter(|program| !before.0.contains(program)).count();
        running.process.kill().unwrap();
        running.process.wait().unwrap();
        nothing_left_but(&before);
        count
    };
    let usual = programs(&mut tcptop(&["--json"]));
    assert!(usual > 0);
    assert_eq!(programs(without(c"/sys/kernel/debug", &mut tcptop(&["--json"]))), usual);
}

/// Runs the command where an empty file system hides one of the kernel's.
fn without<'a>(path: &'static CStr, command: &'a mut Command) -> &'a mut Command {
    let hide = move || {
        // SAFETY: a mount namespace of its own.
        unsafe {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, root, std::ptr::null(), private, std::ptr::null()) != 0
                || libc::mount(none, path.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(hide) }
}

fn refused(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    (status.code().unwrap_or(-1), String::from_utf8(stderr).unwrap())
}

/// Without privileges it names what is missing.
#[test]
fn without_privileges_it_names_what_is_missing() {
    // The user nobody may not enter the place of the build.
    let copy = std::env::temp_dir().join("tcptop-unprivileged");
    std::fs::copy(path(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.args(["--duration", "1"]).uid(65_534).gid(65_534);
    let (code, errors) = refused(&mut command);
    std::fs::remove_file(copy).unwrap();
    assert_eq!(code, 1);
    assert!(
        errors.contains("CAP_BPF") && errors.contains("CAP_PERFMON") && errors.lines().count() == 1,
        "{errors}"
    );
}

/// In a rootless container a process has all capabilities, but none that BPF asks for.
#[test]
fn in_a_user_namespace_it_says_so() {
    let mut command = tcptop(&["--duration", "1"]);
    let enter = || {
        let map = b"0 0 1";
        // SAFETY: a user namespace in which this process is root, too.
        unsafe {
            if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            let file = libc::open(c"/proc/self/uid_map".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if libc::write(file, map.as_ptr().cast(), map.len()) != map.len() as isize {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(enter) };
    let (code, errors) = refused(&mut command);
    assert_eq!((code, errors.lines().count()), (1, 1), "{errors}");
    assert!(errors.contains("rootless container") && !errors.contains("setcap"), "{errors}");
}

/// A kernel that does not describe its types.
#[test]
fn without_btf_it_says_so() {
    let (code, errors) = refused(without(c"/sys/kernel/btf", &mut tcptop(&["--duration", "1"])));
    assert_eq!(code, 1);
    assert!(
        errors.contains("/sys/kernel/btf/vmlinux") && errors.contains("CONFIG_DEBUG_INFO_BTF"),
        "{errors}"
    );
}

/// A forced backend runs, or the program says which one cannot and why: never another one silently.
#[test]
fn a_forced_backend_is_never_another_one() {
    // In a guest each has a run of its own.
    let forced = wanted_backend().map_or(tcptop::Backend::ALL.to_vec(), |backend| vec![backend]);
    for backend in forced.into_iter().map(tcptop::Backend::as_str) {
        let output = tcptop(&["--json", "--backend", backend, "--duration", "0.1"]).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            let text = String::from_utf8(output.stdout).unwrap();
            let start: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            assert_eq!((start["backend"].as_str(), errors.as_str()), (Some(backend), ""));
        } else {
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{errors}");
            assert!(errors.contains(&format!("the {backend} backend is not available")), "{errors}");
            assert_ne!(wanted_backend().map(tcptop::Backend::as_str), Some(backend), "{errors}");
        }
    }
}

/// Options that make no sense are refused with a hint.
#[test]
fn options_that_make_no_sense_are_refused() {
    for (arguments, code, word) in [
        (&["--bogus"][..], 2, "--bogus"),
        (&["--backend", "magic"], 2, "magic"),
        (&["--granularity", "often"], 2, "often"),
        (&["--granularity", "0ms"], 2, "more than 0"),
        (&["--pid", "0"], 2, "0 is not in 1.."),
        (&["--port", "0"], 2, "0 is not in 1.."),
        (&["--protocol", "sctp"], 2, "sctp"),
        (&["--filter", "host:10.0.0.0/33"], 2, "not understood"),
        (&["--csv", "--summary", "process"], 2, "--csv"),
        (&["--once", "--fail-over", "0"], 2, "--fail-over"),
        (&["--fail-over", "1X"], 2, "K, M, G or T"),
        (&["--cgroup", "/nowhere"], 2, "/nowhere"),
        (&["--netns", "/etc/passwd"], 2, "not a network namespace"),
        (&["--filter", "state:bogus"], 2, "not understood"),
    ] {
        let (got, errors) = refused(&mut tcptop(arguments));
        assert_eq!(got, code, "{arguments:?}: {errors}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
        assert!(code != 2 || errors.contains("--help"), "{arguments:?}: {errors}");
        assert!(word != "--bogus" || errors.contains("Usage: tcptop"), "{errors}");
    }
}
