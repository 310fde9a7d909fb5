/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a program has written to a TCP connection and read from it, out of the kernel's own counters. */
#ifndef TCPTOP_TOTALS_H
#define TCPTOP_TOTALS_H

#include "fields.h"

#define SOCK_DONE (1UL << 1) /* include/net/sock.h: a FIN has arrived */

/*
 * Bytes the program has written: what was sent once, and what still waits. A FIN that is queued but not sent
 * sits in write_seq and is no byte.
 */
static __always_inline __u64 written(struct sock *sk, struct tcp_sock *tp)
{
	__u32 unsent = TCP(tp, write_seq) - TCP(tp, snd_nxt);
	__u8 state = sk->__sk_common.skc_state;

	if (unsent && (state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK || state == TCP_CLOSING))
		unsent--;
	return TCP(tp, bytes_sent) - TCP(tp, bytes_retrans) + unsent;
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

#endif
