# SPDX-License-Identifier: Apache-2.0
"""The test bed itself, with QEMU's own comparator in the middle: whatever fails here isn't ours to compare."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from coloproxy.testbed import AddedFile, Addition, BedOptions, PairOptions, SingleVm, VmPair, missing
from coloproxy.testbed.errors import ProcessError
from coloproxy.testbed.leftovers import new_name, remove_leftovers
from coloproxy.testbed.net import network
from coloproxy.testbed.process import run
from coloproxy.testbed.qemu import Nic

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}"),
]


@pytest.mark.parametrize("nic", ["e1000", "virtio"])
async def test_boot_checkpoints_failover(nic: str, tmp_path: Path) -> None:
    options = PairOptions(comparator=None, nic=nic, keep_logs=tmp_path)  # type: ignore[arg-type]
    async with VmPair(options) as pair:
        directory, namespaces = pair.directory, pair.network.namespaces
        assert await pair.client.get("/hello.txt") == pair.guest.hello
        assert await pair.client.get("/hello.txt", ipv6=True) == pair.guest.hello
        dynamic = await pair.client.get("/cgi-bin/dynamic?a=1&b=2")
        assert dynamic.startswith(b"query: a=1&b=2\n")
        assert b"host: host-a\n" in await pair.client.get("/cgi-bin/diverge")

        body = os.urandom(1_000_003)
        upload = await (await pair.client.upload(body)).result(deadline=30)
        assert (upload.returncode, upload.guest_bytes) == (0, len(body))

        await pair.start_colo()
        for _ in range(5):
            await pair.checkpoint()
        assert await pair.client.get("/cgi-bin/dynamic?a=1&b=2") == dynamic

        with pytest.raises(ProcessError, match="won't fail over"):
            await pair.fail_over()
        await pair.kill_primary()
        await pair.fail_over()
        assert b"host: host-b\n" in await pair.client.get("/cgi-bin/diverge")
        whole = await (await pair.client.download()).result(deadline=60)
        assert whole.sha256 == pair.guest.large_sha256
    assert not directory.exists()
    assert not still_there(namespaces)
    assert "service is up" in (tmp_path / "primary.console.log").read_text()


@pytest.mark.parametrize("nic", ["e1000", "virtio"])
async def test_a_single_machine_with_an_addition(nic: Nic) -> None:
    page = Addition({"www/page": AddedFile(b"added")}, "echo the addition was started > /www/started\n")
    async with SingleVm(BedOptions(nic=nic, large_bytes=1000, addition=page)) as machine:
        assert await machine.client.get("/page") == b"added"
        assert await machine.client.get("/started") == b"the addition was started\n"
        with machine.primary.control.watch("STOP", "RESUME") as watch:
            await machine.primary.control.execute("stop")
            await machine.primary.control.execute("cont")
            assert (await watch.next("STOP", 5)).name == "STOP"
            assert [event.name for event in watch.take()] == ["RESUME"]
            assert watch.take() == []
        assert machine.primary.process.cpu_seconds() > 0
        namespaces = machine.network.namespaces
    assert not still_there(namespaces)


async def test_a_comparator_that_ends_at_once_is_reported() -> None:
    broken = PairOptions(comparator=lambda _: [sys.executable, "-c", "raise SystemExit('no such option')"])
    with pytest.raises(ProcessError, match=r"comparator ended early(.|\n)*no such option"):
        async with VmPair(broken):
            pass


def test_namespaces_go_even_after_an_exception() -> None:
    name = new_name()
    with pytest.raises(ZeroDivisionError), network(name, vnet_hdr=False):
        assert Path(f"/run/netns/{name}-client").exists()
        raise ZeroDivisionError
    assert not list(Path("/run/netns").glob(f"{name}*"))


async def test_a_killed_run_leaves_nothing_for_long() -> None:
    program = (
        "import asyncio\n"
        "from coloproxy.testbed import *\n"
        "async def main():\n"
        "    async with VmPair(PairOptions(comparator=None, large_bytes=1000)) as pair:\n"
        "        print(pair.directory.name, pair.primary.process.pid, pair.secondary.process.pid, flush=True)\n"
        "        import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    killed = await run([sys.executable, "-c", program], deadline=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    name, *pids = killed.stdout.decode().split()
    until = time.monotonic() + 5
    while any(is_qemu(int(pid)) for pid in pids):  # they die with their parent
        assert time.monotonic() < until
    removed = remove_leftovers()
    assert len([path for path in removed if name in path]) == 5  # four namespaces, one directory


def still_there(namespaces: Sequence[str]) -> list[str]:
    return [name for name in namespaces if Path("/run/netns", name).exists()]


def is_qemu(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"qemu")
    except OSError:
        return False
