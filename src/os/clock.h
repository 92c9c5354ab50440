/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_OS_CLOCK_H
#define MOAT_OS_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Of 64 bits: 5 s in nanoseconds are more than 32 hold. */
#define MOAT_NS_PER_MS UINT64_C(1000000)
#define MOAT_NS_PER_SEC UINT64_C(1000000000)

/** moat_now_ns() - nanoseconds of a clock that never goes back */
static inline uint64_t moat_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * MOAT_NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/** moat_cpu_relax() - in a loop that waits for another processor */
static inline void moat_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
