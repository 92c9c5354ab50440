/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/log.h"
#include "os/wait.h"

void moat_log_init(struct moat_log *log, const char *prefix,
		   enum moat_log_level level)
{
	*log = (struct moat_log){
		.prefix = prefix,
		.level = level,
		.tokens = MOAT_LOG_BURST,
	};
}

static bool take_token(struct moat_log *log, uint32_t *dropped)
{
	uint64_t now = moat_now_ns(), n;
	bool ok;

	/* Held for some instructions, by threads of this process only. */
	while (__atomic_test_and_set(&log->lock, __ATOMIC_ACQUIRE))
		moat_cpu_relax();
	n = (now - log->tokens_at_ns) / (MOAT_NS_PER_SEC / MOAT_LOG_PER_SEC);
	if (n) {
		log->tokens_at_ns = now;
		log->tokens = n + log->tokens > MOAT_LOG_BURST
				      ? MOAT_LOG_BURST
				      : log->tokens + (uint32_t)n;
	}
	ok = log->tokens != 0;
	if (ok) {
		log->tokens--;
		*dropped =
			__atomic_exchange_n(&log->dropped, 0, __ATOMIC_RELAXED);
	} else {
		__atomic_add_fetch(&log->dropped, 1, __ATOMIC_RELAXED);
	}
	__atomic_clear(&log->lock, __ATOMIC_RELEASE);
	return ok;
}

void moat_log_va(struct moat_log *log, enum moat_log_level level,
		 const char *fmt, va_list ap)
{
	static const char *const names[] = {
		[MOAT_LOG_ERROR] = "error: ",
		[MOAT_LOG_WARN] = "warning: ",
		[MOAT_LOG_INFO] = "",
		[MOAT_LOG_DEBUG] = "debug: ",
	};
	uint32_t dropped;
	char line[1024];
	int n, m;

	if (!log || level > log->level || !take_token(log, &dropped))
		return;
	n = snprintf(line, sizeof(line), "%s: %s", log->prefix, names[level]);
	if (dropped)
		n += snprintf(line + n, sizeof(line) - (size_t)n,
			      "(%u lines left out) ", dropped);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	n = m < 0 || n + m > (int)sizeof(line) - 2 ? (int)sizeof(line) - 2
						   : n + m;
	line[n++] = '\n';
	/*
	 * One write, so that lines of several processes do not mix; and none
	 * that could wait for whoever reads them.
	 */
	if (!moat_wait_fd(STDERR_FILENO, POLLOUT, 0) ||
	    write(STDERR_FILENO, line, (size_t)n) < 0)
		__atomic_add_fetch(&log->dropped, 1, __ATOMIC_RELAXED);
}

void moat_log(struct moat_log *log, enum moat_log_level level, const char *fmt,
	      ...)
{
	va_list ap;

	va_start(ap, fmt);
	moat_log_va(log, level, fmt, ap);
	va_end(ap);
}
