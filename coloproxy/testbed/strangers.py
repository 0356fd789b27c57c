# SPDX-License-Identifier: Apache-2.0
"""Who should not be at the link's port: run as a program, in the namespace of a host.

record KEYFILE OUT   a right primary, through a relay that writes its first flights down
slow N               N connections that are held open, with a byte now and then; says "held", runs until it is ended
send FILE            sends the bytes of a file, such as those written down
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from pathlib import Path
from typing import Final

from coloproxy.address import Address
from coloproxy.path.hello import LinkState, Nic, Us
from coloproxy.path.session import Connected, Dialer, Endpoint
from coloproxy.path.tls import Keys, read_psk

from .net import LINK_SECONDARY
from .pair_toml import LINK_PORT, PAIR, VM

_CHUNK: Final = 1 << 16
_BYTE_SECONDS: Final = 0.2
_HEAD: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a TLS client begins
_DEADLINE_SECONDS: Final = 15.0


async def record(keys: Keys) -> bytes:
    """A connection up to the end of its hello: what the primary sent. The pair's own is replaced by it."""
    heard = bytearray()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray | None) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if into is not None:
                    into += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(ConnectionError, OSError):
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LINK_SECONDARY, LINK_PORT)
        await asyncio.gather(pump(reader, back, heard), pump(there, writer, None))
        writer.close()
        back.close()

    done: asyncio.Future[Connected] = asyncio.get_running_loop().create_future()

    async def nothing_to_close() -> None:
        pass

    us = Us(PAIR, VM, "primary", (Nic("nic0", 1500, False),))
    endpoint = Endpoint(us, nothing_to_close, lambda: LinkState(None, 0, lambda _: False), done.set_result)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        dialer = Dialer(Address(connect=True, host=host, port=port), keys, endpoint)
        dialing = asyncio.create_task(dialer.run())
        connected = await done
        dialing.cancel()
        connected.transport.close()
    return bytes(heard)


async def send(data: bytes) -> None:
    """Sends it, and waits for the other side to close."""
    reader, writer = await asyncio.open_connection(LINK_SECONDARY, LINK_PORT)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        while await reader.read(_CHUNK):
            pass
    writer.close()


async def slow(count: int) -> None:
    """Never ends."""
    writers = [(await asyncio.open_connection(LINK_SECONDARY, LINK_PORT))[1] for _ in range(count)]
    print("held", flush=True)
    for at in itertools.count():
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                writer.write(_HEAD[at : at + 1] or b"\0")
        await asyncio.sleep(_BYTE_SECONDS)


def _main(what: str, *rest: str) -> None:
    match what:
        case "slow":
            asyncio.run(slow(int(rest[0])))
        case "record":
            keys = Keys.psk(PAIR, read_psk(Path(rest[0])))
            Path(rest[1]).write_bytes(asyncio.run(asyncio.wait_for(record(keys), _DEADLINE_SECONDS)))
        case "send":
            asyncio.run(asyncio.wait_for(send(Path(rest[0]).read_bytes()), _DEADLINE_SECONDS))


if __name__ == "__main__":
    _main(*sys.argv[1:])
