/* SPDX-License-Identifier: Apache-2.0 */
#include "csum.h"

#include "load.h"

uint64_t colo_csum_add(uint64_t sum, const uint8_t *p, size_t len)
{
    for (; len >= 2; p += 2, len -= 2)
        sum += colo_load16(p);
    if (len)
        sum += (uint64_t)p[0] << 8;
    return sum;
}

uint16_t colo_csum_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

uint16_t colo_csum_update32(uint16_t csum, uint32_t from, uint32_t to)
{
    uint64_t sum = (uint16_t)~csum;

    sum += (uint16_t)~(from >> 16);
    sum += (uint16_t)~from;
    sum += to >> 16;
    sum += to & 0xffff;
    return colo_csum_fold(sum);
}
