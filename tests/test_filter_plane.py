# SPDX-License-Identifier: Apache-2.0
"""Parts of the node's filter attach: what the file says, QEMU's options, a real QEMU's filters, a real TAP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pair_files import ANOTHER_NIC, NODE, PAIR, changed
from prometheus_client import CollectorRegistry
from qemu_process import Qemu, monitor, needs_qemu
from rich.console import Console

from coloproxy.errors import ConfigError, DeviceError, PeerError
from coloproxy.journal import Journal
from coloproxy.metrics import StatusCollector
from coloproxy.node import filters
from coloproxy.node.filter_plane import FilterPlane
from coloproxy.node.planes import make_plane
from coloproxy.node.setting import Setting
from coloproxy.node.view import render
from coloproxy.pair.config import parse
from coloproxy.qmp import QmpLink
from coloproxy.run.devices import _inside
from coloproxy.run.kept_tap import KeptTap

FILTERS = changed("[node]\n", '[node]\nattach = "filters"\n', NODE)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")


# -------------------------------------------------------------------- the file


WRONG = [
    (PAIR + ANOTHER_NIC, 'vm.web.nic: must be one with node.attach = "filters", not 2'),
    (changed('bridge = "br0"', 'bridge = "br0", queues = 2'), "vm.web.nic[0].tap.queues: must be 1 with"),
    (changed('mac = "52:54:00:12:34:56"\n', ""), 'vm.web.nic[0].mac: is missing: node.attach = "filters" needs it'),
    (
        changed("[[vm.nic]]", "[vm.filters]\nmirror = 9830\n\n[[vm.nic]]"),
        "vm.web.filters.mirror: port 9830 is node.nbd_port, too",
    ),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=[told[:30] for _, told in WRONG])
def test_what_filters_can_not_do_is_said(text: str, told: str) -> None:
    parse(text + NODE, "primary")  # the TAP attach can
    with pytest.raises(ConfigError) as caught:
        parse(text + FILTERS, "primary")
    assert any(told in problem for problem in caught.value.problems), caught.value.problems


def test_an_attach_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r'node\.attach: must be one of "tap", "filters"'):
        parse(PAIR + changed("filters", "filter", FILTERS), "primary")


CARD = [
    *("-netdev", "tap,id=hn0,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr=off"),
    *("-device", "virtio-net-pci,netdev=hn0,mac=52:54:00:12:34:56"),
]
SECONDARY = [
    *("-chardev", "socket,id=red0,host=192.0.2.{here},port=9003,server=on,wait=off"),
    *("-chardev", "socket,id=red1,host=192.0.2.{peer},port=9002,reconnect=1"),
    *("-object", "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0"),
    *("-object", "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1"),
    *("-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all"),
]


@pytest.mark.parametrize(("host", "tap", "here", "peer"), [("a", "webp", 1, 2), ("b", "webs", 2, 1)])
def test_qemus_options(host: str, tap: str, here: int, peer: int, tmp_path: Path) -> None:
    """A primary begins without filters: they are added when there is a secondary."""
    path = tmp_path / "pair.toml"
    path.write_text(PAIR + FILTERS)
    setting = Setting.load(path, host)  # type: ignore[arg-type]
    plane = make_plane(setting, Journal(None), pytest.fail, lambda: None)
    assert isinstance(plane, FilterPlane)
    said = {role: plane.qemu_arguments(role) for role in ("primary", "survivor", "secondary")}  # type: ignore[arg-type]
    words = [word.format(tap=tap, here=here, peer=peer) for word in (*CARD, *SECONDARY)]
    assert said == {"primary": words[: len(CARD)], "survivor": words[: len(CARD)], "secondary": words}
    assert plane.status() is None and plane.link_up and plane.knows_connections


def test_a_status_without_what_is_qemus_own_is_shown_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text(PAIR + FILTERS)
    plane = make_plane(Setting.load(path, "b"), Journal(None), pytest.fail, lambda: None)
    assert isinstance(plane, FilterPlane)
    plane._role = "secondary"
    status = {"pair": "web", "host": "b", "state": "standby", "vm": plane.status()}
    console = Console(record=True, width=120)
    console.print(render(status))
    assert "standby" in (text := console.export_text()) and "webs" not in text
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    labels = {"pair": "web", "vm": "web", "state": "standby"}
    assert registry.get_sample_value("coloproxy_vm_state", labels) == 1


# -------------------------------------------------------------- filters of a QEMU


@contextlib.asynccontextmanager
async def card_monitor(directory: Path, *arguments: str) -> AsyncIterator[QmpLink]:
    """Of a QEMU with a network card, that never runs."""
    ends = f"local.type=unix,local.path={directory}/net,remote.type=unix,remote.path={directory}/nobody"
    card = ("-m", "16", "-S", "-netdev", f"dgram,id=hn0,{ends}", "-device", "e1000,netdev=hn0,romfile=")
    with Qemu(directory, *card, *arguments, machine="pc") as qemu:
        async with monitor(qemu) as link:
            yield link


async def chain(link: QmpLink) -> list[str]:
    """The filters in the order of QEMU's list."""
    text = await link.execute("human-monitor-command", {"command-line": "info network"})
    return re.findall(r"- (\w+): type=filter", str(text))


@pytest.fixture
def places() -> Iterator[filters.Places]:
    """Where somebody listens."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]
        yield filters.Places("127.0.0.1", *ports, vnet_hdr=False)


REWRITER = ("-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all")
CHAIN = ["m0", "redire0", "redire1"]


@needs_qemu
@pytest.mark.parametrize("survivor", [False, True])
async def test_a_primary_has_its_filters_behind_the_rewriter(
    survivor: bool, places: filters.Places, tmp_path: Path
) -> None:
    before = ["rew0"] if survivor else []
    async with card_monitor(tmp_path, *(REWRITER if survivor else ())) as link:
        for _ in range(2):  # what an earlier attempt has left makes no difference
            await filters.add_primary(link, places, 20.0)
            assert await chain(link) == [*before, *CHAIN]
            assert await filters.are_complete(link)
        for _ in range(2):
            await filters.remove_primary(link)
            assert await chain(link) == before
            assert not await filters.are_complete(link)
        assert not {*filters.PRIMARY.values()} & (await filters_chardevs(link))


async def filters_chardevs(link: QmpLink) -> set[str]:
    listed = await link.execute("query-chardev")
    assert isinstance(listed, list)
    return {entry["label"] for entry in listed}


@needs_qemu
@pytest.mark.parametrize("left", [[], ["redire1"], ["redire0", "redire1"], CHAIN])
async def test_an_attempt_that_broke_off_anywhere(left: list[str], places: filters.Places, tmp_path: Path) -> None:
    async with card_monitor(tmp_path) as link:
        await filters.add_primary(link, places, 20.0)
        for name in left:
            await link.execute("object-del", {"id": name})
        await filters.add_primary(link, places, 20.0)
        assert await chain(link) == CHAIN


@needs_qemu
async def test_where_nobody_listens_the_guest_stays_free(places: filters.Places, tmp_path: Path) -> None:
    async with card_monitor(tmp_path, *REWRITER) as link:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nobody = gone.getsockname()[1]
        nowhere = filters.Places("127.0.0.1", nobody, places.primary_in, places.outdev, vnet_hdr=False)
        with pytest.raises(PeerError, match=rf"found nobody within 0.1 s: mirror0 at 127.0.0.1 port {nobody}"):
            await filters.add_primary(link, nowhere, 0.1)
        assert await chain(link) == ["rew0"]
        assert not {*filters.PRIMARY.values()} & (await filters_chardevs(link))


@needs_qemu
async def test_a_secondary_that_takes_over_keeps_the_rewriter(tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text(PAIR + FILTERS)
    plane = make_plane(Setting.load(path, "b"), Journal(None), pytest.fail, lambda: None)
    words = [word.replace("192.0.2.2", "127.0.0.1").replace("192.0.2.1", "127.0.0.1") for word in
             plane.qemu_arguments("secondary")[len(CARD):]]  # fmt: skip
    async with card_monitor(tmp_path, *words) as link:
        assert await chain(link) == ["f1", "f2", "rew0"]
        for _ in range(2):
            await filters.remove_secondary(link)
            assert await chain(link) == ["rew0"]
        assert not {"red0", "red1"} & (await filters_chardevs(link))


# ------------------------------------------------------------------------ TAP


@pytest.fixture
def namespace() -> Iterator[str]:
    """With a bridge."""
    name = f"colotap-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "add", "br0", "type", "bridge"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def seen(namespace: str, name: str = "web0") -> dict[str, object] | None:
    """What `ip` says of it."""
    made = subprocess.run(["ip", "-n", namespace, "-j", "-d", "link", "show", name], capture_output=True, check=False)
    if made.returncode:
        return None
    (link,) = json.loads(made.stdout)
    info = link["linkinfo"]["info_data"]
    return {
        "up": "UP" in link["flags"],
        "master": link.get("master"),
        "mtu": link["mtu"],
        "type": info["type"],
        "persist": info["persist"],
        "user": info.get("user"),
    }


CLOSED = {"up": False, "master": None, "mtu": 1400, "type": "tap", "persist": True}


@needs_root
def test_a_tap_is_on_the_bridge_exactly_while_it_is_open(namespace: str) -> None:
    tap = KeptTap("web0", "br0")
    with _inside(namespace):
        tap.close()  # there is none
        assert seen(namespace) is None
        tap.make(mtu=1400, owner=None)
    first = seen(namespace)
    assert first is not None and {**first, "user": None} == {**CLOSED, "user": None}
    for _ in range(2):
        with _inside(namespace):
            tap.open()
            tap.open()
        found = seen(namespace)
        assert found is not None and (found["up"], found["master"]) == (True, "br0")
        with _inside(namespace):
            tap.close()
            tap.close()
        assert seen(namespace) == first
    with _inside(namespace):
        tap.open()
        tap.make(mtu=1400, owner=1)  # as a node finds it whose predecessor was killed
    found = seen(namespace)
    assert found is not None and (found["up"], found["master"]) == (False, None)
    assert found["user"] in (1, "daemon", "bin")
    with _inside(namespace):
        tap.remove()
        tap.remove()
    assert seen(namespace) is None


@needs_root
def test_a_tap_that_can_not_be(namespace: str) -> None:
    with _inside(namespace):
        KeptTap("web0", None).make(mtu=1500, owner=None)
        with pytest.raises(DeviceError, match="TAP web0: there is no bridge br7"):
            KeptTap("web0", "br7").open()
        with pytest.raises(DeviceError, match="TAP br0: an interface of that name is there"):
            KeptTap("br0", None).make(mtu=1500, owner=None)
        with pytest.raises(DeviceError, match="TAP web9: "):
            KeptTap("web9", None).open()
