# SPDX-License-Identifier: Apache-2.0
"""The bed of namespaces itself, with a plain relay where coloproxy will be: whatever fails here isn't the proxy's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from coloproxy.testbed.errors import DeadlineError, ProcessError
from coloproxy.testbed.guest_files import CLIENT_IPV4, CLIENT_IPV6, GUEST_IPV4, GUEST_IPV6, HELLO
from coloproxy.testbed.impair import Impairment
from coloproxy.testbed.leftovers import remove_leftovers
from coloproxy.testbed.namespace_net import PLACES, Stack, VmKind
from coloproxy.testbed.namespaces import Cut, NamespaceOptions, NamespacePair
from coloproxy.testbed.process import run
from coloproxy.testbed.qemu import Role
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS
from coloproxy.testbed.services import DNS_NAME, DNS_TEXT, DNS_TEXT_VALUE

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]

BODY = random.Random(5).randbytes(3_000_003)
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("offloads", [False, True], ids=["plain", "offloads"])
@pytest.mark.parametrize("kind", ["packet", "tap"])
async def test_every_service(kind: VmKind, offloads: bool, tmp_path: Path) -> None:
    options = NamespaceOptions(kind=kind, offloads=offloads, large_bytes=3_000_000, keep_logs=tmp_path)
    async with NamespacePair(options) as bed:
        await bed.stand_in("primary")
        services = await bed.start_vm("primary")
        client = bed.client
        for ipv6 in (False, True):
            assert await client.ping(ipv6=ipv6) == 3
            assert await client.ping(1, size=4000, ipv6=ipv6) == 1  # in fragments
            assert await client.get("/hello.txt", ipv6=ipv6) == HELLO
            for tls in (False, True):
                page = await client.get_http2("/large.bin", tls=tls, ipv6=ipv6)
                assert hashlib.sha256(page).hexdigest() == bed.content.large_sha256
            download = await (await client.download(ipv6=ipv6)).result(30)
            assert (download.returncode, download.sha256) == (0, bed.content.large_sha256)
            upload = await (await client.upload(BODY, ipv6=ipv6)).result(30)
            assert (upload.returncode, upload.guest_bytes, upload.sha256) == (0, len(BODY), BODY_SHA256)
            await client.put(f"file-{ipv6}", BODY, ipv6=ipv6)
            assert services.put_file(f"file-{ipv6}") == BODY
            to_vm = await client.iperf3("client_to_vm", count=3_000_000, ipv6=ipv6)
            assert to_vm["end"]["sum_sent"]["bytes"] >= 3_000_000
            to_client = await client.iperf3("vm_to_client", count=3_000_000, ipv6=ipv6)
            assert to_client["end"]["sum_received"]["bytes"] >= 3_000_000
            assert (
                await client.ssh("sha256sum; id -un", stdin=BODY, ipv6=ipv6) == f"{BODY_SHA256}  -\nnobody\n".encode()
            )
            for tcp in (False, True):
                assert await client.resolve(DNS_NAME, "A", tcp=tcp, ipv6=ipv6) == [GUEST_IPV4]
                assert await client.resolve(DNS_NAME, "AAAA", tcp=tcp, ipv6=ipv6) == [GUEST_IPV6]
                assert await client.resolve(DNS_TEXT, "TXT", tcp=tcp, ipv6=ipv6) == [f'"{DNS_TEXT_VALUE}"']
        services.check()
        here, pids = bed.directory, [daemon.pid for daemon in services.daemons.values()]
    assert left_of(here) == []
    assert running(pids) == []
    assert (tmp_path / "vm-primary-sshd.log").read_text().count("Accepted publickey") == 2


async def test_both_vms_say_the_same_bytes() -> None:
    """Each alone in turn: what it answers, headers included."""
    answers = []
    for role in ("primary", "secondary"):
        async with NamespacePair(NamespaceOptions(large_bytes=1000)) as bed:
            await bed.stand_in(role)
            await bed.start_vm(role, ["nginx", "upload"])
            said = [
                await bed.client.get(page, "--include", *options)
                for page, options in [
                    ("/hello.txt", []),
                    ("/large.bin", ["--range", "5-99"]),
                    ("/put/x", ["--upload-file", "/etc/hostname"]),
                ]
            ]
            post = ["--data-binary", "some", f"http://{GUEST_IPV4}:8080/"]
            said.append((await bed.client.run("curl", "-s", "--include", *post)).check().stdout)
            answers.append(said)
    assert answers[0] == answers[1]
    assert b"206 Partial Content" in answers[0][1]
    assert b"201 Created" in answers[0][2]


@pytest.mark.parametrize("how", ["kill", "down", "delete"])
async def test_a_host_that_is_cut_off_is_gone_and_the_other_can_take_over(how: Cut) -> None:
    async with NamespacePair(NamespaceOptions(large_bytes=30_000_000)) as bed:
        stand_in = await bed.stand_in("primary")
        for role in ("primary", "secondary"):
            await bed.start_vm(role, ["nginx"])
        proxy = await bed.run_in_host("primary", "proxy", ["sleep", "1000"])
        transfer = await bed.client.download(rate=10_000_000)
        await transfer.reached(2_000_000, deadline=20)
        await bed.cut("primary", how)
        assert await bed.client.ping(1) == 0
        assert transfer.running
        with pytest.raises(DeadlineError):
            await bed.client.get("/hello.txt", deadline=0.5)
        assert proxy.running == (how != "kill")
        assert bool(running([stand_in.pid])) == (how != "kill")

        await bed.stand_in("secondary")
        for ipv6, client in ((False, CLIENT_IPV4), (True, CLIENT_IPV6)):  # the switch learns where the MAC is now
            said = await run(["ping", "-q", "-n", "-c", "1", client], namespace=bed.network.vms["secondary"])
            assert said.returncode == 0
            assert await bed.client.get("/hello.txt", ipv6=ipv6) == HELLO


async def test_a_host_that_was_cut_off_can_be_mended() -> None:
    async with NamespacePair(NamespaceOptions(large_bytes=1000)) as bed:
        await bed.stand_in("primary")
        await bed.start_vm("primary", ["nginx"])
        await bed.cut("primary", "down")
        with pytest.raises(DeadlineError):
            await bed.client.get("/hello.txt", deadline=0.5)
        bed.network.mend("primary")
        assert await bed.client.get("/hello.txt") == HELLO


# the VM's settings, and the options that `ss` then shows on the client's side of the connection
STACKS: list[tuple[Stack, set[str]]] = [
    (Stack(timestamps=2), {"ts", "sack", "wscale"}),
    (Stack(timestamps=0), {"sack", "wscale"}),
    (Stack(sack=False), {"ts", "wscale"}),
    (Stack(window_scaling=False), {"ts", "sack"}),
    (Stack(receive_buffer=64 << 20), {"ts", "sack", "wscale"}),
]


@pytest.mark.parametrize(("stack", "options"), STACKS)
async def test_tcp_options(stack: Stack, options: set[str]) -> None:
    stacks: dict[Role, Stack] = {"primary": stack, "secondary": Stack()}
    async with NamespacePair(NamespaceOptions(vm_stacks=stacks, large_bytes=30_000_000)) as bed:
        await bed.stand_in("primary")
        await bed.start_vm("primary", ["nginx"])
        transfer = await bed.client.download(rate=5_000_000)
        await transfer.reached(100_000, deadline=20)
        said = (await bed.client.run("ss", "-Htino", "dst", GUEST_IPV4)).check().stdout.decode()
        assert set(re.findall(r"\b(ts|sack|wscale)\b", said)) == options, said
        if "wscale" in options:
            assert f" wscale:{stack.window_scale},{Stack().window_scale} " in said, said


async def test_a_bad_network_everywhere() -> None:
    bad = Impairment(loss=0.01, duplicate=0.01, reorder=0.02, corrupt=0.01, delay=0.001, jitter=0.001)
    impaired = frozenset(PLACES)
    async with NamespacePair(NamespaceOptions(impaired=impaired, large_bytes=1_000_000)) as bed:
        await bed.stand_in("primary")
        await bed.start_vm("primary", ["nginx", "upload"])
        for relay in bed.relays.values():
            await relay.set_both(bad)
        download = await (await bed.client.download()).result(60)
        assert (download.returncode, download.sha256) == (0, bed.content.large_sha256)
        upload = await (await bed.client.upload(BODY[:500_000])).result(60)
        assert (upload.returncode, upload.sha256) == (0, hashlib.sha256(BODY[:500_000]).hexdigest())
        counters = await bed.relays["client"].counters()
        for lane in (counters.to_left, counters.to_right):
            assert min(lane.lost, lane.duplicated, lane.reordered, lane.corrupted) > 0


async def test_a_vm_whose_proxy_dies_is_reported() -> None:
    async with NamespacePair(NamespaceOptions(kind="tap", large_bytes=1000)) as bed:
        await bed.run_in_host("primary", "proxy", ["sh", "-c", "echo no such option; exit 3"])
        with pytest.raises(ProcessError, match=r"proxy \(primary\) ended early(.|\n)*no such option"):
            await bed.start_vm("primary")


PROGRAM = """
import asyncio, os, signal, sys
from coloproxy.testbed.namespaces import NamespaceOptions, NamespacePair
async def main():
    options = NamespaceOptions(large_bytes=1000, impaired=frozenset({"link"}))
    async with NamespacePair(options) as bed:
        relay = await bed.stand_in("primary")
        services = await bed.start_vm("primary")
        pids = [relay.pid, bed.relays["link"].pid, *(daemon.pid for daemon in services.daemons.values())]
        print(bed.directory, *pids, flush=True)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
async def test_a_run_that_is_ended_leaves_nothing(number: str) -> None:
    ended = await run([sys.executable, "-P", "-c", PROGRAM, number], deadline=60)
    assert ended.returncode == -getattr(signal, number), ended.stderr
    directory, *pids = ended.stdout.decode().split()
    until = time.monotonic() + 5
    while running(pids) or processes_of(Path(directory)):
        assert time.monotonic() < until, (running(pids), processes_of(Path(directory)))
        await asyncio.sleep(0.02)
    removed = [name for name in remove_leftovers() if Path(directory).name in name]
    assert len(removed) == {"SIGINT": 0, "SIGKILL": 8}[number]  # seven namespaces and the directory
    assert left_of(Path(directory)) == []


def running(pids: Iterable[int | str]) -> list[int | str]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def left_of(directory: Path) -> list[str]:
    """What there still is of a bed: its directory, namespaces, processes."""
    places = [directory, *Path("/run/netns").glob(f"{directory.name}-*")]
    return [str(path) for path in places if path.exists()] + processes_of(directory)


def processes_of(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if directory.name in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found
