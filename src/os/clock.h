/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_OS_CLOCK_H
#define MOAT_OS_CLOCK_H

#include <stdint.h>
#include <time.h>

#define MOAT_NS_PER_MS 1000000u
#define MOAT_NS_PER_SEC 1000000000u

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
