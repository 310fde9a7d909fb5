// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* An iterator that passes all files by, without a look at them: what the kernel's own walk takes. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("iter/task_file")
int walk_files(void *context)
{
	return 0;
}
