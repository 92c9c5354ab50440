/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/shm.h"
#include "dev/fs/dax.h"

#define NS 1000000000

int fs_tails_init(struct fs_tails *t)
{
	size_t size = (size_t)FS_TAILS_MAX * FS_PAGE;
	void *p;

	t->pages = NULL;
	t->used = t->next = t->long_pages = 0;
	t->tail = calloc(FS_TAILS_MAX, sizeof(*t->tail));
	t->fd = memfd_create("moat-tails", MFD_CLOEXEC);
	if (!t->tail)
		return -ENOMEM;
	if (t->fd < 0 || ftruncate(t->fd, (off_t)size))
		return -errno;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	t->pages = p;
	return 0;
}

void fs_tails_fini(struct fs_tails *t)
{
	if (t->pages)
		munmap(t->pages, (size_t)FS_TAILS_MAX * FS_PAGE);
	if (t->fd >= 0)
		close(t->fd);
	free(t->tail);
	*t = (struct fs_tails){ .fd = -1 };
}

/* ---- one that begins ---- */

static void enter(struct fs_tails *t, uint32_t i)
{
	struct fs_tail *tail = &t->tail[i];
	struct fs_node *node = tail->node;

	tail->prev = 0;
	tail->next = node->first_tail;
	if (tail->next)
		t->tail[tail->next - 1].prev = i + 1;
	node->first_tail = i + 1;
	__atomic_fetch_add(&node->tails, 1, __ATOMIC_SEQ_CST);
}

static void leave(struct fs_tails *t, struct fs_tail *tail)
{
	struct fs_node *node = tail->node;

	if (tail->prev)
		t->tail[tail->prev - 1].next = tail->next;
	else
		node->first_tail = tail->next;
	if (tail->next)
		t->tail[tail->next - 1].prev = tail->prev;
	__atomic_fetch_sub(&node->tails, 1, __ATOMIC_SEQ_CST);
}

static bool is_long(const struct fs_tail *tail)
{
	return tail->shown_fd >= 0;
}

/* A memfd of its own, and a place for it here. */
static int make_long(struct fs_tail *tail)
{
	size_t size = (size_t)tail->pages * FS_PAGE;
	void *p;

	tail->shown_fd = memfd_create("moat-copy", MFD_CLOEXEC);
	if (tail->shown_fd < 0 || ftruncate(tail->shown_fd, (off_t)size))
		return -errno;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, tail->shown_fd,
		 0);
	if (p == MAP_FAILED)
		return -errno;
	tail->shown = p;
	return 0;
}

static void drop_memory(struct fs_tails *t, struct fs_tail *tail)
{
	size_t size = (size_t)tail->pages * FS_PAGE;

	if (tail->base)
		munmap(tail->base, size);
	if (tail->base && is_long(tail))
		t->long_pages -= tail->pages;
	tail->base = NULL;
	if (is_long(tail) && tail->shown)
		munmap(tail->shown, size);
	if (is_long(tail))
		close(tail->shown_fd);
	else if (tail->shown)
		madvise(tail->shown, size, MADV_REMOVE);
	tail->shown = NULL;
}

static int make_memory(struct fs_tails *t, struct fs_tail *tail, uint32_t i)
{
	size_t size = (size_t)tail->pages * FS_PAGE;
	void *p;
	int ret;

	if (tail->pages == 1) {
		tail->shown = t->pages + (size_t)i * FS_PAGE;
	} else {
		ret = make_long(tail);
		if (ret)
			return ret;
	}
	if (!tail->writable)
		return 0;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	tail->base = p;
	if (is_long(tail))
		t->long_pages += tail->pages;
	return 0;
}

int fs_tail_new(struct fs_tails *t, int fd, bool writable, uint64_t offset,
		uint32_t pages, struct fs_node *node)
{
	struct fs_tail *tail;
	uint32_t i;
	int ret;

	if (t->used == FS_TAILS_MAX)
		return -ENOSPC;
	while (t->tail[t->next].used)
		t->next = (t->next + 1) % FS_TAILS_MAX;
	i = t->next;
	tail = &t->tail[i];
	*tail = (struct fs_tail){ .writable = writable,
				  .fd = fd,
				  .shown_fd = -1,
				  .offset = offset,
				  .pages = pages,
				  .node = node };
	ret = make_memory(t, tail, i);
	if (ret) {
		drop_memory(t, tail);
		return ret;
	}
	tail->used = true;
	t->used++;
	/* Counted before the file is read: see dax.c. */
	enter(t, i);
	ret = fs_tail_sync(t, i, true);
	if (!ret)
		return (int)i;
	tail->fd = -1; /* stays the caller's */
	leave(t, tail);
	tail->node = NULL;
	fs_tail_free(t, i);
	return ret;
}

int fs_tail_fd(const struct fs_tails *t, uint32_t i, uint64_t *offset)
{
	*offset = is_long(&t->tail[i]) ? 0 : (uint64_t)i * FS_PAGE;
	return is_long(&t->tail[i]) ? t->tail[i].shown_fd : t->fd;
}

/* ---- both sides ---- */

/* A page of the file, with zeroes behind its end; bytes of it, or -errno. */
static ssize_t load(const struct fs_tail *tail, uint64_t offset, uint8_t *page)
{
	size_t n = 0;

	while (n < FS_PAGE) {
		ssize_t got = pread(tail->fd, page + n, FS_PAGE - n,
				    (off_t)(offset + n));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			break;
		n += (size_t)got;
	}
	if (n < FS_PAGE)
		memset(page + n, 0, FS_PAGE - n);
	return (ssize_t)n;
}

static int put(const struct fs_tail *tail, const uint8_t *from, size_t len,
	       uint64_t offset)
{
	while (len) {
		ssize_t done = pwrite(tail->fd, from, len, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -EIO;
		from += done;
		len -= (size_t)done;
		offset += (uint64_t)done;
	}
	return 0;
}

/*
 * What the guest changed goes to the file, runs at a time, as far as the file
 * reaches (@end), and into @file, what is to be shown. Where the file can not
 * be written to, it still differs from @base, and is tried again.
 */
static int store_changes(const struct fs_tail *tail, uint64_t offset,
			 const uint8_t *guest, uint8_t *base, uint8_t *file,
			 size_t end)
{
	size_t i = 0, from;
	int ret = 0, error;

	while (i < end) {
		if (guest[i] == base[i]) {
			i++;
			continue;
		}
		from = i;
		while (i < end && guest[i] != base[i])
			i++;
		error = put(tail, guest + from, i - from, offset + from);
		if (error)
			ret = error;
		else
			memcpy(base + from, guest + from, i - from);
		memcpy(file + from, guest + from, i - from);
	}
	return ret;
}

static int sync_page(struct fs_tail *tail, uint32_t k, bool changed)
{
	uint64_t at = (uint64_t)k * FS_PAGE, offset = tail->offset + at;
	uint8_t *shown = tail->shown + at, guest[FS_PAGE], file[FS_PAGE];
	uint8_t *base = tail->base ? tail->base + at : NULL;
	ssize_t end;
	int ret = 0;

	/* The guest writes while we look: once, into a copy. */
	moat_shm_copy_in(guest, shown, FS_PAGE);
	if (!changed && (!base || !memcmp(guest, base, FS_PAGE)))
		return 0;
	end = load(tail, offset, file);
	if (end < 0)
		return (int)end;
	if (base && memcmp(guest, base, FS_PAGE))
		ret = store_changes(tail, offset, guest, base, file,
				    (size_t)end);
	for (size_t i = 0; i < FS_PAGE; i++) {
		/* What could not be stored is not the file's. */
		if (base && (i >= (size_t)end || guest[i] == base[i]))
			base[i] = file[i];
		if (file[i] != guest[i])
			moat_shm_copy_out(shown + i, file + i, 1);
	}
	return ret;
}

static int64_t ns_of(const struct statx_timestamp *t)
{
	return t->tv_sec * NS + t->tv_nsec;
}

/* Does it look changed? Within the clock's grain that can not be told. */
static bool is_changed(const struct fs_stamp *was, const struct fs_stamp *now)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return was->size != now->size || was->mtime != now->mtime ||
	       was->ctime != now->ctime ||
	       t.tv_sec * (int64_t)NS + t.tv_nsec - now->ctime < NS;
}

int fs_tail_sync(struct fs_tails *t, uint32_t i, bool thorough)
{
	struct fs_tail *tail = &t->tail[i];
	struct fs_stamp stamp;
	struct statx sx;
	uint64_t end;
	int ret, error = 0;

	if (tail->fd < 0)
		return 0;
	ret = fs_statx(tail->fd, &sx);
	if (ret)
		return ret;
	stamp = (struct fs_stamp){ sx.stx_size, ns_of(&sx.stx_mtime),
				   ns_of(&sx.stx_ctime) };
	thorough |= tail->pages == 1 || is_changed(&tail->stamp, &stamp);
	end = stamp.size > tail->offset ? stamp.size - tail->offset : 0;
	end = end / FS_PAGE + !!(end % FS_PAGE);
	if (tail->upto < end)
		tail->upto = end < tail->pages ? (uint32_t)end : tail->pages;
	for (uint32_t k = 0; k < tail->upto; k++) {
		ret = sync_page(tail, k, thorough);
		if (ret)
			error = ret;
	}
	if (error)
		tail->error = error;
	else
		tail->stamp = stamp;
	return error;
}

/* ---- one that ends ---- */

void fs_tail_mute(struct fs_tails *t, uint32_t i)
{
	struct fs_tail *tail = &t->tail[i];

	if (!tail->node)
		return;
	fs_tail_sync(t, i, true);
	leave(t, tail);
	tail->node = NULL;
	close(tail->fd);
	tail->fd = -1;
}

void fs_tail_free(struct fs_tails *t, uint32_t i)
{
	fs_tail_mute(t, i);
	drop_memory(t, &t->tail[i]);
	t->tail[i].used = false;
	t->used--;
}
