/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages kept equal to a file's: random changes of both sides against a model in
 * which each byte belongs to whoever changed it last, or to the host.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dev/fs/dax.h"

#define PAGES 3u
#define BYTES ((size_t)PAGES * FS_PAGE)

int fs_statx(int fd, struct statx *sx)
{
	return statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, sx) ? -1 : 0;
}

struct world {
	struct fs_tails tails;
	struct fs_node node;
	int fd;
	uint32_t tail;
	uint8_t *guest; /* mapped as the guest has it */
	uint8_t model[BYTES];
	size_t size;
	unsigned int seed;
};

static void begin(struct world *w, size_t size, uint32_t pages, bool writable,
		  unsigned int seed)
{
	uint64_t offset;
	void *p;
	int fd, tail;

	memset(w, 0, sizeof(*w));
	w->seed = seed;
	w->size = size;
	for (size_t i = 0; i < size; i++)
		w->model[i] = (uint8_t)rand_r(&w->seed);
	w->fd = memfd_create("file", MFD_CLOEXEC);
	assert_int_equal(pwrite(w->fd, w->model, size, 0), size);
	assert_int_equal(fs_tails_init(&w->tails), 0);
	tail = fs_tail_new(&w->tails, dup(w->fd), writable, 0, pages, &w->node);
	assert_true(tail >= 0);
	w->tail = (uint32_t)tail;
	assert_int_equal(w->node.tails, 1);
	fd = fs_tail_fd(&w->tails, w->tail, &offset);
	p = mmap(NULL, pages * (size_t)FS_PAGE, PROT_READ | PROT_WRITE,
		 MAP_SHARED, fd, (off_t)offset);
	assert_true(p != MAP_FAILED);
	w->guest = p;
}

static void end(struct world *w, uint32_t pages)
{
	fs_tail_free(&w->tails, w->tail);
	assert_int_equal(w->node.tails, 0);
	assert_int_equal(w->node.first_tail, 0);
	assert_int_equal(w->tails.used, 0);
	assert_int_equal(w->tails.long_pages, 0);
	munmap(w->guest, pages * (size_t)FS_PAGE);
	fs_tails_fini(&w->tails);
	close(w->fd);
}

static void same(struct world *w, uint32_t pages)
{
	static const uint8_t zeroes[BYTES];
	uint8_t file[BYTES];
	struct stat st;

	assert_int_equal(fstat(w->fd, &st), 0);
	assert_int_equal(st.st_size, w->size);
	assert_int_equal(pread(w->fd, file, BYTES, 0), w->size);
	assert_memory_equal(file, w->model, w->size);
	assert_memory_equal(w->guest, w->model, w->size);
	assert_memory_equal(w->guest + w->size, zeroes,
			    pages * (size_t)FS_PAGE - w->size);
}

/* Some bytes; the other side's are left alone by who is the second. */
static void change(struct world *w, bool host, uint8_t *mine,
		   const uint8_t *theirs)
{
	for (int n = rand_r(&w->seed) % 20; n; n--) {
		size_t at = (size_t)rand_r(&w->seed) % w->size;
		uint8_t byte = (uint8_t)rand_r(&w->seed);

		if (theirs && theirs[at])
			continue;
		mine[at] = 1;
		w->model[at] = byte;
		if (host)
			assert_int_equal(pwrite(w->fd, &byte, 1, (off_t)at), 1);
		else
			w->guest[at] = byte;
	}
}

static void random_changes(uint32_t pages)
{
	struct world w;

	for (unsigned int seed = 1; seed <= 20; seed++) {
		begin(&w, (size_t)pages * FS_PAGE - 99 - seed, pages, true,
		      seed);
		for (int round = 0; round < 50; round++) {
			uint8_t guests[BYTES] = { 0 }, hosts[BYTES] = { 0 };

			change(&w, false, guests, NULL);
			change(&w, true, hosts, guests);
			assert_int_equal(fs_tail_sync(&w.tails, w.tail, false),
					 0);
			same(&w, pages);
		}
		end(&w, pages);
	}
}

static void test_both_sides_changes_are_merged(void **state)
{
	(void)state;
	random_changes(1);
	random_changes(PAGES);
}

static void test_what_is_behind_the_end_is_nobodys(void **state)
{
	struct world w;

	(void)state;
	begin(&w, 100, 1, true, 1);
	memset(w.guest + 90, 7, 100);
	memset(w.model + 90, 7, 10);
	fs_tail_sync(&w.tails, w.tail, false);
	same(&w, 1);
	/* Shorter, then longer: zeroes, though both had bytes there. */
	assert_int_equal(ftruncate(w.fd, 50), 0);
	fs_tail_sync(&w.tails, w.tail, false);
	memset(w.guest + 60, 9, 5);
	assert_int_equal(ftruncate(w.fd, 200), 0);
	memset(w.model + 50, 0, 150);
	/* Written after it was longer, for all that is known. */
	memset(w.model + 60, 9, 5);
	w.size = 200;
	fs_tail_sync(&w.tails, w.tail, false);
	same(&w, 1);
	end(&w, 1);
}

static void test_who_may_only_read_changes_nothing(void **state)
{
	struct world w;

	(void)state;
	for (uint32_t pages = 1; pages <= PAGES; pages += PAGES - 1) {
		begin(&w, pages * (size_t)FS_PAGE - 5, pages, false, 2);
		memset(w.guest, 5, FS_PAGE);
		fs_tail_sync(&w.tails, w.tail, true);
		same(&w, pages);
		end(&w, pages);
	}
}

static void test_a_muted_one_is_left_alone(void **state)
{
	struct world w;

	(void)state;
	begin(&w, 100, 1, true, 3);
	w.guest[5] = w.model[5] = 42;
	fs_tail_mute(&w.tails, w.tail);
	same(&w, 1);
	assert_int_equal(w.node.tails, 0);
	w.guest[5] = 43;
	assert_int_equal(fs_tail_sync(&w.tails, w.tail, true), 0);
	w.guest[5] = 42;
	same(&w, 1);
	end(&w, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_sides_changes_are_merged),
		cmocka_unit_test(test_what_is_behind_the_end_is_nobodys),
		cmocka_unit_test(test_who_may_only_read_changes_nothing),
		cmocka_unit_test(test_a_muted_one_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
