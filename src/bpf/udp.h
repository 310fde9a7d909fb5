/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP: a socket has no counters and often no peer, so each datagram is counted where it passes, per socket
 * and peer. All of this runs in the system call of the process that sends or receives.
 */
#ifndef TCPTOP_UDP_H
#define TCPTOP_UDP_H

#include "report.h"

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

static __always_inline bool is_peer(const struct tt_conn *conn, const struct peer *peer)
{
	/* In the words in which the peer has just been written: a processor waits for a wider load. */
	const __u32 *a = (const __u32 *)conn->remote_addr, *b = (const __u32 *)peer->addr;

	return conn->remote_port == peer->port && a[0] == b[0] && a[1] == b[1] && a[2] == b[2] &&
	       a[3] == b[3];
}

static __always_inline void put_peer(struct tt_conn *conn, const struct peer *peer)
{
	conn->family = peer->family ?: conn->family;
	conn->remote_port = peer->port;
	__builtin_memcpy(conn->remote_addr, peer->addr, 16);
}

/*
 * Makes the state of a UDP socket, with its first peer in it: so all CPUs agree which one that is.
 */
static __always_inline struct sk_state *udp_begin(struct sock *sk, __u32 kind, const struct peer *peer,
						  const bool typed)
{
	struct sk_state fresh = {};
	struct tt_conn *conn = &fresh.c.conn;
	struct sk_state *st;

	if (!is_udp(sk, typed))
		return NULL;
	put_identity(conn, sk, IPPROTO_UDP, typed);
	put_peer(conn, peer);
	st = typed ? state_make(sk, &fresh) : hash_make(sk, &fresh);
	if (!st)
		count_storage_loss(kind);
	return st;
}

/*
 * What may have changed since it was last looked at: who uses the socket, and by bind() or connect() its address. Other
 * CPUs may be here for the same flow, so only final values are written. IPv4 on an IPv6 socket: both ends are shown as
 * IPv4.
 */
static __always_inline void put_socket(struct tt_conn *conn, const struct tt_conn *of_state, struct sock *sk,
				       const bool typed)
{
	__u32 a[4];

	if (conn != of_state) {
		conn->owner = of_state->owner;
		conn->provenance = of_state->provenance;
	}
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

/*
 * A send that neither names a peer nor has one by connect() is only accepted if it adds to a datagram that waits
 * (UDP_CORK, MSG_MORE): then it goes where the one before it went.
 */
static __always_inline const struct peer *where_sent(struct sk_state *st, const struct peer *peer)
{
	if (!peer->family)
		return &st->sent_to;
	st->sent_to = *peer;
	return peer;
}

/*
 * The accounts of this socket and peer; NULL if there is no room. Those of the first peer, who often is the only one,
 * are in the state of the socket.
 */
static __always_inline struct counted *udp_flow(struct sk_state *st, const struct peer *peer)
{
	struct flow_key key = { .socket = st->c.conn.socket, .remote_port = peer->port };
	struct counted fresh = {};
	struct counted *c;

	if (is_peer(&st->c.conn, peer))
		return &st->c;
	__builtin_memcpy(key.remote_addr, peer->addr, 16);
	c = bpf_map_lookup_elem(&udp_flows, &key);
	if (c)
		return c;
	/* All at once: two CPUs may both find nothing, and the first one's `since` must be everybody's. */
	fresh.conn.since = bpf_ktime_get_ns();
	fresh.conn.socket = st->c.conn.socket;
	fresh.conn.netns = st->c.conn.netns;
	fresh.conn.protocol = IPPROTO_UDP;
	fresh.conn.family = peer->family ?: st->c.conn.family;
	fresh.conn.remote_port = peer->port;
	__builtin_memcpy(fresh.conn.remote_addr, peer->addr, 16);
	bpf_map_update_elem(&udp_flows, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&udp_flows, &key);
}

/*
 * Where states are found by the socket's address: is this still that of the socket for which it was made? The end may have
 * gone past the programs, and the memory be used again. (A socket that gets another port, after AF_UNSPEC, is taken for
 * another one.)
 */
static __always_inline struct sk_state *still_of(struct sk_state *st, struct sock *sk, const bool typed)
{
	if (use_storage || !st || !st->c.conn.local_port ||
	    st->c.conn.local_port == FIELD(typed, sk, __sk_common.skc_num))
		return st;
	state_forget(sk);
	return NULL;
}

/*
 * Bytes of `packets` datagrams: of one, of several that one call sent (GSO) or received (GRO) as one, or of none, where
 * they are added to one that was counted before. `st` is the state of the socket if it has one.
 */
static __always_inline void udp_bytes(struct sock *sk, struct sk_state *st, __u32 direction, __u64 bytes,
				      __u32 packets, const struct peer *peer, const bool typed)
{
	struct report r = { .direction = direction, .bytes = bytes, .calls = packets, .is_call = true };
	struct counted *c;

	st = still_of(st, sk, typed);
	if (!st)
		st = udp_begin(sk, direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV, peer, typed);
	if (!st)
		return;
	r.actor = actor_is_current(st);
	if (direction == TT_OUT)
		peer = where_sent(st, peer);
	c = udp_flow(st, peer);
	if (!c) {
		count_storage_loss(direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV);
		return;
	}
	if (!interval_ns || !waiting_report(&c->acct[direction]))
		put_socket(&c->conn, &st->c.conn, sk, typed);
	add_u64(&c->acct[direction].total, bytes);
	add_u64(&c->acct[direction].packets, packets);
	if (!post(c, &r))
		count_storage_loss(transfer_kind(&c->conn, direction));
	note_told(st, &c->conn);
}

static __always_inline void udp_datagram(struct sock *sk, __u32 direction, __u64 bytes,
					 const struct peer *peer, const bool typed)
{
	udp_bytes(sk, typed ? state_peek(sk) : hash_peek(sk), direction, bytes, 1, peer, typed);
}

/*
 * ip_append_page(): before 6.5, sendfile and splice to a UDP socket begin a datagram of no bytes by udp_sendmsg() and
 * then add pages to it here, past that function. Where udp_sendpage() sends by udp_sendmsg() itself this does not run.
 */
static __always_inline void udp_page(struct sock *sk, __u64 bytes, const bool typed)
{
	struct peer peer = {};

	if (!is_udp(sk, typed))
		return;
	peer_of_connected(&peer, sk, typed);
	udp_bytes(sk, typed ? state_peek(sk) : hash_peek(sk), TT_OUT, bytes, 0, &peer, typed);
}

/*
 * Of the socket, and not of one of its flows. It is wanted if one of these is, or the socket by itself: so it may have been
 * listed. Returns whether it is.
 */
static __always_inline bool emit_udp_end(struct sk_state *st, __u16 family)
{
	struct change end = { .kind = TT_CLOSED };
	struct tt_conn *conn = &st->c.conn;
	bool wanted = st->told || is_wanted(conn);
	__u8 of_flow = conn->family;

	__builtin_memset(conn->remote_addr, 0, 16);
	conn->remote_port = 0;
	if (!wanted) {
		conn->family = family == AF_INET6 ? 6 : 4;
		wanted = is_wanted(conn);
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
	struct flow_key key = { .socket = conn->socket, .remote_port = st->sent_to.port };
	struct counted *latest;

	if (!conn->socket)
		return;
	flush(&st->c);
	__builtin_memcpy(key.remote_addr, st->sent_to.addr, 16);
	latest = bpf_map_lookup_elem(&udp_flows, &key);
	if (latest)
		flush(latest);
	emit_udp_end(st, family);
	/* No second time. */
	conn->socket = 0;
}

/*
 * The end of a socket that has moved nothing. It concerns only who has listed it, and the kernel gives out cookies when they
 * are asked for: one that was never listed has none. Returns whether there was something to say.
 */
static __always_inline bool udp_end_of_silent(struct sock *sk, const bool typed)
{
	struct sk_state st = {};
	struct tt_conn *conn = &st.c.conn;
	struct caller caller;
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
	put_socket(conn, conn, sk, typed);
	get_caller(&caller);
	if (!caller.is_kernel)
		read_owner(&st, caller.exec_id);
	return emit_udp_end(&st, FIELD(typed, sk, __sk_common.skc_family));
}

#endif
