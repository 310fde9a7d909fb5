// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that do nothing, where a backend has its own: what the kernel takes for the way to a program and back. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NOTHING(name, section)                                                                               \
	SEC("?" section)                                                                                     \
	int name(void *context)                                                                              \
	{                                                                                                    \
		return 0;                                                                                    \
	}

NOTHING(base_state, "tp_btf/inet_sock_set_state")
NOTHING(base_state_2, "tp_btf/inet_sock_set_state")
NOTHING(base_chunk, "tp_btf/tcp_rcv_space_adjust")
NOTHING(base_end, "tp_btf/tcp_destroy_sock")
NOTHING(base_end_2, "tp_btf/tcp_destroy_sock")

NOTHING(tracepoint_send, "tp_btf/sock_send_length")
NOTHING(tracepoint_receive, "tp_btf/sock_recv_length")

NOTHING(fentry_tcp_send, "fexit/tcp_sendmsg")
NOTHING(fentry_tcp_receive, "fexit/tcp_recvmsg")
NOTHING(fentry_udp_send, "fexit/udp_sendmsg")
NOTHING(fentry_udp_receive, "fentry/skb_consume_udp")

NOTHING(kprobe_tcp_send, "kprobe/tcp_sendmsg")
NOTHING(kprobe_tcp_receive, "kprobe/tcp_recvmsg")
NOTHING(kprobe_segment, "tp_btf/tcp_probe")
NOTHING(kprobe_udp_send, "kprobe/udp_sendmsg")
NOTHING(kprobe_udp_receive, "kprobe/skb_consume_udp")
