/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer can do wrong with a ring.
 *
 * A fault breaks the queue it was found on and nothing else. It carries the
 * value that was found and the bound it should have kept, so that the one log
 * line can name both.
 */
#ifndef MOAT_CORE_ERR_H
#define MOAT_CORE_ERR_H

#include <stdint.h>

enum moat_fault_code {
	MOAT_FAULT_NONE,
	/* from the driver, seen by the device side */
	MOAT_FAULT_AVAIL_JUMP,
	MOAT_FAULT_HEAD_RANGE,
	MOAT_FAULT_HEAD_TWICE,
	MOAT_FAULT_NEXT_RANGE,
	MOAT_FAULT_CHAIN_LONG,
	MOAT_FAULT_DIRECTION,
	MOAT_FAULT_INDIRECT_OFF,
	MOAT_FAULT_INDIRECT_NESTED,
	MOAT_FAULT_INDIRECT_NEXT,
	MOAT_FAULT_INDIRECT_LEN,
	MOAT_FAULT_TOTAL_LEN,
	MOAT_FAULT_ADDRESS,
	MOAT_FAULT_AVAIL_OVER,
	MOAT_FAULT_LAP_BITS,
	MOAT_FAULT_ID_RANGE,
	MOAT_FAULT_ID_TWICE,
	MOAT_FAULT_DRIVER_EVENT,
	/* from the device, seen by the driver side */
	MOAT_FAULT_USED_JUMP,
	MOAT_FAULT_USED_RANGE,
	MOAT_FAULT_USED_UNKNOWN,
	MOAT_FAULT_DEVICE_EVENT,
	MOAT_FAULT_KICK_BLOCKS,
	MOAT_FAULT_GONE,
	/* from the configuration */
	MOAT_FAULT_BASE,
	MOAT_FAULT_TOO_BIG,
	MOAT_FAULT_CODES
};

/**
 * struct moat_fault - why a queue is broken
 * @code: what was wrong
 * @value: the value found (an index, a length in bytes, an address)
 * @limit: the bound it broke, 0 where there is none to name
 */
struct moat_fault {
	enum moat_fault_code code;
	uint64_t value;
	uint64_t limit;
};

/** moat_fault_text() - what happened, as half a sentence for a log line */
const char *moat_fault_text(enum moat_fault_code code);

/** moat_fault_cure() - what the reader of the log line can do about it */
const char *moat_fault_cure(enum moat_fault_code code);

/** moat_fault_set() - record a fault; returns -1 for the caller to return */
static inline int moat_fault_set(struct moat_fault *fault,
				 enum moat_fault_code code, uint64_t value,
				 uint64_t limit)
{
	fault->code = code;
	fault->value = value;
	fault->limit = limit;
	return -1;
}

#endif
