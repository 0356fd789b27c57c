# SPDX-License-Identifier: Apache-2.0
"""The impairment relay: first its sans-I/O lane on a clock of integers, then the process between real interfaces."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from coloproxy.errors import MisuseError
from coloproxy.testbed.errors import NetworkError
from coloproxy.testbed.impair import CLEAN, Impairment, Lane, LaneCounters
from coloproxy.testbed.leftovers import new_name
from coloproxy.testbed.namespace_net import NamespaceNetwork, Stack, namespace_network
from coloproxy.testbed.net import LINK_PRIMARY, LINK_SECONDARY
from coloproxy.testbed.process import in_namespace
from coloproxy.testbed.relay import Relay, RelayCounters
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS

MS = 1_000_000
ETHERNET = bytes(12)
FRAMES = [ETHERNET + b"\x08\x00" + number.to_bytes(4, "big") * 20 for number in range(400)]
ARP = ETHERNET + b"\x08\x06" + bytes(28)
LATE = 10**12


def through(impairment: Impairment, seed: str = "seed", *, step: int = MS, header: int = 0) -> tuple[list[bytes], Lane]:
    """All FRAMES, one each *step*, and what came out in the end."""
    lane = Lane(seed, header=header)
    lane.set(impairment)
    out: list[bytes] = []
    for number, frame in enumerate(FRAMES):
        lane.offer(frame, number * step)
        out += lane.due(number * step)
    out += lane.due(LATE)
    assert lane.deadline() is None
    return out, lane


BAD = Impairment(loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1)


def test_a_clean_lane_passes_all_at_once_in_order() -> None:
    out, lane = through(CLEAN)
    assert out == FRAMES
    assert lane.counters == LaneCounters(taken=400, given=400)


def test_the_seed_alone_decides() -> None:
    out, _ = through(BAD)
    assert through(BAD)[0] == out
    assert through(BAD, "another")[0] != out
    without_order = Impairment(loss=0.1, duplicate=0.1, corrupt=0.1)
    assert through(without_order)[0] == through(without_order, step=17)[0]  # whenever they come


def test_one_setting_does_not_change_what_another_does() -> None:
    lost = set(FRAMES) - set(through(Impairment(loss=0.2))[0])
    both = Impairment(loss=0.2, duplicate=0.5, reorder=0.3)
    assert set(FRAMES) - set(through(both)[0]) == lost != set()


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_loss(part: float) -> None:
    out, lane = through(Impairment(loss=part, queue=500))
    assert out == [frame for frame in FRAMES if frame in set(out)]
    assert lane.counters.lost == 400 - len(out)
    assert {0.0: len(out) == 400, 0.3: 200 < len(out) < 380, 1.0: not out}[part]


def test_duplicates_come_at_once() -> None:
    out, lane = through(Impairment(duplicate=0.25))
    assert [frame for n, frame in enumerate(out) if n == 0 or out[n - 1] != frame] == FRAMES
    assert lane.counters.duplicated == len(out) - 400 > 0


def test_a_frame_is_overtaken_by_three_at_most() -> None:
    out, lane = through(Impairment(reorder=0.2))
    assert sorted(out) == sorted(FRAMES)
    moved = [FRAMES.index(frame) - place for place, frame in enumerate(out)]
    assert lane.counters.reordered > 0
    assert any(moved)
    # Several may be held at once: those it waits with come before it besides.
    assert all(place - FRAMES.index(frame) <= 2 * 3 for place, frame in enumerate(out))


def test_an_overtaken_frame_waits_20_ms_if_none_follows() -> None:
    lane = Lane("seed")
    lane.set(Impairment(reorder=1.0))
    lane.offer(FRAMES[0], 0)
    assert (lane.due(0), lane.deadline(), lane.due(20 * MS - 1)) == ([], 20 * MS, [])
    assert lane.due(20 * MS) == [FRAMES[0]]


@pytest.mark.parametrize("header", [0, 10])
def test_corruption_is_one_bit_behind_the_ethernet_header(header: int) -> None:
    lane = Lane("seed", header=header)
    lane.set(Impairment(corrupt=1.0))
    frame = bytes(header) + FRAMES[3]
    wrong_bits: set[int] = set()
    for _ in range(300):
        lane.offer(frame, 0)
        (out,) = lane.due(0)
        difference = int.from_bytes(out, "big") ^ int.from_bytes(frame, "big")
        assert difference.bit_count() == 1
        wrong_bits.add(len(frame) * 8 - difference.bit_length())
    assert min(wrong_bits) >= (header + 14) * 8
    assert len(wrong_bits) > 100
    assert lane.counters.corrupted == 300


@pytest.mark.parametrize("frame", [ARP, b"", FRAMES[0][:14], FRAMES[0][:9]], ids=["arp", "empty", "header", "runt"])
def test_what_has_no_checksum_is_never_corrupted(frame: bytes) -> None:
    lane = Lane("seed")
    lane.set(Impairment(corrupt=1.0))
    lane.offer(frame, 0)
    assert (lane.due(0), lane.counters.corrupted) == ([frame], 0)


# settings, when frames of 94 bytes come, when they are due (ns)
TIMES: list[tuple[Impairment, list[int], list[int]]] = [
    (Impairment(delay=0.005), [0, 1, 7], [5 * MS, 5 * MS + 1, 5 * MS + 7]),
    (Impairment(rate=94 * 8 * 1000.0), [0, 0, 5 * MS], [1 * MS, 2 * MS, 6 * MS]),
    (Impairment(rate=94 * 8 * 1000.0, delay=0.01), [0, 0, 5 * MS], [11 * MS, 12 * MS, 16 * MS]),
]


@pytest.mark.parametrize(("impairment", "come", "due"), TIMES)
def test_times(impairment: Impairment, come: list[int], due: list[int]) -> None:
    lane = Lane("seed")
    lane.set(impairment)
    for frame, now in zip(FRAMES, come, strict=False):
        lane.offer(frame, now)
    for frame, when in zip(FRAMES, due, strict=False):
        assert (lane.deadline(), lane.due(when - 1), lane.due(when)) == (when, [], [frame])


def test_jitter_and_a_shorter_delay_keep_the_order() -> None:
    out, _ = through(Impairment(delay=0.002, jitter=0.05))
    assert out == FRAMES
    lane = Lane("seed")
    lane.set(Impairment(delay=0.05))
    lane.offer(FRAMES[0], 0)
    lane.set(CLEAN)
    lane.offer(FRAMES[1], 1)
    assert (lane.due(50 * MS - 1), lane.due(50 * MS)) == ([], FRAMES[:2])


def test_a_full_queue_loses_the_newest() -> None:
    lane = Lane("seed")
    lane.set(Impairment(delay=1.0, queue=3))
    for frame in FRAMES[:5]:
        lane.offer(frame, 0)
    assert lane.due(LATE) == FRAMES[:3]
    assert lane.counters.overflowed == 2


def test_a_cut_loses_what_is_on_its_way_and_what_comes() -> None:
    lane = Lane("seed")
    lane.set(Impairment(delay=1.0))
    lane.offer(FRAMES[0], 0)
    lane.set_cut(True)
    lane.offer(FRAMES[1], 0)
    assert (lane.due(LATE), lane.deadline()) == ([], None)
    lane.set_cut(False)
    lane.offer(FRAMES[2], LATE)
    assert lane.due(2 * LATE) == [FRAMES[2]]
    assert lane.counters == LaneCounters(taken=3, given=1, cut=2)


@pytest.mark.parametrize(
    "wrong", [{"loss": 1.1}, {"corrupt": -0.1}, {"delay": -1.0}, {"rate": float("inf")}, {"queue": 0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MisuseError, match=next(iter(wrong))):
        Impairment(**wrong)  # type: ignore[arg-type]


# The process, between two hosts: numbered datagrams over the link, and nothing else on it.

COUNT = 500
PORT = 7000
RECEIVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
s.bind(("", int(sys.argv[1])))
print("ready", flush=True)
while (data := s.recv(2000)) != b"end":
    print(data.hex(), flush=False)
"""
SENDER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for text in sys.stdin:
    s.sendto(bytes.fromhex(text), (sys.argv[2], int(sys.argv[1])))
"""
PAYLOADS = [number.to_bytes(2, "big") * 300 for number in range(COUNT)]

LACKS = ", ".join(item.what for item in missing(PROGRAMS))


def real(test: Callable[..., Any]) -> Any:
    """Needs root and a few programs."""
    return pytest.mark.e2e(pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")(test))


async def send(network: NamespaceNetwork, payloads: list[bytes]) -> None:
    argv = in_namespace(network.hosts["primary"], [sys.executable, "-c", SENDER, str(PORT), LINK_SECONDARY])
    child = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)
    await child.communicate("".join(payload.hex() + "\n" for payload in payloads).encode())
    assert child.returncode == 0


async def drained(relay: Relay, taken: int) -> RelayCounters:
    """Once that many frames have gone in and nothing is on its way."""
    until = time.monotonic() + 10
    while True:
        counters = await relay.counters()
        lane = counters.to_right
        if lane.taken >= taken and lane.given == lane.taken - lane.lost + lane.duplicated - lane.cut - lane.overflowed:
            return counters
        assert time.monotonic() < until, counters
        await asyncio.sleep(0.01)


def check_loss(got: list[bytes], lane: LaneCounters) -> None:
    assert len(got) == COUNT - lane.lost < COUNT
    assert got == [payload for payload in PAYLOADS if payload in set(got)]


def check_duplicate(got: list[bytes], lane: LaneCounters) -> None:
    assert len(got) == COUNT + lane.duplicated > COUNT
    assert sorted(set(got)) == PAYLOADS


def check_reorder(got: list[bytes], lane: LaneCounters) -> None:
    assert lane.reordered > 0
    assert got != PAYLOADS
    assert sorted(got) == PAYLOADS


def check_corrupt(got: list[bytes], lane: LaneCounters) -> None:
    assert len(got) == COUNT - lane.corrupted < COUNT  # the kernel's checksums found each of them
    assert set(got) < set(PAYLOADS)


def check_late(got: list[bytes], lane: LaneCounters) -> None:
    assert got == PAYLOADS
    assert lane.given == COUNT


@real
@pytest.mark.parametrize(
    ("impairment", "check"),
    [
        (Impairment(loss=0.1), check_loss),
        (Impairment(duplicate=0.1), check_duplicate),
        (Impairment(reorder=0.1), check_reorder),
        (Impairment(corrupt=0.1), check_corrupt),
        (Impairment(delay=0.01, jitter=0.01, rate=50e6), check_late),
        (CLEAN, check_late),
    ],
    ids=["loss", "duplicate", "reorder", "corrupt", "late", "clean"],
)
async def test_real_frames(impairment: Impairment, check: Callable[[list[bytes], LaneCounters], None]) -> None:
    async with AsyncExitStack() as stack:
        network, relay = await link_with_relay(stack)
        argv = in_namespace(network.hosts["secondary"], [sys.executable, "-c", RECEIVER, str(PORT)])
        receiver = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        stack.callback(kill, receiver)
        assert receiver.stdout is not None
        assert await receiver.stdout.readline() == b"ready\n"
        await send(network, [b"hello"])  # the two hosts find each other's MAC
        before = await drained(relay, 1)
        await relay.set(to_right=impairment)
        await send(network, PAYLOADS)
        after = await drained(relay, before.to_right.taken + COUNT)
        await relay.set(to_right=CLEAN)
        await send(network, [b"end"])
        got = [bytes.fromhex(line) for line in (await receiver.communicate())[0].decode().split()]
        assert got.pop(0) == b"hello"
        change = LaneCounters(**{n: getattr(after.to_right, n) - getattr(before.to_right, n) for n in NAMES})
        assert change.taken == COUNT
        check(got, change)
        assert after.errors == 0


@real
async def test_cut_and_mended() -> None:
    async with AsyncExitStack() as stack:
        network, relay = await link_with_relay(stack)
        assert await pings(network) == 0
        await relay.cut()
        assert await pings(network) != 0
        assert (await relay.mend()).to_left.cut > 0
        assert await pings(network) == 0


@real
async def test_wrong_use_is_told() -> None:
    async with AsyncExitStack() as stack:
        network, relay = await link_with_relay(stack)
        place = network.relays["link"]
        for left, why in [
            ("nowhere", "neither packet"),
            ("packet:nothere", "packet:nothere"),
            ("tap:left", "tap:left"),
        ]:
            with pytest.raises(NetworkError, match=why):
                await Relay.start("wrong", place, left=left, right="packet:right", seed=1)
        await relay.close()
        with pytest.raises(NetworkError, match="has ended"):
            await relay.cut()


NAMES = LaneCounters.__slots__


def kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.kill()


async def link_with_relay(stack: AsyncExitStack) -> tuple[NamespaceNetwork, Relay]:
    stacks = {"primary": Stack(), "secondary": Stack()}
    network = stack.enter_context(
        namespace_network(
            new_name(),
            kind="packet",
            client_stack=Stack(),
            vm_stacks=stacks,  # type: ignore[arg-type]
            impaired=frozenset({"link"}),
        )
    )
    relay = await Relay.start("link", network.relays["link"], left="packet:left", right="packet:right", seed=1)
    stack.push_async_callback(relay.close)
    return network, relay


async def pings(network: NamespaceNetwork) -> int:
    """ping's exit status: 0 if the other host answers."""
    argv = in_namespace(network.hosts["secondary"], ["ping", "-q", "-n", "-c", "1", "-W", "1", LINK_PRIMARY])
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    return await child.wait()
