// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Fills a collector's ring buffer as fast as a processor can: no traffic is that fast. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "wire.h"

#define AT_ONCE	    8192
#define CONNECTIONS 1000
#define IPPROTO_TCP 6 /* include/uapi/linux/in.h */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The collector's. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__u64 wanted;
	__u64 written;
} progress;

struct tt_transfer sample = {
	.kind = TT_TCP_SEND,
	.rtt_us = 100,
	.conn = {
		.time = 1,
		.since = 1,
		.local_addr = { 10, 0, 0, 1 },
		.remote_addr = { 10, 0, 0, 2 },
		.local_port = 80,
		.family = 4,
		.protocol = IPPROTO_TCP,
		.provenance = TT_SEEN,
	},
	.owner = { .start_ns = 1, .pid = 1, .comm = "flood" },
	.actor = { .start_ns = 1, .pid = 1, .comm = "flood" },
	.bytes = 1000,
	.calls = 1,
};

static __always_inline struct tt_transfer *put(void)
{
	struct tt_transfer *t = bpf_ringbuf_reserve(&events, sizeof(*t), 0);

	if (t)
		*t = sample;
	return t;
}

static long one(__u32 index, void *context)
{
	__u64 n = progress.written;
	struct tt_transfer *t;

	if (n >= progress.wanted)
		return 1;
	t = put();
	if (!t)
		return 1;
	t->conn.time = n;
	t->conn.socket = n % CONNECTIONS + 1;
	t->conn.remote_port = n % CONNECTIONS + 1;
	t->total_bytes = n * 1000;
	t->total_packets = n;
	bpf_ringbuf_submit(t, n ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
	progress.written = n + 1;
	return 0;
}

SEC("syscall")
int flood(void *context)
{
	bpf_loop(AT_ONCE, one, NULL, 0);
	return 0;
}

static long one_of_many(__u32 index, void *context)
{
	struct tt_transfer *t = put();

	if (t)
		bpf_ringbuf_submit(t, BPF_RB_NO_WAKEUP);
	return !t;
}

/* On several CPUs at once, into a ring that nobody reads. */
SEC("syscall")
int crowd(void *context)
{
	bpf_loop(AT_ONCE, one_of_many, NULL, 0);
	return 0;
}
