#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Moves known bytes in twenty situations, each on a port of its own, and prints what it moved: one line of JSON each.

Numbers of scenarios are those of tests/scenarios.md. Sizes are in KiB where a tool shows no less. `ss` is asked just
before the sockets of a scenario are closed; its answer is part of the line.
"""

import array
import json
import mmap
import os
import socket
import struct
import subprocess
import threading
import time

K = 1024
IP = "127.0.0.1"


def listen(port, family=socket.AF_INET, address=IP):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(256)
    return listener


def read(sock, size):
    while size:
        got = len(sock.recv(min(size, 1 << 20)))
        if not got:
            raise EOFError
        size -= got


class Peer:
    """A process for one side. It does `work(channel)` and is waited for."""

    def __init__(self, work):
        self.channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            status = 1
            try:
                work(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def go(self):
        self.channel.send(b"g")

    def hear(self):
        return self.channel.recv(1)

    def wait(self):
        assert os.waitpid(self.pid, 0)[1] == 0, self.pid


def hold(channel):
    """Says that all is done and waits until it may close."""
    channel.send(b"d")
    channel.recv(1)


def ss(port):
    text = subprocess.run(["ss", "-tinH", f"( dport = :{port} or sport = :{port} )"], capture_output=True, text=True)
    lines = text.stdout.splitlines()
    return [f"{a.strip()} {b.strip()}" for a, b in zip(lines[::2], lines[1::2])]


def report(number, name, port, client, server, **more):
    """client, server: pids and bytes (out, in) of each side, as a list of [pid, out, in]."""
    line = {"scenario": number, "name": name, "port": port, "client": client, "server": server}
    print(json.dumps({**line, **more}), flush=True)


def pair(number, name, client_work, server_work, client_bytes, server_bytes, close_early=False):
    """One connection between two processes."""
    port = 9000 + number

    def serve(channel):
        listener = listen(port)
        channel.send(b"l")
        sock = listener.accept()[0]
        server_work(sock)
        if not close_early:
            hold(channel)
        sock.close()

    def call(channel):
        channel.recv(1)
        sock = socket.create_connection((IP, port))
        moved = client_work(sock)
        channel.send(struct.pack("q", moved or 0))
        hold(channel)
        sock.close()

    server = Peer(serve)
    server.hear()
    client = Peer(call)
    client.go()
    moved = struct.unpack("q", client.channel.recv(8))[0]
    client.hear()
    if not close_early:
        server.hear()
    listed = ss(port)
    client.go()
    client.wait()
    if not close_early:
        server.go()
    server.wait()
    client_bytes = [moved if n is None else n for n in client_bytes]
    server_bytes = [moved if n is None else n for n in server_bytes]
    report(number, name, port, [[client.pid, *client_bytes]], [[server.pid, *server_bytes]], ss=listed)


def plain():
    def client(sock):
        sock.sendall(bytes(500 * K))
        read(sock, 1000 * K)

    def server(sock):
        read(sock, 500 * K)
        sock.sendall(bytes(1000 * K))

    pair(1, "send 500, receive 1000", client, server, (500 * K, 1000 * K), (1000 * K, 500 * K))


def peek():
    def server(sock):
        for _ in range(2):
            assert len(sock.recv(40 * K, socket.MSG_PEEK | socket.MSG_WAITALL)) == 40 * K
        read(sock, 40 * K)

    pair(2, "peek at 40 twice, then read", lambda s: s.sendall(bytes(40 * K)), server, (40 * K, 0), (0, 40 * K))


def waitall():
    def client(sock):
        for _ in range(3):
            sock.sendall(bytes(40 * K))
            time.sleep(0.3)

    def server(sock):
        assert len(sock.recv(120 * K, socket.MSG_WAITALL)) == 120 * K

    pair(3, "one receive in three pieces of 40", client, server, (120 * K, 0), (0, 120 * K))


def sendfile():
    def client(sock):
        fd = os.memfd_create("x")
        os.write(fd, bytes(1000 * K))
        at = 0
        while at < 1000 * K:
            at += os.sendfile(sock.fileno(), fd, at, 1000 * K - at)

    pair(5, "sendfile of 1000", client, lambda s: read(s, 1000 * K), (1000 * K, 0), (0, 1000 * K))


def splice_in():
    def server(sock):
        out, into = os.pipe()
        left = 50 * K
        while left:
            n = os.splice(sock.fileno(), into, left)
            left -= len(os.read(out, n))
        read(sock, 50 * K)

    pair(6, "splice 50 from the socket, read 50", lambda s: s.sendall(bytes(100 * K)), server, (100 * K, 0), (0, 100 * K))


def splice_out():
    def client(sock):
        out, into = os.pipe()
        for _ in range(8):
            os.write(into, bytes(40 * K))
            left = 40 * K
            while left:
                left -= os.splice(out, sock.fileno(), left)

    pair(7, "splice 320 into the socket", client, lambda s: read(s, 320 * K), (320 * K, 0), (0, 320 * K))


def zero_copy():
    def client(sock):
        sock.setsockopt(socket.SOL_SOCKET, 60, 1)
        memory = memoryview(mmap.mmap(-1, 400 * K))
        at = 0
        while at < 400 * K:
            at += sock.send(memory[at:], 0x4000000)

    pair(8, "MSG_ZEROCOPY send of 400", client, lambda s: read(s, 400 * K), (400 * K, 0), (0, 400 * K))


def partial():
    def client(sock):
        sock.setblocking(False)
        moved = sock.send(bytes(32 << 20))
        for _ in range(5):
            try:
                moved += sock.send(bytes(8 << 20))
            except BlockingIOError:
                pass
        return moved

    pair(11, "non-blocking sends of 72 MiB", client, lambda s: time.sleep(0.5), (None, 0), (0, 0))


def failed():
    def client(sock):
        sock.sendall(bytes(10 * K))
        sock.shutdown(socket.SHUT_WR)
        for _ in range(20):
            try:
                sock.send(bytes(64 * K))
            except BrokenPipeError:
                pass

    pair(12, "send 10, then 20 sends that fail", client, lambda s: read(s, 10 * K), (10 * K, 0), (0, 10 * K))


def unread():
    def client(sock):
        sock.sendall(bytes(30 * K))
        time.sleep(0.5)

    def server(sock):
        sock.recv(30 * K, socket.MSG_PEEK | socket.MSG_WAITALL)

    pair(15, "closed with 30 unread", client, server, (30 * K, 0), (0, 0), close_early=True)


def has_ktls():
    """A kernel that has it refuses here because nothing is connected."""
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
    except OSError as error:
        return error.errno != 2
    return True


def ktls():
    def arm(sock):
        sock.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
        for direction in (1, 2):
            sock.setsockopt(282, direction, bytes([3, 3, 51, 0]) + bytes([7] * 28) + bytes(8))

    def client(sock):
        arm(sock)
        assert sock.recv(1) == b"x"
        for _ in range(10):
            sock.send(bytes(10 * K))

    def server(sock):
        arm(sock)
        sock.send(b"x")
        read(sock, 100 * K)

    record = 29
    sent = 10 * (10 * K + record)
    pair(20, "kTLS: 10 records of 10", client, server, (sent, 1 + record), (1 + record, sent))


def refused():
    def work(channel):
        channel.recv(1)
        sock = socket.socket()
        try:
            sock.connect((IP, 9025))
        except ConnectionRefusedError:
            channel.send(b"r")

    client = Peer(work)
    client.go()
    assert client.hear() == b"r"
    client.wait()
    report(25, "connect refused", 9025, [[client.pid, 0, 0]], [])


def readers():
    port = 9035

    def serve(channel):
        listener = listen(port)
        channel.send(b"l")
        socks = [listener.accept()[0] for _ in range(100)]
        channel.recv(1)
        for sock in socks:
            sock.sendall(bytes(10 * K))
        hold(channel)

    def reader(channel):
        sock = socket.create_connection((IP, port))
        channel.send(b"c")
        assert len(sock.recv(10 * K, socket.MSG_WAITALL)) == 10 * K
        hold(channel)

    server = Peer(serve)
    server.hear()
    clients = [Peer(reader) for _ in range(100)]
    for client in clients:
        client.hear()
    time.sleep(2)
    server.go()
    for client in clients:
        client.hear()
    server.hear()
    listed = ss(port)
    for peer in [*clients, server]:
        peer.go()
        peer.wait()
    got = [[client.pid, 0, 10 * K] for client in clients]
    report(35, "100 blocked readers get 10 each", port, got, [[server.pid, 1000 * K, 0]], ss=listed)


def short():
    port = 9036

    def serve(channel):
        listener = listen(port)
        channel.send(b"l")
        for _ in range(200):
            sock = listener.accept()[0]
            read(sock, K)
            sock.sendall(bytes(K))
            sock.close()

    def call(_channel):
        for _ in range(200):
            sock = socket.create_connection((IP, port))
            sock.sendall(bytes(K))
            read(sock, K)
            sock.close()

    server = Peer(serve)
    server.hear()
    client = Peer(call)
    client.wait()
    server.wait()
    moved = [200 * K, 200 * K]
    report(36, "200 short connections, 1 each way", port, [[client.pid, *moved]], [[server.pid, *moved]])


def shared():
    port = 9037

    def serve(channel):
        listener = listen(port)
        channel.send(b"l")
        sock = listener.accept()[0]
        read(sock, 500 * K)
        hold(channel)

    def call(channel):
        sock = socket.create_connection((IP, port))
        child = Peer(lambda _: sock.sendall(bytes(300 * K)))
        child.wait()
        sock.sendall(bytes(200 * K))
        channel.send(struct.pack("q", child.pid))
        hold(channel)

    server = Peer(serve)
    server.hear()
    client = Peer(call)
    child = struct.unpack("q", client.channel.recv(8))[0]
    client.hear()
    server.hear()
    listed = ss(port)
    for peer in (client, server):
        peer.go()
        peer.wait()
    shares = [[client.pid, 200 * K, 0], [child, 300 * K, 0]]
    report(37, "a forked socket: 200 and 300", port, shares, [[server.pid, 0, 500 * K]], ss=listed)


def passed_on():
    port = 9038

    def serve(channel):
        listener = listen(port)
        channel.send(b"l")
        sock = listener.accept()[0]
        read(sock, 300 * K)
        hold(channel)

    ours, theirs = socket.socketpair()

    def worker(channel):
        fds = socket.recv_fds(theirs, 1, 1)[1]
        sock = socket.socket(fileno=fds[0])
        sock.sendall(bytes(200 * K))
        hold(channel)

    def call(channel):
        sock = socket.create_connection((IP, port))
        sock.sendall(bytes(100 * K))
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        sock.close()
        hold(channel)

    server = Peer(serve)
    server.hear()
    work = Peer(worker)
    client = Peer(call)
    for peer in (client, work, server):
        peer.hear()
    listed = ss(port)
    for peer in (client, work, server):
        peer.go()
        peer.wait()
    shares = [[client.pid, 100 * K, 0], [work.pid, 200 * K, 0]]
    report(38, "handed over by SCM_RIGHTS: 100 and 200", port, shares, [[server.pid, 0, 300 * K]], ss=listed)


def thread():
    def client(sock):
        def work():
            with open("/proc/thread-self/comm", "w", encoding="ascii") as comm:
                comm.write("other-name")
            sock.sendall(bytes(42 * K))

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()

    pair(42, "sent by a thread with a name of its own", client, lambda s: read(s, 42 * K), (42 * K, 0), (0, 42 * K))


def udp(number, name, sends, receivers, family=socket.AF_INET):
    """sends: (port, sizes); receivers: family of the listening sockets."""
    socks = []
    for port, _ in sends:
        sock = socket.socket(receivers, socket.SOCK_DGRAM)
        sock.bind(("::" if receivers == socket.AF_INET6 else IP, port))
        sock.settimeout(5)
        socks.append(sock)

    def work(channel):
        sender = socket.socket(family, socket.SOCK_DGRAM)
        for port, sizes in sends:
            for size in sizes:
                sender.sendto(bytes(size), ("::ffff:127.0.0.1" if family == socket.AF_INET6 else IP, port))
        hold(channel)

    client = Peer(work)
    client.hear()
    for sock, (_, sizes) in zip(socks, sends):
        for size in sizes:
            assert len(sock.recv(65536)) == size
    client.go()
    client.wait()
    for port, sizes in sends:
        total = sum(sizes)
        report(number, f"{name}, port {port}", port, [[client.pid, total, 0]], [[os.getpid(), 0, total]], udp=True)


def main():
    for scenario in (plain, peek, waitall, sendfile, splice_in, splice_out, zero_copy, partial, failed, unread):
        scenario()
    if has_ktls():
        ktls()
    for scenario in (refused, readers, short, shared, passed_on, thread):
        scenario()
    udp(48, "UDP: 10, 20 and nothing", [(9048, [10 * K, 20 * K, 0])], socket.AF_INET)
    udp(49, "UDP: two peers of one socket", [(9049, [11 * K] * 5), (9149, [22 * K] * 5)], socket.AF_INET)
    udp(52, "UDP: an IPv6 socket to IPv4", [(9052, [44 * K])], socket.AF_INET, socket.AF_INET6)


main()
