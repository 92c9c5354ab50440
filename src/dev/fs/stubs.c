#include <errno.h>
#include <string.h>
#include "dev/fs/fs.h"
int fs_ids_parse(const char *arg, struct fs_id_map *maps, uint32_t *n)
{
	(void)arg;
	(void)maps;
	(void)n;
	return -EINVAL;
}
uint32_t fs_uid_to_guest(const struct fs *fs, uint32_t uid)
{
	(void)fs;
	return uid;
}
uint32_t fs_gid_to_guest(const struct fs *fs, uint32_t uid)
{
	(void)fs;
	return uid;
}
int fs_uid_to_host(const struct fs *fs, uint32_t g, uint32_t *uid)
{
	(void)fs;
	*uid = g;
	return 0;
}
int fs_gid_to_host(const struct fs *fs, uint32_t g, uint32_t *uid)
{
	(void)fs;
	*uid = g;
	return 0;
}
int fs_become(struct fs_req *r, uint32_t umask)
{
	(void)r;
	(void)umask;
	return 0;
}
void fs_become_self(struct fs_req *r)
{
	(void)r;
}
void fs_fsetid(struct fs_req *r, bool have)
{
	(void)r;
	(void)have;
}
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
int fs_dax_start(struct fs *fs)
{
	(void)fs;
	return 0;
}
void fs_dax_stop(struct fs *fs)
{
	(void)fs;
}
void fs_dax_reset(struct fs *fs)
{
	(void)fs;
}
#define S(n)                            \
	int fs_op_##n(struct fs_req *r) \
	{                               \
		(void)r;                \
		return -ENOSYS;         \
	}
S(setxattr)
S(getxattr)
S(listxattr) S(removexattr) S(getlk) S(setlk) S(setlkw) S(interrupt)
	S(setupmapping) S(removemapping)
