# SPDX-License-Identifier: Apache-2.0
"""The comparator, to be driven by hand: frames and integer time in, actions and events out.

It has no clock, socket or thread. The engine runs the same C code over sockets; replay, tests and anybody's own
experiments run it here::

    from coloproxy import Comparator, Side

    comparator = Comparator()
    comparator.commit(resumed=0, now=0)                  # protection begins
    comparator.feed(Side.PRIMARY, [frame], now=1_000)    # held
    comparator.feed(Side.SECONDARY, [frame], now=2_000)  # says the same
    for action in comparator.actions():
        print(action)                                    # Released(...), Discarded(...)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from coloproxy import errors
from coloproxy._native import check, ffi, lib
from coloproxy.config import ComparatorOptions, fill_comparator
from coloproxy.events import Cause, ComparatorEvent, FrameClass, Mode, Reason, Side, event_from_native

__all__ = ["Action", "Comparator", "Counters", "Discarded", "Emitted", "Frame", "Released", "counters_from_native"]

_BATCH = 64
_NEVER = 2**63 - 1
_AGED = (Reason.MATCHED, Reason.COMMITTED)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame to feed.

    Attributes:
        data: ``vnet_len`` bytes of virtio-net header, then the Ethernet frame without FCS.
        vnet_len: 0, 10 or 12.
        nic: of the VM's NICs, the one that it came by, 0 to 255. Frames of two NICs never belong to one flow.
    """

    data: bytes
    vnet_len: int = 0
    nic: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """A primary frame goes to the client.

    Attributes:
        frame: number of the frame, counted from 0 over all frames fed (both sides).
        reason: what allows it.
        data: the bytes to send; they differ from those fed only where the ACK number is lowered.
        lowered: the ACK number was lowered.
    """

    frame: int
    reason: Reason
    data: bytes
    lowered: bool


@dataclass(frozen=True, slots=True)
class Discarded:
    """A secondary frame is no longer needed. ``frame`` as in Released."""

    frame: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Emitted:
    """A frame of the comparator's own goes to the client, by the link of ``nic``: an ACK that was held back before."""

    reason: Reason
    data: bytes
    vnet_len: int
    nic: int = 0


Action = Released | Discarded | Emitted


@dataclass(frozen=True, slots=True)
class Counters:
    """A snapshot of ``struct colo_counters``. Pairs are (primary, secondary); dicts have every key, also at 0.

    Attributes:
        release_ages: released primary frames, by what allowed it (MATCHED, COMMITTED) and by the time from their read
            to their release; [i] is below 2^(i+1) ns.
        release_age_sum: ns, of the same frames.
    """

    frames_in: tuple[int, int]
    bytes_in: tuple[int, int]
    class_in: dict[FrameClass, int]
    released: dict[Reason, int]
    released_bytes: int
    discarded: dict[Reason, int]
    acks_lowered: int
    acks_emitted: int
    parts_emitted: int
    compared_bytes: int
    datagrams_reassembled: int
    fragments_dropped: int
    fragments_waiting: tuple[int, int]
    divergences: dict[Cause, int]
    limits: dict[Cause, int]
    tolerated: int
    tolerated_by: tuple[int, ...]
    checkpoints_wanted: int
    commits: int
    aborts: int
    events_lost: int
    flows: int
    flows_made: int
    flows_evicted: int
    held_frames: tuple[int, int]
    held_bytes: tuple[int, int]
    held_frames_peak: int
    held_bytes_peak: int
    release_ages: dict[Reason, tuple[int, ...]]
    release_age_sum: dict[Reason, int]
    epoch: int
    mode: Mode


def counters_from_native(n: Any) -> Counters:
    """Copies a ``struct colo_counters``."""
    return Counters(
        frames_in=(n.frames_in[0], n.frames_in[1]),
        bytes_in=(n.bytes_in[0], n.bytes_in[1]),
        class_in={member: n.class_in[member] for member in FrameClass},
        released={member: n.released[member] for member in Reason},
        released_bytes=n.released_bytes,
        discarded={member: n.discarded[member] for member in Reason},
        acks_lowered=n.acks_lowered,
        acks_emitted=n.acks_emitted,
        parts_emitted=n.parts_emitted,
        compared_bytes=n.compared_bytes,
        datagrams_reassembled=n.datagrams_reassembled,
        fragments_dropped=n.fragments_dropped,
        fragments_waiting=(n.fragments_waiting[0], n.fragments_waiting[1]),
        divergences={member: n.divergences[member] for member in Cause},
        limits={member: n.limits[member] for member in Cause},
        tolerated=n.tolerated,
        tolerated_by=tuple(n.tolerated_by),
        checkpoints_wanted=n.checkpoints_wanted,
        commits=n.commits,
        aborts=n.aborts,
        events_lost=n.events_lost,
        flows=n.flows,
        flows_made=n.flows_made,
        flows_evicted=n.flows_evicted,
        held_frames=(n.held_frames[0], n.held_frames[1]),
        held_bytes=(n.held_bytes[0], n.held_bytes[1]),
        held_frames_peak=n.held_frames_peak,
        held_bytes_peak=n.held_bytes_peak,
        release_ages={member: tuple(n.release_ages[member]) for member in _AGED},
        release_age_sum={member: n.release_age_sum[member] for member in _AGED},
        epoch=n.epoch,
        mode=Mode(n.mode),
    )


class Comparator:
    """Compares a primary's output with a secondary's; starts in mode ALONE.

    All times are integer nanoseconds on one monotonic clock of the caller's choice and must not go back. Call
    ``actions()`` after each call that may have changed something: feed, tick, commit, abort, alone.

    Args:
        options: see :class:`coloproxy.config.ComparatorOptions`.

    Raises:
        MisuseError: a limit or time that makes no sense.
    """

    def __init__(self, **options: Unpack[ComparatorOptions]) -> None:
        config = ffi.new("struct colo_config *")
        lib.colo_config_default(config)
        rules = fill_comparator(config, "Comparator", options)
        handle = lib.colo_comparator_create(config)
        del rules  # the C core has its own copy
        if handle == ffi.NULL:
            raise errors.MisuseError(f"Comparator: unusable configuration (or no memory): {options}")
        self._c = ffi.gc(handle, lib.colo_comparator_destroy)
        self._frames: dict[int, tuple[Any, int]] = {}
        self._fed = 0

    def feed(self, side: Side, frames: Iterable[bytes | Frame], now: int, nic: int = 0) -> int:
        """Hands frames of one side in, read at ``now``; those that are plain bytes came by ``nic``.

        Returns:
            How many were taken, from the first on. Fewer than given when a limit is reached: then ``events()``
            says which, and the rest is to be fed again when actions have made room. Frames that were taken are
            numbered on from the last call.

        Raises:
            MisuseError: a NIC that is none of 0 to 255, or a vnet_len that is wrong or beyond the data.
        """
        native, count = self._lend(frames, nic)
        taken = int(lib.colo_comparator_feed(self._c, side, native, count, now))
        self._keep(native, count, max(taken, 0))
        self._fed -= count - max(taken, 0)
        return check(taken, "Comparator.feed")

    def feed_both(
        self, primary: Iterable[bytes | Frame], secondary: Iterable[bytes | Frame], now: int
    ) -> tuple[int, int]:
        """Hands frames of both sides in, read at ``now``: the quickest way where the two say the same.

        In which order the comparator takes the two sides is its choice; each side's own order is kept.

        Returns:
            How many were taken of each, as ``feed`` does. The primary's are numbered before the secondary's, those that
            were not taken too: a frame that is fed again gets a new number.
        """
        lent = [self._lend(primary), self._lend(secondary)]
        batches, taken = ffi.new("struct colo_batch[2]"), ffi.new("size_t[2]")
        for batch, (native, count) in zip(batches, lent, strict=True):
            batch.frames, batch.count, batch.now = native, count, now
        result = lib.colo_comparator_feed_both(self._c, batches, taken)
        for (native, count), some in zip(lent, taken, strict=True):
            self._keep(native, count, some)
        check(result, "Comparator.feed_both")
        return int(taken[0]), int(taken[1])

    def _lend(self, frames: Iterable[bytes | Frame], nic: int = 0) -> tuple[Any, int]:
        """Frames as the core wants them, numbered; their bytes live until the action of each is fetched."""
        batch = [frame if isinstance(frame, Frame) else Frame(frame, nic=nic) for frame in frames]
        if any(not 0 <= frame.nic <= 255 for frame in batch):
            raise errors.MisuseError("Comparator: a NIC that is none of 0 to 255")
        native = ffi.new("struct colo_frame[]", max(len(batch), 1))
        for i, frame in enumerate(batch):
            data = ffi.new("uint8_t[]", frame.data)
            native[i].data = data
            native[i].len = len(frame.data)
            native[i].vnet_len = frame.vnet_len
            native[i].nic = frame.nic
            native[i].cookie = self._fed + i
            self._frames[self._fed + i] = (data, len(frame.data))
        self._fed += len(batch)
        return native, len(batch)

    def _keep(self, native: Any, count: int, taken: int) -> None:
        """Only the first of them were taken."""
        for i in range(taken, count):
            del self._frames[native[i].cookie]

    def actions(self) -> list[Action]:
        """All actions that wait, in the order in which they must be carried out."""
        out: list[Action] = []
        native = ffi.new("struct colo_action[]", _BATCH)
        while count := lib.colo_comparator_actions(self._c, native, _BATCH):
            out.extend(self._action(native[i]) for i in range(count))
        return out

    def _action(self, action: Any) -> Action:
        reason = Reason(action.reason)
        if action.kind == lib.COLO_EMIT:
            return Emitted(reason, bytes(ffi.buffer(action.data, action.len)), action.vnet_len, action.nic)
        data, length = self._frames.pop(action.cookie)
        if action.kind == lib.COLO_DISCARD:
            return Discarded(action.cookie, reason)
        raw = bytearray(ffi.buffer(data, length))
        if action.ack_at:
            raw[action.ack_at : action.ack_at + 4] = action.ack.to_bytes(4, "big")
            raw[action.csum_at : action.csum_at + 2] = action.csum.to_bytes(2, "big")
        return Released(action.cookie, reason, bytes(raw), bool(action.ack_at))

    def events(self) -> list[ComparatorEvent]:
        """All events that wait, oldest first."""
        out: list[ComparatorEvent] = []
        native = ffi.new("struct colo_event[]", _BATCH)
        while count := lib.colo_comparator_events(self._c, native, _BATCH):
            out.extend(event_from_native(native[i], numbered=True) for i in range(count))
        return out

    @property
    def deadline(self) -> int | None:
        """When ``tick`` wants to be called next, ns; None: never."""
        value = int(lib.colo_comparator_deadline(self._c))
        return None if value == _NEVER else value

    def tick(self, now: int) -> None:
        """Time has passed: finds what waited too long."""
        lib.colo_comparator_tick(self._c, now)

    def stop(self, now: int) -> None:
        """The VMs stand still for a checkpoint: from now on frames are kept unjudged."""
        lib.colo_comparator_stop(self._c, now)

    def commit(self, resumed: int, now: int) -> None:
        """A checkpoint has committed, the primary resumed at ``resumed``; a new epoch begins.

        Primary frames read before ``resumed`` are released, secondary ones discarded; later ones are judged by the
        new epoch. Also begins protection.
        """
        lib.colo_comparator_commit(self._c, resumed, now)

    def abort(self, now: int) -> None:
        """The VMs run again without a commit: the epoch goes on."""
        lib.colo_comparator_abort(self._c, now)

    def alone(self, now: int) -> None:
        """There is no secondary any more: everything held is released, and everything to come at once."""
        lib.colo_comparator_alone(self._c, now)

    def counters(self) -> Counters:
        """A snapshot of all counters."""
        out = ffi.new("struct colo_counters *")
        lib.colo_comparator_counters(self._c, out)
        return counters_from_native(out)
