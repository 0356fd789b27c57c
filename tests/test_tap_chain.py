# SPDX-License-Identifier: Apache-2.0
"""Failover after failover with real QEMUs: the survivor becomes the primary of a new pair, and so does the next one.

Connections that were opened before a failover are translated from then on, also by the next pair, and by the one
after. Each of them has to get through all that follows.
"""

from __future__ import annotations

import hashlib
import random
import signal
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
RATE = "300k"  # bytes a second of each transfer: they have to last through what comes before their end
LARGE = 14_000_000
BODY = random.Random(7).randbytes(LARGE)
STOPS = (signal.SIGTERM, signal.SIGKILL)
"""How the survivor's coloproxy ends: it leaves its connections' state as it is, or as it was at the failover."""


async def test_connections_outlive_failover_after_failover(tmp_path: Path) -> None:
    async with TapChain(TapOptions(large_bytes=LARGE, keep_logs=tmp_path)) as chain:
        await chain.start_colo()
        downloads: list[Transfer] = []
        uploads: list[Transfer] = []
        idle: list[Idle] = []
        for number, stop in enumerate(STOPS):
            downloads.append(await chain.client.download(limit_rate=RATE, ipv6=number % 2 == 1))
            uploads.append(await chain.client.upload(BODY, limit_rate=RATE, ipv6=number % 2 == 1))
            idle.append(await Idle.open(chain))
            for transfer in (downloads[-1], uploads[-1]):
                await transfer.reached(200_000, DEADLINE)
            await chain.lose_primary("kill")
            await chain.fail_over()
            assert (await chain.proxies["secondary"].vm_status())["rewriter"]["flows"] >= 3 * (number + 1)
            at = [transfer.bytes for transfer in (*downloads, *uploads)]
            await chain.protect_again(stop=stop)
            assert all(transfer.running for transfer in (*downloads, *uploads))
            for transfer, before in zip((*downloads, *uploads), at, strict=True):
                await transfer.reached(before + 100_000, DEADLINE)
            status = await chain.proxies["primary"].vm_status()
            assert status["inherited"] >= 3 * (number + 1)
            assert (await chain.proxies["secondary"].vm_status())["rewriter"]["inherited"] >= 3 * (number + 1)
            await chain.proxies["primary"].ask("checkpoint", wait_s=10)
            await chain.proxies["primary"].until("in step", in_step)
        for download in downloads:
            result = await download.result(DEADLINE)
            assert (result.returncode, result.sha256, result.connections) == (0, chain.guest.large_sha256, 1)
        for upload in uploads:
            result = await upload.result(DEADLINE)
            assert (result.returncode, result.sha256, result.connections) == (0, hashlib.sha256(BODY).hexdigest(), 1)
        for connection in idle:
            assert (await connection.ask()).endswith(chain.guest.hello)
        assert await chain.client.get("/hello.txt") == chain.guest.hello
