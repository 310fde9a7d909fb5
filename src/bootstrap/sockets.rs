// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listed sockets by the socket tables of /proc/net.

use super::unreadable;
use crate::error::Result;
use crate::model::{ConnectionKey, Protocol, TcpState};
use procfs::net::{TcpNetEntries, TcpNetEntry, UdpNetEntries, UdpNetEntry};
use procfs::{FromReadSI, ProcError, ProcResult};
use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;

/// A connection in a socket table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) key: ConnectionKey,
    /// None for UDP.
    pub(super) tcp_state: Option<TcpState>,
    /// The number of the socket's inode, or [`NO_FILE`].
    pub(super) inode: u64,
}

/// The inode number of a socket without a file. Such a socket was not accepted yet, or was closed by its process while
/// the kernel still delivers sent bytes.
pub(super) const NO_FILE: u64 = 0;

/// All connections of the calling thread's network namespace, each once.
///
/// The table `tcp` is required. The others may be missing: without IPv6 the kernel has no `tcp6` and no `udp6`.
pub(super) fn read() -> Result<Vec<Socket>> {
    let path = path("tcp");
    let tcp: TcpNetEntries = read_table(&path).map_err(|e| unreadable(&path, e))?;
    let tcp6: Option<TcpNetEntries> = read_optional("tcp6");
    let udp: Option<UdpNetEntries> = read_optional("udp");
    let udp6: Option<UdpNetEntries> = read_optional("udp6");

    let tcp = tcp.0.iter().chain(tcp6.iter().flat_map(|table| &table.0)).filter_map(from_tcp);
    let udp = udp.iter().chain(&udp6).flat_map(|table| &table.0).map(from_udp);
    Ok(unique(tcp.chain(udp)))
}

/// The number of TCP and UDP sockets in the calling thread's network namespace; 0 if it cannot be read.
pub(super) fn count() -> usize {
    let tables = ["sockstat", "sockstat6"].map(|table| fs::read_to_string(path(table)).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines()).filter_map(in_use).sum()
}

/// The number in a line like `TCP: inuse 7 orphan 0 …`, if the line is about TCP or UDP.
fn in_use(line: &str) -> Option<usize> {
    let (name, counts) = line.split_once(": inuse ")?;
    let count = counts.split(' ').next()?;
    matches!(name, "TCP" | "TCP6" | "UDP" | "UDP6").then(|| count.parse().ok()).flatten()
}

/// The path of a table of the calling thread's network namespace. `/proc/net` would be that of the main thread.
fn path(table: &str) -> String {
    format!("/proc/thread-self/net/{table}")
}

fn read_table<T: FromReadSI>(path: &str) -> ProcResult<T> {
    T::from_file(path, procfs::current_system_info())
}

fn read_optional<T: FromReadSI>(table: &str) -> Option<T> {
    let path = path(table);
    match read_table(&path) {
        Ok(entries) => Some(entries),
        Err(ProcError::NotFound(_)) => None,
        Err(e) => {
            log::warn!("connections in {path} are not known: {e}");
            None
        }
    }
}

/// Removes repeated sockets. The kernel hands out a table in pieces, and finds its place again by counting. If sockets
/// come and go meanwhile, a socket can appear twice.
fn unique(sockets: impl Iterator<Item = Socket>) -> Vec<Socket> {
    let mut seen = HashSet::new();
    sockets.filter(|socket| seen.insert((socket.inode, socket.key))).collect()
}

fn from_tcp(entry: &TcpNetEntry) -> Option<Socket> {
    let state = TcpState::from_kernel(u32::from(entry.state.to_u8()));
    let key = key(Protocol::Tcp, entry.local_address, entry.remote_address);
    let inode = entry.inode;
    is_connection(state, inode).then_some(Socket { key, tcp_state: Some(state), inode })
}

/// The listed UDP socket. If it is not connected, it has an unspecified peer with port 0.
fn from_udp(entry: &UdpNetEntry) -> Socket {
    let key = key(Protocol::Udp, entry.local_address, entry.remote_address);
    Socket { key, tcp_state: None, inode: entry.inode }
}

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> ConnectionKey {
    ConnectionKey::new(protocol, local.ip(), local.port(), remote.ip(), remote.port())
}

/// Will an event report the end of this entry's connection? Other entries would stay in a table for ever.
fn is_connection(state: TcpState, inode: u64) -> bool {
    match state {
        // A listener has no peer, and a closed socket has none any more.
        TcpState::Listen | TcpState::Close => false,
        // The socket has reported CLOSE and is gone. A placeholder keeps its addresses from being used again.
        TcpState::TimeWait => false,
        // The same placeholder, but the peer has not closed its side yet. /proc shows it in the state FIN_WAIT2,
        // without an inode. In rare cases it is a socket (tcp_fin_timeout above 60 s). Then its end will be its only
        // event, and that event has all that this entry has.
        TcpState::FinWait2 if inode == NO_FILE => false,
        // A request to a listener is not a socket yet. /proc shows it in the state SYN_RECV.
        TcpState::NewSynRecv => false,
        TcpState::SynRecv if inode == NO_FILE => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::{ExplicitSystemInfo, FromBufReadSI};

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000005 00:00000000 00000000  1000        0 12 1 0000000000000000 20 4 30 10 -1
   2: 0A00000A:0050 0B00000A:C351 03 00000000:00000000 01:00000018 00000000     0        0 0 0 0000000000000000
   3: 0A00000A:0050 0B00000A:C352 04 00000001:00000000 01:00000018 00000000     0        0 0 3 0000000000000000
   4: 0A00000A:0050 0B00000A:C353 05 00000000:00000000 03:00000A2F 00000000     0        0 0 3 0000000000000000
   5: 0A00000A:0050 0B00000A:C354 06 00000000:00000000 03:00000A2F 00000000     0        0 0 3 0000000000000000
   6: 0A00000A:0050 0B00000A:C355 05 00000000:00000000 00:00000000 00000000     0        0 13 3 0000000000000000
   7: 0A00000A:C356 0B00000A:0050 02 00000001:00000000 01:00000032 00000002     0        0 14 2 0000000000000000
   8: 0100007F:1F90 0100007F:C350 01 00000000:00000005 00:00000000 00000000  1000        0 12 1 0000000000000000 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:1F91 0000000000000000FFFF00000200007F:C360 01 00000000:00000000 00:00000000 00000000     0        0 21 1 0000000000000000 20 4 30 10 -1
   1: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C361 08 00000000:00000000 00:00000000 00000000     0        0 22 1 0000000000000000 20 4 30 10 -1
";
    const UDP: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 31 2 0000000000000000 0
12345: 0100007F:A000 0100007F:0035 01 00000000:00000300 00:00000000 00000000  1000        0 32 2 0000000000000000 17
";
    const UDP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  200: 00000000000000000000000000000000:14E9 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 41 2 0000000000000000 0
  201: 0000000000000000FFFF00000100007F:A001 0000000000000000FFFF00000100007F:0035 01 00000000:00000000 00:00000000 00000000  1000        0 42 2 0000000000000000 0
";

    /// The kernel prints addresses as words in its own byte order; the texts above are from little-endian machines.
    fn parse<T: FromBufReadSI>(text: &str) -> T {
        let machine = ExplicitSystemInfo {
            boot_time_secs: 0,
            ticks_per_second: 100,
            page_size: 4096,
            is_little_endian: true,
        };
        T::from_buf_read(text.as_bytes(), &machine).unwrap()
    }

    fn shown(sockets: impl Iterator<Item = Socket>) -> Vec<String> {
        let show = |s: Socket| match s.tcp_state {
            Some(state) => format!("{} {state} {}", s.key, s.inode),
            None => format!("{} {}", s.key, s.inode),
        };
        unique(sockets).into_iter().map(show).collect()
    }

    #[test]
    fn only_tcp_and_udp_sockets_in_use_are_counted() {
        let lines = [
            "sockets: used 16",
            "TCP: inuse 7 orphan 0 tw 36134 alloc 7 mem 19",
            "UDP6: inuse 2",
            "RAW: inuse 4",
        ];
        assert_eq!(lines.map(in_use), [None, Some(7), Some(2), None]);
        assert!(count() < 1 << 30);
    }

    #[test]
    fn a_tcp_table_gives_each_connection_once_and_nothing_else() {
        let tcp = parse::<TcpNetEntries>(TCP);
        assert_eq!(
            shown(tcp.0.iter().filter_map(from_tcp)),
            [
                "tcp 127.0.0.1:8080 -> 127.0.0.1:50000 established 12",
                "tcp 10.0.0.10:80 -> 10.0.0.11:50002 fin_wait1 0",
                "tcp 10.0.0.10:80 -> 10.0.0.11:50005 fin_wait2 13",
                "tcp 10.0.0.10:50006 -> 10.0.0.11:80 syn_sent 14",
            ]
        );
    }

    #[test]
    fn ipv6_tables_show_mapped_addresses_as_ipv4() {
        let tcp6 = parse::<TcpNetEntries>(TCP6);
        assert_eq!(
            shown(tcp6.0.iter().filter_map(from_tcp)),
            [
                "tcp 127.0.0.1:8081 -> 127.0.0.2:50016 established 21",
                "tcp [2001:db8::1]:22 -> [2001:db8::2]:50017 close_wait 22",
            ]
        );
        let udp6 = parse::<UdpNetEntries>(UDP6);
        assert_eq!(
            shown(udp6.0.iter().map(from_udp)),
            ["udp [::]:5353 -> [::]:0 41", "udp 127.0.0.1:40961 -> 127.0.0.1:53 42"]
        );
    }

    #[test]
    fn an_unconnected_udp_socket_has_no_peer_and_no_state() {
        let udp = parse::<UdpNetEntries>(UDP);
        assert_eq!(
            shown(udp.0.iter().map(from_udp)),
            ["udp 127.0.0.53:53 -> 0.0.0.0:0 31", "udp 127.0.0.1:40960 -> 127.0.0.1:53 32"]
        );
    }

    #[test]
    fn damaged_tables_are_an_error_or_less_and_no_panic() {
        for table in [TCP, TCP6] {
            for at in 0..table.len() {
                for damage in ["", " ", "\n", ":", "0", "F", "é", "\u{0}"] {
                    let damaged = [&table[..at], damage, &table[at + 1..]].concat();
                    let info = ExplicitSystemInfo {
                        boot_time_secs: 0,
                        ticks_per_second: 100,
                        page_size: 4096,
                        is_little_endian: true,
                    };
                    let read = TcpNetEntries::from_buf_read(damaged.as_bytes(), &info);
                    drop(read.map(|table| table.0.iter().filter_map(from_tcp).count()));
                }
            }
        }
    }

    #[test]
    fn empty_tables_are_no_error() {
        assert!(parse::<TcpNetEntries>("  sl  local_address\n").0.is_empty());
        assert!(parse::<UdpNetEntries>("").0.is_empty());
        assert!(read_optional::<UdpNetEntries>("no-such-table").is_none());
    }

    #[test]
    fn sockets_with_different_inodes_are_two_even_with_one_key() {
        let socket = from_udp(&parse::<UdpNetEntries>(UDP).0[0]);
        let reuseport = Socket { inode: 99, ..socket };
        assert_eq!(unique([socket, reuseport, socket].into_iter()), [socket, reuseport]);
    }
}
