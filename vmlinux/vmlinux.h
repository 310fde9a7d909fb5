/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Kernel types, trimmed by hand to what src/bpf reads. Offsets come from the running kernel's BTF when the programs
 * are loaded (CO-RE), so order and size of what is listed here do not matter, names and nesting do. Members of
 * anonymous structs and unions are listed flat: CO-RE looks for them by name.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u8 u8;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

enum {
	false = 0,
	true = 1,
};

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_STACK = 23,
	BPF_MAP_TYPE_RINGBUF = 27,
};

/* The helpers; whether the kernel has one that not all do is asked with CO-RE. */
enum bpf_func_id {
	BPF_FUNC_skc_to_tcp_sock = 137,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,
};

enum {
	BPF_RB_NO_WAKEUP = 1 << 0,
	BPF_RB_FORCE_WAKEUP = 1 << 1,
};

/* Contexts of cgroup programs: the verifier rewrites these accesses, so they must not be relocated. */
struct bpf_sock;

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	struct bpf_sock *sk;
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
};

/* Registers at a kprobe; only the arguments are read. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs;
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#else
#error "tcptop knows the registers of x86_64 and arm64 only"
#endif

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	s64 counter;
} atomic64_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

typedef struct {
	int owned;
} socket_lock_t;

struct inode {
	__u16 i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct sk_buff_head {
	u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct sk_buff_head sk_receive_queue;
	u16 sk_type;
	u16 sk_protocol;
	u8 sk_shutdown;
	void *sk_user_data;
	int sk_err;
};

struct inet_cork {
	unsigned int length;
	u16 gso_size;
};

union flowi_uli {
	struct {
		__be16 dport;
		__be16 sport;
	} ports;
};

struct flowi4 {
	__be32 daddr;
	union flowi_uli uli;
};

struct flowi {
	union {
		struct flowi4 ip4;
	} u;
};

struct inet_cork_full {
	struct inet_cork base;
	struct flowi fl;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
	struct inet_cork_full cork;
};

struct tcp_ulp_ops;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_ulp_ops *icsk_ulp_ops;
};

struct minmax_sample {
	u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 segs_in;
	u32 segs_out;
	u32 copied_seq;
	u32 rcv_nxt;
	u32 snd_nxt;
	u32 snd_una;
	u32 write_seq;
	u32 srtt_us;
	u64 bytes_received;
	u64 bytes_acked;
	u64 bytes_sent;
	u64 bytes_retrans;
	u32 total_retrans;
	struct minmax rtt_min;
	bool is_mptcp;
};

struct sockaddr;

struct bpf_sock_addr_kern {
	struct sockaddr *uaddr;
};

struct udp_sock {
	struct inet_sock inet;
	int pending;
	u16 len;
	u16 gso_size;
	struct sk_buff_head reader_queue;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct kernfs_node {
	u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	unsigned int flags;
	int tgid;
	struct task_struct *group_leader;
	u64 start_boottime;
	u64 self_exec_id;
	char comm[16];
	const struct cred *cred;
	struct css_set *cgroups;
};

/* Contexts of iterators. */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct file *file;
};

struct sk_buff {
	struct sk_buff *next;
	struct sock *sk;
	unsigned char *head;
	unsigned char *data;
	unsigned int end;
	unsigned int len;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	char cb[48];
};

struct tcp_skb_cb {
	__u16 tcp_gso_segs;
};

struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
};

struct udphdr {
	__be16 source;
	__be16 dest;
};

struct iphdr {
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	struct in6_addr saddr;
	struct in6_addr daddr;
};

struct msghdr {
	void *msg_name;
	int msg_namelen;
	void *msg_control;
	unsigned long msg_controllen;
	unsigned int msg_flags;
};

struct cmsghdr {
	unsigned long cmsg_len;
	int cmsg_level;
	int cmsg_type;
};

#pragma clang attribute pop

#endif
