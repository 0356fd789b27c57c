# SPDX-License-Identifier: Apache-2.0
"""All metrics. Labels come from configuration and from fixed sets of names, never from the network: their number is
bounded by what pair.toml says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from coloproxy.node.facts import State

from .family import Family, Kind, Reader, by_key, by_side, distribution, each, each_of, one, state

MS: Final = 1e-3

NODE_STATES: Final = tuple(known.value for known in State)
VM_STATES: Final = ("unprotected", "protected", "alone", "stood-down", "standby", "abandoned", "taken-over")
MODES: Final = ("alone", "protected", "stopped")
ROLES: Final = ("primary", "secondary")


def _rows(
    kind: Kind,
    prefix: str,
    reader: Callable[[str], Reader],
    labels: tuple[str, ...],
    rows: Mapping[str, tuple[str, str]],
) -> tuple[Family, ...]:
    """Families of a mapping in a status: its key -> (name, help)."""
    return tuple(Family(kind, prefix + name, text, reader(key), labels) for key, (name, text) in rows.items())


def _comparator(key: str) -> Reader:
    return one("comparator", key)


# ----------------------------------------------------------- of a whole status

NODE: Final = (
    Family("gauge", "uptime_seconds", "Since coloproxy was started.", one("uptime_s")),
    Family(
        "counter", "link_refusals", "Connections to the link's port that were refused.", by_key("refusals"), ("kind",)
    ),
    Family(
        "counter", "journal_lost", "Events that are missing in the journal: the disk was too slow.", one("journal_lost")
    ),
    Family("gauge", "node_state", "1 for the state that the node is in.", state(NODE_STATES, "node_state"), ("state",)),
    Family("gauge", "node_role", "1 for the role that the node has.", state(ROLES, "role"), ("role",)),
    Family("gauge", "node_state_age_seconds", "Since the node has been in its state.", one("since_s")),
    Family("gauge", "node_generation", "Counts changes of who owns the truth.", one("generation")),
    Family("gauge", "peer_alive", "1: the other node's heartbeat is heard.", one("peer", "alive")),
    Family("gauge", "peer_age_seconds", "Since the other node was heard last.", one("peer", "age_ms", scale=MS)),
    Family("gauge", "peer_generation", "The other node's, as it said last.", one("peer", "generation")),
    Family("gauge", "peer_rtt_seconds", "Of the last heartbeat that was answered.", one("peer", "rtt_ms", scale=MS)),
    *_rows(
        "counter",
        "heartbeat_",
        lambda key: each(("heartbeat", "paths"), "name", one(key)),
        ("path",),
        {
            "sent": ("sent", "Heartbeats sent."),
            "received": ("received", "Heartbeats received, and proven to be the peer's."),
            "lost": ("lost", "Heartbeats of the peer's that never came."),
        },
    ),
    Family(
        "counter",
        "heartbeat_refused",
        "Datagrams on the heartbeat's port that were refused.",
        each(("heartbeat", "paths"), "name", by_key("refused")),
        ("path", "reason"),
    ),
    Family(
        "gauge",
        "heartbeat_rtt_range_seconds",
        "Round trips of heartbeats: min, avg, max.",
        each(("heartbeat", "paths"), "name", by_key("rtt_ms", scale=MS)),
        ("path", "value"),
    ),
    Family(
        "histogram",
        "heartbeat_rtt_seconds",
        "Round trips of heartbeats.",
        each(("heartbeat", "paths"), "name", distribution()),
        ("path",),
    ),
    Family("gauge", "arbiter_reachable", "1: the arbiter answers.", one("arbiter", "reachable")),
    Family("gauge", "arbiter_generation", "As the arbiter has it.", one("arbiter", "generation")),
    Family("gauge", "qemu_hung", "1: QEMU runs and does not answer.", one("qemu", "hung")),
    Family("gauge", "qemu_halted", "1: the VM stands still, for its disk is full.", one("qemu", "halted")),
    Family("gauge", "disk_size_bytes", "Of the VM's disk.", each(("disks",), "name", one("size")), ("disk",)),
    *_rows(
        "gauge",
        "resync_",
        lambda key: each(("disks",), "name", one("resync", key)),
        ("disk",),
        {
            "offset": ("copied_bytes", "Of a disk that is being copied to the other host: what is there."),
            "total": ("total_bytes", "Of a disk that is being copied: all of it."),
            "rate": ("bytes_per_second", "Of a disk that is being copied: how fast."),
            "eta_s": ("eta_seconds", "Of a disk that is being copied: how long it still takes, at that rate."),
        },
    ),
    *_rows(
        "gauge",
        "last_resync_",
        lambda key: one("resync", key),
        (),
        {
            "copied": ("copied_bytes", "By this host's last copy of the disks to the other one, or the present one."),
            "seconds": ("seconds", "How long that took."),
            "pause_s": ("pause_seconds", "How long the VM stood still for it."),
        },
    ),
)
"""Labels `pair` and `host`."""

# ------------------------------------------------------------------- of a VM

_CHECKPOINTS: Final = (
    Family("gauge", "vm_state", "1 for the state of the VM's data path.", state(VM_STATES, "state"), ("state",)),
    Family("gauge", "epoch", "Number of the present epoch.", one("epoch")),
    Family("gauge", "epoch_age_seconds", "Since both VMs were made equal.", one("epoch_age_s")),
    Family(
        "counter",
        "checkpoints",
        "Checkpoints that have committed, by first cause.",
        by_key("checkpoints_by_cause"),
        ("cause",),
    ),
    Family(
        "counter",
        "checkpoints_wished",
        "Checkpoints that the policy asked for, by cause.",
        by_key("checkpoint_policy", "wanted"),
        ("cause",),
    ),
    Family("counter", "checkpoints_failed", "Checkpoints that began and did not commit.", one("checkpoints_failed")),
    Family(
        "histogram", "checkpoint_pause_seconds", "How long the VM stood still for a checkpoint.", distribution("pauses")
    ),
    Family(
        "histogram",
        "checkpoint_duration_seconds",
        "From the wish for a checkpoint to its commit.",
        distribution("durations"),
    ),
    Family(
        "gauge",
        "last_checkpoint_pause_seconds",
        "Of the last one.",
        one("last_checkpoint", "stop_to_resume_ms", scale=MS),
    ),
    Family(
        "gauge",
        "last_checkpoint_total_seconds",
        "Of the last one, from its request on.",
        one("last_checkpoint", "total_ms", scale=MS),
    ),
    Family(
        "gauge",
        "last_checkpoint_released_frames",
        "That the last one released.",
        one("last_checkpoint", "released_frames"),
    ),
    Family(
        "gauge",
        "handed_over_seconds",
        "How long no frame moved when the secondary's path became the primary's.",
        one("handed_over_ms", scale=MS),
    ),
)

_COMPARATOR: Final = (
    Family(
        "gauge", "comparator_mode", "1 for what the comparator does.", state(MODES, "comparator", "mode"), ("mode",)
    ),
    Family("counter", "frames_in", "Frames of the VMs.", by_side("comparator", "frames_in"), ("side",)),
    Family("counter", "bytes_in", "Bytes of those.", by_side("comparator", "bytes_in"), ("side",)),
    Family(
        "counter",
        "frames_in_by_class",
        "The primary's, by what they are.",
        by_key("comparator", "class_in"),
        ("class",),
    ),
    Family("counter", "released_frames", "Frames that went to clients.", by_key("comparator", "released"), ("reason",)),
    Family(
        "counter",
        "discarded_frames",
        "Frames of the secondary that were used up.",
        by_key("comparator", "discarded"),
        ("reason",),
    ),
    Family("counter", "divergences", "The VMs differed.", by_key("comparator", "divergences"), ("cause",)),
    Family(
        "counter",
        "limit_refusals",
        "Frames that a limit refused for a time.",
        by_key("comparator", "limits"),
        ("cause",),
    ),
    Family("gauge", "held_frames", "Frames that wait.", by_side("comparator", "held_frames"), ("side",)),
    Family("gauge", "held_bytes", "Bytes of those.", by_side("comparator", "held_bytes"), ("side",)),
    Family(
        "gauge",
        "fragments_waiting",
        "Fragments that wait for the rest.",
        by_side("comparator", "fragments_waiting"),
        ("side",),
    ),
    Family(
        "histogram",
        "release_latency_seconds",
        "From the read of a primary frame to its release, by what allowed it.",
        each_of(("comparator", "release_ages"), distribution()),
        ("reason",),
    ),
    *_rows(
        "counter",
        "",
        _comparator,
        (),
        {
            "compared_bytes": ("compared_bytes", "Payload found equal."),
            "released_bytes": ("released_bytes", "Bytes of frames that went to clients."),
            "acks_lowered": ("acks_lowered", "Frames released with a lowered ACK number."),
            "acks_emitted": ("acks_emitted", "ACKs sent later for those."),
            "parts_emitted": ("parts_emitted", "Parts of held frames that went ahead."),
            "tolerated": ("tolerated", "Differences that a rule tolerates."),
            "fragments_dropped": ("fragments_dropped", "Of the secondary, whose datagram never became whole."),
            "datagrams_reassembled": ("datagrams_reassembled", "Datagrams put together of fragments."),
            "flows_made": ("flows_made", "Flows that were met."),
            "flows_evicted": ("flows_evicted", "Idle flows that made room."),
            "checkpoints_wanted": ("checkpoints_wanted", "Wishes of the comparator for a checkpoint."),
            "commits": ("commits", "Epochs that were ended by a commit."),
            "aborts": ("aborts", "Stops of the VMs that ended no epoch."),
            "events_lost": ("comparator_events_lost", "Events of the comparator that found no room."),
        },
    ),
    *_rows(
        "gauge",
        "",
        _comparator,
        (),
        {
            "held_frames_peak": ("held_frames_peak", "The most so far, both sides."),
            "held_bytes_peak": ("held_bytes_peak", "The most so far, both sides."),
            "flows": ("flows", "Flows that are known now."),
        },
    ),
)

_ENGINE: Final = (
    Family("counter", "engine_read_bytes", "From the comparator's sockets.", by_key("engine", "bytes_read"), ("port",)),
    Family(
        "counter", "engine_written_bytes", "To the comparator's sockets.", by_key("engine", "bytes_written"), ("port",)
    ),
    Family(
        "counter",
        "engine_pauses",
        "Reading, or writing to outdev, stopped for want of room.",
        by_key("engine", "pauses"),
        ("port",),
    ),
    Family("gauge", "engine_out_bytes", "Released bytes that wait for outdev.", one("engine", "out_bytes")),
    *_rows(
        "counter",
        "",
        lambda key: one("engine", key),
        (),
        {
            "gate_closed": ("engine_gate_closed", "Frames waited for a QMP message to be dealt with."),
            "lease_waits": ("engine_lease_waits", "Released frames waited: the node's lease was over."),
            "wakeups": ("engine_wakeups", "Turns of the comparator's thread."),
            "events_lost": ("engine_events_lost", "Events that found no room."),
            "recorded": ("recorded_packets", "Packets in the recording."),
            "recorded_bytes": ("recorded_bytes", "Bytes of the recording's files."),
            "record_lost": ("record_lost", "What is missing in the recording: the disk was too slow, or failed."),
        },
    ),
)

_LINK: Final = (
    Family("gauge", "link_up", "1: both coloproxies are connected.", one("path", "link_up")),
    Family("gauge", "link_rtt_seconds", "Of the link's last ping.", one("link", "rtt_ms", scale=MS)),
    Family("gauge", "link_queued_bytes", "Not yet acknowledged by the peer.", one("link", "queued_bytes")),
    *_rows(
        "counter",
        "link_",
        lambda key: one("link", key),
        (),
        {
            "sent_bytes": ("sent_bytes", "Into the link, framing included."),
            "received_bytes": ("received_bytes", "From the link, framing included."),
            "resumed": ("resumed", "Connections that went on without loss."),
            "gaps": ("gaps", "Sessions that had to begin anew."),
            "refused": ("no_room", "Records that found the link full."),
        },
    ),
)

_PATH: Final = (
    *_rows(
        "counter",
        "path_",
        lambda key: one("path", key),
        (),
        {
            "mirrored": ("mirrored_frames", "Clients' frames put into the link for the secondary."),
            "mirror_left_out": ("mirror_left_out_frames", "Clients' frames that found the link full."),
            "reflected": ("reflected_frames", "Frames with the VM's own address from outside, dropped."),
            "learned": ("learned", "Notices of SYNs put into the link."),
            "learn_left_out": ("learn_left_out", "Notices that found the link full."),
            "asked": ("asked", "Questions of the secondary's for neighbours that went out."),
            "output": ("output_frames", "Frames of the secondary that came in their epoch."),
            "output_left_out": ("output_left_out_frames", "Frames of the secondary that found the link full."),
            "stale": ("stale_frames", "Frames of the secondary of an epoch that was over."),
            "miscounted": ("miscounted", "Marks that no checkpoint explained."),
            "wakeups": ("wakeups", "Turns of the path's thread."),
            "gate_closed": ("gate_closed", "Frames waited for a QMP message to be dealt with."),
            "events_lost": ("events_lost", "Events that found no room."),
        },
    ),
    *_rows(
        "gauge",
        "path_",
        lambda key: one("path", key),
        (),
        {
            "held_bytes": ("held_bytes", "Of the secondary, waiting for their epoch."),
            "marks": ("marks", "Since both sides agreed on the epoch; -1: they don't."),
            "commits": ("commits", "Since both sides agreed on the epoch; -1: they don't."),
            "standing": ("standing", "1: the VM stands still for a checkpoint."),
            "taken_over": ("taken_over", "1: this VM has taken over."),
        },
    ),
)


def _wire(side: str, key: str) -> Reader:
    """A counter of a NIC's side, behind the NIC's name and the side."""
    inner = one(side, key)

    def read(nic: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
        return [((side, *labels), value) for labels, value in inner(nic)]

    return each(("nics",), "name", read)


def _both(key: str) -> Reader:
    client, vm = _wire("client", key), _wire("vm", key)
    return lambda status: [*client(status), *vm(status)]


_NICS: Final = (
    Family(
        "gauge", "nic_open", "1: clients are let through to the VM.", each(("nics",), "name", one("open")), ("nic",)
    ),
    *_rows(
        "counter",
        "nic_",
        _both,
        ("nic", "side"),
        {
            "frames_in": ("received_frames", "Read from there."),
            "bytes_in": ("received_bytes", "Read from there."),
            "frames_out": ("sent_frames", "Handed over there."),
            "bytes_out": ("sent_bytes", "Handed over there."),
            "refused": ("refused_frames", "That the other side would not take."),
            "dropped": ("dropped_frames", "Of the secondary's, that found no room."),
            "malformed": ("malformed_frames", "Too short or too long to be a frame."),
            "pauses": ("pauses", "Reading stopped for want of room."),
        },
    ),
    *_rows(
        "gauge",
        "nic_",
        _both,
        ("nic", "side"),
        {
            "queued_bytes": ("queued_bytes", "In line for there."),
            "connected": ("connected", "1: there is something at the other end."),
        },
    ),
)

_REWRITER: Final = (
    *_rows(
        "counter",
        "rewriter_",
        lambda key: one("rewriter", key),
        (),
        {
            "learned": ("learned", "Notices of SYNs that were of use."),
            "out_rewritten": ("out_segments", "Of the VM, translated."),
            "in_rewritten": ("in_segments", "For the VM, translated."),
            "icmp_rewritten": ("icmp", "ICMP errors, translated."),
            "dropped": ("dropped", "Segments that could not be translated."),
            "unshifted": ("unshifted", "Flows that were forgotten, for their numbers fitted untranslated only."),
            "fallbacks": ("fallbacks", "Flows learnt from the client's first ACK, for want of a notice."),
            "window_scaled": ("window_scaled", "Windows translated."),
            "damaged": ("damaged", "Segments with a wrong checksum: nothing was learnt of them."),
            "signed_segments": ("signed_segments", "With TCP-MD5 or TCP-AO: passed untouched."),
            "evicted": ("evicted", "Flows that made room for others."),
            "refused": ("refused", "New flows for which there was no room."),
            "belied": ("belied", "Inherited flows that were another connection by then: forgotten."),
        },
    ),
    Family("gauge", "rewriter_flows", "Flows that are translated now.", one("rewriter", "flows")),
    Family("gauge", "rewriter_inherited", "Of these, inherited at a failover.", one("rewriter", "inherited")),
)

VM: Final = (*_CHECKPOINTS, *_COMPARATOR, *_ENGINE, *_LINK, *_PATH, *_NICS, *_REWRITER)
"""Labels `pair` and `vm`."""
