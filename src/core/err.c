/* SPDX-License-Identifier: Apache-2.0 */
#include "core/err.h"

#define DRIVER_BUG "fix the guest's driver, then reset the device"
#define FRONT_BUG "fix the front-end: it set the ring's base"
#define DEVICE_BUG "the backend broke the ring: restart or replace it"

static const struct {
	const char *text, *cure;
} faults[MOAT_FAULT_CODES] = {
	[MOAT_FAULT_NONE] = { "no fault", "nothing to do" },
	[MOAT_FAULT_AVAIL_JUMP] = { "avail idx jumped", DRIVER_BUG },
	[MOAT_FAULT_HEAD_RANGE] = { "head index out of range", DRIVER_BUG },
	[MOAT_FAULT_HEAD_TWICE] = { "head posted while still outstanding",
				    DRIVER_BUG },
	[MOAT_FAULT_NEXT_RANGE] = { "next index out of range", DRIVER_BUG },
	[MOAT_FAULT_CHAIN_LONG] = { "descriptor chain loops or is too long",
				    DRIVER_BUG },
	[MOAT_FAULT_DIRECTION] = { "readable descriptor after a writable one",
				   DRIVER_BUG },
	[MOAT_FAULT_INDIRECT_OFF] = { "indirect descriptor, not negotiated",
				      DRIVER_BUG },
	[MOAT_FAULT_INDIRECT_NESTED] = { "indirect table inside an indirect "
					 "table",
					 DRIVER_BUG },
	[MOAT_FAULT_INDIRECT_NEXT] = { "indirect descriptor with NEXT set",
				       DRIVER_BUG },
	[MOAT_FAULT_INDIRECT_LEN] = { "bad length of an indirect table",
				      DRIVER_BUG },
	[MOAT_FAULT_TOTAL_LEN] = { "chain longer than 2^32 bytes", DRIVER_BUG },
	[MOAT_FAULT_ADDRESS] = { "address outside guest memory", DRIVER_BUG },
	[MOAT_FAULT_AVAIL_OVER] = { "more descriptors available than are free",
				    DRIVER_BUG },
	[MOAT_FAULT_LAP_BITS] = { "descriptor inside a list with wrong AVAIL "
				  "or "
				  "USED bits",
				  DRIVER_BUG },
	[MOAT_FAULT_ID_RANGE] = { "buffer id out of range", DRIVER_BUG },
	[MOAT_FAULT_ID_TWICE] = { "buffer id posted while still outstanding",
				  DRIVER_BUG },
	[MOAT_FAULT_DRIVER_EVENT] = { "bad flags in the driver's event "
				      "structure",
				      DRIVER_BUG },
	[MOAT_FAULT_USED_JUMP] = { "used idx jumped", DEVICE_BUG },
	[MOAT_FAULT_USED_RANGE] = { "used id out of range", DEVICE_BUG },
	[MOAT_FAULT_USED_UNKNOWN] = { "used id is not outstanding",
				      DEVICE_BUG },
	[MOAT_FAULT_DEVICE_EVENT] = { "bad flags in the device's event "
				      "structure",
				      DEVICE_BUG },
	[MOAT_FAULT_KICK_BLOCKS] = { "kick eventfd was made to block",
				     DEVICE_BUG },
	[MOAT_FAULT_GONE] = { "the device is gone", "start it again" },
	[MOAT_FAULT_BASE] = { "base that no ring of this size can have",
			      FRONT_BUG },
	[MOAT_FAULT_TOO_BIG] = { "request can never fit the pool",
				 "give the device a larger --pool-size" },
};

const char *moat_fault_text(enum moat_fault_code code)
{
	return code < MOAT_FAULT_CODES ? faults[code].text : "unknown fault";
}

const char *moat_fault_cure(enum moat_fault_code code)
{
	return code < MOAT_FAULT_CODES ? faults[code].cure : "";
}
