/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fields of kernel structures, and how they get into records. No maps: for every object. */
#ifndef TCPTOP_FIELDS_H
#define TCPTOP_FIELDS_H

#include "wire.h"

#define AF_UNSPEC   0
#define AF_INET	    2
#define AF_INET6    10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define SOCK_STREAM 1
#define SOCK_DGRAM  2

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

/*
 * A field of a kernel structure: a direct load where the verifier knows the pointer's type, which also works
 * under lockdown=confidentiality; a probe read where it does not (kprobe arguments). `typed` is a constant.
 */
#define FIELD(typed, ptr, field) ((typed) ? (ptr)->field : BPF_CORE_READ(ptr, field))

/*
 * An address as one of a kernel structure, to load its fields directly. Says nothing about what is there: a load from a
 * wrong address reads zero. Unlike a helper it costs nothing, it is a move of the pointer.
 */
extern void *bpf_rdonly_cast(const void *address, __u32 btf_id) __ksym __weak;

#define CAST(type, address) ((type *)bpf_rdonly_cast(address, bpf_core_type_id_kernel(type)))

/*
 * A field of a TCP socket (see tcp_of()). Before 5.9 nothing gives a socket that type for the verifier, and what is behind
 * the part that all sockets have can only be read by helper.
 */
#define HAS_TCP_TYPE   bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_skc_to_tcp_sock)
#define TCP(tp, field) (HAS_TCP_TYPE ? (tp)->field : BPF_CORE_READ(tp, field))

static __always_inline bool is_v4_mapped(const __u32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff);
}

/* Memory that is also seen as something else. */
typedef __u64 __attribute__((may_alias)) word;

/*
 * Two numbers that follow each other in memory, as one word. A processor waits when it reads a word soon after its parts were
 * written one by one.
 */
static __always_inline word pair(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u64)second << 32 | first;
#else
	return (__u64)first << 32 | second;
#endif
}

/* Keeps IPv4-mapped addresses as they are: the library folds them. */
static __always_inline void put_v6(__u8 *to, const __u32 *from)
{
	__builtin_memcpy(to, from, 16);
}

static __always_inline void put_v4(__u8 *to, __u32 addr)
{
	__builtin_memset(to, 0, 16);
	__builtin_memcpy(to, &addr, 4);
}

/* Up to Linux 6.0. Since then a cgroup has pointers to those above it, which a helper follows. */
struct cgroup___with_ids {
	int level;
	__u64 ancestor_ids[];
} __attribute__((preserve_access_index));

/*
 * The id of the cgroup at this level above the current task, or of its own: level 0 is the root. 0 where there is none so
 * deep.
 */
static __always_inline __u64 cgroup_at_level(struct task_struct *task, __u32 level)
{
	struct cgroup___with_ids *cgroup;
	__u64 id = 0;

	if (!bpf_core_field_exists(struct cgroup___with_ids, ancestor_ids))
		return bpf_get_current_ancestor_cgroup_id(level);
	cgroup = (void *)BPF_CORE_READ(task, cgroups, dfl_cgrp);
	if (level <= (__u32)BPF_CORE_READ(cgroup, level))
		bpf_probe_read_kernel(&id, sizeof(id),
				      (void *)cgroup +
					      bpf_core_field_offset(struct cgroup___with_ids, ancestor_ids) +
					      level * sizeof(id));
	return id;
}

/* The four words of an IPv6 address in a socket: loads from arrays of a typed pointer must have a constant
 * index. */
#define READ_IN6(typed, to, sk, field)                                                                       \
	do {                                                                                                 \
		(to)[0] = FIELD(typed, sk, field.in6_u.u6_addr32[0]);                                        \
		(to)[1] = FIELD(typed, sk, field.in6_u.u6_addr32[1]);                                        \
		(to)[2] = FIELD(typed, sk, field.in6_u.u6_addr32[2]);                                        \
		(to)[3] = FIELD(typed, sk, field.in6_u.u6_addr32[3]);                                        \
	} while (0)

static __always_inline void put_local(struct tt_conn *conn, struct sock *sk, const bool typed)
{
	__u32 a[4];

	if (conn->family == 6) {
		READ_IN6(typed, a, sk, __sk_common.skc_v6_rcv_saddr);
		put_v6(conn->local_addr, a);
	} else {
		put_v4(conn->local_addr, FIELD(typed, sk, __sk_common.skc_rcv_saddr));
	}
}

static __always_inline void put_remote(struct tt_conn *conn, struct sock *sk)
{
	__u32 a[4];

	conn->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	if (conn->family == 6) {
		READ_IN6(true, a, sk, __sk_common.skc_v6_daddr);
		put_v6(conn->remote_addr, a);
	} else {
		put_v4(conn->remote_addr, sk->__sk_common.skc_daddr);
	}
}

#endif
