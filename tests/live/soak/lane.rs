// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two threads that talk to each other at random. Both draw the same numbers, so each knows what the other one does next;
//! only whether there is a next, and that something has arrived, is said over a channel that is not traced.

use crate::net::{checked, hear, port, recv, reset, send, tell};
use crate::tcp::temporary_file;
use crate::udp::bound;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tcptop::Protocol;

/// One end of a connection: protocol, local and remote port.
pub(crate) type End = (Protocol, u16, u16);

/// What went through it: bytes out and in; of UDP also datagrams out and in.
pub(crate) type Moved = [u64; 4];

/// So long a thread waits for the other one, which may have failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Up to 2^`bits`, and rather small.
    fn length(&mut self, bits: u64) -> usize {
        let limit = 1 << self.below(bits + 1);
        1 + self.below(limit) as usize
    }
}

/// One of the two threads. It keeps account of what its calls have returned.
pub(crate) struct Side {
    connects: bool,
    random: Random,
    other: UnixStream,
    moved: Vec<(End, Moved)>,
}

impl Side {
    pub(crate) fn new(connects: bool, seed: u64, other: UnixStream) -> Self {
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { connects, random: Random(0x9e37_79b9_7f4a_7c15 ^ seed), other, moved: Vec::new() }
    }

    /// Talks until this moment, and returns what went through each end that it has had.
    pub(crate) fn run(mut self, until: Instant) -> Vec<(End, Moved)> {
        if self.connects {
            self.connect(until)
        } else {
            self.accept()
        }
        self.moved
    }

    fn connect(&mut self, until: Instant) {
        let [l, peers @ ..] = [(); 3].map(|()| hear(&mut self.other) as u16);
        while Instant::now() < until {
            tell(&mut self.other, 1);
            match self.random.below(4) {
                0 => self.ask(peers),
                _ => self.stream(TcpStream::connect(("127.0.0.1", l)).unwrap(), l),
            }
        }
        tell(&mut self.other, 0);
    }

    fn accept(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peers = [bound("127.0.0.1:0"), bound("127.0.0.1:0")];
        for port in [listener.local_addr().unwrap().port(), peers[0].1, peers[1].1] {
            tell(&mut self.other, port.into());
        }
        while hear(&mut self.other) == 1 {
            if self.random.below(4) == 0 {
                self.answer(&peers);
            } else {
                let (socket, from) = listener.accept().unwrap();
                self.stream(socket, from.port());
            }
        }
    }

    /// True on one side, false on the other.
    fn draw_a_side(&mut self) -> bool {
        (self.random.below(2) == 0) == self.connects
    }

    /// A TCP connection: a few rounds, possibly none, and one of several ends.
    fn stream(&mut self, socket: TcpStream, remote: u16) {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = (Protocol::Tcp, port(&socket), remote);
        let (mut out, mut into) = (0, 0);
        for _ in 0..self.random.below(5) {
            let (sends, len, piece) = (self.draw_a_side(), self.random.length(17), self.random.length(14));
            let how = self.random.below(12);
            // A long text byte by byte would take too long.
            let piece = piece.max(len / 64);
            if sends {
                out += put(&socket, len, piece, how % 3);
            } else {
                into += get(&socket, len, piece, how % 4);
            }
        }
        let last = self.finish(socket);
        self.moved.push((end, [out + last.0, into + last.1, 0, 0]));
    }

    /// Ends a connection; returns what still went out and in.
    fn finish(&mut self, socket: TcpStream) -> (u64, u64) {
        let (is_first, len, part) = (self.draw_a_side(), self.random.length(14), self.random.length(13));
        match (self.random.below(5), is_first) {
            (0, true) => {
                socket.shutdown(Shutdown::Write).unwrap();
                (0, get(&socket, len, len, 0))
            }
            (0, false) => {
                assert_eq!(recv(&socket, 1, 0), 0);
                (put(&socket, len, len, 0), 0)
            }
            (1, true) => {
                // A reset would destroy what is still on its way.
                hear(&mut self.other);
                let out = put(&socket, len, len, 0);
                reset(socket);
                (out, 0)
            }
            (1, false) => {
                tell(&mut self.other, 1);
                (0, get_all(&socket))
            }
            (2, true) => {
                let out = put(&socket, len, len, 0);
                // Reset, but for a peer that closes before there is anything that it does not read.
                assert!([0, -libc::ECONNRESET as isize].contains(&recv(&socket, 1, 0)));
                (out, 0)
            }
            // Closes with data unread.
            (2, false) => (0, get(&socket, part.min(len - 1), part, 2)),
            (3, false) => (0, get_all(&socket)),
            // One side closes, or both do.
            _ => (0, 0),
        }
    }

    /// Datagrams from a new socket, which is connected to one peer or sends to two, and their answers.
    fn ask(&mut self, peers: [u16; 2]) {
        let (socket, local) = bound("127.0.0.1:0");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let choice = 1 + self.random.below(2);
        if choice == 1 {
            socket.connect(("127.0.0.1", peers[0])).unwrap();
        }
        for _ in 0..=self.random.below(6) {
            let (peer, out, into) = self.draw_datagrams(choice);
            if choice == 1 {
                assert_eq!(send(&socket, &vec![1; out], 0), out as isize);
                assert_eq!(recv(&socket, 5000, 0), into as isize);
            } else {
                assert_eq!(socket.send_to(&vec![1; out], ("127.0.0.1", peers[peer])).unwrap(), out);
                assert_eq!(receive(&socket), (into, peers[peer]));
            }
            self.moved.push(((Protocol::Udp, local, peers[peer]), [out as u64, into as u64, 1, 1]));
        }
    }

    fn answer(&mut self, peers: &[(UdpSocket, u16); 2]) {
        let choice = 1 + self.random.below(2);
        for _ in 0..=self.random.below(6) {
            let (peer, into, out) = self.draw_datagrams(choice);
            let (socket, local) = &peers[peer];
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            if into % 3 == 0 {
                assert_eq!(socket.peek(&mut [0; 5000]).unwrap(), into);
            }
            let (len, from) = receive(socket);
            assert_eq!((len, socket.send_to(&vec![1; out], ("127.0.0.1", from)).unwrap()), (into, out));
            self.moved.push(((Protocol::Udp, *local, from), [out as u64, into as u64, 1, 1]));
        }
    }

    /// To which of so many peers, how much there, and how much back.
    fn draw_datagrams(&mut self, choice: u64) -> (usize, usize, usize) {
        (self.random.below(choice) as usize, self.random.length(12), self.random.length(12))
    }
}

fn receive(socket: &UdpSocket) -> (usize, u16) {
    let (len, from) = socket.recv_from(&mut [0; 5000]).unwrap();
    (len, from.port())
}

/// Sends so many bytes: at once, in pieces, or out of a file.
fn put(socket: &TcpStream, len: usize, piece: usize, how: u64) -> u64 {
    let (bytes, piece) = (vec![1; len], if how == 1 { piece } else { len });
    let file = (how == 2).then(|| temporary_file(&bytes));
    let mut left = len;
    while left > 0 {
        let n = match &file {
            // SAFETY: no memory is involved.
            Some(file) => checked(unsafe {
                libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left)
            }),
            None => send(socket, &bytes[..left.min(piece)], 0),
        };
        assert!(n > 0, "{n}");
        left -= n as usize;
    }
    len as u64
}

/// Receives so many bytes: in pieces, in one call, after a look at the first ones, or without a copy.
fn get(socket: &TcpStream, len: usize, piece: usize, how: u64) -> u64 {
    if how == 2 {
        // Without MSG_WAITALL: what is only looked at may keep the window shut for the rest.
        assert!(recv(socket, len + 1, libc::MSG_PEEK) > 0);
    }
    let (piece, flags) = match how {
        1 => (len, libc::MSG_WAITALL),
        3 => (piece, libc::MSG_TRUNC),
        _ => (piece, 0),
    };
    let mut left = len;
    while left > 0 {
        let n = recv(socket, left.min(piece), flags);
        assert!(n > 0, "{n}");
        left -= n as usize;
    }
    len as u64
}

/// Receives until the end, or the reset.
fn get_all(socket: &TcpStream) -> u64 {
    std::iter::from_fn(|| u64::try_from(recv(socket, 5000, 0)).ok().filter(|&n| n > 0)).sum()
}
