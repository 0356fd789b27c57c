/* What a socket brings comes out as the same frames in order, however it is cut and however long frames are held. */
/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "framing_ref.h"
#include "input.h"

enum { SLAB = 256, SLABS = 4, MAX_FRAME = 96 };

struct world {
    struct colo_slab_pool pool;
    struct colo_input in;
    struct ref ref;
    const uint8_t *stream;
    size_t size, sent;
    int far;
    size_t number; /* of the next frame */
    struct {
        uint64_t cookie;
        size_t number;
        const uint8_t *data;
    } held[REF_FRAMES];
    size_t held_count;
};

static void is_frame(const struct world *w, size_t number, const uint8_t *data)
{
    MUST(memcmp(data, w->stream + w->ref.frames[number].at, w->ref.frames[number].len) == 0, "frame %zu has changed",
         number);
}

/* Gives a held frame back, the bytes still as they came. */
static void give_back(struct world *w, size_t which)
{
    is_frame(w, w->held[which].number, w->held[which].data);
    colo_slab_put(&w->pool, colo_slab_of(&w->pool, w->held[which].cookie), 1);
    w->held[which] = w->held[--w->held_count];
}

static void take_frames(struct world *w, uint32_t limit)
{
    uint32_t count = colo_input_scan(&w->in);

    if (count > limit)
        count = limit;
    for (uint32_t i = 0; i < count; i++) {
        const struct colo_frame *frame = &w->in.frames[w->in.first + i];

        MUST(w->number < w->ref.count, "frame %zu, there are %zu", w->number, w->ref.count);
        MUST(frame->len == w->ref.frames[w->number].len && frame->vnet_len == w->ref.frames[w->number].vnet_len,
             "frame %zu: %u/%u", w->number, frame->len, frame->vnet_len);
        is_frame(w, w->number, frame->data);
        w->held[w->held_count].cookie = frame->cookie;
        w->held[w->held_count].data = frame->data;
        w->held[w->held_count++].number = w->number++;
    }
    colo_input_taken(&w->in, count);
}

static void read_some(struct world *w, size_t most)
{
    long n;

    if (w->in.fd < 0 || w->in.framing.fault || colo_input_waits(&w->in) || !colo_input_prepare(&w->in, false))
        return;
    n = colo_input_read(&w->in, most);
    if (n == 0) {
        struct colo_framing verdict = colo_input_verdict(&w->in);

        MUST(verdict.fault == w->ref.fault, "fault %d, not %d", verdict.fault, w->ref.fault);
        if (verdict.fault)
            MUST(verdict.bad_value == w->ref.bad_value && verdict.bad_at == w->ref.bad_at, "another place");
        colo_input_detach(&w->in);
    } else {
        MUST(n > 0 || errno == EAGAIN, "errno %d", errno);
    }
}

static void send_some(struct world *w, size_t len)
{
    ssize_t n;

    if (len > w->size - w->sent)
        len = w->size - w->sent;
    n = len ? send(w->far, w->stream + w->sent, len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    w->sent += n > 0 ? (size_t)n : 0;
}

static void check_pool(const struct world *w)
{
    MUST(colo_slab_in_use(&w->pool) <= SLABS, "%u slabs", colo_slab_in_use(&w->pool));
    MUST(w->held_count || !w->number || colo_slab_in_use(&w->pool) <= 1, "a slab is kept for no frame");
}

/* Everything is sent, taken and given back: all frames came, and the end is named. */
static void finish(struct world *w)
{
    for (int idle = 0; w->in.fd >= 0 && !w->in.framing.fault && idle < 3;) {
        size_t before = w->number + w->sent;

        while (w->held_count)
            give_back(w, 0);
        send_some(w, w->size);
        if (w->sent == w->size)
            shutdown(w->far, SHUT_WR);
        read_some(w, SIZE_MAX);
        take_frames(w, UINT32_MAX);
        idle = before == w->number + w->sent ? idle + 1 : 0;
    }
    take_frames(w, UINT32_MAX);
    MUST(w->number == w->ref.count, "%zu frames came, not %zu", w->number, w->ref.count);
    if (w->in.framing.fault)
        MUST(w->in.framing.fault == w->ref.fault && w->in.framing.bad_at == w->ref.bad_at, "fault %d, not %d",
             w->in.framing.fault, w->ref.fault);
    else
        MUST(w->in.fd < 0, "the end was never seen");
    while (w->held_count)
        give_back(w, w->held_count / 2);
    check_pool(w);
}

/* Input: one byte of options, the length of the list of acts, the acts, then the stream. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world w;
    struct colo_engine_config config = {.nics = 1, .max_frame = MAX_FRAME};
    int pair[2];
    size_t acts, i;

    if (size < 2 || size > 4096)
        return 0;
    acts = data[1];
    if (acts > size - 2)
        acts = size - 2;
    memset(&w, 0, sizeof w);
    w.stream = data + 2 + acts;
    w.size = size - 2 - acts;
    ref_decode(&w.ref, w.stream, w.size, data[0] & 1, MAX_FRAME);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair: %d", errno);
    MUST(colo_slab_pool_init(&w.pool, SLAB, SLABS) == 0, "no memory");
    config.vnet_hdr = data[0] & 1;
    colo_input_init(&w.in, &w.pool, COLO_PRIMARY, &config);
    colo_input_attach(&w.in, pair[0]);
    w.far = pair[1];
    for (i = 0; i < acts; i++) {
        uint8_t act = data[2 + i];

        switch (act & 3) {
        case 0:
            send_some(&w, 1 + (act >> 2));
            break;
        case 1:
            read_some(&w, act >> 2 == 63 ? SIZE_MAX : 1 + (act >> 2) * 16u);
            break;
        case 2:
            take_frames(&w, 1 + (act >> 2));
            break;
        default:
            if (w.held_count)
                give_back(&w, (act >> 2) % w.held_count);
        }
        check_pool(&w);
    }
    finish(&w);
    colo_input_fini(&w.in);
    MUST(colo_slab_in_use(&w.pool) == 0, "%u slabs leak", colo_slab_in_use(&w.pool));
    colo_slab_pool_fini(&w.pool);
    close(w.far);
    return 0;
}
