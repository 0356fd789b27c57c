# SPDX-License-Identifier: Apache-2.0
"""A node's advert as the heartbeat carries it: JSON with short keys, for there is 1 KiB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coloproxy.disks import Lineage
from coloproxy.errors import PeerError

from .facts import Advert, Standing, State

WHOLE_MAX: Final = (1 << 63) - 1  # what QEMU and etcd can count to
NAME_MAX: Final = 32
DISKS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Said:
    """An advert, and what else its node says."""

    advert: Advert
    sizes: tuple[int, ...] = ()
    """Virtual sizes of its disks, bytes; empty: not known."""
    lineage: Lineage | None = None
    """A secondary's: of which copy its images are. None: of none, or it does not say (an older coloproxy)."""
    wanted: Lineage | None = None
    """A primary's: what the secondary's is to be (copying.py)."""


def encode(said: Said) -> dict[str, object]:
    advert = said.advert
    return {
        "s": advert.state.value,
        "t": advert.standing.value,
        "g": advert.generation,
        "l": advert.colo_lost,
        "i": advert.image,
        "o": advert.offer,
        "x": advert.spent,
        "z": list(said.sizes),
        "k": _bare(said.lineage),
        "w": _bare(said.wanted),
    }


def decode(state: Mapping[str, object]) -> Said:
    """Raises PeerError: it is no node, or one of another version."""
    try:
        advert = Advert(
            State(state["s"]),
            Standing(state["t"]),
            _whole(state["g"]),
            _truth(state["l"]),
            _truth(state["i"]),
            _name(state["o"]),
            _name(state["x"]),
        )
        return Said(advert, _sizes(state["z"]), _lineage(state.get("k")), _lineage(state.get("w")))
    except (KeyError, ValueError) as error:
        raise PeerError(f"the peer's heartbeat has a state that is no node's: {error}") from error


def _bare(lineage: Lineage | None) -> list[object] | None:
    return None if lineage is None else [lineage.token, lineage.settled]


def _lineage(value: object) -> Lineage | None:
    """What isn't there is none: an older coloproxy does not say it."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not value[0]:
        raise ValueError(f"{value!r:.40} is no lineage of a copy")
    return Lineage(_name(value[0]), _truth(value[1]))


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= WHOLE_MAX:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > DISKS_MAX:
        raise ValueError(f"{value!r:.40} are no sizes of disks")
    return tuple(map(_whole, value))


def _truth(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


def _name(value: object) -> str:
    """Of an offer or a copy. It goes into our record and our own advert, so it has a limit."""
    if not isinstance(value, str) or len(value) > NAME_MAX or not value.isascii():
        raise ValueError(f"{value!r:.40} is no name of an offer or a copy")
    return value
