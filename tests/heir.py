# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run` whose secondary can become a primary in its own process, as a node's does: command `succeed`.

python heir.py python -P -m coloproxy run --role secondary --config FILE
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from coloproxy import cli
from coloproxy.run import host
from coloproxy.run.primary import PrimaryVm
from coloproxy.run.secondary import SecondaryVm
from coloproxy.run.successor import succeed


class Heir(host.Host):
    """Its file says of this host what a primary's would, but for the role."""

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[object]]]:
        return {**super()._handlers(), "succeed": self._do_succeed}

    async def _do_succeed(self, arguments: Mapping[str, Any]) -> object:
        (old,) = self.vms
        assert isinstance(old, SecondaryVm)
        (running,) = (task for task in asyncio.all_tasks() if task.get_name() == old.vm.name)
        pair = self._pair.in_role("primary", listener=self._pair)
        new = await succeed(old, running, lambda: PrimaryVm(pair, old.vm, self._journal, self._fail))
        self.vms[:] = [new]
        self._spawn(new.run(), new.vm.name)
        return {"inherited": new.inherited}


if __name__ == "__main__":
    host.Host = Heir  # type: ignore[misc]
    sys.argv = ["coloproxy", *sys.argv[5:]]
    cli.main()
