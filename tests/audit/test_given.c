/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools that no test can make on every machine: dma-bufs of udmabuf. What the
 * scan would find of them is written down here; this process is the guard,
 * so that the second look finds a descriptor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
/* the four above are cmocka's */
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "audit/audit.h"
#include "audit/pools.h"

#define MIB (1ull << 20)

enum { RAM, POOL, NOBJS };
enum { VMM, GUARD, BACKEND, THIEF, NPROCS };

struct world {
	struct object objs[NOBJS];
	struct process procs[NPROCS];
	struct reach reach[NPROCS][NOBJS];
	struct vm vm;
	struct audit a;
	int fd;
};

static char args[] = "moat\0guard\0--pool=0x40000000+2M\0";

static void holds(struct world *w, int proc, int obj)
{
	struct process *p = &w->procs[proc];

	p->reach[p->nreach++] =
		(struct reach){ .obj = (uint32_t)obj, .fd_w = true, .nfds = 1 };
}

static int setup(void **state)
{
	static struct world w;
	struct stat st;

	w = (struct world){ .fd = memfd_create("stand-in", MFD_CLOEXEC) };
	assert_int_equal(fstat(w.fd, &st), 0);
	w.objs[RAM] = (struct object){ .kind = OBJ_MEMFD,
				       .class = CLASS_RAM,
				       .seals = -1,
				       .size = 8 * MIB };
	w.objs[POOL] = (struct object){ .dev = st.st_dev,
					.ino = st.st_ino,
					.kind = OBJ_DMABUF,
					.seals = -1,
					.size = 2 * MIB };
	for (int i = 0; i < NPROCS; i++)
		w.procs[i] = (struct process){ .pid = 0x7ffffff0 + i,
					       .vm = i == VMM ? 0 : -1,
					       .reach = w.reach[i] };
	w.procs[GUARD].pid = getpid();
	w.procs[GUARD].guard = "it is one";
	w.procs[GUARD].args = args;
	w.procs[GUARD].args_len = sizeof(args) - 1;
	holds(&w, VMM, RAM);
	holds(&w, GUARD, RAM);
	w.vm.members = calloc(1, sizeof(uint32_t));
	w.vm.objs = calloc(1, sizeof(uint32_t));
	w.vm.nmembers = w.vm.nobjs = 1;
	w.a = (struct audit){ .objs = w.objs,
			      .nobjs = NOBJS,
			      .procs = w.procs,
			      .nprocs = NPROCS,
			      .vms = &w.vm,
			      .nvms = 1 };
	*state = &w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	close(w->fd);
	free(w->vm.members);
	free(w->vm.objs);
	for (int i = 0; i < NOBJS; i++) {
		free(w->objs[i].givers);
		free(w->objs[i].strangers);
	}
	return 0;
}

static void assert_pool(struct world *w, bool given)
{
	assert_int_equal(pools_find(&w->a), 0);
	assert_int_equal(w->objs[POOL].class, given ? CLASS_POOL : CLASS_OTHER);
	assert_int_equal(w->objs[POOL].ngivers, given ? 1 : 0);
	assert_int_equal(w->vm.nobjs, given ? 2 : 1);
	assert_int_equal(w->vm.objs[0], RAM);
	assert_int_equal(w->objs[RAM].class, CLASS_RAM);
}

static void a_dmabuf_that_a_guard_holds_is_a_pool(void **state)
{
	struct world *w = *state;

	holds(w, GUARD, POOL);
	holds(w, BACKEND, POOL);
	assert_pool(w, true);
	assert_int_equal(w->objs[POOL].nstrangers, 0);
}

static void a_dmabuf_of_two_backends_has_strangers(void **state)
{
	struct world *w = *state;

	holds(w, GUARD, POOL);
	holds(w, BACKEND, POOL);
	holds(w, THIEF, POOL);
	assert_pool(w, true);
	assert_int_equal(w->objs[POOL].nstrangers, 2);
}

static void a_dmabuf_of_a_devices_memory_is_no_pool(void **state)
{
	struct world *w = *state;

	w->objs[POOL].device = true;
	holds(w, GUARD, POOL);
	assert_pool(w, false);
}

static void a_dmabuf_larger_than_the_guard_was_told_is_no_pool(void **state)
{
	struct world *w = *state;

	w->objs[POOL].size++;
	holds(w, GUARD, POOL);
	assert_pool(w, false);
}

static void what_a_guard_got_after_the_first_look_is_no_pool(void **state)
{
	struct world *w = *state;

	holds(w, GUARD, POOL);
	w->reach[GUARD][1].nfds = 0;
	assert_pool(w, false);
}

static void what_a_guard_closed_before_the_second_is_no_pool(void **state)
{
	struct world *w = *state;

	holds(w, GUARD, POOL);
	close(w->fd);
	w->fd = -1;
	assert_pool(w, false);
}

static void a_guard_of_no_memory_of_this_vm_gives_it_nothing(void **state)
{
	struct world *w = *state;

	w->procs[GUARD].nreach = 0;
	holds(w, GUARD, POOL);
	assert_pool(w, false);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_dmabuf_that_a_guard_holds_is_a_pool),
		CASE(a_dmabuf_of_two_backends_has_strangers),
		CASE(a_dmabuf_of_a_devices_memory_is_no_pool),
		CASE(a_dmabuf_larger_than_the_guard_was_told_is_no_pool),
		CASE(what_a_guard_got_after_the_first_look_is_no_pool),
		CASE(what_a_guard_closed_before_the_second_is_no_pool),
		CASE(a_guard_of_no_memory_of_this_vm_gives_it_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
