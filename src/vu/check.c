/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "core/packed.h"
#include "vu/check.h"
#include "vu/proto.h"

#define U(x) ((unsigned long long)(x))

int moat_vu_check_features(struct moat_log *log, uint64_t features,
			   uint64_t offered, uint64_t accepted, bool running)
{
	uint64_t surplus = features & ~offered;

	if (surplus) {
		log_err(log,
			"SET_FEATURES with 0x%llx, of which 0x%llx was not "
			"offered: refused; fix the front-end",
			U(features), U(surplus));
		return -EINVAL;
	}
	if (!(features & MOAT_BIT(VIRTIO_F_VERSION_1))) {
		log_err(log,
			"SET_FEATURES without VERSION_1 (bit 32): refused; the "
			"driver has to be a virtio 1.0 one or later");
		return -EINVAL;
	}
	if (running && features != accepted) {
		log_err(log,
			"SET_FEATURES changes 0x%llx to 0x%llx while queues "
			"run: refused; stop them first",
			U(accepted), U(features));
		return -EBUSY;
	}
	return 0;
}

int moat_vu_check_protocol(struct moat_log *log, uint64_t features,
			   uint64_t offered)
{
	if (!(features & ~offered))
		return 0;
	log_err(log,
		"SET_PROTOCOL_FEATURES with 0x%llx, of which 0x%llx was not "
		"offered: refused; fix the front-end",
		U(features), U(features & ~offered));
	return -EINVAL;
}

int moat_vu_check_index(struct moat_log *log, uint32_t index, uint32_t queues)
{
	if (index < queues)
		return 0;
	log_err(log, "queue %u does not exist: refused; the device has %u",
		index, queues);
	return -EINVAL;
}

int moat_vu_check_stopped(struct moat_log *log, uint32_t index, bool started,
			  const char *what)
{
	if (!started)
		return 0;
	log_err(log,
		"queue %u: %s while it runs: refused; stop it with "
		"GET_VRING_BASE first",
		index, what);
	return -EBUSY;
}

int moat_vu_check_num(struct moat_log *log, uint32_t index, uint32_t num,
		      bool packed)
{
	/* Only a split ring has to be a power of two (2.7; packed: 2.8.10). */
	if (packed ? moat_packed_num_ok(num) : moat_vring_num_ok(num))
		return 0;
	log_err(log,
		"queue %u: size %u is no power of two from 1 to %u: refused; "
		"fix the guest's driver",
		index, num, MOAT_VRING_NUM_MAX);
	return -EINVAL;
}

int moat_vu_check_base(struct moat_log *log, uint32_t index, uint32_t base,
		       bool packed)
{
	if (packed || base <= UINT16_MAX)
		return 0;
	log_err(log, "queue %u: base %u is no index of a split ring: refused",
		index, base);
	return -EINVAL;
}

int moat_vu_check_kick(struct moat_log *log, uint32_t index, int fd)
{
	if (fd >= 0)
		return 0;
	log_err(log,
		"queue %u: SET_VRING_KICK without an fd asks us to poll: "
		"refused; the front-end has to send an eventfd",
		index);
	return -EOPNOTSUPP;
}

int moat_vu_check_status(struct moat_log *log, uint64_t status)
{
	if (status <= UINT8_MAX)
		return 0;
	log_err(log, "SET_STATUS with 0x%llx: refused; it has 8 bits",
		U(status));
	return -EINVAL;
}
