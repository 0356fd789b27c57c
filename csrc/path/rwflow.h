/* SPDX-License-Identifier: Apache-2.0 */
/* rwflow.h - one flow of the rewriter's: what its shift is, and how far its connection has come. docs/rewriter.md. */
#ifndef COLO_RWFLOW_H
#define COLO_RWFLOW_H

#include "rwtable.h"
#include "tcpseg.h"

/* The primary VM sent this SYN. False: nothing new. */
bool colo_rwflow_heard_primary(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now);
/* The secondary VM sends this SYN. True: of a connection, or an attempt at one, that was not known yet. */
bool colo_rwflow_heard_secondary(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now);

/*
 * A segment for the VM, of a flow whose shift is unknown. Where it can only be the answer to a SYN of which we know the
 * secondary's number, its ACK number is one more than the primary's. Without a takeover that is believed only where
 * both are equal. True: the shift is known now.
 */
bool colo_rwflow_infer(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool taken_over, int64_t now);
/* A SYN cookie of the primary's older than its last: true, the shift is another one now. */
bool colo_rwflow_recall(struct colo_rwflow *f, const struct colo_tcpseg *seg);

/*
 * A segment of the VM's whose number does not fit with this flow's shift, only with `base`: the VM has become the
 * primary's copy. `base` is the shift that goes for the copy: 0, or that of an inherited connection on the same ports.
 */
bool colo_rwflow_fits_base(const struct colo_rwflow *f, const struct colo_tcpseg *seg, uint32_t base);
/*
 * Of an inherited flow that nothing has proven yet, a segment of either side: true, it fits the other side's last one
 * only unshifted. Then the connection on these ports is another one than was exported.
 */
bool colo_rwflow_belied(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool by_vm);
/* Whether this SYN of the VM's, in its own numbers, or in the client's, opens another connection than the flow's. */
bool colo_rwflow_is_other(const struct colo_rwflow *f, const struct colo_tcpseg *seg, bool own_numbers);

/* Follows the connection; after the SYN was heard, before the segment is translated. */
void colo_rwflow_sent(struct colo_rwflow *f, const struct colo_tcpseg *seg);
void colo_rwflow_receives(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool taken_over, int64_t now);
/* The standing that follows from that. */
uint8_t colo_rwflow_standing(const struct colo_rwflow *f);

/* After the takeover, of the first segment with a timestamp: no TSval that the client would take for an old one. */
void colo_rwflow_floor(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now);
/* After the takeover, of a SYN or SYN-ACK: which scale the client goes by if it is the first that it gets. */
void colo_rwflow_announces(struct colo_rwflow *f, const struct colo_tcpseg *seg);
/* The window field in the scale that the client goes by, the primary's. */
uint16_t colo_rwflow_window(const struct colo_rwflow *f, const struct colo_tcpseg *seg);

#endif
