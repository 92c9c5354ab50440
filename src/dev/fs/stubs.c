/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include "dev/fs/fs.h"
int fs_lockers_start(struct fs *fs)
{
	(void)fs;
	return 0;
}
void fs_lockers_stop(struct fs *fs)
{
	(void)fs;
}
void fs_lock_release(struct fs *fs, struct fs_node *node, uint64_t owner)
{
	(void)fs;
	(void)node;
	(void)owner;
}
void fs_locks_free(struct fs_locks *locks)
{
	(void)locks;
}
void fs_lock_interrupt(struct fs *fs, uint64_t unique)
{
	(void)fs;
	(void)unique;
}
void fs_lock_hurry(struct fs *fs)
{
	(void)fs;
}
#define S(n)                            \
	int fs_op_##n(struct fs_req *r) \
	{                               \
		(void)r;                \
		return -ENOSYS;         \
	}
S(getlk) S(setlk) S(setlkw) S(interrupt)
