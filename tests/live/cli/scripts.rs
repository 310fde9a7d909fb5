// SPDX-License-Identifier: MIT OR Apache-2.0
//! What scripts use: once, CSV, sums, limits, commands, and what describes the options.

use super::{Running, is, json, tcptop};
use crate::net::{Cgroup, Child, enter_own_network, hear, pair_by, port, recv, run, send, tell};
use crate::udp::bound;
use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// What it prints, as lines; its exit status; what it writes to standard error.
fn finish(arguments: &[&str]) -> (Vec<String>, i32, String) {
    let Output { status, stdout, stderr } = tcptop(arguments).output().unwrap();
    let lines = |bytes| String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect();
    (lines(stdout), status.code().unwrap_or(-1), String::from_utf8(stderr).unwrap())
}

/// --once: existing connections with their totals and owners, as a table, CSV and JSON, and then it ends. --top and --sort.
#[test]
fn once_it_prints_what_there_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let pairs = [3000, 2000].map(|bytes| {
        let (client, server) = pair_by(&listener);
        assert_eq!(send(&client, &vec![1; bytes], 0), bytes as isize);
        assert_eq!(recv(&server, bytes, libc::MSG_WAITALL), bytes as isize);
        (client, server)
    });
    let [c, d] = [0, 1].map(|n: usize| port(&pairs[n].0));
    let (at, pid) = (l.to_string(), std::process::id());
    let (lines, code, _) = finish(&["--once", "--port", &at]);
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<_> = lines.iter().map(words).filter(|row| row[0] == "tcp").collect();
    assert_eq!((code, rows.len(), &lines[0][..5]), (0, 4, "PROTO"), "{lines:?}");
    let row = |local: u16, remote: u16| {
        let ends = [local, remote].map(|port| format!("127.0.0.1:{port}"));
        rows.iter().find(|row| row[1..3] == ends).unwrap_or_else(|| panic!("{lines:?}"))
    };
    assert_eq!(row(c, l)[3..5], ["established".to_owned(), pid.to_string()]);
    assert_eq!([row(c, l), row(l, c)].map(|row| row[6..8].join(" ")), ["0 2.9K", "2.9K 0"]);

    let (lines, code, _) = finish(&["--once", "--csv", "--port", &at, "--sort", "out", "--top", "2"]);
    let cells = |line: &String| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    let head = cells(&lines[0]);
    let column = |name: &str| head.iter().position(|cell| cell == name).unwrap();
    let rows: Vec<_> = lines[1..].iter().map(cells).collect();
    let of = |row: &Vec<String>| ["local_port", "bytes_out", "pid"].map(|name| row[column(name)].clone());
    let expected = [(c, 3000), (d, 2000)]
        .map(|(port, bytes): (u16, u32)| [port.to_string(), bytes.to_string(), pid.to_string()]);
    assert_eq!((code, rows.iter().map(of).collect::<Vec<_>>()), (0, expected.to_vec()), "{lines:?}");
    assert!(rows.iter().all(|row| row.len() == head.len()), "{lines:?}");

    // --filter: of these the rows of one client.
    let (lines, code, _) = finish(&["--once", "--csv", "--filter", &format!("port:{c} host:127.0.0.0/8")]);
    assert_eq!((code, lines.len()), (0, 3), "{lines:?}");

    let (lines, code, _) = finish(&["--once", "--json", "--port", &at]);
    let lines: Vec<Value> = lines.iter().map(|line| json(line)).collect();
    let bytes = |name: &str| {
        let all = lines.iter().filter(|line| is(line, "connection")).map(|line| line[name].as_u64().unwrap());
        all.sum::<u64>()
    };
    assert_eq!((code, bytes("bytes_in"), bytes("bytes_out")), (0, 5000, 5000), "{lines:?}");
    assert!(is(&lines[0], "start") && is(lines.last().unwrap(), "stats"));
}

const TRAFFIC: &str = "TCPTOP_TEST_TRAFFIC";

/// Not a test but a command: it sends 1000 bytes over TCP, receives 500, and has a child that sends 300 over UDP.
#[test]
#[ignore = "what another test runs as a command"]
fn traffic_of_a_command() {
    let ports: Vec<u16> =
        std::env::var(TRAFFIC).unwrap().split(' ').map(|port| port.parse().unwrap()).collect();
    let client = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    assert_eq!((send(&client, &[1; 1000], 0), recv(&client, 500, libc::MSG_WAITALL)), (1000, 500));
    Child::fork(|_| {
        let (sender, _) = bound("127.0.0.1:0");
        assert_eq!(sender.send_to(&[1; 300], ("127.0.0.1", ports[1])).unwrap(), 300);
    })
    .wait();
}

/// A command: what it and its children move, to the byte, and nothing of others. It has standard output for itself. Sums,
/// and --fail-over, which says so where the command itself has not failed. No cgroup stays.
#[test]
fn a_command_is_traced_with_its_children() {
    let (listener, (receiver, u)) = (TcpListener::bind("127.0.0.1:0").unwrap(), bound("127.0.0.1:0"));
    let l = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (peer, _) = listener.accept().unwrap();
            assert_eq!((recv(&peer, 1000, libc::MSG_WAITALL), send(&peer, &[1; 500], 0)), (1000, 500));
            assert_eq!(receiver.recv(&mut [0; 999]).unwrap(), 300);
        }
    });
    let this = std::env::current_exe().unwrap();
    let script =
        format!("{} --ignored --exact cli::scripts::traffic_of_a_command; exit $((2 * $?))", this.display());
    let traced = |options: &[&str]| {
        let command = ["--", "sh", "-c", &script];
        let mut command = tcptop(&[options, &command].concat());
        command.env(TRAFFIC, format!("{l} {u}"));
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    let file = std::env::temp_dir().join(format!("tcptop-command-{}", std::process::id()));
    let to = file.to_str().unwrap();
    let (code, output, errors) =
        traced(&["--json", "--output", to, "--summary", "local_port", "--fail-over", "1K"]);
    let lines: Vec<Value> = std::fs::read_to_string(&file).unwrap().lines().map(json).collect();
    std::fs::remove_file(&file).unwrap();
    assert_eq!((code, errors.as_str()), (Some(3), "tcptop: 1800 bytes moved, more than 1024\n"), "{output}");
    assert!(output.contains("1 passed"), "{output}");
    let rows: Vec<_> = lines.iter().filter(|line| is(line, "connection")).collect();
    let moved = |protocol: &str| {
        let rows: Vec<_> = rows.iter().filter(|row| row["protocol"] == protocol).collect();
        ["bytes_out", "bytes_in"].map(|name| rows.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>())
    };
    assert_eq!((moved("tcp"), moved("udp")), ([1000, 500], [300, 0]), "{rows:?}");
    assert!(rows.iter().all(|row| row["pid"] != std::process::id()), "{rows:?}");
    let sums: Vec<_> = lines.iter().filter(|line| is(line, "sum")).collect();
    let new = |name: &str| sums.iter().map(|sum| sum[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((new("traced_bytes_out"), new("traced_bytes_in")), (1300, 500), "{sums:?}");

    let (code, output, errors) = traced(&["--fail-over", "1800", "--summary", "process"]);
    assert_eq!(code, Some(0), "{output}{errors}");
    assert!(errors.contains("2 connections, 500 in, 1.3K out"), "{errors}");
    assert!(errors.contains(" 300 ") && errors.contains("NEW OUT"), "{errors}");
    server.join().unwrap();
    assert_eq!(left_over(), 0);
}

/// Cgroups that were made for commands.
fn left_over() -> usize {
    let all = std::fs::read_dir(Cgroup::root()).unwrap().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with("tcptop-")).count()
}

/// The exit status is the command's, also for one that a signal ends, and for one that cannot be run. SIGTERM goes on to the
/// command.
#[test]
fn it_ends_as_its_command_does() {
    let status = |script| finish(&["--", "sh", "-c", script]).1;
    assert_eq!([status("exit 7"), status("kill -9 $$")], [7, 128 + 9]);
    // A child that goes on keeps the cgroup, which is said, and the next run removes it.
    let (_, code, errors) = finish(&["--", "sh", "-c", "sleep 2 >&- 2>&- & exit 5"]);
    assert!(code == 5 && errors.contains("processes of the command go on, in the cgroup"), "{code} {errors}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((status("exit 0"), left_over()), (0, 0));
    let (output, code, errors) = finish(&["--", "/nowhere/command"]);
    assert_eq!((output.len(), code, errors.lines().count()), (0, 127, 1));
    assert!(errors.contains("cannot run /nowhere/command: No such file"), "{errors}");

    let trap = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = tcptop(&["--", "sh", "-c", trap]);
    let (running, ready) = Running::start_command(&mut command);
    assert_eq!(ready, "ready\n");
    running.signal(libc::SIGTERM);
    let (lines, code, errors) = running.finish_text();
    assert_eq!((lines, code), (vec!["told\n".to_owned()], 9), "{errors}");
}

/// --summary at the end of a usual run; --fail-over where nothing moved.
#[test]
fn sums_come_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().port().to_string();
    let arguments =
        ["--json", "--no-events", "--port", &at, "--summary", "process", "--top", "1", "--fail-over", "0"];
    let (running, _) = Running::start(&arguments);
    let (client, server) = pair_by(&listener);
    assert_eq!((send(&client, &[1; 700], 0), recv(&server, 700, libc::MSG_WAITALL)), (700, 700));
    drop((client, server));
    std::thread::sleep(Duration::from_millis(500));
    running.signal(libc::SIGINT);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (3, "tcptop: 1400 bytes moved, more than 0\n"));
    let sums: Vec<_> = lines.iter().filter(|line| is(line, "sum")).collect();
    let [sum] = sums[..] else { panic!("{lines:?}") };
    let numbers =
        ["pid", "connections", "open", "bytes_in", "traced_bytes_out"].map(|name| sum[name].as_u64());
    assert_eq!(numbers, [std::process::id().into(), 2, 0, 700, 700].map(Some), "{sum}");
    assert_eq!(lines.iter().filter(|line| is(line, "connection")).count(), 1);

    let (lines, code, errors) =
        finish(&["--port", &at, "--duration", "0.3", "--fail-over", "0", "--no-bootstrap"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{lines:?}");
}

/// Rows, sums and --fail-over are of what passes --filter; connections that have ended still count at the end, also where they
/// are not shown any more.
#[test]
fn a_filter_chooses_rows_and_sums() {
    let [wanted, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let filter = format!("port:{} !pid:1", wanted.local_addr().unwrap().port());
    let trace = |options: &[&str]| {
        let arguments = [&["--filter", &filter, "--summary", "process", "--no-bootstrap"], options].concat();
        let (running, _) = Running::start_text(&arguments);
        for (listener, bytes) in [(&wanted, 700), (&other, 50_000)] {
            let (client, server) = pair_by(listener);
            assert_eq!(send(&client, &vec![1; bytes], 0), bytes as isize);
            assert_eq!(recv(&server, bytes, libc::MSG_WAITALL), bytes as isize);
        }
        std::thread::sleep(Duration::from_millis(500));
        running.signal(libc::SIGINT);
        running.finish_text()
    };
    let (lines, code, errors) = trace(&["--json", "--no-events", "--fail-over", "1399"]);
    assert_eq!((code, errors.as_str()), (3, "tcptop: 1400 bytes moved, more than 1399\n"));
    let lines: Vec<_> = lines.iter().map(|line| json(line)).collect();
    let of = |kind: &'static str| lines.iter().filter(move |line| is(line, kind));
    assert_eq!(of("connection").map(|row| row["bytes_in"].as_u64().unwrap()).sum::<u64>(), 700, "{lines:?}");
    let sums: Vec<_> = of("sum").map(|sum| (&sum["pid"], &sum["bytes_in"], &sum["bytes_out"])).collect();
    assert_eq!(sums, [(&std::process::id().into(), &700.into(), &700.into())], "{lines:?}");

    let (lines, code, errors) = trace(&["--fail-over", "1400"]);
    let text = lines.concat();
    assert!(code == 0 && text.contains("NEW OUT") && !text.contains("48.8K"), "{code} {text} {errors}");
}

/// --retransmits, --netns and --no-loopback, in a network where nobody answers.
#[test]
fn segments_that_are_sent_again_have_lines() {
    let mut network = Child::fork(|parent| {
        enter_own_network();
        run("ip link add va type veth peer name vb && ip addr add 10.9.7.1/24 dev va");
        run(
            "ip link set va up && ip link set vb up && ip neigh add 10.9.7.2 lladdr 02:00:00:00:00:02 dev va",
        );
        tell(parent, 1);
        hear(parent);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(pair_by(&listener));
        let timeout = Duration::from_millis(1800);
        assert!(TcpStream::connect_timeout(&([10, 9, 7, 2], 9).into(), timeout).is_err());
        tell(parent, 1);
        hear(parent);
    });
    network.hear();
    let pid = network.pid.to_string();
    let (running, _) = Running::start(&["--json", "--retransmits", "--netns", &pid, "--no-loopback"]);
    network.tell(1);
    network.hear();
    running.signal(libc::SIGINT);
    let (lines, code, errors) = running.finish();
    assert_eq!((code, errors.as_str()), (0, ""));
    let again: Vec<_> = lines.iter().filter(|line| is(line, "tcp_retransmit")).collect();
    let [first] = again[..] else { panic!("{lines:?}") };
    assert_eq!((&first["state"], &first["remote_addr"]), (&"syn_sent".into(), &"10.9.7.2".into()));
    assert_eq!(
        ["segments", "total_segments", "pid"].map(|name| first[name].as_u64()),
        [1, 1, network.pid.into()].map(Some)
    );
    assert!(lines.iter().all(|line| line["local_addr"] != "127.0.0.1"), "{lines:?}");
    network.tell(1);
    network.wait();
}

/// --cgroup: a path.
#[test]
fn one_cgroup_can_be_watched() {
    let group = Cgroup::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let l = listener.local_addr().unwrap().port();
    let path = format!("{}/tcptop-{}", Cgroup::root(), std::process::id());
    let (running, _) = Running::start(&["--json", "--no-bootstrap", "--cgroup", &path]);
    let mut client = Child::fork(|parent| {
        group.enter();
        let client = TcpStream::connect(("127.0.0.1", l)).unwrap();
        assert_eq!(send(&client, &[1; 400], 0), 400);
        tell(parent, 1);
        hear(parent);
    });
    let (server, _) = listener.accept().unwrap();
    assert_eq!(recv(&server, 400, libc::MSG_WAITALL), 400);
    client.hear();
    std::thread::sleep(Duration::from_millis(300));
    running.signal(libc::SIGINT);
    let (lines, code, _) = running.finish();
    let rows: Vec<_> = lines.iter().filter(|line| is(line, "connection")).collect();
    let [row] = rows[..] else { panic!("{lines:?}") };
    assert_eq!(
        (code, row["pid"].as_u64(), row["bytes_out"].as_u64()),
        (0, Some(client.pid.into()), Some(400))
    );
    client.tell(1);
    client.wait();
}

/// What describes the options, none of which needs privileges. The help is that of the snapshot.
#[test]
fn help_completions_and_manual_name_every_option() {
    let (lines, code, _) = finish(&["--help"]);
    let help = lines.join("\n") + "\n";
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/help.txt");
    if help != include_str!("help.txt") {
        std::fs::write(file, &help).unwrap();
        panic!(
            "the help is another one: compare {file} with tests/live/cli/help.txt, and copy it if that is right"
        );
    }
    let options: Vec<_> =
        help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(code == 0 && options.len() > 25 && lines.iter().all(|line| line.len() <= 100), "{help}");
    for arguments in
        [&["--man"][..], &["--completions", "bash"], &["--completions", "zsh"], &["--completions", "fish"]]
    {
        let (text, code, errors) = finish(arguments);
        let text = text.join("\n").replace('\\', "");
        assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
        for option in &options {
            let option = option.trim_matches(|c: char| !c.is_alphanumeric());
            assert!(text.contains(option), "{arguments:?}: {option}");
        }
    }
}

/// A command goes on, and its exit status is told, though its report cannot be written.
#[test]
fn a_command_keeps_its_status_without_its_report() {
    let nobody = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let run = |report: Stdio, options: &[&str], script: &str| {
        let mut command = tcptop(&[options, &["--", "sh", "-c", script]].concat());
        command.stderr(report).status().unwrap().code()
    };
    assert_eq!([run(nobody(), &[], "exit 5"), run(full(), &[], "exit 5")], [Some(5); 2]);
    assert_eq!([run(nobody(), &[], "exit 0"), run(full(), &[], "exit 0")], [Some(0), Some(1)]);
    let begin = Instant::now();
    assert_eq!(run(nobody(), &["--json"], "sleep 2; exit 7"), Some(7));
    assert!(begin.elapsed() >= Duration::from_secs(2));
    let missing = tcptop(&["--", "/nowhere/at/all"]).stderr(full()).status().unwrap();
    assert_eq!(missing.code(), Some(127));
}
