// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that count calls per socket and do nothing else, at the same hooks: what no tracer can leave out that keeps an
 * account of each socket. With WRITING, also a record of each call: what none can leave out that tells of each. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* As much as a tracer keeps: making and freeing it is part of the cost. */
struct account {
	__u64 calls;
	__u8 rest[440];
};

/* include/uapi/linux/bpf.h */
#define BPF_MAP_TYPE_SK_STORAGE	    24
#define BPF_F_CLONE		    (1U << 9)
#define BPF_SK_STORAGE_GET_F_CREATE (1ULL << 0)

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct account);
} accounts SEC(".maps");

/* For programs whose pointers the verifier does not know. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct account);
} by_address SEC(".maps");

static const struct account fresh;

#ifdef WRITING
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records SEC(".maps");

struct record {
	__u8 bytes[192];
};

static __always_inline void tell(const struct account *a)
{
	struct record *r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);

	if (!r)
		return;
	__builtin_memcpy(r, a, sizeof(*r));
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
}
#else
static __always_inline void tell(const struct account *a)
{
}
#endif

#define COUNTING_AND(then, name, section)                                                                    \
	SEC("?" section)                                                                                     \
	int BPF_PROG(name, struct sock *sk)                                                                  \
	{                                                                                                    \
		struct account *a;                                                                           \
                                                                                                             \
		a = bpf_sk_storage_get(&accounts, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);                       \
		if (a) {                                                                                     \
			a->calls++;                                                                          \
			then(a);                                                                             \
		}                                                                                            \
		return 0;                                                                                    \
	}

#define NO_MORE(a)
#define COUNTING(name, section) COUNTING_AND(NO_MORE, name, section)
#define TELLING(name, section)	COUNTING_AND(tell, name, section)

#define COUNTING_BY_ADDRESS(name, section)                                                                   \
	SEC("?" section)                                                                                     \
	int BPF_KPROBE(name, struct sock *sk)                                                                \
	{                                                                                                    \
		__u64 key = (__u64)sk;                                                                       \
		struct account *a = bpf_map_lookup_elem(&by_address, &key);                                  \
                                                                                                             \
		if (!a) {                                                                                    \
			bpf_map_update_elem(&by_address, &key, &fresh, BPF_NOEXIST);                         \
			return 0;                                                                            \
		}                                                                                            \
		a->calls++;                                                                                  \
		tell(a);                                                                                     \
		return 0;                                                                                    \
	}

TELLING(base_state, "tp_btf/inet_sock_set_state")
COUNTING(base_state_2, "tp_btf/inet_sock_set_state")
COUNTING(base_chunk, "tp_btf/tcp_rcv_space_adjust")
TELLING(base_end, "tp_btf/tcp_destroy_sock")
COUNTING(base_end_2, "tp_btf/tcp_destroy_sock")

TELLING(tracepoint_send, "tp_btf/sock_send_length")
TELLING(tracepoint_receive, "tp_btf/sock_recv_length")

TELLING(fentry_tcp_send, "fexit/tcp_sendmsg")
TELLING(fentry_tcp_receive, "fexit/tcp_recvmsg")
TELLING(fentry_udp_send, "fexit/udp_sendmsg")
TELLING(fentry_udp_receive, "fentry/skb_consume_udp")

COUNTING_BY_ADDRESS(kprobe_tcp_send, "kprobe/tcp_sendmsg")
COUNTING_BY_ADDRESS(kprobe_tcp_receive, "kprobe/tcp_recvmsg")
COUNTING(kprobe_segment, "tp_btf/tcp_probe")
COUNTING_BY_ADDRESS(kprobe_udp_send, "kprobe/udp_sendmsg")
COUNTING_BY_ADDRESS(kprobe_udp_receive, "kprobe/skb_consume_udp")
