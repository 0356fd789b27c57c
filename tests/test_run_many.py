# SPDX-License-Identifier: Apache-2.0
"""Two VMs in one `coloproxy run`, one of them with two network cards: who hears whom, and a failover of one alone."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from coloproxy.testbed.errors import NetworkError
from coloproxy.testbed.leftovers import new_name
from coloproxy.testbed.namespaces import ROLES, NamespaceOptions, NamespacePair
from coloproxy.testbed.net import batch, ip
from coloproxy.testbed.proxies import PairFile, Proxy, start_proxy, write_pair_toml
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]

FIRST, SECOND_CARD, SECOND_VM = "10.99.0.2", "10.97.0.2", "10.97.0.3"

MORE = """
[[vm.nic]]
name = "nic1"
mac = "52:54:00:00:97:02"
tap = {{ name = "tap1", bridge = "br1" }}
vm = {{ kind = "tap", name = "eth1", netns = {{ primary = "{p}", secondary = "{s}" }} }}

[[vm]]
name = "second"

[[vm.nic]]
name = "nic0"
mac = "52:54:00:00:97:03"
tap = {{ name = "tap2", bridge = "br1" }}
vm = {{ kind = "tap", name = "eth0", netns = {{ primary = "{p2}", secondary = "{s2}" }} }}
"""


def cable(a: str, a_name: str, b: str, b_name: str) -> None:
    """Between two namespaces."""
    batch(a, [f"link add {a_name} type veth peer name {b_name} netns {b}"])


async def pings(namespace: str, address: str) -> bool:
    """Three of three are answered."""
    argv = ["ip", "netns", "exec", namespace, "ping", "-c", "3", "-i", "0.05", "-W", "2", address]
    return (await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=False)).returncode == 0


async def until(proxy: Proxy, states: dict[str, str]) -> None:
    """Each VM is in its state; the test's own time limit ends it."""
    while True:
        vms = await vms_of(proxy)
        if {name: vm["state"] for name, vm in vms.items()} == states:
            return
        await asyncio.sleep(0.05)


async def vms_of(proxy: Proxy) -> dict[str, Any]:
    return {vm["name"]: vm for vm in (await proxy.ask("status"))["vms"]}


async def test_two_vms_and_a_second_card(tmp_path: Path) -> None:
    async with asyncio.timeout(60), NamespacePair(NamespaceOptions(kind="tap", keep_logs=tmp_path)) as bed:
        hosts, first, client = bed.network.hosts, bed.network.vms, bed.network.client
        second = {role: f"{new_name()}-{role[0]}" for role in ROLES}
        try:
            for name in second.values():
                ip(["netns", "add", name])
            cable(client, "eth9", hosts["primary"], "lan9")
            cable(hosts["primary"], "hosts9", hosts["secondary"], "lan9")
            batch(client, ["addr add 10.97.0.1/24 dev eth9", "link set eth9 up"])
            for role in ROLES:
                ports = ["lan9", "hosts9"] if role == "primary" else ["lan9"]
                batch(hosts[role], ["link add br1 type bridge forward_delay 0", "link set br1 up"])
                batch(hosts[role], [f"link set {port} master br1 up" for port in ports])
            config = write_pair_toml(bed, PairFile())
            with config.open("a") as file:
                file.write(
                    MORE.format(p=first["primary"], s=first["secondary"], p2=second["primary"], s2=second["secondary"])
                )
            secondary = await start_proxy(bed, "secondary", config)
            primary = await start_proxy(bed, "primary", config)
            for role in ROLES:
                await bed.start_vm(role, ())
                batch(first[role], [f"addr add {SECOND_CARD}/24 dev eth1", "link set eth1 up"])
                batch(second[role], [f"addr add {SECOND_VM}/24 dev eth0", "link set eth0 up"])
            await until(primary, {"vm": "protected", "second": "protected"})
            for address in (FIRST, SECOND_CARD, SECOND_VM):
                assert await pings(client, address), address

            vms = await vms_of(primary)
            assert all(vm["comparator"]["divergences"] == {} for vm in vms.values())
            # Each of the three cards has had its own three answers, and what is compared was said by both VMs.
            for vm, answers in (("vm", 6), ("second", 3)):
                assert vms[vm]["comparator"]["released"]["matched"] >= answers
            assert [nic["name"] for nic in vms["vm"]["nics"]] == ["nic0", "nic1"]
            assert all(nic["vm"]["frames_in"] >= 3 for vm in vms.values() for nic in vm["nics"])

            await secondary.ask("failover", vm="second", force=True)
            await until(secondary, {"vm": "standby", "second": "taken-over"})
            await until(primary, {"vm": "protected", "second": "stood-down"})
            for address in (FIRST, SECOND_CARD, SECOND_VM):
                assert await pings(client, address), address
            after = await vms_of(secondary)
            assert [nic["open"] for nic in after["vm"]["nics"]] == [False, False]
            assert after["second"]["nics"][0]["client"]["frames_in"] >= 3
        finally:
            for name in second.values():
                with contextlib.suppress(NetworkError):  # it was not made
                    ip(["netns", "del", name])
