/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/shm.h"
#include "dev/fs/dax.h"

int fs_tails_init(struct fs_tails *t)
{
	size_t size = (size_t)FS_TAILS_MAX * FS_PAGE;
	void *p;

	t->pages = NULL;
	t->used = t->next = 0;
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

/* The file's page, with zeroes behind its end; bytes of it, or -1. */
static ssize_t load(const struct fs_tail *tail, uint8_t *page)
{
	size_t n = 0;

	while (n < FS_PAGE) {
		ssize_t got = pread(tail->fd, page + n, FS_PAGE - n,
				    (off_t)(tail->offset + n));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (!got)
			break;
		n += (size_t)got;
	}
	memset(page + n, 0, FS_PAGE - n);
	return (ssize_t)n;
}

int fs_tail_new(struct fs_tails *t, int fd, bool writable, uint64_t offset,
		uint64_t node)
{
	struct fs_tail *tail;

	if (t->used == FS_TAILS_MAX)
		return -ENOSPC;
	while (t->tail[t->next].used)
		t->next = (t->next + 1) % FS_TAILS_MAX;
	tail = &t->tail[t->next];
	*tail = (struct fs_tail){
		.writable = writable, .fd = fd, .offset = offset, .node = node
	};
	tail->base = malloc(FS_PAGE);
	if (!tail->base)
		return -ENOMEM;
	if (load(tail, tail->base) < 0) {
		free(tail->base);
		return -EIO;
	}
	memcpy(t->pages + (size_t)t->next * FS_PAGE, tail->base, FS_PAGE);
	tail->used = true;
	t->used++;
	return (int)t->next;
}

/* One run of bytes that the guest changed, as far as the file reaches. */
static void store(const struct fs_tail *tail, const uint8_t *page, size_t from,
		  size_t to, size_t end)
{
	if (to > end)
		to = end;
	while (from < to) {
		ssize_t put = pwrite(tail->fd, page + from, to - from,
				     (off_t)(tail->offset + from));

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return;
		from += (size_t)put;
	}
}

/* What the guest changed goes to the file, runs at a time. */
static void store_changes(struct fs_tail *tail, const uint8_t *guest,
			  uint8_t *file, size_t end)
{
	size_t i = 0, from;

	while (i < FS_PAGE) {
		if (guest[i] == tail->base[i]) {
			i++;
			continue;
		}
		from = i;
		while (i < FS_PAGE && guest[i] != tail->base[i])
			i++;
		store(tail, guest, from, i, end);
		memcpy(file + from, guest + from, i - from);
	}
}

void fs_tail_sync(struct fs_tails *t, uint32_t i)
{
	struct fs_tail *tail = &t->tail[i];
	uint8_t *page = t->pages + (size_t)i * FS_PAGE;
	uint8_t guest[FS_PAGE], file[FS_PAGE];
	ssize_t end = load(tail, file);

	if (end < 0)
		return;
	/* The guest writes while we look: once, into a copy. */
	moat_shm_copy_in(guest, page, FS_PAGE);
	if (tail->writable && memcmp(guest, tail->base, FS_PAGE))
		store_changes(tail, guest, file, (size_t)end);
	if (!memcmp(file, tail->base, FS_PAGE))
		return;
	for (size_t k = 0; k < FS_PAGE; k++)
		if (file[k] != guest[k])
			moat_shm_copy_out(page + k, file + k, 1);
	memcpy(tail->base, file, FS_PAGE);
}

void fs_tail_free(struct fs_tails *t, uint32_t i)
{
	struct fs_tail *tail = &t->tail[i];

	close(tail->fd);
	free(tail->base);
	tail->base = NULL;
	tail->used = false;
	t->used--;
	madvise(t->pages + (size_t)i * FS_PAGE, FS_PAGE, MADV_REMOVE);
}
