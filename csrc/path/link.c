/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sending side is a ring of records (sendring.h) with three marks in it: tail, up to which the peer has
 * acknowledged; sent, what the connection has taken; boundary, the first start of a record that is not before sent.
 * Acknowledgements and keepalives may only go out where sent stands on boundary.
 *
 * What output has offered once is offered again until it has been written, whatever became due meanwhile: TLS wants the
 * same bytes again after a write that would have blocked (tls.h).
 */
#include "link.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "sendring.h"

enum {
    TYPE_ACK = 64,  /* u64: the offset that the sender has received up to */
    TYPE_PING = 65, /* u64: the sender's own time */
    TYPE_PONG = 66, /* u64: that of the ping */
    SERVICE_LEN = 8, /* of their payloads */
    SERVICE = COLO_RECORD_HEAD + SERVICE_LEN,
    CHUNK = 128 * 1024,     /* offered at once: bounds how long an acknowledgement waits */
    READ_AHEAD = 128 * 1024, /* of the receive buffer beyond one record */
    READ_LEAST = 32 * 1024,  /* less room than this at the buffer's end: what is left moves to the front */
    ACK_BYTES = 64 * 1024,
    ACK_RECORDS = 64,
    MAX_RECORD = 16 * 1024 * 1024,
};

static const int64_t ACK_DELAY = 20 * 1000 * 1000;
static const int64_t NEVER = INT64_MAX;
static const int64_t LONGEST = INT64_MAX / 4; /* of a configured time */

struct colo_link {
    struct colo_link_config config;
    struct colo_link_counters counters;
    char fault[128];
    bool faulty;
    bool connected;
    bool used; /* the streams have seen a connection: the next one resumes them */

    /* sending */
    struct colo_sendring ring;
    uint64_t sent;     /* also what the last connection has taken, while there is none */
    uint64_t boundary;
    uint64_t offered;   /* output has shown the bytes up to here */
    uint8_t service[3 * SERVICE]; /* pong, ack, ping that go out now */
    size_t service_len, service_done;
    int64_t output_at;  /* when output was last asked for */
    int64_t quiet;      /* since when nothing was written */
    int64_t connect_at; /* of this connection */
    int64_t ping_at;    /* of the last ping; before connect_at: none yet */

    /* receiving */
    uint8_t *in;
    size_t in_cap, in_start, in_end;
    uint64_t received;
    uint64_t acked;        /* what we have told of it */
    uint32_t ack_records;  /* handed out since */
    int64_t ack_at;        /* NEVER: none is due */
    int64_t heard;
    bool pong;             /* is due, with: */
    uint64_t pong_value;
};

/* -------------------------------------------------------------------- life */

void colo_link_config_default(struct colo_link_config *config)
{
    *config = (struct colo_link_config){
        .send_bytes = 32u * 1024 * 1024,
        .max_record = 69632 + 64,
        .keepalive = 250 * 1000000LL,
        .timeout = 3 * 1000000000LL,
    };
}

colo_link *colo_link_create(const struct colo_link_config *config)
{
    colo_link *l;

    if (!config->max_record || config->max_record > MAX_RECORD || config->keepalive <= 0 || config->timeout <= 0 ||
        config->keepalive > LONGEST || config->timeout > LONGEST || config->send_bytes > INT64_MAX / 2 ||
        config->send_bytes < COLO_RECORD_HEAD + (uint64_t)config->max_record)
        return NULL;
    l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->config = *config;
    l->ring.limit = config->send_bytes;
    l->in_cap = COLO_RECORD_HEAD + (size_t)config->max_record + READ_AHEAD;
    l->in = malloc(l->in_cap);
    l->counters.rtt = l->counters.rtt_min = -1;
    l->ack_at = NEVER;
    if (!l->in) {
        colo_link_destroy(l);
        return NULL;
    }
    return l;
}

void colo_link_destroy(colo_link *l)
{
    if (!l)
        return;
    colo_sendring_reset(&l->ring);
    free(l->in);
    free(l);
}

/* -------------------------------------------------------------- connection */

uint64_t colo_link_received(const colo_link *l)
{
    return l->received;
}

bool colo_link_can_resume(const colo_link *l, uint64_t from)
{
    return !l->faulty && from <= l->sent && colo_sendring_starts(&l->ring, from);
}

static void release(colo_link *l, uint64_t to)
{
    l->counters.acked_bytes += to - l->ring.tail;
    colo_sendring_release(&l->ring, to);
}

int colo_link_connect(colo_link *l, uint64_t from, int64_t now)
{
    if (!colo_link_can_resume(l, from))
        return COLO_ERR_LIMIT;
    if (l->connected)
        colo_link_disconnect(l);
    if (l->used)
        l->counters.resumed++;
    release(l, from); /* who asks for `from` has all before it */
    l->used = l->connected = true;
    l->sent = l->boundary = l->offered = from;
    l->acked = l->received; /* the hello has told */
    l->output_at = l->quiet = l->heard = l->connect_at = now;
    l->ping_at = now - 1;
    return COLO_OK;
}

void colo_link_disconnect(colo_link *l)
{
    l->connected = false;
    l->in_start = l->in_end = 0;
    l->service_len = l->service_done = 0;
    l->pong = false;
    l->ack_at = NEVER;
    l->ack_records = 0;
}

int colo_link_restart(colo_link *l)
{
    if (l->connected)
        return COLO_ERR_MISUSE;
    if (l->ring.head || l->received)
        l->counters.gaps++;
    colo_sendring_reset(&l->ring);
    l->sent = l->boundary = l->offered = l->received = l->acked = 0;
    l->used = l->faulty = false;
    return COLO_OK;
}

/* ----------------------------------------------------------------- sending */

/* What a record's header may say, both of those that we send and of those that come. NULL: all is well. */
static const char *bad_head(uint8_t type, uint8_t nic, uint8_t vnet_len, uint32_t len, uint32_t max_record)
{
    bool frame = type >= COLO_LINK_MIRROR && type <= COLO_LINK_LEARN;

    if (len > max_record)
        return "is longer than the limit";
    if (!frame && (nic || vnet_len))
        return "names a NIC or a virtio-net header where none belongs";
    if (frame && ((vnet_len != 0 && vnet_len != 10 && vnet_len != 12) || vnet_len > len))
        return "has a virtio-net header of a wrong length";
    return NULL;
}

static bool sequenced(uint8_t type)
{
    return type >= COLO_LINK_MIRROR && type <= COLO_LINK_INHERIT;
}

static void put_head(uint8_t head[COLO_RECORD_HEAD], uint32_t len, uint8_t type, uint8_t nic, uint8_t vnet_len)
{
    colo_store32(head, len);
    head[4] = type;
    head[5] = nic;
    head[6] = vnet_len;
    head[7] = 0;
}

int colo_link_push(colo_link *l, const struct colo_link_record *record)
{
    uint8_t head[COLO_RECORD_HEAD];

    if (!sequenced(record->type) ||
        bad_head(record->type, record->nic, record->vnet_len, record->len, l->config.max_record))
        return COLO_ERR_MISUSE;
    put_head(head, record->len, record->type, record->nic, record->vnet_len);
    if (colo_sendring_push(&l->ring, head, record->data, record->len) < 0) {
        l->counters.refused++;
        return COLO_ERR_LIMIT;
    }
    l->counters.sent_records++;
    l->counters.sent_bytes += COLO_RECORD_HEAD + (uint64_t)record->len;
    return COLO_OK;
}

size_t colo_link_room(const colo_link *l)
{
    uint64_t used = l->ring.head - l->ring.tail + COLO_RECORD_HEAD;

    if (used >= l->ring.limit)
        return 0;
    return (size_t)(l->ring.limit - used < l->config.max_record ? l->ring.limit - used : l->config.max_record);
}

static void put_service(colo_link *l, uint8_t type, uint64_t value)
{
    uint8_t *at = l->service + l->service_len;

    put_head(at, SERVICE_LEN, type, 0, 0);
    colo_store32(at + COLO_RECORD_HEAD, (uint32_t)(value >> 32));
    colo_store32(at + COLO_RECORD_HEAD + 4, (uint32_t)value);
    l->service_len += SERVICE;
}

static bool nothing_to_write(const colo_link *l)
{
    return l->sent == l->ring.head && l->service_done == l->service_len && !l->pong;
}

/* Between two records: what is due goes before the next one. */
static void fill_service(colo_link *l, int64_t now)
{
    bool ping = nothing_to_write(l) && now - l->quiet >= l->config.keepalive;

    l->service_len = l->service_done = 0;
    if (l->pong)
        put_service(l, TYPE_PONG, l->pong_value);
    l->pong = false;
    if (now >= l->ack_at) {
        put_service(l, TYPE_ACK, l->received);
        l->acked = l->received;
        l->ack_records = 0;
        l->ack_at = NEVER;
    }
    if (ping) {
        put_service(l, TYPE_PING, (uint64_t)now);
        l->ping_at = now;
    }
}

size_t colo_link_output(colo_link *l, const uint8_t **data, int64_t now)
{
    size_t len, want = CHUNK;

    *data = NULL;
    if (!l->connected || l->faulty)
        return 0;
    l->output_at = now;
    if (l->service_done == l->service_len && l->offered <= l->sent && l->sent == l->boundary)
        fill_service(l, now);
    if (l->service_done < l->service_len) {
        *data = l->service + l->service_done;
        return l->service_len - l->service_done;
    }
    if (l->sent == l->ring.head)
        return 0;
    /* Half a record is out and something waits to go behind it: no further than its end, but all that was offered. */
    if (l->sent < l->boundary && (l->pong || now >= l->ack_at)) {
        uint64_t end = l->offered > l->boundary ? l->offered : l->boundary;

        want = (size_t)(end - l->sent);
    }
    *data = colo_sendring_at(&l->ring, l->sent, want, &len);
    if (l->offered < l->sent + len)
        l->offered = l->sent + len;
    return len;
}

void colo_link_wrote(colo_link *l, size_t n)
{
    if (!l->connected || !n)
        return;
    l->quiet = l->output_at;
    if (l->service_done < l->service_len) {
        size_t left = l->service_len - l->service_done;

        l->service_done += n < left ? n : left;
        return;
    }
    if (n > l->offered - l->sent)
        n = (size_t)(l->offered - l->sent);
    l->sent += n;
    while (l->boundary < l->sent)
        l->boundary = colo_sendring_after(&l->ring, l->boundary);
}

/* --------------------------------------------------------------- receiving */

size_t colo_link_input(colo_link *l, uint8_t **data)
{
    size_t left = l->in_end - l->in_start;

    *data = NULL;
    if (!l->connected || l->faulty)
        return 0;
    if (l->in_start && (!left || l->in_cap - l->in_end < READ_LEAST)) {
        memmove(l->in, l->in + l->in_start, left);
        l->in_start = 0;
        l->in_end = left;
    }
    *data = l->in + l->in_end;
    return l->in_cap - l->in_end;
}

void colo_link_got(colo_link *l, size_t n, int64_t now)
{
    if (!l->connected || !n)
        return;
    if (n > l->in_cap - l->in_end)
        n = l->in_cap - l->in_end;
    l->in_end += n;
    l->heard = now;
}

__attribute__((format(printf, 2, 3))) static int broken(colo_link *l, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(l->fault, sizeof l->fault, format, ap);
    va_end(ap);
    l->faulty = true;
    return COLO_ERR_MISUSE;
}

static int take_ack(colo_link *l, uint64_t value)
{
    if (value > l->sent)
        return broken(l, "acknowledges byte %llu, only %llu were sent", (unsigned long long)value,
                      (unsigned long long)l->sent);
    if (value < l->ring.tail)
        return broken(l, "acknowledges byte %llu after %llu", (unsigned long long)value,
                      (unsigned long long)l->ring.tail);
    if (!colo_sendring_starts(&l->ring, value))
        return broken(l, "acknowledges byte %llu, which is inside a record", (unsigned long long)value);
    release(l, value);
    return COLO_OK;
}

static int take_pong(colo_link *l, uint64_t value)
{
    int64_t sent_at = (int64_t)value;

    if (sent_at < l->connect_at || sent_at > l->ping_at)
        return broken(l, "answers a ping that was never sent");
    l->counters.rtt = l->heard > sent_at ? l->heard - sent_at : 0;
    if (l->counters.rtt_min < 0 || l->counters.rtt < l->counters.rtt_min)
        l->counters.rtt_min = l->counters.rtt;
    return COLO_OK;
}

static int take_service(colo_link *l, uint8_t type, const uint8_t *data)
{
    uint64_t value = (uint64_t)colo_load32(data) << 32 | colo_load32(data + 4);

    if (type == TYPE_ACK)
        return take_ack(l, value);
    if (type == TYPE_PONG)
        return take_pong(l, value);
    l->pong = true; /* of several that came together the last is answered */
    l->pong_value = value;
    return COLO_OK;
}

/* The record has been handed out: it counts, and is to be acknowledged. */
static void count(colo_link *l, uint32_t len)
{
    l->received += COLO_RECORD_HEAD + (uint64_t)len;
    l->counters.received_records++;
    l->counters.received_bytes += COLO_RECORD_HEAD + (uint64_t)len;
    l->ack_records++;
    if (l->ack_at == NEVER)
        l->ack_at = l->heard + ACK_DELAY;
    if (l->ack_records >= ACK_RECORDS || l->received - l->acked >= ACK_BYTES)
        l->ack_at = l->heard;
}

/* NULL: what stands at `head` can be the header of a record. */
static int check_head(colo_link *l, const uint8_t *head)
{
    uint8_t type = head[4];
    uint32_t len = colo_load32(head);
    const char *bad;

    if (!sequenced(type) && type != TYPE_ACK && type != TYPE_PING && type != TYPE_PONG)
        return broken(l, "sends a record of unknown type %u (length %u)", type, len);
    bad = bad_head(type, head[5], head[6], len, l->config.max_record);
    if (!bad && head[7])
        bad = "has a reserved byte that is not 0";
    if (!bad && !sequenced(type) && len != SERVICE_LEN)
        bad = "has a wrong length";
    return bad ? broken(l, "a record of type %u and length %u %s", type, len, bad) : COLO_OK;
}

int colo_link_next(colo_link *l, struct colo_link_record *record)
{
    if (l->faulty)
        return COLO_ERR_MISUSE;
    while (l->in_end - l->in_start >= COLO_RECORD_HEAD) {
        const uint8_t *head = l->in + l->in_start;
        uint32_t len = colo_load32(head);
        int result = check_head(l, head);

        if (result < 0)
            return result;
        if (len > l->in_end - l->in_start - COLO_RECORD_HEAD)
            return 0;
        l->in_start += COLO_RECORD_HEAD + (size_t)len;
        if (sequenced(head[4])) {
            count(l, len);
            *record = (struct colo_link_record){.type = head[4], .nic = head[5], .vnet_len = head[6], .len = len,
                                                .data = head + COLO_RECORD_HEAD};
            return 1;
        }
        result = take_service(l, head[4], head + COLO_RECORD_HEAD);
        if (result < 0)
            return result;
    }
    return 0;
}

const char *colo_link_fault(const colo_link *l)
{
    return l->faulty ? l->fault : NULL;
}

/* -------------------------------------------------------------------- time */

/* Whether something came that the caller has not taken. */
static bool untaken(const colo_link *l)
{
    size_t left = l->in_end - l->in_start;

    return left >= COLO_RECORD_HEAD && left - COLO_RECORD_HEAD >= colo_load32(l->in + l->in_start);
}

int64_t colo_link_deadline(const colo_link *l)
{
    int64_t at = l->heard + l->config.timeout;

    if (!l->connected || l->faulty)
        return NEVER;
    /* Who has bytes to write calls output as soon as they can be written: a deadline would only make him spin. */
    if (!nothing_to_write(l))
        return at;
    if (l->ack_at < at)
        at = l->ack_at;
    if (l->quiet + l->config.keepalive < at)
        at = l->quiet + l->config.keepalive;
    return at;
}

bool colo_link_tick(colo_link *l, int64_t now)
{
    if (!l->connected)
        return false;
    if (untaken(l))
        l->heard = now; /* it is we who are slow; the peer's silence counts from when we listen again */
    return now - l->heard >= l->config.timeout;
}

void colo_link_counters_of(const colo_link *l, struct colo_link_counters *out)
{
    *out = l->counters;
    out->queued_bytes = l->ring.head - l->ring.tail;
}
