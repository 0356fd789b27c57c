# SPDX-License-Identifier: Apache-2.0
"""Captures of real programs, replayed against themselves: no difference, however the same is said; one changed byte is
one difference, at its place."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from coloproxy import Comparator, Released, Side
from coloproxy.capture import CapturedFrame, read_capture
from coloproxy.errors import MisuseError
from coloproxy.events import ComparatorEvent, Divergence
from coloproxy.mutate import MutatedFrame, Mutation, mutate

CAPTURES = Path(__file__).resolve().parent / "captures"
TABLE = tomllib.loads((CAPTURES / "captures.toml").read_text(encoding="utf-8"))
VM: str = TABLE["vm"]
NAMES = sorted(TABLE["captures"])
SEEDS = range(12)
SECOND = 1_000_000_000

EQUIVALENT = {
    "recut": {"recut": True},
    "small segments": {"mss": 536},
    "repeat": {"repeat": 0.3},
    "numbers": {"identifications": True, "hop_limits": True, "timestamps": True, "sequence_numbers": True},
    "reorder": {"reorder_frames": 8},
    "all": {
        "recut": True,
        "repeat": 0.3,
        "identifications": True,
        "hop_limits": True,
        "timestamps": True,
        "sequence_numbers": True,
        "reorder_frames": 8,
        "jitter": 5_000_000,
    },
}


@cache
def captured(name: str) -> tuple[CapturedFrame, ...]:
    return tuple(read_capture(CAPTURES / name))


@cache
def output_of(name: str) -> tuple[MutatedFrame, ...]:
    """The VM's frames as they are."""
    return tuple(frame for frame in mutate(captured(name), Mutation(vm=VM)).frames if frame.outbound)


def replayed(
    primary: Sequence[MutatedFrame], secondary: Sequence[MutatedFrame]
) -> tuple[list[Released], list[ComparatorEvent]]:
    """What is released, and all that the comparator tells, up to ten seconds behind the last frame."""
    comparator = Comparator()
    comparator.commit(0, 0)
    released: list[Released] = []
    events: list[ComparatorEvent] = []

    def fetch() -> None:
        released.extend(action for action in comparator.actions() if isinstance(action, Released))
        events.extend(comparator.events())

    def run_until(now: int) -> None:
        while (deadline := comparator.deadline) is not None and deadline < now:
            comparator.tick(deadline)
            fetch()

    feed = [
        (frame.time, side, frame.data) for side, sent in zip(Side, (primary, secondary), strict=True) for frame in sent
    ]
    feed.sort(key=lambda item: item[:2])
    begin = feed[0][0] - 1 if feed else 0
    for time, side, data in feed:
        run_until(time - begin)
        assert comparator.feed(side, [data], time - begin) == 1
        fetch()
    run_until((feed[-1][0] - begin if feed else 0) + 10 * SECOND)
    return released, events


def of_the_vm(name: str, mutation: Mutation) -> list[MutatedFrame]:
    return [frame for frame in mutate(captured(name), mutation).frames if frame.outbound]


def test_every_capture_is_in_the_table() -> None:
    assert sorted(path.name for path in CAPTURES.iterdir() if ".pcap" in path.name) == NAMES
    assert {name.split("-ipv")[1][0] for name in NAMES} == {"4", "6"}
    assert sum(path.stat().st_size for path in CAPTURES.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_equals_itself(name: str) -> None:
    frames = output_of(name)
    released, events = replayed(frames, frames)
    assert events == []
    assert len(frames) >= 3
    assert sorted(action.data for action in released) == sorted(frame.data for frame in frames)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", EQUIVALENT)
def test_the_same_said_in_another_way(name: str, kind: str) -> None:
    """Transformed as the secondary's output, and (every other seed) as the primary's."""
    original = output_of(name)
    for seed in SEEDS:
        other = of_the_vm(name, Mutation(seed=seed, vm=VM, **EQUIVALENT[kind]))  # type: ignore[arg-type]
        primary, secondary = (original, other) if seed % 2 else (other, original)
        released, events = replayed(primary, secondary)
        assert events == [], f"seed {seed}"
        assert len(released) == len(primary), f"seed {seed}"


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_is_one_difference_at_its_place(name: str) -> None:
    for seed in SEEDS:
        try:
            result = mutate(captured(name), Mutation(seed=seed, vm=VM, flip_random=True))
        except MisuseError:
            frames = output_of(name)
            pytest.fail(f"{name} has no payload among the VM's {len(frames)} frames")
        (fault,) = result.faults
        _, events = replayed(output_of(name), [frame for frame in result.frames if frame.outbound])
        found = [event for event in events if isinstance(event, Divergence)]
        assert [(str(event.flow), event.offset) for event in found] == [(fault.flow, fault.offset)], (
            f"seed {seed}: {fault}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_is_found_whatever_else_is_said_in_another_way(name: str) -> None:
    original = output_of(name)
    for seed in range(100, 104):
        result = mutate(captured(name), Mutation(seed=seed, vm=VM, flip_random=True, **EQUIVALENT["all"]))  # type: ignore[arg-type]
        other = [frame for frame in result.frames if frame.outbound]
        _, events = replayed(*((original, other) if seed % 2 else (other, original)))
        found = [(str(event.flow), event.offset) for event in events if isinstance(event, Divergence)]
        assert found == [(fault.flow, fault.offset) for fault in result.faults], f"seed {seed}: {result.faults}"


@pytest.mark.parametrize("tags", ["8100002a", "88a80007810000ff"], ids=["802.1Q", "802.1ad"])
@pytest.mark.parametrize("name", ["http-small-ipv4.pcap", "http-small-ipv6.pcap", "dns-fragments-ipv6.pcap"])
def test_the_same_in_a_vlan(name: str, tags: str) -> None:
    frames = [tagged(frame, bytes.fromhex(tags)) for frame in captured(name)]
    for seed in SEEDS:
        plain = [frame for frame in mutate(frames, Mutation(vm=VM)).frames if frame.outbound]
        other = mutate(frames, Mutation(seed=seed, vm=VM, **EQUIVALENT["all"]))  # type: ignore[arg-type]
        released, events = replayed(plain, [frame for frame in other.frames if frame.outbound])
        assert events == []
        assert len(released) == len(plain)
        assert all(frame.data[12:].startswith(bytes.fromhex(tags)) for frame in other.frames)
        assert other.untouched <= 1  # ARP
        result = mutate(frames, Mutation(seed=seed, vm=VM, flip_random=True))
        _, events = replayed(plain, [frame for frame in result.frames if frame.outbound])
        found = [(str(event.flow), event.offset) for event in events if isinstance(event, Divergence)]
        assert found == [(fault.flow, fault.offset) for fault in result.faults]


def tagged(frame: CapturedFrame, tags: bytes) -> CapturedFrame:
    data = frame.data[:12] + tags + frame.data[12:]
    return replace(frame, data=data, wire_len=len(data))


def test_damaged_frames_pass() -> None:
    """What can't be understood is no reason to fail, and what can't be transformed is not altered."""
    all_frames = [frame for name in NAMES[::3] for frame in captured(name) if len(frame.data) < 3000]
    for seed in range(60):
        rng = random.Random(seed)
        frames = []
        for number in range(1, 31):
            frame = rng.choice(all_frames)
            data = bytearray(frame.data)
            for _ in range(rng.randint(0, 4)):
                data[rng.randrange(12, min(len(data), 90))] = rng.choice((0, 255, 4, 6, 17, 44, 58, rng.randrange(256)))
            del data[rng.choice((len(data), rng.randrange(len(data)))) :]
            frames.append(CapturedFrame(number, number * SECOND, bytes(data), len(data)))
        result = mutate(frames, Mutation(seed=seed, **EQUIVALENT["all"]))  # type: ignore[arg-type]
        assert result.outbound == len(frames)
        assert len(result.frames) >= result.untouched
        numbers = Mutation(seed=seed, **EQUIVALENT["numbers"])  # type: ignore[arg-type]
        for frame in mutate(frames, numbers).frames:
            assert len(frame.data) == len(frame.source.data) or len(frame.source.data) <= 60  # padding may go


@pytest.mark.parametrize("kind", ["drop", "truncate"])
def test_what_is_left_out_is_a_difference(kind: str) -> None:
    name = "dns-ipv4.pcapng"
    number = mutate(captured(name), Mutation(vm=VM, flip=0)).faults[0].packet
    chosen = Mutation(vm=VM, drop=number) if kind == "drop" else Mutation(vm=VM, truncate=number)
    result = mutate(captured(name), chosen)
    _, events = replayed(output_of(name), [frame for frame in result.frames if frame.outbound])
    found = [event for event in events if isinstance(event, Divergence)]
    assert [str(event.flow) for event in found] == [fault.flow for fault in result.faults]


def test_transformations_do_what_they_say() -> None:
    """So that the tests above can't pass because nothing was transformed."""
    name = "http-mtu-ipv4.pcap.gz"
    plain = output_of(name)
    sizes = {kind: of_the_vm(name, Mutation(seed=1, vm=VM, **EQUIVALENT[kind])) for kind in EQUIVALENT}  # type: ignore[arg-type]
    assert {frame.data for frame in sizes["recut"]} != {frame.data for frame in plain}
    assert len(sizes["small segments"]) > 2 * len(plain)
    assert len(sizes["repeat"]) > len(plain) * 1.1
    same = [one for one, other in zip(plain, sizes["numbers"], strict=True) if one.data == other.data]
    assert {frame.data[12:14] for frame in same} <= {b"\x08\x06"}  # ARP has none of these numbers
    numbers = [frame.source.number for frame in sizes["reorder"]]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == [frame.source.number for frame in plain]
    times = [frame.time for frame in sizes["all"]]
    assert times == sorted(times)


def test_the_same_seed_gives_the_same_result() -> None:
    name = "http-loss-ipv6.pcap.gz"
    mutation = Mutation(seed=5, vm=VM, **EQUIVALENT["all"])  # type: ignore[arg-type]
    assert of_the_vm(name, mutation) == of_the_vm(name, mutation)
    assert of_the_vm(name, mutation) != of_the_vm(name, Mutation(seed=6, vm=VM, **EQUIVALENT["all"]))  # type: ignore[arg-type]


def test_the_client_follows_a_new_sequence_number() -> None:
    """The capture stays one that a stack could have made: the client acknowledges what the VM now sends."""
    import dpkt

    result = mutate(captured("http-loss-ipv4.pcap.gz"), Mutation(seed=2, vm=VM, sequence_numbers=True))
    shifts, acks = set(), set()
    for frame in result.frames:
        if frame.data[12:14] != b"\x08\x00":
            continue
        new, old = (dpkt.ethernet.Ethernet(data).data.tcp for data in (frame.data, frame.source.data))
        if frame.outbound:
            shifts.add((new.seq - old.seq) % 2**32)
            assert new.ack == old.ack
        elif not new.flags & dpkt.tcp.TH_SYN:
            acks.add((new.ack - old.ack) % 2**32)
    assert shifts == acks
    assert len(shifts) == 1


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coloproxy", "mutate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command(tmp_path: Path) -> None:
    source, target = CAPTURES / "http-keepalive-ipv4.pcapng", tmp_path / "out.pcapng.gz"
    done = run_cli(source, target, "--vm", VM, "--all", "--flip-random", "--seed", 3, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    mutation = Mutation(
        seed=3,
        vm=VM,
        recut=True,
        repeat=0.1,
        identifications=True,
        hop_limits=True,
        timestamps=True,
        sequence_numbers=True,
        reorder_frames=8,
        flip_random=True,
    )
    expected = mutate(captured(source.name), mutation)
    assert [(frame.time, frame.data) for frame in read_capture(target)] == [(f.time, f.data) for f in expected.frames]
    assert report["seed"] == 3
    assert report["faults"] == [fault.as_dict() for fault in expected.faults]
    assert gzip.decompress(target.read_bytes())[:4] == b"\x0a\x0d\x0d\x0a"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to do"),
        (["--all", "--vm", "nobody"], "neither a MAC address"),
        (["--all", "--vm", "00:00:00:00:00:01"], "none of its"),
        (["--flip", "99999999"], "there is no payload byte"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = run_cli(CAPTURES / "ping-ipv4.pcapng", tmp_path / "out.pcapng", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "out.pcapng").exists()
