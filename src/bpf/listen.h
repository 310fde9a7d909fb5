/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who listens where: an accepted socket belongs to the process that listens until one is seen to use it. Only a process
 * that alone listens at an address and port is known to be the one; of several (SO_REUSEPORT) nobody is.
 */
#ifndef TCPTOP_LISTEN_H
#define TCPTOP_LISTEN_H

#include "sock.h"

static __always_inline void put_listen_key(struct listen_key *key, const struct tt_conn *conn)
{
	__builtin_memcpy(key->addr, conn->local_addr, 16);
	key->netns = conn->netns;
	key->port = conn->local_port;
	key->family = conn->family;
}

static __noinline void listens_here(const struct sk_state *st)
{
	struct listener fresh = { .owner = st->owner, .sockets = 1 };
	struct listen_key key = {};
	struct listener *known;

	put_listen_key(&key, &st->c.conn);
	if (!bpf_map_update_elem(&listeners, &key, &fresh, BPF_NOEXIST))
		return;
	known = bpf_map_lookup_elem(&listeners, &key);
	if (!known)
		return;
	__sync_fetch_and_add(&known->sockets, 1);
	if (known->owner != st->owner)
		known->owner = 0;
}

/* Sockets that began to listen before the tracer were not counted: they end with none left, too. */
static __noinline void listens_no_more(const struct sk_state *st)
{
	struct listen_key key = {};
	struct listener *known;

	put_listen_key(&key, &st->c.conn);
	known = bpf_map_lookup_elem(&listeners, &key);
	if (!known)
		return;
	__sync_fetch_and_add(&known->sockets, -1);
	if ((__s64)known->sockets <= 0)
		bpf_map_delete_elem(&listeners, &key);
}

/*
 * Of a socket in the state in which it leaves its listener: it has the address that this listens at, or before Linux 6.18
 * the listener's own fields.
 */
static __noinline __u64 owner_of_listener(struct sock *sk)
{
	struct tt_conn conn = {};
	struct listen_key key = {};
	struct listener *known;

	put_kind(&conn, sk, IPPROTO_TCP, true);
	put_local(&conn, sk, true);
	conn.local_port = sk->__sk_common.skc_num;
	put_listen_key(&key, &conn);
	known = bpf_map_lookup_elem(&listeners, &key);
	if (!known) {
		__builtin_memset(key.addr, 0, sizeof(key.addr));
		known = bpf_map_lookup_elem(&listeners, &key);
	}
	return known && known->owner ? identity_of(known->owner) | TT_INHERITED : 0;
}

#endif
