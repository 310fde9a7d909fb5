/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What goes between the kernel and the library: the only description of these records and numbers. The skeleton generator
 * turns it into the Rust types that src/decode.rs reads, by way of wire.bpf.c. Widest fields first, padding named, ports in
 * host order, addresses in network order with IPv4 in the first four bytes.
 */
#ifndef TCPTOP_WIRE_H
#define TCPTOP_WIRE_H

/* The first field of every record. The values number the rows of struct tt_counters. */
enum tt_kind {
	TT_TCP_SEND,
	TT_TCP_RECV,
	TT_UDP_SEND,
	TT_UDP_RECV,
	TT_TCP_STATE,
	TT_CLOSED,
	TT_RETRANSMIT,
	TT_KINDS,
};

/* How the owner is known. Two bits: see `owner` in struct sk_state. */
enum tt_provenance {
	TT_UNKNOWN,
	TT_INHERITED, /* from the listening socket */
	TT_SEEN,      /* in a call on this socket */
	TT_CLOSER,    /* it closed the socket, and nobody was seen to use it */
	TT_PROVENANCES,
};

/* Why more may have moved than totals say. */
enum tt_uncounted {
	TT_MPTCP = 1, /* calls are made on another socket: totals are those of the latest change of state */
	TT_REDIRECTED = 2, /* a sockmap hands bytes to other sockets, past TCP */
	TT_LOST = 4,	   /* UDP: of its datagrams some found no room anywhere */
};

/* Directions index the two accounts of a connection. */
enum tt_direction {
	TT_OUT,
	TT_IN,
};

/* How a TCP connection ended. */
enum tt_end {
	TT_OPEN,
	TT_ORDERLY,
	TT_RESET,
	TT_TIMED_OUT,
	TT_ABORTED,
	TT_ENDS,
};

/* Flags of struct tt_state. */
enum tt_flags {
	TT_HAS_TOTALS = 1,
	TT_ACTIVE = 2,	   /* this end connected */
	TT_UNBALANCED = 4, /* the totals are not what was reported: at the end (TT_CLOSED) an error of ours */
};

/* What the library writes of a cgroup into the map wanted_cgroups. */
enum tt_cgroup {
	TT_UNWANTED,
	TT_WANTED,
	TT_TREE_WANTED, /* with all below it */
};

struct tt_process {
	__u64 start_ns; /* CLOCK_BOOTTIME */
	__u64 cgroup;
	__u32 pid; /* of the thread-group leader, initial pid namespace; 0: not known, or with a name the kernel */
	__u32 uid;
	__u8 comm[16];
};

struct tt_conn {
	__u64 time; /* of this event, CLOCK_MONOTONIC */
	__u64 socket;
	__u64 since;
	__u32 netns;
	__u16 local_port;
	__u16 remote_port;
	__u8 local_addr[16];
	__u8 remote_addr[16];
	__u8 family;	 /* 4 or 6 */
	__u8 protocol;	 /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 provenance; /* of the record's `owner` */
	__u8 uncounted;	 /* enum tt_uncounted */
	__u8 pad[4];
};

struct tt_transfer {
	__u32 kind;
	__u32 rtt_us;
	struct tt_conn conn;
	struct tt_process owner;
	struct tt_process actor;
	__u64 actor_id; /* the actor's identity, see current_identity() */
	__u64 bytes;
	__u64 total_bytes;
	__u64 total_packets;
	__u32 calls;
	/* From the first of these calls to the last one, or the end of their interval. While it waits: how often it was
	 * claimed, see claim_slot(). */
	__u32 span_us;
};

/* TT_TCP_STATE, TT_CLOSED and TT_RETRANSMIT, which does not change the state. */
struct tt_state {
	__u32 kind;
	__u32 rtt_us;
	struct tt_conn conn;
	struct tt_process owner;
	__u64 bytes_in;
	__u64 bytes_out;
	__u64 packets_in;
	__u64 packets_out;
	__u64 lasted_ns; /* until CLOSE; 0: the begin was not seen, or this is not the end */
	__u32 min_rtt_us;
	__u32 retransmits; /* segments, since the connection began */
	__u32 segments;	   /* TT_RETRANSMIT: that are sent again now */
	__s32 error;
	__u8 old_state;
	__u8 new_state;
	__u8 flags; /* enum tt_flags */
	__u8 end;   /* enum tt_end */
	__u8 pad[4];
};

/* What waits for the end of an interval or for room in the ring. A state record leaves `span_us` alone, and so the count of
 * claims. */
union tt_slot {
	struct tt_transfer transfer;
	struct tt_state state;
};

/* A process that has a socket among its files. */
struct tt_holder {
	__u64 inode;
	struct tt_process process;
};

/* What was lost, by kind, and where. */
struct tt_counters {
	__u64 ring[TT_KINDS];
	__u64 storage[TT_KINDS];
};

/* What waits in one of the two banks. In a cache line of its own, for all CPUs count here. */
struct tt_bank {
	__u32 used; /* slots of it that may be in use: the first so many */
	__u8 pad[60];
};

/* Shared memory. Written by the reader, except that the kernel side notes here that it has woken it, and what waits. */
struct tt_control {
	__u32 reader; /* enum tt_reader */
	__u32 epoch; /* from 1; grows by one when the reader takes what waits. Its parity is the bank in use */
	__u64 zero;  /* always; see forget_peer() */
	__u32 states_used; /* states that were ever used: the first so many */
	__u8 pad[44];	   /* the words above are read at every call, and rarely written */
	struct tt_bank bank[2];
	struct tt_counters lost; /* here, because it can be read without asking the kernel */
	__u64 states_aside; /* state records that found no room in the ring, and wait in a slot or are lost */
	__u64 reports_aside; /* the same of transfers */
};

enum tt_reader {
	TT_ASLEEP,  /* waits for a wake-up: the next event must wake it */
	TT_LOOKING, /* comes back by itself within milliseconds */
	TT_WOKEN,   /* was woken since it last looked */
};

_Static_assert(sizeof(struct tt_process) == 40, "wire layout");
_Static_assert(sizeof(struct tt_conn) == 72, "wire layout");
_Static_assert(sizeof(struct tt_transfer) == 200, "wire layout");
_Static_assert(sizeof(struct tt_state) == 184, "wire layout");
_Static_assert(sizeof(struct tt_holder) == 48, "wire layout");
_Static_assert(sizeof(struct tt_control) == 5 * 64, "cache lines");

#endif
