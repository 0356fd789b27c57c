/* SPDX-License-Identifier: Apache-2.0 */
#include "recfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The name of the file with that number, to be freed: PATH, or with -NUMBER before the suffix. */
static char *name_of(const struct colo_recfile *f, uint32_t number)
{
    const char *base = strrchr(f->path, '/'), *dot;
    size_t stem, cap = strlen(f->path) + 16;
    char *name = malloc(cap);

    base = base ? base + 1 : f->path;
    dot = strrchr(base, '.');
    stem = dot && dot != base ? (size_t)(dot - f->path) : strlen(f->path);
    if (name && number)
        snprintf(name, cap, "%.*s-%05u%s", (int)stem, f->path, number, f->path + stem);
    else if (name)
        snprintf(name, cap, "%s", f->path);
    return name;
}

static int begin_file(struct colo_recfile *f, struct colo_recblock *block)
{
    char *name = name_of(f, f->number);
    int error = name ? colo_recout_begin(&f->out, block, AT_FDCWD, name, O_TRUNC) : ENOMEM;

    free(name);
    if (!error) /* however full the disk gets, it is a capture */
        error = colo_recout_flush(&f->out);
    f->opened = -1;
    f->files += !error;
    return error;
}

static int end_file(struct colo_recfile *f, struct colo_recblock *block)
{
    uint64_t lost[COLO_PORT_COUNT];

    for (int port = 0; port < COLO_PORT_COUNT; port++)
        lost[port] = f->lost[port] - f->lost_before[port];
    memcpy(f->lost_before, f->lost, sizeof f->lost);
    return colo_recout_end(&f->out, block, lost, f->last);
}

int colo_recfile_open(struct colo_recfile *f, struct colo_recblock *block, const struct colo_record_config *config)
{
    int error;

    *f = (struct colo_recfile){.out.fd = -1, .max_bytes = config->max_bytes, .max_time = config->max_time,
                               .keep = config->keep, .number = config->number, .opened = -1};
    if ((f->max_bytes || f->max_time) && !f->number)
        return COLO_ERR_MISUSE;
    f->path = strdup(config->path);
    if (!f->path || colo_recout_init(&f->out, block))
        return COLO_ERR_NOMEM;
    error = begin_file(f, block);
    errno = error;
    return error ? COLO_ERR_SYSTEM : 0;
}

int colo_recfile_flush(struct colo_recfile *f)
{
    return colo_recout_flush(&f->out);
}

int colo_recfile_close(struct colo_recfile *f, struct colo_recblock *block)
{
    int error = end_file(f, block);

    colo_recout_fini(&f->out);
    free(f->path);
    f->path = NULL;
    return error;
}

static int rotate(struct colo_recfile *f, struct colo_recblock *block, int64_t time)
{
    int error = end_file(f, block);

    if (error)
        return error;
    if (f->keep && f->number >= f->keep) {
        char *oldest = name_of(f, f->number + 1 - f->keep);

        if (oldest)
            unlink(oldest); /* it may be gone already */
        free(oldest);
    }
    f->number++;
    error = begin_file(f, block);
    if (error)
        return error;
    colo_recblock_mode(block, &f->mode, time);
    return colo_recout_put_block(&f->out, block);
}

int colo_recfile_write(struct colo_recfile *f, struct colo_recblock *block, const struct colo_note *note)
{
    bool full, old;
    int error;

    if (f->opened < 0)
        f->opened = note->time;
    full = f->max_bytes && f->out.size >= f->max_bytes;
    old = f->max_time && note->time - f->opened >= f->max_time;
    if (full || old) {
        error = rotate(f, block, note->time);
        if (error)
            return error;
        f->opened = note->time;
        colo_recblock_note(block, note);
    }
    f->last = note->time;
    memcpy(f->lost, note->lost, sizeof f->lost);
    colo_recmode_follow(&f->mode, note);
    return colo_recout_put_block(&f->out, block);
}
