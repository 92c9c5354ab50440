/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The DAX window (virtio 1.4, 5.11.6.4): files, mapped where the guest asks.
 *
 *     window   0 ....[ file a, 0 to 2 MiB )....[ file b, 6 MiB to 8 MiB )....
 * size
 *
 * A driver may map over what is mapped, and unmap any range. vhost-user can do
 * neither: there a mapping goes as a whole, and nothing is laid over it. So
 * what is to go is cut out here: a range that sticks out is unmapped, and what
 * sticks out mapped again.
 *
 * While that happens there is nothing at these addresses, and a processor of
 * the guest that looks would see no file. The case that Linux makes, a range
 * that it has for reading and now wants for writing too, therefore is none:
 * what can be written to is mapped so at once. Programs are left out, as the
 * host could not run them meanwhile (ETXTBSY).
 *
 * Requests ask a node's counts (ranges, tails) without the lock. Whoever makes
 * a range or a tail counts it first and looks at the file then; a request
 * changes the file first: one of both sees what the other did.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/fs/dax.h"
#include "dev/fs/handlers.h"

/* ---- ranges ---- */

/* One range more. Until that is covered, all look at the file themselves. */
static uint64_t count(struct fs_node *node)
{
	uint64_t shown = __atomic_exchange_n(&node->shown, 0, __ATOMIC_SEQ_CST);

	return __atomic_fetch_add(&node->ranges, 1, __ATOMIC_SEQ_CST)
		       ? shown
		       : UINT64_MAX;
}

/* Its range is no more. */
static void let_go(struct fs_dax *d, struct fs_node *node)
{
	__atomic_fetch_sub(&node->ranges, 1, __ATOMIC_SEQ_CST);
	fs_node_drop(d->fs, node);
}

/* What can be written to, by whom: see above. */
static void choose_writable(struct fs_dax *d, struct fs_range *r, mode_t mode)
{
	int fd;

	if (r->writable || d->fs->opt->read_only || mode & 0111)
		return;
	r->writable = true;
	fd = fs_range_open(d->fs, r);
	r->writable = fd >= 0 || fd == -EAGAIN;
	if (fd >= 0)
		close(fd);
}

/* The node is held; what begins is counted, but not in the table. */
static int begin(struct fs_dax *d, struct fs_range *r)
{
	uint64_t others = count(r->node);
	struct statx sx;
	int ret = fs_orphans_clear(d, r->at, r->len);

	if (!ret)
		ret = fs_range_stat(d->fs, r, &sx);
	if (ret)
		return ret;
	choose_writable(d, r, sx.stx_mode);
	ret = fs_range_cover(d, r, sx.stx_size);
	if (!ret)
		__atomic_store_n(&r->node->shown,
				 sx.stx_size < others ? sx.stx_size : others,
				 __ATOMIC_SEQ_CST);
	return ret;
}

/*
 * What is left of @was from @from on, up to @to, is mapped again: there is
 * room. The guest counts on it, so that it is tried until it is there.
 */
static void restore(struct fs_dax *d, const struct fs_range *was, uint64_t from,
		    uint64_t to)
{
	struct fs_range r = *was;
	int ret;

	if (from >= to)
		return;
	r.at = from;
	r.len = to - from;
	r.offset += from - was->at;
	r.covered = 0;
	r.pieces = 0;
	fs_node_hold(r.node);
	ret = begin(d, &r);
	fs_range_insert(d, &r);
	if (!ret)
		return;
	d->behind = true;
	pthread_cond_signal(&d->wake);
	moat_device_log(d->fs->log, MOAT_DEVICE_ERROR,
			"window: %llu bytes at %llu were to stay mapped and "
			"are not now: %s; the guest sees nothing there",
			(unsigned long long)r.len, (unsigned long long)r.at,
			strerror(-ret));
}

/* Nothing is mapped in [at, at + len) any more. */
static int cut_out(struct fs_dax *d, uint64_t at, uint64_t len)
{
	struct fs_range was;
	uint32_t i;
	int ret = fs_orphans_clear(d, at, len);

	while (!ret && (i = fs_range_after(d, at)) < d->nranges &&
	       d->ranges[i].at < at + len) {
		/* One that goes may become two. */
		ret = fs_ranges_room(d, 2);
		if (!ret)
			ret = fs_range_uncover(d, &d->ranges[i]);
		if (ret)
			return ret;
		fs_range_remove(d, i, &was);
		restore(d, &was, was.at, at);
		restore(d, &was, at + len, was.at + was.len);
		let_go(d, was.node);
	}
	/* Where that fails for another reason, mapping over it says so. */
	if (!ret && fs_former_clear(d, at, len) == -EAGAIN)
		ret = -EAGAIN;
	return ret;
}

/* It is mapped so already; then only as far as the file reaches now. */
static struct fs_range *find_same(struct fs_dax *d, const struct fs_range *r)
{
	uint32_t i = fs_range_after(d, r->at);
	struct fs_range *have;

	if (i == d->nranges)
		return NULL;
	have = &d->ranges[i];
	if (have->node == r->node && have->at <= r->at &&
	    have->at + have->len >= r->at + r->len &&
	    have->offset + (r->at - have->at) == r->offset &&
	    (have->writable || !r->writable))
		return have;
	return NULL;
}

/* All of them, also behind one that has to wait. */
int fs_dax_show(struct fs_dax *d, struct fs_node *node, uint64_t size)
{
	bool all = true;

	for (uint32_t i = 0; i < d->nranges; i++) {
		int ret = 0;

		if (d->ranges[i].node == node)
			ret = fs_range_cover(d, &d->ranges[i], size);
		if (ret && ret != -EAGAIN)
			return ret;
		all &= !ret;
	}
	if (!all)
		return -EAGAIN;
	__atomic_store_n(&node->shown, size, __ATOMIC_SEQ_CST);
	return 0;
}

void fs_dax_expect(struct fs_node *node, uint64_t size)
{
	if (__atomic_load_n(&node->ranges, __ATOMIC_SEQ_CST) &&
	    size < __atomic_load_n(&node->shown, __ATOMIC_SEQ_CST))
		__atomic_store_n(&node->shown, size, __ATOMIC_SEQ_CST);
}

/* The error that no request was told yet, if it is to be told. */
static int sync_node(struct fs_dax *d, const struct fs_node *node, bool tell)
{
	int ret = 0;

	for (uint32_t i = node->first_tail; i; i = d->tails.tail[i - 1].next) {
		struct fs_tail *t = &d->tails.tail[i - 1];

		fs_tail_sync(&d->tails, i - 1, false);
		if (tell && t->error && !ret)
			ret = t->error;
		if (tell)
			t->error = 0;
	}
	return ret;
}

static int lock_and_sync(struct fs_dax *d, const struct fs_node *node,
			 bool tell)
{
	int ret;

	pthread_mutex_lock(&d->lock);
	ret = sync_node(d, node, tell);
	pthread_mutex_unlock(&d->lock);
	return ret;
}

int fs_dax_cover(struct fs *fs, struct fs_node *node, uint64_t size)
{
	struct fs_dax *d = fs->dax;
	int ret;

	if (!__atomic_load_n(&node->ranges, __ATOMIC_SEQ_CST))
		return 0;
	fs_dax_expect(node, size);
	if (size <= __atomic_load_n(&node->shown, __ATOMIC_SEQ_CST))
		return 0;
	pthread_mutex_lock(&d->lock);
	ret = fs_dax_show(d, node, size);
	/* Where there is a page already, what is new of it is in it. */
	sync_node(d, node, false);
	/* That is left to the syncer. */
	if (ret == -EAGAIN) {
		ret = 0;
		d->behind = true;
		pthread_cond_signal(&d->wake);
	}
	pthread_mutex_unlock(&d->lock);
	return ret;
}

/* The guest is told no size: what it takes to be shown does not become less. */
int fs_dax_opened(struct fs *fs, struct fs_node *node, int fd)
{
	struct statx sx;

	if (!__atomic_load_n(&node->ranges, __ATOMIC_SEQ_CST) ||
	    fs_statx(fd, &sx) ||
	    sx.stx_size <= __atomic_load_n(&node->shown, __ATOMIC_SEQ_CST))
		return 0;
	return fs_dax_cover(fs, node, sx.stx_size);
}

void fs_dax_sync(struct fs *fs, const struct fs_node *node)
{
	if (__atomic_load_n(&node->tails, __ATOMIC_SEQ_CST))
		lock_and_sync(fs->dax, node, false);
}

int fs_dax_flush(struct fs *fs, const struct fs_node *node)
{
	return __atomic_load_n(&node->tails, __ATOMIC_SEQ_CST)
		       ? lock_and_sync(fs->dax, node, true)
		       : 0;
}

/* ---- requests ---- */

static bool in_window(const struct fs *fs, uint64_t at, uint64_t len)
{
	return len && !((at | len) & FS_PAGE_MASK) &&
	       len <= fs->opt->dax_window && at <= fs->opt->dax_window - len;
}

static int set_up(struct fs_dax *d, struct fs_range *r)
{
	struct fs_range *have = find_same(d, r);
	struct statx sx;
	int ret;

	if (have) {
		ret = fs_range_stat(d->fs, r, &sx);
		return ret ? ret : fs_range_cover(d, have, sx.stx_size);
	}
	ret = cut_out(d, r->at, r->len);
	if (!ret)
		ret = fs_ranges_room(d, 1);
	if (ret)
		return ret;
	fs_node_hold(r->node);
	ret = begin(d, r);
	if (!ret) {
		fs_range_insert(d, r);
		pthread_cond_signal(&d->wake);
		return 0;
	}
	fs_range_abandon(d, r, true);
	let_go(d, r->node);
	return ret;
}

int fs_op_setupmapping(struct fs_req *r)
{
	const struct fuse_setupmapping_in *in = fs_req_args(r);
	uint64_t known =
		FUSE_SETUPMAPPING_FLAG_READ | FUSE_SETUPMAPPING_FLAG_WRITE;
	struct fs_dax *d = r->fs->dax;
	struct fs_range range = {
		.at = in->moffset,
		.len = in->len,
		.offset = in->foffset,
		.writable = in->flags & FUSE_SETUPMAPPING_FLAG_WRITE,
	};
	int ret = -EINVAL;

	if (!r->fs->opt->dax_window)
		return -ENOSYS;
	if (!in_window(r->fs, range.at, range.len) ||
	    range.offset & FS_PAGE_MASK ||
	    range.offset > (uint64_t)INT64_MAX - range.len || !in->flags ||
	    in->flags & ~known)
		return -EINVAL;
	if (range.writable && r->fs->opt->read_only)
		return -EROFS;
	range.node = fs_node_get(r->fs, r->in.nodeid);
	if (!range.node)
		return -ESTALE;
	if (range.node->type == S_IFREG) {
		pthread_mutex_lock(&d->lock);
		ret = set_up(d, &range);
		pthread_mutex_unlock(&d->lock);
	}
	fs_node_put(r->fs, range.node);
	return ret;
}

int fs_op_removemapping(struct fs_req *r)
{
	const struct fuse_removemapping_in *in = fs_req_args(r);
	const uint8_t *p = r->thread->args + sizeof(*in);
	struct fuse_removemapping_one one;
	uint64_t n = (r->nargs - sizeof(*in)) / sizeof(one);
	struct fs_dax *d = r->fs->dax;
	int ret = 0;

	if (!r->fs->opt->dax_window)
		return -ENOSYS;
	if (!in->count || in->count > n)
		return -EINVAL;
	for (uint32_t i = 0; !ret && i < in->count; i++) {
		memcpy(&one, p + i * sizeof(one), sizeof(one));
		if (!in_window(r->fs, one.moffset, one.len))
			return -EINVAL;
		pthread_mutex_lock(&d->lock);
		ret = cut_out(d, one.moffset, one.len);
		pthread_mutex_unlock(&d->lock);
	}
	return ret;
}

/* ---- all at once ---- */

/* The guest is done with it. */
void fs_dax_clear(struct fs *fs)
{
	struct fs_dax *d = fs->dax;
	struct fs_range was;
	bool ask = true;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	while (d->nranges) {
		fs_range_remove(d, d->nranges - 1, &was);
		/* Who does not answer is not asked for each. */
		ask = !fs_range_abandon(d, &was, ask);
		let_go(d, was.node);
	}
	d->behind = false;
	if (ask && !fs_former_clear(d, 0, d->fs->opt->dax_window))
		d->former = false;
	pthread_mutex_unlock(&d->lock);
}

void fs_dax_succeed(struct fs *fs)
{
	struct fs_dax *d = fs->dax;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->former = true;
	pthread_mutex_unlock(&d->lock);
}

/* The front-end is gone, and with it all that it had mapped. */
void fs_dax_reset(struct fs *fs)
{
	struct fs_dax *d = fs->dax;
	struct fs_range was;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	fs_pieces_drop(d);
	while (d->nranges) {
		fs_range_remove(d, d->nranges - 1, &was);
		let_go(d, was.node);
	}
	d->copies = d->behind = d->former = false;
	pthread_mutex_unlock(&d->lock);
}
