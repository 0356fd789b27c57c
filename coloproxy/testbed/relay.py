# SPDX-License-Identifier: Apache-2.0
"""The impairment relay as seen from a test: start it, make the network bad, cut the cable, read its counters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import DeadlineError, NetworkError
from .impair import CLEAN, Impairment, LaneCounters, as_dict
from .process import in_namespace

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RelayCounters:
    """Of both directions."""

    to_right: LaneCounters
    to_left: LaneCounters
    errors: int
    """Reads and writes that an interface refused: while it was down, or of frames too long for it."""


class Relay:
    """A child process that passes frames between two interfaces; dies with us."""

    def __init__(self, name: str, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self._child = child
        self._lock = asyncio.Lock()

    @classmethod
    async def start(
        cls, name: str, namespace: str, *, left: str, right: str, seed: int | str, vnet_hdr: bool = False
    ) -> Relay:
        """Returns once both ends are open: `packet:IF` or `tap:IF`, in that namespace.

        Raises NetworkError with the child's own reason, or DeadlineError.
        """
        # -P: the installed package, not a source tree that happens to be the working directory.
        argv = [sys.executable, "-P", "-m", "coloproxy.testbed.impair_process"]
        argv += ["--left", left, "--right", right, "--seed", str(seed), *(["--vnet-hdr"] if vnet_hdr else [])]
        child = await asyncio.create_subprocess_exec(
            *in_namespace(namespace, argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        relay = cls(name, child)
        try:
            await relay._answer()
        except BaseException:
            await relay.close()
            raise
        return relay

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

    async def cut(self) -> RelayCounters:
        """Cut the cable: what is on its way is lost too."""
        return await self._command({"cut": True})

    async def mend(self) -> RelayCounters:
        """Undo cut()."""
        return await self._command({"cut": False})

    async def counters(self) -> RelayCounters:
        """Since the start."""
        return await self._command({"counters": True})

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        await asyncio.shield(self._child.wait())

    async def _command(self, command: Mapping[str, Any]) -> RelayCounters:
        assert self._child.stdin is not None
        async with self._lock:
            with contextlib.suppress(ConnectionError):  # _answer() has the reason
                self._child.stdin.write(json.dumps(command).encode() + b"\n")
                await self._child.stdin.drain()
            answer = await self._answer()
        counters = answer["counters"]
        return RelayCounters(
            LaneCounters(**counters["to_right"]), LaneCounters(**counters["to_left"]), sum(answer["errors"].values())
        )

    async def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None and self._child.stderr is not None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                line = await self._child.stdout.readline()
                if not line:
                    reason = (await self._child.stderr.read()).decode(errors="replace").strip()
                    raise NetworkError(f"the relay {self.name} has ended: {reason[-2000:]}")
        except TimeoutError as error:
            raise DeadlineError(f"the relay {self.name} doesn't answer within {_ANSWER_SECONDS:g} s") from error
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NetworkError(f"the relay {self.name} refuses: {answer['error']}")
        return answer
