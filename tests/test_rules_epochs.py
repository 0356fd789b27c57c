# SPDX-License-Identifier: Apache-2.0
"""Modes, epochs, commits and limits, row by row; model/table.py has the language."""

from __future__ import annotations

import pytest
import wire
from model.core import Core
from model.oracle import Oracle
from model.run import Commit, Feed, Run, Stop, Tick
from model.table import (
    MILLISECOND,
    NUMBERS,
    OPEN,
    TIMEOUT_MS,
    WINDOW_MS,
    Numbers,
    Row,
    Table,
    abort,
    alone,
    commit,
    p,
    p_syn,
    resume,
    s,
    s_syn,
    stop,
    wait,
)
from model.toy import Toy
from model.verdict import Cause, Config, Discard, Limit, Reason, Subject, Want
from wire import Path

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND)
KEEP = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, keep_gap=True)
HERE = Path()
THERE = Path(dport=9)

EPOCHS: dict[str, list[Row]] = {
    "a commit releases what is held": [
        *OPEN,
        (p(0, "abc"), ""),
        (p(3, "def"), ""),
        (stop(), ""),
        (commit(), "p2 p3"),
    ],
    "a commit releases in order": [
        (p(0, "a", path=HERE), ""),
        (p(0, "b", path=THERE), ""),
        (p(1, "c", path=HERE), ""),
        (stop(), ""),
        (commit(), "p1 p2 p3"),
    ],
    "frames are kept while the VMs stand still": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (s(0, "abc"), ""),
        (p(3, "def"), ""),
        (commit(), "p2 p3"),
    ],
    "what was read before RESUME is flushed, what was read after is compared": [
        *OPEN,
        (stop(), ""),
        (p(0, "abc"), ""),
        (resume(), ""),
        (p(3, "def"), ""),
        (commit(), "p2"),
        (s(3, "def"), "p3"),
    ],
    "secondary frames read after RESUME are of the new epoch": [
        *OPEN,
        (stop(), ""),
        (p(0, "abc"), ""),
        (resume(), ""),
        (s(3, "def"), ""),
        (p(3, "def"), ""),
        (commit(), "p2 p3"),
    ],
    "stale output of the secondary releases nothing": [
        *OPEN,
        (s(0, "abc"), ""),
        (stop(), ""),
        (commit(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
    "what the secondary says between STOP and RESUME is dropped": [
        *OPEN,
        (stop(), ""),
        (s(0, "abc"), ""),
        (resume(), ""),
        (commit(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
    "stale bytes make no difference either": [
        *OPEN,
        (s(0, "Abc"), ""),
        (stop(), ""),
        (commit(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
    "a stale ACK tells nothing": [
        *OPEN,
        (s(0, ack=5), ""),
        (stop(), ""),
        (commit(), ""),
        (p(0, ack=5), ""),
        (s(0, ack=5), "p2"),
    ],
    "a stale SYN-ACK releases none": [
        (s_syn(), ""),
        (stop(), ""),
        (commit(), ""),
        (p_syn(), ""),
        (s_syn(), "p1"),
    ],
    "what a commit covers is never waited for again": [
        *OPEN,
        (p(0, "abc", ack=5), ""),
        (stop(), ""),
        (commit(), "p2"),
        (p(0, "abc", ack=5), "p3"),
        (p(3, ack=5), "p4"),
    ],
    "frames read while the VMs stood still are covered like others": [
        *OPEN,
        (stop(), ""),
        (p(0, "abc", ack=5), ""),
        (commit(), "p2"),
        (p(0, "abc", ack=5), "p3"),
        (p(3, "def", ack=5), ""),
        (s(0, "abcdef", ack=5), "p4"),
    ],
    "a connection opened while the VMs stood still is covered": [
        (stop(), ""),
        (p_syn(), ""),
        (commit(), "p1"),
        (p_syn(), "p2"),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p3"),
    ],
    "what the secondary repeats from before the commit is old news": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (commit(), "p2"),
        (s(0, "abc"), ""),
        (p(3, "def"), ""),
        (s(0, "abcdef"), "p3"),
    ],
    "the primary's numbers hold for both after a commit": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (stop(), ""),
        (commit(), ""),
        (p(3, "def"), ""),
        (s(3, "def"), "p3"),
    ],
    "a failed checkpoint: the epoch goes on": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (s(0, "abc"), ""),
        (p(3, "def"), ""),
        (abort(), "p2"),
        (s(3, "def"), "p3"),
    ],
    "a failed checkpoint covers nothing": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (abort(), ""),
        (s(0, "abc"), "p2"),
    ],
    "a failed checkpoint does not end a divergence": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "Abc"), "!payload@0 want:payload"),
        (stop(), ""),
        (abort(), ""),
        (s(0, "abc"), ""),
        (stop(), ""),
        (commit(), "p2"),
    ],
    "two stops are one": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (stop(), ""),
        (abort(), ""),
        (s(0, "abc"), "p2"),
    ],
    "an abort without a stop is nothing": [
        *OPEN,
        (p(0, "abc"), ""),
        (abort(), ""),
        (s(0, "abc"), "p2"),
    ],
    "no time-out while the VMs stand still": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (wait(TIMEOUT_MS), ""),
        (commit(), "p2"),
    ],
    "one checkpoint is wanted in an epoch, and one in the next": [
        (p(0, "a", path=HERE), ""),
        (s(0, "A", path=HERE), "!payload@0 want:payload"),
        (p(0, "b", path=THERE), ""),
        (s(0, "B", path=THERE), "!payload@0"),
        (stop(), ""),
        (commit(), "p1 p2"),
        (p(1, "c", path=HERE), ""),
        (s(1, "C", path=HERE), "!payload@1 want:payload"),
    ],
    "alone: everything held leaves, and all that comes": [
        *OPEN,
        (p(0, "abc", ack=5), ""),
        (alone(), "p2"),
        (p(3, "def", ack=9), "p3"),
        (s(3, "xyz", ack=0), ""),
    ],
    "alone: an ACK that was held back is told": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (alone(), "ack9"),
    ],
    "alone in the middle of a checkpoint": [
        *OPEN,
        (p(0, "abc"), ""),
        (stop(), ""),
        (p(3, "def"), ""),
        (alone(), "p2 p3"),
    ],
    "alone in the middle of a checkpoint: nothing older is told behind what was": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (stop(), ""),
        (p(3, ack=12), ""),
        (alone(), "p3"),
    ],
    "protected again": [
        *OPEN,
        (alone(), ""),
        (p(0, "abc"), "p2"),
        (stop(), ""),
        (commit(), ""),
        (p(3, "def"), ""),
        (s(3, "def"), "p3"),
    ],
    "a protection that fails to begin": [
        *OPEN,
        (alone(), ""),
        (stop(), ""),
        (p(0, "abc"), ""),
        (abort(), "p2"),
        (p(3, "def"), "p3"),
    ],
}

UNPROTECTED: dict[str, list[Row]] = {
    "a comparator begins alone": [
        (p(0, "abc"), "p1"),
        (s(0, "xyz"), ""),
    ],
    "protection begins with a commit": [
        (p(0, "abc"), "p1"),
        (stop(), ""),
        (p(3, "def"), ""),
        (commit(), "p2"),
        (p(6, "ghi"), ""),
        (s(6, "ghi"), "p3"),
    ],
    "... also without a stop": [
        (commit(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p1"),
    ],
}

KEEP_GAP: dict[str, list[Row]] = {
    "what the secondary says between STOP and RESUME is of the new epoch": [
        *OPEN,
        (stop(), ""),
        (s(0, "abc"), ""),
        (resume(), ""),
        (commit(), ""),
        (p(0, "abc"), "p2"),
    ],
    "what it said before STOP is not": [
        *OPEN,
        (s(0, "abc"), ""),
        (stop(), ""),
        (resume(), ""),
        (commit(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
}

CASES = [pytest.param(rows, id=name) for name, rows in EPOCHS.items()]


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("rows", CASES)
def test_core(rows: list[Row], numbers: Numbers) -> None:
    Table(Core, numbers, CONFIG).play(rows)


@pytest.mark.parametrize("rows", CASES)
def test_toy(rows: list[Row]) -> None:
    Table(Toy, NUMBERS[1], CONFIG).play(rows)


@pytest.mark.parametrize("subject", [Core, Toy])
@pytest.mark.parametrize("rows", [pytest.param(rows, id=name) for name, rows in UNPROTECTED.items()])
def test_before_protection(rows: list[Row], subject: type[Subject]) -> None:
    Table(subject, NUMBERS[0], CONFIG, protect=False).play(rows)


@pytest.mark.parametrize("subject", [Core, Toy])
@pytest.mark.parametrize("rows", [pytest.param(rows, id=name) for name, rows in KEEP_GAP.items()])
def test_keep_gap(rows: list[Row], subject: type[Subject]) -> None:
    Table(subject, NUMBERS[0], KEEP).play(rows)


@pytest.mark.parametrize("keep_gap", [False, True])
def test_a_frame_read_at_the_very_time_of_the_stop_is_old_if_it_was_fed_before(keep_gap: bool) -> None:
    """A clock may stand still between two calls: the order of the calls decides."""
    config = Config(keep_gap=keep_gap)
    run = Run(Core(config), Oracle(config))
    frame = wire.udp(Path(), b"a")
    run.step(Commit(1, 2))
    run.step(Feed(1, (frame,), 10))
    run.step(Stop(10))
    run.step(Commit(11, 12))
    run.step(Feed(0, (frame,), 13))
    assert run.held == [2], "the secondary's frame proved nothing any more"


def test_why_secondary_frames_come_back() -> None:
    """Reasons are what operators see in the counters."""
    run = Run(Core(CONFIG), Oracle(CONFIG))
    frame = wire.udp(Path(), b"a")

    def discarded(*steps: Feed | Stop | Commit | Tick) -> list[Reason]:
        actions = [action for step in steps for action in run.step(step)[0]]
        return [action.reason for action in actions if isinstance(action, Discard)]

    assert discarded(Feed(1, (frame,), 1)) == [Reason.ALONE]
    assert discarded(Commit(2, 2), Feed(1, (wire.arp(),), 3)) == [Reason.PASSED]
    assert discarded(Feed(1, (frame,), 4), Feed(0, (frame,), 5)) == [Reason.MATCHED]
    assert discarded(Feed(1, (frame,), 6), Stop(7), Commit(8, 8)) == [Reason.STALE]


# ------------------------------------------------------------------ limits


def fill(config: Config, side: int, frames: list[bytes]) -> tuple[Run, list[object]]:
    """Protects, then feeds frames of one side one by one; the run and all events."""
    run = Run(Core(config), Oracle(config, live=False))
    events: list[object] = []
    run.step(Commit(1, 1))
    for now, frame in enumerate(frames, 10):
        events += run.step(Feed(side, (frame,), now))[1]
    return run, events


def limits_in(events: list[object]) -> list[Cause]:
    return [event.cause for event in events if isinstance(event, Limit)]


def wants_in(events: list[object]) -> list[Cause]:
    return [event.cause for event in events if isinstance(event, Want)]


def many(count: int, size: int = 20) -> list[bytes]:
    return [wire.udp(Path(dport=1000 + n), bytes(size)) for n in range(count)]


def finish(run: Run) -> None:
    """R2: commits make room until nothing is left."""
    now = run.now + 1
    while run.held:
        before = len(run.held)
        run.step(Stop(now))
        run.step(Commit(now + 1, now + 1))
        assert len(run.held) < before
        now += 10


def test_limit_of_frames() -> None:
    run, events = fill(Config(max_frames=20), 0, many(30))
    assert limits_in(events) == [Cause.LIMIT_FRAMES]
    assert wants_in(events) == [Cause.LIMIT_FRAMES]
    assert len(run.oracle.inside) == 10, "each side may use half"
    assert len(run.pending[0]) == 20
    finish(run)
    assert [name for name, _, _ in run.oracle.released] == list(range(1, 31)), "nothing is lost, and in order"


def test_limit_of_bytes() -> None:
    size = len(many(1)[0])
    run, events = fill(Config(max_bytes=20 * size), 0, many(30))
    assert limits_in(events) == [Cause.LIMIT_BYTES]
    assert wants_in(events) == [Cause.LIMIT_BYTES]
    assert sum(len(held.data) for held in run.oracle.inside.values()) <= 10 * size
    finish(run)


def test_a_checkpoint_is_wanted_at_half_of_the_limit() -> None:
    run, events = fill(Config(max_frames=40), 0, many(10))
    assert wants_in(events) == [Cause.LIMIT_FRAMES]
    assert not run.pending[0], "nothing is refused yet"


def test_a_frame_larger_than_the_limit_of_bytes_is_taken_when_nothing_is_held() -> None:
    config = Config(max_bytes=100)
    run = Run(Core(config), Oracle(Config()))
    run.step(Commit(1, 1))
    run.step(Feed(0, tuple(many(1, 1000)), 10))
    assert len(run.held) == 1
    assert not run.pending[0]


def test_limit_of_flows() -> None:
    """The frame is held without a flow; what comes after it waits for the checkpoint too (R4)."""
    run, events = fill(Config(max_flows=4), 0, many(6))
    assert limits_in(events) == [Cause.LIMIT_FLOWS]
    assert wants_in(events) == [Cause.LIMIT_FLOWS]
    assert len(run.held) == 6
    finish(run)


def test_idle_flows_make_room() -> None:
    config = Config(max_flows=4)
    run = Run(Core(config), Oracle(config))
    run.step(Commit(1, 1))
    for now, frame in enumerate(many(50), 10):
        run.step(Feed(0, (frame,), 10 * now))
        run.step(Feed(1, (frame,), 10 * now + 1))
    assert not run.held
    assert not run.oracle.limits


def test_limit_of_one_flow_on_the_primary() -> None:
    """Asks for a checkpoint, refuses nothing: the flow's frames are held until then."""
    run, events = fill(Config(max_flow_frames=5), 0, [wire.udp(Path(), bytes([n])) for n in range(9)])
    assert limits_in(events) == [Cause.LIMIT_FLOW_FRAMES]
    assert len(run.held) == 9
    finish(run)


def test_limit_of_one_flow_on_the_secondary() -> None:
    """What can't be kept of the secondary proves nothing; the checkpoint makes it good."""
    run, events = fill(Config(max_flow_frames=5), 1, [wire.udp(Path(), bytes([n])) for n in range(9)])
    assert limits_in(events) == [Cause.LIMIT_FLOW_FRAMES]
    assert wants_in(events) == [Cause.LIMIT_FLOW_FRAMES]
    assert len(run.oracle.inside) == 5


def test_limits_of_one_side_leave_the_other_its_half() -> None:
    """A secondary that runs ahead can't keep the primary's frames out, nor the other way about."""
    config = Config(max_frames=20)
    run, _ = fill(config, 1, many(30))
    assert len(run.pending[1]) == 20
    run.step(Feed(0, tuple(many(10)), 100))
    assert not run.pending[0]
    assert not run.held, "they match what the secondary had said"


def test_a_limit_is_told_again_in_the_next_epoch() -> None:
    run, _ = fill(Config(max_frames=8), 0, many(5))
    _, events = run.step(Commit(100, 100))
    for now, frame in enumerate(many(5), 200):
        events += run.step(Feed(0, (frame,), now))[1]
    assert limits_in(list(events)) == [Cause.LIMIT_FRAMES]
