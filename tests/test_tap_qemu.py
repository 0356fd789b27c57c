# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run` beside two real QEMUs without any net filter: real guests, real checkpoints, real failover."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from coloproxy.testbed import missing
from coloproxy.testbed.client import Transfer
from coloproxy.testbed.guest_files import GUEST_IPV4, GUEST_IPV6, HTTP_PORT
from coloproxy.testbed.process import in_namespace
from coloproxy.testbed.proxies import divergences
from coloproxy.testbed.qemu import Nic
from coloproxy.testbed.tap_pair import Death, TapOptions, TapPair, VmSide

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}"),
]

DEADLINE = 60.0
BODY = random.Random(6).randbytes(14_000_000)
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()
LARGE = 14_000_000


def options(tmp_path: Path, nic: Nic = "e1000", **more: Any) -> TapOptions:
    return TapOptions(nic=nic, large_bytes=LARGE, keep_logs=tmp_path, **more)


async def status(pair: TapPair) -> dict[str, Any]:
    return await pair.proxies["primary"].vm_status()


def in_step(vm: Mapping[str, Any]) -> bool:
    """Both sides count the same epochs."""
    return bool(vm["state"] == "protected" and vm["path"]["marks"] == vm["path"]["commits"] >= 0)


async def checkpoints_while(pair: TapPair, transfer: Transfer) -> int:
    """One after the other as long as the transfer runs; how many were asked for."""
    count = 0
    while transfer.running:
        await pair.proxies["primary"].ask("checkpoint", wait_s=10)
        count += 1
    return count


async def ping(pair: TapPair, address: str, count: int = 3) -> None:
    (await pair.client.run("busybox", "ping", "-c", str(count), "-W", "2", address)).check()


async def hello(pair: TapPair) -> None:
    for ipv6 in (False, True):
        assert await pair.client.get("/hello.txt", ipv6=ipv6) == pair.guest.hello


async def whole_download(pair: TapPair, transfer: Transfer) -> None:
    result = await transfer.result(DEADLINE)
    assert (result.returncode, result.sha256, result.connections) == (0, pair.guest.large_sha256, 1)


async def whole_upload(transfer: Transfer) -> None:
    result = await transfer.result(DEADLINE)
    assert (result.returncode, result.sha256, result.connections) == (0, BODY_SHA256, 1)


async def halfway(*transfers: Transfer) -> None:
    for transfer in transfers:
        await transfer.reached(4_000_000, DEADLINE)


class Idle:
    """A connection on which the client has not asked for anything yet."""

    def __init__(self, reader: asyncio.subprocess.Process) -> None:
        self._nc = reader

    @classmethod
    async def open(cls, pair: TapPair) -> Idle:
        argv = ["busybox", "nc", GUEST_IPV4, str(HTTP_PORT)]
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(*in_namespace(pair.client.namespace, argv), stdin=pipe, stdout=pipe)
        )

    async def ask(self) -> bytes:
        assert self._nc.stdin is not None
        answer, _ = await asyncio.wait_for(self._nc.communicate(b"GET /hello.txt HTTP/1.0\r\n\r\n"), DEADLINE)
        return answer


@pytest.mark.parametrize(("nic", "how"), [("e1000", "kill"), ("virtio", "cut")])
async def test_the_whole_life(nic: Nic, how: Death, tmp_path: Path) -> None:
    async with TapPair(options(tmp_path, nic)) as pair:
        await hello(pair)  # unprotected: all passes
        before = await Idle.open(pair)
        await pair.start_colo()
        await hello(pair)
        for address in (GUEST_IPV4, GUEST_IPV6):
            await ping(pair, address)
        assert (await before.ask()).endswith(pair.guest.hello)
        await whole_download(pair, await pair.client.download())
        assert (await status(pair))["path"]["output"] > LARGE // 1448  # the secondary has proven all of it

        # Checkpoints under traffic; a connection from before lives through them.
        early = await Idle.open(pair)
        for ipv6 in (False, True):
            transfer = await pair.client.download(ipv6=ipv6)
            assert await checkpoints_while(pair, transfer) > 5
            await whole_download(pair, transfer)
            transfer = await pair.client.upload(BODY, ipv6=ipv6)
            assert await checkpoints_while(pair, transfer) > 5
            await whole_upload(transfer)
        assert (await early.ask()).endswith(pair.guest.hello)
        while (await status(pair))["path"]["commits"] < 50:
            await asyncio.gather(hello(pair), pair.proxies["primary"].ask("checkpoint", wait_s=10))
        await pair.proxies["primary"].until("in step", in_step)
        await pair.proxies["primary"].ctl("checkpoint", "--wait", "10")

        await a_divergence(pair)

        survivor = await Idle.open(pair)
        transfers = (await pair.client.download(), await pair.client.upload(BODY))
        await halfway(*transfers)
        await pair.lose_primary(how)
        await pair.fail_over()
        await whole_download(pair, transfers[0])
        await whole_upload(transfers[1])
        assert (await survivor.ask()).endswith(pair.guest.hello)
        await hello(pair)
        await ping(pair, GUEST_IPV6)
        assert b"host: host-b\n" in await pair.client.get("/cgi-bin/diverge")
        assert (await pair.proxies["secondary"].ask("status"))["state"] == "taken-over"


async def test_the_secondary_hears_nothing_of_the_time_before_colo(tmp_path: Path) -> None:
    """It comes with the primary's state; heard again, it would be answered, and QEMU keeps it for a VM that waits."""
    async with TapPair(options(tmp_path)) as pair:
        await whole_upload(await pair.client.upload(BODY))
        sent = (await status(pair))["path"]["mirrored"]
        await pair.start_colo()
        await hello(pair)
        await pair.proxies["primary"].ask("checkpoint", wait_s=10)
        secondary = await pair.proxies["secondary"].vm_status()
        assert sent > 1000
        assert 0 < secondary["nics"][0]["vm"]["frames_out"] < 200
        after = await status(pair)
        assert divergences(after) == 0
        assert after["path"]["output"] > 0


async def a_divergence(pair: TapPair) -> None:
    """The page that differs on purpose: one divergence, one checkpoint, the primary's answer exactly once."""
    before = await status(pair)
    answer = await pair.client.get("/cgi-bin/diverge")
    assert answer.count(b"host: host-a\n") == answer.count(b"the end\n") == 1
    after = await status(pair)
    assert divergences(after) == divergences(before) + 1
    assert after["checkpoints"] == before["checkpoints"] + 1


async def test_the_secondarys_coloproxy_comes_and_goes(tmp_path: Path) -> None:
    async with TapPair(options(tmp_path)) as pair:
        await pair.start_colo()
        transfer = await pair.client.download()
        await halfway(transfer)
        await pair.restart_proxy("secondary")
        await pair.protected()
        await whole_download(pair, transfer)
        await pair.proxies["primary"].until("in step", in_step)
        before = await status(pair)
        await hello(pair)
        await pair.proxies["primary"].ask("checkpoint", wait_s=10)
        await hello(pair)
        after = await status(pair)
        assert after["path"]["output"] > before["path"]["output"]  # it proves again
        assert in_step(after)
        await a_divergence(pair)

        # The link: cut in mid-transfer, and back.
        transfer = await pair.client.upload(BODY)
        await halfway(transfer)
        pair.network.set_link(pair.network.primary, up=False)
        await pair.proxies["primary"].until("without its peer", lambda vm: vm["link"]["state"] == "down")
        pair.network.set_link(pair.network.primary, up=True)
        await whole_upload(transfer)
        await pair.proxies["primary"].until("in step", in_step)

        transfers = (await pair.client.download(), await pair.client.upload(BODY))
        await halfway(*transfers)
        await pair.lose_primary("kill")
        await pair.fail_over()
        await whole_download(pair, transfers[0])
        await whole_upload(transfers[1])


async def test_the_primarys_coloproxy_comes_and_goes(tmp_path: Path) -> None:
    async with TapPair(options(tmp_path, "virtio")) as pair:
        await pair.start_colo()
        transfer = await pair.client.download()
        await halfway(transfer)
        await pair.restart_proxy("primary")
        await pair.protected()
        await whole_download(pair, transfer)
        await pair.proxies["primary"].until("in step", in_step)
        await a_divergence(pair)
        transfers = (await pair.client.download(), await pair.client.upload(BODY))
        await halfway(*transfers)
        await pair.lose_primary("kill")
        await pair.fail_over()
        await whole_download(pair, transfers[0])
        await whole_upload(transfers[1])


async def killed(pair: TapPair) -> None:
    await pair.secondary.process.kill()


async def frozen(pair: TapPair) -> None:
    """QEMU asks it for a checkpoint, and waits."""
    pair.secondary.process.signal(signal.SIGSTOP)
    await pair.proxies["primary"].ask("checkpoint")


async def frozen_in_a_checkpoint(pair: TapPair) -> None:
    """The primary's guest stands still."""
    with pair.primary.control.watch("STOP") as watch:
        await pair.proxies["primary"].ask("checkpoint")
        await watch.next("STOP", DEADLINE)
    pair.secondary.process.signal(signal.SIGSTOP)


@pytest.mark.parametrize("death", [killed, frozen, frozen_in_a_checkpoint])
async def test_alone_when_the_secondary_died(death: Callable[[TapPair], Awaitable[None]], tmp_path: Path) -> None:
    async with TapPair(options(tmp_path)) as pair:
        await pair.start_colo()
        transfer = await pair.client.download()
        await halfway(transfer)
        await death(pair)
        await pair.proxies["secondary"].daemon.kill()
        await pair.proxies["primary"].ask("alone")
        await whole_download(pair, transfer)
        await hello(pair)
        assert b"host: host-a\n" in await pair.client.get("/cgi-bin/diverge")
        assert (await status(pair))["state"] == "alone"


@pytest.mark.parametrize("side", ["stream-tcp", "dgram"])
async def test_other_back_ends(side: VmSide, tmp_path: Path) -> None:
    async with TapPair(options(tmp_path, side=side)) as pair:
        await pair.start_colo()
        await ping(pair, GUEST_IPV4)
        await hello(pair)
        assert in_step(await status(pair))
