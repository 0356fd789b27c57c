# SPDX-License-Identifier: Apache-2.0
"""A helper process of ours in another network namespace: it takes commands and gives answers, a line of JSON each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import DeadlineError, NetworkError
from .process import in_namespace

_ANSWER_SECONDS = 5.0
_LONGEST_ANSWER = 4 << 20


class JsonChild:
    """Dies with us."""

    def __init__(self, name: str, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self._child = child
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls, name: str, module: str, arguments: Sequence[str], namespace: str) -> JsonChild:
        """Run that module; returns once it has said its first line.

        Raises NetworkError with the child's own reason, or DeadlineError.
        """
        # -P: the installed package, not a source tree that happens to be the working directory.
        child = await asyncio.create_subprocess_exec(
            *in_namespace(namespace, [sys.executable, "-P", "-m", module, *arguments]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LONGEST_ANSWER,
        )
        made = cls(name, child)
        try:
            await made._answer()
        except BaseException:
            await made.close()
            raise
        return made

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    async def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NetworkError if it refuses or has ended, or DeadlineError."""
        assert self._child.stdin is not None
        async with self._lock:
            with contextlib.suppress(ConnectionError):  # _answer() has the reason
                self._child.stdin.write(json.dumps(command).encode() + b"\n")
                await self._child.stdin.drain()
            return await self._answer()

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
        await asyncio.shield(self._child.wait())

    async def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None and self._child.stderr is not None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                line = await self._child.stdout.readline()
                if not line:
                    reason = (await self._child.stderr.read()).decode(errors="replace").strip()
                    raise NetworkError(f"{self.name} has ended: {reason[-2000:]}")
        except TimeoutError as error:
            raise DeadlineError(f"{self.name} doesn't answer within {_ANSWER_SECONDS:g} s") from error
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NetworkError(f"{self.name} refuses: {answer['error']}")
        return answer
