/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The current process. In interrupt context it is a stranger: callers must know that they run in a system
 * call (a call hook), or that the socket is locked by its user (sk_is_used_by_current()).
 */
#ifndef TCPTOP_TASK_H
#define TCPTOP_TASK_H

#include "maps.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/*
 * A field of a kernel structure: a direct load where the verifier knows the pointer's type, which also works
 * under lockdown=confidentiality; a probe read where it does not (kprobe arguments). `typed` is a constant.
 */
#define FIELD(typed, ptr, field) ((typed) ? (ptr)->field : BPF_CORE_READ(ptr, field))

/* Kernel threads use sockets too (MPTCP workers, NFS); they never own one. io_uring workers are user
 * processes. */
static __always_inline bool current_is_kthread(void)
{
	if (use_task_btf)
		return bpf_get_current_task_btf()->flags & PF_KTHREAD;
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & PF_KTHREAD;
}

/*
 * Grows with each exec(2), which keeps the pid and changes the name. The same in all threads: they start with a copy,
 * and exec ends all but one.
 */
static __always_inline __u64 current_exec_id(void)
{
	if (use_task_btf)
		return bpf_get_current_task_btf()->self_exec_id;
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), self_exec_id);
}

/* The thread-group leader's name: threads have names of their own, io_uring's are called iou-wrk-N. */
static __always_inline void current_process(struct tt_process *p)
{
	p->pid = bpf_get_current_pid_tgid() >> 32;
	p->uid = bpf_get_current_uid_gid();
	p->cgroup = bpf_get_current_cgroup_id();
	if (use_task_btf) {
		struct task_struct *leader = bpf_get_current_task_btf()->group_leader;

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
