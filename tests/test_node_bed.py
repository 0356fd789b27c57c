# SPDX-License-Identifier: Apache-2.0
"""The bed for `coloproxy node` itself, with plain QEMUs and programs where the node will be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from coloproxy.testbed.errors import DeadlineError, GuestError, ProcessError
from coloproxy.testbed.guest import large_file
from coloproxy.testbed.impair import Impairment
from coloproxy.testbed.leftovers import remove_leftovers
from coloproxy.testbed.node_bed import NodeBed, NodeOptions, start_plain_vm
from coloproxy.testbed.node_cycle import Cycle, Deadlines, Death, Load, Victim, plan, run_cycle, summary
from coloproxy.testbed.node_guest import LARGE_PATH, LOG_DIRECTORY, PROGRAMS, make_disk, program
from coloproxy.testbed.node_host import HostProcesses
from coloproxy.testbed.node_net import CLIENT_ADDRESSES, HOSTS, LINK_ADDRESSES, Cable, Host, other
from coloproxy.testbed.node_owner import Ownership, Seen
from coloproxy.testbed.node_toml import NodeFile
from coloproxy.testbed.node_traffic import Kept
from coloproxy.testbed.node_verify import examine_log, problems, record, verify
from coloproxy.testbed.process import run
from coloproxy.testbed.requirements import missing

LACKS = ", ".join(item.what for item in missing(PROGRAMS | {"ping": "iputils-ping"}))
e2e = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]
bed_test = pytest.mark.parametrize("_", [pytest.param(None, marks=e2e, id="bed")])


# ---------------------------------------------------------------------- who owned the guest

A: Final[Host] = "a"
B: Final[Host] = "b"
RUNS: Final[list[tuple[str, float, list[tuple[Host, float]], list[Host], int]]] = [
    ("nobody", 0.0, [], [], 0),
    ("one", 0.0, [(A, 1.0), (A, 2.0)], [A], 0),
    ("a takeover", 0.0, [(A, 1.0), (A, 2.0), (B, 2.5), (B, 3.0)], [A, B], 0),
    ("there and back", 0.0, [(A, 1.0), (B, 2.0), (A, 9.0)], [A, B, A], 0),
    ("one frame of the old owner, without grace", 0.0, [(A, 1.0), (B, 2.0), (A, 2.001), (B, 2.1)], [A, B, A, B], 0),
    ("the same at the very moment", 0.0, [(A, 1.0), (B, 2.0), (A, 2.0), (B, 2.1)], [A, B], 1),
    ("within the grace", 0.25, [(A, 1.0), (B, 2.0), (A, 2.2), (B, 2.25), (A, 2.25)], [A, B], 2),
    ("the grace isn't prolonged", 0.25, [(A, 1.0), (B, 2.0), (A, 2.2), (A, 2.3)], [A, B, A], 1),
    ("the first owner has none before it", 9.0, [(A, 1.0), (B, 1.5)], [A, B], 0),
]


@pytest.mark.parametrize(("grace", "frames", "owners", "late"), [case[1:] for case in RUNS], ids=[c[0] for c in RUNS])
def test_ownership(grace: float, frames: list[tuple[Host, float]], owners: list[Host], late: int) -> None:
    seen = Ownership(grace=grace)
    for host, at in frames:
        seen.frame(host, at)
    assert [run.host for run in seen.runs] == owners
    assert seen.late == late
    assert sum(run.frames for run in seen.runs) + late == len(frames)
    for before, after in zip(seen.runs, seen.runs[1:], strict=False):
        assert before.last <= after.first


def test_ownership_keeps_a_bounded_story() -> None:
    seen = Ownership()
    for at in range(10_500):
        seen.frame(HOSTS[at % 2], float(at))
    assert (len(seen.runs), seen.untold) == (10_000, 250)


def test_what_was_seen_is_judged() -> None:
    ownership = Ownership()
    for host, at in ((A, 1.0), (B, 2.0), (A, 3.0)):
        ownership.frame(host, at)

    def seen(*, blind: int = 0, answers: tuple[int, int] = (5, 5)) -> Seen:
        counts: dict[Host, int] = dict(zip(HOSTS, answers, strict=True))
        return Seen(ownership.runs, 0, blind, counts, 9, 0.5)

    assert seen().faults([A, B, A]) == []
    assert "owners should be a, b, and were a 0.000-0.000 (1); b" in seen().faults([A, B])[0]
    assert "nothing is proven" in seen(blind=1).faults([A, B, A])[0]
    assert "never did" in seen(answers=(5, 0)).faults([A, B, A])[0]


THAWED: list[tuple[str, list[tuple[Host, float]], list[Host]]] = [
    ("a burst", [(A, 1.0), (B, 2.0), (A, 3.0), (A, 3.05), (B, 3.1)], [A, B]),
    ("one that is too long", [(A, 1.0), (B, 2.0), (A, 3.0), (A, 3.2), (B, 3.3)], [A, B, A, B]),
    ("of the other one", [(B, 1.0), (A, 2.0), (A, 2.5), (B, 3.0), (A, 3.1)], [B, A, B, A]),
    ("two", [(A, 1.0), (B, 2.0), (A, 3.0), (B, 3.1), (A, 4.0), (B, 4.1)], [A, B, A, B]),
    ("no owner after it", [(A, 1.0), (B, 2.0), (A, 3.0)], [A, B, A]),
    ("none", [(A, 1.0), (B, 2.0)], [A, B]),
]


@pytest.mark.parametrize(("frames", "owners"), [case[1:] for case in THAWED], ids=[case[0] for case in THAWED])
def test_one_burst_of_a_host_that_goes_on_can_be_overlooked(
    frames: list[tuple[Host, float]], owners: list[Host]
) -> None:
    ownership = Ownership()
    for host, at in frames:
        ownership.frame(host, at)
    seen = Seen(ownership.runs, 0, 0, {A: 1, B: 1}, 1, 0.5)
    found = seen.without_thawed(A, 0.1)
    assert found.owners == owners
    assert seen.owners == [run.host for run in ownership.runs]


# ---------------------------------------------------------------------- the write log on a disk


def test_a_record_is_its_numbers_own() -> None:
    line = record("x", 7)
    text, _, checksum = line.rstrip(b"\n").rpartition(b" ")
    assert text.startswith(b"7 ") and int(checksum, 16) == zlib.crc32(text)
    assert len({record(name, number) for name in ("x", "y") for number in range(1, 100)}) == 198


R = [record("x", number) for number in range(6)]  # R[1] is number 1
LOGS: list[tuple[str, bytes, int, int, tuple[int, tuple[int, ...], int, tuple[int, ...]]]] = [
    # what, content, sent, acknowledged -> found, lost, torn lines, misplaced
    ("nothing", b"", 0, 0, (0, (), 0, ())),
    ("all", R[1] + R[2] + R[3], 3, 3, (3, (), 0, ())),
    ("one more than acknowledged", R[1] + R[2], 2, 1, (2, (), 0, ())),
    ("the last, not acknowledged, isn't there", R[1], 2, 1, (1, (), 0, ())),
    ("the last is lost", R[1] + R[2], 3, 3, (2, (3,), 0, ())),
    ("one within is lost", R[1] + R[3], 3, 3, (2, (2,), 0, (3,))),
    ("all are lost", b"", 2, 2, (0, (1, 2), 0, ())),
    ("swapped", R[1] + R[3] + R[2], 3, 3, (3, (), 0, (3, 2))),
    ("twice", R[1] + R[1] + R[2], 2, 2, (3, (), 0, (1, 2))),
    ("torn", R[1] + R[2][:-9], 2, 1, (1, (), 1, ())),
    ("without its end", R[1] + R[2][:-1], 2, 2, (1, (2,), 1, ())),
    ("a hole of zeros", R[1] + bytes(40) + b"\n" + R[3], 3, 3, (2, (2,), 1, (3,))),
    ("another log's", R[1] + record("y", 2), 2, 2, (1, (2,), 1, ())),
    ("one bit", R[1] + R[2].replace(b"2 ", b"3 ", 1), 3, 2, (1, (2,), 1, ())),
    ("never sent", R[1] + R[2], 1, 1, (2, (), 0, (2,))),
]


@pytest.mark.parametrize(("content", "sent", "acknowledged", "want"), [c[1:] for c in LOGS], ids=[c[0] for c in LOGS])
def test_examine_log(
    content: bytes, sent: int, acknowledged: int, want: tuple[int, tuple[int, ...], int, tuple[int, ...]]
) -> None:
    found = examine_log("x", content, sent=sent, acknowledged=acknowledged)
    assert (found.found, found.lost, len(found.torn), found.misplaced) == want
    assert found.intact == (not want[1] and not want[2] and not want[3])


def test_what_e2fsck_says() -> None:
    said = """Pass 1: Checking inodes, blocks, and sizes
Inode 12, i_size is 5, should be 4096.  Fix? yes

Pass 5: Checking group summary information
Block bitmap differences:  -5063
Fix? yes

Free blocks count wrong for group #0 (1, counted=2).
Fix? yes

Free blocks count wrong (55224, counted=55222).
Fix? yes

Free inodes count wrong (24562, counted=24561).
Fix? no
"""
    assert problems(said) == [
        "Inode 12, i_size is 5, should be 4096.  Fix? yes",
        "Block bitmap differences:  -5063 Fix? yes",
        "Free blocks count wrong for group #0 (1, counted=2). Fix? yes",
    ]


async def test_verify_tells_a_good_disk_from_bad_ones(tmp_path: Path) -> None:
    if LACKS:
        pytest.skip(f"this machine lacks {LACKS}")
    disk = make_disk(tmp_path / "disk.qcow2", mebibytes=16, large_bytes=1_000_000)
    raw = tmp_path / "raw"

    def change(*commands: str) -> Path:
        program(["qemu-img", "convert", "-O", "raw", str(disk.path), str(raw)])
        for command in commands:
            program(["debugfs", "-w", "-R", command, str(raw)])
        changed = tmp_path / "changed.qcow2"
        program(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(changed)])
        return changed

    (tmp_path / "log").write_bytes(record("x", 1) + record("x", 2))
    (tmp_path / "other").write_bytes(large_file(999_999))
    write = f"write {tmp_path}/log {LOG_DIRECTORY}/x"

    good = await verify([change(write)], disk, [("x", 3, 2)])
    assert good.intact and good.logs["x"].found == 2
    assert not (await verify([disk.path], disk, [("x", 2, 2)])).intact
    other_file = await verify(
        [change("rm www/large.bin", f"write {tmp_path}/other www/large.bin", write)], disk, [("x", 2, 2)]
    )
    assert not other_file.large_intact and other_file.logs["x"].intact and not other_file.intact
    damaged = await verify([change("clri www", write)], disk)
    assert damaged.repairs and not damaged.intact
    # Overlays: the upper one counts.
    base, overlay = disk.path, tmp_path / "overlay.qcow2"
    upper = change(write)
    program(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay)])
    program(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "", str(overlay)])  # as COLO's, which name nobody
    assert (await verify([upper, base], disk, [("x", 2, 2)])).intact
    assert not (await verify([overlay, base], disk, [("x", 2, 2)])).logs["x"].intact
    with pytest.raises(GuestError, match=r"missing\.qcow2"):
        await verify([tmp_path / "missing.qcow2"], disk)


# ---------------------------------------------------------------------- beds


async def reaches(bed: NodeBed, source: Host | None, address: str) -> bool:
    """True if an echo request from that host, or the client, is answered."""
    namespace = bed.network.client if source is None else bed.network.hosts[source]
    done = await run(["ping", "-n", "-c", "1", "-W", "0.4", address], namespace=namespace)
    return done.returncode == 0


async def comes_to_reach(bed: NodeBed, source: Host | None, address: str) -> None:
    async with asyncio.timeout(10):  # who has asked for a MAC in vain asks again after a second
        while not await reaches(bed, source, address):
            pass


async def arbiter_reaches(bed: NodeBed, host: Host) -> bool:
    argv = ["curl", "--silent", "--fail", "--max-time", "0.4", f"{bed.arbiter_url(host)}/health"]
    return (await run(argv, namespace=bed.network.hosts[host])).returncode == 0


@bed_test
async def test_cables_are_cut_and_mended_one_by_one(_: None) -> None:
    async with NodeBed(NodeOptions(arbiter=True, large_bytes=1000, disk_mebibytes=16)) as bed:

        async def works(host: Host) -> dict[Cable, bool]:
            link, client, arbiter = await asyncio.gather(
                reaches(bed, host, LINK_ADDRESSES[other(host)]),
                reaches(bed, None, CLIENT_ADDRESSES[host]),
                arbiter_reaches(bed, host),
            )
            return {"client": client, "link": link, "arbiter": arbiter}

        async def both() -> tuple[set[Cable], set[Cable]]:
            a, b = await asyncio.gather(works("a"), works("b"))
            return {cable for cable, up in a.items() if not up}, {cable for cable, up in b.items() if not up}

        async def cut_are(a: set[Cable], b: set[Cable]) -> None:
            async with asyncio.timeout(10):  # as in comes_to_reach()
                while await both() != (a, b):
                    pass

        await cut_are(set(), set())
        bed.cut("client", "a")
        await cut_are({"client"}, set())
        bed.mend("client", "a")
        bed.cut("arbiter", "b")
        await cut_are(set(), {"arbiter"})
        bed.cut("link", "b")
        await cut_are({"link"}, {"link", "arbiter"})
        routes = (await run(["ip", "route", "show", "dev", "link0"], namespace=bed.network.hosts["a"])).stdout
        bed.light_up("b")
        await cut_are(set(), set())
        assert b"quickack 1" in routes
        assert (await run(["ip", "route", "show", "dev", "link0"], namespace=bed.network.hosts["a"])).stdout == routes
        bed.black_out("a")
        await cut_are({"client", "link", "arbiter"}, {"link"})
        bed.light_up("a")
        await cut_are(set(), set())
        # The arbiter itself, dead and back.
        assert bed.arbiter is not None
        await bed.arbiter.kill()
        await cut_are({"arbiter"}, {"arbiter"})
        await bed.start_arbiter()
        await cut_are(set(), set())


@bed_test
async def test_a_relay_cuts_one_direction(_: None) -> None:
    options = NodeOptions(impaired=frozenset({"link", "a"}), large_bytes=1000, disk_mebibytes=16)
    async with NodeBed(options) as bed:
        link = bed.relays["link"]
        await comes_to_reach(bed, "a", LINK_ADDRESSES["b"])
        before = await link.counters()
        await link.cut(to_left=False)
        assert not await reaches(bed, "b", LINK_ADDRESSES["a"])  # the request arrives, the answer doesn't
        counters = await link.mend()
        assert counters.to_right.cut > 0 and counters.to_left.cut == 0
        assert counters.to_left.given > before.to_left.given
        await comes_to_reach(bed, "b", LINK_ADDRESSES["a"])
        await bed.relays["a"].set(to_left=Impairment(loss=1.0))
        assert not await reaches(bed, None, CLIENT_ADDRESSES["a"])
        await comes_to_reach(bed, None, CLIENT_ADDRESSES["b"])
        await bed.relays["a"].set_both()
        bed.cut("client", "a")
        assert not await reaches(bed, None, CLIENT_ADDRESSES["a"])
        bed.mend("client", "a")
        await comes_to_reach(bed, None, CLIENT_ADDRESSES["a"])


DETACHED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
"""


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.01)


async def detached(bed: NodeBed, host: Host) -> tuple[int, int]:
    """A program on that host and what it started to outlive it; their process ids."""
    file = bed.directory / f"pid-{host}"
    daemon = await bed.run_in_host(host, "parent", [sys.executable, "-c", DETACHED, str(file)])
    await until(lambda: file.exists() and file.read_text() != "")
    return daemon.pid, int(file.read_text())


def state_of(pid: int) -> str | None:
    """As proc(5) has it; None: there is no such process, or it only waits to be buried."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return None if state in "ZX" else state
    return None


@bed_test
async def test_a_hosts_death_takes_all_of_it_and_nothing_else(_: None) -> None:
    async with NodeBed(NodeOptions(large_bytes=1000, disk_mebibytes=16)) as bed:
        of = {host: await detached(bed, host) for host in HOSTS}
        assert sorted(of["a"]) == sorted(bed.processes["a"].pids())
        await bed.freeze_host("a")
        assert [state_of(pid) for pid in of["a"]] == ["T", "T"]
        assert [state_of(pid) for pid in of["b"]] == ["S", "S"]
        bed.thaw_host("a")
        assert "T" not in [state_of(pid) for pid in of["a"]]
        await bed.freeze_host("a")  # the stopped die, too
        await bed.kill_host("a")
        assert [state_of(pid) for pid in of["a"]] == [None, None]
        assert [state_of(pid) for pid in of["b"]] == ["S", "S"]
        assert bed.processes["a"].pids() == []
        # And what kill_host("b") would do, a fence command does.
        (await run(bed.fence_command("b"))).check()
        assert [state_of(pid) for pid in of["b"]] == [None, None]


def test_our_own_namespace_is_no_host() -> None:
    ours = Path("/proc/self/ns/net").stat().st_ino

    class Here(HostProcesses):
        def __init__(self) -> None:
            self.namespace, self._inode = "ours", ours

    assert os.getpid() in Here().pids()
    with pytest.raises(FileNotFoundError):
        HostProcesses("colotb-none")


KILLED_BED = """
import asyncio, os, signal
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
async def main():
    async with NodeBed(NodeOptions(large_bytes=1000, disk_mebibytes=16, host_mebibytes=40)) as bed:
        await bed.run_in_host("a", "orphan", ["setsid", "--fork", "sleep", "1000"])
        while not (pids := bed.processes["a"].pids("sleep")):
            await asyncio.sleep(0.01)
        print(pids[0], bed.directory, bed.network.hosts["a"], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@bed_test
def test_what_a_killed_bed_leaves_behind_is_removed(_: None) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", KILLED_BED], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, directory, namespace = done.stdout.split()
    assert state_of(int(pid)) is not None  # or this proves nothing
    assert Path(directory, "a").is_mount()
    removed = remove_leftovers()
    assert {directory, namespace} <= set(removed)
    assert state_of(int(pid)) is None
    assert not Path(directory).exists() and not Path("/run/netns", namespace).exists()


NODE = """
import json, os, socket, sys, time, tomllib
_, _, file, _, host = sys.argv  # -c FILE --host HOST
config = tomllib.loads(open(file).read())
path = config["control"]["socket"][host]
mark = config["node"]["state_dir"][host] + "/starts"
with open(mark, "a") as file:
    file.write("x")
state = config["node"]["states"][host]
if os.path.exists(path):
    os.unlink(path)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(path)
    server.listen()
    while True:
        peer, _ = server.accept()
        with peer, peer.makefile("rw") as file:
            json.loads(file.readline())
            file.write(json.dumps({"return": {"state": state, "pid": os.getpid()}}) + "\\n")
"""


def stub(states: dict[Host, str]) -> NodeOptions:
    """A node of a few lines, which only says what it is told to."""
    return NodeOptions(
        command=(sys.executable, "-c", NODE),
        file=NodeFile(node={"states": states}, tables={"heartbeat": {"interval": "50ms"}}),
        large_bytes=1000,
        disk_mebibytes=16,
        host_mebibytes=40,
    )


@bed_test
async def test_nodes_are_supervised_until_their_host_is_gone(_: None) -> None:
    async with NodeBed(stub({"a": "standby", "b": "protected"})) as bed:
        assert tomllib.loads(bed.config.read_text())["heartbeat"] == {"interval": "50ms"}
        assert await bed.state("a") is None
        for host in HOSTS:
            await bed.start_node(host)
        assert await bed.protected(10) == "b"
        with pytest.raises(ProcessError, match="runs already"):
            await bed.start_node("a")

        first = bed.node("a").pid
        await bed.kill_coloproxy("a")
        assert await bed.until_state("a", {"standby"}, 10) == "standby"
        second = (await bed.ask("a", "status"))["pid"]
        assert second != first and bed.ends("a") == (-signal.SIGKILL,)
        assert bed.processes["a"].pids() == [second]

        with pytest.raises(DeadlineError, match="host b is protected and not alone"):
            await bed.until_state("b", {"alone"}, 0.05)

        await bed.kill_host("b", vanish=True)
        assert await bed.state("b") is None and not await reaches(bed, "a", LINK_ADDRESSES["b"])
        await asyncio.sleep(2 * bed.options.restart_seconds)
        assert bed.processes["b"].pids() == []  # nobody starts it again
        await bed.boot_host("b")
        assert await bed.until_state("b", {"protected"}, 10) == "protected"
        assert (bed.hosts["b"].state / "starts").read_text() == "xx"  # its disk is as it was
        await comes_to_reach(bed, "a", LINK_ADDRESSES["b"])

        (await run(bed.fence_command("b"))).check()
        await asyncio.sleep(2 * bed.options.restart_seconds)
        assert bed.processes["b"].pids() == []
        await bed.boot_host("b")
        assert await bed.protected(10) == "b"

        assert bed.fill_disk("a") > 1 << 20
        with pytest.raises(OSError, match="No space"):
            (bed.hosts["a"].directory / "more").write_bytes(b"x")
        (bed.hosts["b"].directory / "more").write_bytes(b"x")
        bed.free_disk("a")
        (bed.hosts["a"].directory / "more").write_bytes(b"x")

        await bed.stop_node("a")
        await asyncio.sleep(2 * bed.options.restart_seconds)
        assert bed.processes["a"].pids() == []


@bed_test
async def test_a_guest_with_a_disk_survives_a_power_cut(_: None, tmp_path: Path) -> None:
    async with NodeBed(NodeOptions(keep_logs=tmp_path)) as bed:
        vm = await start_plain_vm(bed, "a")
        await bed.serves()
        log = await bed.write_log("first")
        traffic = bed.traffic()
        await traffic.start(downloads=1, uploads=1, upload_bytes=5_000_000)
        await traffic.start(downloads=1, uploads=0)
        assert [outcome.text for outcome in await traffic.finish() if not outcome.kept] == []
        await log.reached(log.acknowledged + 30, 30)
        with pytest.raises(GuestError, match="lock"):
            await bed.verify("a")  # never under a running QEMU

        assert bed.kill_qemu("a") == [vm.pid]
        assert await vm.wait() == -signal.SIGKILL
        name, sent, acknowledged = log.counted
        assert acknowledged >= 30 and sent <= acknowledged + 1
        found = await bed.verify("a", [log.counted])
        assert found.intact, found
        assert not (await bed.verify("a", [(name, sent + 2, sent + 2)])).intact  # the proof can fail

        # The same disk boots again, and the log goes on behind what the guest says it has.
        await start_plain_vm(bed, "a")
        await bed.serves()
        again = await bed.write_log("second")
        transfer = await bed.client.download(LARGE_PATH)
        assert (await transfer.result(30)).sha256 == bed.disk.large_sha256
        await again.reached(5, 30)
        last = await again.end(10)
        assert last[1] == last[2]
        seen = await bed.watch.seen()
        assert seen.faults(["a"]) == []
        assert not bed.network.has_interface(bed.network.hosts["b"], "tap0")
        await bed.kill_host("a")
        found = await bed.verify("a", [log.counted, last])
        assert found.intact, found
    assert "service is up" in (tmp_path / "a-console.log").read_text()


@bed_test
async def test_two_owners_at_once_are_noticed(_: None) -> None:
    async with NodeBed(NodeOptions(images=frozenset(HOSTS), watch_interval=0.05, large_bytes=1_000_000)) as bed:
        await start_plain_vm(bed, "a")
        await bed.serves()
        await answered(bed, ["a"])
        assert (await bed.watch.seen()).faults(["a"]) == []

        # A proper takeover: one is gone before the other is there.
        await bed.kill_host("a")
        await start_plain_vm(bed, "b")
        await bed.serves()
        await answered(bed, ["b"])
        assert (await bed.watch.seen()).faults(["a", "b"]) == []

        # And now the very thing that must never be.
        await bed.watch.reset()
        await start_plain_vm(bed, "a")
        await answered(bed, ["a", "b"])
        seen = await bed.watch.seen()
        assert seen.faults(["b"]) and seen.faults(["b", "a"])
        assert len(seen.runs) > 4 and min(seen.answers.values()) > 0

        # Two that live, but only one that clients can reach, are none.
        bed.cut("client", "a")
        await bed.watch.reset()
        await answered(bed, ["b"])
        assert (await bed.watch.seen()).faults(["b"]) == []
        # Frozen while the other works, then thawed: what it still says is noticed.
        bed.mend("client", "a")
        await bed.freeze_host("a")
        await bed.watch.reset()
        await answered(bed, ["b"])
        assert (await bed.watch.seen()).faults(["b"]) == []
        bed.thaw_host("a")
        await answered(bed, ["a"])
        assert (await bed.watch.seen()).faults(["b"])


async def answered(bed: NodeBed, hosts: Sequence[Host], count: int = 3, deadline: float = 30.0) -> None:
    """Until these hosts have answered the watch so many times more."""
    begin = (await bed.watch.seen()).answers
    async with asyncio.timeout(deadline):
        while True:
            now = (await bed.watch.seen()).answers
            if all(now[host] >= begin[host] + count for host in hosts):
                return
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------------- cycles

WATCHING_NODE = """
import json, os, socket, sys, threading, tomllib
_, _, file, _, host = sys.argv  # -c FILE --host HOST
config = tomllib.loads(open(file).read())
path = config["control"]["socket"][host]
peer_address = config["node"]["address"]["b" if host == "a" else "a"]

def alive():
    server = socket.create_server(("0.0.0.0", 7000))
    while True:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"x")

def state():
    if host == "b":
        return "standby"
    try:
        with socket.create_connection((peer_address, 7000), timeout=0.3) as peer:
            return "protected" if peer.recv(1) else "alone"
    except OSError:
        return "alone"

threading.Thread(target=alive, daemon=True).start()
if os.path.exists(path):
    os.unlink(path)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(path)
    server.listen()
    while True:
        peer, _ = server.accept()
        with peer, peer.makefile("rw") as file:
            json.loads(file.readline())
            file.write(json.dumps({"return": {"state": state()}}) + "\\n")
"""


@bed_test
async def test_cycles_in_which_the_secondary_dies(_: None) -> None:
    """The node is one of a few lines that only looks whether the other is there; the VM is nobody's but the bed's."""
    options = NodeOptions(command=(sys.executable, "-c", WATCHING_NODE), large_bytes=16_000_000)
    deaths: tuple[Death, ...] = ("kill", "stop", "cut", "link")
    load = Load(upload_bytes=5_000_000)
    async with NodeBed(options) as bed:
        await start_plain_vm(bed, "a")
        await bed.serves()
        for host in HOSTS:
            await bed.start_node(host)
        log = await bed.write_log("cycles")
        cycles = [
            await run_cycle(bed, log, number, death, "secondary", load=load)
            for number, death in enumerate(deaths, start=1)
        ]
        assert [(cycle.primary, cycle.survivor, cycle.faults) for cycle in cycles] == [("a", "a", ())] * 4
        assert all(len(cycle.stalls) == 2 for cycle in cycles)
        counted = await log.end(30)
        # What can go wrong is told: here the VM is lost.
        await bed.kill_host("b")
        bed.kill_qemu("a")
        await bed.start_node("b")
        with pytest.raises((DeadlineError, ProcessError)):
            await run_cycle(bed, log, 5, "kill", "secondary", load=load, deadlines=Deadlines(record=1.0))
        assert (await bed.verify("a", [counted])).intact


def cycle(number: int, death: Death, victim: Victim, stall: float, *, kept: bool = True) -> Cycle:
    transfers = (Kept("download", kept, stall, ""), Kept("upload", True, 2 * stall, ""))
    return Cycle(
        number=number,
        death=death,
        victim=victim,
        primary="a",
        survivor="b",
        transfers=transfers,
        record_stall=stall,
        alone_seconds=0.5,
        protected_seconds=9.0,
    )


def test_each_kind_of_death_comes_to_each_victim() -> None:
    planned = [plan(["kill", "cut"], number) for number in range(1, 6)]
    assert planned == [
        ("kill", "primary"),
        ("kill", "secondary"),
        ("cut", "primary"),
        ("cut", "secondary"),
        ("kill", "primary"),
    ]


def test_the_summary_of_cycles() -> None:
    said = summary(
        [
            cycle(1, "kill", "primary", 0.1),
            cycle(2, "kill", "secondary", 0.2),
            cycle(3, "kill", "primary", 0.4, kept=False),
        ]
    )
    assert list(said) == ["kill primary", "kill secondary"]
    # 0.1 and 0.2, and of the third only the upload, 0.8: what was lost has no stall
    assert said["kill primary"]["stalls"] == {"count": 3, "min": 0.1, "median": 0.2, "max": 0.8}
    assert said["kill secondary"]["alone_seconds"] == {"count": 1, "min": 0.5, "median": 0.5, "max": 0.5}
    assert summary([]) == {}


def test_cycles_tool_says_how_it_is_used() -> None:
    tool = Path(__file__).parent.parent / "tools" / "node_cycles.py"
    done = subprocess.run([sys.executable, "-P", str(tool), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--death" in done.stdout
