// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * No program. The skeleton generator describes the types of an object's variables: from this one come the Rust types of
 * wire.h.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include "wire.h"

struct {
	struct tt_transfer transfer;
	struct tt_state state;
	struct tt_holder holder;
	struct tt_control control;
	enum tt_kind kind;
	enum tt_provenance provenance;
	enum tt_end end;
	enum tt_flags flags;
	enum tt_reader reader;
	enum tt_cgroup cgroup;
} wire;
