/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both sides agree on: INIT, and its end.
 */
#include <errno.h>
#include <string.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"

#define MINOR 39u
/* Before this, structures differ and MAX_PAGES does not exist. */
#define MINOR_LEAST 28u
/* As many in the background as queues hold. */
#define BACKGROUND UINT16_MAX

static uint64_t wanted(const struct fs *fs)
{
	const struct fs_options *o = fs->opt;
	uint64_t f = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES |
		     FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_ABORT_ERROR |
		     FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2 |
		     FUSE_SETXATTR_EXT | FUSE_INIT_EXT |
		     FUSE_CREATE_SUPP_GROUP | FUSE_DIRECT_IO_ALLOW_MMAP;

	if (o->cache == FS_CACHE_AUTO)
		f |= FUSE_AUTO_INVAL_DATA;
	if (o->cache == FS_CACHE_ALWAYS || o->cache == FS_CACHE_META)
		f |= FUSE_CACHE_SYMLINKS;
	if (o->readdirplus)
		f |= FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO;
	if (o->writeback)
		f |= FUSE_WRITEBACK_CACHE;
	if (o->posix_acl)
		f |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
	if (o->submounts)
		f |= FUSE_SUBMOUNTS;
	if (o->posix_lock)
		f |= FUSE_POSIX_LOCKS;
	if (o->flock)
		f |= FUSE_FLOCK_LOCKS;
	if (o->dax_window)
		f |= FUSE_MAP_ALIGNMENT;
	if (fs_xattr_moves_capability(fs))
		f &= ~(uint64_t)FUSE_HANDLE_KILLPRIV_V2;
	return f;
}

static int answer(struct fs_req *r, const struct fuse_init_in *in,
		  uint64_t flags)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = MINOR,
		.max_readahead = in->max_readahead,
		.flags = (uint32_t)flags,
		.flags2 = (uint32_t)(flags >> 32),
		.max_background = BACKGROUND,
		.congestion_threshold = BACKGROUND / 4 * 3,
		.max_write = FS_DATA_MAX,
		.time_gran = 1,
		.max_pages = FS_DATA_MAX / 4096,
	};

	/* Mappings may begin at any page. */
	if (flags & FUSE_MAP_ALIGNMENT)
		out.map_alignment = 12;
	return fs_req_put(r, &out, sizeof(out));
}

int fs_op_init(struct fs_req *r)
{
	const struct fuse_init_in *in = fs_req_args(r);
	struct fs *fs = r->fs;
	uint64_t flags = in->flags;

	/* A later protocol's driver asks again, with the version that it sees
	 * here. */
	if (in->major > FUSE_KERNEL_VERSION)
		return answer(r, in, 0);
	if (in->major < FUSE_KERNEL_VERSION || in->minor < MINOR_LEAST) {
		moat_device_log(fs->log, MOAT_DEVICE_ERROR,
				"INIT with FUSE %u.%u: refused; 7.%u is needed "
				"at the least (Linux 5.4)",
				in->major, in->minor, MINOR_LEAST);
		return -EPROTO;
	}
	/*
	 * A guest that has started again does not say so in another way: a
	 * front-end that only stops the device for a while (QEMU's "stop")
	 * resets it, too, and then what the guest holds has to be there.
	 */
	if (__atomic_load_n(&fs->inited, __ATOMIC_ACQUIRE)) {
		moat_device_log(fs->log, MOAT_DEVICE_INFO,
				"the guest begins anew: what it had is closed");
		fs_end_session(fs);
	}
	if (flags & FUSE_INIT_EXT)
		flags |= (uint64_t)in->flags2 << 32;
	flags &= wanted(fs);
	__atomic_store_n(&fs->flags, flags, __ATOMIC_RELAXED);
	__atomic_store_n(&fs->inited, true, __ATOMIC_RELEASE);
	moat_device_log(fs->log, MOAT_DEVICE_INFO,
			"the guest has mounted (FUSE 7.%u)", in->minor);
	return answer(r, in, flags);
}

/* As a Linux of today would have agreed. */
void fs_assume_session(struct fs *fs)
{
	__atomic_store_n(&fs->flags, wanted(fs), __ATOMIC_RELAXED);
	fs_dax_succeed(fs);
	if (!__atomic_exchange_n(&fs->inited, true, __ATOMIC_ACQ_REL))
		moat_device_log(fs->log, MOAT_DEVICE_WARNING,
				"requests without INIT, as of a guest that has "
				"mounted before this process: it goes on, with "
				"ESTALE for what it had open");
}

void fs_end_session(struct fs *fs)
{
	__atomic_store_n(&fs->inited, false, __ATOMIC_RELEASE);
	fs_lock_hurry(fs);
	fs_dax_clear(fs);
	fs_handles_close_all(fs);
	fs_nodes_forget_all(fs);
}

/* The guest has unmounted. */
int fs_op_destroy(struct fs_req *r)
{
	fs_end_session(r->fs);
	return 0;
}

uint64_t fs_valid(const struct fs *fs)
{
	static const uint64_t seconds[] = {
		[FS_CACHE_AUTO] = 1,
		[FS_CACHE_ALWAYS] = 86400,
		[FS_CACHE_NEVER] = 0,
		[FS_CACHE_META] = 86400,
	};

	return seconds[fs->opt->cache];
}
