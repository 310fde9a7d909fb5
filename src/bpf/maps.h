/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Configuration, maps and counters: everything that both the programs and the library touch. */
#ifndef TCPTOP_MAPS_H
#define TCPTOP_MAPS_H

#include "order.h"
#include "wire.h"

/*
 * Set by the library before loading. The verifier knows these values: code behind a test that fails is
 * removed, and with it what this kernel could not load.
 */
const volatile __u64 interval_ns = 0;	      /* 0: an event per call */
const volatile __u32 bank_slots = 24576;      /* in each of the two banks */
const volatile __u32 common_slots = 16384;    /* of these, for what is no end of a connection */
const volatile __u32 cookie_mask = 16383;     /* the bits that cached_states is indexed by */
const volatile bool filters = false;	      /* any of these is set */
const volatile bool filter_pids = false;      /* by wanted_pids */
const volatile bool filter_cgroups = false;   /* by wanted_cgroups */
const volatile bool filter_trees = false;     /* some of these with all below them */
const volatile bool filter_ports = false;     /* by wanted_ports */
const volatile __u64 wanted_ports[1024] = {}; /* a bit for each port */
const volatile __u8 filter_protocol = 0;
const volatile __u8 filter_family = 0;	     /* 4 or 6 */
const volatile bool filter_loopback = false; /* leaves it out */
const volatile __u32 filter_netns = 0;
const volatile bool use_cookie = true;	      /* socket cookies in tracing programs: Linux 5.12 */
const volatile bool use_task_btf = true;      /* bpf_get_current_task_btf(): Linux 5.11 */
const volatile bool use_cast = true;	      /* bpf_rdonly_cast(): Linux 6.2 */
const volatile bool chunks_are_calls = false; /* nothing reports the end of a receive call (kprobes) */
const volatile __u32 recvmsg_args = 0;	      /* arguments of tcp_recvmsg(): 4, 5 or 6 */
const volatile bool notes_are_complete =
	false; /* every send on an unconnected UDP socket is noted (tracepoints) */
const volatile bool calls_run_twice = false;  /* understudies on call hooks, see turn_is_taken() */
const volatile __u64 identity_secret[6] = {}; /* random; see current_identity() */

#define FAILED_BY_ITSELF 2
#define LISTENS		 1
#define LISTENS_KNOWN	 2

/* An account: what moved in one direction. */
struct acct {
	__u64 total;
	__u64 reported; /* TCP: how much of it went out in reports (or is older than the tracer) */
	__u64 last_ns; /* when something was last to be reported, but for what was added to a report that waits */
	__u64 packets;
	__u64 slot; /* the latest report that waits: its epoch << 32 | its number; or enum no_room */
};

/* In place of a slot, which has another epoch: what is in no report yet has found no room for one, neither in the ring nor
 * beside it. */
enum no_room {
	NO_ROOM = 1,  /* it may still find some */
	NO_ROOM_LOST, /* so may its bytes, but not the event of the call: it is counted as lost */
};

/* What events are made of: one TCP connection, or one UDP socket and one peer. */
struct counted {
	struct tt_conn conn;
	struct acct acct[2]; /* by enum tt_direction */
	__u32 rtt_us;
	__u32 pad;
};

/* The peer of one datagram. */
struct peer {
	__u8 addr[16] __attribute__((aligned(4)));
	__u16 port;  /* host order */
	__u8 family; /* 4, 6, or 0: not known */
};

/*
 * The state of one socket.
 * Of UDP: its conn and accounts with its first peer, owner, address, waiting, corked, strangers, noted, end, told and sent_to.
 */
struct sk_state {
	struct counted c;
	/*
	 * The owner's identity, and in the two lowest bits its provenance. One word, so that no CPU sees one half of an old
	 * owner and one of a new one.
	 */
	__u64 owner;
	__u64 ended_ns; /* when it went to CLOSE */
	union {
		__u64 shut;    /* after a change of state that ends writing: one more than was written */
		__u64 address; /* UDP: of the socket, see count_gone() */
	};
	__u32 min_rtt_us;
	__u32 retransmits;
	union {
		__u32 seq_out; /* write_seq at byte 0 */
		__u32 device;  /* of a listener: see struct listen_key */
		__u32 waiting; /* UDP: bytes of a datagram that is not sent yet (UDP_CORK, MSG_MORE) */
	};
	__s16 error;	 /* sk_err then */
	__u16 calls_out; /* sends that are not reported yet (kprobes) */
	__u8 known;	 /* KNOWN_OUT, KNOWN_IN: which totals have been read from the socket */
	__u8 first_in; /* when the first receive on a connection older than this tracer began that is not finished */
	__u8 moved_in; /* a receive call has moved bytes and is not finished */
	union {
		__u8 listens; /* LISTENS, or LISTENS_KNOWN: `listeners` counts it */
		__u8 strangers; /* UDP: what waits may be older than connect(), and so from anybody (tracepoints) */
	};
	__u8 noted;	 /* a UDP peer was noted for this socket (tracepoints) */
	__u8 changed[2]; /* the latest state change, from and to */
	__u8 end;	 /* enum tt_end */
	__u8 active;	 /* it connected */
	__u8 born;	 /* its begin was seen */
	union {
		__u8 failed; /* it never got to ESTABLISHED; FAILED_BY_ITSELF: connect() gave up */
		__u8 corked; /* UDP: the latest send has left a datagram that is not sent yet, of any length */
	};
	__u8 told;   /* something of it passed the filter */
	__u8 begins; /* UDP: the latest send began a datagram, and so nothing waited before it (tracepoints) */
	/* UDP: where the latest datagram went or will go, unless it went to the first peer and never waited. */
	struct peer sent_to;
};

/*
 * Address of a socket -> the number of its state. Made by the hook that first sees the socket, deleted when the socket is
 * destroyed. If the destruction goes past the programs the state stays, and is found out when the kernel uses the address
 * again: see is_of_another().
 *
 * Not socket storage, which the kernel would free by itself: it is charged to the traced program (net.core.optmem_max,
 * its memory cgroup), whose own calls could then fail, and copied to accepted sockets it could make the kernel drop
 * them (sk_clone_lock()). All of this map is allocated at the start. Full: the events of further sockets are counted as lost.
 * Sized by max_sockets, as are the next three.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u32);
} sockets SEC(".maps");

struct state_entry {
	struct sk_state st; /* first, for the verifier allows no arithmetic with what may be NULL */
	__u64 cookie;	    /* of the socket, once it is in cached_states; else 0 */
	__u64 claims;	    /* see unused_state() */
};

/* Number -> state. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct state_entry);
} states SEC(".maps");

/* The numbers of states whose sockets are gone. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 16384);
	__type(value, __u32);
} free_states SEC(".maps");

/*
 * Last bits of a socket's cookie -> the number of a state. No cookie is given out twice, so the entry tells whether it is that of
 * this socket. The verifier turns a look-up in an array into a few instructions; one in a hash stays a chain of calls.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} cached_states SEC(".maps");

/* Addresses from which a CPU is just taking an earlier socket's state: see state_forget_stale(). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} stale_addresses SEC(".maps");

/* Where a socket listens. An address of zeros is any address. */
struct listen_key {
	__u8 addr[16];
	__u32 netns;
	__u32 device; /* that the socket is bound to (SO_BINDTODEVICE), or 0 */
	__u16 port;
	__u8 family; /* 4 or 6 */
	__u8 pad;
};

struct listener {
	__u64 owner; /* as in struct sk_state; 0: not known, or several processes listen here (SO_REUSEPORT) */
	__u64 sockets; /* that listen here */
};

/*
 * Who listens where, for the sockets that are accepted there: they belong to that process until one is seen to use them.
 * Written where a socket begins to listen and ends to. Full: the owners of accepted sockets are unknown until their first call.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listen_key);
	__type(value, struct listener);
} listeners SEC(".maps");

struct known_process {
	__u64 identity; /* its key: an element that was given to another one meanwhile is told by it */
	struct tt_process process;
};

/*
 * Identity -> process. Never changed once it is there: one that takes another name, user or cgroup is another identity. LRU:
 * one that was pushed out is unknown in interrupts until it is looked for again, twice per second of its reports.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct known_process);
} processes SEC(".maps");

/* The pids that pass the filter. Written by the library before the programs are attached, and made only if there are any. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} wanted_pids SEC(".maps");

/*
 * Id of a cgroup -> does it pass the filter (enum tt_cgroup)? The library writes those that the user names before the programs
 * are attached; the map is made only if there are any. Where trees are wanted the programs add what they have found out of
 * others, which holds for good: a cgroup keeps its place, and its id is not used again. Full: it is found out anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u8);
} wanted_cgroups SEC(".maps");

struct flow_key {
	__u64 socket;
	__u8 remote_addr[16];
	__u16 remote_port;
	__u8 family; /* 0: the peer is not known */
	__u8 pad[5];
};

/*
 * UDP socket and peer -> totals. LRU: a flow that is pushed out starts again from zero with a new `since`,
 * and loses nothing, because what was not reported yet waits in `slots`. Sized by max_sockets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct counted);
} udp_flows SEC(".maps");

/*
 * Two banks of reports that wait for the end of their interval, or for room in the ring. Written here, emptied by the
 * reader one bank at a time: it changes the epoch, waits until the programs that run have ended (`barrier`), and
 * collects the bank that is no longer in use, in memory that it shares. Full: the report goes to the ring at once, and
 * if there is no room either, its bytes to the next report. The end of a connection has no next one, and so slots that
 * nothing else takes. Sized by max_sockets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2 * 24576);
	__type(key, __u32);
	__type(value, union tt_slot);
} slots SEC(".maps");

/* A variable, and so without a look-up; its map is shared memory, too. */
struct tt_control control __attribute__((aligned(64)));

struct turns {
	__u8 of[8]; /* by enum hook */
};

/*
 * Thread -> which of two programs on one hook had the last turn; see turn_is_taken(). LRU because threads come and go:
 * one that is pushed out between two calls, or takes over from a thread with its number, loses nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct turns);
} thread_turns SEC(".maps");

/* The size is set by the library (ring_bytes). */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

struct small_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} stone SEC(".maps");

/*
 * No program looks in here. The library writes to it because the kernel answers only when every program that was
 * running has ended (maybe_wait_bpf_programs()), which a time that one waits can never promise: programs may be
 * preempted, and so may virtual processors.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct small_map);
} barrier SEC(".maps");

/* Atomic, for a program may interrupt another one. */
static __always_inline void count_ring_loss(__u32 kind)
{
	if (kind < TT_KINDS)
		add_u64(&control.lost.ring[kind], 1);
}

static __always_inline void count_storage_loss(__u32 kind)
{
	if (kind < TT_KINDS)
		add_u64(&control.lost.storage[kind], 1);
}

#endif
