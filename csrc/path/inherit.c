/* SPDX-License-Identifier: Apache-2.0 */
#include "inherit.h"

#include <errno.h>
#include <stdlib.h>

#include "rwinherit.h"

int colo_inherit_send(struct colo_path *p)
{
    const size_t room = p->config.link.max_record;
    struct colo_link_record record = {.type = COLO_LINK_INHERIT};
    uint32_t place = 0;
    uint8_t *data;
    long len;
    int error = 0;

    if (!p->rewriter)
        return 0;
    data = malloc(room);
    if (!data)
        return COLO_ERR_NOMEM;
    record.data = data;
    do {
        data[0] = place == 0;
        len = colo_rewriter_export(p->rewriter, &place, data + 1, room - 1, p->now);
        record.len = (uint32_t)len + 1;
        if (len > 0)
            error = colo_link_push(p->link, &record);
    } while (len > 0 && !error);
    free(data);
    return error ? error : len < 0 ? (int)len : 0;
}

void colo_inherit_begin(struct colo_path *p)
{
    p->session_at = p->now;
    p->inheritance_old = true;
}

bool colo_inherit_take(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    int error;

    if (record->len < 1 || record->data[0] > 1 || (record->data[0] == 1) != p->inheritance_old) {
        *why = "a piece of the inherited connections that makes no sense here";
        return false;
    }
    if (p->taken_over)
        return true;
    if (p->inheritance_old)
        colo_rewriter_disinherit(p->rewriter);
    p->inheritance_old = false;
    /* It was made when the session began. A link that was down meanwhile must not make its ages too low. */
    error = colo_rewriter_import(p->rewriter, record->data + 1, record->len - 1, p->session_at, why);
    if (error == COLO_ERR_NOMEM)
        p->error = ENOMEM;
    return !error || error == COLO_ERR_NOMEM;
}

void colo_inherit_settle(struct colo_path *p)
{
    if (p->inheritance_old && p->session) /* the primary has none */
        colo_rewriter_disinherit(p->rewriter);
}

/* --------------------------------------------------------------------- the calls */

int colo_path_import(colo_path *p, const uint8_t *data, size_t len, int64_t age, const char **why)
{
    int error = COLO_ERR_MISUSE;

    *why = "this is not the time for it";
    colo_path_lock(p);
    p->now = colo_path_now();
    if (p->config.role == COLO_PATH_PRIMARY && p->phase != COLO_PHASE_ENDED && !p->session) {
        if (!p->rewriter) {
            p->rewriter = colo_rewriter_create(&p->config.rewriter);
            if (p->rewriter)
                colo_rewriter_takeover(p->rewriter, p->now); /* nobody's numbers are to be learnt */
        }
        *why = "no memory";
        error = !p->rewriter ? COLO_ERR_NOMEM
                             : colo_rewriter_import(p->rewriter, data, len, p->now - (age > 0 ? age : 0), why);
    }
    colo_path_unlock(p);
    return error;
}

size_t colo_path_export_size(colo_path *p)
{
    size_t size;

    colo_path_lock(p);
    size = p->rewriter ? colo_rewriter_export_size(p->rewriter) : COLO_RWINHERIT_HEAD;
    colo_path_unlock(p);
    return size;
}

long colo_path_export(colo_path *p, uint8_t *out, size_t cap)
{
    uint32_t place = 0;
    long len = COLO_ERR_MISUSE;

    colo_path_lock(p);
    if (p->config.role == COLO_PATH_PRIMARY || p->taken_over) {
        if (cap < (p->rewriter ? colo_rewriter_export_size(p->rewriter) : COLO_RWINHERIT_HEAD)) {
            len = COLO_ERR_LIMIT;
        } else if (p->rewriter) {
            len = colo_rewriter_export(p->rewriter, &place, out, cap, colo_path_now());
        } else {
            colo_rwinherit_put_head(out, 0);
            len = COLO_RWINHERIT_HEAD;
        }
    }
    colo_path_unlock(p);
    return len;
}
