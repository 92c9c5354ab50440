/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "os/cutoff.h"

/*
 * A signal handler has nobody to ask: this is the process's. Entries are taken
 * and given back by their size.
 */
static struct {
	uintptr_t at;  /* atomic */
	uint64_t size; /* atomic; 0: free */
} watched[MOAT_CUTOFF_MAX];

static uint64_t lost;
static uintptr_t page_mask;

static bool is_watched(uintptr_t p)
{
	for (uint32_t i = 0; i < MOAT_CUTOFF_MAX; i++) {
		uint64_t size =
			__atomic_load_n(&watched[i].size, __ATOMIC_ACQUIRE);

		if (size &&
		    p - __atomic_load_n(&watched[i].at, __ATOMIC_RELAXED) <
			    size)
			return true;
	}
	return false;
}

/* The kernel's own word alone counts: others can not claim its code. */
static void on_bus_error(int sig, siginfo_t *info, void *context)
{
	struct sigaction fatal = { .sa_handler = SIG_DFL };
	uintptr_t p = (uintptr_t)info->si_addr;
	int saved = errno;

	(void)context;
	if (info->si_code <= 0)
		return;
	if (!is_watched(p) ||
	    mmap((void *)(p & ~page_mask), page_mask + 1,
		 PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		sigaction(sig, &fatal, NULL); /* and it comes again */
	else
		__atomic_fetch_add(&lost, 1, __ATOMIC_RELAXED);
	errno = saved;
}

int moat_cutoff_init(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_bus_error,
		.sa_flags = SA_SIGINFO,
	};

	page_mask = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
	return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
}

void moat_cutoff_watch(const uint8_t *at, uint64_t size)
{
	for (uint32_t i = 0; i < MOAT_CUTOFF_MAX; i++) {
		uintptr_t none = 0;

		if (!__atomic_compare_exchange_n(
			    &watched[i].at, &none, (uintptr_t)at, false,
			    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&watched[i].size, size, __ATOMIC_RELEASE);
		return;
	}
}

void moat_cutoff_forget(const uint8_t *at, uint64_t size)
{
	for (uint32_t i = 0; i < MOAT_CUTOFF_MAX; i++) {
		if (__atomic_load_n(&watched[i].at, __ATOMIC_RELAXED) !=
			    (uintptr_t)at ||
		    __atomic_load_n(&watched[i].size, __ATOMIC_RELAXED) != size)
			continue;
		__atomic_store_n(&watched[i].size, 0, __ATOMIC_RELEASE);
		__atomic_store_n(&watched[i].at, 0, __ATOMIC_RELEASE);
		return;
	}
}

uint64_t moat_cutoff_pages(void)
{
	return __atomic_load_n(&lost, __ATOMIC_RELAXED);
}
