# SPDX-License-Identifier: Apache-2.0
"""What a bad network does to frames: lost, late, out of order, twice, too many, with a bit flipped.  Sans-I/O.

One Lane is one direction of a cable.  It takes frames and the time, and gives out those that have arrived by then.
What befalls a frame is drawn from a generator of the lane's own: the same frames in the same order, with the same
settings and the same seed, meet the same fate, at whatever time they come.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from ..errors import MisuseError

_NS: Final = 1_000_000_000
_HELD_NS: Final = 20_000_000
_MOST_OVERTAKERS: Final = 3
_ETHERNET: Final = 14
_WITH_CHECKSUMS: Final = (b"\x08\x00", b"\x86\xdd")  # IPv4, IPv6


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """How bad it is; nothing at all unless said."""

    loss: float = 0.0
    """Part of the frames, 0 to 1, as all of these."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """These wait until one to three later frames have overtaken them, or until 20 ms have passed without."""
    corrupt: float = 0.0
    """One bit of these flips, behind the Ethernet header of an IPv4 or IPv6 frame: ARP has no checksum that would tell,
    and a real Ethernet would never let a frame with such a header through."""
    delay: float = 0.0
    """Seconds for each frame."""
    jitter: float = 0.0
    """Up to so many seconds more, evenly spread.  Frames never overtake each other by it."""
    rate: float = 0.0
    """Bits per second; 0: without limit."""
    queue: int = 1000
    """Frames on their way at once; one more is lost."""

    def __post_init__(self) -> None:
        """Raises MisuseError for a value out of range."""
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise MisuseError(f"{name} is a part of all frames, 0 to 1, not {getattr(self, name)}")
        for name in ("delay", "jitter", "rate"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise MisuseError(f"{name} can't be {getattr(self, name)}")
        if self.queue < 1:
            raise MisuseError(f"a queue holds one frame at least, not {self.queue}")


CLEAN: Final = Impairment()


@dataclass(slots=True)
class LaneCounters:
    """Frames by what befell them; a frame may count several times."""

    taken: int = 0
    given: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    overflowed: int = 0
    cut: int = 0
    """Came while the cable was cut, or were on their way then."""


class Lane:
    """One direction.  Times are nanoseconds of any clock that doesn't go back."""

    def __init__(self, seed: str, *, header: int = 0) -> None:
        """*header*: bytes in front of the Ethernet header, which never flip."""
        self.counters = LaneCounters()
        self._impairment = CLEAN
        self._clean = True
        self._random = random.Random(seed)
        self._header = header
        self._cut = False
        self._queue: deque[tuple[int, bool, bytes]] = deque()  # due, to be overtaken, frame; in the order of `due`
        self._held: list[tuple[int, int, bytes]] = []  # at the latest, overtakers still to come, frame
        self._busy_until = 0
        self._last_due = 0

    def set(self, impairment: Impairment) -> None:
        """From the next frame on; those on their way keep their time."""
        self._impairment = impairment
        self._clean = impairment == CLEAN

    def set_cut(self, cut: bool) -> None:
        """Cut the cable: whatever is on its way is lost, and so is what comes until it is mended."""
        self._cut = cut
        if cut:
            self.counters.cut += len(self._queue) + len(self._held)
            self._queue.clear()
            self._held.clear()

    def offer(self, frame: bytes, now: int) -> None:
        """A frame came."""
        counters, how = self.counters, self._impairment
        counters.taken += 1
        if self._cut:
            counters.cut += 1
            return
        if self._clean:
            self._enter(frame, max(now, self._last_due), False)
            return
        # Always the same number of draws, so that one setting doesn't change what another does to a frame.
        lost, duplicated, reordered, corrupted, bit, late = (self._random.random() for _ in range(6))
        if lost < how.loss:
            counters.lost += 1
            return
        if corrupted < how.corrupt:
            frame = self._flip(frame, bit)
        copies = 1
        if duplicated < how.duplicate:
            counters.duplicated += 1
            copies = 2
        for _ in range(copies):
            if len(self._queue) >= how.queue:
                counters.overflowed += 1
                continue
            start = max(now, self._busy_until)
            if how.rate:
                start += round(len(frame) * 8 * _NS / how.rate)
            self._busy_until = start
            due = start + round((how.delay + late * how.jitter) * _NS)
            self._enter(frame, max(due, self._last_due), reordered < how.reorder)

    def due(self, now: int) -> list[bytes]:
        """The frames that have arrived, in their order."""
        out: list[bytes] = []
        while self._queue and self._queue[0][0] <= now:
            due, overtaken, frame = self._queue.popleft()
            if overtaken:
                self.counters.reordered += 1
                self._held.append((due + _HELD_NS, 1 + len(frame) % _MOST_OVERTAKERS, frame))
            else:
                out.append(frame)
                if self._held:
                    self._overtake(out)
        if self._held:
            out += [frame for latest, _, frame in self._held if latest <= now]
            self._held = [entry for entry in self._held if entry[0] > now]
        self.counters.given += len(out)
        return out

    def deadline(self) -> int | None:
        """When due() has something next; None: not before another frame comes."""
        times = [latest for latest, _, _ in self._held]
        if self._queue:
            times.append(self._queue[0][0])
        return min(times, default=None)

    def _enter(self, frame: bytes, due: int, overtaken: bool) -> None:
        self._last_due = due
        self._queue.append((due, overtaken, frame))

    def _overtake(self, out: list[bytes]) -> None:
        left = [(latest, overtakers - 1, frame) for latest, overtakers, frame in self._held]
        out += [frame for _, overtakers, frame in left if overtakers == 0]
        self._held = [entry for entry in left if entry[1] > 0]

    def _flip(self, frame: bytes, where: float) -> bytes:
        begin = self._header + _ETHERNET
        if len(frame) <= begin or frame[begin - 2 : begin] not in _WITH_CHECKSUMS:
            return frame
        self.counters.corrupted += 1
        bit = begin * 8 + int(where * (len(frame) - begin) * 8)
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)


def as_dict(impairment: Impairment) -> dict[str, float]:
    """For JSON; Impairment(**as_dict(i)) == i."""
    return dataclasses.asdict(impairment)
