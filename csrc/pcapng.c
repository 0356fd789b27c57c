/* SPDX-License-Identifier: Apache-2.0 */
#include "pcapng.h"

#include <string.h>

enum {
    SECTION = 0x0a0d0d0a,
    INTERFACE = 1,
    STATISTICS = 5,
    PACKET = 6,
    BYTE_ORDER_MAGIC = 0x1a2b3c4d,
    LINKTYPE_ETHERNET = 1,
    HEAD = 8,  /* type and length of a block */
    TAIL = 4,  /* its length again */
    NANOSECONDS = 9,
};

enum { /* options; 1 and 0 in every block, the rest by block */
    OPT_END = 0,
    OPT_COMMENT = 1,
    SHB_USERAPPL = 4,
    IF_NAME = 2,
    IF_TSRESOL = 9,
    ISB_IFRECV = 4,
    ISB_IFDROP = 5,
};

static const char APPLICATION[] = "coloproxy";

static uint8_t *put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    return p + 2;
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    return put16(put16(p, v & 0xffff), v >> 16);
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
    return put32(put32(p, (uint32_t)v), (uint32_t)(v >> 32));
}

/* Times are two words, the high one first, in either byte order. */
static uint8_t *put_time(uint8_t *p, int64_t time)
{
    return put32(put32(p, (uint32_t)((uint64_t)time >> 32)), (uint32_t)time);
}

static size_t padded(size_t len)
{
    return (len + 3) & ~(size_t)3;
}

static uint8_t *put_padded(uint8_t *p, const void *data, size_t len)
{
    size_t room = padded(len);

    if (len)
        memcpy(p, data, len);
    memset(p + len, 0, room - len);
    return p + room;
}

static size_t option_size(size_t len)
{
    return 4 + padded(len);
}

static uint8_t *put_option(uint8_t *p, uint32_t code, const void *data, size_t len)
{
    return put_padded(put16(put16(p, code), (uint32_t)len), data, len);
}

static uint8_t *put_option64(uint8_t *p, uint32_t code, uint64_t v)
{
    return put64(put16(put16(p, code), 8), v);
}

static uint8_t *put_end(uint8_t *p)
{
    return put32(p, OPT_END);
}

/* Type and length in front, length again behind; returns where the body begins. */
static uint8_t *begin(uint8_t *out, uint32_t type, size_t size)
{
    put32(out + size - TAIL, (uint32_t)size);
    return put32(put32(out, type), (uint32_t)size);
}

size_t colo_pcapng_section(uint8_t *out, size_t cap, const char *comment, size_t comment_len)
{
    const size_t name = sizeof APPLICATION - 1;
    size_t size = HEAD + 16 + option_size(comment_len) + option_size(name) + 4 + TAIL;
    uint8_t *p;

    if (comment_len > COLO_PCAPNG_TEXT_MAX || size > cap)
        return 0;
    p = put32(begin(out, SECTION, size), BYTE_ORDER_MAGIC);
    p = put16(put16(p, 1), 0);   /* version 1.0 */
    p = put64(p, UINT64_MAX);    /* the section's length is not said: it ends with the file */
    p = put_option(p, OPT_COMMENT, comment, comment_len);
    put_end(put_option(p, SHB_USERAPPL, APPLICATION, name));
    return size;
}

size_t colo_pcapng_interface(uint8_t *out, size_t cap, const char *name, uint32_t snap)
{
    static const uint8_t resolution = NANOSECONDS;
    size_t len = strlen(name), size = HEAD + 8 + option_size(len) + option_size(1) + 4 + TAIL;
    uint8_t *p;

    if (len > COLO_PCAPNG_TEXT_MAX || size > cap)
        return 0;
    p = put32(put16(put16(begin(out, INTERFACE, size), LINKTYPE_ETHERNET), 0), snap);
    p = put_option(p, IF_NAME, name, len);
    put_end(put_option(p, IF_TSRESOL, &resolution, 1));
    return size;
}

size_t colo_pcapng_packet(uint8_t *out, size_t cap, const struct colo_pcapng_packet *packet)
{
    size_t options = packet->comment_len ? option_size(packet->comment_len) + 4 : 0;
    size_t size = COLO_PCAPNG_DATA_AT + padded(packet->len) + options + TAIL;
    uint8_t *p;

    if (packet->comment_len > COLO_PCAPNG_TEXT_MAX || size > cap || size > UINT32_MAX)
        return 0;
    p = put_time(put32(begin(out, PACKET, size), packet->interface), packet->time);
    p = put_padded(put32(put32(p, packet->len), packet->wire_len), packet->data, packet->len);
    if (options)
        put_end(put_option(p, OPT_COMMENT, packet->comment, packet->comment_len));
    return size;
}

size_t colo_pcapng_statistics(uint8_t *out, size_t cap, uint32_t interface, int64_t time, uint64_t received,
                              uint64_t dropped)
{
    size_t size = HEAD + 12 + 2 * option_size(8) + 4 + TAIL;
    uint8_t *p;

    if (size > cap)
        return 0;
    p = put_time(put32(begin(out, STATISTICS, size), interface), time);
    put_end(put_option64(put_option64(p, ISB_IFRECV, received), ISB_IFDROP, dropped));
    return size;
}
