/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#include "coloproxy.h"
#include "state.h"

int colo_checkpoint_finish(struct colo_traffic *t)
{
    struct colo_speaker *s = &t->side[COLO_SECONDARY];

    if (!t->answering) {
        const struct colo_cursor at = colo_speaker_handed(&t->side[COLO_PRIMARY]);

        colo_speaker_become(s, &at);
        t->answering = true;
    }
    /* The frame that is partly with the kernel was said before the checkpoint. */
    if (colo_speaker_idle(s)) {
        uint8_t answer[64];
        const size_t len = colo_wish_answer(t->config.vnet_hdr, answer);
        const ssize_t n = send(t->sockets.notify, answer, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return colo_traffic_closed(t, "notify_dev", errno);
        if (n > 0 && (size_t)n != len)
            return colo_traffic_closed(t, "notify_dev", ENOBUFS); /* of an empty socket: it is no stream that is read */
        if (n > 0) {
            t->answering = false;
            t->resume = 0;
            t->counters.checkpoints++;
        }
    }
    return 0;
}

int colo_checkpoint_listen(struct colo_traffic *t, int64_t now)
{
    const ssize_t n = recv(t->sockets.notify, t->wishes.buffer + t->wishes.held, colo_wishes_room(&t->wishes),
                           MSG_DONTWAIT);
    int wishes;

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : colo_traffic_closed(t, "notify_dev", errno);
    if (n == 0)
        return colo_traffic_closed(t, "notify_dev", 0);
    wishes = colo_wishes_take(&t->wishes, (size_t)n);
    if (wishes < 0) {
        snprintf(t->fault, sizeof t->fault, "notify_dev: what it sent is no message of COLO's");
        return COLO_TRAFFIC_BROKEN;
    }
    t->counters.checkpoint_wishes += (uint64_t)wishes;
    if (wishes && !t->resume)
        t->resume = now + t->config.checkpoint_pause;
    return 0;
}
