/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines to standard error: one line per cause, written at the place that
 * knows it. A line names the device, the queue, the value and what to do.
 *
 * Untrusted peers can cause log lines, so they pass a token bucket: at most
 * MOAT_LOG_BURST at once and MOAT_LOG_PER_SEC after that; what was left out
 * is counted in the next line that passes.
 */
#ifndef MOAT_OS_LOG_H
#define MOAT_OS_LOG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#define MOAT_LOG_BURST 64
#define MOAT_LOG_PER_SEC 10

enum moat_log_level {
	MOAT_LOG_ERROR,
	MOAT_LOG_WARN,
	MOAT_LOG_INFO,
	MOAT_LOG_DEBUG,
};

struct moat_log {
	const char *prefix;	   /* such as "moat guard[blk]" */
	enum moat_log_level level; /* lines above it are dropped */
	uint64_t tokens_at_ns;	   /* private: when tokens were last counted */
	uint32_t tokens;	   /* private */
	uint32_t dropped;	   /* private */
	bool lock;		   /* private: threads may share a log */
};

/**
 * moat_log_init() - a log that writes lines beginning with @prefix
 * @prefix: kept by reference
 * @level: the most talkative level that is still written
 */
void moat_log_init(struct moat_log *log, const char *prefix,
		   enum moat_log_level level);

/** moat_log() - write one line; no newline in @fmt. NULL @log is silent. */
void moat_log(struct moat_log *log, enum moat_log_level level, const char *fmt,
	      ...) __attribute__((format(printf, 3, 4)));
void moat_log_va(struct moat_log *log, enum moat_log_level level,
		 const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));

#define log_err(log, ...) moat_log(log, MOAT_LOG_ERROR, __VA_ARGS__)
#define log_warn(log, ...) moat_log(log, MOAT_LOG_WARN, __VA_ARGS__)
#define log_info(log, ...) moat_log(log, MOAT_LOG_INFO, __VA_ARGS__)
#define log_debug(log, ...) moat_log(log, MOAT_LOG_DEBUG, __VA_ARGS__)

#endif
