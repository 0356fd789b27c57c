# SPDX-License-Identifier: Apache-2.0
"""Causes of checkpoints as few words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloproxy import Cause
from coloproxy.causes import KINDS, kind_of
from coloproxy.events import CheckpointWanted, FlowId, FrameClass
from coloproxy.guide import cause_of

FLOW = FlowId(FrameClass.TCP, 4, 6, "10.0.0.2", 80, "10.0.0.9", 40000, (), 0x800, 0)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.NONE])
@pytest.mark.parametrize("flow", [FLOW, None])
def test_the_comparators(cause: Cause, flow: FlowId | None) -> None:
    event = CheckpointWanted(time=1, epoch=1, cause=cause, flow=flow, held_frames=1, held_bytes=1)
    assert kind_of([cause_of(event), "the operator's wish"]) == str(cause)


@pytest.mark.parametrize(
    ("causes", "kind"),
    [
        ([], "qemu"),
        (["protection begins"], "begin"),
        (["the secondary has connected again"], "begin"),
        (["the secondary is connected anew"], "begin"),
        (["the last checkpoint's end could not be marked"], "unmarked"),
        (["the link was full"], "left-out"),
        (["on the secondary: nic0, VM was full"], "left-out"),
        (["the operator's wish"], "request"),
        (["payload"], "payload"),
        (["payloads in the lorry"], "request"),
        (["none in particular"], "request"),
    ],
)
def test_others(causes: list[str], kind: str) -> None:
    assert kind_of(causes) == kind


@given(st.lists(st.text()))
def test_whatever_is_said_there_are_few_kinds(causes: list[str]) -> None:
    assert kind_of(causes) in KINDS
