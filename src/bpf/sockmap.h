/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets in a sockmap, in the backends whose hooks are past it: a verdict may hand what is sent to another socket, and what is
 * received may have come from one. TCP's counters and functions know nothing of either. The functions that a sockmap puts
 * before those of TCP tell that it may be so; how many bytes it is they do not.
 */
#ifndef TCPTOP_SOCKMAP_H
#define TCPTOP_SOCKMAP_H

#include "kprobe.h"

/* Tells once, with a report of no bytes: there may never be another one. */
static __always_inline void may_be_redirected(struct sk_state *st, __u32 direction)
{
	struct report r = { .direction = direction };

	if (st->c.conn.uncounted & TT_REDIRECTED)
		return;
	by_current(&r, st);
	st->c.conn.uncounted |= TT_REDIRECTED;
	if (!st->c.conn.socket || !is_wanted(&st->c.conn, st->owner))
		return;
	r.now = bpf_ktime_get_ns();
	note_told(st, &st->c.conn);
	emit(&st->c, &r);
}

static __always_inline int sockmap_call(struct sock *sk, __u32 direction)
{
	struct tcp_sock *tp = tcp_of(sk);
	struct sk_state *st;

	if (!tp)
		return 0;
	st = tcp_state(sk, tp, direction == TT_OUT ? TT_TCP_SEND : TT_TCP_RECV);
	if (st)
		may_be_redirected(st, direction);
	return 0;
}

SEC("?fentry/tcp_bpf_sendmsg")
int BPF_PROG(fentry_sockmap_send, struct sock *sk)
{
	return sockmap_call(sk, TT_OUT);
}

SEC("?fentry/tcp_bpf_recvmsg")
int BPF_PROG(fentry_sockmap_recv, struct sock *sk)
{
	return sockmap_call(sk, TT_IN);
}

/* The same where a parser is in the map, too. */
SEC("?fentry/tcp_bpf_recvmsg_parser")
int BPF_PROG(fentry_sockmap_parser, struct sock *sk)
{
	return sockmap_call(sk, TT_IN);
}

static __always_inline int kprobe_sockmap_call(struct sock *sk, __u32 direction)
{
	struct sk_state *st = kprobe_state(sk, direction == TT_OUT ? TT_TCP_SEND : TT_TCP_RECV);

	if (st)
		may_be_redirected(st, direction);
	return 0;
}

SEC("?kprobe/tcp_bpf_sendmsg")
int BPF_KPROBE(kprobe_sockmap_send, struct sock *sk)
{
	return kprobe_sockmap_call(sk, TT_OUT);
}

SEC("?kprobe/tcp_bpf_recvmsg")
int BPF_KPROBE(kprobe_sockmap_recv, struct sock *sk)
{
	return kprobe_sockmap_call(sk, TT_IN);
}

SEC("?kprobe/tcp_bpf_recvmsg_parser")
int BPF_KPROBE(kprobe_sockmap_parser, struct sock *sk)
{
	return kprobe_sockmap_call(sk, TT_IN);
}

#endif
