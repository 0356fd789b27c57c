# SPDX-License-Identifier: Apache-2.0
"""A node's advert as the heartbeat carries it: JSON with short keys, for there is 1 KiB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coloproxy.errors import PeerError

from .facts import Advert, Standing, State


@dataclass(frozen=True, slots=True)
class Said:
    """An advert, and what else its node says."""

    advert: Advert
    sizes: tuple[int, ...] = ()
    """Virtual sizes of its disks, bytes; empty: not known."""


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
    }


def decode(state: Mapping[str, object]) -> Said:
    """Raises PeerError: it is no node, or one of another version."""
    try:
        sizes = state["z"]
        advert = Advert(
            State(state["s"]),
            Standing(state["t"]),
            _whole(state["g"]),
            state["l"] is True,
            state["i"] is True,
            str(state["o"]),
            str(state["x"]),
        )
        return Said(advert, tuple(map(_whole, sizes if isinstance(sizes, list) else [sizes])))
    except (KeyError, ValueError) as error:
        raise PeerError(f"the peer's heartbeat has a state that is no node's: {error}") from error


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
