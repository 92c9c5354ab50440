/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <unistd.h>

#include "dev/fs/fs.h"

int fs_handle_new(struct fs *fs, struct fs_node *node, int fd, int flags,
		  uint64_t *id)
{
	struct fs_handle *h = fs_table_new(&fs->handles);

	if (!h) {
		close(fd);
		return -ENFILE;
	}
	h->node = node;
	h->fd = fd;
	h->flags = flags;
	h->slow = h->closed = false;
	h->dir_at = 0;
	pthread_mutex_init(&h->dir_lock, NULL);
	fs_node_hold(node);
	fs_table_publish(&h->slot);
	*id = fs_slot_id(&h->slot);
	return 0;
}

struct fs_handle *fs_handle_get(struct fs *fs, uint64_t id, uint64_t nodeid)
{
	struct fs_handle *h = fs_table_get(&fs->handles, id);

	if (!h || fs_slot_id(&h->node->slot) == nodeid)
		return h;
	fs_handle_put(fs, h);
	return NULL;
}

void fs_handle_put(struct fs *fs, struct fs_handle *h)
{
	if (!fs_table_put(&h->slot))
		return;
	pthread_mutex_destroy(&h->dir_lock);
	close(h->fd);
	fs_node_drop(fs, h->node);
	fs_table_free(&fs->handles, &h->slot);
}

/*
 * The guest's hold on it ends once: the item's "closed" mark is taken by
 * whoever comes first.
 */
static bool mark_closed(struct fs_handle *h)
{
	return !__atomic_exchange_n(&h->closed, true, __ATOMIC_ACQ_REL);
}

int fs_handle_close(struct fs *fs, uint64_t id, uint64_t nodeid)
{
	struct fs_handle *h = fs_handle_get(fs, id, nodeid);

	if (!h)
		return -EBADF;
	if (mark_closed(h))
		fs_handle_put(fs, h);
	fs_handle_put(fs, h);
	return 0;
}

void fs_handles_close_all(struct fs *fs)
{
	uint32_t n = __atomic_load_n(&fs->handles.n, __ATOMIC_ACQUIRE);

	for (uint32_t i = 1; i <= n; i++) {
		struct fs_handle *h = fs_table_at(&fs->handles, i);

		h = fs_table_get(&fs->handles, fs_slot_id(&h->slot));
		if (!h)
			continue;
		if (mark_closed(h))
			fs_handle_put(fs, h);
		fs_handle_put(fs, h);
	}
}
