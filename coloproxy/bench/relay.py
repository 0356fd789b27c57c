# SPDX-License-Identifier: Apache-2.0
"""A comparator that compares nothing: `python -m coloproxy.bench.relay PRIMARY_IN SECONDARY_IN OUTDEV`.

It listens at three ADDRs, takes one peer at each, passes on what the primary sends, and ends when a peer has closed or
by SIGINT or SIGTERM. The limit that the sockets set for whatever must see the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

from coloproxy.address import PeerSource, parse_address
from coloproxy.bench.traffic import relay
from coloproxy.errors import ColoproxyError

NAMES = ("primary_in", "secondary_in", "outdev")


async def _serve(addresses: list[str]) -> None:
    """One connection of each, relayed."""
    sources = [PeerSource(parse_address(text, name), name) for text, name in zip(addresses, NAMES, strict=True)]
    read_end, write_end = os.pipe()
    socks: list[socket.socket] = []
    try:
        for source in sources:
            await source.open()
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def end() -> None:
            stop.set()
            with contextlib.suppress(OSError):
                os.write(write_end, b".")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        stopped = asyncio.create_task(stop.wait())
        for source in sources:
            peer = asyncio.create_task(source.next())
            await asyncio.wait([peer, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not peer.done():
                peer.cancel()
                return
            socks.append(await peer)
        stopped.cancel()
        primary, secondary, out = (sock.fileno() for sock in socks)
        await asyncio.to_thread(relay, primary, secondary, out, read_end)
    finally:
        for sock in socks:
            sock.close()
        for source in sources:
            source.close()
        os.close(read_end)
        os.close(write_end)


def main() -> int:
    """Exit status 0, 1 failed, 2 wrong usage."""
    if len(sys.argv) != 1 + len(NAMES):
        print("usage: python -m coloproxy.bench.relay PRIMARY_IN SECONDARY_IN OUTDEV", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve(sys.argv[1:]))
    except ColoproxyError as error:
        print(f"coloproxy.bench.relay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
