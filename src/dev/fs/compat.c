/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtiofsd's older command line, which libvirt uses: -o source=DIR,cache=auto,
 * no_flock becomes --shared-dir=DIR --cache=auto --no-flock.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/fs/options.h"

/* The words that are not simply an option with '-' for '_'. */
static const struct {
	const char *word;
	const char *option; /* NULL: it means nothing here */
} others[] = {
	{ "source", "--shared-dir" },  { "killpriv_v2", NULL },
	{ "no_killpriv_v2", NULL },    { "no_writeback", NULL },
	{ "no_posix_acl", NULL },      { "no_allow_direct_io", NULL },
	{ "no_security_label", NULL }, { "readdirplus", NULL },
};

static char *copy(const char *text, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, text, len);
		s[len] = 0;
	}
	return s;
}

/* "--word[=value]" of one word of a list; NULL: nothing, or no memory. */
static char *option_of(const char *word, size_t len, bool *failed)
{
	const char *value = memchr(word, '=', len);
	size_t n = value ? (size_t)(value - word) : len;
	char *s;

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
		if (strlen(others[i].word) != n ||
		    memcmp(others[i].word, word, n) != 0)
			continue;
		if (!others[i].option)
			return NULL;
		if (asprintf(&s, "%s%.*s", others[i].option, (int)(len - n),
			     word + n) < 0)
			s = NULL;
		*failed |= !s;
		return s;
	}
	if (asprintf(&s, "--%.*s", (int)len, word) < 0)
		s = NULL;
	*failed |= !s;
	for (size_t i = 2; s && i < n + 2; i++)
		if (s[i] == '_')
			s[i] = '-';
	return s;
}

/* One list's words; commas that are meant have a backslash before them. */
static bool add_list(const char *list, char **out, int *n, char **made,
		     int *nmade)
{
	bool failed = false;

	while (*list && !failed) {
		char *word, *to, *option;
		size_t len = 0;

		while (list[len] && list[len] != ',')
			len += list[len] == '\\' && list[len + 1] ? 2 : 1;
		word = to = copy(list, len);
		for (const char *from = word; from && *from; from++) {
			if (*from == '\\' && from[1])
				from++;
			*to++ = *from;
		}
		if (word)
			*to = 0;
		option = word ? option_of(word, strlen(word), &failed) : NULL;
		failed |= !word;
		if (option)
			out[(*n)++] = made[(*nmade)++] = option;
		free(word);
		list += len + (list[len] == ',');
	}
	return !failed;
}

static int words_of(const char *list)
{
	int n = 1;

	for (; *list; list++)
		n += *list == ',';
	return n;
}

void fs_compat_free(struct fs_compat *c)
{
	for (int i = 0; c->made && i < c->nmade; i++)
		free(c->made[i]);
	free(c->made);
	free(c->argv);
	*c = (struct fs_compat){ 0 };
}

int fs_compat_args(struct fs_compat *c, int argc, char **argv)
{
	size_t room = (size_t)argc + 1;
	bool ok = true;

	for (int i = 1; i < argc; i++)
		room += (size_t)words_of(argv[i]);
	*c = (struct fs_compat){
		.argv = calloc(room, sizeof(char *)),
		.made = calloc(room, sizeof(char *)),
	};
	ok = c->argv && c->made;
	for (int i = 0; ok && i < argc; i++) {
		const char *list = NULL;

		if (i && !strcmp(argv[i], "-o") && i + 1 < argc)
			list = argv[++i];
		else if (i && !strncmp(argv[i], "-o", 2) && argv[i][2])
			list = argv[i] + 2;
		/* It always stays in the foreground. */
		if (i && !strcmp(argv[i], "-f"))
			continue;
		if (list)
			ok = add_list(list, c->argv, &c->argc, c->made,
				      &c->nmade);
		else
			c->argv[c->argc++] = argv[i];
	}
	if (!ok)
		fs_compat_free(c);
	return ok ? 0 : -ENOMEM;
}
