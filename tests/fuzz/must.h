/* SPDX-License-Identifier: Apache-2.0 */
/* must.h - what the fuzz targets share. MUST ends the program where an invariant is broken. */
#ifndef MUST_H
#define MUST_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(cond, ...) \
    do { \
        if (!(cond)) { \
            fprintf(stderr, "%s:%d: broken: %s: ", __FILE__, __LINE__, #cond); \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr); \
            abort(); \
        } \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A copy that ends where it ends: a byte read beyond it is AddressSanitizer's. Never NULL. */
static inline uint8_t *copy_of(const uint8_t *data, size_t size)
{
    uint8_t *out = malloc(size ? size : 1);

    MUST(out, "no memory");
    if (size)
        memcpy(out, data, size);
    return out;
}

/* The input, read from the front; zeros behind its end. */
struct bytes {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t take8(struct bytes *b)
{
    if (!b->left)
        return 0;
    b->left--;
    return *b->at++;
}

#endif
