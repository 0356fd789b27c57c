# SPDX-License-Identifier: Apache-2.0
"""A guest that is protected again after each failover: the survivor becomes the primary of a new pair."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .net import TAP
from .pair_toml import pair_toml
from .proxies import Proxy, start_proxy
from .qemu import Role, Sockets
from .tap_pair import MODELS, ROLES, TapPair


class TapChain(TapPair):
    """As TapPair, and `protect_again` after a failover that killed the primary's processes.

    The hosts change roles, so the role's namespace and addresses are the other host's from then on; a QEMU keeps its
    files, which are named by the host and the number of failovers before its start.
    """

    _names: dict[Role, str]

    async def protect_again(self, deadline: float = 30.0, stop: signal.Signals = signal.SIGTERM) -> None:
        """A new coloproxy for the survivor, now the primary, and both for a new secondary; then COLO.

        *stop*: how the survivor's coloproxy ends.  Raises TestbedError.
        """
        self.options.progress("the survivor becomes the primary")
        survivor = self.proxies["secondary"].daemon
        survivor.signal(stop)
        await survivor.wait()
        self._failovers += 1
        self.network = self.network.swapped()
        self._names = {"primary": self._names["secondary"], "secondary": self._new_name()}
        self.primary = replace(self.secondary, role="primary")
        self.config = self._write_config()
        for role in ("primary", "secondary"):  # clients wait for the primary's
            await self.start_proxy(role)
        self.secondary = await self._start_qemu("secondary")
        await self.start_colo(deadline)

    async def start_proxy(self, role: Role) -> Proxy:
        """With a directory for the connections of a failover, one for each host."""
        state = self.directory / f"state-{self._host(role)}"
        state.mkdir(exist_ok=True)
        self.proxies[role] = await start_proxy(self, role, self.config, options=("--state", str(state)))
        return self.proxies[role]

    # ------------------------------------------------------------------ start

    async def _start_machines(self) -> None:
        self._failovers = 0
        self._names = {"primary": "a0", "secondary": "b0"}
        await super()._start_machines()

    def _host(self, role: Role) -> str:
        return "ab"[(self._failovers + (role == "secondary")) % 2]

    def _new_name(self) -> str:
        return f"{self._host('secondary')}{self._failovers}"

    def _sockets(self, role: Role) -> Sockets:
        return Sockets.below(self.directory, self._names[role])

    def _write_config(self) -> Path:
        nic: dict[str, Any] = {
            "name": "nic0",
            "mac": GUEST_MAC,
            "model": MODELS[self.options.nic],
            "announce": [GUEST_IPV4, GUEST_IPV6],
            "tap": {"name": TAP, "bridge": "br0"},
            "vm": {
                "kind": "stream",
                "address": {role: f"unix:{self.directory}/nic-{self._names[role]}.sock" for role in ROLES},
            },
        }
        qmp = {role: f"unix:{self._sockets(role).proxy}" for role in ROLES}
        return pair_toml(self.directory, self._tap_options.file, nic, {"qmp": qmp})
