/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: the state of a socket, and what its calls report. The hooks that all backends share. */
#ifndef TCPTOP_TCP_H
#define TCPTOP_TCP_H

#include "listen.h"
#include "report.h"
#include "totals.h"

#define ALL_NEWS (~0ULL)

/*
 * A splice or zero-copy reader makes no receive call that a hook could see the end of. With an event per
 * call, chunks that have waited so long for the end of theirs are reported without it.
 */
#define CHUNK_INTERVAL_NS 100000000ULL

/* In steps of half a second; never 0, and after a minute the same again. */
static __always_inline __u8 coarse_time(void)
{
	return 0x80 | (bpf_ktime_get_ns() >> 29 & 0x7f);
}

/* Makes a state that of a connection which begins. Whose it is stays. */
static __always_inline void renew(struct sk_state *st, __u64 socket)
{
	__u64 owner = st->owner;

	__builtin_memset(st, 0, sizeof(*st));
	st->owner = owner;
	st->c.conn.socket = socket;
	st->born = 1;
}

/*
 * A child of a listener. Before Linux 6.18 the kernel has not given it its peer and its cookie yet
 * (inet_csk_clone_lock()). So it gets its identity when it is looked at next: at SYN_RECV -> ESTABLISHED, in the same
 * breath.
 */
static __always_inline void conceive(struct sk_state *st, struct sock *sk)
{
	renew(st, 0);
	st->owner = owner_of_listener(sk);
}

/*
 * The state of a TCP socket at first sight, or when the kernel has used the address of one again whose end was not seen:
 * all at once, because two CPUs may be here. Rare, and so out of the way.
 */
static __noinline struct sk_state *tcp_first_sight(struct sock *sk, struct tcp_sock *tp,
						   struct sk_state *stale)
{
	__u32 number;
	struct sk_state *fresh = state_new(&number);

	if (!fresh)
		return NULL;
	put_identity(&fresh->c.conn, sk, IPPROTO_TCP, true);
	read_key(&fresh->c.conn, sk, tp);
	if (stale)
		state_forget_stale(sk, stale->c.conn.socket);
	return state_publish(sk, number);
}

/* The state of a TCP socket, made and filled at first sight. */
static __always_inline struct sk_state *tcp_state(struct sock *sk, struct tcp_sock *tp, __u32 kind)
{
	struct sk_state *st = state_of_typed(sk);

	if (!st || is_of_another(st, sk))
		st = tcp_first_sight(sk, tp, st);
	/* Another CPU may be about to take the earlier one away: then it is too soon. */
	if (!st || is_of_another(st, sk)) {
		count_storage_loss(kind);
		return NULL;
	}
	if (!st->c.conn.socket) {
		put_identity(&st->c.conn, sk, IPPROTO_TCP, true);
		read_key(&st->c.conn, sk, tp);
	}
	return st;
}

/*
 * The current process if a call is under way, which holds the socket's lock. Without that it is the kernel that reads, in an
 * interrupt and for the owner (kTLS).
 */
static __always_inline void by_current_if_locked(struct report *r, struct sk_state *st, struct sock *sk)
{
	if (sk->sk_lock.owned)
		by_current(r, st);
	else
		by_owner(r, st);
}

/*
 * A call returns without the socket's lock, and so perhaps beside a change of state, which reports all that there is. Each
 * of them claims its bytes before it looks whether both did, and then gives its own back. If both do so, they wait for the
 * next report, at the latest that of the end.
 */
static __always_inline void give_back(struct acct *a, struct report *r)
{
	if ((__s64)(*(volatile __u64 *)&a->reported - *(volatile __u64 *)&a->total) > 0) {
		add_u64(&a->reported, -r->bytes);
		r->bytes = 0;
	}
}

/*
 * Reports `news`, which has moved in one direction and is in no report yet, but no more than `limit`.
 *
 * Calls that return at the same time on two CPUs do so without the socket's lock. Each then reports what it moved
 * itself: what has been moved less what was reported before is at least that much. So the reports add up to the total.
 */
static __always_inline void post_up_to(struct sk_state *st, struct report *r, __s64 news, __u64 limit)
{
	struct acct *a = &st->c.acct[r->direction & 1];

	r->bytes = news < 0 ? 0 : (__u64)news < limit ? news : limit;
	add_u64_in_order(&a->reported, r->bytes);
	if (r->direction == TT_IN || limit == ALL_NEWS || *(volatile __u64 *)&st->shut)
		give_back(a, r);
	note_told(st, &st->c.conn);
	if (!post(&st->c, r))
		add_u64(&a->reported, -r->bytes); /* a later report takes them along */
}

/* The same with a total that only those who hold the lock change. Read last: it only grows. */
static __always_inline void post_news(struct sk_state *st, struct report *r, __u64 limit)
{
	const volatile struct acct *a = &st->c.acct[r->direction & 1];
	__u64 reported = a->reported;

	post_up_to(st, r, a->total - reported, limit);
}

/*
 * tcp_rcv_space_adjust(): runs in the reader each time a chunk was consumed, whatever the call was (recv,
 * read, splice, zero-copy, kTLS), with the lock held and copied_seq moved. A peek comes here too and has
 * moved nothing. With an interval this is where receiving is reported. With an event per call tcp_call_in() does that,
 * when the call ends; a splice has no such call, so the chunks of one that takes long are reported from here, to wait.
 */
static __always_inline int chunk_is_read(struct sock *sk)
{
	struct report r = { .direction = TT_IN };
	struct tcp_sock *tp;
	struct sk_state *st;
	struct acct *in;
	__u64 before;
	bool begins; /* a call, with this chunk */

	tp = tcp_of(sk);
	if (!tp)
		return 0;
	st = tcp_state(sk, tp, TT_TCP_RECV);
	if (!st)
		return 0;
	in = &st->c.acct[TT_IN];
	before = in->total;
	raise(&in->total, consumed(sk, tp));
	if (!(st->known & KNOWN_IN)) {
		st->known |= KNOWN_IN;
		if (!st->born) {
			st->first_in = coarse_time();
			in->reported = in->total;
		}
	}
	if (in->total == before)
		return 0;
	/* No call has ended since: the reader makes none that is seen. What came with the first chunk then stays history. */
	if (st->first_in && ((coarse_time() - st->first_in) & 0x7f) > 1)
		st->first_in = 0;
	by_current_if_locked(&r, st, sk);
	read_quality(st, tp);
	begins = !st->moved_in;
	st->moved_in = 1;
	if (chunks_are_calls || (interval_ns && !st->first_in)) {
		r.calls = chunks_are_calls || begins;
		r.is_call = true;
		post_news(st, &r, ALL_NEWS);
	}
	if (chunks_are_calls || interval_ns)
		return 0;
	r.now = bpf_ktime_get_ns();
	if (begins)
		in->last_ns = r.now;
	else if (!st->first_in && r.now - in->last_ns > CHUNK_INTERVAL_NS)
		post_news(st, &r, ALL_NEWS);
	return 0;
}

SEC("?tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_chunk_in, struct sock *sk)
{
	return chunk_is_read(sk);
}

/* The understudy: a chunk that is counted moves the total no second time. */
SEC("?tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_chunk_in_2, struct sock *sk)
{
	return chunk_is_read(sk);
}

/*
 * How much of the news a call that has returned `ret` may report. With an upper layer protocol (kTLS, MPTCP) other bytes
 * pass through TCP than the program moves.
 */
static __always_inline __u64 share_of_call(struct tcp_sock *tp, __u64 ret)
{
	return TCP(tp, inet_conn.icsk_ulp_ops) ? ALL_NEWS : ret;
}

#define SK_USER_DATA_PSOCK 4 /* include/net/sock.h */

/* A call has moved bytes of which TCP knows nothing: does a sockmap redirect them to or from another socket? */
static __always_inline bool is_redirected(struct sk_state *st, struct sock *sk)
{
	if (!((__u64)sk->sk_user_data & SK_USER_DATA_PSOCK))
		return false;
	st->c.conn.uncounted |= TT_REDIRECTED;
	return true;
}

/*
 * A send has returned `ret` > 0. Runs in the system call, after the lock was released; or where it is still held, also by
 * the kernel for itself (a tunnel, kTLS in an interrupt).
 */
static __always_inline void tcp_sent(struct sock *sk, struct tcp_sock *tp, long ret, const bool locked)
{
	struct report r = { .direction = TT_OUT, .calls = 1, .is_call = true };
	__u64 reported, written;
	struct sk_state *st;
	struct acct *out;
	__u32 write_seq;
	__u8 state;

	st = tcp_state(sk, tp, TT_TCP_SEND);
	if (!st)
		return;
	out = &st->c.acct[TT_OUT];
	if (locked)
		by_current_if_locked(&r, st, sk);
	else
		by_current(&r, st);
	reported = *(volatile __u64 *)&out->reported;
	write_seq = TCP(tp, write_seq);
	keep_order();
	/* Before and after these states write_seq counts the SYN or the FIN; the state change brings the
	 * total. The state changes before the FIN is counted. */
	state = sk->__sk_common.skc_state;
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return;
	if (st->known & KNOWN_OUT) {
		written = add_written(st, write_seq);
	} else if (learn_written(st, tp, write_seq, ret)) {
		reported = out->reported;
		written = out->total;
	} else {
		return;
	}
	if ((__s64)(written - reported) < ret)
		is_redirected(st, sk);
	read_quality(st, tp);
	post_up_to(st, &r, written - reported, share_of_call(tp, ret));
}

static __always_inline void tcp_call_out(struct sock *sk, long ret, const bool locked)
{
	struct tcp_sock *tp = tcp_of(sk);

	if (tp)
		tcp_sent(sk, tp, ret, locked);
}

/* A receive call has returned `ret`, and was no peek; its bytes were accounted chunk by chunk. */
static __always_inline void tcp_call_in(struct sock *sk, long ret)
{
	struct report r = { .direction = TT_IN, .calls = 1, .is_call = true };
	struct sk_state *st = state_of_typed(sk);
	struct tcp_sock *tp;
	struct acct *in;
	bool is_news;

	if (!st || ret <= 0)
		return;
	in = &st->c.acct[TT_IN];
	/* Another reader of the same socket may have ended its call in between, so the mark alone tells nothing. */
	is_news = st->moved_in || in->total != in->reported;
	if (!is_news && !is_redirected(st, sk))
		return;
	st->moved_in = 0;
	if (st->first_in) {
		st->first_in = 0;
		in->reported = (__u64)ret < in->total ? in->total - ret : 0;
	} else if (interval_ns && is_news) {
		return;
	}
	tp = tcp_of(sk);
	if (!tp)
		return;
	r.since = st->c.conn.since;
	r.actor = caller_identity();
	r.by_current = true;
	r.owner = st->owner;
	post_news(st, &r, share_of_call(tp, ret));
}

#endif
