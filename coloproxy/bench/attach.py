# SPDX-License-Identifier: Apache-2.0
"""The ends of a comparator's sockets, as QEMU would have them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

from coloproxy.address import Address, PeerSource, connect_once
from coloproxy.errors import AddressError

CONNECT_FOR_S: Final = 10.0
RETRY_S: Final = 0.02


def set_window(sock: socket.socket, size: int) -> None:
    """The kernel's buffers of a socket, as iperf3's -w."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


async def _connect(address: Address, name: str, deadline: float, stop: Callable[[], bool]) -> socket.socket:
    while True:
        try:
            return await connect_once(address, name)
        except AddressError:
            if time.monotonic() >= deadline or stop():
                raise
        await asyncio.sleep(RETRY_S)


async def _attach(addresses: Mapping[str, Address], wait: float, stop: Callable[[], bool]) -> dict[str, socket.socket]:
    deadline = time.monotonic() + wait
    sources = {name: PeerSource(address, name) for name, address in addresses.items() if not address.connect}
    socks: dict[str, socket.socket] = {}
    try:
        for source in sources.values():
            await source.open()
        for name, address in addresses.items():
            if address.connect:
                socks[name] = await _connect(address, name, deadline, stop)
                continue
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    socks[name] = await sources[name].next()
            except TimeoutError:
                raise AddressError(f"{name}: nobody has connected to {address} in {wait:g} s") from None
    except BaseException:
        for sock in socks.values():
            with contextlib.suppress(OSError):
                sock.close()
        raise
    finally:
        for source in sources.values():
            source.close()
    return socks


def attach(
    addresses: Mapping[str, Address], *, wait: float = CONNECT_FOR_S, stop: Callable[[], bool] = lambda: False
) -> dict[str, socket.socket]:
    """Connects to each, or waits for its peer where we listen; in the order given. Raises AddressError.

    stop: says that trying again is of no use.
    """
    return asyncio.run(_attach(addresses, wait, stop))
