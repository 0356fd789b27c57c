/* SPDX-License-Identifier: Apache-2.0 */
#include "hash.h"

#include "load.h"

/* Odd constants with about as many ones as zeros, so that a zero word still disturbs the product. */
static const uint64_t K0 = 0x9e3779b97f4a7c15u, K1 = 0xd1b54a32d192ed03u, K2 = 0x8cb92ba72f3d8dd7u;

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t colo_hash(uint64_t seed, const uint8_t *p, size_t len)
{
    uint64_t h = seed ^ mix(len ^ K0, K1 ^ seed);
    uint8_t tail[16] = {0};

    for (; len >= 16; p += 16, len -= 16)
        h = mix(colo_load64_host(p) ^ K1 ^ seed, colo_load64_host(p + 8) ^ h);
    if (len) {
        memcpy(tail, p, len);
        h = mix(colo_load64_host(tail) ^ K2 ^ seed, colo_load64_host(tail + 8) ^ h);
    }
    return mix(h ^ K0, K2);
}
