/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who listens where: an accepted socket belongs to the process that listens until one is seen to use it. Only a process
 * that alone listens at an address and port is known to be the one; of several (SO_REUSEPORT) nobody is.
 */
#ifndef TCPTOP_LISTEN_H
#define TCPTOP_LISTEN_H

#include "sock.h"

static __always_inline void put_listen_key(struct listen_key *key, const struct tt_conn *conn, __u32 device)
{
	__builtin_memcpy(key->addr, conn->local_addr, 16);
	key->netns = conn->netns;
	key->device = device;
	key->port = conn->local_port;
	key->family = conn->family;
}

/*
 * A socket without a port is left out: it gets one after this change of state, and no hook tells which. For its accepted
 * sockets, and for those of a listener that has found no room here, nobody is found.
 */
static __noinline void listens_here(struct sk_state *st, struct sock *sk)
{
	struct listener fresh = { .owner = st->owner, .sockets = 1 };
	struct listen_key key = {};
	struct listener *known;

	if (!st->c.conn.local_port)
		return;
	st->device = sk->__sk_common.skc_bound_dev_if;
	put_listen_key(&key, &st->c.conn, st->device);
	if (bpf_map_update_elem(&listeners, &key, &fresh, BPF_NOEXIST)) {
		known = bpf_map_lookup_elem(&listeners, &key);
		if (!known)
			return;
		add_u64(&known->sockets, 1);
		if (known->owner != st->owner)
			known->owner = 0;
	}
	st->listens = LISTENS_KNOWN;
}

static __noinline void listens_no_more(struct sk_state *st)
{
	struct listen_key key = {};
	struct listener *known;

	if (st->listens != LISTENS_KNOWN)
		return;
	st->listens = LISTENS;
	put_listen_key(&key, &st->c.conn, st->device);
	known = bpf_map_lookup_elem(&listeners, &key);
	if (!known)
		return;
	add_u64(&known->sockets, -1);
	if (!known->sockets)
		bpf_map_delete_elem(&listeners, &key);
}

/* Who listens at this address, or else at any, with sockets that are bound to this device; to none if it is 0. */
static __always_inline struct listener *listener_at(const struct tt_conn *conn, __u32 device)
{
	struct listen_key key = {};
	struct listener *known;

	put_listen_key(&key, conn, device);
	known = bpf_map_lookup_elem(&listeners, &key);
	if (known)
		return known;
	__builtin_memset(key.addr, 0, sizeof(key.addr));
	return bpf_map_lookup_elem(&listeners, &key);
}

/*
 * Of a socket in the state in which it leaves its listener: it has the address that this listens at, or before Linux 6.18
 * the listener's own fields. It may be bound to the device that it came by, and its listener to none (VRF, link-local).
 */
static __noinline __u64 owner_of_listener(struct sock *sk)
{
	__u32 device = sk->__sk_common.skc_bound_dev_if;
	struct tt_conn conn = {};
	struct listener *known;

	put_kind(&conn, sk, IPPROTO_TCP, true);
	put_local(&conn, sk, true);
	conn.local_port = sk->__sk_common.skc_num;
	known = listener_at(&conn, device);
	if (!known && device)
		known = listener_at(&conn, 0);
	return known && known->owner ? identity_of(known->owner) | TT_INHERITED : 0;
}

#endif
