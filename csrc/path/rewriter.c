/* SPDX-License-Identifier: Apache-2.0 */
#include "rewriter.h"

#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "load.h"
#include "parse.h"
#include "quote.h"
#include "rwflow.h"
#include "rwstate.h"
#include "tcpseg.h"

enum {
    TCP_WINDOW_AT = 14,
    TCP_CSUM_AT = 16,
    TCP_CSUM_END = 18,
    ICMP_CSUM_AT = 2,
    MAX_FLOWS = 1 << 24,
    EXPIRE_A_CALL = 2, /* more than one call can add */
};

/* A retransmitted FIN is answered for as long as TIME-WAIT lasts: Linux' 60 s. */
static const int64_t LINGER = 60 * INT64_C(1000000000);

/* A frame on its way, decoded. */
struct frame {
    uint8_t *data;
    uint32_t vnet_len;
    struct colo_packet packet;
    struct colo_tcpseg seg;
    struct colo_rwkey key;
};

void colo_rewriter_config_default(struct colo_rewriter_config *config)
{
    *config = (struct colo_rewriter_config){.max_flows = 65536};
}

colo_rewriter *colo_rewriter_create(const struct colo_rewriter_config *config)
{
    colo_rewriter *r;

    if (config->max_flows == 0 || config->max_flows > MAX_FLOWS)
        return NULL;
    r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->config = *config;
    r->table = colo_rwtable_create(config->max_flows, config->hash_seed);
    if (!r->table) {
        free(r);
        return NULL;
    }
    return r;
}

void colo_rewriter_destroy(colo_rewriter *r)
{
    if (!r)
        return;
    colo_rwtable_destroy(r->table);
    colo_rwtable_destroy(r->inherited);
    free(r);
}

bool colo_rewriter_is_idle(const colo_rewriter *r)
{
    return !colo_rwtable_count(r->table) && !colo_rwstate_inherited(r);
}

static struct colo_rwflow *find_inherited(const colo_rewriter *r, const struct colo_rwkey *key)
{
    return r->inherited ? colo_rwtable_find(r->inherited, key) : NULL;
}

static struct colo_rwflow *find(const colo_rewriter *r, const struct colo_rwkey *key)
{
    struct colo_rwflow *flow = colo_rwtable_find(r->table, key);

    return flow ? flow : find_inherited(r, key);
}

static void forget(colo_rewriter *r, struct colo_rwflow *flow)
{
    colo_rwtable_remove(flow->inherited ? r->inherited : r->table, flow);
}

/* A new one. The limit goes for both tables together: what is exported one day must have room where it is imported. */
static struct colo_rwflow *add(colo_rewriter *r, const struct colo_rwkey *key)
{
    struct colo_rwflow *flow = NULL;

    if (colo_rwtable_count(r->table) + colo_rwstate_inherited(r) < r->config.max_flows || colo_rwtable_evict(r->table))
        flow = colo_rwtable_add(r->table, key);
    if (!flow)
        r->counters.refused++;
    return flow;
}

static void set_key(struct colo_rwkey *key, uint8_t nic, const struct colo_flow_id *id)
{
    *key = (struct colo_rwkey){.nic = nic, .family = id->family, .vlan_count = id->vlan_count,
                               .vlan = {id->vlan[0], id->vlan[1]}};
}

static void set_ends(struct colo_rwkey *key, const uint8_t *vm, uint16_t vm_port, const uint8_t *client,
                     uint16_t client_port)
{
    size_t size = key->family == 6 ? 16 : 4;

    memcpy(key->src, vm, size);
    memcpy(key->dst, client, size);
    key->sport = vm_port;
    key->dport = client_port;
}

/* Decodes a frame, and names the flow where it has a TCP header. */
static enum colo_tcpseg_found read_frame(struct frame *f, uint8_t nic, uint32_t len, bool from_vm)
{
    const struct colo_flow_id *id = &f->packet.id;
    enum colo_tcpseg_found found;

    colo_parse(f->data, len, f->vnet_len, &f->packet);
    found = colo_tcpseg_read(f->data, &f->packet, &f->seg);
    set_key(&f->key, nic, id);
    if (found != COLO_TCPSEG_NONE) {
        if (from_vm)
            set_ends(&f->key, id->src, f->seg.sport, id->dst, f->seg.dport);
        else
            set_ends(&f->key, id->dst, f->seg.dport, id->src, f->seg.sport);
    }
    return found;
}

/* After anything that happened to a flow. */
static void keep(colo_rewriter *r, struct colo_rwflow *flow, int64_t now)
{
    flow->used_at = now;
    colo_rwtable_stand(flow->inherited ? r->inherited : r->table, flow, colo_rwflow_standing(flow));
}

static void expire_of(struct colo_rwtable *table, int64_t now)
{
    for (int i = 0; i < EXPIRE_A_CALL; i++) {
        struct colo_rwflow *flow = colo_rwtable_oldest(table, COLO_RW_CLOSED);

        if (!flow || now - flow->used_at < LINGER)
            return;
        colo_rwtable_remove(table, flow);
    }
}

static void expire(colo_rewriter *r, int64_t now)
{
    expire_of(r->table, now);
    if (r->inherited)
        expire_of(r->inherited, now);
}

int colo_rewriter_learn(colo_rewriter *r, uint8_t nic, const uint8_t *data, uint32_t len, uint32_t vnet_len,
                        int64_t now)
{
    struct frame f = {.data = (uint8_t *)(uintptr_t)data, .vnet_len = vnet_len}; /* only read here */
    struct colo_rwflow *flow;

    if (vnet_len > len)
        return COLO_ERR_MISUSE;
    expire(r, now);
    if (read_frame(&f, nic, len, true) != COLO_TCPSEG_WHOLE || !(f.seg.flags & COLO_TCP_SYN))
        return 0;
    /* Of another connection on the same ports: what the secondary becomes a copy of knows the old one no more. */
    flow = find_inherited(r, &f.key);
    if (flow && colo_rwflow_is_other(flow, &f.seg, false))
        forget(r, flow);
    flow = find(r, &f.key);
    if (!flow && r->taken_over)
        return 0;
    if (!flow)
        flow = add(r, &f.key);
    if (!flow)
        return COLO_ERR_LIMIT;
    if (colo_rwflow_heard_primary(flow, &f.seg, now))
        r->counters.learned++;
    keep(r, flow, now);
    return 0;
}

/**
 * secondary_syn() - the secondary VM opens a connection, or answers the client's SYN.
 *
 * After the takeover the client has the secondary's own number of a new connection: there is no flow for it.
 * Return: the flow; NULL: none.
 */
static struct colo_rwflow *secondary_syn(colo_rewriter *r, struct colo_rwflow *flow, const struct frame *f, int64_t now)
{
    bool same_client;

    if (!flow && r->taken_over)
        return NULL;
    /* Until the primary does the same, a checkpoint may yet lead back to the inherited one. */
    if (!flow || (flow->inherited && !r->taken_over && colo_rwflow_is_other(flow, &f->seg, true)))
        flow = add(r, &f->key);
    if (!flow)
        return NULL;
    same_client = flow->s.acked && f->seg.flags & COLO_TCP_ACK && flow->s.ack == f->seg.ack;
    if (colo_rwflow_heard_secondary(flow, &f->seg, now) && r->taken_over && !flow->known && !same_client) {
        forget(r, flow);
        return NULL;
    }
    return flow;
}

/* Does the virtio-net header say that the checksum of the header at `at` is completed later? */
static bool is_partial(const struct frame *f, uint32_t at)
{
    if (!f->packet.csum_partial)
        return false;
    /* struct virtio_net_hdr: csum_start is little-endian and counts from the Ethernet header */
    return f->vnet_len < 10 || (uint32_t)(f->data[6] | f->data[7] << 8) + f->vnet_len == at;
}

/*
 * Whether the VM will take the client's segment: one that was damaged on its way must not teach us numbers, or end a
 * flow, that the VM never sees. Where a device has left the checksum to others, or has checked it, and for fragments,
 * there is nothing to be seen.
 */
static bool is_intact(const struct frame *f)
{
    const struct colo_packet *p = &f->packet;
    const uint32_t end = p->body + p->body_len, len = end - f->seg.at;
    const size_t address = p->id.family == 6 ? 16 : 4;
    uint64_t sum = IPPROTO_TCP + (uint64_t)len;

    if (f->seg.fragment || is_partial(f, f->seg.at) ||
        (f->vnet_len >= 2 && (f->data[0] & VIRTIO_NET_HDR_F_DATA_VALID || f->data[1] != VIRTIO_NET_HDR_GSO_NONE)))
        return true;
    sum = colo_csum_add(sum, p->id.src, address);
    sum = colo_csum_add(sum, p->id.dst, address);
    return colo_csum_fold(colo_csum_add(sum, f->data + f->seg.at, len)) == 0;
}

/* What is written into a frame of a known flow; `outward`: to the client. */
static struct colo_translation translation_of(const struct colo_rwflow *flow, bool by_vm, bool outward)
{
    return (struct colo_translation){
        .by_vm = by_vm,
        .ts = flow->ts_known,
        .bounded = !outward && !flow->unplaced, /* else nothing is known that bounds it */
        .seq_add = outward ? flow->seq_shift : -flow->seq_shift,
        .ts_add = outward ? flow->ts_shift : -flow->ts_shift,
        .latest = flow->s_ts,
    };
}

/**
 * rewrite_window() - the VM's window in the primary's scale.
 *
 * After the takeover the option of a SYN too, for it may be the first that the client gets. Before, the comparator must
 * see that the two VMs' differ.
 */
static void rewrite_window(colo_rewriter *r, const struct colo_rwflow *flow, const struct colo_tcpseg *seg,
                           struct colo_patch *patch)
{
    uint16_t window = colo_rwflow_window(flow, seg);

    r->counters.window_scaled += window != seg->window;
    colo_patch16(patch, seg->at + TCP_WINDOW_AT, window);
    if (r->taken_over && seg->flags & COLO_TCP_SYN && seg->wscale != 255 && flow->p_wscale != 255)
        colo_patch8(patch, seg->wscale_at, flow->p_wscale);
}

static bool rewrite_segment(colo_rewriter *r, const struct colo_rwflow *flow, struct frame *f, bool outward)
{
    const struct colo_tcpseg *seg = &f->seg;
    struct colo_translation tr = translation_of(flow, outward, outward);
    struct colo_patch patch = {.data = f->data, .base = seg->at, .end = seg->end,
                               .csum_at = is_partial(f, seg->at) ? 0 : seg->at + TCP_CSUM_AT};

    /* RFC 9293, 3.10.7.1: the RST that answers a segment without ACK has number 0, which is nobody's. */
    if (outward && seg->seq == 0 && seg->flags & COLO_TCP_RST && seg->flags & COLO_TCP_ACK &&
        (flow->s_next != 0 || flow->unplaced))
        return false;
    colo_tcpseg_translate(&patch, seg->at, &tr);
    if (outward)
        rewrite_window(r, flow, seg, &patch);
    return patch.changed;
}

/* The same for a segment quoted in an ICMP error. Whoever sends us such a thing, it changes nothing that we know. */
static int rewrite_quote(colo_rewriter *r, struct frame *f, bool outward)
{
    struct colo_rwflow *flow;
    struct colo_translation tr;
    struct colo_quote q;
    struct colo_patch icmp, tcp;

    if (!colo_quote_read(f->data, &f->packet, &q))
        return COLO_REWRITE_NONE;
    if (outward) /* it quotes the client */
        set_ends(&f->key, q.dst, q.dport, q.src, q.sport);
    else
        set_ends(&f->key, q.src, q.sport, q.dst, q.dport);
    flow = find(r, &f->key);
    if (!flow || !flow->known || flow->is_signed)
        return COLO_REWRITE_NONE;
    icmp = (struct colo_patch){.data = f->data, .base = q.icmp, .end = q.icmp_end,
                               .csum_at = is_partial(f, q.icmp) ? 0 : q.icmp + ICMP_CSUM_AT};
    tcp = (struct colo_patch){.data = f->data, .base = q.tcp, .end = q.tcp_end, .outer = &icmp,
                              .csum_at = q.tcp_end - q.tcp < TCP_CSUM_END ? 0 : q.tcp + TCP_CSUM_AT};
    tr = translation_of(flow, !outward, outward);
    colo_tcpseg_translate(&tcp, q.tcp, &tr);
    if (!tcp.changed)
        return COLO_REWRITE_NONE;
    r->counters.icmp_rewritten++;
    return COLO_REWRITE_DONE;
}

/* A first fragment without the whole header: its checksum and options would keep the old numbers. */
static int cut_segment(colo_rewriter *r, const struct colo_rwflow *flow)
{
    if (!flow || !flow->known || flow->is_signed || (!flow->seq_shift && flow->p_scale == flow->s_scale))
        return COLO_REWRITE_NONE;
    r->counters.dropped++;
    return COLO_REWRITE_DROP;
}

/* The end of out and in, which a signed segment does not come to. */
static int finish(colo_rewriter *r, const struct colo_rwflow *flow, struct frame *f, bool outward)
{
    if (!flow->known)
        return COLO_REWRITE_NONE;
    if (f->seg.is_signed) {
        r->counters.signed_segments++;
        return COLO_REWRITE_NONE;
    }
    if (!rewrite_segment(r, flow, f, outward))
        return COLO_REWRITE_NONE;
    if (outward)
        r->counters.out_rewritten++;
    else
        r->counters.in_rewritten++;
    return COLO_REWRITE_DONE;
}

/**
 * told_apart() - whose numbers this segment of the VM's has.
 *
 * Return: the flow whose shift it goes by, another one perhaps; NULL: it has the client's numbers already.
 */
static struct colo_rwflow *told_apart(colo_rewriter *r, struct colo_rwflow *flow, const struct frame *f)
{
    struct colo_rwflow *below;

    if (flow->inherited) {
        if (!colo_rwflow_belied(flow, &f->seg, true))
            return flow;
        forget(r, flow);
        r->counters.belied++;
        return NULL;
    }
    below = find_inherited(r, &f->key);
    if (!flow->known || !colo_rwflow_fits_base(flow, &f->seg, below ? below->seq_shift : 0))
        return flow;
    forget(r, flow);
    r->counters.unshifted++;
    return below;
}

int colo_rewriter_out(colo_rewriter *r, uint8_t nic, uint8_t *data, uint32_t len, uint32_t vnet_len, int64_t now)
{
    struct frame f = {.data = data, .vnet_len = vnet_len};
    struct colo_rwflow *flow;
    enum colo_tcpseg_found found;

    if (vnet_len > len)
        return COLO_ERR_MISUSE;
    if (r->taken_over && colo_rewriter_is_idle(r)) /* none will be entered any more */
        return COLO_REWRITE_NONE;
    expire(r, now);
    found = read_frame(&f, nic, len, true);
    if (found == COLO_TCPSEG_NONE)
        return rewrite_quote(r, &f, true);
    flow = find(r, &f.key);
    if (found == COLO_TCPSEG_CUT)
        return cut_segment(r, flow);
    if (f.seg.flags & COLO_TCP_SYN)
        flow = secondary_syn(r, flow, &f, now);
    if (flow)
        flow = told_apart(r, flow, &f);
    if (!flow)
        return COLO_REWRITE_NONE;
    colo_rwflow_sent(flow, &f.seg);
    if (r->taken_over) {
        colo_rwflow_floor(flow, &f.seg, now);
        colo_rwflow_announces(flow, &f.seg);
    }
    keep(r, flow, now);
    return finish(r, flow, &f, true);
}

int colo_rewriter_in(colo_rewriter *r, uint8_t nic, uint8_t *data, uint32_t len, uint32_t vnet_len, int64_t now)
{
    struct frame f = {.data = data, .vnet_len = vnet_len};
    struct colo_rwflow *flow;
    enum colo_tcpseg_found found;

    if (vnet_len > len)
        return COLO_ERR_MISUSE;
    if (colo_rewriter_is_idle(r)) /* as it is of most frames after a checkpoint: not worth a look */
        return COLO_REWRITE_NONE;
    expire(r, now);
    found = read_frame(&f, nic, len, false);
    if (found == COLO_TCPSEG_NONE)
        return rewrite_quote(r, &f, false);
    flow = find(r, &f.key);
    if (found == COLO_TCPSEG_CUT)
        return cut_segment(r, flow);
    if (!flow)
        return COLO_REWRITE_NONE;
    if (!is_intact(&f)) {
        r->counters.damaged++;
        return COLO_REWRITE_NONE;
    }
    if (colo_rwflow_belied(flow, &f.seg, false)) {
        forget(r, flow);
        r->counters.belied++;
        return COLO_REWRITE_NONE;
    }
    if (colo_rwflow_infer(flow, &f.seg, r->taken_over, now) && flow->seq_shift)
        r->counters.fallbacks++;
    (void)colo_rwflow_recall(flow, &f.seg);
    colo_rwflow_receives(flow, &f.seg, r->taken_over, now);
    keep(r, flow, now);
    return finish(r, flow, &f, false);
}

void colo_rewriter_mark(colo_rewriter *r)
{
    colo_rwtable_clear(r->table);
}

void colo_rewriter_takeover(colo_rewriter *r, int64_t now)
{
    r->taken_over = true;
    expire(r, now);
    /* What an own connection of the VM's has been hiding is over: no checkpoint leads back to it. */
    for (uint32_t i = 0; colo_rwstate_inherited(r) && i < colo_rwtable_places(r->table); i++) {
        const struct colo_rwflow *flow = colo_rwtable_at(r->table, i);
        struct colo_rwflow *below = flow ? find_inherited(r, &flow->key) : NULL;

        if (below)
            forget(r, below);
    }
}

void colo_rewriter_counters_of(const colo_rewriter *r, struct colo_rewriter_counters *out)
{
    *out = r->counters;
    out->inherited = colo_rwstate_inherited(r);
    out->flows = colo_rwtable_count(r->table) + out->inherited;
    out->evicted = colo_rwtable_evicted(r->table);
}
