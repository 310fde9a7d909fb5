/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a program has written to a TCP connection and read from it, out of the kernel's own counters.
 *
 * These include SYN and FIN in places, and retransmissions; what the program wrote and read follows from them together
 * with the sequence numbers. The sums are right while the socket is locked (by its user or in softirq), as it is in
 * tracepoints. After a call has released the lock, another CPU may be in the middle of an update: there only single words
 * that the caller's side alone changes are used.
 */
#ifndef TCPTOP_TOTALS_H
#define TCPTOP_TOTALS_H

#include "fields.h"
#include "maps.h"

#define KNOWN_OUT 1
#define KNOWN_IN  2

#define SOCK_DONE (1UL << 1) /* include/net/sock.h: a FIN has arrived */

/* A FIN that is queued sits in write_seq and is no byte. Its state comes before it (tcp_close_state()). */
static __always_inline __u32 end_of_written(struct sock *sk, struct tcp_sock *tp)
{
	__u8 state = sk->__sk_common.skc_state;
	bool has_fin = state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_LAST_ACK ||
		       state == TCP_CLOSING;

	return TCP(tp, write_seq) - has_fin;
}

/*
 * What was sent once, and what still waits. What could not even be handed to the device counts as sent each time that was
 * tried (__tcp_transmit_skb()), so this may be too much: by less than 2^31.
 */
static __always_inline __u64 tried(struct tcp_sock *tp, __u32 end)
{
	__s32 unsent = end - TCP(tp, snd_nxt); /* -1 where the FIN was sent */

	return TCP(tp, bytes_sent) - TCP(tp, bytes_retrans) + (unsent > 0 ? unsent : 0);
}

/* What was acknowledged, and what still waits for that: too much by the SYN of an active opener. */
static __always_inline __u64 taken(struct tcp_sock *tp, __u32 end)
{
	return TCP(tp, bytes_acked) + (__s32)(end - TCP(tp, snd_una));
}

/*
 * Bytes the program has written. The distance of write_seq from byte 0 tells them modulo 2^32, once that is known, and how
 * many were sent tells the rest. At the first sight of an older connection both stories must agree; where they do not, the
 * acknowledged bytes are right, or one more.
 */
static __always_inline __u64 written(const struct sk_state *st, struct sock *sk, struct tcp_sock *tp)
{
	__u32 end = end_of_written(sk, tp);
	__u64 sent = tried(tp, end), acked;

	/* In CLOSE it is not known whether there was a FIN. */
	if (sk->__sk_common.skc_state == TCP_CLOSE)
		return sent;
	if (st->known & KNOWN_OUT)
		return sent - (__s32)((__u32)sent - (end - st->seq_out));
	if (st->born)
		return sent;
	acked = taken(tp, end);
	return acked - sent <= 1 ? sent : acked;
}

/* Bytes the program has read: what arrived in order, less what waits in the receive queue, less a FIN. */
static __always_inline __u64 consumed(struct sock *sk, struct tcp_sock *tp)
{
	__u64 received = TCP(tp, bytes_received);
	__u64 read = received - (__u32)(TCP(tp, rcv_nxt) - TCP(tp, copied_seq));
	__u64 payload = received - ((sk->__sk_common.skc_flags & SOCK_DONE) ? 1 : 0);

	return read < payload ? read : payload;
}

/*
 * Addresses settle with the handshake and are then kept: at the end of a connection parts of them are gone
 * from the socket. The source port comes from inet_sport, which outlives skc_num.
 */
static __always_inline void read_key(struct tt_conn *conn, struct sock *sk, struct tcp_sock *tp)
{
	__u16 port = bpf_ntohs(TCP(tp, inet_conn.icsk_inet.inet_sport));

	if (port)
		conn->local_port = port;
	put_local(conn, sk, true);
	put_remote(conn, sk);
}

static __always_inline void raise(__u64 *total, __u64 value)
{
	/* A socket that was disconnected reads as zero; one under TCP_REPAIR may read as anything. */
	if ((__s64)(value - *total) > 0)
		*total = value;
}

/* With the socket locked: both totals. */
static __always_inline void read_totals(struct sk_state *st, struct sock *sk, struct tcp_sock *tp)
{
	struct acct *out = &st->c.acct[TT_OUT], *in = &st->c.acct[TT_IN];

	raise(&out->total, written(st, sk, tp));
	raise(&in->total, consumed(sk, tp));
	/* What moved before we came is history. A new connection has none: bytes in its SYN are news. */
	if (!(st->known & KNOWN_OUT) && !st->born)
		out->reported = out->total;
	if (!(st->known & KNOWN_IN) && !st->born)
		in->reported = in->total;
	if (!(st->known & KNOWN_OUT))
		st->seq_out = end_of_written(sk, tp) - (__u32)out->total;
	st->known = KNOWN_OUT | KNOWN_IN;
}

static __always_inline void read_quality(struct sk_state *st, struct tcp_sock *tp)
{
	st->c.rtt_us = TCP(tp, srtt_us) >> 3;
	st->c.acct[TT_OUT].packets = TCP(tp, segs_out);
	st->c.acct[TT_IN].packets = TCP(tp, segs_in);
}

/* What is worth knowing in the end. The kernel's minimum is that of the last minutes (tcp_min_rtt_wlen). */
static __always_inline void read_condition(struct sk_state *st, struct tcp_sock *tp)
{
	__u32 min_rtt = TCP(tp, rtt_min.s[0].v);

	if (min_rtt != ~0U && (!st->min_rtt_us || min_rtt < st->min_rtt_us))
		st->min_rtt_us = min_rtt;
	st->retransmits = TCP(tp, total_retrans);
}

/*
 * After a send has released the lock: write_seq alone is changed by senders only, and its distance from byte
 * 0 is the total modulo 2^32. Two CPUs may get here at once: both values were true, and the next call or the
 * end of the connection brings the latest.
 */
static __always_inline __u64 add_written(struct sk_state *st, __u32 write_seq)
{
	volatile __u64 *total = &st->c.acct[TT_OUT].total;
	__u64 before = *total;
	__s32 more = write_seq - st->seq_out - (__u32)before;

	if (more <= 0)
		return before;
	*total = before + more;
	return before + more;
}

/*
 * The first sight of an older connection, perhaps unlocked: sent and acknowledged bytes must tell the same story
 * (they differ by the SYN of an active opener), else another CPU is just transmitting, and the next call will
 * do. Or something could not be sent before: then the acknowledged bytes must be the same at a second look. The bytes of
 * this call are news, what came before is history.
 */
static __always_inline bool learn_written(struct sk_state *st, struct tcp_sock *tp, __u32 end,
					  __u64 of_this_call)
{
	__u64 sent = tried(tp, end), acked = taken(tp, end);
	struct acct *out = &st->c.acct[TT_OUT];

	keep_order(); /* look again */
	if (acked - sent > 1) {
		if ((__s64)(sent - acked) < 0 || taken(tp, end) != acked)
			return false;
		sent = acked;
	}
	if (TCP(tp, write_seq) != end)
		return false;
	out->total = sent;
	out->reported = sent - (of_this_call < sent ? of_this_call : sent);
	st->seq_out = end - (__u32)sent;
	st->known |= KNOWN_OUT;
	return true;
}

#endif
