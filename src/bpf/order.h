/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Atomic additions, and the order in which other CPUs see what one does. */
#ifndef TCPTOP_ORDER_H
#define TCPTOP_ORDER_H

/*
 * Adds in one step. On arm64 that orders nothing else.
 *
 * This is the plain addition of BPF, which all kernels have, with every compiler. Another instruction returns the old value;
 * kernels before 5.12 refuse a program that has it anywhere. Newer compilers make it of __sync_fetch_and_add(), and all of them
 * make it of the addition of a constant zero, hence the tests.
 */
static __always_inline void add_u32(__u32 *to, __u32 n)
{
	if (n)
		__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

static __always_inline void add_u64(__u64 *to, __u64 n)
{
	if (n)
		__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

#ifdef __TARGET_ARCH_x86

/* x86 reorders nothing here but a store with a later load, and nothing at all with a locked instruction. */
static __always_inline void add_u64_in_order(__u64 *to, __u64 n)
{
	barrier();
	add_u64(to, n);
	barrier();
}

static __always_inline void keep_order(void)
{
	barrier();
}

#else

/*
 * A full barrier and an addition: what came before it is seen before what comes after it. With the old value returned the kernel
 * orders both (Documentation/atomic_t.txt). So on arm64 Linux 5.12 is needed.
 */
static __always_inline void add_u64_in_order(__u64 *to, __u64 n)
{
	__u64 before = __atomic_fetch_add(to, n, __ATOMIC_SEQ_CST);

	asm volatile("" ::"r"(before) : "memory");
}

/* Loads before it come before loads after it, and so do stores. */
static __always_inline void keep_order(void)
{
	__u64 any = 0;

	add_u64_in_order(&any, 1);
}

#endif

#endif
