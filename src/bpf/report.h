/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From accounts to records: when a report is due, how it leaves, and what happens when it cannot. */
#ifndef TCPTOP_REPORT_H
#define TCPTOP_REPORT_H

#include "sock.h"

static __always_inline struct tt_control *get_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

/*
 * A wake-up costs more than everything else here together, so there is one only when the reader sleeps or the
 * ring fills up; a reader that is awake looks every few milliseconds by itself. Two CPUs may both wake it:
 * harmless.
 */
static __always_inline __u64 wake_flags(void)
{
	struct tt_control *ctl = get_control();

	if (!ctl)
		return BPF_RB_FORCE_WAKEUP;
	if (ctl->reader == TT_WOKEN)
		return BPF_RB_NO_WAKEUP;
	if (ctl->reader == TT_LOOKING && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < wake_bytes)
		return BPF_RB_NO_WAKEUP;
	ctl->reader = TT_WOKEN;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline __u32 transfer_kind(const struct tt_conn *conn, __u32 direction)
{
	if (conn->protocol == IPPROTO_TCP)
		return direction == TT_OUT ? TT_TCP_SEND : TT_TCP_RECV;
	return direction == TT_OUT ? TT_UDP_SEND : TT_UDP_RECV;
}

/*
 * The process that made the call. As a rule it is the owner, but another CPU may just have made another one that: then
 * what is said of this process must not be mixed with it.
 */
static __always_inline void put_actor(struct tt_process *actor, const struct tt_conn *conn, __u32 pid)
{
	if (conn->owner.pid == pid)
		*actor = conn->owner;
	else if (pid)
		current_process(actor);
	else
		the_kernel(actor);
	actor->pid = pid;
}

static __always_inline void put_totals(struct tt_transfer *t, const struct counted *c, __u32 direction,
				       __u64 now)
{
	const struct acct *a = &c->acct[direction];

	t->rtt_us = c->rtt_us;
	t->conn.time = now;
	t->total_bytes = a->total;
	t->total_packets = a->packets;
}

static __always_inline void put_transfer(struct tt_transfer *t, const struct counted *c, __u32 direction,
					 __u64 now, __u32 actor)
{
	t->kind = transfer_kind(&c->conn, direction);
	t->conn = c->conn;
	put_totals(t, c, direction, now);
	put_actor(&t->actor, &c->conn, actor);
	t->pad = 0;
}

/* The bank in which reports wait now. */
static __always_inline __u32 current_bank(void)
{
	struct tt_control *ctl = get_control();

	return ctl ? ctl->epoch & 1 : 0;
}

/* Tells the reader that there is something to collect in a bank. */
static __always_inline void mark_bank(__u32 bank)
{
	__u32 *waits = bpf_map_lookup_elem(&waiting, &bank);

	if (waits)
		*waits = 1;
}

static __always_inline void put_flow_key(struct tt_flow_key *key, const struct tt_conn *conn, __u32 direction,
					 __u32 actor)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->socket = conn->socket;
	if (conn->protocol == IPPROTO_UDP) {
		__builtin_memcpy(key->remote_addr, conn->remote_addr, 16);
		key->remote_port = conn->remote_port;
	}
	key->direction = direction;
	key->bank = current_bank();
	key->actor = actor;
}

/* What one hook has to say about one direction of one connection. */
struct report {
	__u64 now;
	__u64 bytes;
	__u32 direction;
	__u32 calls;
	__u32 actor;  /* pid; of the current process, or where no call is seen of the owner */
	bool is_call; /* a call has just ended: may go out at once */
};

/*
 * Atomic additions. Of a constant zero clang makes another atomic operation, which kernels before 5.12 refuse to load
 * wherever it stands, hence the tests.
 */
static __always_inline void add_u32(__u32 *to, __u32 n)
{
	if (n)
		__sync_fetch_and_add(to, n);
}

static __always_inline void add_u64(__u64 *to, __u64 n)
{
	if (n)
		__sync_fetch_and_add(to, n);
}

/* Lets the report wait; false if there is no room. */
static __always_inline bool pend(struct counted *c, const struct tt_flow_key *key, const struct report *r)
{
	struct tt_transfer *t;

	bpf_map_update_elem(&pending, key, &no_transfer, BPF_NOEXIST);
	t = bpf_map_lookup_elem(&pending, key);
	if (!t)
		return false;
	mark_bank(key->bank);
	put_transfer(t, c, r->direction, r->now, r->actor);
	add_u32(&t->calls, r->calls);
	add_u64(&t->bytes, r->bytes);
	return true;
}

static __always_inline bool emit(struct counted *c, const struct report *r)
{
	struct tt_transfer *t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);

	if (!t) {
		count_ring_loss(transfer_kind(&c->conn, r->direction));
		return false;
	}
	put_transfer(t, c, r->direction, r->now, r->actor);
	t->bytes = r->bytes;
	t->calls = r->calls;
	bpf_ringbuf_submit(t, wake_flags());
	return true;
}

/*
 * Sends a report that waits, unless it is empty; false if the ring has no room. It stays where it is, and empty, until
 * the reader removes it: another CPU may be adding to it, which is why what was sent is taken off and not overwritten.
 */
static __always_inline bool send_waiting(struct tt_transfer *waiting)
{
	struct tt_transfer *t;

	if (!waiting->bytes && !waiting->calls)
		return true;
	t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);
	if (!t) {
		count_ring_loss(waiting->kind);
		return false;
	}
	*t = *waiting;
	__sync_fetch_and_add(&waiting->bytes, -t->bytes);
	__sync_fetch_and_add(&waiting->calls, -t->calls);
	bpf_ringbuf_submit(t, wake_flags());
	return true;
}

/*
 * Adds to a report that waits. If it is about an earlier connection of this socket it is sent first; false if that is
 * not possible. Threads may be here at once: sums are added to atomically, and the total is written again if it has
 * grown in the meantime (the addition before the check is a full barrier), so that the last one to write has written the
 * latest.
 */
static __always_inline bool join(struct tt_transfer *t, struct counted *c, const struct report *r)
{
	const volatile __u64 *total = &c->acct[r->direction & 1].total;

	if (t->conn.since == c->conn.since) {
		put_totals(t, c, r->direction, r->now);
	} else {
		if (!send_waiting(t))
			return false;
		put_transfer(t, c, r->direction, r->now, r->actor);
	}
	add_u32(&t->calls, r->calls);
	add_u64(&t->bytes, r->bytes);
	if (*total != t->total_bytes)
		put_totals(t, c, r->direction, r->now);
	return true;
}

/*
 * Reports what is new in one direction. With an interval, the first call after a pause goes out at once and
 * what follows waits in `pending` until the reader collects it; without one each call goes
 * out. False if there was room nowhere.
 */
static __always_inline bool post(struct counted *c, struct report *r)
{
	struct acct *a = &c->acct[r->direction & 1];
	bool due = r->is_call && r->now - a->last_ns >= interval_ns;
	struct tt_transfer *t = NULL;
	struct tt_flow_key key;

	if ((!r->bytes && !r->calls) || !is_wanted(&c->conn))
		return true;
	a->last_ns = r->now;
	put_flow_key(&key, &c->conn, r->direction, r->actor);
	if (interval_ns)
		t = bpf_map_lookup_elem(&pending, &key);
	if (t ? join(t, c, r) : !due && pend(c, &key, r))
		return true;
	return emit(c, r) || pend(c, &key, r);
}

/* Sends a report to which nobody adds any more. The reader may be about to collect it: who removes it has it. */
static __always_inline void release(const struct tt_flow_key *key, const struct tt_transfer *waiting)
{
	struct tt_transfer *t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);

	if (!t) {
		count_ring_loss(waiting->kind);
		return;
	}
	*t = *waiting;
	if (bpf_map_delete_elem(&pending, key) || (!t->bytes && !t->calls))
		bpf_ringbuf_discard(t, BPF_RB_NO_WAKEUP);
	else
		bpf_ringbuf_submit(t, wake_flags());
}

/*
 * At the end of a connection nothing of its owner may wait, in neither bank. What other processes have still to report
 * follows when the reader collects it.
 */
static __always_inline void flush(struct counted *c)
{
	struct tt_flow_key key;
	struct tt_transfer *t;

	put_flow_key(&key, &c->conn, TT_OUT, c->conn.owner.pid);
	for (__u32 i = 0; i < 4; i++) {
		key.direction = i >> 1;
		key.bank = i & 1;
		t = bpf_map_lookup_elem(&pending, &key);
		if (t)
			release(&key, t);
	}
}

/* A TCP state change, or the end of a socket (no states then). */
struct change {
	__u64 now;
	__u32 kind;
	__s32 error;
	__u8 old_state;
	__u8 new_state;
	bool has_totals;
};

static __always_inline void put_change(struct tt_state *s, const struct sk_state *st, const struct change *ch)
{
	const struct counted *c = &st->c;

	s->kind = ch->kind;
	s->rtt_us = c->rtt_us;
	s->conn = c->conn;
	s->conn.time = ch->now;
	s->bytes_in = c->acct[TT_IN].total;
	s->bytes_out = c->acct[TT_OUT].total;
	s->packets_in = c->acct[TT_IN].packets;
	s->packets_out = c->acct[TT_OUT].packets;
	s->lasted_ns = st->born && st->end ? st->ended_ns - c->conn.since : 0;
	s->missing_in = c->acct[TT_IN].total - c->acct[TT_IN].reported;
	s->missing_out = c->acct[TT_OUT].total - c->acct[TT_OUT].reported;
	s->min_rtt_us = st->min_rtt_us;
	s->retransmits = st->retransmits;
	s->error = ch->error;
	s->old_state = ch->old_state;
	s->new_state = ch->new_state;
	s->flags = (ch->has_totals ? TT_HAS_TOTALS : 0) | (st->active ? TT_ACTIVE : 0);
	s->end = st->end;
}

/* A state record that finds no room in the ring is kept aside: the totals of a connection's end come no
 * second time. */
static __always_inline void emit_state(struct sk_state *st, const struct change *ch)
{
	const struct tt_conn *conn = &st->c.conn;
	struct tt_life_key key = { .socket = conn->socket, .since = conn->since, .bank = current_bank() };
	struct tt_state *s;

	s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);
	if (s) {
		put_change(s, st, ch);
		bpf_ringbuf_submit(s, wake_flags());
		return;
	}
	count_ring_loss(ch->kind);
	bpf_map_update_elem(&unsent, &key, &no_record, BPF_NOEXIST);
	s = bpf_map_lookup_elem(&unsent, &key);
	if (!s) {
		count_storage_loss(ch->kind);
		return;
	}
	mark_bank(key.bank);
	put_change(s, st, ch);
}

#endif
