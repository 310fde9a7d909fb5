/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backend C: tracepoints at the end of every send and receive call on a socket (Linux 6.3), for kernels that
 * allow neither trampolines nor kprobes. They know socket and length, but no address: the peers of
 * unconnected UDP sockets come from cgroup hooks that run in the same call just before.
 */
#ifndef TCPTOP_TRACEPOINT_H
#define TCPTOP_TRACEPOINT_H

#include "life.h"
#include "tcp.h"
#include "udp.h"

#define RCV_SHUTDOWN 1 /* include/net/sock.h */

/* include/uapi/asm-generic/errno.h */
#define EDESTADDRREQ 89
#define EOPNOTSUPP   95

struct noted_peer {
	__u64 socket;
	__u64 address; /* where it stands until the call ends, or 0 */
	struct peer peer;
};

/* The kernel's own context of this program. */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/*
 * Thread -> the peer of the UDP call it is in. Written by the cgroup hook, taken by the tracepoint at the end
 * of the same call; what a failed call leaves behind is overwritten by the next. As many as threads can be in
 * such a call at once; LRU because threads come and go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct noted_peer);
} noted_peers SEC(".maps");

static __always_inline void note_peer(struct bpf_sock_addr *ctx, __u32 kind, const bool v6)
{
	struct noted_peer note = { .socket = bpf_get_socket_cookie(ctx) };
	__u64 thread = bpf_get_current_pid_tgid();
	struct sk_state *st;
	__u32 a[4];

	/* A send on a connected socket with a control message of IP comes here, too. It names nobody. */
	if (!ctx->sk || (kind == TT_UDP_SEND && !ctx->user_port))
		return;
	st = state_of(ctx->sk, note.socket);
	if (st)
		st->noted = 1;
	/*
	 * Another program may come after this one and send the datagram elsewhere, as load balancers do. (An IPv4 address on an
	 * IPv6 socket is a copy, which does not last.)
	 */
	if (kind == TT_UDP_SEND && (v6 || ctx->family == AF_INET))
		note.address = (__u64)((struct bpf_sock_addr_kern *)bpf_cast_to_kern_ctx(ctx))->uaddr;
	if (v6) {
		a[0] = ctx->user_ip6[0];
		a[1] = ctx->user_ip6[1];
		a[2] = ctx->user_ip6[2];
		a[3] = ctx->user_ip6[3];
		peer_v6(&note.peer, a, ctx->user_port);
	} else {
		peer_v4(&note.peer, ctx->user_ip4, ctx->user_port);
	}
	if (bpf_map_update_elem(&noted_peers, &thread, &note, BPF_ANY))
		count_storage_loss(kind);
}

/* The destination of an unconnected send; for IPv4 on an IPv6 socket the first one runs. */
SEC("?cgroup/sendmsg4")
int cgroup_sendmsg4(struct bpf_sock_addr *ctx)
{
	note_peer(ctx, TT_UDP_SEND, false);
	return 1;
}

SEC("?cgroup/sendmsg6")
int cgroup_sendmsg6(struct bpf_sock_addr *ctx)
{
	note_peer(ctx, TT_UDP_SEND, true);
	return 1;
}

/* The source of a datagram, where the reader asks for it: recvfrom() with an address, recvmsg(), recvmmsg().
 */
SEC("?cgroup/recvmsg4")
int cgroup_recvmsg4(struct bpf_sock_addr *ctx)
{
	note_peer(ctx, TT_UDP_RECV, false);
	return 1;
}

SEC("?cgroup/recvmsg6")
int cgroup_recvmsg6(struct bpf_sock_addr *ctx)
{
	note_peer(ctx, TT_UDP_RECV, true);
	return 1;
}

static __always_inline bool has_datagrams(struct sock *sk)
{
	return sk->sk_receive_queue.qlen || UDP(sk, reader_queue.qlen);
}

/*
 * connect(): what waits in the socket by then may be from anybody, and so may what comes until it is connected, if others know
 * it. Who reads that without asking is not told who has sent it, and neither are we, until a call has found the queue empty.
 */
static __always_inline void note_strangers(struct bpf_sock_addr *ctx)
{
	struct sk_state *st;
	struct sock *sk;
	__u32 number;

	if (!ctx->sk)
		return;
	sk = CAST(struct sock, ctx->sk);
	if (!is_udp(sk, true))
		return;
	st = udp_peek(sk, true);
	if (!st) {
		if (!has_datagrams(sk))
			return;
		st = state_new(&number);
		if (st) {
			put_kind(&st->c.conn, sk, IPPROTO_UDP, true);
			st->c.conn.socket = bpf_get_socket_cookie(ctx);
			st = state_publish(sk, number);
		}
	}
	if (st)
		st->strangers = 1;
	else
		count_storage_loss(TT_UDP_RECV);
}

static __always_inline void forget_strangers(struct sock *sk, struct sk_state *st)
{
	if (st && st->strangers && !has_datagrams(sk))
		st->strangers = 0;
}

SEC("?cgroup/connect4")
int cgroup_connect4(struct bpf_sock_addr *ctx)
{
	note_strangers(ctx);
	return 1;
}

SEC("?cgroup/connect6")
int cgroup_connect6(struct bpf_sock_addr *ctx)
{
	note_strangers(ctx);
	return 1;
}

/*
 * Most sockets are connected, or do not ask who has sent, and are spared the second look-up. That of a young one may have
 * been noted by a call that found no state to say so, and that of a send on a socket without a peer always is.
 */
static __always_inline bool may_be_noted(struct sock *sk, const struct sk_state *st, __u32 direction)
{
	if (!st || st->noted || (direction == TT_OUT && sk->__sk_common.skc_state != TCP_ESTABLISHED))
		return true;
	return st->c.acct[TT_OUT].packets + st->c.acct[TT_IN].packets <= 64;
}

static __always_inline void take_noted_peer(struct peer *peer, struct sock *sk, const struct sk_state *st,
					    __u32 direction)
{
	struct noted_peer *note;
	__u64 thread;

	if (!may_be_noted(sk, st, direction))
		return;
	thread = bpf_get_current_pid_tgid();
	note = bpf_map_lookup_elem(&noted_peers, &thread);
	if (!note)
		return;
	if (note->socket == bpf_get_socket_cookie(sk)) {
		/* The kernel has checked its length by then. */
		if (direction == TT_OUT && note->address)
			peer_of_msg(peer, (void *)note->address, sizeof(struct sockaddr_in6));
		else
			*peer = note->peer;
	}
	note->socket = 0;
}

/*
 * A send has failed after others had left a datagram, which waits no more: this one took it along, or setsockopt() had sent
 * it before. Some errors come before anything else, or of what was sent; of others it cannot be told.
 */
static __always_inline void piece_fails(struct sock *sk, struct sk_state *st, int ret)
{
	if (!st || !st->waiting || is_corked(sk))
		return;
	if (ret == -EOPNOTSUPP || ret == -EDESTADDRREQ || ret == -ECONNREFUSED) {
		count_waiting(sk, st);
		return;
	}
	count_storage_loss(TT_UDP_SEND);
	take_all(st);
}

static __always_inline void udp_call_out(struct sock *sk, int ret, const bool understudy)
{
	struct peer peer = {};
	struct sk_state *st;

	if (turn_is_taken(HOOK_UDP_OUT, understudy))
		return;
	st = udp_peek(sk, true);
	take_noted_peer(&peer, sk, st, TT_OUT);
	if (ret < 0) {
		piece_fails(sk, st, ret);
		return;
	}
	/* The hook that noted it runs where a datagram begins: what waited before has been sent, by setsockopt(). */
	if (peer.family && st)
		st->begins = 1;
	if (!peer.family)
		peer_of_send(&peer, sk);
	forget_strangers(sk, st);
	if (notes_are_complete && !peer.family && !is_corked(sk) && !(st && (st->waiting | st->corked)))
		count_storage_loss(TT_UDP_SEND);
	udp_sent(sk, st, ret, UDP(sk, gso_size), &peer);
}

static __always_inline void udp_call_in(struct sock *sk, int ret, const bool understudy)
{
	struct peer peer = {};
	struct sk_state *st;

	if (turn_is_taken(HOOK_UDP_IN, understudy))
		return;
	st = udp_peek(sk, true);
	take_noted_peer(&peer, sk, st, TT_IN);
	/* Not an empty datagram: after shutdown(SHUT_RD) a receive has an end, unless there is something from a peer. */
	if (ret < 0 || (!ret && !peer.family && sk->sk_shutdown & RCV_SHUTDOWN))
		return;
	if (!peer.family && !(st && st->strangers))
		peer_of_connected(&peer, sk, true);
	forget_strangers(sk, st);
	forget_peer(&peer);
	udp_bytes(sk, st, TT_IN, ret, 1, &peer, true);
}

/* Both fire for sockets of every kind. */
static __always_inline int sent(struct sock *sk, int ret, const bool understudy)
{
	struct tcp_sock *tp;

	if (is_udp(sk, true)) {
		udp_call_out(sk, ret, understudy);
		return 0;
	}
	tp = ret > 0 ? tcp_of(sk) : NULL;
	if (tp && !turn_is_taken(HOOK_TCP_OUT, understudy))
		tcp_sent(sk, tp, ret, false);
	return 0;
}

static __always_inline int received(struct sock *sk, int ret, int flags, const bool understudy)
{
	struct peer ignored;

	if (is_udp(sk, true)) {
		if (flags & (MSG_PEEK | MSG_ERRQUEUE))
			take_noted_peer(&ignored, sk, udp_peek(sk, true), TT_IN);
		else
			udp_call_in(sk, ret, understudy);
	} else if (ret > 0 && is_tcp(sk, true) && !(flags & (MSG_PEEK | MSG_ERRQUEUE))) {
		if (!turn_is_taken(HOOK_TCP_IN, understudy))
			tcp_call_in(sk, ret);
	}
	return 0;
}

SEC("?tp_btf/sock_send_length")
int BPF_PROG(sock_send, struct sock *sk, int ret, int flags)
{
	return sent(sk, ret, false);
}

SEC("?tp_btf/sock_send_length")
int BPF_PROG(sock_send_2, struct sock *sk, int ret, int flags)
{
	return sent(sk, ret, true);
}

SEC("?tp_btf/sock_recv_length")
int BPF_PROG(sock_recv, struct sock *sk, int ret, int flags)
{
	return received(sk, ret, flags, false);
}

SEC("?tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_2, struct sock *sk, int ret, int flags)
{
	return received(sk, ret, flags, true);
}

/* The last close of a socket. The context knows little of it, its storage everything. */
SEC("?cgroup/sock_release")
int cgroup_sock_release(struct bpf_sock *ctx)
{
	struct sk_state *st;
	struct sock *sk;

	sk = CAST(struct sock, ctx);
	if (!is_udp(sk, true))
		return 1;
	st = state_peek(ctx);
	if (!st) {
		udp_end_of_silent(sk, true);
		return 1;
	}
	if (!is_corked(sk))
		count_waiting(sk, st);
	udp_end(st, ctx->family);
	state_forget(ctx);
	return 1;
}

#endif
