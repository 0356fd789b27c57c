/* SPDX-License-Identifier: Apache-2.0 */
#include "recout.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024 };

int colo_recout_init(struct colo_recout *o, const struct colo_recblock *block)
{
    *o = (struct colo_recout){.fd = -1, .cap = block->cap > BUFFER ? block->cap : BUFFER};
    o->buffer = malloc(o->cap);
    return o->buffer ? 0 : COLO_ERR_NOMEM;
}

void colo_recout_fini(struct colo_recout *o)
{
    if (o->fd >= 0)
        close(o->fd);
    o->fd = -1;
    free(o->buffer);
    o->buffer = NULL;
}

int colo_recout_begin(struct colo_recout *o, struct colo_recblock *block, int dir, const char *name, int flags)
{
    struct stat st;
    int error = 0;

    o->fd = openat(dir, name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags, 0600);
    if (o->fd < 0)
        return errno;
    if (fstat(o->fd, &st) < 0)
        error = errno;
    else if (!S_ISREG(st.st_mode))
        error = EINVAL; /* a pipe could stop, a device must keep its mode */
    else if (fchmod(o->fd, 0600) < 0)
        error = errno;
    if (error) {
        close(o->fd);
        o->fd = -1;
        return error;
    }
    o->size = o->fill = 0;
    memset(o->seen, 0, sizeof o->seen);
    colo_recblock_head(block);
    return colo_recout_put_block(o, block);
}

/* Nothing of a block that could not be written whole stays in the file. */
int colo_recout_flush(struct colo_recout *o)
{
    size_t done = 0;

    while (done < o->fill) {
        ssize_t n = write(o->fd, o->buffer + done, o->fill - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n < 0 ? errno : EIO;

            o->size -= o->fill;
            o->fill = 0;
            if (ftruncate(o->fd, (off_t)o->size) < 0)
                return error; /* it says so already */
            return error;
        }
        done += (size_t)n;
    }
    o->bytes += o->fill;
    o->fill = 0;
    return 0;
}

int colo_recout_put(struct colo_recout *o, const void *data, size_t len)
{
    int error = o->cap - o->fill < len ? colo_recout_flush(o) : 0;

    if (error)
        return error;
    memcpy(o->buffer + o->fill, data, len);
    o->fill += len;
    o->size += len;
    return 0;
}

int colo_recout_put_block(struct colo_recout *o, const struct colo_recblock *block)
{
    int error = colo_recout_put(o, block->data, block->len);

    for (int port = 0; port < COLO_PORT_COUNT && !error; port++) {
        o->seen[port] += block->packets[port];
        o->packets += block->packets[port];
    }
    return error;
}

int colo_recout_end(struct colo_recout *o, struct colo_recblock *block, const uint64_t lost[COLO_PORT_COUNT],
                    int64_t time)
{
    int error;

    if (o->fd < 0)
        return 0;
    colo_recblock_tail(block, o->seen, lost, time);
    error = colo_recout_put_block(o, block);
    if (!error)
        error = colo_recout_flush(o);
    if (close(o->fd) < 0 && !error)
        error = errno;
    o->fd = -1;
    return error;
}
