/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backend A: trampolines. At the exit of a function the return value tells what really moved. Unlike a kretprobe it misses
 * an exit only if another tracer attached to that function, or left it, while the call slept (bpf_tramp_image_put()).
 */
#ifndef TCPTOP_FENTRY_H
#define TCPTOP_FENTRY_H

#include "tcp.h"
#include "udp.h"

#define ETH_P_IPV6	 0x86dd /* include/uapi/linux/if_ether.h */
#define SIN6_LEN_RFC2133 24	/* net/ipv6/udp.c: the least length of an IPv6 address */
#define MSG_PEEK	 0x2
#define MSG_PROBE	 0x10
#define MSG_ERRQUEUE	 0x2000
#define UDP_SEGMENT	 103 /* include/uapi/linux/udp.h */
#define CONTROL_MESSAGES 3   /* so many are looked at */

/* include/uapi/linux/in.h, in6.h */
struct sockaddr_in {
	__u16 sin_family;
	__be16 sin_port;
	__u32 sin_addr;
	__u8 sin_zero[8]; /* counts: a shorter address is none */
};

struct sockaddr_in6 {
	__u16 sin6_family;
	__be16 sin6_port;
	__u32 sin6_flowinfo;
	__u32 sin6_addr[4];
};

/*
 * What tcp_sendmsg() does once it holds the socket's lock. kTLS and other users in the kernel come here directly.
 */
SEC("?fexit/tcp_sendmsg_locked")
int BPF_PROG(fexit_tcp_sendmsg, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	if (ret > 0 && !turn_is_taken(HOOK_TCP_OUT, false))
		tcp_call_out(sk, ret, true);
	return 0;
}

/* The understudy. */
SEC("?fexit/tcp_sendmsg_locked")
int BPF_PROG(fexit_tcp_sendmsg_2, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	if (ret > 0 && !turn_is_taken(HOOK_TCP_OUT, true))
		tcp_call_out(sk, ret, true);
	return 0;
}

/* The same for sendfile, splice and kTLS before 6.5, where the function is there. */
SEC("?fexit/do_tcp_sendpages")
int BPF_PROG(fexit_tcp_sendpages, struct sock *sk, void *page, int offset, __u64 size, int flags, int ret)
{
	if (ret > 0)
		tcp_call_out(sk, ret, true);
	return 0;
}

/*
 * The number of arguments has changed twice, also in stable kernels, and with it the place of the return
 * value. Only one of the loads survives loading; volatile keeps the compiler from making one load with a
 * computed offset of them, which the verifier refuses.
 */
static __always_inline int recvmsg_returns(__u64 *ctx, const bool understudy)
{
	struct sock *sk = (struct sock *)ctx[0];
	int ret = 0, flags = 0;

	if (recvmsg_args == 4)
		ret = *(volatile __u64 *)&ctx[4];
	if (recvmsg_args == 5)
		ret = *(volatile __u64 *)&ctx[5];
	if (recvmsg_args == 6) {
		flags = *(volatile __u64 *)&ctx[4];
		ret = *(volatile __u64 *)&ctx[6];
	} else {
		flags = *(volatile __u64 *)&ctx[3];
	}
	if (ret > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)) && !turn_is_taken(HOOK_TCP_IN, understudy))
		tcp_call_in(sk, ret);
	return 0;
}

SEC("?fexit/tcp_recvmsg")
int fexit_tcp_recvmsg(__u64 *ctx)
{
	return recvmsg_returns(ctx, false);
}

SEC("?fexit/tcp_recvmsg")
int fexit_tcp_recvmsg_2(__u64 *ctx)
{
	return recvmsg_returns(ctx, true);
}

/* The socket that accept() returns belongs to the process that called it, not to the one that called
 * listen(). */
static __always_inline void accepted(struct sock *sk)
{
	struct tcp_sock *tp;
	struct sk_state *st;
	__u64 identity = current_identity();

	if (!sk || identity == THE_KERNEL)
		return;
	tp = tcp_of(sk);
	if (!tp)
		return;
	/* It may come out of the queue before the last step of its handshake, which gives it its identity, is done. */
	st = sk->__sk_common.skc_state == TCP_SYN_RECV ? state_peek(sk) : tcp_state(sk, tp, TT_TCP_STATE);
	if (st)
		set_owner(st, identity, TT_SEEN);
}

/* Before 6.10. */
SEC("?fexit/inet_csk_accept")
int BPF_PROG(fexit_accept_4, struct sock *sk, int flags, int *err, bool kern, struct sock *child)
{
	accepted(child);
	return 0;
}

/* Since 6.10. */
SEC("?fexit/inet_csk_accept")
int BPF_PROG(fexit_accept_2, struct sock *sk, void *arg, struct sock *child)
{
	accepted(child);
	return 0;
}

/*
 * The address a send names, as the kernel copied it. Left unknown where it names none, or one that is too short: behind that is
 * what the kernel's stack held before.
 */
static __always_inline void peer_of_msg(struct peer *peer, const void *name, int len)
{
	/* Volatile, for loads from arrays must not be merged. */
	const volatile struct sockaddr_in6 *sa;
	struct sockaddr_in6 copy = {};
	__u32 a[4];

	if (len < (int)sizeof(struct sockaddr_in))
		return;
	if (use_cast) {
		sa = CAST(struct sockaddr_in6, name);
	} else {
		bpf_probe_read_kernel(&copy, sizeof(struct sockaddr_in), name);
		if (copy.sin6_family == AF_INET6)
			bpf_probe_read_kernel(&copy, sizeof(copy), name);
		sa = &copy;
	}
	if (sa->sin6_family == AF_INET || sa->sin6_family == AF_UNSPEC) {
		/* sin_addr stands where this is. */
		peer_v4(peer, sa->sin6_flowinfo, sa->sin6_port);
	} else if (sa->sin6_family == AF_INET6 && len >= SIN6_LEN_RFC2133) {
		a[0] = sa->sin6_addr[0];
		a[1] = sa->sin6_addr[1];
		a[2] = sa->sin6_addr[2];
		a[3] = sa->sin6_addr[3];
		peer_v6(peer, a, sa->sin6_port);
	}
}

/*
 * The length of the datagrams that a send wants made of its bytes (GSO), where a control message of its own says so. There are
 * rarely more than two of these.
 */
static __always_inline __u16 segment_of_msg(struct msghdr *msg)
{
	__u64 left = msg->msg_controllen;
	void *at = msg->msg_control;
	struct cmsghdr h = {};
	__u16 segment = 0;

	for (int i = 0; i < CONTROL_MESSAGES; i++) {
		if (left < sizeof(h))
			return 0;
		if (use_cast) {
			h.cmsg_len = CAST(struct cmsghdr, at)->cmsg_len;
			h.cmsg_level = CAST(struct cmsghdr, at)->cmsg_level;
			h.cmsg_type = CAST(struct cmsghdr, at)->cmsg_type;
			/* A header of UDP begins with as long a number. */
			segment = CAST(struct udphdr, at + sizeof(h))->source;
		} else {
			bpf_probe_read_kernel(&h, sizeof(h), at);
			bpf_probe_read_kernel(&segment, sizeof(segment), at + sizeof(h));
		}
		if (h.cmsg_level == IPPROTO_UDP && h.cmsg_type == UDP_SEGMENT)
			return segment;
		h.cmsg_len = (h.cmsg_len + 7) & ~7UL;
		if (h.cmsg_len < sizeof(h) || h.cmsg_len > left)
			return 0;
		at += h.cmsg_len;
		left -= h.cmsg_len;
	}
	return 0;
}

/* A program that only asks whether the peer is there (MSG_PROBE) sends nothing. */
static __always_inline void udp_send(struct sock *sk, struct msghdr *msg, int ret)
{
	void *name = msg->msg_name;
	struct peer peer = {};
	__u32 segment;

	if (msg->msg_flags & MSG_PROBE)
		return;
	segment = segment_of_msg(msg) ?: UDP(sk, gso_size);
	if (name)
		peer_of_msg(&peer, name, msg->msg_namelen);
	else
		peer_of_send(&peer, sk);
	/* An address that is none fails. */
	if (!name || peer.family)
		udp_sent(sk, udp_peek(sk, true), ret, segment, &peer);
}

/* Also called by udpv6_sendmsg() for IPv4 destinations, then with an IPv4 address. */
static __always_inline int udp_send_ends(struct sock *sk, struct msghdr *msg, int ret, const bool understudy)
{
	if (ret < 0)
		udp_not_sent(sk, udp_peek(sk, true));
	else if (!turn_is_taken(HOOK_UDP_OUT, understudy))
		udp_send(sk, msg, ret);
	return 0;
}

SEC("?fexit/udp_sendmsg")
int BPF_PROG(fexit_udp_sendmsg, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	return udp_send_ends(sk, msg, ret, false);
}

SEC("?fexit/udp_sendmsg")
int BPF_PROG(fexit_udp_sendmsg_2, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	return udp_send_ends(sk, msg, ret, true);
}

/* A send that names nobody and has no peer adds to a datagram that waits. */
static __always_inline bool is_for_v4(const struct peer *peer, struct sock *sk)
{
	struct sk_state *st;

	if (peer->family)
		return peer->family == 4;
	st = udp_peek(sk, true);
	return st && st->sent_to.family == 4;
}

/*
 * Has udpv6_sendmsg() passed this send on to udp_sendmsg()? It did so for an IPv4 address, mapped or not, whether
 * the send named it, the socket is connected to it, or a datagram for it waits. Kernels that do not put the header back
 * as it was leave in it the shorter address that was made for that call, which is gone by now: then only its length is
 * looked at.
 */
static __always_inline bool went_to_v4(struct sock *sk, const void *name, int namelen)
{
	struct peer peer = {};

	if (!name)
		peer_of_connected(&peer, sk, true);
	else if (namelen < SIN6_LEN_RFC2133)
		return true;
	else
		peer_of_msg(&peer, name, namelen);
	put_route(&peer, sk, true);
	return is_for_v4(&peer, sk);
}

static __always_inline int udpv6_send(struct sock *sk, struct msghdr *msg, int ret, const bool understudy)
{
	if (ret < 0)
		udp_not_sent(sk, udp_peek(sk, true));
	else if (!went_to_v4(sk, msg->msg_name, msg->msg_namelen) &&
		 !turn_is_taken(HOOK_UDP_OUT_V6, understudy))
		udp_send(sk, msg, ret);
	return 0;
}

SEC("?fexit/udpv6_sendmsg")
int BPF_PROG(fexit_udpv6_sendmsg, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	return udpv6_send(sk, msg, ret, false);
}

SEC("?fexit/udpv6_sendmsg")
int BPF_PROG(fexit_udpv6_sendmsg_2, struct sock *sk, struct msghdr *msg, __u64 size, int ret)
{
	return udpv6_send(sk, msg, ret, true);
}

SEC("?fexit/ip_append_page")
int BPF_PROG(fexit_ip_append_page, struct sock *sk, void *flow, void *page, int offset, __u64 size, int flags,
	     int ret)
{
	if (!ret)
		udp_page(sk, size);
	return 0;
}

/* Where these pages are sent at once; kernels may have made one function of that and what is hooked below. */
SEC("?fexit/udp_sendpage")
int BPF_PROG(fexit_udp_sendpage, struct sock *sk, void *page, int offset, __u64 size, int flags, int ret)
{
	struct sk_state *st = udp_peek(sk, true);

	if (ret < 0)
		udp_not_sent(sk, st);
	else if (st && !is_corked(sk))
		count_waiting(sk, st);
	return 0;
}

/*
 * What waits is sent, for setsockopt() (UDP_CORK). In a send there is more by now than has waited, and its end tells whether
 * that was sent.
 */
static __always_inline int uncorked(struct sock *sk)
{
	struct sk_state *st = udp_peek(sk, true);

	if (st && st->waiting && st->waiting == corked_bytes(sk)) {
		follow_connect(sk, st);
		count_waiting(sk, st);
	}
	return 0;
}

SEC("?fentry/udp_push_pending_frames")
int BPF_PROG(fentry_udp_push, struct sock *sk)
{
	return uncorked(sk);
}

SEC("?fentry/udp_v6_push_pending_frames")
int BPF_PROG(fentry_udp_v6_push, struct sock *sk)
{
	return uncorked(sk);
}

/* The peer of a datagram, out of its headers: where it was sent, or else from where it came. */
static __always_inline void peer_of_skb_direct(struct peer *peer, struct sk_buff *skb, const bool v6,
					       const bool sent)
{
	struct sk_buff *typed = CAST(struct sk_buff, skb);
	unsigned char *head = typed->head;
	struct udphdr *udp = CAST(struct udphdr, head + typed->transport_header);
	void *ip = head + typed->network_header;
	__be16 port = sent ? udp->dest : udp->source;
	__u32 a[4];

	if (!v6) {
		peer_v4(peer, sent ? CAST(struct iphdr, ip)->daddr : CAST(struct iphdr, ip)->saddr, port);
		return;
	}
	if (sent)
		READ_IN6(true, a, CAST(struct ipv6hdr, ip), daddr);
	else
		READ_IN6(true, a, CAST(struct ipv6hdr, ip), saddr);
	peer_v6(peer, a, port);
}

static __always_inline void peer_of_skb_read(struct peer *peer, struct sk_buff *skb, const bool v6,
					     const bool sent)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *udp = head + BPF_CORE_READ(skb, transport_header);
	unsigned char *ip = head + BPF_CORE_READ(skb, network_header);
	__be16 port = 0;
	__u32 addr[4];

	bpf_probe_read_kernel(&port, sizeof(port), udp + (sent ? 2 : 0));
	if (v6) {
		bpf_probe_read_kernel(addr, 16, ip + (sent ? 24 : 8));
		peer_v6(peer, addr, port);
	} else {
		bpf_probe_read_kernel(addr, 4, ip + (sent ? 16 : 12));
		peer_v4(peer, addr[0], port);
	}
}

static __always_inline void peer_of_skb(struct peer *peer, struct sk_buff *skb, const bool v6,
					const bool sent)
{
	if (use_cast)
		peer_of_skb_direct(peer, skb, v6, sent);
	else
		peer_of_skb_read(peer, skb, v6, sent);
}

/* So many datagrams are in there: several with GSO, and with GRO for a receiver that takes them together. */
static __always_inline __u32 datagrams_in(struct sk_buff *skb)
{
	struct skb_shared_info *shared;
	void *head;

	if (use_cast) {
		head = CAST(struct sk_buff, skb)->head;
		shared = CAST(struct skb_shared_info, head + CAST(struct sk_buff, skb)->end);
		return shared->gso_size ? shared->gso_segs ?: 1 : 1;
	}
	head = BPF_CORE_READ(skb, head);
	shared = head + BPF_CORE_READ(skb, end);
	return BPF_CORE_READ(shared, gso_size) ? BPF_CORE_READ(shared, gso_segs) ?: 1 : 1;
}

/* Its length is negated, which an empty one does not show: what is only looked at stays in its queue. */
static __always_inline bool is_peek(struct sk_buff *skb, int len, const bool typed)
{
	return len < 0 || (!len && FIELD(typed, skb, next));
}

static __always_inline void udp_received(struct sock *sk, struct sk_buff *skb, int len, const bool typed)
{
	struct peer peer = {};

	peer_of_skb(&peer, skb, FIELD(typed, skb, protocol) == bpf_htons(ETH_P_IPV6), false);
	forget_peer(&peer);
	udp_bytes(sk, udp_peek(sk, typed), TT_IN, len, datagrams_in(skb), &peer, typed);
}

/*
 * skb_consume_udp(): where udp_recvmsg() and udpv6_recvmsg() let go of a datagram, in the reader, with the
 * number of bytes it got; negative for a peek. The same on all kernels, while the arguments of the recvmsg
 * functions changed twice, and it still has the headers, so the peer is known also where the reader did not
 * ask for it.
 */
static __always_inline int udp_receive(struct sock *sk, struct sk_buff *skb, int len, const bool understudy)
{
	if (!is_peek(skb, len, true) && !turn_is_taken(HOOK_UDP_IN, understudy))
		udp_received(sk, skb, len, true);
	return 0;
}

SEC("?fentry/skb_consume_udp")
int BPF_PROG(fentry_skb_consume_udp, struct sock *sk, struct sk_buff *skb, int len)
{
	return udp_receive(sk, skb, len, false);
}

SEC("?fentry/skb_consume_udp")
int BPF_PROG(fentry_skb_consume_udp_2, struct sock *sk, struct sk_buff *skb, int len)
{
	return udp_receive(sk, skb, len, true);
}

/*
 * Where two programs do this the first one leaves behind a state that has ended, so that the other has nothing to tell, and
 * the other one deletes it. If that is skipped, what is left is found out when the kernel uses the address again.
 */
static __always_inline int udp_socket_ends(struct sock *sk)
{
	struct sk_state *st = state_peek(sk);
	__u64 socket = sk->__sk_common.skc_cookie.counter;

	if (st && st->end && (!use_cookie || st->c.conn.socket == socket)) {
		state_forget(sk);
		return 0;
	}
	st = udp_peek(sk, true);
	if (st) {
		if (!is_corked(sk))
			count_waiting(sk, st);
		udp_end(st, sk->__sk_common.skc_family);
	} else if (udp_end_of_silent(sk, true) && calls_run_twice) {
		st = state_get(sk);
		if (st) {
			st->c.conn.socket = socket;
			st->end = TT_ORDERLY;
		}
	}
	if (!calls_run_twice)
		state_forget(sk);
	return 0;
}

SEC("?fentry/udp_destroy_sock")
int BPF_PROG(fentry_udp_destroy_sock, struct sock *sk)
{
	return udp_socket_ends(sk);
}

SEC("?fentry/udp_destroy_sock")
int BPF_PROG(fentry_udp_destroy_sock_2, struct sock *sk)
{
	return udp_socket_ends(sk);
}

SEC("?fentry/udpv6_destroy_sock")
int BPF_PROG(fentry_udpv6_destroy_sock, struct sock *sk)
{
	return udp_socket_ends(sk);
}

SEC("?fentry/udpv6_destroy_sock")
int BPF_PROG(fentry_udpv6_destroy_sock_2, struct sock *sk)
{
	return udp_socket_ends(sk);
}

#endif
