/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/fs/notice.h"

static struct fs_notice **list_of(struct fs_notices *t, uint64_t id,
				  const char *name, uint32_t len)
{
	uint64_t h = id;

	for (uint32_t i = 0; i < len; i++)
		h = h * 31 + (uint8_t)name[i];
	h *= UINT64_C(0x9e3779b97f4a7c15);
	return &t->lists[(h >> 32) % FS_NOTICE_LISTS];
}

void fs_notices_init(struct fs_notices *t)
{
	*t = (struct fs_notices){ .last = NULL };
	t->last = &t->first;
}

void fs_notices_fini(struct fs_notices *t)
{
	while (t->first)
		fs_notices_pop(t);
}

int fs_notices_add(struct fs_notices *t, uint64_t id, const char *name,
		   bool data)
{
	uint32_t len = name ? (uint32_t)strlen(name) : 0;
	struct fs_notice **list = list_of(t, id, name, len), *p;

	for (p = *list; p; p = p->same)
		if (p->id == id && p->len == len &&
		    (!len || !memcmp(p->name, name, len))) {
			p->data |= data;
			return 0;
		}
	p = calloc(1, sizeof(*p) + len + 1);
	if (!p)
		return -ENOMEM;
	p->id = id;
	p->len = len;
	p->data = data;
	if (len)
		memcpy(p->name, name, len);
	p->same = *list;
	*list = p;
	*t->last = p;
	t->last = &p->next;
	t->n++;
	return 0;
}

void fs_notices_pop(struct fs_notices *t)
{
	struct fs_notice *p = t->first;
	struct fs_notice **at = list_of(t, p->id, p->name, p->len);

	while (*at != p)
		at = &(*at)->same;
	*at = p->same;
	t->first = p->next;
	if (!t->first)
		t->last = &t->first;
	t->n--;
	free(p);
}
