/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Of the options of the header that a segment is made from the timestamps stay, for the client's PAWS, but the echo is
 * the secondary's latest: where it was the secondary that missed a segment, the primary's older echo would make the
 * client take its retransmission for a spurious one and stop repairing (Eifel, RFC 3522). The header's SACK blocks say
 * what was missing when it was made, and would read as duplicates now (RFC 2883); `sack` takes their place.
 */
#include "own.h"

#include <assert.h>
#include <string.h>

#include "csum.h"
#include "load.h"
#include "seq.h"

enum { TIMESTAMPS_AT_ECHO = 2 + 6 };

struct colo_bytes colo_own_option(const uint8_t *tcp, uint8_t kind)
{
    const uint8_t *p = tcp + COLO_TCP_MIN_LEN, *end = tcp + (uint32_t)(tcp[COLO_TCP_AT_DATA_OFFSET] >> 4) * 4;

    while (end - p >= 2 && p[0] != 0) {
        if (p[0] == 1) {
            p++;
            continue;
        }
        if (p[1] < 2 || p[1] > end - p)
            break;
        if (p[0] == kind)
            return (struct colo_bytes){p, p[1]};
        p += p[1];
    }
    return (struct colo_bytes){NULL, 0};
}

static uint32_t header_len(const struct colo_rec *rec)
{
    return (uint32_t)rec->l4 + (uint32_t)(rec->data[rec->l4 + COLO_TCP_AT_DATA_OFFSET] >> 4) * 4;
}

bool colo_own_may_alter(const struct colo_rec *rec)
{
    return !(rec->tcp_flags & (COLO_TCP_SYN | COLO_TCP_RST)) && !rec->tcp_auth && header_len(rec) <= COLO_DEBT_BYTES;
}

void colo_own_take_header(struct colo_debt *header, const struct colo_rec *rec)
{
    header->len = (uint16_t)header_len(rec);
    header->l3 = rec->l3;
    header->l4 = rec->l4;
    header->vnet_len = rec->vnet_len;
    memcpy(header->head, rec->data, header->len);
}

/* Appends an option, behind two no-operations for alignment as RFC 7323, appendix A, and RFC 2018 have it. */
static uint32_t append_option(uint8_t *options, uint32_t len, struct colo_bytes option)
{
    if (!option.data || len + 2 + option.len > COLO_OPTIONS_MAX || (2 + option.len) % 4)
        return len;
    options[len] = options[len + 1] = 1;
    memcpy(options + len + 2, option.data, option.len);
    return len + 2 + option.len;
}

static void finish_lengths(uint8_t *frame, const struct colo_debt *header, uint32_t tcp_len)
{
    uint8_t *ip = frame + header->l3, *tcp = frame + header->l4;
    uint32_t len = header->l4 + tcp_len;
    uint64_t sum = 6 + tcp_len; /* the pseudo header's protocol and length */

    if (ip[0] >> 4 == 4) {
        colo_store16(ip + 2, (uint16_t)(len - header->l3));
        colo_store16(ip + 10, 0);
        colo_store16(ip + 10, colo_csum_fold(colo_csum_add(0, ip, (size_t)(ip[0] & 15) * 4)));
        sum = colo_csum_add(sum, ip + 12, 8);
    } else {
        colo_store16(ip + 4, (uint16_t)(len - header->l3 - 40));
        sum = colo_csum_add(sum, ip + 8, 32);
    }
    colo_store16(tcp + COLO_TCP_AT_CSUM, 0);
    colo_store16(tcp + COLO_TCP_AT_CSUM, colo_csum_fold(colo_csum_add(sum, tcp, tcp_len)));
}

bool colo_own_emit(colo_comparator *c, const struct colo_flow *flow, const struct colo_own *own)
{
    const struct colo_debt *header = own->header;
    const struct colo_tcp *tcp = &flow->u.tcp;
    uint8_t frame[COLO_EMIT_MAX], options[COLO_OPTIONS_MAX], *p = frame + header->l4;
    uint32_t len;

    assert(own->body.len <= COLO_OWN_BODY_MAX);
    memcpy(frame, header->head, header->len);
    memset(frame, 0, header->vnet_len); /* no offload is asked for: the checksum is complete */
    len = append_option(options, 0, colo_own_option(header->head + header->l4, COLO_OPTION_TIMESTAMPS));
    if (len && tcp->s_echo_known)
        colo_store32(options + TIMESTAMPS_AT_ECHO, tcp->s_echo);
    len = append_option(options, len, own->sack);
    memcpy(p + COLO_TCP_MIN_LEN, options, len);
    len += COLO_TCP_MIN_LEN;
    colo_store32(p + COLO_TCP_AT_SEQ, colo_seq_at(tcp->p_base, own->off));
    colo_store32(p + COLO_TCP_AT_ACK, colo_seq_at(tcp->ack_base, own->ack));
    p[COLO_TCP_AT_DATA_OFFSET] = (uint8_t)(len / 4 << 4);
    p[COLO_TCP_AT_FLAGS] = COLO_TCP_ACK;
    colo_store16(p + COLO_TCP_AT_URGENT, 0);
    if (own->body.len)
        memcpy(p + len, own->body.data, own->body.len);
    len += own->body.len;
    finish_lengths(frame, header, len);
    return colo_output_emit(c, frame, header->l4 + len, header->vnet_len, flow->id.nic, own->reason);
}
