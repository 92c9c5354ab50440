/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/fs/dax.h"
#include "dev/fs/options.h"
#include "dev/fs/xattrmap.h"

#define FILES_DEFAULT 1000000u
#define THREADS_DEFAULT 4u
#define THREADS_MAX 256u
#define PAGE UINT64_C(4096)

enum {
	OPT_SHARED = 256,
	OPT_TAG,
	OPT_REQUEST_QUEUES,
	OPT_CACHE,
	OPT_WRITEBACK,
	OPT_READ_ONLY,
	OPT_XATTR,
	OPT_NO_XATTR,
	OPT_XATTR_MAP,
	OPT_ACL,
	OPT_SUBMOUNTS,
	OPT_NO_SUBMOUNTS,
	OPT_LOCK,
	OPT_NO_LOCK,
	OPT_FLOCK,
	OPT_NO_FLOCK,
	OPT_DIRECT,
	OPT_NO_PLUS,
	OPT_UIDS,
	OPT_GIDS,
	OPT_POOL,
	OPT_FILES,
	OPT_HANDLES,
	OPT_DAX,
	OPT_DAX_MAPPINGS,
	OPT_NOTIFY,
};

static const struct argp_option options[] = {
	{ 0, 0, 0, 0, "What is shared:", 1 },
	{ "shared-dir", OPT_SHARED, "DIR", 0, "the directory", 0 },
	{ "tag", OPT_TAG, "TAG", 0,
	  "its name for the guest (mount -t virtiofs TAG ...), up to 36 bytes; "
	  "a VMM may set its own",
	  0 },
	{ "readonly", OPT_READ_ONLY, 0, 0, "the guest can change nothing", 0 },
	{ "announce-submounts", OPT_SUBMOUNTS, 0, 0,
	  "mounts below DIR are file systems of their own to the guest "
	  "(default)",
	  0 },
	{ "no-announce-submounts", OPT_NO_SUBMOUNTS, 0, 0,
	  "they are directories like others", 0 },
	{ 0, 0, 0, 0, "What the guest may keep:", 2 },
	{ "cache", OPT_CACHE, "POLICY", 0,
	  "auto (default): names and attributes for a second, data until the "
	  "file is opened again and has changed; always: all, as nobody else "
	  "changes it; never: nothing; metadata: all but data",
	  0 },
	{ "writeback", OPT_WRITEBACK, 0, 0,
	  "the guest collects writes; for a guest that is alone with DIR", 0 },
	{ "notify", OPT_NOTIFY, 0, 0,
	  "tell the guest what others on the host change, so that it need not "
	  "ask; for a driver with a notification queue, which Linux does not "
	  "have yet",
	  0 },
	{ "allow-direct-io", OPT_DIRECT, 0, 0,
	  "a guest's O_DIRECT is the host's, too", 0 },
	{ "no-readdirplus", OPT_NO_PLUS, 0, 0,
	  "list directories without attributes", 0 },
	{ "dax-window", OPT_DAX, "SIZE", 0,
	  "map files into the guest through a window of SIZE bytes (K, M, G): "
	  "see docs/dax.md",
	  0 },
	{ "dax-mappings", OPT_DAX_MAPPINGS, "N", 0,
	  "at most N mappings in it at a time (480); QEMU 11.1 has some 500 in "
	  "all",
	  0 },
	{ 0, 0, 0, 0, "What files have:", 3 },
	{ "xattr", OPT_XATTR, 0, 0, "extended attributes", 0 },
	{ "no-xattr", OPT_NO_XATTR, 0, 0, "none (default)", 0 },
	{ "xattrmap", OPT_XATTR_MAP, "RULES", 0,
	  "rename attributes, as virtiofsd does; means --xattr", 0 },
	{ "posix-acl", OPT_ACL, 0, 0, "access control lists; means --xattr",
	  0 },
	{ "posix-lock", OPT_LOCK, 0, 0,
	  "the guest's fcntl() locks are seen by others on the host", 0 },
	{ "flock", OPT_FLOCK, 0, 0, "so are those of flock()", 0 },
	{ "no-posix-lock", OPT_NO_LOCK, 0, OPTION_HIDDEN, 0, 0 },
	{ "no-flock", OPT_NO_FLOCK, 0, OPTION_HIDDEN, 0, 0 },
	{ "translate-uid", OPT_UIDS, "RULE", 0,
	  "map|guest|host|squash-guest|squash-host|forbid-guest:BASE:"
	  "TO:COUNT, as virtiofsd has it; may be repeated",
	  0 },
	{ "translate-gid", OPT_GIDS, "RULE", 0, "the same for groups", 0 },
	{ 0, 0, 0, 0, "How it runs:", 4 },
	{ "num-request-queues", OPT_REQUEST_QUEUES, "N", 0,
	  "queues beside the one of high priority (1)", 0 },
	{ "thread-pool-size", OPT_POOL, "N", 0,
	  "threads for requests that wait for a disk (4); 0: they hold their "
	  "queue up",
	  0 },
	{ "rlimit-nofile", OPT_FILES, "N", 0,
	  "descriptors, one for each file that the guest knows (1000000, or "
	  "the hard limit)",
	  0 },
	{ "inode-file-handles", OPT_HANDLES, "WHEN", 0,
	  "never (default): each file that the guest knows is a descriptor; "
	  "prefer: when half of them are used, file handles take their place; "
	  "mandatory: always. Needs CAP_DAC_READ_SEARCH, and no Landlock",
	  0 },
	{ 0 },
};

static void parse_cache(const char *arg, struct fs_options *o,
			struct argp_state *state)
{
	static const struct {
		const char *word;
		enum fs_cache cache;
	} words[] = {
		{ "auto", FS_CACHE_AUTO },     { "always", FS_CACHE_ALWAYS },
		{ "never", FS_CACHE_NEVER },   { "none", FS_CACHE_NEVER },
		{ "metadata", FS_CACHE_META },
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (!strcmp(arg, words[i].word)) {
			o->cache = words[i].cache;
			return;
		}
	argp_error(state, "--cache=%s: auto, always, never or metadata", arg);
}

static void parse_handles(const char *arg, struct fs_options *o,
			  struct argp_state *state)
{
	static const char *const words[] = {
		[FS_HANDLES_NEVER] = "never",
		[FS_HANDLES_PREFER] = "prefer",
		[FS_HANDLES_MANDATORY] = "mandatory",
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (!strcmp(arg, words[i])) {
			o->handles = (enum fs_handles)i;
			return;
		}
	argp_error(state, "--inode-file-handles=%s: never, prefer or mandatory",
		   arg);
}

static void parse_ids(const char *arg, struct fs_id_map *maps, uint32_t *n,
		      const char *name, struct argp_state *state)
{
	if (fs_ids_parse(arg, maps, n))
		argp_error(state,
			   "--%s=%s: KIND:BASE:TO:COUNT is needed, and at "
			   "most %u of them",
			   name, arg, FS_ID_MAPS);
}

static void parse_xattr_map(const char *arg, struct fs_options *o,
			    struct argp_state *state)
{
	const char *why;

	fs_xattrmap_free(o->xattr_rules);
	o->xattr_rules = NULL;
	o->xattr = true;
	if (fs_xattrmap_parse(arg, &o->xattr_rules, &why))
		argp_error(state, "--xattrmap=%s: %s", arg, why);
}

static void check(const struct fs_args *a, struct argp_state *state)
{
	const struct fs_options *o = &a->fs;

	if (a->config.print_capabilities)
		return;
	if (!o->shared_dir)
		argp_error(state, "--shared-dir=DIR is needed");
	if (strlen(o->tag) > FS_TAG_MAX || !*o->tag)
		argp_error(state, "--tag: 1 to %u bytes", FS_TAG_MAX);
	if (o->dax_window & (o->dax_window - 1))
		argp_error(state, "--dax-window: a power of two is needed");
}

/* What takes an argument. */
static error_t parse_value(int key, char *arg, struct fs_args *a,
			   struct argp_state *state)
{
	struct fs_options *o = &a->fs;

	switch (key) {
	case OPT_SHARED:
		o->shared_dir = a->config.shared_dir = arg;
		break;
	case OPT_TAG:
		o->tag = arg;
		break;
	case OPT_CACHE:
		parse_cache(arg, o, state);
		break;
	case OPT_XATTR_MAP:
		parse_xattr_map(arg, o, state);
		break;
	case OPT_UIDS:
		parse_ids(arg, o->ids.uid, &o->ids.nuid, "translate-uid",
			  state);
		break;
	case OPT_GIDS:
		parse_ids(arg, o->ids.gid, &o->ids.ngid, "translate-gid",
			  state);
		break;
	case OPT_REQUEST_QUEUES:
		o->num_request_queues =
			(uint32_t)moat_device_number(arg, "num-request-queues",
						     false, 1, FS_QUEUES_MAX,
						     state);
		break;
	case OPT_POOL:
		o->threads = (uint32_t)moat_device_number(
			arg, "thread-pool-size", false, 0, THREADS_MAX, state);
		break;
	case OPT_FILES:
		o->files = moat_device_number(arg, "rlimit-nofile", false, 64,
					      UINT32_MAX / 2, state);
		break;
	case OPT_DAX:
		o->dax_window = moat_device_number(arg, "dax-window", true,
						   PAGE, FS_WINDOW_MAX, state);
		break;
	case OPT_DAX_MAPPINGS:
		o->dax_mappings = (uint32_t)moat_device_number(
			arg, "dax-mappings", false, 1, FS_MAPPINGS_MAX, state);
		break;
	case OPT_HANDLES:
		parse_handles(arg, o, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct fs_args *a = state->input;
	struct fs_options *o = &a->fs;

	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &a->config;
		break;
	case OPT_READ_ONLY:
		o->read_only = true;
		break;
	case OPT_SUBMOUNTS:
		o->submounts = true;
		break;
	case OPT_NO_SUBMOUNTS:
		o->submounts = false;
		break;
	case OPT_WRITEBACK:
		o->writeback = true;
		break;
	case OPT_DIRECT:
		o->direct_io = true;
		break;
	case OPT_NOTIFY:
		o->notify = true;
		break;
	case OPT_NO_PLUS:
		o->readdirplus = false;
		break;
	case OPT_XATTR:
		o->xattr = true;
		break;
	case OPT_NO_XATTR:
		o->xattr = false;
		break;
	case OPT_ACL:
		o->posix_acl = o->xattr = true;
		break;
	case OPT_LOCK:
		o->posix_lock = true;
		break;
	case OPT_FLOCK:
		o->flock = true;
		break;
	case OPT_NO_LOCK:
		o->posix_lock = false;
		break;
	case OPT_NO_FLOCK:
		o->flock = false;
		break;
	case ARGP_KEY_END:
		check(a, state);
		break;
	default:
		return parse_value(key, arg, a, state);
	}
	return 0;
}

/* The vhost-user specification, "Backend program conventions". */
static void print_capabilities(void)
{
	puts("{\n  \"type\": \"fs\",\n"
	     "  \"features\": [ \"separate-options\" ]\n}");
}

int fs_options_parse(struct fs_args *a, int argc, char **argv)
{
	const struct argp_child children[] = {
		{ moat_device_argp(), 0, NULL, 0 }, { 0 }
	};
	const struct argp argp = {
		.options = options,
		.parser = parse,
		.children = children,
		.doc = "Share a directory with a virtual machine (virtio-fs), "
		       "over vhost-user.\vSIGTERM: finish what was begun, and "
		       "end.",
	};

	a->fs.tag = "moat";
	a->fs.num_request_queues = 1;
	a->fs.submounts = a->fs.readdirplus = true;
	a->fs.threads = THREADS_DEFAULT;
	a->fs.files = FILES_DEFAULT;
	a->fs.dax_mappings = FS_MAPPINGS_DEFAULT;
	if (fs_compat_args(&a->compat, argc, argv) ||
	    argp_parse(&argp, a->compat.argc, a->compat.argv, 0, NULL, a))
		return 2;
	if (a->config.print_capabilities)
		print_capabilities();
	return 0;
}
