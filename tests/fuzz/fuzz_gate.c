/* The epoch gate hands on every byte in order, counts every line, and is open only when all of it was dealt with. */
/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gate.h"
#include "must.h"

enum { ROOM = 1 << 16 };

/* One direction: what was written at one end, and how much of it has been read at the other. */
struct way {
    uint8_t sent[ROOM];
    size_t written, read;
    int from, to; /* -1: closed */
};

static void put(struct way *w, const uint8_t *data, size_t len)
{
    ssize_t n;

    if (w->from < 0 || len > ROOM - w->written)
        return;
    n = send(w->from, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n <= 0)
        return;
    memcpy(w->sent + w->written, data, (size_t)n);
    w->written += (size_t)n;
}

static bool get(struct way *w, size_t len)
{
    uint8_t buffer[512];
    ssize_t n;

    if (w->to < 0)
        return false;
    n = recv(w->to, buffer, len < sizeof buffer ? len : sizeof buffer, MSG_DONTWAIT);
    if (n <= 0)
        return false;
    MUST((size_t)n <= w->written - w->read && memcmp(buffer, w->sent + w->read, (size_t)n) == 0, "other bytes came");
    w->read += (size_t)n;
    return true;
}

static void close_end(int *a, int *b)
{
    if (*a >= 0)
        close(*a);
    *a = *b = -1;
}

static void check(const struct colo_gate *g, const struct way *in, uint64_t done)
{
    uint64_t lines = 0, seen = 0, passed = in->read;

    MUST(g->done <= g->seen && g->done <= done, "done %llu of %llu", (unsigned long long)g->done,
         (unsigned long long)g->seen);
    for (size_t i = 0; i < in->written; i++) {
        lines += in->sent[i] == '\n';
        seen += i < passed && in->sent[i] == '\n';
    }
    MUST(g->seen <= lines, "%llu lines seen, %llu were written", (unsigned long long)g->seen,
         (unsigned long long)lines);
    MUST(g->seen >= seen, "a line was handed on uncounted");
    if (colo_gate_is_open(g))
        MUST(!g->lost && !g->partial && g->seen == g->done, "open, %llu lines wait",
             (unsigned long long)(g->seen - g->done));
}

/* Input: acts. The low three bits say what, the others how much; what is written is taken from the input too. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct way in, out;
    struct bytes b = {data, size};
    struct colo_gate g;
    uint64_t done = 0;
    int qmp[2], near[2], error, losses = 0;
    bool whole = true; /* neither end was closed by us */

    in.written = in.read = out.written = out.read = 0;
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, qmp) == 0, "socketpair: %d", errno);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, near) == 0, "socketpair: %d", errno);
    in.from = out.to = qmp[1];
    in.to = out.from = near[0];
    colo_gate_init(&g);
    MUST(colo_gate_attach(&g, qmp[0], near[1]) == 0, "no memory");
    while (b.left) {
        uint8_t act = take8(&b);
        size_t amount = 1 + (act >> 3);
        uint64_t step;

        switch (act & 7) {
        case 0:
        case 1:
            amount = amount < b.left ? amount : b.left;
            put(act & 1 ? &out : &in, b.at, amount);
            b.at += amount;
            b.left -= amount;
            break;
        case 2:
            losses += colo_gate_look(&g, &error);
            break;
        case 3:
            losses += colo_gate_pump(&g, &error);
            break;
        case 4:
            (void)get(&in, amount * 16);
            break;
        case 5:
            (void)get(&out, amount * 16);
            break;
        case 6:
            step = g.seen - g.done < amount ? g.seen - g.done : amount;
            colo_gate_done(&g, amount);
            done += step;
            break;
        default:
            if (amount == 32)
                close_end(&in.from, &out.to);
            else if (amount == 31)
                close_end(&out.from, &in.to);
            else
                break;
            whole = false;
        }
        MUST(losses <= 1, "the same loss was told twice");
        MUST(!whole || !losses, "a loss, and both ends are there");
        check(&g, &in, done);
    }
    if (whole) { /* all that was written arrives, and then the gate opens */
        for (int i = 0; i < 2000 && (in.read < in.written || out.read < out.written); i++) {
            losses += colo_gate_look(&g, &error) + colo_gate_pump(&g, &error);
            (void)get(&in, 512);
            (void)get(&out, 512);
        }
        MUST(!losses && in.read == in.written && out.read == out.written, "%zu of %zu, %zu of %zu bytes arrived",
             in.read, in.written, out.read, out.written);
        MUST(g.partial == (in.written && in.sent[in.written - 1] != '\n'), "the last line ends or does not");
        colo_gate_done(&g, UINT64_MAX);
        MUST(colo_gate_is_open(&g) == !g.partial, "dealt with, and shut");
    }
    colo_gate_detach(&g);
    MUST(colo_gate_is_open(&g), "detached, and shut");
    close_end(&in.from, &out.to);
    close_end(&out.from, &in.to);
    return 0;
}
