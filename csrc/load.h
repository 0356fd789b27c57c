/* SPDX-License-Identifier: Apache-2.0 */
/* load.h - big-endian loads and stores on packet bytes, at any alignment. The caller has checked the bounds. */
#ifndef COLO_LOAD_H
#define COLO_LOAD_H

#include <stdint.h>
#include <string.h>

static inline uint16_t colo_load16(const uint8_t *p)
{
    return (uint16_t)((unsigned)p[0] << 8 | p[1]);
}

static inline uint32_t colo_load32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void colo_store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void colo_store32(uint8_t *p, uint32_t v)
{
    colo_store16(p, (uint16_t)(v >> 16));
    colo_store16(p + 2, (uint16_t)v);
}

/* Host order: for hashing only. */
static inline uint64_t colo_load64_host(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
