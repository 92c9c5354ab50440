/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <linux/landlock.h>
#include <stddef.h>
#include <sys/syscall.h>

#include "os/fd.h"
#include "os/sandbox.h"

/*
 * The kernel's struct landlock_ruleset_attr, with the fields of ABI 6: libc's
 * headers may be older than the kernel.
 */
struct ruleset {
	uint64_t fs, net, scoped;
};

/* Files can be moved between directories (LANDLOCK_ACCESS_FS_REFER) from: */
#define ABI_REFER 2

static int new_ruleset(long abi, struct ruleset *r)
{
	/* Rights that exist from one ABI on, by its number. */
	static const unsigned int fs_bits[] = { 13, 14, 15, 15, 16 };
	size_t size = sizeof(r->fs);
	int fd;

	*r = (struct ruleset){ 0 };
	r->fs = (UINT64_C(1) << fs_bits[abi > 5 ? 4 : abi - 1]) - 1;
	if (abi >= 4) {
		r->net = 3; /* bind and connect TCP */
		size = offsetof(struct ruleset, scoped);
	}
	if (abi >= 6) {
		r->scoped = 3; /* abstract sockets, signals */
		size = sizeof(*r);
	}
	fd = (int)syscall(SYS_landlock_create_ruleset, r, size, 0);
	return fd < 0 ? -errno : fd;
}

int moat_sandbox_landlock(int root_fd)
{
	struct landlock_path_beneath_attr rule = { .parent_fd = root_fd };
	struct ruleset r;
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	int fd, ret = 0;

	if (abi < 1)
		return abi ? -errno : -EOPNOTSUPP;
	if (root_fd >= 0 && abi < ABI_REFER)
		return -EOPNOTSUPP;
	fd = new_ruleset(abi, &r);
	if (fd < 0)
		return fd;
	rule.allowed_access = r.fs;
	if ((root_fd >= 0 && syscall(SYS_landlock_add_rule, fd,
				     LANDLOCK_RULE_PATH_BENEATH, &rule, 0)) ||
	    syscall(SYS_landlock_restrict_self, fd, 0))
		ret = -errno;
	moat_fd_close(&fd);
	return ret;
}
