# SPDX-License-Identifier: Apache-2.0
"""The rewriter, to be driven by hand: frames and integer time in, frames out. docs/rewriter.md says what it does.

It has no clock, socket or thread. The data path runs the same C code; tests and experiments run it here::

    from coloproxy.path.rewriter import Rewriter

    rewriter = Rewriter()
    rewriter.learn(primary_syn_ack, now=0)
    rewriter.output(secondary_syn_ack, now=1_000).data   # with the primary's sequence number
"""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass, fields
from typing import Any

from coloproxy import errors
from coloproxy.path._native import check, check_table, ffi, lib

__all__ = ["Rewrite", "Rewriter", "RewriterCounters", "Rewritten"]


class Rewrite(enum.Enum):
    """What became of a frame (``enum colo_rewrite``)."""

    NONE = 0
    """It goes on as it is."""
    DONE = 1
    """It was translated."""
    DROP = 2
    """It must not go on: it can't be translated, and would do harm as it is."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A frame that went through. ``data`` is as long as what was given, and equal to it unless DONE."""

    verdict: Rewrite
    data: bytes


@dataclass(frozen=True, slots=True)
class RewriterCounters:
    """``struct colo_rewriter_counters``: since creation, but for ``flows``, which is now."""

    learned: int
    out_rewritten: int
    in_rewritten: int
    icmp_rewritten: int
    dropped: int
    unshifted: int
    belied: int
    fallbacks: int
    window_scaled: int
    damaged: int
    signed_segments: int
    evicted: int
    refused: int
    flows: int
    inherited: int


class Rewriter:
    """Translates the secondary VM's TCP numbers to the primary VM's, and back.

    All frames are ``vnet_len`` bytes of virtio-net header (0, 10 or 12), then the Ethernet frame without FCS; ``nic``
    is the index of the NIC; ``now`` is in nanoseconds of any one monotonic clock.
    """

    def __init__(self, max_flows: int = 65_536, hash_seed: int | None = None) -> None:
        """``hash_seed`` is random unless given, which only tests should.

        Raises:
            MisuseError: ``max_flows`` is 0 or more than 16,777,216.
            NativeError: no memory.
        """
        if not 0 < max_flows <= 1 << 24:
            raise errors.MisuseError(f"max_flows must be from 1 to {1 << 24:,}, not {max_flows:,}")
        config = ffi.new("struct colo_rewriter_config *")
        lib.colo_rewriter_config_default(config)
        config.max_flows = max_flows
        config.hash_seed = secrets.randbits(64) if hash_seed is None else hash_seed
        native = lib.colo_rewriter_create(config)
        if native == ffi.NULL:
            raise errors.NativeError("colo_rewriter_create: no memory")
        self._native: Any = ffi.gc(native, lib.colo_rewriter_destroy)

    def learn(self, frame: bytes, *, now: int, nic: int = 0, vnet_len: int = 0) -> None:
        """A frame with SYN that the primary VM sent.

        Raises:
            LimitError: no room for another flow: a checkpoint is wanted.
            MisuseError: ``vnet_len`` is more than there is.
        """
        check(lib.colo_rewriter_learn(self._native, nic, frame, len(frame), vnet_len, now), "colo_rewriter_learn")

    def output(self, frame: bytes, *, now: int, nic: int = 0, vnet_len: int = 0) -> Rewritten:
        """A frame that the secondary VM sent.

        Raises:
            MisuseError: ``vnet_len`` is more than there is.
        """
        return self._rewrite(lib.colo_rewriter_out, "colo_rewriter_out", frame, now, nic, vnet_len)

    def input(self, frame: bytes, *, now: int, nic: int = 0, vnet_len: int = 0) -> Rewritten:
        """A frame for the secondary VM.

        Raises:
            MisuseError: ``vnet_len`` is more than there is.
        """
        return self._rewrite(lib.colo_rewriter_in, "colo_rewriter_in", frame, now, nic, vnet_len)

    def _rewrite(self, call: Any, name: str, frame: bytes, now: int, nic: int, vnet_len: int) -> Rewritten:
        data = bytearray(frame)
        verdict = check(call(self._native, nic, ffi.from_buffer(data), len(data), vnet_len, now), name)
        return Rewritten(Rewrite(verdict), bytes(data))

    def mark(self) -> None:
        """A checkpoint: the secondary VM is now the primary's copy. All flows are forgotten."""
        lib.colo_rewriter_mark(self._native)

    def takeover(self, *, now: int) -> None:
        """The primary is gone: shifts are kept until their connections close, new connections are not entered."""
        lib.colo_rewriter_takeover(self._native, now)

    def export(self, *, now: int) -> bytes:
        """What to go on with: the flows whose shift is known and that are not closed, as docs/rewriter.md has it."""
        return self.pieces(now=now)[0]

    def pieces(self, *, now: int, room: int | None = None) -> list[bytes]:
        """The same in tables of ``room`` bytes at most; None: all in one.

        Raises:
            LimitError: not even one flow fits into ``room``.
        """
        size = lib.colo_rewriter_export_size(self._native) if room is None else room
        place, out = ffi.new("uint32_t *"), ffi.new("uint8_t[]", max(size, 1))
        pieces: list[bytes] = []
        while length := check(lib.colo_rewriter_export(self._native, place, out, size, now), "colo_rewriter_export"):
            pieces.append(bytes(ffi.buffer(out, length)))
        return pieces

    def inherit(self, table: bytes, *, then: int) -> None:
        """Takes over flows that were exported at ``then``, in this rewriter's time. All or nothing.

        Raises:
            TableError: it makes no sense, one of them is there already, or there is no room.
        """
        why = ffi.new("const char **")
        result = lib.colo_rewriter_import(self._native, table, len(table), then, why)
        check_table(result, why, "colo_rewriter_import")

    def disinherit(self) -> None:
        """Forgets the flows that were taken over."""
        lib.colo_rewriter_disinherit(self._native)

    @property
    def counters(self) -> RewriterCounters:
        out = ffi.new("struct colo_rewriter_counters *")
        lib.colo_rewriter_counters_of(self._native, out)
        return RewriterCounters(**{field.name: int(getattr(out, field.name)) for field in fields(RewriterCounters)})
