/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zero.h - clears what is cleared for each frame.
 *
 * For a structure of some hundred bytes gcc makes of memset, and of an initialiser, a "rep stos", which takes longer to
 * start than all of its stores. Pieces of 64 bytes become plain stores.
 */
#ifndef COLO_ZERO_H
#define COLO_ZERO_H

#include <stddef.h>
#include <string.h>

static inline void colo_zero(void *object, size_t size)
{
    char *p = object;

    for (; size >= 64; p += 64, size -= 64)
        memset(p, 0, 64);
    memset(p, 0, size);
}

#endif
