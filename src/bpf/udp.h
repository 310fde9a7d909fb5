/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP: a socket has no counters and often no peer, so each datagram is counted where it passes, per socket
 * and peer. All of this runs in the system call of the process that sends or receives.
 */
#ifndef TCPTOP_UDP_H
#define TCPTOP_UDP_H

#include "report.h"

#define INADDR_LOOPBACK 0x7f000001
#define UDP_HEADER	8

static __always_inline void peer_v6(struct peer *peer, const __u32 *addr, __be16 port)
{
	peer->port = bpf_ntohs(port);
	if (is_v4_mapped(addr)) {
		put_v4(peer->addr, addr[3]);
		peer->family = 4;
	} else {
		put_v6(peer->addr, addr);
		peer->family = 6;
	}
}

static __always_inline void peer_v4(struct peer *peer, __u32 addr, __be16 port)
{
	peer->port = bpf_ntohs(port);
	put_v4(peer->addr, addr);
	peer->family = 4;
}

/* A field that only a UDP socket has: see is_udp(). */
#define UDP(sk, field)                                                                                       \
	(use_cast ? CAST(struct udp_sock, sk)->field : BPF_CORE_READ((struct udp_sock *)(sk), field))

static __always_inline void peer_of_connected(struct peer *peer, struct sock *sk, const bool typed)
{
	__be16 port = FIELD(typed, sk, __sk_common.skc_dport);
	__u32 a[4];

	if (FIELD(typed, sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return;
	if (FIELD(typed, sk, __sk_common.skc_family) != AF_INET6) {
		peer_v4(peer, FIELD(typed, sk, __sk_common.skc_daddr), port);
		return;
	}
	READ_IN6(typed, a, sk, __sk_common.skc_v6_daddr);
	peer_v6(peer, a, port);
}

/*
 * Where a send without an address goes. On an IPv4 socket that is the flow that the socket keeps: connect() sets it. So does
 * a corked send to another address, and then udp_sendmsg() sends there what has no address.
 */
static __always_inline void peer_of_send(struct peer *peer, struct sock *sk)
{
	__u32 addr;

	peer_of_connected(peer, sk, true);
	if (!peer->family || sk->__sk_common.skc_family != AF_INET)
		return;
	addr = UDP(sk, inet.cork.fl.u.ip4.daddr);
	if (addr)
		peer_v4(peer, addr, UDP(sk, inet.cork.fl.u.ip4.uli.ports.dport));
}

/*
 * A datagram to no address (0.0.0.0, ::) goes to this machine: to where the socket is bound, or over loopback. The peer is
 * who gets it. (By connect() the kernel does the same, and the socket has the outcome.)
 */
static __always_inline void put_route(struct peer *peer, struct sock *sk, const bool typed)
{
	__u32 *a = (__u32 *)peer->addr, local[4];
	__u32 bound = FIELD(typed, sk, __sk_common.skc_rcv_saddr);

	if (!peer->family || a[0] || a[1] || a[2] || a[3])
		return;
	if (peer->family == 6) {
		READ_IN6(typed, local, sk, __sk_common.skc_v6_rcv_saddr);
		if (!is_v4_mapped(local)) {
			a[3] = bpf_htonl(1);
			return;
		}
		peer->family = 4;
		bound = 0;
	}
	/* A group is no source. */
	a[0] = bound && (bpf_ntohl(bound) >> 28) != 14 ? bound : bpf_htonl(INADDR_LOOPBACK);
}

/*
 * Changes nothing. The verifier remembers what a peer was made of (IPv4, IPv6, mapped, none; noted or connected), and would go
 * through all that follows for each of these again: so it is mixed with a zero of which the verifier does not know.
 */
static __always_inline void forget_peer(struct peer *peer)
{
	__u32 zero = *(const volatile __u32 *)&control.zero, *a = (__u32 *)peer->addr;

	a[0] ^= zero;
	a[1] ^= zero;
	a[2] ^= zero;
	a[3] ^= zero;
	peer->port ^= zero;
	peer->family ^= zero;
}

/* The family too: in the first four bytes 32.1.13.184 and 2001:db8:: are the same. */
static __always_inline bool is_peer(const struct tt_conn *conn, const struct peer *peer)
{
	/* In the words in which the peer has just been written: a processor waits for a wider load. */
	const __u32 *a = (const __u32 *)conn->remote_addr, *b = (const __u32 *)peer->addr;

	return conn->remote_port == peer->port && (!peer->family || conn->family == peer->family) &&
	       a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline void put_peer(struct tt_conn *conn, const struct peer *peer)
{
	conn->family = peer->family ?: conn->family;
	conn->remote_port = peer->port;
	__builtin_memcpy(conn->remote_addr, peer->addr, 16);
}

/* Makes the state of a UDP socket, with its first peer in it: so all CPUs agree which one that is. */
static __noinline struct sk_state *udp_begin(struct sock *sk, const struct peer *peer, const bool typed)
{
	struct sk_state *st;
	__u32 number;

	st = state_new(&number);
	if (!st)
		return NULL;
	put_identity(&st->c.conn, sk, IPPROTO_UDP, typed);
	put_peer(&st->c.conn, peer);
	return state_publish(sk, number);
}

/* `st` is the state of the socket if it has one, else it is made; NULL if it is none of UDP, or there is no room. */
static __always_inline struct sk_state *udp_state(struct sk_state *st, struct sock *sk, __u32 kind,
						  const struct peer *peer, const bool typed)
{
	if (st || !is_udp(sk, typed))
		return st;
	st = udp_begin(sk, peer, typed);
	if (st && !(typed && is_of_another(st, sk)))
		return st;
	count_storage_loss(kind);
	return NULL;
}

/*
 * What may have changed since it was last looked at: by bind() or connect() the socket's address. Other CPUs may be here
 * for the same flow, so only final values are written. IPv4 on an IPv6 socket: both ends are shown as
 * IPv4.
 */
static __always_inline void put_socket(struct tt_conn *conn, struct sock *sk, const bool typed)
{
	__u32 a[4];

	conn->local_port = FIELD(typed, sk, __sk_common.skc_num);
	if (FIELD(typed, sk, __sk_common.skc_family) != AF_INET6) {
		put_v4(conn->local_addr, FIELD(typed, sk, __sk_common.skc_rcv_saddr));
		return;
	}
	READ_IN6(typed, a, sk, __sk_common.skc_v6_rcv_saddr);
	if (conn->family == 6)
		put_v6(conn->local_addr, a);
	else
		put_v4(conn->local_addr, is_v4_mapped(a) ? a[3] : 0);
}

/* The accounts of another peer than the first. All at once: two CPUs may both find nothing, and the first one's `since` must be
 * everybody's. */
static __noinline struct counted *udp_new_flow(const struct sk_state *st, const struct flow_key *key)
{
	struct counted fresh = {};

	fresh.conn.since = bpf_ktime_get_ns();
	fresh.conn.socket = st->c.conn.socket;
	fresh.conn.netns = st->c.conn.netns;
	fresh.conn.protocol = IPPROTO_UDP;
	fresh.conn.family = key->family ?: st->c.conn.family;
	fresh.conn.remote_port = key->remote_port;
	__builtin_memcpy(fresh.conn.remote_addr, key->remote_addr, 16);
	bpf_map_update_elem(&udp_flows, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&udp_flows, key);
}

/*
 * The accounts of this socket and peer; NULL if there is no room. Those of the first peer, who often is the only one,
 * are in the state of the socket.
 */
static __always_inline struct counted *udp_flow(struct sk_state *st, const struct peer *peer)
{
	struct flow_key key = { .socket = st->c.conn.socket,
				.remote_port = peer->port,
				.family = peer->family };

	if (is_peer(&st->c.conn, peer))
		return &st->c;
	__builtin_memcpy(key.remote_addr, peer->addr, 16);
	return bpf_map_lookup_elem(&udp_flows, &key) ?: udp_new_flow(st, &key);
}

/*
 * The state of a UDP socket if it has one. What is found at its address may be that of an earlier socket, whose end went past
 * the programs or has been told. Where there are no cookies the local port must do. (A socket that gets another port, after
 * AF_UNSPEC, is then taken for another one.)
 */
static __always_inline struct sk_state *udp_peek(struct sock *sk, const bool typed)
{
	struct sk_state *st = typed ? state_of_typed(sk) : state_peek(sk);

	if (!st)
		return NULL;
	if (!st->end) {
		if (typed && use_cookie) {
			if (!is_of_another(st, sk))
				return st;
		} else if (!st->c.conn.local_port ||
			   st->c.conn.local_port == FIELD(typed, sk, __sk_common.skc_num)) {
			return st;
		}
	}
	state_forget_stale(sk, st->c.conn.socket);
	return NULL;
}

/* If nothing more moves, no later event has the total: the end of the socket tells. */
static __always_inline void lose_datagram(struct sk_state *st, __u32 kind)
{
	st->c.conn.uncounted |= TT_LOST;
	count_storage_loss(kind);
}

/* Bytes of `packets` datagrams: of one, or of several that one call sent (GSO) or received (GRO). */
static __always_inline void udp_count(struct sock *sk, struct sk_state *st, __u32 direction, __u64 bytes,
				      __u32 packets, const struct peer *peer, const bool typed)
{
	struct report r = { .direction = direction, .bytes = bytes, .calls = 1, .is_call = true };
	struct counted *c;

	by_current(&r, st);
	c = udp_flow(st, peer);
	if (!c) {
		lose_datagram(st, direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV);
		return;
	}
	if (direction == TT_OUT && c != &st->c && peer->family && peer != &st->sent_to)
		st->sent_to = *peer;
	add_u64(&c->acct[direction].total, bytes);
	add_u64(&c->acct[direction].packets, packets);
	if (!joins(c, &r)) {
		put_socket(&c->conn, sk, typed);
		if (!post_alone(c, &r))
			lose_datagram(st, transfer_kind(&c->conn, direction));
	}
	note_told(st, &c->conn);
}

/* The same; `st` is the state of the socket if it has one. */
static __always_inline void udp_bytes(struct sock *sk, struct sk_state *st, __u32 direction, __u64 bytes,
				      __u32 packets, const struct peer *peer, const bool typed)
{
	st = udp_state(st, sk, direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV, peer, typed);
	if (st)
		udp_count(sk, st, direction, bytes, packets, peer, typed);
}

/* So many datagrams the kernel makes of so many bytes; `segment` is 0 without GSO. */
static __always_inline __u32 datagrams(__u32 bytes, __u32 segment)
{
	return segment && bytes > segment ? (bytes + segment - 1) / segment : 1;
}

/*
 * Corking (UDP_CORK, MSG_MORE): sends add to one datagram, which waits in the socket until one of them, or setsockopt(),
 * sends it. Not all of it need be sent: a send that fails takes with it what waited, and so does the end of the socket.
 */
static __always_inline bool is_corked(struct sock *sk)
{
	return UDP(sk, pending) != 0;
}

/* The bytes that wait, or 0; the kernel counts the header, too. */
static __always_inline __u32 corked_bytes(struct sock *sk)
{
	__u16 len = UDP(sk, len);

	return is_corked(sk) && len > UDP_HEADER ? len - UDP_HEADER : 0;
}

/*
 * The bytes of the latest datagram that pieces were added to, also after it was sent. A send that adds nothing to one does not
 * change it.
 */
static __always_inline __u32 bytes_of_pieces(struct sock *sk)
{
	return UDP(sk, inet.cork.base.length) - UDP_HEADER;
}

/*
 * So much of what waited in the socket at this address has been sent to where it says.
 *
 * Global, and so with nothing but numbers: the verifier goes through it once, and not once for each way to get here.
 */
__noinline int count_gone(__u64 address, __u64 bytes, __u32 segment)
{
	struct sock *sk = use_cast ? CAST(struct sock, (void *)address) : (struct sock *)address;
	struct sk_state *st = state_peek(sk);

	if (st)
		udp_count(sk, st, TT_OUT, bytes, datagrams(bytes, segment), &st->sent_to, use_cast);
	return 0;
}

/* For the verifier an address becomes a number where a map keeps it. */
static __always_inline void count_gone_of(struct sock *sk, struct sk_state *st, __u32 bytes, __u32 segment)
{
	*(volatile __u64 *)&st->address = (__u64)sk;
	count_gone(*(volatile __u64 *)&st->address, bytes, segment);
}

/*
 * So many bytes wait no more. Threads that add to one datagram may be here at once: each takes off what it found and then looks
 * whether all did. If so it gives that back, for the next one.
 */
static __always_inline __u32 take_waiting(struct sk_state *st, __s32 bytes)
{
	if (bytes <= 0)
		return 0;
	add_u32(&st->waiting, -bytes);
	if (*(volatile __s32 *)&st->waiting >= 0)
		return bytes;
	add_u32(&st->waiting, bytes);
	return 0;
}

static __always_inline __u32 take_all(struct sk_state *st)
{
	st->corked = 0;
	return take_waiting(st, *(volatile __s32 *)&st->waiting);
}

/* Of the latest datagram that pieces were added to. The kernel takes it from the socket with the first piece. */
static __always_inline __u32 segment_of_pieces(struct sock *sk)
{
	return UDP(sk, inet.cork.base.gso_size);
}

/* What waited has been sent: it is one datagram, perhaps an empty one, or several by GSO. */
static __always_inline void count_waiting(struct sock *sk, struct sk_state *st)
{
	bool was_empty = st->corked && !*(volatile __s32 *)&st->waiting;
	__u32 gone = take_all(st);

	if (gone || was_empty)
		count_gone_of(sk, st, gone, segment_of_pieces(sk));
}

/*
 * connect() with a datagram waiting in the socket changes where that goes, if it goes by IPv4: to where the flow says that it
 * was corked with.
 */
static __always_inline void follow_connect(struct sock *sk, struct sk_state *st)
{
	if (st->sent_to.family == 4)
		peer_v4(&st->sent_to, UDP(sk, inet.cork.fl.u.ip4.daddr),
			UDP(sk, inet.cork.fl.u.ip4.uli.ports.dport));
}

/*
 * A send has ended and left a datagram that waits: its own, which goes where it says, or one to which it has added. What is
 * waiting beside that has been sent.
 */
static __always_inline void adds_piece(struct sock *sk, struct sk_state *st, __u32 bytes,
				       const struct peer *peer)
{
	__u32 left = corked_bytes(sk), gone;

	if (st->begins || !st->corked || (st->waiting && left == bytes)) {
		count_waiting(sk, st);
		st->sent_to = *peer;
	}
	st->corked = 1;
	add_u32(&st->waiting, bytes);
	gone = take_waiting(st, *(volatile __u32 *)&st->waiting - left);
	if (gone)
		count_gone_of(sk, st, gone, 0);
}

/* A send has ended and nothing waits: it has added the last piece, or what waited was sent before, and this by itself. */
static __always_inline void sends_pieces(struct sock *sk, struct sk_state *st, __u32 bytes, __u32 segment,
					 const struct peer *peer)
{
	if (st->begins || (bytes && bytes_of_pieces(sk) == st->waiting)) {
		count_waiting(sk, st);
		st->sent_to = *peer;
	} else {
		follow_connect(sk, st);
		segment = segment_of_pieces(sk);
	}
	count_gone_of(sk, st, take_all(st) + bytes, segment);
}

/* A send has ended with something waiting before it, or after it. */
static __noinline void corked_send(struct sock *sk, struct sk_state *st, __u32 bytes, __u32 segment,
				   const struct peer *peer)
{
	if (is_corked(sk))
		adds_piece(sk, st, bytes, peer);
	else
		sends_pieces(sk, st, bytes, segment, peer);
	st->begins = 0;
}

/* A send has ended and returned `ret`. */
static __always_inline void udp_sent(struct sock *sk, struct sk_state *st, int ret, __u32 segment,
				     struct peer *peer)
{
	if (ret < 0)
		return;
	put_route(peer, sk, true);
	forget_peer(peer);
	st = udp_state(st, sk, TT_UDP_SEND, peer, true);
	if (!st)
		return;
	if (UDP(sk, pending) | st->waiting | st->corked)
		corked_send(sk, st, ret, segment, peer);
	else
		udp_count(sk, st, TT_OUT, ret, datagrams(ret, segment), peer, true);
}

/* One has failed: if it was to add to a datagram, that is gone. */
static __always_inline void udp_not_sent(struct sock *sk, struct sk_state *st)
{
	if (st && (st->waiting | st->corked) && !is_corked(sk))
		take_all(st);
}

/*
 * ip_append_page(): before 6.5, sendfile and splice to a UDP socket begin a datagram of no bytes by udp_sendmsg() and
 * then add pages to it here, past that function. Where udp_sendpage() sends by udp_sendmsg() itself this does not run.
 */
static __always_inline void udp_page(struct sock *sk, __u64 bytes)
{
	struct sk_state *st = is_udp(sk, true) ? udp_peek(sk, true) : NULL;

	if (st)
		add_u32(&st->waiting, bytes);
}

/*
 * Of the socket, and not of one of its flows. It is wanted if one of these is, or the socket by itself: so it may have been
 * listed. Returns whether it is.
 */
static __always_inline bool emit_udp_end(struct sk_state *st, __u16 family)
{
	struct change end = { .kind = TT_CLOSED };
	struct tt_conn *conn = &st->c.conn;
	bool wanted = st->told || is_wanted(conn, st->owner);
	__u8 of_flow = conn->family;

	__builtin_memset(conn->remote_addr, 0, 16);
	conn->remote_port = 0;
	if (!wanted) {
		conn->family = family == AF_INET6 ? 6 : 4;
		wanted = is_wanted(conn, st->owner);
		conn->family = of_flow;
	}
	if (!wanted)
		return false;
	__builtin_memset(st->c.acct, 0, sizeof(st->c.acct));
	end.now = bpf_ktime_get_ns();
	emit_state(st, &end);
	return true;
}

/*
 * The socket is gone, and with it all its flows. What waits of the first and of the latest one is sent now; what other
 * peers' flows still have to report follows when the reader collects it.
 */
static __always_inline void udp_end(struct sk_state *st, __u16 family)
{
	struct tt_conn *conn = &st->c.conn;
	struct flow_key key = { .socket = conn->socket,
				.remote_port = st->sent_to.port,
				.family = st->sent_to.family };
	struct counted *latest;

	flush(&st->c);
	__builtin_memcpy(key.remote_addr, st->sent_to.addr, 16);
	latest = bpf_map_lookup_elem(&udp_flows, &key);
	if (latest)
		flush(latest);
	emit_udp_end(st, family);
	st->end = TT_ORDERLY;
}

/*
 * The end of a socket that has moved nothing. It concerns only who has listed it, and the kernel gives out cookies when they
 * are asked for: one that was never listed has none. Returns whether there was something to say.
 */
static __noinline bool udp_end_of_silent(struct sock *sk, const bool typed)
{
	struct sk_state st = {};
	struct tt_conn *conn = &st.c.conn;
	struct peer peer = {};

	if (!is_udp(sk, typed))
		return false;
	conn->socket = FIELD(typed, sk, __sk_common.skc_cookie.counter);
	if (!conn->socket)
		return false;
	put_kind(conn, sk, IPPROTO_UDP, typed);
	/* Filters ask for the peer. */
	peer_of_connected(&peer, sk, typed);
	put_peer(conn, &peer);
	put_socket(conn, sk, typed);
	actor_is_current(&st);
	return emit_udp_end(&st, FIELD(typed, sk, __sk_common.skc_family));
}

#endif
