# SPDX-License-Identifier: Apache-2.0
"""What `coloproxy ctl` does, without a process of its own: a failover must not wait for Python to start."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .errors import DeadlineError, ProcessError

_ANSWER_SECONDS: Final = 15.0
_LONGEST_ANSWER: Final = 4 << 20


async def ask_control(
    socket: Path, name: str, command: str, arguments: Mapping[str, Any], *, deadline: float = _ANSWER_SECONDS
) -> dict[str, Any]:
    """The answer of the coloproxy whose control socket that is; *name*: it, for people.

    Raises ProcessError if it refuses or isn't there, DeadlineError.
    """
    line = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_unix_connection(socket, limit=_LONGEST_ANSWER)
            with contextlib.closing(writer):
                writer.write(line)
                answer: dict[str, Any] = json.loads(await reader.readline())
    except TimeoutError as error:
        raise DeadlineError(f"{name}: no answer to {command}") from error
    except (OSError, ValueError) as error:
        raise ProcessError(f"{name}: {command}: {error}") from error
    if "error" in answer:
        raise ProcessError(f"{name} refuses {command}: {answer['error']}")
    return dict(answer["return"])
