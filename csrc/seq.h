/* SPDX-License-Identifier: Apache-2.0 */
/*
 * seq.h - the one place where 32-bit TCP sequence numbers are compared.
 *
 * Everything else works with 64-bit stream offsets: an offset is the distance from a base, the sequence number
 * that is called offset 0. A 32-bit number is extended to the offset nearest to a reference offset, so streams may
 * be of any length, and a number up to 2^31 away on either side is understood (RFC 9293, section 3.4).
 */
#ifndef COLO_SEQ_H
#define COLO_SEQ_H

#include <stdint.h>

/* The offset of `seq` that is nearest to `ref`, where offset 0 is `base`. */
static inline int64_t colo_seq_extend(uint32_t base, int64_t ref, uint32_t seq)
{
    uint32_t at_ref = base + (uint32_t)ref;
    return ref + (int32_t)(seq - at_ref);
}

/* The sequence number of an offset. */
static inline uint32_t colo_seq_at(uint32_t base, int64_t off)
{
    return base + (uint32_t)off;
}

#endif
