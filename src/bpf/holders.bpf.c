// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Who holds which socket: an iterator over the files of all processes. A socket that sock_diag(7) shows and its holder find
 * each other by the number of the inode.
 *
 * Only direct loads through typed pointers, which also work under lockdown=confidentiality.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include "wire.h"

#define S_IFMT	 0170000 /* include/uapi/linux/stat.h */
#define S_IFSOCK 0140000

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("iter/task_file")
int existing_holder(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct file *file = ctx->file;
	struct tt_holder h = {};

	if (!task || !file || (file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	leader = task->group_leader;
	h.inode = file->f_inode->i_ino;
	h.process.pid = task->tgid;
	h.process.uid = task->cred->uid.val;
	h.process.start_ns = leader->start_boottime;
	h.process.cgroup = task->cgroups->dfl_cgrp->kn->id;
	/* Byte by byte: the verifier allows no wider load from a char array. */
#pragma unroll
	for (int i = 0; i < 16; i++)
		h.process.comm[i] = ((volatile char *)leader->comm)[i];
	bpf_seq_write(ctx->meta->seq, &h, sizeof(h));
	return 0;
}
