/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole vhost-user backend: a virtio entropy device (virtio 1.4, 5.4).
 *
 *     cc moat-rng.c $(pkg-config --cflags --libs --static moat) -o moat-rng
 *     moat-rng --socket-path=/run/rng.sock
 *     qemu-system-x86_64 ... -chardev socket,id=c,path=/run/rng.sock \
 *             -device vhost-user-rng-pci,chardev=c
 *
 * The driver posts buffers, the device fills them with random bytes.
 */
#include <moat/device.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

/* More than this of a buffer is left for the driver's next request. */
#define MOST 4096u

struct rng {
	struct moat_log *log;
};

static uint64_t features(void *dev)
{
	(void)dev;
	return 0; /* the device type has none of its own */
}

static void get_config(void *dev, uint32_t offset, void *buf, uint32_t len)
{
	/* There is no config space; the harness has zeroed the buffer. */
	(void)dev;
	(void)offset;
	(void)buf;
	(void)len;
}

static void request(void *dev, void *worker, struct moat_request *req)
{
	struct rng *rng = dev;
	uint8_t bytes[MOST];
	size_t want = req->write_len < MOST ? (size_t)req->write_len : MOST;
	ssize_t got = want ? getrandom(bytes, want, 0) : 0;

	(void)worker;
	if (req->nreadable) {
		moat_request_broken(req, "has a buffer that the device can "
					 "only read; fix the guest's driver");
		return;
	}
	if (got < 0) {
		moat_device_log(rng->log, MOAT_DEVICE_ERROR,
				"getrandom() fails");
		got = 0;
	}
	moat_iov_write(req->writable, req->nwritable, 0, bytes, (size_t)got);
	moat_request_done(req, (uint32_t)got);
}

/* What the sandbox has to allow beside what the harness needs. */
static const char *const syscalls[] = { "getrandom", NULL };

static const struct moat_device_ops ops = {
	.type = "rng",
	.features = features,
	.get_config = get_config,
	.request = request,
};

int main(int argc, char **argv)
{
	const struct argp_child children[] = {
		{ moat_device_argp(), 0, NULL, 0 }, { 0 }
	};
	const struct argp argp = {
		.children = children,
		.doc = "A virtio entropy device over vhost-user.",
	};
	struct rng rng = { 0 };
	struct moat_device_config config = {
		.ops = &ops,
		.dev = &rng,
		.name = "moat-rng",
		.syscalls = syscalls,
		.max_queues = 1,
	};
	int ret;

	if (moat_device_defaults(&config))
		return 1;
	rng.log = config.log;
	argp_err_exit_status = 2;
	if (argp_parse(&argp, argc, argv, 0, NULL, &config))
		return 2;
	if (config.print_capabilities) {
		printf("{\n  \"type\": \"%s\",\n  \"features\": []\n}\n",
		       ops.type);
		ret = 0;
	} else {
		ret = moat_device_serve(&config);
	}
	free(config.log);
	return ret;
}
