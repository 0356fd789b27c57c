# SPDX-License-Identifier: Apache-2.0
"""The traffic generator against a comparator in Python that reads every frame for itself, over real sockets."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from coloproxy.bench.traffic import Counters, End, Traffic, TrafficConfig
from coloproxy.errors import MisuseError

DEADLINE_NS = 20 * 10**9
SYN, PSH, ACK = 2, 8, 16


@dataclass
class Frame:
    """One Ethernet frame, decoded without the code under test."""

    raw: bytes
    vnet: bytes
    flow: tuple[bytes, int]
    seq: int
    flags: int
    payload: bytes
    options: bytes


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def decode(raw: bytes, vnet_len: int) -> Frame:
    vnet, eth = raw[:vnet_len], raw[vnet_len:]
    kind = eth[12:14]
    if kind == b"\x08\x00":
        ip = eth[14:]
        assert ip[0] == 0x45
        assert struct.unpack_from(">H", ip, 2)[0] == len(ip)
        assert checksum(ip[:20]) == 0xFFFF
        proto, addresses, l4, dst = ip[9], ip[12:20], ip[20:], ip[16:20]
    else:
        assert kind == b"\x86\xdd"
        ip = eth[14:]
        assert ip[0] == 0x60
        assert struct.unpack_from(">H", ip, 4)[0] == len(ip) - 40
        proto, addresses, l4, dst = ip[6], ip[8:40], ip[40:], ip[24:40]
    if not vnet:
        assert checksum(addresses + struct.pack(">II", len(l4), proto) + l4) == 0xFFFF
    sport, dport = struct.unpack_from(">HH", l4)
    if proto == 17:
        assert (sport, struct.unpack_from(">H", l4, 4)[0]) == (5201, len(l4))
        return Frame(raw, vnet, (dst, dport), 0, 0, l4[8:], b"")
    assert (proto, sport) == (6, 80)
    head = (l4[12] >> 4) * 4
    return Frame(raw, vnet, (dst, dport), struct.unpack_from(">I", l4, 4)[0], l4[13], l4[head:], l4[20:head])


@dataclass
class Side:
    """What one VM said."""

    frames: list[Frame] = field(default_factory=list)

    def streams(self) -> dict[tuple[bytes, int], bytes]:
        """TCP: the bytes of each flow by sequence number; fails where one is missing or said in two ways."""
        begin: dict[tuple[bytes, int], int] = {}
        pieces: dict[tuple[bytes, int], dict[int, bytes]] = defaultdict(dict)
        for frame in self.frames:
            if frame.flags & SYN:
                assert frame.flags == SYN | ACK and not frame.payload
                assert frame.flow not in begin
                begin[frame.flow] = frame.seq + 1
            else:
                assert frame.flags == PSH | ACK and frame.payload
                assert frame.flow in begin, "data before the SYN-ACK"
                pieces[frame.flow][(frame.seq - begin[frame.flow]) & 0xFFFFFFFF] = frame.payload
        whole = {}
        for flow, parts in pieces.items():
            text = bytearray()
            for offset in sorted(parts):
                assert offset == len(text)
                text += parts[offset]
            whole[flow] = bytes(text)
        return whole

    @property
    def lengths(self) -> list[int]:
        return [len(frame.payload) for frame in self.frames if frame.payload]


Change = Callable[[int, bytes], list[bytes]]


class Model(threading.Thread):
    """Takes frames whole, keeps them, and passes the primary's on (as `change` says)."""

    def __init__(self, vnet_hdr: bool, change: Change) -> None:
        super().__init__(daemon=True)
        self.words = 8 if vnet_hdr else 4
        self.change = change
        ends = [socket.socketpair() for _ in range(3)]
        self.ours = [ours for ours, _ in ends]
        self.theirs = [theirs for _, theirs in ends]
        for sock in self.ours:
            sock.setblocking(False)
        self.sides = [Side(), Side()]
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BrokenPipeError:
            pass  # the generator had enough: its own result says why
        except BaseException as error:
            self.error = error
        finally:
            self.theirs[2].close()

    def _run(self) -> None:
        buffers = [bytearray(), bytearray()]
        opened = [0, 1]
        count = 0
        while opened:
            for sock in select.select([self.theirs[i] for i in opened], [], [])[0]:
                which = self.theirs.index(sock)
                data = sock.recv(1 << 20)
                if not data:
                    opened.remove(which)
                    assert not buffers[which]
                    continue
                buffer = buffers[which]
                buffer += data
                while len(buffer) >= 4 and len(buffer) >= (end := self.words + struct.unpack_from(">I", buffer)[0]):
                    raw = bytes(buffer[:end])
                    del buffer[:end]
                    vnet = struct.unpack_from(">I", raw, 4)[0] if self.words == 8 else 0
                    self.sides[which].frames.append(decode(raw[self.words :], vnet))
                    if which == 0:
                        for out in self.change(count, raw):
                            self.theirs[2].sendall(out)
                        count += 1


@dataclass
class Outcome:
    end: End
    counters: Counters
    primary: Side
    secondary: Side
    latency: dict[int, int]


def drive(
    config: TrafficConfig,
    change: Change = lambda _number, raw: [raw],
    watch: Callable[[Counters], None] = lambda _counters: None,
) -> Outcome:
    model = Model(config.vnet_hdr, change)
    model.start()
    primary, secondary, out = (sock.fileno() for sock in model.ours)
    traffic = Traffic(config, primary_in=primary, secondary_in=secondary, outdev=out)
    try:
        until = time.monotonic_ns() + DEADLINE_NS
        while (end := traffic.run(time.monotonic_ns() + 5_000_000)) is End.TIME:
            assert time.monotonic_ns() < until
            watch(traffic.counters())
        counters, latency = traffic.counters(), traffic.latency()
    finally:
        traffic.close()
        for sock in model.ours:
            sock.close()
        model.join()
    if model.error is not None:
        raise model.error
    if end is not End.COMPLETE:  # half a batch may have gone out
        return Outcome(end, counters, *model.sides, latency)
    for side, counted in zip(model.sides, (counters.primary, counters.secondary), strict=True):
        assert (len(side.frames), sum(side.lengths)) == (counted.frames, counted.payload)
    return Outcome(end, counters, *model.sides, latency)


def configure(**options: object) -> TrafficConfig:
    return TrafficConfig(**{"max_segments": 500, "turn": 4096, "drain": 10**10, **options})  # type: ignore[arg-type]


VARIANTS = {
    "plain": {},
    "one byte": {"length": 1},
    "flows": {"flows": 37, "burst": 3},
    "more flows than segments": {"flows": 1000, "burst": 4},
    "clients of two addresses": {"flows": 17_000, "burst": 1, "max_segments": 17_100, "length": 4},
    "recut smaller": {"flows": 5, "recut": 536},
    "recut larger": {"flows": 5, "recut": 4000},
    "recut cut short at the end": {"recut": 5000, "burst": 16, "max_segments": 17},
    "skew": {"flows": 3, "skew": 100_000},
    "loss": {"flows": 3, "loss_ppm": 50_000, "loss_delay": 5_000_000},
    "all of these": {"flows": 7, "recut": 700, "skew": 30_000, "loss_ppm": 20_000, "loss_delay": 1_000_000},
    "timestamps": {"timestamps": True, "flows": 2},
    "IPv6": {"ipv6": True, "flows": 3},
    "IPv6, timestamps, recut": {"ipv6": True, "timestamps": True, "recut": 999},
    "super-frames": {"length": 65_000, "vnet_hdr": True, "max_segments": 40},
    "super-frames of IPv6": {"length": 65_000, "vnet_hdr": True, "ipv6": True, "max_segments": 40, "recut": 1448},
    "the longest": {"length": 65_483, "timestamps": True, "max_segments": 20},
    "rate": {"rate": 5000.0},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_both_sides_say_the_same_bytes(options: dict[str, object]) -> None:
    config = configure(**options)
    outcome = drive(config)
    assert outcome.end is End.COMPLETE
    streams = outcome.primary.streams()
    assert streams == outcome.secondary.streams()
    assert sum(map(len, streams.values())) == config.max_segments * config.length
    assert set(outcome.primary.lengths) == {config.length}
    counters = outcome.counters
    assert counters.released_frames == counters.primary.frames
    assert counters.released_payload == counters.primary.payload == counters.secondary.payload
    assert (counters.gaps, counters.late, counters.repeated, counters.corrupt, counters.foreign) == (0, 0, 0, 0, 0)
    if config.recut:
        assert max(outcome.secondary.lengths) == min(config.recut, config.burst * config.length)
    if config.loss_ppm:
        assert counters.lost_late > 0
    longest = max(streams.values(), key=len)
    assert all(longest.startswith(text) for text in set(streams.values()))  # one function of the offset


def test_datagrams_are_numbered() -> None:
    outcome = drive(configure(udp=True, flows=3, length=100))
    assert outcome.end is End.COMPLETE
    for side in (outcome.primary, outcome.secondary):
        numbers = defaultdict(list)
        for frame in side.frames:
            numbers[frame.flow].append(int.from_bytes(frame.payload[:8], "big"))
        assert all(found == list(range(len(found))) for found in numbers.values()) and len(numbers) == 3
    assert [f.payload for f in outcome.primary.frames] == [f.payload for f in outcome.secondary.frames]


def test_super_frames_have_the_header_of_a_guest() -> None:
    outcome = drive(configure(length=65_000, vnet_hdr=True, max_segments=10))
    syn, *rest = outcome.primary.frames
    assert struct.unpack("<BBHHHHH", syn.vnet) == (1, 0, 0, 0, 34, 16, 0)
    assert {struct.unpack("<BBHHHHH", frame.vnet) for frame in rest} == {(1, 1, 54, 1448, 34, 16, 0)}


def test_skew_is_kept() -> None:
    behind = 200_000
    distances = []

    def watch(counters: Counters) -> None:
        if counters.primary.segments < 800:
            distances.append(counters.primary.payload - counters.secondary.payload)

    outcome = drive(configure(skew=behind, rate=8000.0, max_segments=800), watch=watch)
    assert outcome.counters.skew_given_up == 0
    assert outcome.primary.streams() == outcome.secondary.streams()
    assert behind <= max(distances) <= behind + 4 * (4096 + 1448)
    assert distances[-1] >= behind  # while the primary had more to say


@pytest.mark.parametrize("every", [1, 7])
def test_lost_frames_are_noticed(every: int) -> None:
    dropped = []

    def change(number: int, raw: bytes) -> list[bytes]:
        if number % 100 == 50 and number // 100 % every == 0:
            dropped.append(number)
            return []
        return [raw]

    outcome = drive(configure(drain=10**9), change)
    counters = outcome.counters
    assert outcome.end is End.COMPLETE  # given up after `drain`
    assert counters.primary.frames - counters.released_frames == len(dropped) > 0
    assert counters.gaps == len(dropped)


def test_repeated_and_reordered_frames_are_noticed() -> None:
    kept: list[bytes] = []

    def change(number: int, raw: bytes) -> list[bytes]:
        if number == 10:
            return [raw, raw]
        if number == 20:
            kept.append(raw)
            return []
        return [raw, kept.pop()] if number == 21 else [raw]

    counters = drive(configure(), change).counters
    assert (counters.late, counters.repeated, counters.gaps) == (1, 1, 1)
    assert counters.released_frames == counters.primary.frames + 1


def test_changed_and_foreign_frames_are_noticed() -> None:
    def change(number: int, raw: bytes) -> list[bytes]:
        if number == 10:
            return [raw[:-1] + bytes([raw[-1] ^ 1])]
        if number == 11:
            return [raw, struct.pack(">I", 60) + bytes(60)]
        return [raw]

    counters = drive(configure(), change).counters
    assert (counters.corrupt, counters.foreign, counters.gaps) == (1, 1, 0)


def test_what_is_no_framing_ends_the_run() -> None:
    outcome = drive(configure(), lambda number, raw: [b"GET / HTTP/1.1\r\n"] if number == 3 else [raw])
    assert outcome.end is End.BROKEN


def test_divergence_is_one_byte_of_the_secondary() -> None:
    outcome = drive(configure(divergence_ppm=50_000, length=300))
    pairs = zip(outcome.primary.frames, outcome.secondary.frames, strict=True)
    changed = [(p.payload, s.payload) for p, s in pairs if p.payload != s.payload]
    assert len(changed) == outcome.counters.diverged > 0
    assert all(sum(a != b for a, b in zip(p, s, strict=True)) == 1 for p, s in changed)


def test_responses_wait_for_their_release() -> None:
    config = configure(
        request_response=True, burst=1, length=200, flows=4, think_time=1_000_000, sample_every=1, max_segments=60
    )
    outcome = drive(config)
    assert outcome.end is End.COMPLETE
    assert outcome.counters.released_segments == 60
    assert outcome.primary.streams() == outcome.secondary.streams()
    assert {len(text) for text in outcome.primary.streams().values()} <= {200 * n for n in range(10, 21)}


def test_a_response_that_is_lost_is_given_up() -> None:
    config = configure(
        request_response=True, burst=1, length=200, flows=2, max_segments=20, response_timeout=200_000_000
    )
    outcome = drive(replace(config, drain=10**9), lambda number, raw: [] if number == 6 else [raw])
    assert outcome.counters.given_up == 1
    assert outcome.counters.primary.segments == 20


def test_latency_is_from_the_later_side() -> None:
    """The model keeps each frame back for 20 ms."""
    slowest = 0.02

    def change(_number: int, raw: bytes) -> list[bytes]:
        time.sleep(slowest)
        return [raw]

    outcome = drive(configure(max_segments=20, sample_every=1, rate=20.0), change)
    assert sum(outcome.latency.values()) == 20
    assert min(outcome.latency) >= slowest * 1e9 * 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"flows": 0},
        {"length": 0},
        {"length": 65_484},
        {"burst": 0},
        {"udp": True, "length": 7},
        {"udp": True, "recut": 100},
        {"udp": True, "loss_ppm": 1},
        {"request_response": True, "burst": 2},
    ],
    ids=str,
)
def test_contradictions_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(MisuseError):
        Traffic(configure(**options), primary_in=0, secondary_in=1, outdev=2)


class Notifier:
    """Asks for a checkpoint when told to; counts the answers."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    def ask(self) -> None:
        self.theirs.sendall(b"\0\0\0\x0dDO_CHECKPOINT")


def test_a_checkpoint_makes_the_secondary_the_primarys_copy() -> None:
    model = Model(False, lambda _number, raw: [raw])
    notifier = Notifier()
    model.start()
    primary, secondary, out = (sock.fileno() for sock in model.ours)
    config = configure(max_segments=2000, skew=50_000, checkpoint_pause=30_000_000, rate=4000.0)
    traffic = Traffic(config, primary_in=primary, secondary_in=secondary, outdev=out, notify=notifier.ours.fileno())
    assert traffic.run(time.monotonic_ns() + 100_000_000) is End.TIME
    notifier.ask()
    notifier.ask()  # of the same checkpoint: QEMU repeats itself
    assert traffic.run(time.monotonic_ns() + 15_000_000) is End.TIME
    still = traffic.counters()
    assert (still.checkpoints, still.checkpoint_wishes) == (0, 2)
    assert traffic.run(time.monotonic_ns() + 5_000_000) is End.TIME
    assert traffic.counters().primary == still.primary  # it stands still
    assert traffic.run(time.monotonic_ns() + DEADLINE_NS) is End.COMPLETE
    counters = traffic.counters()
    traffic.close()
    for sock in model.ours:
        sock.close()
    model.join()
    assert model.error is None
    assert counters.checkpoints == 1
    assert notifier.theirs.recv(100) == b"\0\0\0\x0fCOLO_CHECKPOINT"
    # The secondary never said what the checkpoint brought it.
    assert 50_000 - 4 * 1448 <= counters.primary.payload - counters.secondary.payload <= 50_000 + 4 * 1448
    assert counters.released_frames == counters.primary.frames
    said = {frame.seq: frame.payload for frame in model.sides[0].frames}
    assert all(said[frame.seq] == frame.payload for frame in model.sides[1].frames)
