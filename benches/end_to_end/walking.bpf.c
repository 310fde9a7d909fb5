// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Iterators that pass what exists by, without a look at it: what the kernel's own walks take. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("iter/tcp")
int walk_tcp(void *context)
{
	return 0;
}

SEC("iter/task_file")
int walk_files(void *context)
{
	return 0;
}
