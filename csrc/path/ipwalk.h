/* SPDX-License-Identifier: Apache-2.0 */
/* ipwalk.h - IPv6 extension headers in places that parse.h does not look at: behind a fragment header, in a quote. */
#ifndef COLO_IPWALK_H
#define COLO_IPWALK_H

#include <stdbool.h>
#include <stdint.h>

/*
 * From *at and *protocol to the first header that is no extension; both move on. A fragment header of a first fragment
 * is passed over. False: the bytes end before, the chain is too long, or it is a later fragment.
 */
static inline bool colo_ipwalk_extensions(const uint8_t *data, uint32_t *at, uint32_t end, uint8_t *protocol)
{
    for (int i = 0; i < 8; i++) {
        uint32_t size;

        if (*protocol != 0 && *protocol != 43 && *protocol != 44 && *protocol != 51 && *protocol != 60)
            return true;
        if (end - *at < 8)
            return false;
        if (*protocol == 44) { /* fragment */
            if (data[*at + 2] || data[*at + 3] & 0xf8)
                return false;
            size = 8;
        } else if (*protocol == 51) { /* RFC 4302: counted in words of four bytes, minus two */
            size = ((uint32_t)data[*at + 1] + 2) * 4;
        } else {
            size = ((uint32_t)data[*at + 1] + 1) * 8;
        }
        if (size > end - *at)
            return false;
        *protocol = data[*at];
        *at += size;
    }
    return false;
}

#endif
