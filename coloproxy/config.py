# SPDX-License-Identifier: Apache-2.0
"""The comparator's configuration, for `Comparator` and `Engine` alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypedDict

from coloproxy import errors
from coloproxy.events import FrameClass
from coloproxy.rules import NO_RULES, Rules, fill_rules

__all__ = ["DEFAULT_PASS", "ComparatorOptions", "fill", "fill_comparator"]

DEFAULT_PASS: Final = frozenset({FrameClass.ARP, FrameClass.ND, FrameClass.DHCP, FrameClass.MULTICAST, FrameClass.LINK})
"""Frame classes that carry no service state and are released at once by default."""


class ComparatorOptions(TypedDict, total=False):
    """What may be given; None and what is left out take the C core's default (colo_config_default).

    Attributes:
        max_flows: entries of the flow table; idle flows make room.
        max_frames: frames held in all; each side may use half.
        max_bytes: bytes of those frames; each side may use half.
        max_flow_frames: unmatched frames of one side of one flow.
        max_flow_bytes: bytes of those frames.
        max_fragments: fragments of one side that wait for the rest of their datagram.
        reorder_frames: how many unmatched datagrams of a flow a match is looked for among.
        compare_timeout: ns a frame may wait for the other side before a checkpoint is wanted.
        reorder_window: ns after which a datagram that other output has overtaken is a difference.
        gap_window: ns after which bytes of a stream that the secondary has left out want a checkpoint.
        pass_classes: frame classes released at once, the secondary's copy swallowed; DEFAULT_PASS if left out.
        keep_gap: whether secondary frames read between STOP and RESUME are taken as the new epoch's (True) or
            dropped (False, safe on any link).
        any_scale: whether SYNs whose window scale options differ only in the factor are equal. Only safe where somebody
            translates the survivor's windows after a failover, see docs/comparison.md.
        hash_seed: of the flow table; a secret one where clients are hostile.
        rules: of the operator's, see :mod:`coloproxy.rules`; the first that fits decides, pass_classes where none does.
    """

    max_flows: int | None
    max_frames: int | None
    max_bytes: int | None
    max_flow_frames: int | None
    max_flow_bytes: int | None
    max_fragments: int | None
    reorder_frames: int | None
    compare_timeout: int | None
    reorder_window: int | None
    gap_window: int | None
    pass_classes: Iterable[FrameClass]
    keep_gap: bool
    any_scale: bool
    hash_seed: int | None
    rules: Rules


def fill(config: Any, owner: str, given: dict[str, int | None]) -> None:
    """Sets the numbers that were given in a native struct.

    Raises:
        MisuseError: a number does not fit its field, or is none; names the owner and the field.
    """
    for name, value in given.items():
        if value is not None:
            try:
                setattr(config, name, value)
            except (OverflowError, TypeError) as error:
                raise errors.MisuseError(f"{owner}: {name}={value} is out of range") from error


def fill_comparator(config: Any, owner: str, options: ComparatorOptions) -> object:
    """Sets a `struct colo_config` that holds the defaults; what it points to lives as long as what is returned.

    Raises MisuseError as `fill` does.
    """
    numbers: dict[str, Any] = {name: value for name, value in options.items() if name not in ("pass_classes", "rules")}
    fill(config, owner, numbers)
    config.pass_classes = sum(1 << member for member in set(options.get("pass_classes", DEFAULT_PASS)))
    return fill_rules(config, options.get("rules", NO_RULES))
