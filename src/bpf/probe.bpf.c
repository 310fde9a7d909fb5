// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What can programs do on this kernel? Each of these uses one feature; whether it loads (and attaches) is the
 * answer.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "fields.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

__u64 sink;

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(probe_typed_tracepoint, struct sock *sk)
{
	sink = sk->__sk_common.skc_state;
	return 0;
}

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(probe_cookie, struct sock *sk)
{
	sink = bpf_get_socket_cookie(sk);
	return 0;
}

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(probe_cast, struct sock *sk)
{
	sink = CAST(struct tcp_sock, sk)->srtt_us;
	return 0;
}

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(probe_task, struct sock *sk)
{
	sink = bpf_get_current_task_btf()->tgid;
	return 0;
}

SEC("?tp_btf/inet_sock_set_state")
int BPF_PROG(probe_ring, struct sock *sk)
{
	bpf_ringbuf_output(&ring, &sink, sizeof(sink), 0);
	return 0;
}

SEC("?fexit/tcp_sendmsg")
int BPF_PROG(probe_fexit, struct sock *sk)
{
	return 0;
}

SEC("?kprobe/tcp_sendmsg")
int probe_kprobe(void *ctx)
{
	return 0;
}
