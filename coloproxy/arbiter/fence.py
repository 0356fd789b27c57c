# SPDX-License-Identifier: Apache-2.0
"""Fencing: who can turn the other host off, and has, may go on. docs/arbiter.md.

The interface is the fence agents' own (FenceAgentAPI.md of ClusterLabs' fence-agents): options are `key=value` lines on
standard input, `off` and `reboot` exit with 0 when it is done, `status` with 0 for on and 2 for off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import MisuseError
from ..program import MAX_LINE, Ended, run_program
from .claim import Claim, Host, Ruling, Verdict, check_name, check_pair

log = logging.getLogger(__name__)

_STATUS_ON: Final = 0
_STATUS_OFF: Final = 2
_PLACES: Final = "/usr/sbin:/sbin:/usr/local/sbin"  # where agents are, and a service's PATH may not lead
_SECRET: Final = ("passw", "secret", "token", "identity", "community", "key")  # in an option's name: not for the log


@dataclass(frozen=True, slots=True)
class FenceOptions:
    """How the other host is turned off.

    Attributes:
        agent: such as "fence_ipmilan", or a path.
        options: the agent's own, as in its manual page: {"ip": "192.0.2.9", "username": "colo", ...}. They must lead to
            the *other* host.
        action: "off", or "reboot": then the host comes back by itself, and nothing can be verified.
        verify: ask with `status` whether it is off, after `off` has succeeded.
        deadline_s: for all of a claim, the secondary's delay not counted.
        grace_s: from SIGTERM to SIGKILL for an agent that runs when the deadline passes.
        attempts: runs of `off`, at most; one that failed is followed by the next after retry_s.
        secondary_delay_s: the secondary waits so long before its first attempt, so that two live hosts that don't see
            each other don't turn each other off. Longer than the primary's `off` takes.
    """

    agent: str
    options: Mapping[str, str] = field(repr=False)
    action: Literal["off", "reboot"] = "off"
    verify: bool = True
    deadline_s: float = 60.0
    grace_s: float = 1.0
    attempts: int = 3
    retry_s: float = 1.0
    secondary_delay_s: float = 0.0

    def check(self) -> None:
        """Raises MisuseError for what can't work."""
        if not self.agent or "\0" in self.agent:
            raise MisuseError(f"there is no fence agent {self.agent!r}")
        if self.action not in ("off", "reboot"):
            raise MisuseError(f"a fence's action is 'off' or 'reboot', not {self.action!r}")
        if self.action == "reboot" and self.verify:
            raise MisuseError("a reboot can't be verified, for the host may be on again: use 'off', or don't verify")
        if self.deadline_s <= 0 or self.attempts < 1 or min(self.grace_s, self.retry_s, self.secondary_delay_s) < 0:
            raise MisuseError("a fence's times and attempts must be above 0")
        for key, value in self.options.items():
            if key in ("action", "option"):
                raise MisuseError(f"the fence agent's option {key!r} is ours to give")
            if not key or key.startswith("#") or key != key.strip() or any(c in key for c in "=\n\r\0"):
                raise MisuseError(f"a fence agent can't have an option called {key!r}")
            if any(c in value for c in "\n\r\0"):
                raise MisuseError(f"the value of the fence agent's option {key!r} is more than one line")


class FenceArbiter:
    """WON when the other host is off for certain, else UNKNOWN; never LOST: who has lost is off.

    Nothing is remembered: a claim that is repeated turns the other host off again. One claim at a time.
    """

    def __init__(self, options: FenceOptions) -> None:
        options.check()
        self._options = options
        self._one = asyncio.Lock()

    async def claim(self, claim: Claim) -> Ruling:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._one:
            if claim.role == "secondary":
                await asyncio.sleep(self._options.secondary_delay_s)
            failure = await self._turn_off(loop.time() + self._options.deadline_s)
        seconds = loop.time() - began
        if failure is not None:
            return Ruling(Verdict.UNKNOWN, None, None, failure, seconds)
        what = "was rebooted" if self._options.action == "reboot" else "is off"
        why = f"{self._options.agent}: the other host {what}"
        return Ruling(Verdict.WON, claim.host, claim.generation, why, seconds)

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        check_name(pair, host, generation)
        return True

    async def owner(self, pair: str) -> Ruling:
        check_pair(pair)
        return Ruling(Verdict.UNKNOWN, None, None, "a fence remembers nothing", 0.0)

    async def close(self) -> None:
        return None

    async def _turn_off(self, deadline: float) -> str | None:
        """None: it is off. Else why that is not certain."""
        loop = asyncio.get_running_loop()
        failure = "no time"
        for attempt in range(1, self._options.attempts + 1):
            if attempt > 1:
                await asyncio.sleep(min(self._options.retry_s, max(0.0, deadline - loop.time())))
            if loop.time() >= deadline:
                break
            wrong = await self._attempt(deadline)
            if wrong is None:
                return None
            failure = f"{self._options.agent}: {wrong} (attempt {attempt} of {self._options.attempts})"
            log.warning("fencing: %s", failure)
        return failure

    async def _attempt(self, deadline: float) -> str | None:
        ended = await self._run(self._options.action, deadline)
        if ended.failure is not None:
            return f"{self._options.action}: {self._masked(ended.failure)}"
        if not self._options.verify:
            return None
        ended = await self._run("status", deadline)
        if not ended.timed_out and ended.code == _STATUS_OFF:
            return None
        if not ended.timed_out and ended.code == _STATUS_ON:
            return "off has succeeded, but status says that the host is on"
        return f"off has succeeded, but status has not: {self._masked(ended.failure or '')}"

    async def _run(self, action: str, deadline: float) -> Ended:
        agent = self._options.agent
        path = shutil.which(agent, path=f"{os.environ.get('PATH', '')}:{_PLACES}") or agent
        lines = {**self._options.options, "action": action}
        return await run_program(
            [path],  # without an argument: only then do agents read standard input
            {},
            timeout_s=max(0.0, deadline - asyncio.get_running_loop().time()),
            grace_s=self._options.grace_s,
            on_line=lambda stream, line: log.info("%s %s, %s: %s", agent, action, stream, self._masked(line)),
            stdin="".join(f"{key}={value}\n" for key, value in lines.items()).encode(),
        )

    def _masked(self, text: str) -> str:
        for key, value in self._options.options.items():
            if value and any(word in key.lower() for word in _SECRET):
                text = text.replace(value, "***")
                if len(text) >= MAX_LINE:  # it may have been cut off within
                    shown = next((n for n in range(len(value) - 1, 0, -1) if text.endswith(value[:n])), 0)
                    text = text[: len(text) - shown] + ("***" if shown else "")
        return text
