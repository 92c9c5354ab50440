/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What src/dev/fs/xattr.c promises: attributes of the very file, names and ids
 * as the guest is to see them, errors as Linux has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"
#include "dev/fs/xattrmap.h"

#define ACL "system.posix_acl_access"

struct world {
	struct fs_options opt;
	struct fs fs;
	struct fs_node node;
	struct fs_thread thread;
	struct fs_req req;
	char path[32];
	uint8_t args[FS_ARGS_MAX + 1], data[FS_ARGS_MAX], out[FS_ARGS_MAX];
};

static struct world *self; /* of the test that runs */

/* ---- what the rest of moat-fs would do ---- */

int fs_req_put(struct fs_req *r, const void *data, uint32_t len)
{
	if (len > sizeof(self->out) - r->out)
		return -ERANGE;
	memcpy(self->out + r->out, data, len);
	r->out += len;
	return 0;
}

const char *fs_req_name(const struct fs_req *r, unsigned int n)
{
	assert_int_equal(n, 0);
	return (const char *)r->thread->args + r->fixed;
}

int fs_statx(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH, FS_STATX_MASK, sx) ? -errno : 0;
}

struct fs_node *fs_node_get(struct fs *fs, uint64_t id)
{
	(void)fs;
	return id == 5 ? &self->node : NULL;
}

void fs_node_put(struct fs *fs, struct fs_node *node)
{
	(void)fs;
	assert_ptr_equal(node, &self->node);
}

const char *fs_fd_name(int fd, char buf[16])
{
	snprintf(buf, 16, "%d", fd);
	return buf;
}

/* ---- scene ---- */

static int make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	self = w;
	w->opt.xattr = true;
	w->fs = (struct fs){ .opt = &w->opt, .flags = FUSE_SETXATTR_EXT };
	w->thread = (struct fs_thread){
		.fs = &w->fs, .args = w->args, .data = w->data, .fsetid = true
	};
	strcpy(w->path, "/tmp/moat-xattr-XXXXXX");
	close(mkstemp(w->path));
	w->node.fd = open(w->path, O_PATH);
	assert_int_equal(chdir("/proc/self/fd"), 0);
	*state = w;
	return 0;
}

static int drop(void **state)
{
	struct world *w = *state;

	close(w->node.fd);
	unlink(w->path);
	fs_xattrmap_free(w->opt.xattr_rules);
	free(w);
	return 0;
}

static struct fs_req *prepare(struct world *w, const void *in, uint32_t size,
			      const char *name, const void *value, uint32_t len)
{
	uint32_t n = name ? (uint32_t)strlen(name) + 1 : 0;

	w->req = (struct fs_req){ .fs = &w->fs,
				  .thread = &w->thread,
				  .fixed = size,
				  .nargs = size + n + len };
	w->req.in.nodeid = 5;
	memset(w->args, 0xee, sizeof(w->args));
	memcpy(w->args, in, size);
	if (n)
		memcpy(w->args + size, name, n);
	if (len)
		memcpy(w->args + size + n, value, len);
	w->args[w->req.nargs] = 0;
	return &w->req;
}

static int set(struct world *w, const char *name, const void *value,
	       uint32_t len, uint32_t flags, uint32_t ext)
{
	struct fuse_setxattr_in in = { len, flags, ext, 0 };
	uint32_t size = w->fs.flags & FUSE_SETXATTR_EXT
				? sizeof(in)
				: FUSE_COMPAT_SETXATTR_IN_SIZE;

	return fs_op_setxattr(prepare(w, &in, size, name, value, len));
}

static int get(struct world *w, const char *name, uint32_t size)
{
	struct fuse_getxattr_in in = { size, 0 };

	return fs_op_getxattr(prepare(w, &in, sizeof(in), name, NULL, 0));
}

static int list(struct world *w, uint32_t size)
{
	struct fuse_getxattr_in in = { size, 0 };

	return fs_op_listxattr(prepare(w, &in, sizeof(in), NULL, NULL, 0));
}

static int take(struct world *w, const char *name)
{
	return fs_op_removexattr(prepare(w, "", 0, name, NULL, 0));
}

static uint32_t size_of_answer(struct world *w)
{
	struct fuse_getxattr_out out;

	assert_int_equal(w->req.out, sizeof(out));
	memcpy(&out, w->out, sizeof(out));
	return out.size;
}

static bool lists(struct world *w, const char *name)
{
	assert_int_equal(list(w, 65536), 0);
	for (uint32_t at = 0; at < w->req.out;
	     at += (uint32_t)strlen((char *)w->out + at) + 1)
		if (!strcmp((char *)w->out + at, name))
			return true;
	return false;
}

/* ---- tests ---- */

static void what_was_set_is_there_and_on_the_host(void **state)
{
	struct world *w = *state;
	char host[16];

	for (uint32_t old = 0; old < 2; old++) {
		w->fs.flags = old ? 0 : FUSE_SETXATTR_EXT;
		assert_int_equal(set(w, "user.a", "value", 5, 0, 0), 0);
		assert_int_equal(getxattr(w->path, "user.a", host, 16), 5);
		assert_memory_equal(host, "value", 5);
		assert_int_equal(get(w, "user.a", 0), 0);
		assert_int_equal(size_of_answer(w), 5);
		assert_int_equal(get(w, "user.a", 5), 0);
		assert_int_equal(w->req.out, 5);
		assert_memory_equal(w->out, "value", 5);
		assert_int_equal(get(w, "user.a", 4), -ERANGE);
		assert_true(lists(w, "user.a"));
		assert_int_equal(set(w, "user.a", "x", 1, XATTR_CREATE, 0),
				 -EEXIST);
		assert_int_equal(take(w, "user.a"), 0);
		assert_int_equal(take(w, "user.a"), -ENODATA);
		assert_int_equal(get(w, "user.a", 9), -ENODATA);
		assert_int_equal(set(w, "user.a", "x", 1, XATTR_REPLACE, 0),
				 -ENODATA);
	}
	assert_int_equal(set(w, "user.empty", "", 0, 0, 0), 0);
	assert_int_equal(get(w, "user.empty", 100), 0);
	assert_int_equal(w->req.out, 0);
	w->req.in.nodeid = 6;
	assert_int_equal(fs_op_removexattr(&w->req), -ESTALE);
}

static void lists_have_a_size(void **state)
{
	struct world *w = *state;
	uint32_t size;

	assert_int_equal(set(w, "user.a", "", 0, 0, 0), 0);
	assert_int_equal(list(w, 0), 0);
	size = size_of_answer(w);
	assert_int_equal(list(w, size - 1), -ERANGE);
	assert_int_equal(list(w, size), 0);
	assert_int_equal(w->req.out, size);
}

static void nonsense_is_refused(void **state)
{
	struct fuse_setxattr_in in = { .size = 6 };
	struct world *w = *state;
	char name[300];

	assert_int_equal(fs_op_setxattr(prepare(w, &in, sizeof(in), "user.a",
						"value", 5)),
			 -EINVAL);
	in.size = UINT32_MAX;
	assert_int_equal(fs_op_setxattr(prepare(w, &in, sizeof(in), "user.a",
						"value", 5)),
			 -EINVAL);
	assert_int_equal(set(w, "", "x", 1, 0, 0), -ERANGE);
	assert_int_equal(get(w, "", 9), -ERANGE);
	memset(name, 'a', sizeof(name));
	memcpy(name, "user.", 5);
	name[256] = 0;
	assert_int_equal(set(w, name, "x", 1, 0, 0), -ERANGE);
	name[255] = 0;
	assert_int_equal(set(w, name, "x", 1, 0, 0), 0);
	assert_int_equal(get(w, name, UINT32_MAX), 0);
	assert_int_equal(w->req.out, 1);
	assert_int_equal(set(w, "user.a", w->data, 65537, 0, 0), -E2BIG);
	assert_int_equal(set(w, "user.a", "x", 1, 0x80, 0), -EINVAL);
	assert_int_equal(set(w, "nothing.a", "x", 1, 0, 0), -EOPNOTSUPP);
}

static void without_attributes_linux_need_not_ask_again(void **state)
{
	struct world *w = *state;

	w->opt.xattr = false;
	assert_int_equal(set(w, "user.a", "x", 1, 0, 0), -ENOSYS);
	assert_int_equal(get(w, "user.a", 0), -ENOSYS);
	assert_int_equal(list(w, 0), -ENOSYS);
	assert_int_equal(take(w, "user.a"), -ENOSYS);
}

static void a_symbolic_link_is_meant_itself(void **state)
{
	struct world *w = *state;
	char link[40];

	snprintf(link, sizeof(link), "%s-link", w->path);
	assert_int_equal(set(w, "user.a", "x", 1, 0, 0), 0);
	close(w->node.fd);
	assert_int_equal(symlink(w->path, link), 0);
	w->node.fd = open(link, O_PATH | O_NOFOLLOW);
	assert_int_equal(unlink(link), 0);
	assert_int_equal(get(w, "user.a", 9), -ENODATA);
	assert_int_equal(set(w, "user.a", "x", 1, 0, 0), -EPERM);
	assert_false(lists(w, "user.a"));
}

/* user:1000:rw- in a list for a file of mode 0640. */
static uint32_t acl(uint8_t *at, uint32_t user)
{
	static const uint16_t entries[][2] = {
		{ 1, 6 }, { 2, 6 }, { 4, 4 }, { 16, 6 }, { 32, 0 }
	};
	uint32_t version = 2, id, len = 4;

	memcpy(at, &version, 4);
	for (uint32_t i = 0; i < 5; i++, len += 8) {
		id = entries[i][0] == 2 ? user : UINT32_MAX;
		memcpy(at + len, entries[i], 4);
		memcpy(at + len + 4, &id, 4);
	}
	return len;
}

static void access_lists_are_there_only_if_asked_for(void **state)
{
	struct world *w = *state;
	uint8_t value[64];
	uint32_t len = acl(value, 1000);

	assert_int_equal(set(w, ACL, value, len, 0, 0), -EOPNOTSUPP);
	assert_int_equal(get(w, ACL, 0), -EOPNOTSUPP);
	assert_int_equal(setxattr(w->path, ACL, value, len, 0), 0);
	assert_false(lists(w, ACL));
	w->opt.posix_acl = true;
	assert_true(lists(w, ACL));
	assert_int_equal(get(w, ACL, 64), 0);
	assert_memory_equal(w->out, value, len);
	value[0] = 9; /* a version that does not exist */
	assert_int_equal(set(w, ACL, value, len, 0, 0), -EOPNOTSUPP);
}

static void access_lists_name_the_users_that_they_mean(void **state)
{
	struct fs_ids *ids;
	struct world *w = *state;
	uint8_t guest[64], host[64], found[64];
	uint32_t len = acl(guest, 1000);

	acl(host, 5000);
	w->opt.posix_acl = true;
	ids = &w->opt.ids;
	assert_int_equal(fs_ids_parse("map:1000:5000:1", ids->uid, &ids->nuid),
			 0);
	assert_int_equal(fs_ids_parse("forbid-guest:7:1", ids->uid, &ids->nuid),
			 0);
	assert_int_equal(set(w, ACL, guest, len, 0, 0), 0);
	assert_int_equal(getxattr(w->path, ACL, found, sizeof(found)), len);
	assert_memory_equal(found, host, len);
	assert_int_equal(get(w, ACL, 64), 0);
	assert_memory_equal(w->out, guest, len);
	acl(guest, 7);
	assert_int_equal(set(w, ACL, guest, len, 0, 0), -EPERM);
	/* A list that ends within an entry is the kernel's to refuse. */
	assert_int_equal(set(w, ACL, guest, 11, 0, 0), -EINVAL);
}

static void the_set_group_id_bit_goes_if_the_guest_says_so(void **state)
{
	struct world *w = *state;
	uint8_t value[64];
	uint32_t len = acl(value, 1000);
	struct stat st;

	w->opt.posix_acl = true;
	for (uint32_t kill = 0; kill < 2; kill++) {
		assert_int_equal(chmod(w->path, 02640), 0);
		assert_int_equal(set(w, ACL, value, len, 0,
				     kill ? FUSE_SETXATTR_ACL_KILL_SGID : 0),
				 0);
		assert_int_equal(stat(w->path, &st), 0);
		assert_int_equal(st.st_mode & 07777, kill ? 0660 : 02660);
	}
}

static void rules_rename_and_hide(void **state)
{
	struct world *w = *state;
	const char *why;

	assert_false(fs_xattr_moves_capability(&w->fs));
	assert_int_equal(fs_xattrmap_parse(":bad:all:user.no:user.no: "
					   ":map::user.vm.:",
					   &w->opt.xattr_rules, &why),
			 0);
	assert_true(fs_xattr_moves_capability(&w->fs));
	assert_int_equal(set(w, "security.capability", "any", 3, 0, 0), 0);
	assert_int_equal(
		getxattr(w->path, "user.vm.security.capability", NULL, 0), 3);
	assert_int_equal(setxattr(w->path, "user.host", "x", 1, 0), 0);
	assert_int_equal(list(w, 0), 0);
	assert_int_equal(size_of_answer(w), sizeof("security.capability"));
	assert_true(lists(w, "security.capability"));
	assert_int_equal(w->req.out, sizeof("security.capability"));
	assert_int_equal(get(w, "user.no", 9), -ENODATA);
	assert_int_equal(set(w, "user.no", "x", 1, 0, 0), -EPERM);
	assert_int_equal(take(w, "user.no"), -EPERM);
	assert_int_equal(take(w, "security.capability"), 0);
	assert_int_equal(list(w, 9), 0);
	assert_int_equal(w->req.out, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_was_set_is_there_and_on_the_host),
		TEST(lists_have_a_size),
		TEST(nonsense_is_refused),
		TEST(without_attributes_linux_need_not_ask_again),
		TEST(a_symbolic_link_is_meant_itself),
		TEST(access_lists_are_there_only_if_asked_for),
		TEST(access_lists_name_the_users_that_they_mean),
		TEST(the_set_group_id_bit_goes_if_the_guest_says_so),
		TEST(rules_rename_and_hide),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
