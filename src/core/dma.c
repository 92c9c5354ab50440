/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "core/dma.h"
#include "core/shm.h"

/* moat_seg.tag while a request is being laid out */
enum { BY_REF, IN_CELL, IN_RUN };

static uint64_t slots_to_bytes(uint32_t slots)
{
	return (uint64_t)slots << MOAT_SLOT_SHIFT;
}

static uint64_t bytes_to_slots(uint64_t bytes)
{
	return (bytes + MOAT_SLOT_SIZE - 1) >> MOAT_SLOT_SHIFT;
}

int moat_dma_queue_init(struct moat_dma *dma, struct moat_dma_queue *q,
			uint32_t num, struct moat_dma_chunk *chunks)
{
	q->chunks = chunks;
	q->nchunks = q->chunks_left = moat_dma_chunks(num);
	q->chunk_free = MOAT_DMA_NO_CHUNK;
	q->chunk_fresh = 0;
	q->bytes_bounced = q->bytes_shared = 0;
	return moat_pool_carve(
		dma->pool,
		(uint32_t)bytes_to_slots((uint64_t)num * MOAT_DMA_CELL), 1,
		&q->cells);
}

void moat_dma_queue_fini(struct moat_dma *dma, struct moat_dma_queue *q)
{
	moat_pool_uncarve(dma->pool, &q->cells);
	moat_share_close(dma->pool, &q->share);
}

void *moat_dma_alloc_coherent(struct moat_dma *dma, uint64_t bytes,
			      uint64_t *dev_addr, struct moat_run *run)
{
	uint64_t slots = bytes_to_slots(bytes), off;

	if (slots > dma->pool->slots ||
	    moat_pool_carve(dma->pool, (uint32_t)slots, 1, run))
		return NULL;
	off = slots_to_bytes(run->first);
	*dev_addr = dma->pool_addr + off;
	__builtin_memset(dma->pool_host + off, 0, slots_to_bytes(run->n));
	return dma->pool_host + off;
}

void moat_dma_free_coherent(struct moat_dma *dma, struct moat_run *run)
{
	moat_pool_uncarve(dma->pool, run);
}

static bool in_share_set(const struct moat_dma *dma, const struct moat_seg *s)
{
	for (uint32_t i = 0; i < dma->nshared; i++) {
		const struct moat_dma_range *r = &dma->shared[i];

		if (s->addr - r->addr < r->size &&
		    s->len <= r->size - (s->addr - r->addr))
			return true;
	}
	return false;
}

struct layout {
	uint64_t cell; /* bytes of the cell used */
	uint64_t run;  /* bytes of the run used */
};

/*
 * The next offset in the run that is congruent to the guest address: modulo a
 * page for whole pages, a sector for less, 16 for small change.
 */
static uint64_t place(uint64_t at, uint64_t addr, uint32_t len)
{
	uint64_t align = len >= MOAT_SLOT_SIZE ? MOAT_SLOT_SIZE
			 : len >= 512	       ? 512
					       : 16;

	return at + ((addr - at) & (align - 1));
}

/* Cells are packed at multiples of 16: indirect tables need no more. */
static bool place_in_cell(struct layout *l, uint64_t len, uint64_t *off)
{
	uint64_t at = (l->cell + 15) & ~UINT64_C(15);

	if (len >= MOAT_DMA_SMALL || len > MOAT_DMA_CELL - at)
		return false;
	*off = at;
	l->cell = at + len;
	return true;
}

/* Decide where each segment goes; addresses are offsets until the run is had.
 */
static struct layout lay_out(const struct moat_dma *dma,
			     const struct moat_chain *chain,
			     struct moat_dma_mapped *out)
{
	uint32_t n = (uint32_t)chain->nread + chain->nwrite;
	struct layout l = { 0 };

	for (uint32_t i = 0; i < n; i++) {
		const struct moat_seg *s = &chain->seg[i];
		struct moat_seg *o = &out->seg[i];

		o->len = s->len;
		if (dma->nshared && in_share_set(dma, s)) {
			o->addr = s->addr;
			o->tag = BY_REF;
		} else if (place_in_cell(&l, s->len, &o->addr)) {
			o->tag = IN_CELL;
		} else {
			o->addr = place(l.run, s->addr, s->len);
			o->tag = IN_RUN;
			l.run = o->addr + s->len;
		}
	}
	return l;
}

/* Turn offsets into pool offsets, now that the run is known. */
static void settle(struct moat_dma_mapped *out, uint32_t n, uint64_t cell_off,
		   uint64_t run_off)
{
	for (uint32_t i = 0; i < n; i++) {
		struct moat_seg *o = &out->seg[i];

		if (o->tag == IN_CELL)
			o->addr += cell_off;
		else if (o->tag == IN_RUN)
			o->addr += run_off;
	}
}

static int copy_in(struct moat_dma *dma, const struct moat_seg *s,
		   uint64_t pool_off)
{
	uint8_t *dst = dma->pool_host + pool_off;
	uint64_t addr = s->addr, left = s->len, got;

	while (left) {
		const uint8_t *src =
			moat_memmap_at(dma->guest, addr, left, &got);

		if (!src)
			return -1;
		moat_shm_copy(dst, src, got);
		dst += got;
		addr += got;
		left -= got;
	}
	return 0;
}

static int copy_back(struct moat_dma *dma, const struct moat_dma_dst *d,
		     uint64_t len)
{
	return moat_memmap_write(dma->guest, d->guest_addr,
				 dma->pool_host + d->pool_off, len);
}

static uint32_t chunks_for(uint32_t nkept)
{
	if (nkept <= MOAT_DMA_INLINE)
		return 0;
	return (nkept - MOAT_DMA_INLINE + MOAT_DMA_PER_CHUNK - 1) /
	       MOAT_DMA_PER_CHUNK;
}

static uint32_t chunk_get(struct moat_dma_queue *q)
{
	uint32_t i = q->chunk_free;

	if (i != MOAT_DMA_NO_CHUNK)
		q->chunk_free = q->chunks[i].next;
	else
		i = q->chunk_fresh++;
	q->chunks[i].next = MOAT_DMA_NO_CHUNK;
	q->chunks_left--;
	return i;
}

static void chunks_put(struct moat_dma_queue *q, uint32_t i)
{
	while (i != MOAT_DMA_NO_CHUNK) {
		uint32_t next = q->chunks[i].next;

		q->chunks[i].next = q->chunk_free;
		q->chunk_free = i;
		q->chunks_left++;
		i = next;
	}
}

/* The kept segments of a request, one after the other. */
struct walk {
	const struct moat_dma_queue *q;
	const struct moat_dma_req *req;
	const struct moat_dma_chunk *c;
	uint32_t next;
	uint32_t i;
};

static struct walk walk_of(const struct moat_dma_queue *q,
			   const struct moat_dma_req *req)
{
	return (struct walk){ .q = q, .req = req, .next = req->chunk };
}

/* The caller knows how many there are. */
static const struct moat_dma_dst *walk_on(struct walk *w)
{
	uint32_t i = w->i++;
	uint32_t k = (i - MOAT_DMA_INLINE) % MOAT_DMA_PER_CHUNK;

	if (i < MOAT_DMA_INLINE)
		return &w->req->dst[i];
	if (!k) {
		w->c = &w->q->chunks[w->next];
		w->next = w->c->next;
	}
	return &w->c->dst[k];
}

/*
 * Remember the writable segments, or all of them; the caller has checked
 * chunks_left.
 */
static void keep_segs(struct moat_dma_queue *q, const struct moat_chain *chain,
		      const struct moat_dma_mapped *out,
		      struct moat_dma_req *req)
{
	uint32_t first = q->keep ? 0 : chain->nread;
	uint32_t n = (uint32_t)chain->nread + chain->nwrite - first;
	uint32_t *link = &req->chunk;
	struct moat_dma_chunk *c = NULL;

	req->chunk = MOAT_DMA_NO_CHUNK;
	req->nsrc = q->keep ? chain->nread : 0;
	req->ndst = chain->nwrite;
	for (uint32_t i = 0; i < n; i++) {
		const struct moat_seg *s = &chain->seg[first + i];
		const struct moat_seg *o = &out->seg[first + i];
		uint32_t k = (i - MOAT_DMA_INLINE) % MOAT_DMA_PER_CHUNK;
		struct moat_dma_dst *d;

		if (i < MOAT_DMA_INLINE) {
			d = &req->dst[i];
		} else {
			if (!k) {
				*link = chunk_get(q);
				c = &q->chunks[*link];
				link = &c->next;
			}
			d = &c->dst[k];
		}
		*d = (struct moat_dma_dst){
			.guest_addr = s->addr,
			.pool_off = o->tag == BY_REF ? MOAT_DMA_BYREF : o->addr,
			.len = s->len,
		};
	}
}

/* From pool offsets to device addresses; counts bytes on the way. */
static void finish(struct moat_dma *dma, struct moat_dma_queue *q, uint32_t n,
		   struct moat_dma_mapped *out)
{
	for (uint32_t i = 0; i < n; i++) {
		struct moat_seg *o = &out->seg[i];

		if (o->tag == BY_REF) {
			q->bytes_shared += o->len;
		} else {
			q->bytes_bounced += o->len;
			o->addr += dma->pool_addr;
		}
	}
}

enum moat_dma_result moat_dma_map(struct moat_dma *dma,
				  struct moat_dma_queue *q, uint32_t cell,
				  const struct moat_chain *chain, bool table,
				  struct moat_dma_req *req,
				  struct moat_dma_mapped *out)
{
	uint32_t n = (uint32_t)chain->nread + chain->nwrite;
	uint64_t cell_off =
		slots_to_bytes(q->cells.first) + (uint64_t)cell * MOAT_DMA_CELL;
	uint64_t table_size = UINT64_C(16) * n, table_off = 0, slots, run_off;
	struct layout l = lay_out(dma, chain, out);
	bool table_in_cell = false;

	req->run.n = 0;
	if (table &&
	    !(table_in_cell = place_in_cell(&l, table_size, &table_off))) {
		table_off = (l.run + 15) & ~UINT64_C(15);
		l.run = table_off + table_size;
	}
	slots = bytes_to_slots(l.run);
	if (slots > moat_pool_limit(dma->pool, &q->share)) {
		out->need = l.run;
		return MOAT_DMA_NEVER;
	}
	if (q->chunks_left < chunks_for(q->keep ? n : chain->nwrite))
		return MOAT_DMA_LATER;
	if (slots && moat_pool_alloc(dma->pool, &q->share, (uint32_t)slots, 1,
				     &req->run))
		return MOAT_DMA_LATER;
	run_off = slots_to_bytes(req->run.first);
	settle(out, n, cell_off, run_off);
	keep_segs(q, chain, out, req);
	for (uint32_t i = 0; i < chain->nread; i++)
		if (out->seg[i].tag != BY_REF)
			copy_in(dma, &chain->seg[i], out->seg[i].addr);
	if (table) {
		table_off += table_in_cell ? cell_off : run_off;
		out->table = dma->pool_host + table_off;
		out->table_addr = dma->pool_addr + table_off;
	} else {
		out->table = NULL;
	}
	finish(dma, q, n, out);
	return MOAT_DMA_OK;
}

int moat_dma_sync_for_device(struct moat_dma *dma,
			     const struct moat_chain *chain,
			     const struct moat_dma_mapped *out)
{
	for (uint32_t i = 0; i < chain->nread; i++)
		if (out->seg[i].tag != BY_REF &&
		    copy_in(dma, &chain->seg[i],
			    out->seg[i].addr - dma->pool_addr))
			return -1;
	return 0;
}

int moat_dma_sync_for_cpu(struct moat_dma *dma, struct moat_dma_queue *q,
			  const struct moat_dma_req *req, uint64_t len)
{
	struct walk w = walk_of(q, req);

	for (uint32_t i = 0; i < req->nsrc; i++)
		walk_on(&w);
	for (uint32_t i = 0; i < req->ndst && len; i++) {
		const struct moat_dma_dst *d = walk_on(&w);
		uint64_t n = len < d->len ? len : d->len;

		if (d->pool_off != MOAT_DMA_BYREF && copy_back(dma, d, n))
			return -1;
		len -= n;
	}
	return 0;
}

static void forget(struct moat_dma_queue *q, struct moat_dma_req *req)
{
	chunks_put(q, req->chunk);
	req->chunk = MOAT_DMA_NO_CHUNK;
	req->nsrc = req->ndst = 0;
}

int moat_dma_unmap(struct moat_dma *dma, struct moat_dma_queue *q,
		   struct moat_dma_req *req, uint64_t len)
{
	int ret = moat_dma_sync_for_cpu(dma, q, req, len);

	forget(q, req);
	moat_pool_free(dma->pool, &q->share, &req->run);
	return ret;
}

void moat_dma_drop(struct moat_dma *dma, struct moat_dma_queue *q,
		   struct moat_dma_req *req)
{
	moat_pool_free(dma->pool, &q->share, &req->run);
}

void moat_dma_recall(const struct moat_dma_queue *q,
		     const struct moat_dma_req *req, struct moat_chain *chain)
{
	struct walk w = walk_of(q, req);

	chain->nread = req->nsrc;
	chain->nwrite = req->ndst;
	chain->read_len = chain->write_len = 0;
	for (uint32_t i = 0; i < (uint32_t)req->nsrc + req->ndst; i++) {
		const struct moat_dma_dst *d = walk_on(&w);

		chain->seg[i] = (struct moat_seg){
			.addr = d->guest_addr,
			.len = d->len,
		};
		if (i < req->nsrc)
			chain->read_len += d->len;
		else
			chain->write_len += d->len;
	}
}

enum moat_dma_result moat_dma_remap(struct moat_dma *dma,
				    struct moat_dma_queue *q, uint32_t cell,
				    const struct moat_chain *chain, bool table,
				    struct moat_dma_req *req,
				    struct moat_dma_mapped *out)
{
	enum moat_dma_result ret;

	forget(q, req);
	ret = moat_dma_map(dma, q, cell, chain, table, req, out);
	/* The chunks that it just gave back are there. */
	if (ret != MOAT_DMA_OK)
		keep_segs(q, chain, out, req);
	return ret;
}
