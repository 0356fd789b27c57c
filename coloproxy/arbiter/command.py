# SPDX-License-Identifier: Apache-2.0
"""An arbiter that is a program of the operator's."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ..errors import MisuseError
from ..program import Ended, run_program
from .claim import Claim, Host, Ruling, Verdict, check_name, check_pair

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The program.

    Attributes:
        command: it and its arguments.
        deadline_s: a run that takes longer is ended, and says nothing.
        grace_s: from SIGTERM to SIGKILL then. A claim takes deadline_s + grace_s at most.
    """

    command: tuple[str, ...]
    deadline_s: float = 30.0
    grace_s: float = 1.0

    def check(self) -> None:
        """Raises MisuseError for what can't work."""
        if not self.command or not self.command[0]:
            raise MisuseError("the arbiter's command is empty")
        if any("\0" in word for word in self.command):
            raise MisuseError("the arbiter's command has a NUL in it")
        if self.deadline_s <= 0 or self.grace_s < 0:
            raise MisuseError("the deadline of the arbiter's command must be above 0")


class CommandArbiter:
    """Runs the program for each claim: exit status 0 is WON, 1 is LOST, anything else UNKNOWN.

    What it is asked is in its environment: COLO_PAIR, COLO_HOST, COLO_ROLE and COLO_GENERATION. It must keep the
    contract of `Arbiter.claim` itself. One run at a time.
    """

    def __init__(self, options: CommandOptions) -> None:
        options.check()
        self._options = options
        self._one = asyncio.Lock()

    async def claim(self, claim: Claim) -> Ruling:
        loop = asyncio.get_running_loop()
        async with self._one:
            began = loop.time()
            ended = await run_program(
                self._options.command,
                {
                    "COLO_PAIR": claim.pair,
                    "COLO_HOST": claim.host,
                    "COLO_ROLE": claim.role,
                    "COLO_GENERATION": str(claim.generation),
                },
                timeout_s=self._options.deadline_s,
                grace_s=self._options.grace_s,
                on_line=lambda stream, line: log.info("the arbiter's command, %s: %s", stream, line),
            )
        return self._ruling(claim, ended, loop.time() - began)

    def _ruling(self, claim: Claim, ended: Ended, seconds: float) -> Ruling:
        name = self._options.command[0]
        if ended.failure is None:
            return Ruling(Verdict.WON, claim.host, claim.generation, f"{name} says so", seconds)
        verdict = Verdict.LOST if ended.code == 1 and not ended.timed_out else Verdict.UNKNOWN
        return Ruling(verdict, None, None, f"{name}: {ended.failure}", seconds)

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        check_name(pair, host, generation)
        return True

    async def owner(self, pair: str) -> Ruling:
        check_pair(pair)
        return Ruling(Verdict.UNKNOWN, None, None, "a command is asked for claims only", 0.0)

    async def close(self) -> None:
        return None
