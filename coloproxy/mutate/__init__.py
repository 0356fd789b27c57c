# SPDX-License-Identifier: Apache-2.0
"""Transformations of a capture: those that change nothing of what is said, and faults that do.

A real stack or network may cut the same bytes into other segments, send one again, let frames overtake each other,
choose other numbers. The comparator must see no difference in that, and must see one changed byte. `mutate` makes both,
from any capture, the same ones for the same seed::

    from coloproxy.capture import read_capture
    from coloproxy.mutate import Mutation, mutate

    frames = list(read_capture("http.pcapng"))
    same = mutate(frames, Mutation(seed=1, recut=True, repeat=0.1, reorder_frames=8, vm="52:54:00:12:34:56"))
    other = mutate(frames, Mutation(seed=1, flip_random=True, vm="52:54:00:12:34:56"))
    print(other.faults)  # which byte, in which flow, at which offset
"""

from __future__ import annotations

from coloproxy.mutate.faults import Fault
from coloproxy.mutate.mutation import Mutated, MutatedFrame, Mutation, mutate

__all__ = ["Fault", "Mutated", "MutatedFrame", "Mutation", "mutate"]
