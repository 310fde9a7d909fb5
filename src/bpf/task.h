/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The current process. In interrupt context it is a stranger: callers must know that they run in a system
 * call (a call hook), or that the socket is locked by its user (owner_if_locked()).
 */
#ifndef TCPTOP_TASK_H
#define TCPTOP_TASK_H

#include "fields.h"
#include "maps.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/*
 * For each pointer that the verifier sees loaded from a task or a socket it looks through all of the kernel's types, unless
 * that was cast; both came with Linux 6.2. A load through a cast checks the address first.
 */
#define CAST_IF_CAN(type, pointer) (use_cast ? CAST(type, pointer) : (type *)(pointer))

/*
 * Understudies. The kernel skips a tracing program that is already running on this CPU, in whatever it has interrupted
 * or preempted. So hooks on which an event must not be lost have two programs that do the same: when one is skipped the
 * other runs, and when both run the second must find that there is nothing left to do.
 *
 * Where nothing else tells it, this does: whoever comes first in a call of this thread takes the turn, and the other one
 * gives it back. If one was skipped, the turn stays taken, and the next call begins with the other: each call is
 * handled once, whichever runs first. (In memory that is there from the start. The storage of a task must be made by the
 * first call, which may fail, and up to Linux 6.1 cannot even be found while another task is preempted in the helper.)
 */
enum hook {
	HOOK_TCP_OUT,
	HOOK_TCP_IN,
	HOOK_UDP_OUT,
	HOOK_UDP_OUT_V6,
	HOOK_UDP_IN,
};

static __always_inline bool turn_is_taken(enum hook hook, const bool understudy)
{
	const __u8 mine = understudy ? 2 : 1, other = understudy ? 1 : 2;
	struct turns *turns, first = {};
	__u64 thread;

	if (!calls_run_twice)
		return false;
	thread = bpf_get_current_pid_tgid();
	turns = bpf_map_lookup_elem(&thread_turns, &thread);
	if (!turns) {
		first.of[hook] = mine;
		return bpf_map_update_elem(&thread_turns, &thread, &first, BPF_ANY) && understudy;
	}
	if (turns->of[hook] == other) {
		turns->of[hook] = 0;
		return true;
	}
	turns->of[hook] = mine;
	return false;
}

/*
 * The current task, with its type where use_task_btf. Asked for once: processors that guard returns (retbleed) take long for
 * each call of a helper.
 */
static __always_inline struct task_struct *current_task(void)
{
	return use_task_btf ? bpf_get_current_task_btf() : (struct task_struct *)bpf_get_current_task();
}

/* The verifier allows no load but of single bytes from an array of them. */
static __always_inline void put_comm(struct tt_process *p, struct task_struct *leader)
{
	if (use_cast) {
		/* Two words, wherever they are. */
		struct timespec64 *words = CAST(struct timespec64, leader->comm);

		*(word *)p->comm = words->tv_sec;
		*(word *)(p->comm + 8) = words->tv_nsec;
		return;
	}
#pragma unroll
	for (int i = 0; i < 16; i++)
		p->comm[i] = ((volatile char *)leader->comm)[i];
}

/*
 * The process as it is now. Id, name and start are the thread-group leader's: threads have names of their own, io_uring's are
 * called iou-wrk-N. User and cgroup are the thread's, and so the process's but for a moment in setuid(2).
 */
static __always_inline void put_current(struct tt_process *p, struct task_struct *task, const bool is_hot)
{
	struct task_struct *leader, *from;

	if (use_task_btf) {
		from = is_hot ? task : CAST_IF_CAN(struct task_struct, task);
		leader = from->group_leader;
		p->start_ns = leader->start_boottime;
		p->cgroup = from->cgroups->dfl_cgrp->kn->id;
		*(word *)&p->pid = pair(task->tgid, from->cred->uid.val);
		put_comm(p, leader);
	} else {
		leader = BPF_CORE_READ(task, group_leader);
		p->start_ns = BPF_CORE_READ(leader, start_boottime);
		p->cgroup = bpf_get_current_cgroup_id();
		p->pid = BPF_CORE_READ(task, tgid);
		p->uid = bpf_get_current_uid_gid();
		BPF_CORE_READ_INTO(&p->comm, leader, comm);
	}
}

static __always_inline void current_process(struct tt_process *p)
{
	put_current(p, current_task(), false);
}

/*
 * Of a process that passes the filters by process. It stands in its identity, so that nothing has to be looked up that may not
 * be there any more: any user can make so many identities that `processes` forgets others.
 */
#define PROCESS_PASSES 4

/* The identity of the kernel, whose threads use sockets too (MPTCP, NFS). io_uring's are user processes. */
#define THE_KERNEL 8

static __always_inline bool is_kernel_thread(struct task_struct *task)
{
	return FIELD(use_task_btf, task, flags) & PF_KTHREAD;
}

#define CGROUP_LEVELS 64 /* so many from the root are looked at */

/*
 * Is the current task's cgroup below a wanted one? The task may be moved meanwhile. What was found out is kept only if the
 * last of these cgroups is the task's own: those above belong to that one.
 */
static __always_inline bool is_below_wanted_cgroup(struct task_struct *task, __u64 own)
{
	__u8 verdict = TT_UNWANTED, *known;
	__u64 id, last = 0;

	for (__u32 level = 0; level < CGROUP_LEVELS; level++) {
		id = cgroup_at_level(task, level);
		if (!id)
			break;
		last = id;
		known = bpf_map_lookup_elem(&wanted_cgroups, &id);
		if (known && *known == TT_TREE_WANTED)
			verdict = TT_TREE_WANTED;
	}
	if (last == own)
		bpf_map_update_elem(&wanted_cgroups, &own, &verdict, BPF_NOEXIST);
	return verdict != TT_UNWANTED;
}

static __always_inline bool is_in_wanted_cgroup(struct task_struct *task, __u64 own)
{
	__u8 *known = bpf_map_lookup_elem(&wanted_cgroups, &own);

	if (known)
		return *known != TT_UNWANTED;
	return filter_trees && is_below_wanted_cgroup(task, own);
}

/* Of the current task, which is in this process. */
static __always_inline __u64 process_passes(struct task_struct *task, const struct tt_process *p)
{
	if (filter_pids && !bpf_map_lookup_elem(&wanted_pids, &p->pid))
		return 0;
	if (filter_cgroups && !is_in_wanted_cgroup(task, p->cgroup))
		return 0;
	return PROCESS_PASSES;
}

static __always_inline __u64 mixed(__u64 word, __u64 secret)
{
	word *= secret | 1;
	return word ^ word >> 32;
}

static __always_inline __u64 hash_current(const bool is_hot)
{
	struct task_struct *task = current_task();
	struct tt_process p;
	const word *w = (const word *)&p;
	__u64 hash;

	if (is_kernel_thread(task))
		return THE_KERNEL;
	put_current(&p, task, is_hot);
	hash = mixed(w[0] ^ identity_secret[0], identity_secret[1]) + (w[1] ^ identity_secret[2]);
	hash = mixed(hash, identity_secret[3]) + (mixed(w[2], identity_secret[4]) ^ w[3]);
	hash = mixed(hash, identity_secret[5]) ^ w[4];
	hash = mixed(hash, identity_secret[1]);
	return ((hash & ~7ULL) ?: 2 * THE_KERNEL) | process_passes(task, &p);
}

/*
 * A number for the current process as it is now: another one after it has changed its name, user or cgroup, so one
 * comparison tells whether anything of that is news. It is a hash of all that is said of a process; with secrets, because
 * programs choose their names, and none shall be able to pass for another. The two lowest bits are free, see `owner`, and
 * the third is PROCESS_PASSES.
 *
 * Global: the verifier goes through it once. Through what is inlined it goes hundreds of times.
 */
__noinline __u64 current_identity(void)
{
	return hash_current(false);
}

/*
 * The same for the hooks of calls, which ask each time. Without casts it takes half as long, and the verifier three
 * milliseconds more for each of five pointers, in each program that has it.
 */
__noinline __u64 caller_identity(void)
{
	return hash_current(true);
}

/* The kernel itself uses a socket: which of its threads happens to do so tells nobody anything. */
static __always_inline void the_kernel(struct tt_process *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	__builtin_memcpy(p->comm, "kernel", 6);
}

/* Keeps the current process under its identity, for hooks where it is not the current one. Rare, and so out of the way. */
static __noinline void remember_current(__u64 identity)
{
	struct known_process fresh = { .identity = identity };

	if (identity == THE_KERNEL || bpf_map_lookup_elem(&processes, &identity))
		return;
	current_process(&fresh.process);
	bpf_map_update_elem(&processes, &identity, &fresh, BPF_NOEXIST);
}

/* The process with this identity; all zero if it is not known any more. */
static __noinline void put_process(struct tt_process *to, __u64 identity)
{
	struct known_process *known;

	if (identity == THE_KERNEL) {
		the_kernel(to);
		return;
	}
	known = bpf_map_lookup_elem(&processes, &identity);
	if (known) {
		*to = known->process;
		keep_order();
		if (*(volatile __u64 *)&known->identity == identity)
			return;
	}
	__builtin_memset(to, 0, sizeof(*to));
}

#endif
