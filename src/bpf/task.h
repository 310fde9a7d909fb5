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

/* What every call asks about the current process: at once, because each helper costs more than all of the loads. */
struct caller {
	__u64 exec_id;	/* grows with each exec(2), which keeps the pid and changes the name */
	__u64 start_ns; /* a pid alone may have been another's before */
	__u32 pid;
	bool is_kernel; /* its threads use sockets too (MPTCP workers, NFS). io_uring workers are user processes */
};

/*
 * When the current process began. Every call asks, so there is no cast; it is global instead, and the verifier goes through
 * it once: through what is inlined it goes hundreds of times.
 */
__noinline __u64 current_start_ns(void)
{
	return use_task_btf ? bpf_get_current_task_btf()->group_leader->start_boottime : 0;
}

/* exec_id is the same in all threads: they start with a copy, and exec ends all but one. */
static __always_inline void get_caller(struct caller *caller)
{
	struct task_struct *task;

	if (use_task_btf) {
		task = bpf_get_current_task_btf();
		caller->exec_id = task->self_exec_id;
		caller->start_ns = current_start_ns();
		caller->pid = task->tgid;
		caller->is_kernel = task->flags & PF_KTHREAD;
	} else {
		task = (struct task_struct *)bpf_get_current_task();
		caller->exec_id = BPF_CORE_READ(task, self_exec_id);
		caller->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
		caller->pid = BPF_CORE_READ(task, tgid);
		caller->is_kernel = BPF_CORE_READ(task, flags) & PF_KTHREAD;
	}
}

/* The kernel itself uses a socket: which of its threads happens to do so tells nobody anything. */
static __always_inline void the_kernel(struct tt_process *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	__builtin_memcpy(p->comm, "kernel", 6);
}

/* The thread-group leader's name: threads have names of their own, io_uring's are called iou-wrk-N. */
static __always_inline void current_process(struct tt_process *p)
{
	p->pid = bpf_get_current_pid_tgid() >> 32;
	p->uid = bpf_get_current_uid_gid();
	p->cgroup = bpf_get_current_cgroup_id();
	if (use_task_btf) {
		struct task_struct *leader =
			CAST_IF_CAN(struct task_struct, bpf_get_current_task_btf())->group_leader;

		p->start_ns = leader->start_boottime;
		/* Byte by byte: the verifier allows no wider load from a char array. */
#pragma unroll
		for (int i = 0; i < 16; i++)
			p->comm[i] = ((volatile char *)leader->comm)[i];
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();
		struct task_struct *leader = BPF_CORE_READ(task, group_leader);

		p->start_ns = BPF_CORE_READ(leader, start_boottime);
		BPF_CORE_READ_INTO(&p->comm, leader, comm);
	}
}

#endif
