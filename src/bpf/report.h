/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From accounts to records: when a report is due, how it leaves, and what happens when it cannot. */
#ifndef TCPTOP_REPORT_H
#define TCPTOP_REPORT_H

#include "sock.h"

#define NO_SLOT (~0U) /* more than there are */

/*
 * A wake-up costs more than everything else here together, so there is one only when the reader sleeps; one that is awake
 * looks every few milliseconds by itself. Two CPUs may both wake it: harmless.
 */
static __always_inline __u64 wake_flags(void)
{
	if (control.reader != TT_ASLEEP)
		return BPF_RB_NO_WAKEUP;
	control.reader = TT_WOKEN;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline __u32 transfer_kind(const struct tt_conn *conn, __u32 direction)
{
	if (conn->protocol == IPPROTO_TCP)
		return direction == TT_OUT ? TT_TCP_SEND : TT_TCP_RECV;
	return direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV;
}

/* What one hook has to say about one direction of one connection. */
struct report {
	__u64 now; /* 0: not looked up yet */
	__u64 bytes;
	__u64 owner; /* as in struct sk_state */
	__u64 actor; /* identity; of the current process, or where no call is seen of the owner */
	__u32 direction;
	__u32 calls;
	bool is_call;	 /* a call has just ended: may go out at once */
	bool by_current; /* the actor is the current process */
	__u32 since; /* TCP: when the connection began that it is about, in its last bits; the stack is full */
};

/* The current process makes the call that is reported. */
static __always_inline void by_current(struct report *r, struct sk_state *st)
{
	r->since = st->c.conn.since;
	r->actor = actor_is_current(st);
	r->by_current = true;
	r->owner = st->owner;
}

/* No call is seen: what has moved is the owner's. */
static __always_inline void by_owner(struct report *r, const struct sk_state *st)
{
	r->since = st->c.conn.since;
	r->owner = st->owner;
	r->actor = identity_of(r->owner);
}

/* Who holds a connection, and who made the call. */
static __always_inline void put_processes(struct tt_transfer *t, const struct report *r)
{
	__u64 owner = identity_of(r->owner);

	t->actor_id = r->actor;
	if (r->by_current && r->actor != THE_KERNEL)
		current_process(&t->actor);
	else
		put_process(&t->actor, r->actor);
	t->conn.provenance = provenance_of(r->owner);
	if (owner == r->actor)
		t->owner = t->actor;
	else
		put_process(&t->owner, owner);
}

static __always_inline void put_totals(struct tt_transfer *t, const struct counted *c, __u32 direction)
{
	const struct acct *a = &c->acct[direction & 1];

	t->rtt_us = c->rtt_us;
	t->total_bytes = a->total;
	t->total_packets = a->packets;
}

/* All but what is added up: bytes and calls. */
static __always_inline void put_transfer(struct tt_transfer *t, const struct counted *c,
					 const struct report *r)
{
	t->kind = transfer_kind(&c->conn, r->direction);
	t->conn = c->conn;
	t->conn.time = r->now;
	put_totals(t, c, r->direction);
	put_processes(t, r);
}

/* Changed by other CPUs and by the reader. */
static __always_inline __u32 current_epoch(void)
{
	return *(const volatile __u32 *)&control.epoch;
}

/*
 * The number of one of the first slots of the bank in use that is nobody's; NO_SLOT if there is none. Two CPUs may look at
 * once: each adds to the count of claims, and who then reads one was first and alone. If both read two the slot stays empty.
 * (An atomic operation that returns what it found would do, but only since Linux 5.12.) All of a free slot is zero.
 */
__noinline __u32 claim_number(__u32 bank, __u32 first)
{
	__u32 *used = &control.bank[bank & 1].used;
	union tt_slot *slot;
	__u32 n, number;

#pragma unroll
	for (int i = 0; i < CLAIMS_AT_MOST; i++) {
		n = *(volatile __u32 *)used;
		if (n >= first)
			break;
		add_u32(used, 1);
		number = bank * bank_slots + n;
		slot = bpf_map_lookup_elem(&slots, &number);
		if (!slot)
			break;
		add_u32(&slot->transfer.span_us, 1);
		if (*(volatile __u32 *)&slot->transfer.span_us == 1)
			return number;
	}
	return NO_SLOT;
}

/* Looked up once more, so that all ways to find one end as one here, for the verifier. */
static __always_inline union tt_slot *claim_slot(__u32 bank, __u32 first, __u32 *number)
{
	*number = claim_number(bank, first);
	return bpf_map_lookup_elem(&slots, number);
}

/* The latest report of an account that waits in the bank in use; NULL if there is none. */
static __always_inline struct tt_transfer *waiting_report(const struct acct *a)
{
	__u32 number = a->slot;

	if (a->slot >> 32 != current_epoch())
		return NULL;
	return bpf_map_lookup_elem(&slots, &number);
}

/*
 * Adds to the report of this process that waits; false if there is none. Processes that use a connection in turn have
 * one between them. Threads may be here at once: sums are added to atomically, and the total is written again if it has
 * grown in the meantime, so that the last one to write has written the latest.
 */
static __always_inline bool join(struct counted *c, const struct report *r)
{
	const struct acct *a = &c->acct[r->direction & 1];
	const volatile __u64 *total = &a->total;
	struct tt_transfer *t = waiting_report(a);

	if (!t || t->actor_id != r->actor)
		return false;
	put_totals(t, c, r->direction);
	add_u32(&t->calls, r->calls);
	add_u64_in_order(&t->bytes, r->bytes);
	if (*total != t->total_bytes)
		put_totals(t, c, r->direction);
	return true;
}

/*
 * Another thread may have disconnected the socket in the meantime, and connected it again: then what was put into the report is
 * of that connection, and the bytes are of the one before. The call does not hold the lock. They are lost, as little as can be.
 */
static __always_inline bool is_of_another_connection(const struct tt_transfer *t, const struct report *r)
{
	if (t->conn.protocol != IPPROTO_TCP || (__u32)t->conn.since == r->since)
		return false;
	count_storage_loss(t->kind);
	return true;
}

/* Lets the report wait; false if there is no room. Others may add to it as soon as the slot is known: then all of it is there. */
static __noinline bool wait(struct counted *c, const struct report *r)
{
	__u32 epoch = current_epoch();
	union tt_slot *slot;
	__u32 number;

	if (join(c, r))
		return true;
	slot = claim_slot(epoch & 1, common_slots, &number);
	if (!slot)
		return false;
	put_transfer(&slot->transfer, c, r);
	if (is_of_another_connection(&slot->transfer, r))
		return true;
	add_u32(&slot->transfer.calls, r->calls);
	add_u64_in_order(&slot->transfer.bytes, r->bytes);
	c->acct[r->direction & 1].slot = (__u64)epoch << 32 | number;
	return true;
}

static __always_inline bool emit(struct counted *c, const struct report *r)
{
	struct tt_transfer *t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);

	if (!t) {
		add_u64(&control.reports_aside, 1);
		return false;
	}
	put_transfer(t, c, r);
	if (is_of_another_connection(t, r)) {
		bpf_ringbuf_discard(t, BPF_RB_NO_WAKEUP);
		return true;
	}
	t->bytes = r->bytes;
	t->calls = r->calls;
	t->span_us = 0;
	bpf_ringbuf_submit(t, wake_flags());
	return true;
}

static __always_inline bool has_no_room(const struct acct *a)
{
	return a->slot == NO_ROOM || a->slot == NO_ROOM_LOST;
}

/*
 * There was room nowhere. What TCP has moved is still missing from what was reported: a later report takes it along, but not
 * the call. (Of UDP nothing comes later: see udp_bytes().)
 */
static __always_inline void note_no_room(struct counted *c, const struct report *r)
{
	struct acct *a = &c->acct[r->direction & 1];

	if (r->calls && c->conn.protocol == IPPROTO_TCP) {
		count_ring_loss(transfer_kind(&c->conn, r->direction));
		a->slot = NO_ROOM_LOST;
	} else if (a->slot != NO_ROOM_LOST) {
		a->slot = NO_ROOM;
	}
}

/*
 * The first report after a pause, and the first of an interval: rare, and so out of the way of the others, whose
 * instructions then share few cache lines.
 */
static __noinline bool post_new(struct counted *c, struct report *r)
{
	struct acct *a = &c->acct[r->direction & 1];
	bool is_due;

	if (!r->now)
		r->now = bpf_ktime_get_ns();
	/* It may have been forgotten since it became the owner. Looked for twice per second: that takes long. */
	if (r->by_current && (r->now ^ a->last_ns) >> 29)
		remember_current(r->actor);
	/* In a pause nothing was reported in an interval from its begin to its end. There was none before the first. */
	is_due = r->is_call && (!a->last_ns || r->now - a->last_ns >= 2 * interval_ns);
	a->last_ns = r->now;
	if ((!is_due && wait(c, r)) || emit(c, r) || wait(c, r)) {
		if (has_no_room(a))
			a->slot = 0;
		return true;
	}
	note_no_room(c, r);
	return false;
}

/*
 * Changes nothing: what is mixed with a zero of which the verifier does not know is any number to it. It then goes through
 * what follows once, and not again for each way in which these numbers came about.
 */
static __always_inline void forget_report(struct report *r)
{
	__u32 zero = *(const volatile __u32 *)&control.zero;

	r->now ^= zero;
	r->bytes ^= zero;
	r->owner ^= zero;
	r->actor ^= zero;
	r->calls ^= zero;
}

/* Adds it to the report that waits, if it may. */
static __always_inline bool joins(struct counted *c, const struct report *r)
{
	return interval_ns && may_be_wanted(&c->conn, r->owner) && join(c, r);
}

/* What has not joined another report. */
static __always_inline bool post_alone(struct counted *c, struct report *r)
{
	if (!may_be_wanted(&c->conn, r->owner))
		return true;
	forget_report(r);
	return post_new(c, r);
}

/*
 * Reports what is new in one direction. With an interval, the first call after a pause goes out at once and what
 * follows waits until the reader collects it; without one each call goes out. False if there was room nowhere.
 */
static __always_inline bool post(struct counted *c, struct report *r)
{
	return (!r->bytes && !r->calls) || joins(c, r) || post_alone(c, r);
}

/*
 * Sends a report that waits, unless it is empty; false if the ring has no room. It stays where it is, and empty, until
 * the reader collects it: another CPU may be adding to it, which is why what was sent is taken off and not overwritten.
 */
static __noinline bool send_waiting(struct tt_transfer *waiting)
{
	struct tt_transfer *t;

	if (!waiting->bytes && !waiting->calls)
		return true;
	t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);
	if (!t)
		return false;
	*t = *waiting;
	t->span_us = (bpf_ktime_get_ns() - t->conn.time) / 1000;
	add_u64(&waiting->bytes, -t->bytes);
	add_u32(&waiting->calls, -t->calls);
	bpf_ringbuf_submit(t, wake_flags());
	return true;
}

/*
 * At the end of a connection its reports should not wait: those in the bank in use are sent. There may be more in the
 * bank that the reader is about to collect: it keeps ends back for so long. What processes have to say whose reports are
 * not the latest follows when the reader collects it.
 */
static __always_inline void flush(const struct counted *c)
{
	struct tt_transfer *t;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		t = waiting_report(&c->acct[i]);
		if (t)
			send_waiting(t);
	}
}

/* A TCP state change, the end of a socket (no states then), or a retransmission. */
struct change {
	__u64 now;
	__u32 kind;
	__s32 error;
	__u32 segments; /* of a retransmission */
	__u8 old_state;
	__u8 new_state;
	bool has_totals;
};

/* What found no room is no error of ours, but a loss, which is counted. */
static __always_inline bool is_balanced(const struct acct *a)
{
	return a->total == a->reported || has_no_room(a);
}

/* There is no later report that could take along what found no room until now. */
static __always_inline void lose_rest(const struct counted *c, __u32 direction)
{
	const struct acct *a = &c->acct[direction & 1];

	if (a->slot == NO_ROOM && a->total != a->reported)
		count_ring_loss(transfer_kind(&c->conn, direction));
}

static __always_inline void put_change(struct tt_state *s, const struct sk_state *st, const struct change *ch)
{
	const struct counted *c = &st->c;

	s->kind = ch->kind;
	s->rtt_us = c->rtt_us;
	s->conn = c->conn;
	s->conn.time = ch->now;
	s->conn.provenance = provenance_of(st->owner);
	put_process(&s->owner, identity_of(st->owner));
	s->bytes_in = c->acct[TT_IN].total;
	s->bytes_out = c->acct[TT_OUT].total;
	s->packets_in = c->acct[TT_IN].packets;
	s->packets_out = c->acct[TT_OUT].packets;
	s->lasted_ns = st->born && st->end ? st->ended_ns - c->conn.since : 0;
	s->min_rtt_us = st->min_rtt_us;
	s->retransmits = st->retransmits;
	s->segments = ch->segments;
	s->error = ch->error;
	s->old_state = ch->old_state;
	s->new_state = ch->new_state;
	s->flags = (ch->has_totals ? TT_HAS_TOTALS : 0) | (st->active ? TT_ACTIVE : 0) |
		   (is_balanced(&c->acct[TT_OUT]) && is_balanced(&c->acct[TT_IN]) ? 0 : TT_UNBALANCED);
	s->end = st->end;
}

/* A state record that finds no room in the ring waits among the reports: the totals of a connection's end come no
 * second time. */
static __noinline void emit_state(struct sk_state *st, const struct change *ch)
{
	__u32 first = ch->kind == TT_CLOSED ? bank_slots : common_slots;
	union tt_slot *slot;
	struct tt_state *s;
	__u32 number;

	if (ch->kind == TT_CLOSED) {
		lose_rest(&st->c, TT_OUT);
		lose_rest(&st->c, TT_IN);
	}
	s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);
	if (s) {
		put_change(s, st, ch);
		bpf_ringbuf_submit(s, wake_flags());
		return;
	}
	/* Before it waits: the reader sees that it must look, and not too late. */
	add_u64(&control.states_aside, 1);
	slot = claim_slot(current_epoch() & 1, first, &number);
	if (slot)
		put_change(&slot->state, st, ch);
	else
		count_storage_loss(ch->kind);
}

#endif
