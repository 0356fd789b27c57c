/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coloproxy.h - the public interface of coloproxy's C core.
 *
 * Two objects live here:
 *
 *   colo_comparator  sans-I/O. Takes frames and the time, gives actions (release, discard, emit) and events
 *                    (divergence, checkpoint wanted, limit). No clock, no socket, no thread, no log.
 *   colo_engine      the adapter around one comparator: a thread with epoll that owns the three sockets of
 *                    QEMU's socket filters, reads the clock and carries out the comparator's actions.
 *
 * Conventions
 *   time     int64_t nanoseconds on any one monotonic clock of the caller's choice (the engine: CLOCK_MONOTONIC).
 *   errors   0 or a count on success, a negative `enum colo_error` on failure. Nothing changes on failure.
 *   memory   create/destroy pairs; destroy accepts NULL. A comparator never copies a frame: see colo_frame.
 *   threads  a comparator belongs to one thread at a time. Engine calls marked [any thread] may come from any.
 *
 * The text between the two cffi marks is also the cdef of the Python binding, so the two can't drift apart.
 */
#ifndef COLOPROXY_H
#define COLOPROXY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi:begin */

/* ------------------------------------------------------------------ common */

enum colo_error {
    COLO_OK = 0,
    COLO_ERR_NOMEM = -1,   /* an allocation failed */
    COLO_ERR_MISUSE = -2,  /* an argument or a call that the object's state does not allow */
    COLO_ERR_LIMIT = -3,   /* a limit given at creation is reached */
    COLO_ERR_SYSTEM = -4,  /* a system call failed: errno tells */
};

const char *colo_error_name(int error);

enum colo_side {
    COLO_PRIMARY = 0,
    COLO_SECONDARY = 1,
};

/* What a frame is, decided once when it is parsed. */
enum colo_class {
    COLO_CLASS_TCP = 0,
    COLO_CLASS_UDP = 1,
    COLO_CLASS_ICMP = 2,       /* IPv4 */
    COLO_CLASS_ICMP6 = 3,      /* but for neighbour discovery and MLD */
    COLO_CLASS_IP_OTHER = 4,   /* SCTP, GRE, ESP, ...: the IP payload is compared as it stands */
    COLO_CLASS_FRAGMENT = 5,   /* IPv4 or IPv6 fragment */
    COLO_CLASS_ARP = 6,        /* and RARP */
    COLO_CLASS_ND = 7,         /* IPv6 neighbour and router discovery, RFC 4861 */
    COLO_CLASS_DHCP = 8,       /* DHCPv4 and DHCPv6 */
    COLO_CLASS_MULTICAST = 9,  /* IGMP, MLD: group membership */
    COLO_CLASS_LINK = 10,      /* LLDP, STP and other link-local control frames */
    COLO_CLASS_OTHER = 11,     /* any other ethertype: the whole frame is compared */
    COLO_CLASS_MALFORMED = 12, /* can't be parsed: the whole frame is compared */
    COLO_CLASS_COUNT = 13,
};

const char *colo_class_name(int cls);

/* -------------------------------------------------------------- comparator */

typedef struct colo_comparator colo_comparator;

/* What is done with the frames of a flow; R1 is in docs/comparison.md. */
enum colo_policy {
    COLO_POLICY_COMPARE = 0,
    COLO_POLICY_PASS = 1,           /* the primary's leave at once, the secondary's copy is swallowed: R1 is given up */
    COLO_POLICY_DROP_SECONDARY = 2, /* the secondary's prove nothing and are dropped unread; the primary's wait for a
                                       commit, R1 (b), which is asked for at once */
    COLO_POLICY_COUNT = 3,
};

enum { COLO_MAX_RULES = 256 };

/* Fields of a colo_match that narrow it. */
enum colo_match_field {
    COLO_MATCH_CLASS = 1,
    COLO_MATCH_PROTOCOL = 2,
    COLO_MATCH_VM_PORT = 4,     /* TCP and UDP only, as the next */
    COLO_MATCH_CLIENT_PORT = 8,
    COLO_MATCH_VM = 16,         /* IP only, as the next */
    COLO_MATCH_CLIENT = 32,
    COLO_MATCH_VLAN = 64,
};

struct colo_port_range {
    uint16_t first;
    uint16_t last; /* included */
};

struct colo_prefix {
    uint8_t family; /* 4 or 6 */
    uint8_t bits;
    uint8_t address[16]; /* IPv4 in the first 4 bytes */
};

/* Which flows a rule is about: those that fit in every field named in `has`. A zeroed one fits all. */
struct colo_match {
    uint8_t has;          /* bits of enum colo_match_field */
    uint8_t protocol;     /* IP protocol */
    uint16_t vlan;        /* one of the frame's VLAN ids */
    uint32_t classes;     /* bit 1 << enum colo_class */
    struct colo_port_range vm_port;
    struct colo_port_range client_port;
    struct colo_prefix vm;
    struct colo_prefix client; /* or the multicast group that the VM sends to */
};

struct colo_rule {
    struct colo_match match;
    uint8_t action; /* enum colo_policy */
};

enum { COLO_MAX_TOLERANCES = 32, COLO_MAX_TOLERATED = 256 };

/*
 * Behind the text `after`, where both sides say it, up to `length` bytes may differ: until one side's is `until`, or no
 * printable ASCII. Both sides' must be equally many. What that gives up is in docs/rules.md.
 */
struct colo_tolerance_rule {
    struct colo_match match;
    uint16_t length;    /* 1 to COLO_MAX_TOLERATED */
    uint8_t has_until;
    uint8_t until;      /* printable, CR or LF */
    uint8_t after_len;
    uint8_t after[64];  /* printable, CR or LF; at least four printable ones */
};

struct colo_config {
    uint32_t max_flows;       /* entries of the flow table; idle flows make room, see docs/comparison.md */
    uint32_t max_frames;      /* frames inside the comparator; each side may use half, and at half of that asks
                                 for a checkpoint */
    uint64_t max_bytes;       /* bytes of those frames, the same way */
    uint32_t max_flow_frames; /* unmatched frames of one side of one flow */
    uint64_t max_flow_bytes;  /* bytes of those frames */
    uint32_t max_fragments;   /* of one side that wait for the rest of their datagram */
    uint32_t reorder_frames;  /* datagrams: how far a match is looked for */
    int64_t compare_timeout;  /* ns a frame may wait for the other side before a checkpoint is wanted */
    int64_t reorder_window;   /* ns: datagrams that other output has overtaken for so long are a difference */
    int64_t gap_window;       /* ns: bytes of a stream that the secondary has left out for so long want a checkpoint */
    uint32_t pass_classes;    /* bit 1 << enum colo_class: released at once, the secondary's copy swallowed */
    uint8_t keep_gap;         /* secondary frames read between STOP and RESUME: 0 dropped (safe), 1 new epoch */
    uint8_t any_scale;        /* window scale factors of the two sides' SYNs: 0 must be equal, 1 may differ where both
                                 are there: only for one who translates the survivor's windows after a failover */
    uint64_t hash_seed;       /* of the flow table; random in production, fixed in tests */
    const struct colo_rule *rules; /* the first that fits decides, pass_classes where none does; copied at creation */
    uint32_t rules_count;     /* COLO_MAX_RULES at most */
    const struct colo_tolerance_rule *tolerances; /* copied at creation */
    uint32_t tolerances_count; /* COLO_MAX_TOLERANCES at most; 0: all bytes must be equal */
};

/* Fills in the defaults that `coloproxy compare --help` states. */
void colo_config_default(struct colo_config *config);

/*
 * A frame handed in. The bytes stay the caller's: they must stay unchanged until the frame's cookie has come
 * back in an action, then they are the caller's to reuse.
 */
struct colo_frame {
    const uint8_t *data; /* vnet_len bytes of virtio-net header, then the Ethernet frame without FCS */
    uint32_t len;        /* of both together */
    uint32_t vnet_len;   /* 0, 10 or 12 */
    uint64_t cookie;     /* the caller's name for it */
    uint8_t nic;         /* of the VM's NICs: frames of two never belong to one flow */
};

enum colo_action_kind {
    COLO_RELEASE = 0, /* a primary frame goes to the client, with the patch below if ack_at != 0 */
    COLO_DISCARD = 1, /* a secondary frame is no longer needed */
    COLO_EMIT = 2,    /* a frame of the comparator's own goes to the client: an ACK once held back, or part of a held frame */
};

/* Why an action happened. */
enum colo_reason {
    COLO_REASON_MATCHED = 0,   /* the secondary said the same in this epoch: R1 (a) */
    COLO_REASON_COMMITTED = 1, /* a checkpoint covers it: R1 (b) */
    COLO_REASON_ALONE = 2,     /* there is no secondary: R1 (c) */
    COLO_REASON_PASSED = 3,    /* its class or a rule says that it passes */
    COLO_REASON_STALE = 4,     /* secondary output of an earlier epoch, or of one in doubt: R3 */
    COLO_REASON_DIVERGED = 5,  /* secondary output of a flow that waits for a checkpoint */
    COLO_REASON_IGNORED = 6,   /* secondary output that a rule says proves nothing */
    COLO_REASON_COUNT = 7,
};

const char *colo_reason_name(int reason);

/* The longest frame of an EMIT, virtio-net header included: it must pass wherever the guest's own frames do. */
enum { COLO_EMIT_MAX = 1024 };

/*
 * Actions must be carried out in the order given. A RELEASE whose ack_at is not 0 lowers the ACK number: write
 * `ack` big-endian at data[ack_at..+4] and `csum` big-endian at data[csum_at..+2] before sending.
 */
struct colo_action {
    uint8_t kind;        /* enum colo_action_kind */
    uint8_t reason;      /* enum colo_reason */
    uint8_t side;        /* enum colo_side of the frame */
    uint8_t vnet_len;    /* EMIT: of data */
    uint16_t ack_at;     /* RELEASE: offset into the frame's data, 0: unchanged */
    uint16_t csum_at;
    uint32_t ack;
    uint16_t csum;
    uint8_t nic;         /* the frame's; EMIT: through which NIC's link it goes to the client */
    uint64_t cookie;     /* RELEASE, DISCARD: the frame's */
    const uint8_t *data; /* EMIT: valid until the next call that is not colo_comparator_actions */
    uint32_t len;        /* EMIT: of data, virtio-net header included */
};

enum colo_event_kind {
    COLO_EVENT_WANT_CHECKPOINT = 0, /* once an epoch at most */
    COLO_EVENT_DIVERGENCE = 1,      /* once a flow and epoch at most, with evidence */
    COLO_EVENT_LIMIT = 2,           /* a limit is reached, or half reached; once a limit and epoch at most */
    COLO_EVENT_TOLERATED = 3,       /* bytes differ where a rule allows it, with evidence; a sample: once a rule and
                                       second at most */
};

enum colo_cause {
    COLO_CAUSE_NONE = 0,
    COLO_CAUSE_PAYLOAD = 1,          /* bytes differ at `offset` */
    COLO_CAUSE_FIN = 2,              /* one side ends the stream where the other goes on */
    COLO_CAUSE_SYN_OPTIONS = 3,      /* options that bind the connection differ */
    COLO_CAUSE_DATAGRAM = 4,         /* a datagram was overtaken and stayed unmatched */
    COLO_CAUSE_PRIMARY_TIMEOUT = 5,  /* a primary frame waited longer than compare_timeout */
    COLO_CAUSE_SECONDARY_TIMEOUT = 6,/* the secondary said what the primary did not */
    COLO_CAUSE_ACK_TIMEOUT = 7,      /* the secondary has not acknowledged what the primary has */
    COLO_CAUSE_LIMIT_FRAMES = 8,
    COLO_CAUSE_LIMIT_BYTES = 9,
    COLO_CAUSE_LIMIT_FLOWS = 10,
    COLO_CAUSE_LIMIT_FLOW_FRAMES = 11,
    COLO_CAUSE_RST = 12,             /* one side resets the connection where the other goes on */
    COLO_CAUSE_MID_STREAM = 13,      /* the primary sent bytes before those that its flow was met with */
    COLO_CAUSE_LIMIT_FLOW_BYTES = 14,
    COLO_CAUSE_POLICY = 15,          /* a rule says that a frame may leave by a commit only */
    COLO_CAUSE_LIMIT_FRAGMENTS = 16,
    COLO_CAUSE_CONFLICT = 17,        /* a side contradicts itself: other bytes at an offset that it still waits with */
    COLO_CAUSE_GAP = 18,             /* the secondary went on beyond bytes that it has not said, for gap_window */
    COLO_CAUSE_COUNT = 19,           /* the arrays of colo_counters have room for 32 */
};

const char *colo_cause_name(int cause);

/* Hashed and compared as words: no byte of it is padding. */
struct colo_flow_id {
    uint8_t family;      /* 4, 6, or 0 for frames without IP */
    uint8_t protocol;    /* IP protocol, 0 without IP */
    uint8_t cls;         /* enum colo_class */
    uint8_t vlan_count;  /* 0, 1 or 2 */
    uint16_t vlan[2];    /* outermost first */
    uint16_t ethertype;
    uint16_t sport;      /* of the VM, or the ICMP identifier; host order */
    uint16_t dport;      /* of the client */
    uint8_t src[16];     /* of the VM: IPv4 in the first 4 bytes, a MAC in the first 6 without IP */
    uint8_t dst[16];     /* of the client */
    uint8_t nic;         /* of the VM that it leaves by */
    uint8_t zero;        /* always 0 */
};

/* What the parser sees in a frame. */
struct colo_description {
    struct colo_flow_id flow; /* its src is the frame's sender, whichever side that is */
    uint8_t tcp_flags;        /* the header's eighth byte of flags; 0 for other classes, as seq and ack */
    uint32_t seq;
    uint32_t ack;
    uint32_t body;            /* what is compared of it: offset into the frame's data */
    uint32_t body_len;
};

/* Never fails for want of sense in a frame (that is class MALFORMED); MISUSE: vnet_len is beyond len. */
int colo_frame_describe(const struct colo_frame *frame, struct colo_description *out);

enum { COLO_EVIDENCE_BYTES = 96 };

struct colo_event {
    uint8_t kind;          /* enum colo_event_kind */
    uint8_t cause;         /* enum colo_cause */
    uint8_t has_flow;
    uint8_t rule;          /* TOLERATED: index in colo_config.tolerances */
    uint64_t epoch;
    int64_t time;          /* when it was found */
    struct colo_flow_id flow;
    int64_t offset;        /* TCP: stream offset of the difference (0 = first payload byte met); else in the datagram */
    int64_t primary_age;   /* ns that side's frame had waited, -1: there is none */
    int64_t secondary_age;
    uint64_t primary_cookie; /* that frame's, UINT64_MAX: there is none */
    uint64_t secondary_cookie;
    uint64_t held_frames;  /* primary frames held in all when it was found */
    uint64_t held_bytes;
    /* Evidence: up to COLO_EVIDENCE_BYTES bytes of each side; index `context` is the first that differs. */
    uint16_t context;
    uint16_t primary_len;
    uint16_t secondary_len;
    uint8_t primary[96];
    uint8_t secondary[96];
};

struct colo_counters {
    uint64_t frames_in[2];        /* by side */
    uint64_t bytes_in[2];
    uint64_t class_in[13];        /* primary frames by class */
    uint64_t released[8];         /* primary frames by enum colo_reason */
    uint64_t released_bytes;
    uint64_t discarded[8];        /* secondary frames by enum colo_reason */
    uint64_t acks_lowered;        /* frames released with a lowered ACK number */
    uint64_t acks_emitted;        /* ACKs sent later for those */
    uint64_t parts_emitted;       /* parts of held frames that went ahead: the primary repeated what both had said */
    uint64_t compared_bytes;      /* payload bytes found equal */
    uint64_t divergences[32];     /* by enum colo_cause */
    uint64_t limits[32];          /* refusals, by enum colo_cause */
    uint64_t datagrams_reassembled; /* of both sides */
    uint64_t fragments_dropped;   /* of the secondary, whose datagram never became whole */
    uint64_t fragments_waiting[2]; /* now, by side */
    uint64_t tolerated;           /* windows in which bytes differ that a rule tolerates */
    uint64_t tolerated_by[32];    /* ... by rule */
    uint64_t checkpoints_wanted;
    uint64_t commits;
    uint64_t aborts;
    uint64_t events_lost;         /* events that found the event ring full */
    uint64_t flows;               /* now */
    uint64_t flows_made;
    uint64_t flows_evicted;
    uint64_t held_frames[2];      /* now, by side */
    uint64_t held_bytes[2];
    uint64_t held_frames_peak;
    uint64_t held_bytes_peak;
    uint64_t release_ages[2][64]; /* released primary frames, [0] matched and [1] committed, by the time from their read
                                     to their release: [i] below 2^(i+1) ns */
    uint64_t release_age_sum[2];  /* ns, of the same frames */
    uint64_t epoch;
    uint8_t mode;                 /* enum colo_mode */
};

/*
 * ALONE      there is no secondary: primary frames go out at once, secondary frames are discarded
 * PROTECTED  frames are compared
 * STOPPED    the VMs stand still for a checkpoint: frames are kept, in order, until commit or abort says which
 *            epoch they belong to
 */
enum colo_mode {
    COLO_MODE_ALONE = 0,
    COLO_MODE_PROTECTED = 1,
    COLO_MODE_STOPPED = 2,
};

/* A comparator in mode ALONE. NULL on want of memory or a config that makes no sense. */
colo_comparator *colo_comparator_create(const struct colo_config *config);
void colo_comparator_destroy(colo_comparator *c);

/*
 * Hands `count` frames of one side in, read at `now`. Returns how many were taken (their cookies come back in
 * actions), from the first on; fewer than `count` when a limit is reached: then a checkpoint is wanted (an event
 * says which limit), and the caller keeps the rest and stops reading until actions have made room.
 */
long colo_comparator_feed(colo_comparator *c, int side, const struct colo_frame *frames, size_t count, int64_t now);

/* Frames of one side that were read at one time. */
struct colo_batch {
    const struct colo_frame *frames;
    size_t count;
    int64_t now;
    bool more;           /* and more of them wait already: the other side's need not go on without those */
};

/*
 * The same for frames of both sides, by enum colo_side; in which order the two are taken is the comparator's choice,
 * each side's own order is kept. Much quicker where the two say the same. `taken`: how many of each; less than all at a
 * limit, and where the other side's are used up and has `more`. 0 or MISUSE.
 */
int colo_comparator_feed_both(colo_comparator *c, const struct colo_batch batches[2], size_t taken[2]);

/* Moves up to `cap` actions to `out`; returns the number. Call until it returns 0. */
size_t colo_comparator_actions(colo_comparator *c, struct colo_action *out, size_t cap);

/* Moves up to `cap` events to `out`; returns the number. */
size_t colo_comparator_events(colo_comparator *c, struct colo_event *out, size_t cap);

/* When colo_comparator_tick wants to be called next, INT64_MAX: never. */
int64_t colo_comparator_deadline(const colo_comparator *c);
void colo_comparator_tick(colo_comparator *c, int64_t now);

/*
 * The VMs have stopped for a checkpoint (STOP of the primary). Drain both inputs before this call.
 * From ALONE it means that protection may be about to begin. No-op when STOPPED.
 */
void colo_comparator_stop(colo_comparator *c, int64_t now);

/*
 * The checkpoint has committed; the primary resumed at `resumed` (<= now). Primary frames read before that are
 * released, secondary ones discarded (see keep_gap); later ones belong to the new epoch, which begins. Also begins
 * protection, from ALONE or from STOPPED.
 */
void colo_comparator_commit(colo_comparator *c, int64_t resumed, int64_t now);

/* The VMs run again without a commit: back to the mode before stop, same epoch. */
void colo_comparator_abort(colo_comparator *c, int64_t now);

/* The secondary is gone for good: releases all that is held, and from now on everything at once. */
void colo_comparator_alone(colo_comparator *c, int64_t now);

void colo_comparator_counters(const colo_comparator *c, struct colo_counters *out);
/* held_bytes of that side alone. */
uint64_t colo_comparator_held_bytes(const colo_comparator *c, int side);

/* ------------------------------------------------------------------ engine */

typedef struct colo_engine colo_engine;

/* The three data sockets of `-object colo-compare`, by its option names. */
enum colo_port {
    COLO_PORT_PRIMARY_IN = 0,
    COLO_PORT_SECONDARY_IN = 1,
    COLO_PORT_OUTDEV = 2,
    COLO_PORT_COUNT = 3,
};

struct colo_engine_config {
    struct colo_config comparator;
    uint8_t vnet_hdr;       /* frames carry QEMU's vnet_hdr_support=on word and header */
    uint8_t nics;           /* NICs of the VM, 1: QEMU's framing; more: the vnet_hdr word's top byte has the frame's,
                               from 0 on; only with vnet_hdr */
    uint32_t max_frame;     /* largest frame accepted on a socket, bytes */
    uint32_t slab_size;     /* bytes of one receive slab */
    uint32_t max_slabs;     /* both sides together */
    uint64_t max_out_bytes; /* released bytes that wait for outdev before primary_in is no longer read */
};

void colo_engine_config_default(struct colo_engine_config *config);

/* What the engine saw goes to a pcapng file, or is kept for one when the VMs differ; see docs/recording.md. */
struct colo_record_config {
    const char *path;      /* the file, NULL: none; with a number other than 0, that number stands before its suffix */
    const char *options;   /* the comparator's, as JSON, for the head of each file */
    uint64_t max_bytes;    /* a file that has grown to that is followed by the next number; 0: no bound */
    int64_t max_time;      /* ns, the same way */
    uint32_t number;       /* of the first file; not 0 if there are to be more */
    uint32_t keep;         /* so many numbered files are kept, older ones deleted; 0: all */
    uint32_t outdev_snap;  /* bytes kept of released frames on outdev, 0: all; they are whole on primary_in */
    int64_t wall_offset;   /* ns since the Unix epoch at which CLOCK_MONOTONIC was 0 */
    const char *ring_dir;  /* where files of divergences go, NULL: no ring is kept */
    uint64_t ring_bytes;   /* of its memory */
    int64_t ring_time;     /* ns: verdicts so old are forgotten */
    int64_t ring_wait;     /* ns: a file waits for the end of its epoch, but no longer than that */
    int64_t ring_gap;      /* ns: from one divergence with a file to the next */
};

/* What became of a file for a divergence. */
struct colo_record_dump {
    char name[64];         /* in ring_dir */
    int64_t time;          /* of the divergence, CLOCK_MONOTONIC ns */
    uint64_t bytes;
    int32_t error;         /* an errno: there is no such file */
};

enum colo_engine_event_kind {
    COLO_ENGINE_COMPARATOR = 0,  /* `event` is the comparator's */
    COLO_ENGINE_ATTACHED = 1,    /* `port` has its peer */
    COLO_ENGINE_LOST = 2,        /* `port`'s peer is gone; `error` is 0 (closed by it), an errno, or a
                                    negative enum colo_engine_fault for a peer that broke the framing */
    COLO_ENGINE_GATE_LOST = 3,   /* the QMP socket is gone */
    COLO_ENGINE_COMMITTED = 4,   /* a commit was carried out: released_* tell what it flushed */
    COLO_ENGINE_FATAL = 5,       /* the thread ended by itself: `error` is an errno */
    COLO_ENGINE_RECORD_ENDED = 6,/* the recording could not be written: `error` is an errno; the data path goes on */
    COLO_ENGINE_DUMPED = 7,      /* `dump` tells of a file for a divergence */
};

enum colo_engine_fault {
    COLO_FAULT_OVERSIZE = -1,    /* a length prefix above max_frame */
    COLO_FAULT_EMPTY = -2,       /* a length prefix of 0 */
    COLO_FAULT_VNET = -3,        /* a vnet header length other than 0, 10 or 12, or longer than the frame */
    COLO_FAULT_TRUNCATED = -4,   /* the peer closed in the middle of a frame */
    COLO_FAULT_NIC = -5,         /* a frame of a NIC that the VM does not have: the number is in bad_value */
};

struct colo_engine_event {
    uint8_t kind;              /* enum colo_engine_event_kind */
    uint8_t port;              /* enum colo_port */
    int32_t error;
    uint32_t bad_value;        /* the length, or number of a NIC, that broke the framing */
    uint64_t position;         /* bytes of that connection before the place */
    uint64_t released_frames;  /* COMMITTED */
    uint64_t released_bytes;
    int64_t time;              /* CLOCK_MONOTONIC ns */
    struct colo_event event;
    struct colo_record_dump dump;
};

struct colo_engine_counters {
    struct colo_counters comparator;
    uint64_t bytes_read[3];      /* by enum colo_port, framing included */
    uint64_t bytes_written[3];
    uint64_t reads;              /* system calls */
    uint64_t writes;
    uint64_t wakeups;
    uint64_t attached[3];        /* connections so far */
    uint64_t faults[3];          /* framing errors so far */
    uint64_t pauses[3];          /* how often reading stopped for back-pressure */
    uint64_t slabs;              /* in use now */
    uint64_t out_bytes;          /* released and waiting for outdev now */
    uint64_t gate_closed;        /* how often frames waited for the control plane to read QMP */
    uint64_t lease_waits;        /* how often released frames waited because the lease was over */
    uint64_t events_lost;
    uint64_t recorded;           /* packets written to the recording's files */
    uint64_t recorded_bytes;
    uint64_t record_lost;        /* frames, ACKs and marks that the disk was too slow for, or was lost to */
    uint32_t record_files;       /* opened */
    int32_t record_error;        /* an errno that ended the recording, 0: none */
    uint64_t ring_bytes;         /* kept now for the next divergence */
    uint32_t dumps;              /* files that were written for divergences */
    uint32_t dumps_failed;       /* that could not be written */
    uint8_t connected[3];
};

/* All of these: [any thread]. */
colo_engine *colo_engine_create(const struct colo_engine_config *config);
int colo_engine_start(colo_engine *e);
/* Records from the start on: before colo_engine_start, once. COLO_ERR_SYSTEM with errno: the file can't be opened. */
int colo_engine_record(colo_engine *e, const struct colo_record_config *config);
/* Ends the thread after it has tried for up to `linger_ms` to write what was released; joins it. Idempotent. */
int colo_engine_stop(colo_engine *e, int linger_ms);
void colo_engine_destroy(colo_engine *e);

/* Gives the engine a connected stream socket, which it owns from then on. One peer a port: MISUSE while it has one. */
int colo_engine_attach(colo_engine *e, int port, int fd);
/* Closes `port`'s connection. */
int colo_engine_detach(colo_engine *e, int port);

/* Readable while events wait. Owned by the engine. */
int colo_engine_event_fd(const colo_engine *e);
size_t colo_engine_events(colo_engine *e, struct colo_engine_event *out, size_t cap);

/*
 * The epoch gate. The engine takes the connected QMP socket and hands back the near end of a socket pair, over
 * which the control plane speaks QMP as if it were the socket; the engine moves the bytes. QEMU writes RESUME to
 * that socket before a frame of the new epoch can leave the primary. So after each read of frames the engine looks
 * at the QMP socket, and when messages came it holds the frames unjudged until the control plane has said, by
 * colo_engine_gate_done, that it acted on them: no frame is ever judged by the rules of an epoch that has ended.
 * Returns the near end's fd (the caller's), or an error.
 */
int colo_engine_gate_attach(colo_engine *e, int qmp_fd);
/* The control plane has dealt with `messages` more lines from QMP (commands it follows with come first). */
int colo_engine_gate_done(colo_engine *e, uint64_t messages);
int colo_engine_gate_detach(colo_engine *e);

/* The comparator's calls of the same names, carried out by the engine's thread in the order given. */
int colo_engine_checkpoint_stop(colo_engine *e);
int colo_engine_checkpoint_commit(colo_engine *e, int64_t resumed);
int colo_engine_checkpoint_abort(colo_engine *e);
int colo_engine_alone(colo_engine *e);

/*
 * Nothing is written to outdev from `until` on (CLOCK_MONOTONIC ns; INT64_MAX, as in the beginning: no limit). What is
 * released then waits, and goes out under a later lease. At once, past all queued commands; also before start.
 */
int colo_engine_lease(colo_engine *e, int64_t until);

/* A consistent snapshot of the last wake-up. */
void colo_engine_counters(colo_engine *e, struct colo_engine_counters *out);

/* cffi:end */

#endif
