# SPDX-License-Identifier: Apache-2.0
"""The impairment relay as seen from a test: start it, make the network bad, cut the cable, read its counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .impair import CLEAN, Impairment, LaneCounters, as_dict
from .json_child import JsonChild


@dataclass(frozen=True, slots=True)
class RelayCounters:
    """Of both directions."""

    to_right: LaneCounters
    to_left: LaneCounters
    errors: int
    """Reads and writes that an interface refused: while it was down, or of frames too long for it."""


class Relay:
    """A child process that passes frames between two interfaces; dies with us."""

    def __init__(self, child: JsonChild) -> None:
        self._child = child

    @classmethod
    async def start(
        cls, name: str, namespace: str, *, left: str, right: str, seed: int | str, vnet_hdr: bool = False
    ) -> Relay:
        """Returns once both ends are open: `packet:IF` or `tap:IF`, in that namespace.

        Raises NetworkError with the child's own reason, or DeadlineError.
        """
        arguments = ["--left", left, "--right", right, "--seed", str(seed), *(["--vnet-hdr"] if vnet_hdr else [])]
        module = "coloproxy.testbed.impair_process"
        return cls(await JsonChild.start(f"the relay {name}", module, arguments, namespace))

    @property
    def name(self) -> str:
        """For people."""
        return self._child.name

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    async def set(self, *, to_right: Impairment | None = None, to_left: Impairment | None = None) -> RelayCounters:
        """Change one direction or both, from the next frame on.  Raises NetworkError or DeadlineError, as all do."""
        given = {"to_right": to_right, "to_left": to_left}
        return await self._command({"set": {name: as_dict(how) for name, how in given.items() if how is not None}})

    async def set_both(self, impairment: Impairment = CLEAN) -> RelayCounters:
        """Change both directions."""
        return await self.set(to_right=impairment, to_left=impairment)

    async def cut(self, *, to_right: bool = True, to_left: bool = True) -> RelayCounters:
        """Cut the cable, or one direction of it: what is on its way there is lost too; the other one stays as it is."""
        wanted = {"to_right": to_right, "to_left": to_left}
        return await self._command({"cut": {name: True for name, cut in wanted.items() if cut}})

    async def mend(self) -> RelayCounters:
        """Undo cut(), of whatever direction."""
        return await self._command({"cut": {"to_right": False, "to_left": False}})

    async def counters(self) -> RelayCounters:
        """Since the start."""
        return await self._command({"counters": True})

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        await self._child.close()

    async def _command(self, command: Mapping[str, Any]) -> RelayCounters:
        answer = await self._child.ask(command)
        counters = answer["counters"]
        return RelayCounters(
            LaneCounters(**counters["to_right"]), LaneCounters(**counters["to_left"]), sum(answer["errors"].values())
        )
