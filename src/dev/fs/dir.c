/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READDIR and READDIRPLUS. A place in a directory is the offset that the host's
 * file system gave; the guest may come back to any.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dev/fs/fs.h"
#include "dev/fs/handlers.h"

/* getdents64(2)'s. */
struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/*
 * Most names have up to 255 bytes, but not all: FAT's have as many characters,
 * and a FUSE file system that somebody mounts below the root what it likes.
 * Linux takes no longer ones from us.
 */
#define NAME_MOST 1024u
#define ENTRY_MAX (FUSE_NAME_OFFSET + NAME_MOST) /* in an answer */
#define ENTRY_USUAL 288u /* the host's, with a usual name ... */
#define ENTRY_LONG 8192u /* ... and with any */
/*
 * An answer's entry with attributes is at most so many times as large as the
 * host's: what is read then fits, and is not read again.
 */
#define PLUS_RATIO 6u

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* What is above the root is nobody's business, not even by its number. */
static uint64_t ino_of(const struct fs *fs, const struct fs_handle *h,
		       const struct dirent64 *d)
{
	return h->node == fs->root && is_dots(d->name) ? h->node->ino : d->ino;
}

/* At the beginning of @buf is its entry, at the end its name. */
static uint32_t make_entry(uint8_t *buf, const struct dirent64 *d, uint64_t ino)
{
	struct fuse_dirent e = {
		.ino = ino,
		.off = (uint64_t)d->off,
		.namelen = (uint32_t)strlen(d->name),
		.type = d->type,
	};
	uint32_t len = (uint32_t)FUSE_DIRENT_SIZE(&e);

	memset(buf + len - 8, 0, 8);
	memcpy(buf, &e, FUSE_NAME_OFFSET);
	memcpy(buf + FUSE_NAME_OFFSET, d->name, e.namelen);
	return len;
}

static int put_entry(struct fs_req *r, struct fs_handle *h,
		     const struct dirent64 *d, uint64_t room, bool plus)
{
	struct fuse_entry_out out = { 0 };
	uint8_t buf[sizeof(out) + ENTRY_MAX];
	uint32_t head = plus ? sizeof(out) : 0;
	uint64_t ino = ino_of(r->fs, h, d);
	uint32_t len;

	/* It could not be told; others can. */
	if (strlen(d->name) > NAME_MOST)
		return 0;
	len = head + make_entry(buf + head, d, ino);
	if (len > room)
		return -ERANGE;
	/* What can not be looked up is still a name. */
	if (plus && (is_dots(d->name) ||
		     fs_lookup(r->fs, h->node, d->name, d->ino, &out))) {
		out = (struct fuse_entry_out){ 0 };
		out.attr.ino = ino;
		out.attr.mode = (uint32_t)d->type << 12;
	}
	if (plus)
		memcpy(buf, &out, sizeof(out));
	return fs_req_put(r, buf, len);
}

/* Where the request wants to read from; then as many bytes as will fit. */
static ssize_t read_entries(struct fs_req *r, struct fs_handle *h, uint64_t at,
			    uint64_t room, bool plus)
{
	uint64_t want = plus ? room / PLUS_RATIO : room;
	long n;

	if (want < ENTRY_USUAL)
		want = ENTRY_USUAL;
	if (want > FS_ARGS_MAX)
		want = FS_ARGS_MAX;
	if (h->dir_at != at && lseek(h->fd, (off_t)at, SEEK_SET) < 0)
		return -errno;
	h->dir_at = at;
	n = syscall(SYS_getdents64, h->fd, r->thread->data, (size_t)want);
	if (n < 0 && errno == EINVAL && want < ENTRY_LONG)
		n = syscall(SYS_getdents64, h->fd, r->thread->data, ENTRY_LONG);
	return n < 0 ? -errno : n;
}

/* 1 to go on, 0 at the end, -ERANGE if the answer is full. */
static int put_some(struct fs_req *r, struct fs_handle *h, uint64_t *at,
		    uint64_t size, bool plus)
{
	ssize_t n = read_entries(r, h, *at, size - r->out, plus);
	const uint8_t *p = r->thread->data, *end = p + n;
	int ret = 0;

	if (n <= 0)
		return (int)n;
	while (p < end) {
		const struct dirent64 *d = (const void *)p;

		h->dir_at = (uint64_t)d->off;
		if (!ret)
			ret = put_entry(r, h, d, size - r->out, plus);
		if (!ret)
			*at = (uint64_t)d->off;
		p += d->reclen;
	}
	return ret ? ret : 1;
}

static int read_dir(struct fs_req *r, bool plus)
{
	struct fuse_read_in in;
	uint64_t room = fs_req_room(r), size, at;
	struct fs_handle *h;
	int ret;

	memcpy(&in, fs_req_args(r), sizeof(in));
	h = fs_handle_get(r->fs, in.fh, r->in.nodeid);
	if (!h)
		return -EBADF;
	size = in.size < room ? in.size : room;
	at = in.offset;
	ret = h->node->type == S_IFDIR ? fs_node_pin(r->fs, h->node) : -ENOTDIR;
	if (!ret) {
		pthread_mutex_lock(&h->dir_lock);
		do
			ret = put_some(r, h, &at, size, plus);
		while (ret == 1);
		pthread_mutex_unlock(&h->dir_lock);
		fs_node_unpin(r->fs, h->node);
	}
	fs_handle_put(r->fs, h);
	/* An answer that is full is one; an empty one would be the end. */
	if (ret < 0 && r->out)
		return 0;
	return ret == -ERANGE ? -EINVAL : ret;
}

int fs_op_readdir(struct fs_req *r)
{
	return read_dir(r, false);
}

int fs_op_readdirplus(struct fs_req *r)
{
	return read_dir(r, true);
}
