# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run` on two hosts with namespaces as VMs: real TCP stacks with numbers of their own, real servers.

No state is ever copied between these VMs. What is equal must therefore go through without any checkpoint; what differs
by nature (TLS, ssh, iperf3's results) gets one, which says "they are equal" though they aren't: the client must get
the primary's bytes all the same. Failovers are of flows that have never differed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

import pytest

from coloproxy.testbed.guest_files import GUEST_IPV4, GUEST_IPV6, HELLO
from coloproxy.testbed.impair import Impairment
from coloproxy.testbed.namespace_net import PLACES, Place, VmKind
from coloproxy.testbed.namespaces import Cut, NamespaceOptions, NamespacePair
from coloproxy.testbed.proxies import PairFile, divergences, fail_over, protect, tcp_options
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS
from coloproxy.testbed.services import DNS_NAME, DNS_TEXT, DNS_TEXT_VALUE, Service
from coloproxy.testbed.tap_trial import OFFLOADED_BYTES, failover_trial

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]

BODY = random.Random(5).randbytes(2_000_003)
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("offloads", [False, True], ids=["plain", "offloads"])
@pytest.mark.parametrize("kind", ["packet", "tap"])
async def test_what_is_equal_needs_no_checkpoint(kind: VmKind, offloads: bool, tmp_path: Path) -> None:
    options = NamespaceOptions(kind=kind, offloads=offloads, large_bytes=3_000_000, keep_logs=tmp_path)
    async with NamespacePair(options) as bed:
        proxies = await protect(bed, services=("nginx", "upload", "dnsmasq"))
        client, before = bed.client, await proxies["primary"].vm_status()
        for ipv6 in (False, True):
            assert await client.ping(ipv6=ipv6) == 3
            assert await client.ping(1, size=4000, ipv6=ipv6) == 1  # in fragments
            assert await client.get("/hello.txt", ipv6=ipv6) == HELLO
            page = await client.get_http2("/large.bin", tls=False, ipv6=ipv6)
            assert hashlib.sha256(page).hexdigest() == bed.content.large_sha256
            download = await (await client.download(ipv6=ipv6)).result(30)
            assert (download.returncode, download.sha256) == (0, bed.content.large_sha256)
            upload = await (await client.upload(BODY, ipv6=ipv6)).result(30)
            assert (upload.returncode, upload.guest_bytes, upload.sha256) == (0, len(BODY), BODY_SHA256)
            await client.put(f"file-{ipv6}", BODY, ipv6=ipv6)
            for services in bed.services.values():  # the secondary VM has really lived through it
                assert services.put_file(f"file-{ipv6}") == BODY
            for tcp in (False, True):
                assert await client.resolve(DNS_NAME, "A", tcp=tcp, ipv6=ipv6) == [GUEST_IPV4]
                assert await client.resolve(DNS_NAME, "AAAA", tcp=tcp, ipv6=ipv6) == [GUEST_IPV6]
                assert await client.resolve(DNS_TEXT, "TXT", tcp=tcp, ipv6=ipv6) == [f'"{DNS_TEXT_VALUE}"']
        after = await proxies["primary"].vm_status()
        assert after["comparator"]["divergences"] == {}
        assert after["checkpoints"] == before["checkpoints"]
        assert after["comparator"]["compared_bytes"] > 4 * 3_000_000
        assert (await proxies["primary"].ctl("status"))["vms"][0]["state"] == "protected"


@pytest.mark.parametrize("offloads", [False, True], ids=["plain", "offloads"])
async def test_a_slow_reader_needs_no_checkpoint(offloads: bool, tmp_path: Path) -> None:
    """Its window is shut now and then, and the VMs end the segments that fill it at other bytes."""
    options = NamespaceOptions(kind="packet", offloads=offloads, large_bytes=24_000_000, keep_logs=tmp_path)
    async with NamespacePair(options) as bed:
        proxies = await protect(bed, services=("nginx",))
        transfers = [await bed.client.download(rate=5_000_000, ipv6=ipv6) for ipv6 in (False, True, False, True)]
        for transfer in transfers:
            result = await transfer.result(60)
            assert (result.returncode, result.sha256) == (0, bed.content.large_sha256)
        status = await proxies["primary"].vm_status()
        assert (divergences(status), status["checkpoints"]) == (0, 0)


async def http2_over_tls(bed: NamespacePair, ipv6: bool) -> None:
    page = await bed.client.get_http2("/large.bin", tls=True, ipv6=ipv6)
    assert hashlib.sha256(page).hexdigest() == bed.content.large_sha256


async def ssh(bed: NamespacePair, ipv6: bool) -> None:
    assert await bed.client.ssh("sha256sum", stdin=BODY, ipv6=ipv6) == f"{BODY_SHA256}  -\n".encode()


async def iperf3_to_vm(bed: NamespacePair, ipv6: bool) -> None:
    report = await bed.client.iperf3("client_to_vm", count=5_000_000, ipv6=ipv6)
    assert report["end"]["sum_sent"]["bytes"] >= 5_000_000


async def iperf3_to_client(bed: NamespacePair, ipv6: bool) -> None:
    report = await bed.client.iperf3("vm_to_client", count=5_000_000, ipv6=ipv6)
    assert report["end"]["sum_received"]["bytes"] >= 5_000_000


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("service", "use"),
    [("nginx", http2_over_tls), ("sshd", ssh), ("iperf3", iperf3_to_vm), ("iperf3", iperf3_to_client)],
)
async def test_what_differs_is_the_primarys(
    service: Service, use: Callable[[NamespacePair, bool], Awaitable[None]], ipv6: bool, tmp_path: Path
) -> None:
    async with NamespacePair(NamespaceOptions(large_bytes=1_000_000, keep_logs=tmp_path)) as bed:
        file = PairFile(compare={"compare_timeout": "100ms"})
        proxies = await protect(bed, file, services=(service,))
        before = await proxies["primary"].vm_status()
        await use(bed, ipv6)
        after = await proxies["primary"].vm_status()
        assert divergences(after) > 0  # else the comparison compares nothing
        assert after["checkpoints"] > before["checkpoints"]


MATRIX = list(itertools.product([True, False], [True, False], [False, True]))
TURNS = list(zip(MATRIX, itertools.cycle(get_args(Cut)), itertools.cycle(get_args(VmKind)), strict=False))


@pytest.mark.parametrize(
    ("tcp", "how", "kind"),
    TURNS,
    ids=[
        f"{'timestamps' if t else '-'},{'sack' if s else '-'},{'scales' if w else '-'},{how},{kind}"
        for (t, s, w), how, kind in TURNS
    ],
)
async def test_connections_outlive_the_primarys_host(
    tcp: tuple[bool, bool, bool], how: Cut, kind: VmKind, tmp_path: Path
) -> None:
    timestamps, sack, scales_differ = tcp
    stacks = tcp_options(timestamps=timestamps, sack=sack, scales_differ=scales_differ)
    options = NamespaceOptions(kind=kind, vm_stacks=stacks, large_bytes=10_000_000, keep_logs=tmp_path)
    outcomes = await failover_trial(options, how, seed=str(tcp))
    assert [outcome.text for outcome in outcomes if not outcome.kept] == []
    assert len(outcomes) == 4


@pytest.mark.parametrize("kind", ["packet", "tap"])
async def test_with_offloads_too(kind: VmKind, tmp_path: Path) -> None:
    options = NamespaceOptions(
        kind=kind, offloads=True, vm_stacks=tcp_options(), large_bytes=OFFLOADED_BYTES, keep_logs=tmp_path
    )
    outcomes = await failover_trial(options, "kill", seed=7)
    assert [outcome.text for outcome in outcomes if not outcome.kept] == []


async def test_new_connections_after_the_failover(tmp_path: Path) -> None:
    async with NamespacePair(NamespaceOptions(large_bytes=1_000_000, keep_logs=tmp_path)) as bed:
        proxies = await protect(bed)
        assert await bed.client.get("/hello.txt") == HELLO
        await fail_over(bed, proxies["secondary"], "down")
        for ipv6 in (False, True):
            assert await bed.client.get("/hello.txt", ipv6=ipv6) == HELLO
            assert (
                await bed.client.ping(ipv6=ipv6) == 3
            )  # behind that: what is lost while it is announced is not repeated
            await http2_over_tls(bed, ipv6)
            await ssh(bed, ipv6)
            await iperf3_to_vm(bed, ipv6)
            await iperf3_to_client(bed, ipv6)
            assert await bed.client.resolve(ipv6=ipv6) == [GUEST_IPV4]
        assert (await proxies["secondary"].ask("status"))["state"] == "taken-over"


@pytest.mark.parametrize("place", PLACES)
async def test_a_bad_network_never_makes_wrong_bytes(place: Place, tmp_path: Path) -> None:
    bad = Impairment(loss=0.01, duplicate=0.01, reorder=0.02, corrupt=0.01, delay=0.001, jitter=0.001)
    options = NamespaceOptions(impaired=frozenset({place}), large_bytes=2_000_000, keep_logs=tmp_path)
    async with NamespacePair(options) as bed:
        await protect(bed, services=("nginx", "upload"))
        await bed.relays[place].set_both(bad)
        for ipv6 in (False, True):
            download = await (await bed.client.download(ipv6=ipv6)).result(60)
            assert (download.returncode, download.sha256) == (0, bed.content.large_sha256)
            upload = await (await bed.client.upload(BODY, ipv6=ipv6)).result(60)
            assert (upload.returncode, upload.sha256) == (0, BODY_SHA256)
        counters = await bed.relays[place].counters()
        # Nothing but ARP and the like goes to a secondary whose TAP is closed.
        assert place == "secondary" or counters.to_right.lost + counters.to_left.lost > 0


async def test_the_link_is_cut_and_mended(tmp_path: Path) -> None:
    options = NamespaceOptions(impaired=frozenset({"link"}), large_bytes=10_000_000, keep_logs=tmp_path)
    async with NamespacePair(options) as bed:
        proxies = await protect(bed, services=["nginx"])
        transfer = await bed.client.download(rate=5_000_000)
        await transfer.reached(1_000_000, deadline=30)
        await bed.relays["link"].cut()
        await proxies["primary"].until("without its peer", lambda vm: vm["link"]["state"] == "down")
        assert await bed.relays["link"].mend()
        await proxies["primary"].until("protected again", lambda vm: vm["state"] == "protected")
        result = await transfer.result(60)
        assert (result.returncode, result.sha256, result.connections) == (0, bed.content.large_sha256, 1)
