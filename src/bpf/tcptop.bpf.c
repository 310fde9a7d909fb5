// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * All programs of all backends in one object, so that they share their maps. Each is optional ("?"): the
 * library turns on what the chosen backend needs and this kernel has.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "connect.h"
#include "fentry.h"
#include "kprobe.h"
#include "life.h"
#include "sockmap.h"
#include "tracepoint.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
