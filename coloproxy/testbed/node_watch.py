# SPDX-License-Identifier: Apache-2.0
"""The ownership watch as seen from a test: who owned the guest, by what the clients' switch saw (node_owner.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .guest_files import GUEST_IPV4, GUEST_MAC
from .json_child import JsonChild
from .node_net import LAN_PORTS, NodeNetwork
from .node_owner import Run, Seen


class OwnerWatch:
    """A child process in the switch's namespace; dies with us."""

    def __init__(self, child: JsonChild) -> None:
        self._child = child

    @classmethod
    async def start(cls, network: NodeNetwork, *, interval: float = 0.1) -> OwnerWatch:
        """*interval*: seconds between two questions to each host.  Raises NetworkError or DeadlineError, as all do."""
        arguments = ["--mac", GUEST_MAC, "--guest", GUEST_IPV4, "--interval", str(interval)]
        arguments += [f"{host}={port}" for host, port in LAN_PORTS.items()]
        child = await JsonChild.start(
            "the ownership watch", "coloproxy.testbed.node_watch_process", arguments, network.lan
        )
        return cls(child)

    async def seen(self) -> Seen:
        """Since the start, or the last reset."""
        return _seen(await self._child.ask({"report": True}))

    async def reset(self) -> Seen:
        """Forget all; returns what was seen before."""
        return _seen(await self._child.ask({"reset": True}))

    async def set_grace(self, seconds: float) -> None:
        """No less than the delay of a relay in a host's cable."""
        await self._child.ask({"grace": seconds})

    async def close(self) -> None:
        """End the process."""
        await self._child.close()


def _seen(answer: Mapping[str, Any]) -> Seen:
    return Seen(**{**answer, "runs": tuple(Run(**run) for run in answer["runs"])})
