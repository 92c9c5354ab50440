/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device with a shared memory region, for tests: maps a file when it is told
 * to by a request, or (--len) whenever its queues run, and not after a SIGHUP.
 *
 *     request   struct order: what to map or unmap
 *     reply     int32_t: what moat_shmem_map() and the like returned
 *
 * Its config space is that of a virtio-fs device, so that a guest's own driver
 * starts its queues.
 */
#include <moat/device.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPT_FILE = 1, OPT_SIZE, OPT_SHMID, OPT_AT, OPT_LEN, OPT_RO, OPT_SHOW };

/* Microseconds between looks at whether queues run. */
#define LOOK_US 1000u

struct order {
	uint32_t op; /* 1: map, 2: unmap, 3: usable?, 4: unmap a former's */
	uint32_t shmid;
	uint64_t offset, len, fd_offset;
	uint32_t writable;
	uint32_t pad;
};

struct window {
	struct moat_device_config config;
	struct moat_device *device;
	const char *path;
	int fd;
	bool read_only; /* the file is open so ... */
	bool show_only; /* ... or the guest is only to read */
	uint32_t shmid;
	uint64_t size, at, len;
	bool hide; /* SIGHUP: the other way round */
	bool mapped;
};

static uint64_t features(void *dev)
{
	(void)dev;
	return 0;
}

static void get_config(void *dev, uint32_t offset, void *buf, uint32_t len)
{
	/* virtio 1.4, 5.11.4: tag[36], num_request_queues */
	static const uint8_t config[40] = { 'w', 'i', 'n', [36] = 1 };

	(void)dev;
	for (uint32_t i = 0; i < len && offset + i < sizeof(config); i++)
		((uint8_t *)buf)[i] = config[offset + i];
}

static int obey(struct window *w, const struct order *o)
{
	switch (o->op) {
	case 1:
		return moat_shmem_map(w->device, (uint8_t)o->shmid, o->offset,
				      o->len, w->fd, o->fd_offset, o->writable);
	case 2:
		return moat_shmem_unmap(w->device, (uint8_t)o->shmid, o->offset,
					o->len);
	case 3:
		return moat_shmem_usable(w->device);
	case 4:
		return moat_shmem_unmap_former(w->device, (uint8_t)o->shmid,
					       o->offset, o->len);
	default:
		return -ENOSYS;
	}
}

static void request(void *dev, void *worker, struct moat_request *req)
{
	struct order o;
	int32_t ret = -EBADMSG;

	(void)worker;
	if (moat_iov_read(req->readable, req->nreadable, 0, &o, sizeof(o)) ==
	    sizeof(o))
		ret = obey(dev, &o);
	moat_request_done(req, (uint32_t)moat_iov_write(req->writable,
							req->nwritable, 0, &ret,
							sizeof(ret)));
}

/* Keep the file mapped while it is to be. */
static void *mapper(void *arg)
{
	struct window *w = arg;

	for (;;) {
		bool hide = __atomic_load_n(&w->hide, __ATOMIC_ACQUIRE);
		int ret;

		usleep(LOOK_US);
		if (__atomic_load_n(&w->mapped, __ATOMIC_ACQUIRE) != hide ||
		    !moat_shmem_usable(w->device))
			continue;
		if (hide)
			ret = moat_shmem_unmap(w->device, (uint8_t)w->shmid,
					       w->at, w->len);
		else
			ret = moat_shmem_map(w->device, (uint8_t)w->shmid,
					     w->at, w->len, w->fd, 0,
					     !w->read_only && !w->show_only);
		/* Whoever is between us and the driver may know better. */
		if (ret == -ENOTCONN)
			continue;
		__atomic_store_n(&w->mapped, !hide, __ATOMIC_RELEASE);
		moat_device_log(w->config.log, MOAT_DEVICE_INFO, "%s: %d",
				hide ? "unmapped" : "mapped", ret);
	}
	return NULL;
}

static void attached(void *dev, struct moat_device *device)
{
	struct window *w = dev;
	pthread_t thread;

	w->device = device;
	if (w->len && !pthread_create(&thread, NULL, mapper, w))
		pthread_detach(thread);
}

static void reset(void *dev)
{
	struct window *w = dev;

	__atomic_store_n(&w->mapped, false, __ATOMIC_RELEASE);
}

static void reload(void *dev, struct moat_device *device)
{
	struct window *w = dev;

	__atomic_store_n(&w->hide, !w->hide, __ATOMIC_RELEASE);
	moat_device_config_changed(device);
}

/* The mapper, which may begin after they are forbidden, needs more. */
static const char *const syscalls[] = { "clock_nanosleep", "rseq",
					"set_robust_list", NULL };

static const struct moat_device_ops ops = {
	.type = "window",
	.features = features,
	.get_config = get_config,
	.request = request,
	.attached = attached,
	.reset = reset,
	.reload = reload,
};

static const struct argp_option options[] = {
	{ "file", OPT_FILE, "FILE", 0, "what to map", 0 },
	{ "size", OPT_SIZE, "BYTES", 0, "of the region", 0 },
	{ "shmid", OPT_SHMID, "N", 0, "of the region (0)", 0 },
	{ "at", OPT_AT, "BYTES", 0, "map there when queues start", 0 },
	{ "len", OPT_LEN, "BYTES", 0, "so much of it", 0 },
	{ "read-only", OPT_RO, 0, 0, "open it so", 0 },
	{ "show-only", OPT_SHOW, 0, 0, "map it read-only", 0 },
	{ 0 },
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct window *w = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &w->config;
		break;
	case OPT_FILE:
		w->path = arg;
		break;
	case OPT_SIZE:
		w->size = strtoull(arg, NULL, 0);
		break;
	case OPT_SHMID:
		w->shmid = (uint32_t)strtoul(arg, NULL, 0) % MOAT_SHMEM_REGIONS;
		break;
	case OPT_AT:
		w->at = strtoull(arg, NULL, 0);
		break;
	case OPT_LEN:
		w->len = strtoull(arg, NULL, 0);
		break;
	case OPT_RO:
		w->read_only = true;
		break;
	case OPT_SHOW:
		w->show_only = true;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct argp_child children[] = {
		{ moat_device_argp(), 0, NULL, 0 }, { 0 }
	};
	const struct argp argp = {
		.options = options,
		.parser = parse,
		.children = children,
	};
	struct window w = {
		.config = {
			.ops = &ops,
			.dev = &w,
			.name = "moat-window",
			.syscalls = syscalls,
			.max_queues = 8,
		},
		.size = UINT64_C(1) << 30,
	};
	int ret;

	if (moat_device_defaults(&w.config))
		return 1;
	if (argp_parse(&argp, argc, argv, 0, NULL, &w))
		return 2;
	w.fd = w.path ? open(w.path, w.read_only ? O_RDONLY : O_RDWR) : -1;
	if (w.path && w.fd < 0) {
		perror(w.path);
		return 1;
	}
	w.config.shmem[w.shmid] = w.size;
	ret = moat_device_serve(&w.config);
	free(w.config.log);
	return ret;
}
