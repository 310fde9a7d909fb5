/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP: exact totals out of struct tcp_sock, and the hooks that all backends share.
 *
 * The kernel's byte counters include SYN and FIN in places, and retransmissions; what the program wrote and
 * read follows from them together with the sequence numbers. The sums are right while the socket is locked
 * (by its user or in softirq), as it is in the tracepoints below. After a call has released the lock, another
 * CPU may be in the middle of an update: there only single words that the caller's side alone changes are
 * used.
 */
#ifndef TCPTOP_TCP_H
#define TCPTOP_TCP_H

#include "report.h"
#include "totals.h"

#define KNOWN_OUT 1
#define KNOWN_IN  2

#define ALL_NEWS (~0ULL)

/* include/uapi/asm-generic/errno.h */
#define EPIPE	     32
#define ENETUNREACH  101
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

/*
 * A splice or zero-copy reader makes no receive call that a hook could see the end of. With an event per
 * call, chunks that have waited so long for the end of theirs are reported without it.
 */
#define CHUNK_INTERVAL_NS 100000000ULL

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

	raise(&out->total, written(sk, tp));
	raise(&in->total, consumed(sk, tp));
	/* What moved before we came is history. A new connection has none: bytes in its SYN are news. */
	if (!(st->known & KNOWN_OUT) && !st->born)
		out->reported = out->total;
	if (!(st->known & KNOWN_IN) && !st->born)
		in->reported = in->total;
	st->seq_out = TCP(tp, write_seq) - (__u32)out->total;
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

static __always_inline void note_change(struct sk_state *st, __u8 old_state, __u8 new_state)
{
	st->changed[0] = old_state;
	st->changed[1] = new_state;
}

/*
 * The change that was noted. Read each time it is asked for: of a value in a register the verifier would keep in mind what
 * was found out, and go through all that follows for each pair of states anew.
 */
static __always_inline bool changes_from(const struct sk_state *st, __u8 state)
{
	return *(const volatile __u8 *)&st->changed[0] == state;
}

static __always_inline bool changes_to(const struct sk_state *st, __u8 state)
{
	return *(const volatile __u8 *)&st->changed[1] == state;
}

/*
 * At the change to CLOSE. Orderly is an end in which the peer has acknowledged our FIN; where it has not, sk_err tells
 * what came instead (tcp_reset(), tcp_write_err()). Without an error it was this side that broke off: a close with
 * unread data, SO_LINGER with no time, AF_UNSPEC, or with one (ECONNABORTED) `ss -K`.
 */
static __always_inline __u8 how_it_ends(const struct sk_state *st, struct sock *sk, struct tcp_sock *tp)
{
	int error = sk->sk_err;

	if ((changes_from(st, TCP_FIN_WAIT2) || changes_from(st, TCP_LAST_ACK) ||
	     changes_from(st, TCP_CLOSING)) &&
	    TCP(tp, snd_una) == TCP(tp, write_seq) && (!error || sk->__sk_common.skc_flags & SOCK_DONE))
		return TT_ORDERLY;
	if (error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH)
		return TT_TIMED_OUT;
	if (error == ECONNRESET || error == EPIPE || error == ECONNREFUSED)
		return TT_RESET;
	return TT_ABORTED;
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
 * The first sight of an older connection, unlocked: sent and acknowledged bytes must tell the same story
 * (they differ by the SYN of an active opener), else another CPU is just transmitting, and the next call will
 * do. The bytes of this call are news, what came before is history.
 */
static __always_inline bool learn_written(struct sk_state *st, struct tcp_sock *tp, __u32 end,
					  __u64 of_this_call)
{
	__u64 sent = TCP(tp, bytes_sent) - TCP(tp, bytes_retrans) + (__u32)(end - TCP(tp, snd_nxt));
	__u64 acked = TCP(tp, bytes_acked) + (__u32)(end - TCP(tp, snd_una));
	struct acct *out = &st->c.acct[TT_OUT];

	barrier(); /* look again */
	if (acked - sent > 1 || TCP(tp, write_seq) != end)
		return false;
	out->total = sent;
	out->reported = sent - (of_this_call < sent ? of_this_call : sent);
	st->seq_out = end - (__u32)sent;
	st->known |= KNOWN_OUT;
	return true;
}

/* Makes a state that of a connection which begins. Whose it is stays. */
static __always_inline void renew(struct sk_state *st, __u64 socket)
{
	struct tt_process owner = st->c.conn.owner;
	__u8 provenance = st->c.conn.provenance;
	__u64 exec_id = st->exec_id;

	__builtin_memset(st, 0, sizeof(*st));
	st->c.conn.owner = owner;
	st->c.conn.provenance = provenance;
	st->c.conn.socket = socket;
	st->exec_id = exec_id;
	st->born = 1;
}

/*
 * A child of a listener, which brings a copy of its parent's state and keeps the owner. Before Linux 6.18 the kernel
 * has not given it its peer and its cookie yet (inet_csk_clone_lock()), so it gets its identity when it is looked at
 * next, which is at SYN_RECV -> ESTABLISHED in the same breath.
 */
static __noinline void conceive(struct sk_state *st)
{
	renew(st, 0);
	if (st->c.conn.provenance != TT_UNKNOWN)
		st->c.conn.provenance = TT_INHERITED;
}

/*
 * Is this still the copy of its listener's state? The change that makes it a child's own may go past the programs: the
 * kernel skips one that would interrupt itself.
 */
static __always_inline bool is_copy(const struct sk_state *st, struct sock *sk)
{
	__u8 state;

	if (!st->listens)
		return false;
	state = sk->__sk_common.skc_state;
	return state != TCP_LISTEN && state != TCP_CLOSE;
}

/* The state of a TCP socket, made and filled at first sight. */
static __always_inline struct sk_state *tcp_state(struct sock *sk, struct tcp_sock *tp, __u32 kind)
{
	struct sk_state *st = state_get(sk);

	if (!st) {
		count_storage_loss(kind);
		return NULL;
	}
	if (is_copy(st, sk))
		conceive(st);
	if (!st->c.conn.socket) {
		put_identity(&st->c.conn, sk, IPPROTO_TCP, true);
		read_key(&st->c.conn, sk, tp);
	}
	return st;
}

static __always_inline void emit_end(struct sk_state *st, __u64 now)
{
	struct change end = { .now = now, .kind = TT_CLOSED, .error = st->error, .has_totals = true };

	flush(&st->c);
	if (st->told || is_wanted(&st->c.conn))
		emit_state(st, &end);
}

static __always_inline bool has_counters(const struct sk_state *st)
{
	return !changes_from(st, TCP_LISTEN) && !changes_to(st, TCP_LISTEN) &&
	       !changes_to(st, TCP_SYN_SENT) && !changes_to(st, TCP_SYN_RECV);
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
	add_u64(&a->reported, r->bytes);
	if (r->direction == TT_IN || *(volatile __u64 *)&st->shut)
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

static __always_inline void post_out(struct sk_state *st, __u64 now)
{
	struct report r = { .now = now, .direction = TT_OUT, .calls = st->calls_out };

	r.actor = st->c.conn.owner.pid;
	st->calls_out = 0;
	post_news(st, &r, ALL_NEWS);
}

static __always_inline void post_in(struct sk_state *st, __u64 now)
{
	struct report r = { .now = now, .direction = TT_IN, .actor = st->c.conn.owner.pid };

	post_news(st, &r, ALL_NEWS);
}

/*
 * connect() or listen(). A socket that lived before (AF_UNSPEC has disconnected it) first says how that ended.
 */
static __always_inline void begin_life(struct sk_state *st, struct sock *sk, struct tcp_sock *tp,
				       bool listens, __u64 now)
{
	if (st->known && !st->failed)
		emit_end(st, now);
	renew(st, st->c.conn.socket);
	st->listens = listens;
	st->active = !listens;
	put_identity(&st->c.conn, sk, IPPROTO_TCP, true);
	st->c.conn.since = now;
	read_key(&st->c.conn, sk, tp);
}

/*
 * inet_sock_set_state(): the socket is locked, and still in its old state. Runs in the owner's system call,
 * in softirq, in timers: the current process counts only if it holds the lock. SCTP, DCCP and MPTCP come here
 * too.
 */
static __always_inline int state_changes(struct sock *sk, int old_state, int new_state)
{
	struct change ch = { .kind = TT_TCP_STATE, .old_state = old_state, .new_state = new_state };
	struct tcp_sock *tp;
	struct sk_state *st;

	if (sk->sk_protocol != IPPROTO_TCP || old_state == new_state)
		return 0;
	tp = tcp_of(sk);
	if (!tp)
		return 0;
	if (old_state == TCP_LISTEN && new_state == TCP_SYN_RECV) {
		st = state_get(sk);
		if (!st) {
			count_storage_loss(TT_TCP_STATE);
			return 0;
		}
		conceive(st);
		note_change(st, old_state, new_state);
		return 0;
	}
	if (old_state == TCP_SYN_RECV && new_state == TCP_CLOSE) {
		/* Two CPUs may make a child each for one connection: the one that comes too late was nobody's. */
		st = state_peek(sk);
		if (!st || !st->c.conn.socket || st->listens)
			return 0;
	}
	st = tcp_state(sk, tp, TT_TCP_STATE);
	if (!st)
		return 0;
	ch.now = bpf_ktime_get_ns();
	if (new_state == TCP_SYN_SENT || new_state == TCP_LISTEN)
		begin_life(st, sk, tp, new_state == TCP_LISTEN, ch.now);
	note_change(st, old_state, new_state);
	if (changes_from(st, TCP_SYN_SENT) || changes_from(st, TCP_SYN_RECV) || !st->c.conn.local_port)
		read_key(&st->c.conn, sk, tp);
	owner_if_locked(st, sk);
	if (changes_from(st, TCP_SYN_SENT))
		st->active = 1;
	if (changes_from(st, TCP_SYN_RECV) && changes_to(st, TCP_ESTABLISHED))
		st->born = 1;
	if (has_counters(st)) {
		read_totals(st, sk, tp);
		read_quality(st, tp);
		read_condition(st, tp);
		/* Whoever is sending goes on, and will report it. In other states calls leave that to us. */
		/* Atomic for the sake of its barrier: see give_back(). */
		if (!changes_to(st, TCP_ESTABLISHED) && !changes_to(st, TCP_CLOSE_WAIT))
			add_u64(&st->shut, st->c.acct[TT_OUT].total + 1 - st->shut);
		if (!changes_to(st, TCP_CLOSE_WAIT) || chunks_are_calls)
			post_out(st, ch.now);
		post_in(st, ch.now);
		ch.has_totals = true;
	}
	ch.error = sk->sk_err;
	if (changes_to(st, TCP_CLOSE)) {
		st->failed = changes_from(st, TCP_SYN_SENT) || changes_from(st, TCP_SYN_RECV);
		st->ended_ns = ch.now;
		st->error = ch.error;
		st->end = how_it_ends(st, sk, tp);
		flush(&st->c);
	}
	note_told(st, &st->c.conn);
	if (is_wanted(&st->c.conn))
		emit_state(st, &ch);
	return 0;
}

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_set_state, struct sock *sk, int old_state, int new_state)
{
	return state_changes(sk, old_state, new_state);
}

/* The understudy (see turn_is_taken()); programs run in the order in which they were attached. */
SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_set_state_2, struct sock *sk, int old_state, int new_state)
{
	struct sk_state *st;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	st = state_peek(sk);
	if (st && st->changed[0] == old_state && st->changed[1] == new_state) {
		note_change(st, 0, 0);
		return 0;
	}
	return state_changes(sk, old_state, new_state);
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
		st->first_in = 1;
		in->reported = in->total;
	}
	if (in->total == before)
		return 0;
	r.actor = actor_if_locked(st, sk);
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
 * tcp_destroy_sock: nobody holds the socket any more. Reads may have gone on after ->CLOSE, so the last word
 * about what was consumed is spoken here. The current process may be anybody.
 */
static __always_inline int socket_ends(struct sock *sk)
{
	struct tcp_sock *tp = tcp_of(sk);
	struct sk_state *st;
	__u64 now;

	if (!tp)
		return 0;
	st = state_peek(sk);
	if (!st)
		return 0;
	if (st->c.conn.socket && !st->listens && st->known) {
		now = bpf_ktime_get_ns();
		raise(&st->c.acct[TT_IN].total, consumed(sk, tp));
		/* A call that returned late may have written an earlier total over that one. */
		if (st->shut)
			raise(&st->c.acct[TT_OUT].total, st->shut - 1);
		/* The change to CLOSE may have gone past the programs: then this is the last look. A disconnect (AF_UNSPEC, or
		 * SO_LINGER with no time) has wiped the counters by now, but not the sequence numbers. */
		if (!st->ended_ns && TCP(tp, bytes_sent)) {
			read_totals(st, sk, tp);
			read_quality(st, tp);
			read_condition(st, tp);
		}
		post_out(st, now);
		post_in(st, now);
		if (!st->failed)
			emit_end(st, now);
		st->known = 0;
	}
	state_forget(sk);
	return 0;
}

SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	return socket_ends(sk);
}

/* The understudy: a connection that has ended is not known any more. */
SEC("?tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy_2, struct sock *sk)
{
	return socket_ends(sk);
}

/*
 * How much of the news a call that has returned `ret` may report. With an upper layer protocol (kTLS, MPTCP) other bytes
 * pass through TCP than the program moves.
 */
static __always_inline __u64 share_of_call(struct tcp_sock *tp, __u64 ret)
{
	return TCP(tp, inet_conn.icsk_ulp_ops) ? ALL_NEWS : ret;
}

/* A send has returned `ret` > 0. Runs in the system call, after the lock was released. */
static __always_inline void tcp_call_out(struct sock *sk, long ret)
{
	struct report r = { .direction = TT_OUT, .calls = 1, .is_call = true };
	struct tcp_sock *tp = tcp_of(sk);
	__u64 reported, written;
	struct sk_state *st;
	struct acct *out;
	__u32 write_seq;
	__u8 state;

	if (!tp)
		return;
	st = tcp_state(sk, tp, TT_TCP_SEND);
	if (!st)
		return;
	out = &st->c.acct[TT_OUT];
	r.actor = actor_is_current(st);
	reported = *(volatile __u64 *)&out->reported;
	write_seq = TCP(tp, write_seq);
	barrier();
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
	read_quality(st, tp);
	post_up_to(st, &r, written - reported, share_of_call(tp, ret));
}

/* A receive call has returned `ret`; its bytes were accounted chunk by chunk. A peek has moved nothing. */
static __always_inline void tcp_call_in(struct sock *sk, long ret)
{
	struct report r = { .direction = TT_IN, .calls = 1, .is_call = true };
	struct sk_state *st = state_peek(sk);
	struct caller caller;
	struct tcp_sock *tp;
	struct acct *in;

	if (!st || ret <= 0)
		return;
	in = &st->c.acct[TT_IN];
	/* Another reader of the same socket may have ended its call in between, so the mark alone tells nothing. */
	if (!st->moved_in && in->total == in->reported)
		return;
	st->moved_in = 0;
	if (st->first_in) {
		st->first_in = 0;
		in->reported = (__u64)ret < in->total ? in->total - ret : 0;
	} else if (interval_ns) {
		return;
	}
	tp = tcp_of(sk);
	if (!tp)
		return;
	get_caller(&caller);
	r.actor = caller.is_kernel ? 0 : caller.pid;
	post_news(st, &r, share_of_call(tp, ret));
}

#endif
