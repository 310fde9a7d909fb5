// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example program as a user meets it: its JSON, its ends, and what it says when it cannot work.

use crate::collector::{bpf_objects, nothing_left_but};
use crate::harness::wanted_backend;
use crate::net::{Child, hear, tell};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Process, Command, Output, Stdio};
use std::time::Duration;

fn path() -> PathBuf {
    let path = std::env::var_os("TCPTOP_TEST_CLI").map_or_else(beside_this_test, PathBuf::from);
    assert!(path.exists(), "{} is missing: build it with `cargo build --example tcptop`", path.display());
    path
}

/// target/<profile>/deps/live-… -> target/<profile>/examples/tcptop
fn beside_this_test() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples/tcptop")
}

fn tcptop(arguments: &[&str]) -> Command {
    let mut command = Command::new(path());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(backend) = wanted_backend() {
        if !arguments.contains(&"--backend") {
            command.args(["--backend", backend.as_str()]);
        }
    }
    command
}

/// A tcptop that runs, and the lines it prints.
struct Running {
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
        let mut process = tcptop(arguments).spawn().unwrap();
        let lines = process.stdout.take().map(BufReader::new);
        let mut running = Self { process, lines };
        let start = running.line().expect("a start line");
        (running, start)
    }

    fn line(&mut self) -> Option<Value> {
        let mut text = String::new();
        self.lines.as_mut()?.read_line(&mut text).unwrap();
        (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
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
    fn finish(mut self) -> (Vec<Value>, i32, String) {
        let lines = std::iter::from_fn(|| self.line()).collect();
        let mut errors = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.process.wait().unwrap();
        (lines, status.code().unwrap_or(-1), errors)
    }
}

fn is(value: &Value, name: &str) -> bool {
    value["type"] == name
}

/// What both ends moved: 1,000,003 bytes out and 500,009 in over TCP; over UDP 100 datagrams of 10 bytes to each of two
/// peers from one unconnected socket, which the peers answer with 7.
fn exchange() -> (u32, u32, u16, u16, u16, [u16; 2]) {
    let mut server = Child::fork(|parent| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        tell(parent, listener.local_addr().unwrap().port().into());
        peers.iter().for_each(|p| tell(parent, p.local_addr().unwrap().port().into()));
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut vec![0; 1_000_003]).unwrap();
        socket.write_all(&vec![2; 500_009]).unwrap();
        for _ in 0..50 {
            for peer in &peers {
                let (n, from) = peer.recv_from(&mut [0; 100]).unwrap();
                assert_eq!(n, 10);
                peer.send_to(&[1; 7], from).unwrap();
            }
        }
        hear(parent);
    });
    let l = server.hear() as u16;
    let peers = [server.hear() as u16, server.hear() as u16];
    let mut client = Child::fork(|parent| {
        let mut stream = TcpStream::connect(("127.0.0.1", l)).unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        tell(parent, stream.local_addr().unwrap().port().into());
        tell(parent, sender.local_addr().unwrap().port().into());
        stream.write_all(&vec![1; 1_000_003]).unwrap();
        stream.read_exact(&mut vec![0; 500_009]).unwrap();
        for _ in 0..50 {
            for peer in peers {
                sender.send_to(&[1; 10], ("127.0.0.1", peer)).unwrap();
                assert_eq!(sender.recv_from(&mut [0; 100]).unwrap().0, 7);
            }
        }
        hear(parent);
    });
    let (c, u) = (client.hear() as u16, client.hear() as u16);
    let pids = (client.pid, server.pid);
    client.tell(1);
    client.wait();
    server.tell(1);
    server.wait();
    (pids.0, pids.1, l, c, u, peers)
}

/// The promise of the README: both ends of every connection, to the byte, with the right processes.
#[test]
fn both_ends_are_exact() {
    let (running, start) = Running::start(&["--json"]);
    assert!(is(&start, "start") && start["capabilities"].is_object(), "{start}");
    if let Some(backend) = wanted_backend() {
        assert_eq!(start["backend"], backend.as_str());
    }
    let (client, server, l, c, u, peers) = exchange();
    std::thread::sleep(Duration::from_millis(700));
    running.signal(libc::SIGINT);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    let row = |protocol: &str, local: u16, remote: u16| {
        let rows: Vec<_> = lines
            .iter()
            .filter(|v| is(v, "connection") && v["protocol"] == protocol)
            .filter(|v| v["local_port"] == local && v["remote_port"] == remote)
            .collect();
        assert_eq!(rows.len(), 1, "{protocol} {local} -> {remote}: {rows:?}");
        let row = rows[0];
        let number = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"));
        (number("pid") as u32, number("bytes_out"), number("bytes_in"))
    };
    assert_eq!(row("tcp", c, l), (client, 1_000_003, 500_009));
    assert_eq!(row("tcp", l, c), (server, 500_009, 1_000_003));
    let stats = lines.last().unwrap();
    // A kernel that preempts tasks in the middle of programs may have skipped some: then that is counted.
    let mut missing = [0, 0];
    let mut check = |(local, remote), pid, [sent, received]: [u64; 2], [each_out, each_in]: [u64; 2]| {
        let (owner, bytes_out, bytes_in) = row("udp", local, remote);
        assert_eq!((owner, bytes_out % each_out, bytes_in % each_in), (pid, 0, 0), "{stats}");
        missing[0] += (sent - bytes_out) / each_out;
        missing[1] += (received - bytes_in) / each_in;
    };
    for peer in peers {
        check((u, peer), client, [500, 350], [10, 7]);
        check((peer, u), server, [350, 500], [7, 10]);
    }
    let skipped = |kind: &str| {
        let losses = stats["losses"].as_array().unwrap().iter();
        let of_hook = losses.filter(|l| l["place"] == "hook" && l["kind"] == kind);
        of_hook.map(|l| l["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(missing[0] <= skipped("udp_send") && missing[1] <= skipped("udp_recv"), "{missing:?}: {stats}");
    for name in ["tcp_send", "tcp_recv", "udp_send", "udp_recv", "tcp_state"] {
        let event = lines.iter().find(|v| is(v, name)).unwrap_or_else(|| panic!("no {name}"));
        for field in [
            "time_ns",
            "socket",
            "protocol",
            "local_addr",
            "local_port",
            "remote_addr",
            "remote_port",
            "netns",
        ] {
            assert!(!event[field].is_null(), "{field}: {event}");
        }
    }
    assert!(is(stats, "stats") && stats["events"].as_u64() > Some(0));
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

/// --duration and --no-events: a start line, connections, statistics, nothing else.
#[test]
fn it_ends_when_the_time_is_over() {
    let (running, _) = Running::start(&["--json", "--duration", "0.5", "--no-events", "--no-bootstrap"]);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(lines.iter().all(|v| is(v, "connection") || is(v, "stats")), "{lines:?}");
    assert_eq!(lines.iter().filter(|v| is(v, "stats")).count(), 1);
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

/// SIGKILL leaves no program and no link in the kernel.
#[test]
fn killed_it_leaves_nothing_in_the_kernel() {
    let before = bpf_objects();
    let (mut running, _) = Running::start(&["--json"]);
    assert!(bpf_objects().0.len() > before.0.len());
    running.process.kill().unwrap();
    running.process.wait().unwrap();
    nothing_left_but(&before);
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

/// A kernel that does not describe its types.
#[test]
fn without_btf_it_says_so() {
    let mut command = tcptop(&["--duration", "1"]);
    let hide = || {
        // SAFETY: a mount namespace of its own, in which an empty file system hides the kernel's.
        unsafe {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let (none, root, btf) = (c"none".as_ptr(), c"/".as_ptr(), c"/sys/kernel/btf".as_ptr());
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, root, std::ptr::null(), private, std::ptr::null()) != 0
                || libc::mount(none, btf, c"tmpfs".as_ptr(), 0, std::ptr::null()) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(hide) };
    let (code, errors) = refused(&mut command);
    assert_eq!(code, 1);
    assert!(
        errors.contains("/sys/kernel/btf/vmlinux") && errors.contains("CONFIG_DEBUG_INFO_BTF"),
        "{errors}"
    );
}

/// A forced backend runs, or the program says which one cannot and why: never another one silently.
#[test]
fn a_forced_backend_is_never_another_one() {
    for backend in tcptop::Backend::ALL.map(tcptop::Backend::as_str) {
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
        (&["--granularity", "0"], 1, "interval"),
        (&["--pid", "0"], 1, "pid 0"),
        (&["--protocol", "sctp"], 2, "sctp"),
    ] {
        let (got, errors) = refused(&mut tcptop(arguments));
        assert_eq!(got, code, "{arguments:?}: {errors}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
        assert!(code != 2 || errors.contains("--help"), "{arguments:?}: {errors}");
        assert!(word != "--bogus" || errors.contains("Usage: tcptop"), "{errors}");
    }
}
