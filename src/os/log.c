/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/log.h"

void moat_log_init(struct moat_log *log, const char *prefix,
		   enum moat_log_level level)
{
	*log = (struct moat_log){
		.prefix = prefix,
		.level = level,
		.tokens = MOAT_LOG_BURST,
	};
}

static bool take_token(struct moat_log *log)
{
	uint64_t now = moat_now_ns();
	uint64_t n = (now - log->tokens_at_ns) /
		     (MOAT_NS_PER_SEC / MOAT_LOG_PER_SEC);

	if (n) {
		log->tokens_at_ns = now;
		log->tokens = n + log->tokens > MOAT_LOG_BURST ?
				      MOAT_LOG_BURST :
				      log->tokens + (uint32_t)n;
	}
	if (!log->tokens) {
		log->dropped++;
		return false;
	}
	log->tokens--;
	return true;
}

void moat_log(struct moat_log *log, enum moat_log_level level, const char *fmt,
	      ...)
{
	static const char *const names[] = {
		[MOAT_LOG_ERROR] = "error: ",
		[MOAT_LOG_WARN] = "warning: ",
		[MOAT_LOG_INFO] = "",
		[MOAT_LOG_DEBUG] = "debug: ",
	};
	struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };
	char line[1024];
	va_list ap;
	int n, m;

	if (!log || level > log->level || !take_token(log))
		return;
	n = snprintf(line, sizeof(line), "%s: %s", log->prefix, names[level]);
	if (log->dropped)
		n += snprintf(line + n, sizeof(line) - (size_t)n,
			      "(%u lines left out) ", log->dropped);
	log->dropped = 0;
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	n = m < 0 || n + m > (int)sizeof(line) - 2 ? (int)sizeof(line) - 2 :
						     n + m;
	line[n++] = '\n';
	/*
	 * One write, so that lines of several processes do not mix; and none
	 * that could wait for whoever reads them.
	 */
	if (poll(&p, 1, 0) <= 0 || write(STDERR_FILENO, line, (size_t)n) < 0)
		log->dropped++;
}
