# SPDX-License-Identifier: Apache-2.0
"""Who makes room when the flow table is full, what one flow may hold, and what an idle flow costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path as FilePath

import wire
from wire import ACK, PSH, SYN, Path

from coloproxy import Cause, Comparator, Side
from coloproxy.comparator import Released
from coloproxy.events import Divergence, LimitHit

SYN_ACK = SYN | ACK


def client(number: int) -> Path:
    """A connection of its own: one server port, clients from everywhere."""
    return Path(client=number.to_bytes(4, "big"), dport=1024 + number % 60000)


class Pair:
    """Two VMs that say the same; a flood of frames goes in without an oracle, for speed."""

    def __init__(self, **limits: int) -> None:
        self.comparator = Comparator(**limits)  # type: ignore[arg-type]
        self.comparator.commit(0, 0)
        self.now = 1

    def says(self, frames: list[bytes], *, secondary: bool = True) -> int:
        """How many of them have left."""
        self.now += 1
        for first in range(0, len(frames), 256):
            self.comparator.feed(Side.PRIMARY, frames[first : first + 256], self.now)
            if secondary:
                self.comparator.feed(Side.SECONDARY, frames[first : first + 256], self.now)
        return sum(isinstance(action, Released) for action in self.comparator.actions())

    def causes(self) -> list[Cause]:
        return [event.cause for event in self.comparator.events() if isinstance(event, Divergence | LimitHit)]


def opened(paths: list[Path]) -> list[bytes]:
    return [wire.tcp(path, 1000, 500, SYN_ACK) for path in paths]


def data(paths: list[Path], seq: int) -> list[bytes]:
    return [wire.tcp(path, seq, 501, ACK | PSH, b"x" * 100) for path in paths]


def with_live_connections(count: int, **limits: int) -> tuple[Pair, list[Path]]:
    pair = Pair(**limits)
    paths = [client(number) for number in range(count)]
    assert pair.says(opened(paths)) == count
    assert pair.says(data(paths, 1001)) == count
    return pair, paths


def still_known(pair: Pair, paths: list[Path]) -> bool:
    """New bytes leave; and so do older ones again, which of a flow met in mid-stream would be a difference."""
    assert pair.says(data(paths, 1101)) == len(paths)
    assert pair.says(data(paths, 1001)) == len(paths)
    return Cause.MID_STREAM not in pair.causes()


def test_a_flood_of_syns_pushes_no_live_connection_out() -> None:
    pair, live = with_live_connections(700, max_flows=1024)
    flood = [client(1 << 20 | number) for number in range(20_000)]
    assert pair.says(opened(flood)) == len(flood), "each is answered"
    assert pair.comparator.counters().flows == 1024
    assert pair.comparator.counters().flows_evicted >= 20_000 - 1024
    assert still_known(pair, live)


def test_a_flood_of_datagrams_pushes_no_live_connection_out() -> None:
    pair, live = with_live_connections(700, max_flows=1024)
    flood = [wire.udp(client(1 << 20 | number), b"answer") for number in range(20_000)]
    assert pair.says(flood) == len(flood)
    assert pair.comparator.counters().flows == 1024
    assert still_known(pair, live)


def test_a_flood_that_the_secondary_does_not_answer_asks_for_a_checkpoint() -> None:
    pair, live = with_live_connections(700, max_flows=1024)
    flood = [client(1 << 20 | number) for number in range(2_000)]
    assert pair.says(opened(flood), secondary=False) == 0
    assert pair.causes() == [Cause.LIMIT_FLOWS]
    assert pair.comparator.counters().flows == 1024
    pair.comparator.commit(pair.now + 1, pair.now + 1)
    pair.now += 1
    assert len(pair.comparator.actions()) == 2_000, "nothing was lost"
    assert still_known(pair, live)


def test_more_live_connections_than_the_table_has_room_for() -> None:
    """They push each other out, and are met again in mid-stream: nothing is lost, nothing held for ever."""
    pair, live = with_live_connections(3_000, max_flows=1024)
    assert pair.says(data(live, 1101)) == len(live)
    assert pair.causes() == []


def test_the_limit_of_bytes_of_one_flow() -> None:
    pair = Pair(max_flow_bytes=1000)
    frames = [wire.udp(Path(), bytes([number]) * 300) for number in range(5)]
    pair.comparator.feed(Side.SECONDARY, frames, 2)
    assert pair.causes() == [Cause.LIMIT_FLOW_BYTES]
    assert pair.comparator.counters().held_frames == (0, 2), "what can't be kept of the secondary proves nothing"
    pair.comparator.feed(Side.PRIMARY, frames, 3)
    assert pair.comparator.counters().held_frames == (3, 0), "the primary's are kept until the checkpoint"
    pair.comparator.commit(4, 4)
    assert pair.comparator.counters().held_frames == (0, 0)


def test_a_frame_above_the_limit_of_bytes_is_held_when_its_flow_holds_nothing() -> None:
    pair = Pair(max_flow_bytes=100)
    frame = wire.udp(Path(), bytes(1000))
    pair.comparator.feed(Side.SECONDARY, [frame], 2)
    pair.comparator.feed(Side.PRIMARY, [frame], 3)
    assert pair.causes() == []
    assert sum(isinstance(action, Released) for action in pair.comparator.actions()) == 1


MEMORY = """
from test_limits import Pair, client, data, opened

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

pair = Pair(max_flows=131072)
def connect(first, last, step=1000):
    for at in range(first, last, step):
        paths = [client(number) for number in range(at, at + step)]
        assert pair.says(opened(paths)) == step and pair.says(data(paths, 1001)) == step

connect(0, 4000)
before = resident()
connect(4000, 104000)
assert pair.comparator.counters().flows == 104000 and not pair.causes()
print((resident() - before) / 100000)
"""


def test_an_idle_flow_takes_at_most_512_bytes() -> None:
    """Of resident memory, table included, measured over 100,000 live connections."""
    here = str(FilePath(__file__).parent)
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.append({here!r})\n{MEMORY}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 300 < float(done.stdout) <= 512
