/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backend B: kprobes, at entry only. A kretprobe loses returns when more calls sleep than it has slots (ten,
 * or twice the CPUs), so nothing rests on one: TCP totals come from the tracepoints, and what is known here
 * is who calls. Arguments are plain numbers to the verifier: they are read with probe reads, and sockets have
 * no storage.
 */
#ifndef TCPTOP_KPROBE_H
#define TCPTOP_KPROBE_H

#include "fentry.h"

/* A socket older than the tracer gets its identity at the next tracepoint. */
static __always_inline struct sk_state *kprobe_state(struct sock *sk, __u32 kind)
{
	struct sk_state *st = state_peek(sk);

	if (st || !is_tcp(sk, false))
		return st;
	st = state_make(sk);
	if (!st)
		count_storage_loss(kind);
	return st;
}

/*
 * After the peer's FIN tcp_probe does not fire any more: then each send reports those before it. The last one is reported
 * by the end.
 */
static __always_inline void post_before(struct sk_state *st, __u32 write_seq)
{
	struct report r = { .direction = TT_OUT, .calls = st->calls_out, .is_call = true };

	by_owner(&r, st);
	st->calls_out = 0;
	add_written(st, write_seq);
	post_news(st, &r, ALL_NEWS);
}

/* What another process has sent is that one's, also if it is not acknowledged yet. */
static __always_inline void settle(struct sk_state *st, struct sock *sk, const bool sends)
{
	bool changes_hands = st->calls_out && identity_of(st->owner) != current_identity();
	__u32 write_seq;
	__u8 state;

	if (!(st->known & KNOWN_OUT) || !(sends || changes_hands))
		return;
	/* The state last: it changes before the FIN is counted. */
	write_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	keep_order();
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_CLOSE_WAIT || (state == TCP_ESTABLISHED && changes_hands))
		post_before(st, write_seq);
}

SEC("?kprobe/tcp_sendmsg")
int BPF_KPROBE(kprobe_tcp_sendmsg, struct sock *sk)
{
	struct sk_state *st = kprobe_state(sk, TT_TCP_SEND);

	if (!st)
		return 0;
	settle(st, sk, true);
	actor_is_current(st);
	st->calls_out++;
	return 0;
}

SEC("?kprobe/tcp_recvmsg")
int BPF_KPROBE(kprobe_tcp_recvmsg, struct sock *sk)
{
	struct sk_state *st = kprobe_state(sk, TT_TCP_RECV);

	if (!st)
		return 0;
	settle(st, sk, false);
	actor_is_current(st);
	return 0;
}

/*
 * tcp_probe: fires for each segment that an established connection receives, so also for the acknowledgement
 * of what was sent; with the lock held, and before the segment changes anything. It reports sends in place of
 * their return.
 */
SEC("?tp_btf/tcp_probe")
int BPF_PROG(tcp_segment_in, struct sock *sk)
{
	struct report r = { .direction = TT_OUT, .is_call = true };
	struct tcp_sock *tp = tcp_of(sk);
	struct sk_state *st;
	__u64 before;

	if (!tp)
		return 0;
	st = tcp_state(sk, tp, TT_TCP_SEND);
	if (!st)
		return 0;
	before = st->c.acct[TT_OUT].total;
	read_totals(st, sk, tp);
	if (st->c.acct[TT_OUT].total == before)
		return 0;
	read_quality(st, tp);
	by_owner(&r, st);
	r.calls = st->calls_out;
	st->calls_out = 0;
	post_news(st, &r, ALL_NEWS);
	return 0;
}

/*
 * ip_send_skb() and ip6_send_skb(): where a datagram leaves UDP, whole and with its headers. What could not be sent until
 * here is not counted; what a packet filter refuses after here is.
 */
static __always_inline void udp_leaves(struct sk_buff *skb, const bool v6)
{
	struct sock *sk = BPF_CORE_READ(skb, sk);
	struct peer peer = {};
	__u32 headers;

	if (!sk || !is_udp(sk, false))
		return;
	headers = BPF_CORE_READ(skb, transport_header) + UDP_HEADER -
		  (BPF_CORE_READ(skb, data) - BPF_CORE_READ(skb, head));
	peer_of_skb(&peer, skb, v6, true);
	udp_bytes(sk, udp_peek(sk, false), TT_OUT, BPF_CORE_READ(skb, len) - headers, datagrams_in(skb),
		  &peer, false);
}

SEC("?kprobe/ip_send_skb")
int BPF_KPROBE(kprobe_ip_send_skb, struct net *net, struct sk_buff *skb)
{
	udp_leaves(skb, false);
	return 0;
}

SEC("?kprobe/ip6_send_skb")
int BPF_KPROBE(kprobe_ip6_send_skb, struct sk_buff *skb)
{
	udp_leaves(skb, true);
	return 0;
}

SEC("?kprobe/skb_consume_udp")
int BPF_KPROBE(kprobe_skb_consume_udp, struct sock *sk, struct sk_buff *skb, int len)
{
	if (!is_peek(skb, len, false))
		udp_received(sk, skb, len, false);
	return 0;
}

static __always_inline void kprobe_udp_end(struct sock *sk)
{
	struct sk_state *st = udp_peek(sk, false);

	if (st)
		udp_end(st, BPF_CORE_READ(sk, __sk_common.skc_family));
	else
		udp_end_of_silent(sk, false);
	state_forget(sk);
}

SEC("?kprobe/udp_destroy_sock")
int BPF_KPROBE(kprobe_udp_destroy_sock, struct sock *sk)
{
	kprobe_udp_end(sk);
	return 0;
}

SEC("?kprobe/udpv6_destroy_sock")
int BPF_KPROBE(kprobe_udpv6_destroy_sock, struct sock *sk)
{
	kprobe_udp_end(sk);
	return 0;
}

#endif
