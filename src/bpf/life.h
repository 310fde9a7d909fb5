/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP: begin, changes of state, and end of connections, in all backends. */
#ifndef TCPTOP_LIFE_H
#define TCPTOP_LIFE_H

#include "tcp.h"

/* include/uapi/asm-generic/errno.h */
#define EPIPE	     32
#define ENETUNREACH  101
#define ECONNABORTED 103
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

#define EADDRNOTAVAIL 99

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
 * Does a stranger destroy the socket, as `ss -K` does (tcp_abort())? It holds the lock, too. Of a listening socket the error
 * does not tell: there only who is not known yet is learned.
 */
static __always_inline bool is_destroyed(const struct sk_state *st, struct sock *sk)
{
	if (!changes_to(st, TCP_CLOSE))
		return false;
	return sk->sk_err == ECONNABORTED ||
	       (changes_from(st, TCP_LISTEN) && provenance_of(st->owner) != TT_UNKNOWN);
}

/*
 * At SYN_SENT -> CLOSE: does connect() itself give up, before it has sent anything? Then all local ports are in use, or the
 * one that is bound has this peer already. (A Fast Open connect that is put off and then taken back looks the same.)
 */
static __always_inline bool has_no_port(const struct sk_state *st, struct sock *sk, struct tcp_sock *tp)
{
	return changes_from(st, TCP_SYN_SENT) && !sk->sk_err && !sk->sk_shutdown && !TCP(tp, segs_out);
}

static __always_inline void post_out(struct sk_state *st, __u64 now)
{
	struct report r = { .now = now, .direction = TT_OUT, .calls = st->calls_out };

	by_owner(&r, st);
	st->calls_out = 0;
	post_news(st, &r, ALL_NEWS);
}

static __always_inline void post_in(struct sk_state *st, __u64 now)
{
	struct report r = { .now = now, .direction = TT_IN };

	by_owner(&r, st);
	post_news(st, &r, ALL_NEWS);
}

/* Of a connection. What was read since it went to CLOSE, and was not reported, is now. */
static __noinline void emit_end(struct sk_state *st, __u64 now)
{
	struct change end = { .now = now, .kind = TT_CLOSED, .error = st->error, .has_totals = true };

	post_in(st, now);
	flush(&st->c);
	if (st->told || is_wanted(&st->c.conn, st->owner))
		emit_state(st, &end);
}

/* A part of an MPTCP connection: nobody calls it, so what is known of it is from its changes of state, and final at CLOSE. */
static __always_inline void note_mptcp(struct sk_state *st, struct tcp_sock *tp)
{
	if (!bpf_core_field_exists(tp->is_mptcp))
		return;
	if (changes_to(st, TCP_CLOSE))
		st->c.conn.uncounted &= ~TT_MPTCP;
	else if (TCP(tp, is_mptcp))
		st->c.conn.uncounted |= TT_MPTCP;
}

static __always_inline bool has_counters(const struct sk_state *st)
{
	return !changes_from(st, TCP_LISTEN) && !changes_to(st, TCP_LISTEN) &&
	       !changes_to(st, TCP_SYN_SENT) && !changes_to(st, TCP_SYN_RECV);
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
	st->listens = listens ? LISTENS : 0;
	st->active = !listens;
	put_identity(&st->c.conn, sk, IPPROTO_TCP, true);
	st->c.conn.since = now;
	read_key(&st->c.conn, sk, tp);
	/* That may still be the port of the connection before. */
	st->c.conn.local_port = sk->__sk_common.skc_num;
}

/*
 * Who uses the socket. Connecting and listening is using it; closing it is not: a process may close last what it has
 * inherited or was handed and never used, and does not own what others have moved.
 */
static __always_inline void learn_owner(struct sk_state *st, struct sock *sk)
{
	if (is_destroyed(st, sk))
		return;
	if (changes_to(st, TCP_SYN_SENT) || changes_to(st, TCP_LISTEN) || changes_to(st, TCP_ESTABLISHED))
		owner_if_locked(st, sk, TT_SEEN);
	else if (provenance_of(st->owner) != TT_SEEN)
		owner_if_locked(st, sk, TT_CLOSER);
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

	if (old_state == new_state)
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
		if (st->known && !st->failed)
			emit_end(st, bpf_ktime_get_ns());
		conceive(st, sk);
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
	/* What was sent and is not acknowledged yet (kprobes) is not of the one who closes. */
	if (chunks_are_calls && st->calls_out && has_counters(st)) {
		read_totals(st, sk, tp);
		post_out(st, ch.now);
	}
	learn_owner(st, sk);
	if (changes_to(st, TCP_LISTEN))
		listens_here(st, sk);
	else if (changes_from(st, TCP_LISTEN))
		listens_no_more(st);
	if (changes_from(st, TCP_SYN_SENT))
		st->active = 1;
	if (changes_from(st, TCP_SYN_RECV) && changes_to(st, TCP_ESTABLISHED))
		st->born = 1;
	if (has_counters(st)) {
		read_totals(st, sk, tp);
		read_quality(st, tp);
		read_condition(st, tp);
		/* Whoever is sending goes on, and will report it. In other states calls leave that to us, see give_back(). */
		if (!changes_to(st, TCP_ESTABLISHED) && !changes_to(st, TCP_CLOSE_WAIT))
			add_u64_in_order(&st->shut, st->c.acct[TT_OUT].total + 1 - st->shut);
		if (!changes_to(st, TCP_CLOSE_WAIT) || chunks_are_calls)
			post_out(st, ch.now);
		post_in(st, ch.now);
		ch.has_totals = true;
	}
	ch.error = sk->sk_err;
	if (changes_to(st, TCP_CLOSE)) {
		st->failed = changes_from(st, TCP_SYN_SENT) || changes_from(st, TCP_SYN_RECV);
		if (has_no_port(st, sk, tp)) {
			ch.error = EADDRNOTAVAIL;
			st->failed = FAILED_BY_ITSELF;
			st->c.conn.local_port = sk->__sk_common.skc_num;
		}
		st->ended_ns = ch.now;
		st->error = ch.error;
		st->end = how_it_ends(st, sk, tp);
		flush(&st->c);
	}
	note_mptcp(st, tp);
	note_told(st, &st->c.conn);
	if (is_wanted(&st->c.conn, st->owner))
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

	if (!is_tcp(sk, true))
		return 0;
	st = state_peek(sk);
	if (st && st->changed[0] == old_state && st->changed[1] == new_state) {
		note_change(st, 0, 0);
		return 0;
	}
	return state_changes(sk, old_state, new_state);
}

/* The segments that TCP makes of what is in this buffer, which it has queued (tcp_skb_pcount()). */
static __always_inline __u16 segments_of(struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)skb->cb;

	return use_cast ? CAST(struct tcp_skb_cb, cb)->tcp_gso_segs : BPF_CORE_READ(cb, tcp_gso_segs);
}

/*
 * tcp_retransmit_skb: segments were handed to IP once more. Newer kernels (6.18) come here, too, when that fails. The segments
 * are in the total by then. Runs with the socket locked, mostly in softirq: the current process is a stranger.
 */
SEC("?tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, struct sock *sk, struct sk_buff *skb)
{
	struct change ch = { .kind = TT_RETRANSMIT };
	struct tcp_sock *tp = tcp_of(sk);
	struct sk_state *st;

	if (!tp)
		return 0;
	st = tcp_state(sk, tp, TT_RETRANSMIT);
	if (!st || !is_wanted(&st->c.conn, st->owner))
		return 0;
	note_told(st, &st->c.conn);
	st->retransmits = TCP(tp, total_retrans);
	ch.now = bpf_ktime_get_ns();
	ch.old_state = ch.new_state = sk->__sk_common.skc_state;
	ch.segments = segments_of(skb);
	emit_state(st, &ch);
	return 0;
}

/*
 * tcp_destroy_sock: nobody holds the socket any more. Reads may have gone on after ->CLOSE, so the last word
 * about what was consumed is spoken here. The current process may be anybody; in close() it has the lock.
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
		/* An older connection may have done nothing before its peer broke it off. */
		if (provenance_of(st->owner) == TT_UNKNOWN)
			owner_if_locked(st, sk, TT_CLOSER);
		post_out(st, now);
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

#endif
