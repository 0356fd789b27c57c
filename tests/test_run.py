# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run` as a whole: strangers, rights, commands, signals, reloads. Real processes on a bed of namespaces."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coloproxy.testbed.client import Transfer, TransferResult
from coloproxy.testbed.errors import ProcessError
from coloproxy.testbed.guest_files import HELLO
from coloproxy.testbed.namespaces import ROLES, NamespaceOptions, NamespacePair
from coloproxy.testbed.net import LINK_SECONDARY, batch
from coloproxy.testbed.pair_toml import LINK_PORT, PAIR, VM, journal_file
from coloproxy.testbed.process import Completed, Daemon, run
from coloproxy.testbed.proxies import TAP, PairFile, Proxy, divergences, fail_over, protect, start_proxy
from coloproxy.testbed.qemu import Role
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]

LARGE = 8_000_000
PATIENCE_S = 15.0
SLOW_CABLE = frozenset({"client"})
MEMORY = 8 << 20  # bytes that a process may grow by while strangers are there
STRANGERS = [sys.executable, "-P", "-m", "coloproxy.testbed.strangers"]


def options(tmp_path: Path, **more: Any) -> NamespaceOptions:
    return NamespaceOptions(**{"large_bytes": LARGE, "keep_logs": tmp_path, **more})


async def begin(bed: NamespacePair) -> Transfer:
    """A download that has a while to go."""
    transfer = await bed.client.download(rate=3_000_000)
    await transfer.reached(500_000, deadline=30)
    return transfer


async def finished(bed: NamespacePair, transfer: Transfer) -> TransferResult:
    """All of it, right, on the same connection."""
    result = await transfer.result(40)
    assert (result.returncode, result.sha256, result.connections) == (0, bed.content.large_sha256, 1)
    return result


def untouched(status: dict[str, Any]) -> dict[str, Any]:
    """What strangers and reloads must leave alone."""
    link = {key: status["link"][key] for key in ("state", "session", "resumed", "gaps")}
    return {**link, "divergences": divergences(status), "checkpoints": status["checkpoints"]}


async def refused(proxy: Proxy, command: str, **arguments: Any) -> str:
    with pytest.raises(ProcessError) as caught:
        await proxy.ask(command, **arguments)
    assert "refuses" in str(caught.value)
    return str(caught.value)


async def in_host(bed: NamespacePair, role: Role, *argv: str, stdin: bytes | None = None) -> Completed:
    return await run(argv, namespace=bed.network.hosts[role], stdin=stdin)


def events(bed: NamespacePair, role: Role) -> list[dict[str, Any]]:
    """All whole lines of the journal so far; the last ones may still be on their way to the file."""
    text = journal_file(bed.directory, role).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


async def told(bed: NamespacePair, role: Role, kind: str) -> dict[str, Any]:
    """The one event of that kind, once it is in the journal."""
    until = time.monotonic() + PATIENCE_S
    while not (found := [event for event in events(bed, role) if event["event"] == kind]):
        assert time.monotonic() < until, f"no {kind} in the journal of the {role}"
        await asyncio.sleep(0.02)
    (event,) = found
    return event


async def carrier(bed: NamespacePair, role: Role) -> bool:
    done = (await in_host(bed, role, "ip", "-j", "link", "show", TAP)).check()
    return "LOWER_UP" in json.loads(done.stdout)[0]["flags"]


def memory(daemon: Daemon) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- strangers


async def test_strangers_on_the_links_port(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path, large_bytes=20_000_000, impaired=SLOW_CABLE)) as bed:
        proxies = await protect(bed, services=["nginx"])
        primary, secondary = proxies["primary"], proxies["secondary"]
        key, flights = bed.directory / "link.psk", bed.directory / "flights"
        first = (await primary.vm_status())["link"]["session"]
        (await in_host(bed, "primary", *STRANGERS, "record", str(key), str(flights))).check()
        assert len(flights.read_bytes()) > 300  # a ClientHello, and what comes after it
        # That was a right primary, so it has replaced the pair's connection; which comes back, anew or resumed.
        await primary.until(
            "protected again",
            lambda vm: (
                (vm["state"], vm["link"]["state"]) == ("protected", "up")
                and (vm["link"]["session"] != first or vm["link"]["resumed"] > 0)
            ),
        )
        await secondary.until("up again", lambda vm: vm["link"]["state"] == "up")

        transfer = await begin(bed)
        before = untouched(await primary.vm_status())
        sizes = {role: memory(proxy.daemon) for role, proxy in proxies.items()}
        slow = await bed.run_in_host("primary", "slow", [*STRANGERS, "slow", "40"])
        await logged(slow, "^held$|\nheld\n")
        hello = {"coloproxy": 1, "software": "0", "pair": PAIR, "vm": VM, "role": "primary", "session": None}
        text = json.dumps({**hello, "received": 0, "nics": [{"name": "nic0", "mtu": 1500, "vnet_hdr": False}]}).encode()
        (bed.directory / "hello").write_bytes(len(text).to_bytes(4, "big") + text)
        (bed.directory / "garbage").write_bytes(secrets.token_bytes(5000))
        for name in ("hello", "garbage", "flights"):
            (await in_host(bed, "primary", *STRANGERS, "send", str(bed.directory / name))).check()
        client = ["openssl", "s_client", "-tls1_3", "-quiet", "-connect", f"{LINK_SECONDARY}:{LINK_PORT}"]
        wrong = ["-psk_identity", PAIR, "-psk", secrets.token_hex(32)]
        for more in (wrong, []):
            assert (await in_host(bed, "primary", *client, *more, stdin=b"")).returncode != 0

        assert transfer.running
        assert untouched(await primary.vm_status()) == before
        await finished(bed, transfer)
        assert untouched(await primary.vm_status()) == before
        assert before["state"] == "up" and before["divergences"] == 0
        for role, proxy in proxies.items():
            assert memory(proxy.daemon) - sizes[role] < MEMORY
        refusals = (await secondary.ctl("status"))["refusals"]
        assert refusals["crowded"] >= 40 - 16
        assert refusals["key"] >= 2 and refusals["plain-text"] >= 2 and sum(refusals.values()) >= 40 - 16 + 5
        log = secondary.daemon.log.read_text()
        reasons = re.findall(r"link: 10\.98\.0\.1:\d+: refused: (.+)", log)
        assert len(reasons) >= len(refusals) - 1


# ------------------------------------------------------------ who takes over


async def test_failover_of_a_live_primary_needs_force(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect(bed, services=["nginx"])
        primary, secondary = proxies["primary"], proxies["secondary"]
        assert "failover is for the secondary" in await refused(primary, "failover")
        assert "alone is for the primary" in await refused(secondary, "alone")
        assert "checkpoints are the primary's" in await refused(secondary, "checkpoint")
        transfer = await begin(bed)
        assert "the primary is alive, the link is up" in await refused(secondary, "failover")
        assert (await secondary.vm_status())["state"] == "standby"
        assert await carrier(bed, "primary") and not await carrier(bed, "secondary")
        await secondary.ctl("failover", "--force")
        assert await carrier(bed, "secondary") and not await carrier(bed, "primary")
        assert (await primary.vm_status())["state"] == "stood-down"
        assert (await secondary.vm_status())["state"] == "taken-over"
        assert not (await primary.vm_status())["nics"][0]["open"]
        silent, speaks = await told(bed, "primary", "stood-down"), await told(bed, "secondary", "took-over")
        assert silent["monotonic_ns"] < speaks["monotonic_ns"]
        await finished(bed, transfer)
        assert await bed.client.get("/hello.txt") == HELLO
        assert "has taken over" in await refused(primary, "alone")
        ups = [e for e in events(bed, "secondary") if e["event"] == "link-up"]
        assert len(ups) == 1  # who stood down and who took over have nothing to say to each other


async def test_a_primary_that_comes_back_stands_down(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect(bed, services=["nginx"])
        transfer = await begin(bed)
        await fail_over(bed, proxies["secondary"], "down")
        await finished(bed, transfer)
        bed.network.set_link("primary", up=True)  # the operator has mended the link first
        await proxies["primary"].until("stood down", lambda vm: vm["state"] == "stood-down")
        assert not await carrier(bed, "primary")
        bed.network.mend("primary")
        assert await bed.client.ping() == 3
        assert await bed.client.get("/hello.txt") == HELLO
        assert (await proxies["secondary"].vm_status())["state"] == "taken-over"


async def test_alone_when_the_secondary_is_killed(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect(bed, services=["nginx"])
        primary = proxies["primary"]
        transfer = await begin(bed)
        await bed.cut("secondary", "kill")
        await primary.until("without its peer", lambda vm: vm["link"]["state"] == "down")
        await primary.ctl("alone", "--reason", "the test says so")
        await finished(bed, transfer)
        status = await primary.vm_status()
        assert status["state"] == "alone" and status["link"]["reason"] == "the test says so"
        assert "not protected" in await refused(primary, "checkpoint")
        # The secondary that comes back is not taken until a restart.
        config = bed.directory / "pair.toml"
        secondary = await start_proxy(bed, "secondary", config)
        await bed.start_vm("secondary", ["nginx"])
        assert await bed.client.get("/hello.txt") == HELLO
        assert (await secondary.vm_status())["link"]["state"] == "down"
        primary.daemon.signal(signal.SIGTERM)
        assert await primary.daemon.wait() == 0
        primary = await start_proxy(bed, "primary", config)
        await primary.until("protected", lambda vm: vm["state"] == "protected")
        # A real checkpoint copies the neighbours that the VM knows; this one must hear a question of the client's.
        (await bed.client.run("ip", "neigh", "flush", "all")).check()
        await finished(bed, await begin(bed))


async def test_who_waits_for_a_checkpoint_hears_at_once_that_the_primary_goes_on_alone(tmp_path: Path) -> None:
    """Its program's `take` never ends."""
    begun, hold = tmp_path / "begun", tmp_path / "hold"
    program = f"if test $0 = take -a -e {hold}; then touch {begun}; exec sleep 1000; fi"
    checkpoint = {"back_end": "command", "command": ["/bin/sh", "-c", program], "min_interval": "0s"}
    async with NamespacePair(options(tmp_path)) as bed:
        primary = (await protect(bed, PairFile(checkpoint=checkpoint), services=["nginx"]))["primary"]
        assert await primary.ask("checkpoint", wait_s=PATIENCE_S) == {"committed": ["vm"]}
        hold.touch()
        assert "no checkpoint has committed in 0.1 s" in await refused(primary, "checkpoint", wait_s=0.1)
        waiting = asyncio.create_task(refused(primary, "checkpoint", wait_s=1000))
        async with asyncio.timeout(PATIENCE_S):
            while not begun.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.05)
        await primary.ctl("alone", "--reason", "the test says so")
        assert "protection has ended: the test says so" in await waiting


async def test_alone_by_itself_when_the_link_is_lost(tmp_path: Path) -> None:
    link = {"keepalive": "50ms", "timeout": "300ms", "on_loss": "alone", "alone_after": "500ms"}
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect(bed, PairFile(link=link), services=["nginx"])
        transfer = await begin(bed)
        bed.network.set_link("primary", up=False)
        await proxies["primary"].until("alone", lambda vm: vm["state"] == "alone")
        await finished(bed, transfer)
        alone = await told(bed, "primary", "went-alone")
        assert alone["reason"] == "the link has been lost for 0.5 s"
        bed.network.set_link("primary", up=True)
        assert await bed.client.get("/hello.txt") == HELLO
        assert (await proxies["primary"].vm_status())["state"] == "alone"


# ------------------------------------------------------------------- reload


def edit(bed: NamespacePair, old: str, new: str) -> str:
    """Changes the pair's file; returns it as it was."""
    path = bed.directory / "pair.toml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    return before


async def logged(daemon: Daemon, pattern: str, since: int = 0) -> None:
    """Once there is a line in its log that has it, behind the first so many characters."""
    until = time.monotonic() + PATIENCE_S
    while re.search(pattern, daemon.log.read_text()[since:]) is None:
        daemon.check()
        assert time.monotonic() < until, f"no {pattern!r} in the log of {daemon.name}:\n{daemon.tail()}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["ctl", "SIGHUP"])
async def test_reload_while_a_download_runs(how: str, tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path, large_bytes=20_000_000, impaired=SLOW_CABLE)) as bed:
        proxies = await protect(bed, PairFile(process={"log_level": "info"}), services=["nginx"])
        transfer = await begin(bed)
        before = untouched(await proxies["primary"].vm_status())
        edit(bed, '"10.99.0.2", ', '"10.99.0.2", "10.99.0.77", ')
        good = edit(bed, 'log_level = "info"', 'log_level = "debug"')
        for proxy in proxies.values():
            if how == "ctl":
                changed = (await proxy.ctl("reload"))["changed"]
                assert changed == ["process.log_level", "vms[0].nics[0].announce"]
            else:
                proxy.daemon.signal(signal.SIGHUP)
            await logged(proxy.daemon, "reloaded: process.log_level, vms")
            await proxy.ask("status")
            await logged(proxy.daemon, "debug: control: status")

        (bed.directory / "pair.toml").write_text(good)  # with log_level: info again
        edit(bed, 'timeout = "500ms"', 'timeout = "600ms"')
        right = edit(bed, "vnet_hdr = false }", "vnet_hdr = false, mtu = 1400 }")
        fixed = "can't be changed while it runs.*link.timeout, vms.0..nics.0..tap.mtu"
        for proxy in proxies.values():
            if how == "ctl":
                assert re.search(fixed, await refused(proxy, "reload"))
            else:
                proxy.daemon.signal(signal.SIGHUP)
                await logged(proxy.daemon, fixed)
        (bed.directory / "pair.toml").write_text(right + "nonsense = 1\n")
        line = len(right.splitlines()) + 1
        for proxy in proxies.values():
            if how == "ctl":
                assert f"pair.toml:{line}: vm.vm.nic[0].nonsense: unknown key" in await refused(proxy, "reload")
            else:
                proxy.daemon.signal(signal.SIGHUP)
                await logged(proxy.daemon, rf"pair.toml:{line}: vm.vm.nic\[0\].nonsense: unknown key")
        for proxy in proxies.values():  # the log level has stayed
            size = proxy.daemon.log.stat().st_size
            await proxy.ask("status")
            await logged(proxy.daemon, "debug: control: status", size)

        assert transfer.running
        await finished(bed, transfer)
        assert untouched(await proxies["primary"].vm_status()) == before
        assert before["state"] == "up" and before["divergences"] == 0
        await fail_over(bed, proxies["secondary"], "kill")
        took_over = await told(bed, "secondary", "took-over")
        assert took_over["addresses"] == 4  # two of IPv4, one of IPv6, the MAC


async def test_protection_begins_again_when_the_vms_card_was_lost(tmp_path: Path) -> None:
    """The engine is a new one then, which would let all pass for ever (R1)."""
    async with NamespacePair(options(tmp_path, kind="tap")) as bed:
        proxies = await protect(bed, services=["nginx"])
        before = (await proxies["primary"].vm_status())["checkpoints"]
        batch(bed.network.vms["primary"], ["link del eth0"])
        await logged(proxies["primary"].daemon, "the primary VM is gone")
        await proxies["primary"].until("connected", lambda vm: vm["nics"][0]["vm_connected"])
        await proxies["primary"].until("protected", lambda vm: vm["state"] == "protected")
        status = await proxies["primary"].vm_status()
        assert status["comparator"]["mode"] == "protected"
        assert status["checkpoints"] >= before


# --------------------------------------------------------------------- stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stopped_in_mid_transfer(number: signal.Signals, tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path, kind="tap")) as bed:
        recording = bed.directory / "frames.pcapng"
        proxies = await protect(bed, PairFile(compare={"record": str(recording)}), services=["nginx"])
        transfer = await begin(bed)
        for role in ROLES:
            proxies[role].daemon.signal(number)
            assert await proxies[role].daemon.wait() == 0
            assert not proxies[role].socket.exists()
            assert not bed.network.has_interface(bed.network.hosts[role], TAP)
            assert not bed.network.has_interface(bed.network.vms[role], "eth0")
            assert (await in_host(bed, role, "ss", "-Htan")).check().stdout.split(b"\n") == [b""] or role == "primary"
            last = events(bed, role)[-1]
            assert last["event"] == "stopped" and last["failure"] is None
        assert transfer.running
        argv = [sys.executable, "-P", "-m", "coloproxy", "replay", str(recording), "--json"]
        replay = (await run(argv)).check()
        assert b"truncated" not in replay.stderr
        assert json.loads(replay.stdout)


# ------------------------------------------------------------------- rights

NET_ADMIN, NET_RAW = 1 << 12, 1 << 13  # linux/capability.h


def rights(daemon: Daemon) -> list[dict[str, str]]:
    """Of each thread."""
    return [
        dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        for task in Path(f"/proc/{daemon.pid}/task").iterdir()
    ]


async def protect_as_nobody(bed: NamespacePair) -> dict[Role, Proxy]:
    # The device as udev makes it; with root's alone a TAP that is lost can't be opened again.
    os.mknod(bed.directory / "tun", 0o600 | stat.S_IFCHR, os.makedev(10, 200))
    (bed.directory / "tun").chmod(0o666)
    script = f'mount --bind {bed.directory}/tun /dev/net/tun && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    return await protect(bed, PairFile(process={"user": "nobody"}), services=["nginx"], prefix=prefix)


async def test_user_nobody(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect_as_nobody(bed)
        for proxy in proxies.values():
            threads = rights(proxy.daemon)
            assert len(threads) >= 2
            for thread in threads:
                assert set(thread["Uid"].split()) == {"65534"} and thread["NoNewPrivs"].strip() == "1"
                assert int(thread["CapPrm"], 16) & ~(NET_ADMIN | NET_RAW) == 0
                assert int(thread["CapAmb"], 16) == int(thread["CapInh"], 16) == 0
            (main,) = [thread for thread in threads if int(thread["Pid"]) == proxy.daemon.pid]
            assert int(main["CapEff"], 16) == int(main["CapBnd"], 16) == NET_ADMIN | NET_RAW
        transfer = await begin(bed)
        await fail_over(bed, proxies["secondary"], "kill")
        await finished(bed, transfer)
        assert await carrier(bed, "secondary")


async def test_lost_taps_come_back(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect_as_nobody(bed)
        transfer = await begin(bed)
        (await in_host(bed, "primary", "ip", "link", "delete", TAP)).check()
        await logged(proxies["primary"].daemon, f"TAP {TAP}: ")
        await finished(bed, transfer)
        assert await carrier(bed, "primary")
        # At the moment of a failover: it is opened to the network when it is back.
        (await in_host(bed, "secondary", "ip", "link", "delete", TAP)).check()
        await logged(proxies["secondary"].daemon, f"TAP {TAP}: ")
        await fail_over(bed, proxies["secondary"], "kill")
        assert await bed.client.get("/hello.txt", "--retry", "8", "--retry-connrefused", "--max-time", "20") == HELLO
        assert await carrier(bed, "secondary")


# ------------------------------------------------------------------- frozen


async def test_a_frozen_secondary_does_not_stall_clients(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        file = PairFile(compare={"compare_timeout": "200ms"})
        proxies = await protect(bed, file, services=["nginx"])
        transfer = await begin(bed)
        for daemon in bed.services["secondary"].daemons.values():
            daemon.signal(signal.SIGSTOP)
        await finished(bed, transfer)
        assert await bed.client.get("/hello.txt") == HELLO
        status = await proxies["primary"].vm_status()
        assert divergences(status) > 0 and status["checkpoints"] > 0


# ----------------------------------------------------------------- security


async def test_plain_text_works_and_is_warned_of(tmp_path: Path) -> None:
    async with NamespacePair(options(tmp_path)) as bed:
        proxies = await protect(bed, PairFile(security="plain"), services=["nginx"])
        for proxy in proxies.values():
            assert "warning: link: PLAIN TEXT: anybody" in proxy.daemon.log.read_text()
            assert (await proxy.vm_status())["link"]["cipher"] == "plain text"
        await finished(bed, await bed.client.download())


def certificates() -> str:
    """docs/link.md's commands."""
    text = (Path(__file__).parents[1] / "docs/link.md").read_text()
    return re.findall(r"<!-- certificates -->\n```sh\n(.*?)```", text, re.DOTALL)[0]


async def test_certificates(tmp_path: Path) -> None:
    script = (
        certificates()
        + """
mkdir other && cp host-b.* other && (cd other &&
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=foreign" -keyout ca.key -out ca.pem
    openssl x509 -req -in host-b.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile host-b.ext -out host-b.pem)
cp host-b.pem good.pem
openssl x509 -req -in host-b.csr -CA ca.pem -CAkey ca.key -days -1 -extfile host-b.ext -out expired.pem
"""
    )
    async with NamespacePair(options(tmp_path)) as bed:
        at = bed.directory / "keys"
        at.mkdir()
        (await run(["sh", "-e", "-c", f"cd {at}\n{script}"])).check()
        link = {
            "keepalive": "50ms",
            "timeout": "500ms",
            "certificate": {"primary": f"{at}/host-a.pem", "secondary": f"{at}/host-b.pem"},
            "key": {"primary": f"{at}/host-a.key", "secondary": f"{at}/host-b.key"},
            "ca": f"{at}/ca.pem",
            "peer_name": {"primary": "host-b", "secondary": "host-a"},
        }
        proxies = await protect(bed, PairFile(security="certificates", link=link), services=["nginx"])
        primary, secondary = proxies["primary"], proxies["secondary"]
        assert "TLSv1.3" in (await primary.vm_status())["link"]["cipher"]
        await finished(bed, await bed.client.download())
        # A reload takes the new certificate for the next connection.
        for name, ours in (("expired.pem", "expired"), ("other/host-b.pem", "")):
            (at / "host-b.pem").write_bytes((at / name).read_bytes())
            await secondary.ctl("reload")
            sizes = {role: proxy.daemon.log.stat().st_size for role, proxy in proxies.items()}
            bed.network.set_link("primary", up=False)
            await secondary.until("down", lambda vm: vm["link"]["state"] == "down")
            bed.network.set_link("primary", up=True)
            for role in ROLES:
                await logged(proxies[role].daemon, f"refused: .*certificate.*{ours}", sizes[role])
            assert (await primary.vm_status())["link"]["state"] == "down"
            (at / "host-b.pem").write_bytes((at / "good.pem").read_bytes())
            await secondary.ctl("reload")
            await primary.until("protected", lambda vm: vm["link"]["state"] == "up" and vm["state"] == "protected")
