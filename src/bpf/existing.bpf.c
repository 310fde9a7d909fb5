// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is there already: iterators over the TCP and UDP sockets of a network namespace, and over the files of all
 * processes. Sockets and the processes that hold them find each other by the number of the inode.
 *
 * Only direct loads through typed pointers, which also work under lockdown=confidentiality.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "totals.h"

#define S_IFMT	 0170000 /* include/uapi/linux/stat.h */
#define S_IFSOCK 0140000

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool use_cookie = true; /* see maps.h */

/*
 * Zero for a socket that no file belongs to: not accepted yet, or closed while the kernel still delivers. The way through
 * socket, file and inode waits for memory three times, which with many sockets is a third of all time.
 */
static __always_inline __u64 inode_of(struct sock *sk)
{
	struct socket *socket;

	if (bpf_core_field_exists(sk->sk_ino))
		return sk->sk_ino;
	socket = sk->sk_socket;
	return socket ? socket->file->f_inode->i_ino : 0;
}

static __always_inline void put_existing(struct tt_existing *e, struct sock *sk, __u8 protocol)
{
	e->inode = inode_of(sk);
	e->state = sk->__sk_common.skc_state;
	e->conn.time = bpf_ktime_get_ns();
	e->conn.since = e->conn.time;
	e->conn.protocol = protocol;
	e->conn.family = sk->__sk_common.skc_family == AF_INET6 ? 6 : 4;
	e->conn.netns = sk->__sk_common.skc_net.net->ns.inum;
}

/* Comes with the lock that a walk takes on each socket (5.15). */
struct bpf_tcp_iter_state {
} __attribute__((preserve_access_index));

/*
 * Whether somebody may be in the middle of a change. Before 5.15 a walk locks no socket. On loopback that middle is
 * wide: a segment is counted as sent, then handed to the peer, who deals with it, and only then taken from what waits.
 */
static __always_inline bool is_in_use(struct sock *sk)
{
	if (bpf_core_type_exists(struct bpf_tcp_iter_state))
		return false;
	return sk->sk_lock.owned || sk->sk_lock.slock.rlock.raw_lock.val.counter;
}

/* Nothing if it may be torn: who is at it reports it all when done. */
static __always_inline void put_totals(struct tt_existing *e, struct sock *sk, struct tcp_sock *tp)
{
	__u64 out, in;

	if (is_in_use(sk))
		return;
	barrier();
	out = written(sk, tp);
	in = consumed(sk, tp);
	barrier();
	if (is_in_use(sk))
		return;
	e->flags = TT_HAS_TOTALS;
	e->bytes_out = out;
	e->bytes_in = in;
	e->packets_out = tp->segs_out;
	e->packets_in = tp->segs_in;
}

SEC("?iter/tcp")
int existing_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tt_existing e = {};
	struct tcp_sock *tp;
	struct sock *sk;

	/* Listeners and placeholders (TIME_WAIT, requests) are no connections. */
	if (!skc || skc->skc_state == TCP_LISTEN || skc->skc_state == TCP_CLOSE)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	sk = (struct sock *)tp;
	if (use_cookie)
		e.conn.socket = bpf_get_socket_cookie(skc);
	put_existing(&e, sk, IPPROTO_TCP);
	read_key(&e.conn, sk, tp);
	e.rtt_us = tp->srtt_us >> 3;
	put_totals(&e, sk, tp);
	bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}

SEC("?iter/udp")
int existing_udp(struct bpf_iter__udp *ctx)
{
	struct sock *sk = (struct sock *)ctx->udp_sk;
	struct tt_existing e = {};

	if (!sk)
		return 0;
	if (use_cookie)
		e.conn.socket = bpf_get_socket_cookie(sk);
	put_existing(&e, sk, IPPROTO_UDP);
	e.conn.local_port = sk->__sk_common.skc_num;
	put_local(&e.conn, sk, true);
	put_remote(&e.conn, sk);
	bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}

SEC("?iter/task_file")
int existing_holder(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct file *file = ctx->file;
	struct tt_holder h = {};

	if (!task || !file || (file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	leader = task->group_leader;
	h.inode = file->f_inode->i_ino;
	h.process.pid = task->tgid;
	h.process.uid = task->cred->uid.val;
	h.process.start_ns = leader->start_boottime;
	h.process.cgroup = task->cgroups->dfl_cgrp->kn->id;
	/* Byte by byte: the verifier allows no wider load from a char array. */
#pragma unroll
	for (int i = 0; i < 16; i++)
		h.process.comm[i] = ((volatile char *)leader->comm)[i];
	bpf_seq_write(ctx->meta->seq, &h, sizeof(h));
	return 0;
}
