/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets: who they are, whose they are, and where their state is kept. */
#ifndef TCPTOP_SOCK_H
#define TCPTOP_SOCK_H

#include "task.h"

/* How many places to try where two CPUs may meet in one. */
#define CLAIMS_AT_MOST 3
#define NO_STATE       (~0U) /* more than there are */

/* Unique for the run where the kernel has no cookie to give: the time, and the CPU against two at once. */
static __always_inline __u64 own_id(void)
{
	return bpf_ktime_get_ns() << 10 | (bpf_get_smp_processor_id() & 1023);
}

/*
 * What a socket is, asked before it is taken for anything. The protocol alone does not tell: raw sockets, which are shorter,
 * have that of what they read along, and other families number theirs in their own way. Where hooks are, sockets are whole,
 * no minisockets.
 */
static __always_inline bool is_inet(struct sock *sk, __u16 type, __u16 protocol, const bool typed)
{
	__u16 family = FIELD(typed, sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && FIELD(typed, sk, sk_type) == type &&
	       FIELD(typed, sk, sk_protocol) == protocol;
}

static __always_inline bool is_tcp(struct sock *sk, const bool typed)
{
	return is_inet(sk, SOCK_STREAM, IPPROTO_TCP, typed);
}

/* Not UDP-Lite, which shares the functions of UDP. */
static __always_inline bool is_udp(struct sock *sk, const bool typed)
{
	return is_inet(sk, SOCK_DGRAM, IPPROTO_UDP, typed);
}

/* A socket as the TCP socket that it is; NULL if it is none. */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk)
{
	if (!is_tcp(sk, true))
		return NULL;
	if (!use_cast && HAS_TCP_TYPE)
		return bpf_skc_to_tcp_sock(sk);
	return CAST_IF_CAN(struct tcp_sock, sk);
}

static __always_inline struct state_entry *entry_at(__u32 number)
{
	return bpf_map_lookup_elem(&states, &number);
}

/* The entry of a socket, and its number, if it has one. */
static __noinline struct state_entry *entry_of(__u64 address, __u32 *number)
{
	__u32 *found = bpf_map_lookup_elem(&sockets, &address);

	if (!found)
		return NULL;
	*number = *found;
	return entry_at(*found);
}

/* The state of a socket if it has one. */
static __always_inline struct sk_state *state_peek(void *sk)
{
	__u32 number;
	struct state_entry *entry = entry_of((__u64)sk, &number);

	return entry ? &entry->st : NULL;
}

/* The same of a socket whose cookie is not cached. From now on it is, if the state is not that of an earlier socket. */
static __noinline struct sk_state *state_to_cache(__u64 address, __u64 cookie, __u32 *cached)
{
	__u32 number;
	struct state_entry *entry = entry_of(address, &number);

	if (!entry)
		return NULL;
	if (entry->st.c.conn.socket == cookie) {
		keep_order();
		entry->cookie = cookie;
		*cached = number;
	}
	return &entry->st;
}

/* The same, by cookie; 0 where the socket has none yet. */
static __always_inline struct sk_state *state_of(void *sk, __u64 cookie)
{
	struct state_entry *entry;
	__u32 bits = cookie & cookie_mask, *cached;

	if (!use_cookie || !cookie)
		return state_peek(sk);
	cached = bpf_map_lookup_elem(&cached_states, &bits);
	if (!cached)
		return NULL;
	entry = entry_at(*cached);
	if (entry && entry->cookie == cookie) {
		keep_order();
		return &entry->st;
	}
	return state_to_cache((__u64)sk, cookie, cached);
}

static __always_inline struct sk_state *state_of_typed(struct sock *sk)
{
	return state_of(sk, sk->__sk_common.skc_cookie.counter);
}

static __always_inline void give_back_state(struct state_entry *entry, __u32 number)
{
	entry->cookie = 0;
	bpf_map_push_elem(&free_states, &number, BPF_ANY);
}

/*
 * The number of a state that is nobody's: of one that was given back, or else the next one that was never used. Two CPUs that
 * find the same one of these at once may leave it unused for good: see claim_number().
 */
__noinline __u32 unused_state(void)
{
	__u32 *used = &control.states_used;
	struct state_entry *entry;
	__u32 number;

	if (!bpf_map_pop_elem(&free_states, &number))
		return number;
#pragma unroll
	for (int i = 0; i < CLAIMS_AT_MOST; i++) {
		number = *(volatile __u32 *)used;
		entry = entry_at(number);
		if (!entry)
			break;
		add_u32(used, 1);
		add_u64(&entry->claims, 1);
		if (*(volatile __u64 *)&entry->claims == 1)
			return number;
	}
	return NO_STATE;
}

/* A state for a socket that has none, all zero, and its number; NULL if there is no room. It is the socket's when it is
 * published. */
static __noinline struct sk_state *state_new(__u32 *number)
{
	struct state_entry *entry;

	*number = unused_state();
	entry = entry_at(*number);
	if (!entry)
		return NULL;
	entry->cookie = 0;
	__builtin_memset(&entry->st, 0, sizeof(entry->st));
	return &entry->st;
}

/* Makes it the state of this socket, and returns that: another one if another CPU has meanwhile published it. */
static __noinline struct sk_state *state_publish(void *sk, __u32 number)
{
	__u64 address = (__u64)sk;
	struct state_entry *entry;

	if (bpf_map_update_elem(&sockets, &address, &number, BPF_NOEXIST)) {
		entry = entry_at(number);
		if (entry)
			give_back_state(entry, number);
	}
	return state_peek(sk);
}

/* Makes the state of a socket that has none, with nothing in it; NULL if there is no room. */
static __always_inline struct sk_state *state_make(void *sk)
{
	__u32 number;

	return state_new(&number) ? state_publish(sk, number) : NULL;
}

/* The state of a socket, made if there is none. */
static __always_inline struct sk_state *state_get(void *sk)
{
	return state_peek(sk) ?: state_make(sk);
}

/* The socket is destroyed, and so nobody else is here for it. */
static __noinline void state_forget(void *sk)
{
	__u64 address = (__u64)sk;
	__u32 number;
	struct state_entry *entry = entry_of(address, &number);

	if (entry && !bpf_map_delete_elem(&sockets, &address))
		give_back_state(entry, number);
}

/*
 * The state at this address is that of an earlier socket with this id. Several CPUs may find that out at once, and one of them
 * may make the next state meanwhile. So one at a time looks again, and no state is given back twice.
 */
static __noinline void state_forget_stale(void *sk, __u64 socket)
{
	__u64 address = (__u64)sk;
	struct state_entry *entry;
	__u32 number = 0;

	if (bpf_map_update_elem(&stale_addresses, &address, &number, BPF_NOEXIST))
		return;
	entry = entry_of(address, &number);
	if (entry && entry->st.c.conn.socket == socket && !bpf_map_delete_elem(&sockets, &address))
		give_back_state(entry, number);
	bpf_map_delete_elem(&stale_addresses, &address);
}

/*
 * Is this the state of another socket, which was at this address before? Its end went past the programs. Cookies tell,
 * where programs can ask for them.
 */
static __always_inline bool is_of_another(const struct sk_state *st, struct sock *sk)
{
	return use_cookie && st->c.conn.socket &&
	       st->c.conn.socket != (__u64)sk->__sk_common.skc_cookie.counter;
}

/* What does not change during the life of a socket, but for its id. */
static __always_inline void put_kind(struct tt_conn *conn, struct sock *sk, __u8 protocol, const bool typed)
{
	conn->since = bpf_ktime_get_ns();
	conn->protocol = protocol;
	conn->family = FIELD(typed, sk, __sk_common.skc_family) == AF_INET6 ? 6 : 4;
	if (typed)
		conn->netns = CAST_IF_CAN(struct sock, sk)->__sk_common.skc_net.net->ns.inum;
	else
		conn->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

static __always_inline void put_identity(struct tt_conn *conn, struct sock *sk, __u8 protocol,
					 const bool typed)
{
	put_kind(conn, sk, protocol, typed);
	/* Another CPU that sees the id takes the rest for granted. */
	keep_order();
	if (!conn->socket)
		conn->socket = typed && use_cookie ? bpf_get_socket_cookie(sk) : own_id();
}

static __always_inline __u64 identity_of(__u64 owner)
{
	return owner & ~3ULL;
}

static __always_inline __u8 provenance_of(__u64 owner)
{
	return owner & 3;
}

/* The current process, with this identity, is the owner. Its record is there before anybody can ask for it. */
static __always_inline void set_owner(struct sk_state *st, __u64 identity, enum tt_provenance provenance)
{
	volatile __u64 *owner = &st->owner;

	if (*owner == (identity | provenance))
		return;
	remember_current(identity);
	*owner = identity | provenance;
}

/*
 * If the current process holds this socket's lock it is the owner. State changes and receive work also run in interrupts
 * that hit a process at random, or in the peer's process on loopback; there the lock is not "owned". Kernel threads do
 * own it (MPTCP workers), and do not count.
 */
static __always_inline void owner_if_locked(struct sk_state *st, struct sock *sk,
					    enum tt_provenance provenance)
{
	__u64 identity;

	if (!sk->sk_lock.owned)
		return;
	identity = current_identity();
	if (identity != THE_KERNEL)
		set_owner(st, identity, provenance);
}

/*
 * The current process makes a call on this socket, so it becomes the owner; returns its identity. The kernel owns only
 * what no process does.
 */
static __always_inline __u64 actor_is_current(struct sk_state *st)
{
	__u64 identity = caller_identity();

	if (identity != THE_KERNEL || provenance_of(st->owner) == TT_UNKNOWN)
		set_owner(st, identity, TT_SEEN);
	return identity;
}

/* As the library shows it: IPv4 over an IPv6 socket is IPv4. */
static __always_inline __u8 shown_family(const struct tt_conn *conn)
{
	return conn->family == 6 && is_v4_mapped((const __u32 *)conn->remote_addr) ? 4 : conn->family;
}

static __always_inline bool is_loopback(const __u8 *addr, __u8 family)
{
	const __u32 *a = (const __u32 *)addr;

	if (family == 4)
		return addr[0] == 127;
	if (is_v4_mapped(a))
		return addr[12] == 127;
	return !a[0] && !a[1] && !a[2] && a[3] == bpf_htonl(1);
}

static __always_inline bool is_wanted_port(__u16 port)
{
	return wanted_ports[port >> 6] >> (port & 63) & 1;
}

/* What is not filtered by is not looked at: the verifier removes it. Who the peer is, and with it the family of an IPv6 socket's
 * peer, need not be known. */
static __always_inline bool passes(const struct tt_conn *conn, __u64 owner, const bool peer_is_known)
{
	if (!filters)
		return true;
	if (filter_protocol && conn->protocol != filter_protocol)
		return false;
	if (filter_family && shown_family(conn) != filter_family && (peer_is_known || conn->family == 4))
		return false;
	if (filter_loopback &&
	    (is_loopback(conn->local_addr, conn->family) || is_loopback(conn->remote_addr, conn->family)))
		return false;
	if (filter_netns && conn->netns != filter_netns)
		return false;
	if (filter_ports && !is_wanted_port(conn->local_port) && !is_wanted_port(conn->remote_port) &&
	    peer_is_known)
		return false;
	return (!filter_pids && !filter_cgroups) || owner & PROCESS_PASSES;
}

static __always_inline bool is_wanted(const struct tt_conn *conn, __u64 owner)
{
	return passes(conn, owner, true);
}

/* What cannot be judged is not dropped: datagrams of a peer that is not known. */
static __always_inline bool may_be_wanted(const struct tt_conn *conn, __u64 owner)
{
	return !filters || passes(conn, owner, conn->protocol != IPPROTO_UDP || conn->remote_port);
}

/* Who was told of a connection is told of its end, though it may have changed hands or be that of another UDP peer. */
static __always_inline void note_told(struct sk_state *st, const struct tt_conn *conn)
{
	if (filters && may_be_wanted(conn, st->owner))
		st->told = 1;
}

#endif
