# SPDX-License-Identifier: Apache-2.0
"""A QEMU whose main loop hangs in what it sends to a peer that reads no more: nothing is asked in band before a yank.

With a stand-in for QEMU, for how much a real one must have sent before it hangs is the kernel's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_node_parts import pair_file

from coloproxy.node.filter_plane import FilterPlane
from coloproxy.node.record import RecordFile
from coloproxy.node.setting import Setting
from coloproxy.node.work import Work
from coloproxy.vmm import StateDirectory


class Asked(Exception):
    """In band."""


class HangingQemu:
    """Answers in band by Asked only."""

    def __init__(self) -> None:
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.yanked: list[str] = []

    async def execute(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, out_of_band: bool = False, **_: object
    ) -> object:
        if not out_of_band:
            raise Asked(name)
        if name == "query-yank":
            return [{"type": "migration"}]
        assert name == "yank" and arguments is not None
        self.yanked += [instance.get("id", instance["type"]) for instance in arguments["instances"]]
        return {}


@pytest.mark.parametrize("secondary", [False, True])
async def test_all_is_broken_off_before_the_first_question(secondary: bool, tmp_path: Path) -> None:
    setting = Setting.load(pair_file(tmp_path), "a")
    qemu = HangingQemu()
    # The filter attach's own way; the rest of a plane is not come to.
    plane = SimpleNamespace(_need_qemu=lambda: qemu, go_alone=None)
    plane.break_off = lambda: FilterPlane.break_off(plane)  # type: ignore[arg-type]
    with StateDirectory.open(setting.directory) as state:
        kept = RecordFile(setting.directory)
        kept.note(secondary=secondary)
        work = Work(setting, state, kept, plane, lambda _: None)  # type: ignore[arg-type]
        work.qemu, work.sizes = qemu, (1 << 20,)  # type: ignore[assignment]

        async def go_alone(reason: str) -> None:
            raise Asked(reason)

        plane.go_alone = go_alone
        with pytest.raises(Asked):
            await work.settle(3, "the peer is frozen")
    assert {"migration", "red1", "mirror0"} <= set(qemu.yanked)
