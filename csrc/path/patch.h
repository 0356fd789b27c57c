/* SPDX-License-Identifier: Apache-2.0 */
/*
 * patch.h - changes bytes of a packet together with the Internet checksums that cover them (RFC 1624).
 *
 * Fields may lie at odd offsets (a timestamps option without padding before it): the checksum is updated by the 16-bit
 * words that the field touches, two or three of them. A checksum that was wrong before is as wrong after.
 */
#ifndef COLO_PATCH_H
#define COLO_PATCH_H

#include <stdbool.h>
#include <stdint.h>

/* What one checksum covers. A quoted segment lies in an ICMP message, which changes with it. */
struct colo_patch {
    uint8_t *data;
    uint32_t base;    /* where the covered words begin: words are at even distances from here */
    uint32_t end;     /* behind the last byte that is there */
    uint32_t csum_at; /* of the checksum field; 0: there is none to keep, it is cut off or completed later */
    struct colo_patch *outer;
    bool changed;     /* some byte is another one now */
};

/* The field lies in [base, end): the caller has checked. Writing the value that is there changes nothing. */
void colo_patch8(struct colo_patch *p, uint32_t at, uint8_t value);
void colo_patch16(struct colo_patch *p, uint32_t at, uint16_t value);
void colo_patch32(struct colo_patch *p, uint32_t at, uint32_t value);

#endif
