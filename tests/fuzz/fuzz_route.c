/* A hostile peer's records never end the thread, keep within the limits, and bring the comparator nothing it can't take. */
/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"
#include "marks.h"
#include "must.h"
#include "route.h"
#include "turn.h"

enum { NICS = 2, MAX_FRAME = 2048, WIRE = 8192, HOLD = 16384 };

static struct colo_path *p;
static int client[NICS], vm[NICS], comparator[3];

static int attach(int place, int nic, int type, int kind)
{
    int pair[2];

    MUST(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair: %d", errno);
    MUST(colo_path_attach(p, place, nic, pair[0], kind, 0) == 0, "attach");
    return pair[1];
}

static void create(uint8_t role)
{
    struct colo_path_config config;

    colo_path_config_default(&config);
    config.role = role;
    config.nics = NICS;
    config.max_frame = MAX_FRAME;
    config.wire_bytes = WIRE;
    config.hold_bytes = HOLD;
    config.link.max_record = 2 * MAX_FRAME;
    config.link.send_bytes = 32 * MAX_FRAME;
    config.rewriter.max_flows = 16;
    p = colo_path_create(&config);
    MUST(p, "no memory");
    for (int nic = 0; nic < NICS; nic++) {
        client[nic] = attach(COLO_PLACE_CLIENT, nic, SOCK_DGRAM, COLO_WIRE_FRAMES);
        vm[nic] = attach(COLO_PLACE_VM, nic, SOCK_STREAM, COLO_WIRE_STREAM);
    }
    for (int i = 0; i < 3 && role == COLO_PATH_PRIMARY; i++)
        comparator[i] = attach(COLO_PLACE_PRIMARY_IN + i, 0, SOCK_STREAM, COLO_WIRE_TAGGED);
    p->session = true;
    p->now = 1;
}

static void destroy(uint8_t role)
{
    colo_path_destroy(p);
    for (int nic = 0; nic < NICS; nic++) {
        close(client[nic]);
        close(vm[nic]);
    }
    for (int i = 0; i < 3 && role == COLO_PATH_PRIMARY; i++)
        close(comparator[i]);
}

/* Reads all that a stream holds, which must be frames that its reader takes. */
static void take_stream(int fd, bool tagged)
{
    uint8_t data[MAX_FRAME];

    for (;;) {
        uint8_t head[8];
        ssize_t n = recv(fd, head, tagged ? 8 : 4, 0);
        uint32_t len, word;

        if (n < 0)
            return;
        MUST(n == (tagged ? 8 : 4), "half a head: %zd", n);
        len = colo_load32(head);
        word = tagged ? colo_load32(head + 4) : 0;
        MUST(len >= 14 + (word & 0xffffff) && len <= MAX_FRAME, "a frame of %u bytes, word %08x", len, word);
        MUST(word >> 24 < NICS, "of NIC %u", word >> 24);
        for (uint32_t at = 0; at < len; at += (uint32_t)n) {
            n = recv(fd, data, len - at, 0);
            MUST(n > 0, "%u of %u bytes", at, len);
        }
    }
}

static void take_all(uint8_t role)
{
    uint8_t data[4 * MAX_FRAME];

    for (int nic = 0; nic < NICS; nic++) {
        take_stream(vm[nic], false);
        while (recv(client[nic], data, sizeof data, 0) > 0) {
        }
    }
    for (int i = 0; i < 2 && role == COLO_PATH_PRIMARY; i++)
        take_stream(comparator[i], true);
}

static void check(uint8_t role)
{
    struct colo_path_counters n;

    colo_path_counters_of(p, &n);
    MUST(!p->error, "the thread would end: %d", p->error);
    MUST(colo_fifo_len(&p->held) <= HOLD && colo_fifo_len(&p->inbound) <= HOLD, "held: %zu, %zu",
         colo_fifo_len(&p->held), colo_fifo_len(&p->inbound));
    MUST(colo_fifo_len(&p->control) <= 1 << 20, "control: %zu", colo_fifo_len(&p->control));
    for (int nic = 0; nic < NICS; nic++)
        MUST(n.vm[nic].queued_bytes <= WIRE + MAX_FRAME, "%llu bytes wait for the VM",
             (unsigned long long)n.vm[nic].queued_bytes);
    MUST(n.comparator[1].queued_bytes <= WIRE + MAX_FRAME, "wait for the comparator");
    MUST(!n.events_lost, "an event was lost");
    MUST(role == COLO_PATH_PRIMARY || (n.marks == -1 && n.commits == -1), "a secondary counts");
    MUST(n.marks >= 0 || n.commits < 0, "commits are counted without marks");
    MUST(n.commits < 0 || n.marks <= n.commits + 1, "marks %lld, commits %lld", (long long)n.marks,
         (long long)n.commits);
}

/* A frame of the VM's or of a client's: here they say what the input says. */
static void local(struct bytes *b, bool of_vm, uint8_t how)
{
    uint8_t data[64] = {2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1};
    struct colo_wire_frame frame = {.data = data, .len = 14 + how % 50, .nic = how % NICS};

    for (uint32_t at = 12; at < frame.len; at++)
        data[at] = take8(b);
    if (of_vm && colo_route_may_read_vm(p, frame.nic))
        colo_route_from_vm(p, &frame);
    if (!of_vm && colo_route_may_read_client(p, frame.nic))
        colo_route_from_client(p, &frame);
}

static void call(uint8_t which, uint8_t role)
{
    struct colo_path_event events[8];
    uint8_t message[128];

    switch (which % 11) {
    case 0:
        (void)colo_path_sync(p, 1 + which / 128u);
        break;
    case 1:
        (void)colo_path_accept(p);
        break;
    case 2:
        (void)colo_path_commit(p);
        break;
    case 3:
        (void)colo_path_drain(p, colo_path_now());
        break;
    case 4:
        (void)colo_path_stand(p);
        break;
    case 5:
        (void)colo_path_epoch(p, colo_path_now());
        break;
    case 6:
        (void)colo_path_stand_over(p);
        break;
    case 7:
        (void)colo_path_answer(p, which);
        break;
    case 8:
        if (which > 250)
            (void)colo_path_takeover(p);
        break;
    case 9:
        (void)colo_path_events(p, events, 8);
        (void)colo_path_take_control(p, message, sizeof message);
        break;
    default:
        take_all(role);
    }
}

/*
 * Input: the role, then acts. A record: type and NIC, length of the virtio-net header, two of the payload's, which is
 * taken from the input and padded by zeros.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes b = {data, size};
    const uint8_t role = take8(&b) & 1;

    create(role);
    while (b.left) {
        const uint8_t act = take8(&b);
        const uint64_t compared = p->counters.output;
        const bool standing = p->standing;

        if ((act & 3) < 2) {
            static const uint8_t vnet[] = {0, 10, 12, 0};
            const uint8_t kind = take8(&b);
            struct colo_link_record record = {
                .type = (uint8_t)(1 + (kind & 7) % 6), .nic = (uint8_t)(kind >> 3 & 3), .vnet_len = vnet[kind >> 6]};
            const char *why = NULL;
            uint8_t *payload;

            record.len = (act & 1 ? take8(&b) : (uint32_t)(act >> 2) * 70u);
            if (record.len < record.vnet_len) /* the link has seen to that */
                record.len = record.vnet_len;
            payload = calloc(1, record.len ? record.len : 1);
            MUST(payload, "no memory");
            for (uint32_t i = 0; i < record.len && b.left; i++)
                payload[i] = take8(&b);
            record.data = payload;
            if (record.type < COLO_LINK_MARK || (!record.nic && !record.vnet_len)) { /* that too */
                const bool fine = colo_route_record(p, &record, &why);

                MUST(fine == !why, "refused without a reason, or the other way round");
            }
            free(payload);
            MUST(role == COLO_PATH_SECONDARY || !standing || p->counters.output == compared,
                 "handed to the comparator while the VM stands");
            colo_path_flush(p);
        } else if ((act & 3) == 2) {
            call(act >> 2 | act << 6, role);
        } else {
            local(&b, act & 4, act >> 3);
            p->now += (int64_t)(act >> 3) * 50000000;
            colo_route_held(p);
            colo_path_flush(p);
        }
        check(role);
    }
    take_all(role);
    destroy(role);
    return 0;
}
