// SPDX-License-Identifier: MIT OR Apache-2.0
//! The self-test: it moves known bytes over loopback, and demands events of them. An attached program may never run,
//! and without this test that looks like an idle machine.

use crate::capabilities::{Feature, SelfCheck, SelfTestResult};
use crate::decode;
use crate::event::CollectorEvent;
use crate::kernel::{Ring, Session};
use crate::model::Protocol;
use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The bytes that each side sends. The numbers differ, so that they cannot be mistaken for each other.
const REQUEST: usize = 1201;
const ANSWER: usize = 803;

/// How long the test waits for its sockets, and how long for their events.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// At most this many records of other sockets are kept for the user while the test runs.
const MOST_KEPT: usize = 65_536;

/// The two sockets of one exchange, by their ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exchange {
    protocol: Protocol,
    address: IpAddr,
    client: u16,
    server: u16,
}

/// The bytes that events reported, out and in, for each end of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    client: [u64; 2],
    server: [u64; 2],
}

const EXPECTED: Seen =
    Seen { client: [REQUEST as u64, ANSWER as u64], server: [ANSWER as u64, REQUEST as u64] };

/// Runs the test on a session whose reader has not started. Returns the results, and the records of other sockets that
/// were in the ring.
pub(crate) fn run(session: &Session) -> crate::error::Result<(Vec<SelfCheck>, Vec<Vec<u8>>)> {
    let (mut ring, mut records) = (session.ring()?, Vec::new());
    let mut checks = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            checks.extend(match exchange(protocol, address) {
                Ok(exchange) => {
                    let seen = observe(&mut ring, &mut records, &exchange);
                    let is_full = records.len() >= MOST_KEPT;
                    forget(&exchange, &mut records);
                    judge(&exchange, seen, is_full)
                }
                Err(e) => features(protocol).map(|(feature, _)| SelfCheck {
                    feature,
                    address,
                    result: SelfTestResult::Skipped(format!("the loopback does not work: {e}")),
                }),
            });
        }
    }
    Ok((checks, records))
}

fn features(protocol: Protocol) -> [(Feature, usize); 2] {
    match protocol {
        Protocol::Tcp => [(Feature::TcpSend, 0), (Feature::TcpRecv, 1)],
        Protocol::Udp => [(Feature::UdpSend, 0), (Feature::UdpRecv, 1)],
    }
}

/// Moves the bytes and closes the sockets. The close makes the kernel side report all bytes.
fn exchange(protocol: Protocol, address: IpAddr) -> io::Result<Exchange> {
    let any_port = SocketAddr::new(address, 0);
    let (client, server) = match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(any_port)?;
            let mut client = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
            let (mut server, _) = listener.accept()?;
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(PATIENCE))?;
            }
            client.write_all(&[1; REQUEST])?;
            server.read_exact(&mut [0; REQUEST])?;
            server.write_all(&[2; ANSWER])?;
            client.read_exact(&mut [0; ANSWER])?;
            (client.local_addr()?, server.local_addr()?)
        }
        Protocol::Udp => {
            let (client, server) = (UdpSocket::bind(any_port)?, UdpSocket::bind(any_port)?);
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(PATIENCE))?;
            }
            client.send_to(&[1; REQUEST], server.local_addr()?)?;
            let (_, peer) = server.recv_from(&mut [0; REQUEST])?;
            server.send_to(&[2; ANSWER], peer)?;
            client.recv_from(&mut [0; ANSWER])?;
            (client.local_addr()?, server.local_addr()?)
        }
    };
    Ok(Exchange { protocol, address, client: client.port(), server: server.port() })
}

/// Reads the ring until events have reported all bytes, or until the time is over.
fn observe(ring: &mut Ring, records: &mut Vec<Vec<u8>>, exchange: &Exchange) -> Seen {
    let deadline = Instant::now() + PATIENCE;
    let (mut seen, mut judged) = (Seen::default(), records.len());
    loop {
        take_all(ring, records, deadline);
        add(exchange, records[judged..].iter().map(Vec::as_slice), &mut seen);
        judged = records.len();
        if seen == EXPECTED || judged >= MOST_KEPT || Instant::now() >= deadline {
            // The records of the sockets' ends come after those of their bytes.
            thread::sleep(LOOK_EVERY);
            take_all(ring, records, deadline);
            return seen;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Takes all records out of the ring. On a busy machine, the test's records are behind many others.
fn take_all(ring: &mut Ring, records: &mut Vec<Vec<u8>>, deadline: Instant) {
    loop {
        ring.look(|record| records.push(record.to_vec()));
        if !ring.is_behind() || records.len() >= MOST_KEPT || Instant::now() >= deadline {
            return;
        }
    }
}

fn add<'r>(exchange: &Exchange, records: impl Iterator<Item = &'r [u8]>, seen: &mut Seen) {
    for event in records.filter(|record| is_of(exchange, record)).filter_map(|r| decode::event(r).ok()) {
        let (transfer, direction) = match &event {
            CollectorEvent::TcpSend(t) | CollectorEvent::UdpSend(t) => (t, 0),
            CollectorEvent::TcpRecv(t) | CollectorEvent::UdpRecv(t) => (t, 1),
            _ => continue,
        };
        let is_client = transfer.connection.key.local_port == exchange.client;
        let side = if is_client { &mut seen.client } else { &mut seen.server };
        side[direction] += transfer.bytes;
    }
}

/// Drops the records of the test's own sockets, also those from before they had a port.
fn forget(exchange: &Exchange, records: &mut Vec<Vec<u8>>) {
    let socket = |record: &Vec<u8>| decode::event(record).ok()?.connection().map(|info| info.socket);
    let ours: HashSet<u64> =
        records.iter().filter(|record| is_of(exchange, record)).filter_map(socket).collect();
    records.retain(|record| socket(record).is_none_or(|socket| !ours.contains(&socket)));
}

/// Is this record about a socket of the test? While these sockets existed, a moment ago, no others had their ports.
fn is_of(exchange: &Exchange, record: &[u8]) -> bool {
    let Ok(event) = decode::event(record) else { return false };
    let Some(key) = event.connection().map(|info| info.key) else { return false };
    let ports = [exchange.client, exchange.server];
    let is_ours = |address: IpAddr| address == exchange.address || address.is_unspecified();
    key.protocol == exchange.protocol
        && ports.contains(&key.local_port)
        && (key.remote_port == 0 || ports.contains(&key.remote_port))
        && is_ours(key.local_addr)
        && is_ours(key.remote_addr)
}

/// Compares the reported bytes with the moved ones. If there were too many other records to read all, missing events
/// prove nothing.
fn judge(exchange: &Exchange, seen: Seen, is_full: bool) -> [SelfCheck; 2] {
    features(exchange.protocol).map(|(feature, direction)| {
        let got = [seen.client[direction], seen.server[direction]];
        let wanted = [EXPECTED.client[direction], EXPECTED.server[direction]];
        let result = if got == wanted {
            SelfTestResult::Passed
        } else if is_full {
            SelfTestResult::Skipped(format!("{MOST_KEPT} other events came in meanwhile"))
        } else {
            let ([a, b], [c, d]) = (wanted, got);
            SelfTestResult::Failed(if got == [0, 0] {
                format!("{a} and {b} bytes were moved, and no event reported them")
            } else {
                format!("{a} and {b} bytes were moved, and events reported {c} and {d}")
            })
        };
        SelfCheck { feature, address: exchange.address, result }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::{Backend, Capabilities, Visibility};

    fn exchange() -> Exchange {
        Exchange { protocol: Protocol::Udp, address: Ipv4Addr::LOCALHOST.into(), client: 7, server: 8 }
    }

    #[test]
    fn a_check_with_missing_bytes_fails_and_counts_them() {
        assert_eq!(
            judge(&exchange(), EXPECTED, true).map(|c| c.result),
            [SelfTestResult::Passed, SelfTestResult::Passed]
        );
        let blind = Seen { client: [1201, 0], server: [0, 1201] };
        let busy = judge(&exchange(), blind, true);
        assert!(
            busy.iter()
                .all(|check| matches!(&check.result, SelfTestResult::Skipped(why) if why.contains("65536")))
        );
        let [send, recv] = judge(&exchange(), blind, false);
        assert_eq!((send.feature, recv.feature), (Feature::UdpSend, Feature::UdpRecv));
        let text = |check: SelfCheck| match check.result {
            SelfTestResult::Failed(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(send), "1201 and 803 bytes were moved, and events reported 1201 and 0");
        assert_eq!(text(recv), "803 and 1201 bytes were moved, and events reported 0 and 1201");
    }

    #[test]
    fn a_hook_that_never_fires_is_a_limit_that_says_so() {
        let seen = [Feature::UdpSend, Feature::UdpRecv].map(|feature| (feature, Visibility::Exact));
        let can = Capabilities::new(Backend::Kprobe, String::new(), seen.to_vec(), Vec::new(), Vec::new());
        let without_sends = Seen { client: [0, 803], server: [0, 1201] };
        let can = can.with_self_test(judge(&exchange(), without_sends, false).to_vec());
        let limit = "the self-test over 127.0.0.1: 1201 and 803 bytes were moved, and no event reported them";
        assert_eq!(*can.visibility(Feature::UdpSend), Visibility::Limited(limit.into()));
        assert_eq!(*can.visibility(Feature::UdpRecv), Visibility::Exact);
        assert!(can.self_test()[0].has_failed() && !can.self_test()[1].has_failed());
    }

    #[test]
    fn both_protocols_exchange_bytes_over_loopback() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let exchange = super::exchange(protocol, Ipv4Addr::LOCALHOST.into()).unwrap();
            assert!(exchange.client != 0 && exchange.server != 0 && exchange.client != exchange.server);
        }
    }

    #[test]
    fn garbage_belongs_to_no_exchange() {
        assert!(!is_of(&exchange(), &[]));
        assert!(!is_of(&exchange(), &[0; 192]));
        let mut seen = Seen::default();
        add(&exchange(), [[3_u8; 50].as_slice()].into_iter(), &mut seen);
        assert_eq!(seen, Seen::default());
    }
}
