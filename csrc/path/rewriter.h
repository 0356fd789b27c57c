/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rewriter.h - translates the secondary VM's TCP numbers to the primary VM's and back, sans-I/O. docs/rewriter.md.
 *
 * The two VMs choose other initial sequence numbers and other timestamp offsets for connections that were opened since
 * the last checkpoint. The client knows the primary's. So of such a connection (a flow)
 *
 *     VM to client   the sequence number and TSval are shifted to the primary's
 *     client to VM   the ACK number, SACK blocks and TSecr are shifted back
 *
 * and ICMP errors that quote a segment likewise. What the shift is comes from the SYN (or SYN-ACK) of both: the
 * secondary's passes through here, the primary's arrives as a notice, colo_rewriter_learn, always before the client can
 * have answered it. A checkpoint makes the secondary's numbers the primary's: colo_rewriter_mark forgets all flows.
 *
 * After a failover the survivor's own rewriter goes on for the connections that need it, also when its VM becomes the
 * primary of a new pair. Both sides of that pair *inherit* these flows (export, import): they are the client's numbers
 * less those of the primary VM, and so of its copy, and a mark leaves them as they are.
 */
#ifndef COLO_REWRITER_H
#define COLO_REWRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

/* cffi:begin */

typedef struct colo_rewriter colo_rewriter;

struct colo_rewriter_config {
    uint32_t max_flows;     /* 65,536 */
    uint64_t hash_seed;     /* random in production */
};

enum colo_rewrite {
    COLO_REWRITE_NONE = 0,  /* goes on as it is */
    COLO_REWRITE_DONE = 1,  /* was changed in place */
    COLO_REWRITE_DROP = 2,  /* must not go on: it can't be translated, and untranslated it would do harm */
};

struct colo_rewriter_counters {
    uint64_t learned;        /* notices that were of use */
    uint64_t out_rewritten, in_rewritten, icmp_rewritten;
    uint64_t dropped;        /* segments that could not be translated */
    uint64_t unshifted;      /* output of a known flow whose number fitted only unshifted: the flow was forgotten */
    uint64_t belied;         /* inherited flows that were another connection by then: forgotten */
    uint64_t fallbacks;      /* shifts learnt from the client's first ACK, for want of a notice */
    uint64_t window_scaled;  /* windows translated because the two VMs' scale factors differ */
    uint64_t damaged;        /* the client's segments of known flows with a wrong checksum: nothing was learnt of them */
    uint64_t signed_segments;/* of known flows with TCP-MD5 or TCP-AO: passed untouched */
    uint64_t evicted;        /* flows that made room for others while half open or closed */
    uint64_t refused;        /* new flows for which there was no room: want a checkpoint */
    uint64_t flows;          /* now */
    uint64_t inherited;      /* ... of these */
};

void colo_rewriter_config_default(struct colo_rewriter_config *config);
colo_rewriter *colo_rewriter_create(const struct colo_rewriter_config *config);
void colo_rewriter_destroy(colo_rewriter *r);

/*
 * All frames: `data` is vnet_len bytes of virtio-net header (0, 10 or 12), then the Ethernet frame; `nic` is part of the
 * flow's name. Frames are changed in place, never in length. Returns enum colo_rewrite, or COLO_ERR_MISUSE for a vnet_len beyond len.
 */
/* A frame with SYN that the primary VM sent. Never changed. 0, or LIMIT: no room (counted as refused). */
int colo_rewriter_learn(colo_rewriter *r, uint8_t nic, const uint8_t *data, uint32_t len, uint32_t vnet_len, int64_t now);
/* A frame that the secondary VM sent. */
int colo_rewriter_out(colo_rewriter *r, uint8_t nic, uint8_t *data, uint32_t len, uint32_t vnet_len, int64_t now);
/* A frame for the secondary VM. */
int colo_rewriter_in(colo_rewriter *r, uint8_t nic, uint8_t *data, uint32_t len, uint32_t vnet_len, int64_t now);

/* A checkpoint: the secondary VM is now the primary's copy. Inherited flows stay. */
void colo_rewriter_mark(colo_rewriter *r);
/* The primary is gone: shifts are kept until their connections close, new connections are no longer entered. */
void colo_rewriter_takeover(colo_rewriter *r, int64_t now);

/* Whether there is no flow, and no frame has to be shown to it: learn apart, before the takeover also the VM's. */
bool colo_rewriter_is_idle(const colo_rewriter *r);

/*
 * What is to go on with, as bytes (rwinherit.h): flows with a known shift that are not closed. So many as fit into
 * `cap`, from *place on, which is 0 at first and moves on; what fits is a whole that can be imported by itself. Returns
 * the length, 0: that was all, LIMIT: not even one fits. With *place 0 there is always something.
 */
long colo_rewriter_export(const colo_rewriter *r, uint32_t *place, uint8_t *out, size_t cap, int64_t now);
/* What export needs to say all at once. */
size_t colo_rewriter_export_size(const colo_rewriter *r);
/*
 * Inherits the flows; `then`: when they were exported, in this rewriter's time. A copy that is out of date does no harm:
 * docs/rewriter.md. MISUSE: they make no sense, or one is there already; LIMIT: no room; NOMEM. Nothing has changed
 * then, and *why says what is wrong.
 */
int colo_rewriter_import(colo_rewriter *r, const uint8_t *data, size_t len, int64_t then, const char **why);
/* Forgets the inherited flows. */
void colo_rewriter_disinherit(colo_rewriter *r);

void colo_rewriter_counters_of(const colo_rewriter *r, struct colo_rewriter_counters *out);

/* cffi:end */

#endif
