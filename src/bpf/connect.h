/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connects that fail before anything else can be seen of them: no route, a route that forbids. The socket changes no state
 * then, so only the return value of the function that connects tells.
 */
#ifndef TCPTOP_CONNECT_H
#define TCPTOP_CONNECT_H

#include "fentry.h"
#include "life.h"

#define EAFNOSUPPORT 97 /* include/uapi/asm-generic/errno.h */

/* Out of the way: rare. */
static __noinline int post_failed_connect(struct sk_state *st, const struct peer *to, int error)
{
	struct change ch = { .kind = TT_TCP_STATE,
			     .old_state = TCP_CLOSE,
			     .new_state = TCP_CLOSE,
			     .error = error,
			     .now = st->c.conn.since };

	put_peer(&st->c.conn, to);
	st->failed = 1;
	note_told(st, &st->c.conn);
	if (is_wanted(&st->c.conn, st->owner))
		emit_state(st, &ch);
	return 0;
}

/* In the process that connects, which holds the lock. */
static __always_inline void connect_fails(struct sock *sk, const struct peer *to, int error)
{
	struct tcp_sock *tp = tcp_of(sk);
	struct sk_state *st;

	if (!tp || sk->__sk_common.skc_state != TCP_CLOSE)
		return;
	st = tcp_state(sk, tp, TT_TCP_STATE);
	if (!st)
		return;
	/* The change to CLOSE, in this same call, has told. */
	if (st->failed == FAILED_BY_ITSELF) {
		st->failed = 1;
		return;
	}
	begin_life(st, sk, tp, false, bpf_ktime_get_ns());
	put_socket(&st->c.conn, sk, true);
	owner_if_locked(st, sk, TT_SEEN);
	post_failed_connect(st, to, error);
}

/*
 * `name` is the address as the kernel copied it, as far as `len` says. ECONNREFUSED is what the first segment may end with,
 * which the socket's states tell of.
 */
static __always_inline int connect_returns(struct sock *sk, const void *name, int len, int ret)
{
	struct peer to = {};

	if (ret >= 0 || ret == -ECONNREFUSED || ret == -EAFNOSUPPORT)
		return 0;
	peer_of_msg(&to, name, len);
	if (to.family)
		connect_fails(sk, &to, -ret);
	return 0;
}

/* Also called by tcp_v6_connect() for IPv4 addresses, which then tells. */
SEC("?fexit/tcp_v4_connect")
int BPF_PROG(fexit_tcp_v4_connect, struct sock *sk, void *name, int len, int ret)
{
	if (sk->__sk_common.skc_family != AF_INET)
		return 0;
	return connect_returns(sk, name, len, ret);
}

SEC("?fexit/tcp_v6_connect")
int BPF_PROG(fexit_tcp_v6_connect, struct sock *sk, void *name, int len, int ret)
{
	return connect_returns(sk, name, len, ret);
}

#endif
