# SPDX-License-Identifier: Apache-2.0
"""The parts of `coloproxy node` that decide nothing: its record, its advert, its configuration, its status."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from coloproxy.disks import Lineage
from coloproxy.errors import ConfigError, PeerError
from coloproxy.heartbeat import BUCKETS_NS, Stats
from coloproxy.heartbeat.message import Reason
from coloproxy.heartbeat.statistics import PathStats, RoundTripMeter
from coloproxy.journal import Journal
from coloproxy.metrics.collector import StatusCollector
from coloproxy.metrics.families import NODE_STATES
from coloproxy.node import told
from coloproxy.node.adverts import Said, decode, encode
from coloproxy.node.board import Board
from coloproxy.node.facts import HOSTS, Advert, Facts, Record, Standing, State, VmView
from coloproxy.node.halt import Halt, Step
from coloproxy.node.machine import Event, decide
from coloproxy.node.peer import Peer
from coloproxy.node.record import Kept, RecordFile
from coloproxy.node.setting import Setting
from coloproxy.node.status import Shown, document
from coloproxy.node.tap_plane import TapPlane
from coloproxy.node.view import render
from coloproxy.node.watch import Watch
from coloproxy.node.work import Work
from coloproxy.run.devices import TapDevice
from coloproxy.run.estate import Estate

FACTS = Facts("a")

# ---------------------------------------------------------------------- the record

WHOLE = {"version": 1, "standing": "primary", "generation": 7, "offer": "abc", "secondary": False, "made": ["/i"]}


def test_a_new_node_has_no_record(tmp_path: Path) -> None:
    assert RecordFile(tmp_path).kept == Kept(Record(Standing.FRESH, 0, ""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("standing", Standing)
def test_a_record_is_read_as_it_was_written(tmp_path: Path, standing: Standing) -> None:
    file = RecordFile(tmp_path)
    file.note(made="/one")
    file.write(Record(standing, 1 << 40, "an offer"))
    file.note(secondary=True, made="/two")
    file.note(made="/one", stopped=True)  # once is enough
    again = RecordFile(tmp_path).kept
    assert again == file.kept == Kept(Record(standing, 1 << 40, "an offer"), True, ("/one", "/two"), True)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in WHOLE.items() if name != key}


DAMAGED: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("zeros", bytes(100)),
    ("cut short", json.dumps(WHOLE).encode()[:-5]),
    ("two", json.dumps(WHOLE).encode() * 2),
    ("not text", b"\xff\xfe\x00"),
    ("too deep", b"[" * 100_000),
    ("a list", b"[]"),
    ("null", b"null"),
    *((f"no {key}", json.dumps(without(key)).encode()) for key in WHOLE),
    *(
        (f"{key} {value!r}", json.dumps({**WHOLE, key: value}).encode())
        for key, value in (
            ("version", 2),
            ("version", "1"),
            ("standing", "king"),
            ("standing", []),
            ("generation", -1),
            ("generation", True),
            ("generation", 7.0),
            ("generation", "7"),
            ("offer", None),
            ("secondary", "false"),
            ("secondary", 1),
            ("made", "/i"),
            ("made", [1]),
        )
    ),
]


@pytest.mark.parametrize("content", [case[1] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_record_is_never_guessed_at(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(json.dumps(WHOLE).encode())
    assert RecordFile(tmp_path).kept.record == Record(Standing.PRIMARY, 7, "abc")  # or this proves nothing
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.json: "):
        RecordFile(tmp_path)


def test_a_record_that_was_being_written_when_the_machine_died_is_the_old_one(tmp_path: Path) -> None:
    RecordFile(tmp_path).write(Record(Standing.OWNER, 3))
    (tmp_path / "state.new").write_bytes(b'{"version": 1, "stand')
    file = RecordFile(tmp_path)
    assert file.kept.record == Record(Standing.OWNER, 3)
    file.write(Record(Standing.PRIMARY, 4, "o"))
    assert RecordFile(tmp_path).kept.record == Record(Standing.PRIMARY, 4, "o")


def test_a_record_that_can_not_be_written_is_not_believed_to_be(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    file.write(Record(Standing.OWNER, 3))
    (tmp_path / "state.new").unlink()
    (tmp_path / "state.new").mkdir()
    with pytest.raises(OSError):
        file.write(Record(Standing.PRIMARY, 4))
    assert file.kept.record == RecordFile(tmp_path).kept.record == Record(Standing.OWNER, 3)
    (tmp_path / "state.new").rmdir()
    file.write(Record(Standing.PRIMARY, 4))
    assert RecordFile(tmp_path).kept.record == Record(Standing.PRIMARY, 4)


def test_a_full_disk_takes_another_record(tmp_path: Path) -> None:
    """As far as that can be seen without one: its place is there already. tests/test_node.py fills a disk."""
    file = RecordFile(tmp_path)
    for generation in range(1, 4):
        file.write(Record(Standing.OWNER, generation))
        reserved = tmp_path / "state.new"
        assert reserved.stat().st_size == (tmp_path / "state.json").stat().st_size == 4096
        inode = reserved.stat().st_ino
        file.note(made=f"/image{generation}")
        assert (tmp_path / "state.json").stat().st_ino == inode
    file.note(made="/" + "x" * 4096)
    assert (tmp_path / "state.json").stat().st_size == 8192
    assert RecordFile(tmp_path).kept == file.kept


def test_a_record_is_not_written_through_a_link(tmp_path: Path) -> None:
    """The directory may be QEMU's user's."""
    precious = tmp_path / "precious"
    precious.write_text("root's own\n")
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "state.new").symlink_to(precious)
    with pytest.raises(OSError):
        RecordFile(directory).write(Record(Standing.OWNER, 3))
    assert precious.read_text() == "root's own\n"


# ---------------------------------------------------------------------- what the heartbeat carries

ADVERT = Advert(State.PROTECTED, Standing.PRIMARY, 7, True, False, "0123456789abcdef", "fedcba9876543210")


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("standing", Standing)
def test_an_advert_arrives_as_it_was_sent(state: State, standing: Standing) -> None:
    names = ["x" * 32] * 4
    lineages = Lineage(names[0], settled=True), Lineage(names[1], settled=False)
    said = Said(Advert(state, standing, (1 << 63) - 1, False, True, *names[2:]), (1 << 40,) * 16, *lineages)
    over_there = json.loads(json.dumps(encode(said)))
    assert decode(over_there) == said
    assert len(json.dumps(over_there, separators=(",", ":"))) < 800  # of the 1 KiB that a message has


HOSTILE: list[tuple[str, Any]] = [
    ("s", "king"), ("s", None), ("s", []), ("s", {}), ("t", "king"), ("t", 7),
    ("g", -1), ("g", True), ("g", 1.0), ("g", "1"), ("g", None), ("g", 1 << 63), ("g", 10**300),
    ("l", 1), ("l", "true"), ("l", None), ("i", 0), ("i", "x" * 900),
    ("o", 7), ("o", None), ("o", "x" * 33), ("o", "\udc80"), ("o", ["a"]), ("x", {}), ("x", "x" * 900),
    ("z", None), ("z", 5), ("z", "5"), ("z", [None]), ("z", [-1]), ("z", [1 << 63]), ("z", [[1]]), ("z", [1] * 17),
]  # fmt: skip


LINEAGES: list[Any] = [
    7, True, "token", {}, {"token": "t", "settled": True}, [], ["t"], ["t", True, 1], ["", True], [None, True],
    ["t", 1], ["t", None], ["t", "true"], [7, True], [["t"], True], ["x" * 33, True], ["\udc80", False],
]  # fmt: skip


@pytest.mark.parametrize("key", ["k", "w"])
@pytest.mark.parametrize("value", LINEAGES, ids=repr)
def test_what_no_node_says_of_a_copy_is_refused(key: str, value: Any) -> None:
    lineage = Lineage("t", settled=True)
    good = encode(Said(ADVERT, (1,), lineage, lineage))
    assert decode(good) == Said(ADVERT, (1,), lineage, lineage)
    with pytest.raises(PeerError, match="no node's"):
        decode({**good, key: value})


def test_an_older_node_says_nothing_of_copies() -> None:
    lineage = Lineage("t", settled=True)
    good = encode(Said(ADVERT, (1,), lineage, lineage))
    assert decode({name: kept for name, kept in good.items() if name not in ("k", "w")}) == Said(ADVERT, (1,))


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_what_no_node_says_is_refused(key: str, value: Any) -> None:
    good = encode(Said(ADVERT, (1,)))
    assert decode(good) == Said(ADVERT, (1,))
    with pytest.raises(PeerError, match="no node's"):
        decode({**good, key: value})
    with pytest.raises(PeerError, match="no node's"):
        decode({name: kept for name, kept in good.items() if name != key})
    assert decode({**good, "later": "version"}) == Said(ADVERT, (1,))


# ---------------------------------------------------------------------- the pair's file

PAIR = """\
name = "web"

[link]
secondary = { a = "192.0.2.1:9810", b = "192.0.2.2:9810" }
security = "psk"
psk_file = "/etc/coloproxy/web.psk"

[node]
address = { a = "192.0.2.1", b = "192.0.2.2" }
state_dir = "STATE"

[[node.heartbeat.path]]
name = "link"
address = { a = "192.0.2.1:9820", b = "192.0.2.2:9821" }

[[node.disk]]
image = { a = "/vms/a.qcow2", b = "/vms/b.qcow2" }

[[vm]]
name = "web"

[[vm.nic]]
name = "nic0"
mac = "52:54:00:12:34:56"
model = "virtio-net-pci"
tap = { name = "web0", bridge = "br0" }
vm = { kind = "stream", address = "unix:/run/web-nic0.sock" }
"""


def pair_file(directory: Path, text: str = PAIR) -> Path:
    path = directory / "pair.toml"
    path.write_text(text.replace("STATE", str(directory / "state")).replace("/etc/coloproxy", str(directory)))
    (directory / "web.psk").write_text("ab" * 32)
    (directory / "web.psk").chmod(0o600)
    return path


def test_each_host_sees_its_own_values(tmp_path: Path) -> None:
    path = pair_file(tmp_path)
    a, b = (Setting.load(path, host) for host in HOSTS)
    assert (a.node.address, b.node.address) == ("192.0.2.1", "192.0.2.2")
    assert [str(each.node.disks[0].image) for each in (a, b)] == ["/vms/a.qcow2", "/vms/b.qcow2"]
    assert (a.control_socket.name, b.control_socket.name) == ("web-a.sock", "web-b.sock")
    for setting, ours, theirs in ((a, ("192.0.2.1", 9820), ("192.0.2.2", 9821)),
                                  (b, ("192.0.2.2", 9821), ("192.0.2.1", 9820))):  # fmt: skip
        settings, paths = setting.heartbeat()
        assert settings.host == setting.host
        assert [(each.local, each.peer) for each in paths] == [(ours, theirs)]
        # The data path in the other role: only who listens changes.
        assert setting.in_role("primary").link.secondary.host == theirs[0]
        assert setting.in_role("secondary").link.secondary.host == ours[0]
        assert setting.migration("b") == "tcp:192.0.2.2:9831"
        assert (setting.nbd("a", "").host, setting.nbd("a", "").port) == ("192.0.2.1", 9830)


@pytest.mark.parametrize("timeout", ["150ms", "400ms", "5s", "600s"])
def test_every_timeout_that_the_file_may_have_makes_a_heartbeat(tmp_path: Path, timeout: str) -> None:
    text = PAIR.replace("[[node.heartbeat.path]]", f'[node.heartbeat]\ntimeout = "{timeout}"\n[[node.heartbeat.path]]')
    settings, _ = Setting.load(pair_file(tmp_path, text), "a").heartbeat()
    assert settings.start_timeout >= settings.timeout


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


MISTAKES: list[tuple[str, str, str, str, str]] = [
    # what, old, new, where the mistake is, what is said
    ("a wrong key", 'state_dir = "STATE"', 'state_dirs = "STATE"', "state_dirs", "state_dirs"),
    ("a wrong key of a table", 'name = "link"', 'name = "link"\ntime = "1s"', 'time = "1s"', "time"),
    ("no host", '"192.0.2.2" }\nstate', '"localhost" }\nstate', "localhost", "node.address"),
    ("no b", ', b = "/vms/b.qcow2" }', " }", "image", "no value"),
    ("a third host", 'a = "/vms/a.qcow2"', 'c = "/c", a = "/vms/a.qcow2"', "image", "c"),
    ("etcd without a table", "[[node.heartbeat", '[node.arbiter]\nkind = "etcd"\n[[node.heartbeat', "arbiter]", "etcd"),
    ("a short timeout", "[[node.heartbeat", '[node.heartbeat]\ntimeout = "100ms"\n[[node.heartbeat', "100ms", "three"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "said"), [case[1:] for case in MISTAKES], ids=[c[0] for c in MISTAKES])
def test_mistakes_are_told_with_their_line(tmp_path: Path, old: str, new: str, where: str, said: str) -> None:
    assert PAIR.count(old) == 1, old
    text = PAIR.replace(old, new)
    with pytest.raises(ConfigError) as caught:
        Setting.load(pair_file(tmp_path, text), "a")
    problem = next(each for each in caught.value.problems if said in each)
    assert f"pair.toml:{line_of(text, where)}" in problem


def test_a_file_of_coloproxy_run_is_told_to_lack_a_table(tmp_path: Path) -> None:
    text = PAIR[: PAIR.index("[node]")] + PAIR[PAIR.index("[[vm]]") :]
    text = text.replace('name = "web"\n\n[[vm.nic]]', 'name = "web"\nqmp = "unix:/run/q"\n\n[[vm.nic]]')
    with pytest.raises(ConfigError, match=r"\[node\] is missing"):
        Setting.load(pair_file(tmp_path, text), "a")


# ---------------------------------------------------------------------- what is told


def path_stats(name: str, *trips_ns: int, up: bool = True, silent_ns: int | None = 30_000_000) -> PathStats:
    meter = RoundTripMeter()
    for trip in trips_ns:
        meter.add(trip)
    refused = dict.fromkeys(Reason, 0)
    refused[next(iter(Reason))] = 3
    return PathStats(name, up, 10, 0, 9, refused, 1, 0, meter.snapshot(), silent_ns, 0)


def stats(*paths: PathStats) -> Stats:
    return Stats(True, "00", "11", 0, 1, 0, 0, 1, 1, paths)


def test_round_trips_are_counted_between_their_bounds() -> None:
    trips = [0, BUCKETS_NS[0], BUCKETS_NS[0] + 1, BUCKETS_NS[3], BUCKETS_NS[-1], BUCKETS_NS[-1] + 1, 2 * BUCKETS_NS[-1]]
    (path,) = told.paths(stats(path_stats("link", *trips)))
    histogram = path["histogram"]
    assert [bound for bound, _ in histogram] == [*(ns / 1e6 for ns in BUCKETS_NS), None]
    counts = {bound: count for bound, count in histogram if count}
    assert counts == {BUCKETS_NS[0] / 1e6: 2, BUCKETS_NS[1] / 1e6: 1, BUCKETS_NS[3] / 1e6: 1, BUCKETS_NS[-1] / 1e6: 1,
                      None: 2}  # fmt: skip
    assert sum(count for _, count in histogram) == len(trips)
    assert path["refused"] == {next(iter(Reason)).value: 3}
    assert path["rtt_ms"]["min"] == 0.0 and path["rtt_ms"]["max"] == 2 * BUCKETS_NS[-1] / 1e6


def test_the_peer_is_as_near_as_its_best_path() -> None:
    paths = (
        path_stats("link", 500_000),
        path_stats("far", 100, up=False),
        path_stats("lan", 9_000_000, silent_ns=5_000_000),
    )
    assert told.peer(stats(*paths)) == {"age_ms": 5.0, "rtt_ms": 0.5}
    assert told.peer(stats(path_stats("link", silent_ns=None))) == {"age_ms": None, "rtt_ms": None}


def status_of(directory: Path, facts: Facts = FACTS) -> dict[str, Any]:
    """As it is before the node has begun."""
    shown = Shown(
        setting=Setting.load(pair_file(directory), "a"),
        facts=facts,
        secondary=False,
        began=0,
        since=0,
        reason="begins",
        doing=None,
        heartbeat=stats(path_stats("link")),
        ruling=None,
        vm=None,
        qemu=None,
        sizes=(),
        progress=None,
        resync=None,
        history=(),
    )
    return document(shown)


KEYS = {
    "pair", "host", "role", "state", "since_s", "generation", "reason", "peer", "heartbeat", "arbiter", "vm", "qemu",
    "disks", "resync", "history",
}  # fmt: skip


def test_the_status_is_what_is_documented_and_shown(tmp_path: Path) -> None:
    said = json.loads(json.dumps(status_of(tmp_path)))
    assert said.keys() >= KEYS
    assert (said["pair"], said["host"], said["state"]) == ("web", "a", "discover")
    assert said["disks"] == [{"name": "colo-disk0", "size": None, "state": "fresh", "resync": None}]
    text = shown(said)
    assert "discover" in text and "begins" in text and "none" in text
    assert "copied" not in text


def shown(said: dict[str, Any]) -> str:
    console = Console(record=True, width=160)
    console.print(render(said))
    return " ".join(console.export_text().split())


def test_the_last_copy_of_the_disks_is_shown(tmp_path: Path) -> None:
    said = status_of(tmp_path)
    copied: dict[str, Any] = {"state": "copying", "mode": "full", "reason": "why [bold]", "copied": 3 << 20}
    assert "copied full, copying 3.0 MiB why [bold]" in shown(said | {"resync": copied})
    copied |= {"state": "done", "mode": "bitmap", "seconds": 0.25, "pause_s": 0.125}
    text = "copied bitmap, done 3.0 MiB in 0.25 s, the VM stood still for 0.125 s why"
    assert text in shown(said | {"resync": copied})
    for strange in (7, [], {}, {"state": None, "copied": "many", "mode": [1]}):
        shown(said | {"resync": strange})


def test_metrics_know_every_state_of_a_node(tmp_path: Path) -> None:
    assert set(NODE_STATES) == {state.value for state in State}
    for state in State:
        said = status_of(tmp_path, FACTS.with_(state=state))
        registry = CollectorRegistry()
        registry.register(StatusCollector(lambda said=said: said))
        labels = {"pair": "web", "host": "a"}
        values = {
            name: registry.get_sample_value("coloproxy_node_state", {**labels, "state": name})
            for name in (*NODE_STATES, "other")
        }
        assert [name for name, value in values.items() if value == 1] == [state.value]
        assert None not in values.values()


# ---------------------------------------------------------------------- a full disk of a VM that is alone

HALTS: list[tuple[str, list[tuple[float, str | None, Step | None]]]] = [
    # what, [(second, QEMU's run state or "!" for another error of its, what is to be done)]; it stopped at 0, retry 1
    ("one attempt a second", [(0.5, "io-error", None), (1, "io-error", Step.CONT), (1.5, "io-error", None),
                              (2, "io-error", Step.CONT)]),
    ("an attempt that fails is none", [(1, "io-error", Step.CONT), (1.1, "running", Step.OVER)]),
    ("it is full again at once", [(1, "io-error", Step.CONT), (1.1, "!", None), (1.2, "running", None),
                                  (1.5, "io-error", None), (2, "io-error", Step.CONT), (2.05, "running", None),
                                  (2.15, "running", Step.OVER), (3, "running", None)]),
    ("an operator stops it meanwhile", [(1, "paused", None), (5, "paused", None), (6, "running", Step.OVER)]),
    ("QEMU does not say", [(1, None, None), (2, "io-error", Step.CONT)]),
]  # fmt: skip


@pytest.mark.parametrize("steps", [case[1] for case in HALTS], ids=[case[0] for case in HALTS])
def test_a_vm_that_its_disk_has_stopped_is_let_go_on(steps: list[tuple[float, str | None, Step | None]]) -> None:
    halt = Halt(1.0)
    assert halt.look("io-error", 0.0) is None and halt.look("running", 0.0) is None
    assert halt.stopped("no space", 0.0)
    for now, status, wanted in steps:
        if status == "!":
            assert not halt.stopped("no space, still", now)
        else:
            assert halt.look(status, now) is wanted, now
        assert halt.reason in ("no space", None)
    halt.forget()
    assert halt.reason is None and halt.look("io-error", 100.0) is None
    assert halt.stopped("no space", 101.0)


# ---------------------------------------------------------------------- what QMP said while nobody heard it


@pytest.mark.parametrize(
    ("state", "vm", "found", "asked"),
    [
        (State.PROTECTED, VmView.COLO, VmView.RUNNING, True),
        (State.STANDBY, VmView.COLO, VmView.RUNNING, True),
        (State.PROTECTED, VmView.COLO, VmView.COLO, False),
        (State.SETTLE, VmView.COLO, VmView.RUNNING, False),  # we have ended it ourselves
        (State.ALONE, VmView.RUNNING, VmView.RUNNING, False),
    ],
)
async def test_the_end_of_colo_is_looked_for_when_events_were_missed(
    tmp_path: Path, state: State, vm: VmView, found: VmView, asked: bool
) -> None:
    board, setting = Board(FACTS.with_(state=state, vm=vm), Journal(None)), Setting.load(pair_file(tmp_path), "a")
    (tmp_path / "state").mkdir()
    kept, plane = RecordFile(tmp_path / "state"), type("NoPlane", (), {})()
    work = Work(setting, None, kept, plane, lambda _: None)  # type: ignore[arg-type]
    peer = Peer(board, setting, plane, work)
    watch = Watch(board, setting, kept, work, peer.lost_colo, lambda _: pytest.fail("nothing is begun"))
    work.qemu = qemu = object()  # type: ignore[assignment]

    async def view() -> VmView:
        return found

    work.view = view  # type: ignore[method-assign]
    await watch._look_for_missed(qemu)  # type: ignore[arg-type]
    board.say(Event.TICK, "")
    said = [(await board.next()).event]
    assert said == [Event.COLO_LOST if asked else Event.TICK]


# ---------------------------------------------------------------------- a data path's end that is cancelled


async def test_a_data_path_is_ended_whole_though_its_end_is_cancelled(tmp_path: Path) -> None:
    """As when the guest powers off while SETTLE ends the path of a dead VM: its TAP was left open for good."""
    plane = TapPlane(Setting.load(pair_file(tmp_path), "a"), None, Journal(None), pytest.fail)
    begun, may_end = asyncio.Event(), asyncio.Event()

    class Path_:
        """A VM's, that takes a while to close."""

        is_open = True

        async def close(self) -> None:
            begun.set()
            await may_end.wait()
            self.is_open = False

    plane.vm = path = Path_()  # type: ignore[assignment]
    ending = asyncio.create_task(plane.end())
    await begun.wait()
    ending.cancel()
    asyncio.get_running_loop().call_soon(may_end.set)
    await asyncio.wait([ending])
    assert ending.cancelled() and not path.is_open


async def test_what_a_data_path_leaves_is_closed_if_its_heir_does_not_come(tmp_path: Path) -> None:
    plane = TapPlane(Setting.load(pair_file(tmp_path), "a"), None, Journal(None), pytest.fail)
    begun, may_end = asyncio.Event(), asyncio.Event()
    reader, tap = os.pipe()

    class Path_:
        """A survivor's."""

        state = "taken-over"

        async def give_up(self) -> Estate:
            begun.set()
            await may_end.wait()
            return Estate(b"", (TapDevice("tap0", (tap,), 0),))

    plane.vm = Path_()  # type: ignore[assignment]
    becoming = asyncio.create_task(plane.become_primary())
    await begun.wait()
    becoming.cancel()
    asyncio.get_running_loop().call_soon(may_end.set)
    await asyncio.wait([becoming])
    assert becoming.cancelled() and plane.vm is None
    assert os.read(reader, 1) == b""  # nobody has the other end open
    os.close(reader)


# ---------------------------------------------------------------------- two operators' words, one after the other


def test_the_later_of_two_forced_hosts_that_never_heard_of_each_other_goes_on() -> None:
    """Else both would serve: without knowledge of the other both begin with the same generation."""
    first = decide(Facts("a", moment=1_900_000_000), Event.FORCE)
    second = decide(Facts("b", moment=1_900_000_060), Event.FORCE)
    assert first is not None and second is not None
    assert first.record.standing is second.record.standing is Standing.OWNER
    back = Facts("a", own=first.record, alive=True)
    back = back.with_(peer=Facts("b", state=State.ALONE, own=second.record).advert())
    found = decide(back, Event.PEER)
    assert found is not None and (found.state, found.record.standing) == (State.JOIN, Standing.VOID)
    still = Facts("b", state=State.ALONE, own=second.record, peer=back.advert(), alive=True)
    assert decide(still, Event.PEER) is None


@pytest.mark.parametrize("moment", [0, 5, 1_900_000_000])
def test_a_forced_generation_is_later_than_all_that_were_heard_of_whatever_the_clock_says(moment: int) -> None:
    facts = Facts("a", own=Record(Standing.VOID, 7), peer=Advert(State.ALONE, Standing.OWNER, 2_000_000_000))
    step = decide(facts.with_(state=State.JOIN, moment=moment), Event.FORCE)
    assert step is not None and step.record.generation > 2_000_000_000


def test_a_guest_that_powers_off_is_stopped_though_the_secondarys_loss_was_told_first() -> None:
    """Both copies power off at once. The primary's QEMU is gone when SETTLE, begun for that loss, asks it."""
    facts = Facts("a", state=State.SETTLE, own=Record(Standing.OWNER, 3), vm=VmView.NONE)
    failed = decide(facts, Event.FAILED)
    assert failed is not None and failed.state is State.FAILED
    stopped = decide(facts.with_(state=failed.state), Event.VM_SHUTDOWN)
    assert stopped is not None and stopped.state is State.STOPPED
