/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets: who they are, whose they are, and where their state is kept. */
#ifndef TCPTOP_SOCK_H
#define TCPTOP_SOCK_H

#include "task.h"

/* Unique for the run where the kernel has no cookie to give: the time, and the CPU against two at once. */
static __always_inline __u64 own_id(void)
{
	return bpf_ktime_get_ns() << 10 | (bpf_get_smp_processor_id() & 1023);
}

static __always_inline struct sk_state *hash_peek(void *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&sk_hash, &key);
}

/* If another CPU has made it in the meantime, it is as that one made it. */
static __always_inline struct sk_state *hash_make(void *sk, const struct sk_state *fresh)
{
	__u64 key = (__u64)sk;

	bpf_map_update_elem(&sk_hash, &key, fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&sk_hash, &key);
}

static __always_inline struct sk_state *hash_get(void *sk)
{
	return hash_peek(sk) ?: hash_make(sk, &no_state);
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

/* The state of a socket if it has one. `sk` is a pointer whose type the verifier knows. */
static __always_inline struct sk_state *state_peek(struct sock *sk)
{
	if (use_storage)
		return bpf_sk_storage_get(&sk_storage, sk, 0, 0);
	return hash_peek(sk);
}

/*
 * The same, made where there is none, with something in it; NULL if the kernel refuses (no memory, a socket on its way
 * out). Where another CPU makes the same one meanwhile it refuses, too: then it is there, as that one made it.
 */
static __always_inline struct sk_state *state_make(struct sock *sk, struct sk_state *fresh)
{
	struct sk_state *st;

	if (!use_storage)
		return hash_make(sk, fresh);
	st = bpf_sk_storage_get(&sk_storage, sk, fresh, BPF_SK_STORAGE_GET_F_CREATE);
	return st ?: bpf_sk_storage_get(&sk_storage, sk, fresh, BPF_SK_STORAGE_GET_F_CREATE);
}

/* The same, made with nothing in it. */
static __always_inline struct sk_state *state_get(struct sock *sk)
{
	return use_storage ? state_make(sk, NULL) : hash_get(sk);
}

/* Socket storage goes with the socket. */
static __always_inline void state_forget(void *sk)
{
	__u64 key = (__u64)sk;

	if (!use_storage)
		bpf_map_delete_elem(&sk_hash, &key);
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
	if (!conn->socket)
		conn->socket = typed && use_cookie ? bpf_get_socket_cookie(sk) : own_id();
}

/* Rare, and so out of the way. */
static __noinline void read_owner(struct sk_state *st, __u64 exec_id)
{
	current_process(&st->c.conn.owner);
	st->c.conn.provenance = TT_SEEN;
	st->exec_id = exec_id;
}

/* The current process uses this socket: it is the owner. Its name is read again after an exec. */
static __always_inline void set_owner(struct sk_state *st, const struct caller *caller)
{
	const struct tt_conn *conn = &st->c.conn;

	if (conn->provenance == TT_SEEN && conn->owner.pid == caller->pid && st->exec_id == caller->exec_id &&
	    conn->owner.start_ns == caller->start_ns)
		return;
	read_owner(st, caller->exec_id);
}

/*
 * If the current process holds this socket's lock it is the owner. State changes and receive work also run in interrupts
 * that hit a process at random, or in the peer's process on loopback; there the lock is not "owned". Kernel threads do
 * own it (MPTCP workers), and do not count.
 */
static __always_inline void owner_if_locked(struct sk_state *st, struct sock *sk)
{
	struct caller caller;

	if (!sk->sk_lock.owned)
		return;
	get_caller(&caller);
	if (!caller.is_kernel)
		set_owner(st, &caller);
}

/*
 * The current process makes a call on this socket, so it becomes the owner; returns its pid. The kernel (0) owns only
 * what no process does.
 */
static __always_inline __u32 actor_is_current(struct sk_state *st)
{
	struct tt_conn *conn = &st->c.conn;
	struct caller caller;

	get_caller(&caller);
	if (!caller.is_kernel) {
		set_owner(st, &caller);
		return caller.pid;
	}
	if (conn->provenance == TT_UNKNOWN) {
		the_kernel(&conn->owner);
		conn->provenance = TT_SEEN;
	}
	return 0;
}

/*
 * The same where a call is under way, which holds the socket's lock. Without that it is the kernel that reads, in an
 * interrupt and for the owner (kTLS).
 */
static __always_inline __u32 actor_if_locked(struct sk_state *st, struct sock *sk)
{
	return sk->sk_lock.owned ? actor_is_current(st) : st->c.conn.owner.pid;
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

/* What is not filtered by is not looked at: the verifier removes it. */
static __always_inline bool is_wanted(const struct tt_conn *conn)
{
	if (filter_protocol && conn->protocol != filter_protocol)
		return false;
	if (filter_family && shown_family(conn) != filter_family)
		return false;
	if (filter_loopback &&
	    (is_loopback(conn->local_addr, conn->family) || is_loopback(conn->remote_addr, conn->family)))
		return false;
	if (filter_netns && conn->netns != filter_netns)
		return false;
	if (filter_cgroup && conn->owner.cgroup != filter_cgroup)
		return false;
	if (filter_port && conn->local_port != filter_port && conn->remote_port != filter_port)
		return false;
	return !filter_pid || conn->owner.pid == filter_pid;
}

/* Who was told of a connection is told of its end, though it may have changed hands or be that of another UDP peer. */
static __always_inline void note_told(struct sk_state *st, const struct tt_conn *conn)
{
	const bool all_alike =
		!filter_family && !filter_loopback && !filter_cgroup && !filter_port && !filter_pid;

	if (!all_alike && is_wanted(conn))
		st->told = 1;
}

#endif
