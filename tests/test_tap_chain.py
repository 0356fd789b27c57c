# SPDX-License-Identifier: Apache-2.0
"""Failover after failover with real QEMUs: the survivor becomes the primary of a new pair, and so does the next one.

Connections that were opened before a failover are translated from then on, also by the next pair, and by the one
after. Each of them has to get through all that follows.
"""

from __future__ import annotations

import hashlib
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_tap_qemu import Idle, in_step

from coloproxy.testbed import missing
from coloproxy.testbed.client import Transfer
from coloproxy.testbed.tap_chain import TapChain
from coloproxy.testbed.tap_pair import TapOptions

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}"),
]

DEADLINE = 60.0
RATE = 100_000  # bytes a second of each transfer: they have to last through what comes before their end
LARGE = 14_000_000
BODY = random.Random(7).randbytes(LARGE)
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()
ATTEMPTS = 5
STOPS = (signal.SIGTERM, signal.SIGKILL)
"""How the survivor's coloproxy ends: it leaves its connections' state as it is, or as it was at the failover."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Connections of all kinds. They last until after the next failover, and the one after."""

    download: Transfer
    upload: Transfer
    idle: Idle

    @property
    def transfers(self) -> tuple[Transfer, Transfer]:
        return self.download, self.upload

    @classmethod
    async def begin(cls, chain: TapChain, *, ipv6: bool) -> Opened:
        download = await chain.client.download(rate=RATE, ipv6=ipv6)
        upload = await chain.client.upload(BODY, rate=RATE, ipv6=ipv6)
        idle = await Idle.open(chain)
        for transfer in (download, upload):
            await transfer.reached(200_000, DEADLINE)
        return cls(download, upload, idle)

    async def asked(self, chain: TapChain) -> None:
        """To be done first: the guest's server ends a connection on which nothing is asked for in 60 s."""
        assert (await self.idle.ask()).endswith(chain.guest.hello)

    async def finished(self, chain: TapChain) -> None:
        for transfer in self.transfers:
            transfer.rate = None
        for transfer, digest in ((self.download, chain.guest.large_sha256), (self.upload, BODY_SHA256)):
            result = await transfer.result(DEADLINE)
            assert (result.returncode, result.sha256, result.connections) == (0, digest, 1)


async def translated(chain: TapChain, *, ipv6: bool) -> list[Opened]:
    """Opens connections until some have numbers of their own on the secondary.

    A checkpoint makes them equal, and the time of day in an answer asks for one now and then.
    """
    out: list[Opened] = []
    for _ in range(ATTEMPTS):
        before = (await chain.proxies["primary"].vm_status())["checkpoints"]
        out.append(await Opened.begin(chain, ipv6=ipv6))
        if (await chain.proxies["primary"].vm_status())["checkpoints"] == before:
            return out
    pytest.fail(f"{ATTEMPTS} times a checkpoint came in between")


async def test_connections_outlive_failover_after_failover(tmp_path: Path) -> None:
    async with TapChain(TapOptions(large_bytes=LARGE, keep_logs=tmp_path)) as chain:
        await chain.start_colo()
        opened: list[Opened] = []
        for number, stop in enumerate(STOPS):
            opened += await translated(chain, ipv6=number % 2 == 1)
            await chain.lose_primary("kill")
            await chain.fail_over()
            assert (await chain.proxies["secondary"].vm_status())["rewriter"]["flows"] >= 3 * (number + 1)
            transfers = [transfer for each in opened for transfer in each.transfers]
            at = [transfer.bytes for transfer in transfers]
            await chain.protect_again(stop=stop)
            for transfer, before in zip(transfers, at, strict=True):
                await transfer.reached(before + 100_000, DEADLINE)
            for proxy in chain.proxies.values():
                assert (await proxy.vm_status())["rewriter"]["inherited"] >= 3 * (number + 1)
            await chain.proxies["primary"].ask("checkpoint", wait_s=10)
            await chain.proxies["primary"].until("in step", in_step)
            ended = [await transfer.result(1) for transfer in transfers if not transfer.running]
            assert not ended
        for each in opened:
            await each.asked(chain)
        for each in opened:
            await each.finished(chain)
        assert await chain.client.get("/hello.txt") == chain.guest.hello
