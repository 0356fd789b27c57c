# SPDX-License-Identifier: Apache-2.0
"""Two links whose connection is cut at any byte: every record arrives once and in order, or both are told of a gap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from strategies import profile

from coloproxy.path._native import ffi, lib

MILLISECOND = 1_000_000
MAX_RECORD = 2000
SEND_BYTES = 12_000  # a few records: the limit is met often
HEAD = 8

Record = tuple[int, int, int, bytes]
"""type, NIC, length of the virtio-net header, payload"""


class Side:
    """One link, and what it should and did hand out since the streams began."""

    def __init__(self, frame_type: int) -> None:
        self.frame_type = frame_type
        config = ffi.new("struct colo_link_config *")
        lib.colo_link_config_default(config)
        config.max_record = MAX_RECORD
        config.send_bytes = SEND_BYTES
        self.link = ffi.gc(lib.colo_link_create(config), lib.colo_link_destroy)
        self.session = ""
        self.pushed: list[Record] = []  # all that found room, in this session
        self.heard: list[Record] = []
        self.refused = 0

    def push(self, number: int, size: int) -> None:
        kind = (self.frame_type, self.frame_type, lib.COLO_LINK_MARK, lib.COLO_LINK_CONTROL)[number % 4]
        frame = number % 4 < 2
        record = (kind, number % 3 if frame else 0, (0, 10, 12)[number % 3] if frame else 0)
        data = (number.to_bytes(4) * (size // 4 + 1))[:size]
        native = ffi.new("struct colo_link_record *")
        native.type, native.nic, native.vnet_len = record
        native.len, native.data = size, (keep := ffi.from_buffer("uint8_t[]", data))
        room = lib.colo_link_room(self.link)
        result = lib.colo_link_push(self.link, native)
        assert len(keep) == size
        assert result == (0 if size <= room else lib.COLO_ERR_LIMIT)
        if result == 0:
            self.pushed.append((*record, data))
        else:
            self.refused += 1

    def speak(self, most: int, now: int) -> bytes:
        """One write, of `most` bytes at most."""
        data = ffi.new("const uint8_t **")
        n = min(most, lib.colo_link_output(self.link, data, now))
        said = bytes(ffi.buffer(data[0], n)) if n else b""
        lib.colo_link_wrote(self.link, n)
        return said

    def hear(self, data: bytes, now: int) -> None:
        """One read of all of `data`, then takes what is whole."""
        room = ffi.new("uint8_t **")
        while data:
            n = min(len(data), lib.colo_link_input(self.link, room))
            assert n
            ffi.memmove(room[0], data[:n], n)
            data = data[n:]
            lib.colo_link_got(self.link, n, now)
            self.take()

    def take(self) -> None:
        record = ffi.new("struct colo_link_record *")
        while (more := lib.colo_link_next(self.link, record)) == 1:
            payload = bytes(ffi.buffer(record.data, record.len)) if record.len else b""
            self.heard.append((record.type, record.nic, record.vnet_len, payload))
        assert more == 0, self.fault()

    def fault(self) -> str:
        text = lib.colo_link_fault(self.link)
        return "" if text == ffi.NULL else ffi.string(text).decode()

    def restart(self, session: str) -> None:
        assert lib.colo_link_restart(self.link) == 0
        self.session = session
        self.pushed, self.heard = [], []

    def counters(self) -> Any:
        counters = ffi.new("struct colo_link_counters *")
        lib.colo_link_counters_of(self.link, counters)
        return counters


@dataclass
class World:
    """Two sides, and the bytes on their way between them."""

    sides: list[Side] = field(default_factory=lambda: [Side(lib.COLO_LINK_MIRROR), Side(lib.COLO_LINK_OUTPUT)])
    flying: list[bytes] = field(default_factory=lambda: [b"", b""])  # from that side
    now: int = 10**9
    connected: bool = False
    sessions: int = 0
    resumed: int = 0

    def cut(self) -> None:
        """Both notice, sooner or later; what flies is lost."""
        for side in self.sides:
            lib.colo_link_disconnect(side.link)
        self.flying = [b"", b""]
        self.connected = False

    def lose_a_process(self, which: int) -> None:
        """One side starts anew and knows nothing."""
        self.cut()
        self.sides[which] = Side(self.sides[which].frame_type)

    def connect(self) -> None:
        """As the hello decides it (coloproxy/path/hello.py)."""
        if self.connected:
            self.cut()
        one, other = self.sides
        asks = [lib.colo_link_received(side.link) for side in self.sides]
        can = [lib.colo_link_can_resume(one.link, asks[1]), lib.colo_link_can_resume(other.link, asks[0])]
        if one.session and one.session == other.session:
            # Neither has lost anything, so there is no excuse for a gap.
            assert all(can)
            self.resumed += 1
        else:
            self.sessions += 1
            asks = [0, 0]
            for side in self.sides:
                side.restart(f"session {self.sessions}")
        assert lib.colo_link_connect(one.link, asks[1], self.now) == 0
        assert lib.colo_link_connect(other.link, asks[0], self.now) == 0
        self.connected = True

    def write(self, which: int, most: int) -> None:
        self.flying[which] += self.sides[which].speak(most, self.now)

    def read(self, which: int, most: int) -> None:
        """The side reads from the other."""
        data, self.flying[1 - which] = self.flying[1 - which][:most], self.flying[1 - which][most:]
        self.sides[which].hear(data, self.now)

    def check(self) -> None:
        for side, other in (self.sides, reversed(self.sides)):
            if side.session == other.session:
                assert side.heard == other.pushed[: len(side.heard)]

    def drain(self) -> None:
        """Until neither has anything to say; time passes for the acknowledgements."""
        for _ in range(200):
            self.now += 25 * MILLISECOND
            for which in (0, 1):
                self.write(which, 10**6)
                self.read(1 - which, 10**6)
            if all(side.counters().queued_bytes == 0 for side in self.sides):
                return
        raise AssertionError("it never ends")


sides = st.integers(0, 1)
amounts = st.one_of(st.integers(1, 40), st.integers(1, 5000), st.just(10**6))
STEPS = st.one_of(
    st.tuples(st.just("push"), sides, st.one_of(st.integers(14, 100), st.integers(14, MAX_RECORD))),
    st.tuples(st.just("push"), sides, st.one_of(st.integers(14, 100), st.integers(14, MAX_RECORD))),
    st.tuples(st.just("write"), sides, amounts),
    st.tuples(st.just("read"), sides, amounts),
    st.tuples(st.just("wait"), st.just(0), st.integers(0, 300)),  # ms
    st.tuples(st.just("cut"), st.just(0), st.just(0)),
    st.tuples(st.just("connect"), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(("connect", "connect", "lose")), sides, st.just(0)),
)


@settings(profile(400), phases=(Phase.explicit, Phase.generate, Phase.shrink))
@given(st.lists(STEPS, min_size=10, max_size=80))
def test_every_record_once_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    world = World()
    world.connect()
    for number, (what, which, amount) in enumerate(steps):
        if what == "push":
            world.sides[which].push(number, amount)
        elif what == "write":
            world.write(which, amount)
        elif what == "read":
            world.read(which, amount)
        elif what == "wait":
            world.now += amount * MILLISECOND
        elif what == "cut":
            world.cut()
        elif what == "connect":
            world.connect()
        else:
            world.lose_a_process(which)
        world.check()
    if not world.connected:
        world.connect()
    world.drain()
    for side, other in (world.sides, list(reversed(world.sides))):
        assert side.heard == other.pushed
        assert side.counters().refused == side.refused
        assert not side.fault()
    event(f"resumed: {world.resumed > 1}, sessions: {min(world.sessions, 3)}")


def test_cut_at_every_byte() -> None:
    """The same conversation, the connection lost after each number of bytes that the receiver gets."""
    total = None
    cut_at = 0
    while total is None or cut_at <= total:
        world = World()
        world.connect()
        for number in range(6):
            world.sides[0].push(number, 14 + 9 * number)
            world.sides[1].push(number, 20)
        for which in (0, 1):
            world.write(which, 10**6)
        total = len(world.flying[0])
        world.read(1, cut_at)
        world.read(0, cut_at)
        world.now += 25 * MILLISECOND
        world.write(1, 10**6)
        world.read(0, 10**6)
        world.cut()
        world.connect()
        world.check()
        world.drain()
        for side, other in (world.sides, list(reversed(world.sides))):
            assert side.heard == other.pushed
            assert len(side.heard) == 6
            assert side.counters().resumed == 1
            assert side.counters().gaps == 0
        cut_at += 1
