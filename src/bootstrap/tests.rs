// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole search on this machine, with sockets of the test process. Needs no privilege.

use super::*;
use crate::initial;
use crate::model::{ConnectionKey, NetNs, Process, Protocol, TcpState};
use std::fs;
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> ConnectionKey {
    ConnectionKey::new(protocol, local.ip(), local.port(), remote.ip(), remote.port())
}

fn tcp_pair(bind: &str, connect: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((bind, 0)).unwrap();
    let client = TcpStream::connect((connect, listener.local_addr().unwrap().port())).unwrap();
    (client, listener.accept().unwrap().0)
}

fn key_of(socket: &TcpStream) -> ConnectionKey {
    key(Protocol::Tcp, socket.local_addr().unwrap(), socket.peer_addr().unwrap())
}

fn no_iterator() -> Result<Holders, String> {
    Err("the test has none".into())
}

fn from_proc_alone() -> Vec<ConnectionRecord> {
    let (found, outcome) = existing_connections(Bootstrap::Procfs, &no_iterator()).unwrap();
    assert_eq!(outcome.way, Bootstrap::Procfs);
    found
}

fn find(key: ConnectionKey) -> Vec<ConnectionRecord> {
    from_proc_alone().into_iter().filter(|record| record.key == key).collect()
}

/// Waits for a state after a close or shutdown. This may take a moment: a FIN is acknowledged with a delay, and a child
/// that another test starts holds copies of our sockets until it calls exec(2).
fn wait_for(key: ConnectionKey, state: Option<TcpState>) {
    let reached = || find(key).first().and_then(|record| record.tcp_state) == state;
    let patience = Instant::now() + Duration::from_secs(5);
    while !reached() {
        assert!(Instant::now() < patience, "{key} does not become {state:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// There is exactly one record, and this process owns it (not the thread that runs the test).
fn assert_ours(key: ConnectionKey, state: Option<TcpState>) {
    let before = KernelTime::now();
    let found = find(key);
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    let record = &found[0];
    let owner = record.owner.expect("an owner");
    assert_eq!(owner.pid, std::process::id());
    assert_eq!(owner.name.as_str(), fs::read_to_string("/proc/self/comm").unwrap().trim_end());
    assert_eq!(owner.uid, rustix::process::getuid().as_raw());
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
    assert!((1..=now).contains(&owner.start_time_ns), "{owner:?} at {now}");
    assert_eq!(record.provenance, Provenance::Bootstrap);
    assert_eq!(record.tcp_state, state);
    assert_eq!(record.netns, NetNs::of_process(std::process::id()).ok());
    assert!(record.first_seen >= before && record.first_seen <= KernelTime::now());
    assert!(record.is_partial && !record.is_closed && record.socket.is_none());
}

#[test]
fn records_combine_the_socket_tables_with_the_owners() {
    let socket = |inode| Socket {
        key: key(Protocol::Tcp, ([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into()),
        tcp_state: Some(TcpState::LastAck),
        inode,
    };
    let mut owners = Owners::default();
    owners.assign(7, Process::new(70, "seven"));
    let found = [7, 0, 8].map(|inode| owned(partial(&socket(inode), NetNs::new(9)), &owners, KernelTime(5)));
    assert_eq!(found.iter().map(ConnectionRecord::pid).collect::<Vec<_>>(), [Some(70), None, None]);
    let provenance: Vec<_> = found.iter().map(|record| record.provenance).collect();
    assert_eq!(provenance, [Provenance::Bootstrap, Provenance::Unknown, Provenance::Unknown]);
    for record in found {
        assert_eq!((record.netns, record.tcp_state), (NetNs::new(9), Some(TcpState::LastAck)));
        assert_eq!(
            (record.first_seen, record.last_seen, record.is_partial),
            (KernelTime(5), KernelTime(5), true)
        );
    }
}

#[test]
fn both_ends_of_tcp_connections_are_found() {
    let (client, server) = tcp_pair("127.0.0.1", "127.0.0.1");
    assert_ours(key_of(&client), Some(TcpState::Established));
    assert_ours(key_of(&server), Some(TcpState::Established));
    client.shutdown(Shutdown::Write).unwrap();
    wait_for(key_of(&client), Some(TcpState::FinWait2));
    wait_for(key_of(&server), Some(TcpState::CloseWait));
    assert_ours(key_of(&client), Some(TcpState::FinWait2));
    assert_ours(key_of(&server), Some(TcpState::CloseWait));
}

#[test]
fn tcp_over_ipv6_is_found_and_mapped_addresses_are_ipv4() {
    let (client, server) = tcp_pair("::1", "::1");
    assert_ours(key_of(&client), Some(TcpState::Established));
    assert_ours(key_of(&server), Some(TcpState::Established));

    let (client, server) = tcp_pair("::", "127.0.0.1");
    assert!(server.peer_addr().unwrap().is_ipv6());
    assert!(key_of(&server).remote_addr.is_ipv4());
    assert_ours(key_of(&client), Some(TcpState::Established));
    assert_ours(key_of(&server), Some(TcpState::Established));
}

#[test]
fn udp_sockets_are_found_with_and_without_a_peer() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server_addr = server.local_addr().unwrap();
    assert_ours(key(Protocol::Udp, server_addr, ([0, 0, 0, 0], 0).into()), None);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server_addr).unwrap();
    assert_ours(key(Protocol::Udp, client.local_addr().unwrap(), server_addr), None);
}

#[test]
fn udp_over_ipv6_is_found_and_mapped_addresses_are_ipv4() {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
    let server = UdpSocket::bind(any).unwrap();
    let port = server.local_addr().unwrap().port();
    assert_ours(key(Protocol::Udp, server.local_addr().unwrap(), any), None);

    let client = UdpSocket::bind("[::1]:0").unwrap();
    client.connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    assert_ours(key(Protocol::Udp, client.local_addr().unwrap(), (Ipv6Addr::LOCALHOST, port).into()), None);

    let mapped = UdpSocket::bind(any).unwrap();
    mapped.connect("[::ffff:127.0.0.1]:9").unwrap();
    let local = mapped.local_addr().unwrap();
    assert!(local.is_ipv6());
    assert_ours(key(Protocol::Udp, ([127, 0, 0, 1], local.port()).into(), ([127, 0, 0, 1], 9).into()), None);
}

#[test]
fn an_unaccepted_connection_has_no_owner_and_an_ended_one_is_not_listed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let client = TcpStream::connect(local).unwrap();
    let server = key(Protocol::Tcp, local, client.local_addr().unwrap());
    let waiting = find(server);
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!((waiting[0].owner, waiting[0].provenance), (None, Provenance::Unknown));
    assert_eq!(waiting[0].tcp_state, Some(TcpState::Established));
    assert!(
        find(key(Protocol::Tcp, local, ([0, 0, 0, 0], 0).into())).is_empty(),
        "the listener is no connection"
    );

    // Closed at this end but not at the other: the kernel has reported CLOSE, and shows a placeholder in FIN_WAIT2.
    let ours = key_of(&client);
    drop(client);
    wait_for(server, Some(TcpState::CloseWait));
    wait_for(ours, None);
}

#[test]
fn a_shared_socket_stays_with_the_elder_process_until_only_the_younger_has_it() {
    let (client, server) = tcp_pair("127.0.0.1", "127.0.0.1");
    let key = key_of(&server);
    let stdin = Stdio::from(OwnedFd::from(server.try_clone().unwrap()));
    let mut child = Command::new("cat").stdin(stdin).stdout(Stdio::null()).spawn().unwrap();
    assert_ours(key, Some(TcpState::Established));
    drop(server);
    let handed_on = find(key);
    drop(client);
    child.wait().unwrap();
    assert_eq!(handed_on[0].pid(), Some(child.id()));
    assert_eq!(handed_on[0].process_name().unwrap(), "cat");
}

#[test]
fn one_search_finds_many_sockets() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = server.local_addr().unwrap();
    let sockets: Vec<_> = (0..200).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().for_each(|socket| socket.connect(peer).unwrap());
    let found = from_proc_alone();
    let ours = found.iter().filter(|record| record.key.remote_port == peer.port());
    assert_eq!(ours.filter(|record| record.pid() == Some(std::process::id())).count(), sockets.len());
}

#[test]
fn without_an_iterator_owners_come_from_proc_and_the_limit_says_why() {
    let (client, _server) = tcp_pair("127.0.0.1", "127.0.0.1");
    let (found, outcome) = existing_connections(Bootstrap::SockDiag, &no_iterator()).unwrap();
    let row = found.iter().find(|record| record.key == key_of(&client)).unwrap();
    assert_eq!(row.pid(), Some(std::process::id()));
    assert!(outcome.limits.contains(&"owners out of /proc: the test has none".to_owned()), "{outcome:?}");
    // A kernel without INET_DIAG says so.
    assert_eq!(
        outcome.way == Bootstrap::Procfs,
        outcome.limits.iter().any(|limit| limit.starts_with("sock_diag"))
    );
}

fn refused<T>(why: &str) -> Result<T, String> {
    Err(why.into())
}

fn unread() -> Result<Vec<Socket>> {
    Err(unreadable("its tables", std::io::Error::from(std::io::ErrorKind::PermissionDenied)))
}

/// One namespace refuses sock_diag, and another refuses its tables, too. Each costs its own records and no others.
#[test]
fn a_network_namespace_that_cannot_be_read_costs_only_its_own_connections() {
    let _pair = tcp_pair("127.0.0.1", "127.0.0.1");
    let wanted = Bootstrap::SockDiag;
    let known = |n: u8| {
        let key = ConnectionKey::new(Protocol::Tcp, [10, 0, 0, n].into(), 1, [10, 0, 0, 2].into(), 2);
        Ok(vec![(0, ConnectionRecord::new(key, KernelTime(0)))])
    };
    let scans = vec![
        scan(wanted, |_| known(1), || unreachable!("sock_diag is enough")),
        scan(wanted, |_| refused("sock_diag: no memory"), sockets::read),
        scan(wanted, |_| refused("sock_diag: no memory"), unread),
        scan(wanted, |_| known(4), unread),
    ];
    let (found, outcome) = gather(scans).unwrap();
    let whole: Vec<_> =
        found.iter().filter(|(_, row)| !row.is_partial).map(|(_, row)| row.key.local_addr).collect();
    assert_eq!(whole, [[10, 0, 0, 1], [10, 0, 0, 4]].map(std::net::IpAddr::from));
    assert!(found.len() >= 4, "and both ends of the pair out of /proc");
    assert_eq!(outcome.way, Bootstrap::SockDiag);
    let limits = [
        "network namespaces out of /proc, without totals: 1 (sock_diag: no memory)",
        "network namespaces that cannot be read: 1 (cannot read its tables: permission denied)",
    ];
    assert_eq!(outcome.limits, limits);
    // If every namespace has the same limit, it is named once. If no namespace can be read, that is an error.
    let scans = (0..3).map(|_| scan(wanted, |_| refused("sock_diag: no"), || Ok(Vec::new()))).collect();
    let (_, outcome) = gather(scans).unwrap();
    assert_eq!((outcome.way, outcome.limits), (Bootstrap::Procfs, vec!["sock_diag: no".to_owned()]));
    assert!(gather(vec![scan(wanted, |_| refused("no"), unread)]).is_err());
}

#[test]
fn a_survey_lists_the_sockets_that_exist() {
    let (client, server) = tcp_pair("127.0.0.1", "127.0.0.1");
    let udp = UdpSocket::bind("[::1]:0").unwrap();
    let Ok(before) = survey(vec![Protocol::Tcp, Protocol::Udp]) else {
        // This kernel has no INET_DIAG.
        return assert!(diag::is_there().is_err());
    };
    let cookies = [client.as_fd(), server.as_fd(), udp.as_fd()]
        .map(|s| rustix::net::sockopt::socket_cookie(s).unwrap());
    assert!(cookies.iter().all(|&cookie| before.shows(cookie)));
    let here = NetNs::current().unwrap();
    assert!(before.covers(Protocol::Tcp, here) && before.covers(Protocol::Udp, here));
    assert!(!before.covers(Protocol::Tcp, NetNs::new(1).unwrap()));
    drop((client, server, udp));
    let after = survey(vec![Protocol::Tcp]).unwrap();
    // A child that another test has started may hold copies for a moment.
    let patience = Instant::now() + Duration::from_secs(5);
    while cookies.iter().any(|&cookie| survey(Vec::new()).unwrap().shows(cookie)) {
        assert!(Instant::now() < patience, "{cookies:?} do not go");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(after.covers(Protocol::Tcp, here) && !after.covers(Protocol::Udp, here));
}

#[test]
fn sockets_whose_owner_is_hidden_are_counted() {
    let mut owners = Owners::default();
    owners.assign(7, Process::new(70, "seven"));
    let limit = |owners: &Owners| owners.limit([7, 8, 9].into_iter());
    let in_a_namespace = (!initial::in_initial_pid_namespace()).then(|| {
        "sockets whose owner is out of sight: 2 (this process is in a pid namespace, which shows no others)".to_owned()
    });
    assert_eq!(limit(&owners), in_a_namespace);
    owners.hidden = 30;
    let hidden = "sockets whose owner is out of sight: 2 (the files of 30 processes may not be looked at)";
    assert_eq!(limit(&owners).as_deref(), Some(hidden));
    owners.assign(8, Process::new(80, "eight"));
    owners.assign(9, Process::new(90, "nine"));
    assert_eq!(limit(&owners), None);
}

#[test]
fn the_expected_source_is_the_wanted_one_or_proc() {
    let (holders, outcome) = prepare(Bootstrap::Procfs);
    assert!(holders.is_err());
    assert_eq!((outcome.way, outcome.limits), (Bootstrap::Procfs, vec!["not searched for yet".into()]));
    let (_, outcome) = prepare(Bootstrap::SockDiag);
    let refused = outcome.limits.iter().any(|limit| limit.starts_with("sock_diag"));
    assert_eq!(outcome.way == Bootstrap::Procfs, refused);
}
