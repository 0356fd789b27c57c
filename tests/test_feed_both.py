# SPDX-License-Identifier: Apache-2.0
"""Frames of both sides in one call: whatever is true of feed is true of feed_both."""

from __future__ import annotations

import pytest
import wire
from chaos import make_chaos, make_garbage
from conversation import make_conversation
from hypothesis import assume, given
from model.run import Both, Feed, Step, Stop
from model.verdict import Config
from strategies import Spoiled, dice, one_byte_differs, profile, seeded, seeds
from test_properties import TIGHT, new_run, play

from coloproxy import Comparator, Side
from coloproxy.comparator import Discarded, Frame, Released
from coloproxy.errors import MisuseError

FLOW = wire.Path(sport=80, dport=40000)
STEPS = 5  # that become one


def in_step(schedule: list[Step]) -> list[Step]:
    """Successive feeds become one call for both sides, at the time of the last; but for those that a commit cuts."""
    out: list[Step] = []
    run: list[Feed] = []
    stopped = False

    def flush() -> None:
        if run:
            sides = [tuple(frame for feed in run if feed.side == side for frame in feed.frames) for side in (0, 1)]
            out.append(Both(sides[0], sides[1], run[-1].now))
            run.clear()

    for step in schedule:
        if isinstance(step, Feed):
            run.append(step)
            if len(run) == STEPS or stopped:
                flush()
        else:
            flush()
            out.append(step)
            stopped = isinstance(step, Stop)
    flush()
    return out


def test_equal_streams_never_diverge() -> None:
    pairs = 0
    for seed in seeds(400):
        conversation = make_conversation(seeded(seed))
        run = play(in_step(conversation.schedule()), lambda c=conversation: new_run(Config(keep_gap=c.keep_gap)))
        skipped = run.oracle.fragmented
        assert not [event for event in run.oracle.divergences if event.key not in skipped], f"seed {seed}"
        assert skipped or not run.oracle.wants, f"seed {seed}"
        assert not [n for n in run.held if run.oracle.inside[n].packet.key not in skipped], f"seed {seed}"
        pairs += run.subject.comparator.counters().compared_bytes  # type: ignore[attr-defined]
    assert pairs


@profile(150)
@given(one_byte_differs())
def test_one_other_byte_always_diverges(spoiled: Spoiled | None) -> None:
    assume(spoiled is not None)
    assert spoiled is not None
    config = Config(keep_gap=spoiled.conversation.keep_gap)
    run = play(in_step(spoiled.conversation.schedule()), lambda: new_run(config))
    assert spoiled.port in {event.key.dport for event in run.oracle.divergences if event.key}


@profile(300)
@given(dice())
def test_chaos(throw: object) -> None:
    schedule = in_step(make_chaos(throw))  # type: ignore[arg-type]
    play(schedule, lambda: new_run(Config(), live=False))
    play(schedule, lambda: new_run(Config(**TIGHT), live=False))


@profile(100)
@given(dice())
def test_garbage(throw: object) -> None:
    play(in_step(make_garbage(throw)), lambda: new_run(Config(), strict=False, live=False))  # type: ignore[arg-type]


# -------------------------------------------------------------------- examples


def protected() -> Comparator:
    comparator = Comparator()
    comparator.commit(resumed=0, now=0)
    syn = wire.tcp(FLOW, 100, 1, wire.SYN | wire.ACK)
    assert comparator.feed_both([syn], [syn], 1) == (1, 1)
    first = wire.tcp(FLOW, 101, 1, payload=b"first")  # from now on the connection is calm
    assert comparator.feed_both([first], [first], 2) == (1, 1)
    assert len(comparator.actions()) == 4
    return comparator


def test_pairs_leave_at_once_and_in_order() -> None:
    comparator = protected()
    frames = [wire.tcp(FLOW, 106 + 10 * i, 1, payload=b"ten bytes!") for i in range(50)]
    assert comparator.feed_both(frames, frames, 3) == (50, 50)
    actions = comparator.actions()
    assert [action.frame for action in actions if isinstance(action, Released)] == list(range(4, 54))
    assert sorted(action.frame for action in actions if isinstance(action, Discarded)) == list(range(54, 104))
    assert comparator.counters().held_frames_peak <= 2, "pairs are not held"


@pytest.mark.parametrize("lag", [1, 7, 40])
def test_a_secondary_that_lags_behind(lag: int) -> None:
    comparator = protected()
    frames = [wire.tcp(FLOW, 106 + 10 * i, 1, payload=b"ten bytes!") for i in range(120)]
    released = 0
    for at in range(0, 120, 20):
        behind = frames[max(0, at - lag) : max(0, at + 20 - lag)]
        assert comparator.feed_both(frames[at : at + 20], behind, 3 + at) == (20, len(behind))
        released += sum(isinstance(action, Released) for action in comparator.actions())
        assert released == max(0, at + 20 - lag)
    assert not comparator.events()


def test_another_byte_is_a_divergence_and_holds_the_rest() -> None:
    comparator = protected()
    frames = [wire.tcp(FLOW, 106 + 10 * i, 1, payload=b"ten bytes!") for i in range(4)]
    other = [*frames[:2], wire.tcp(FLOW, 126, 1, payload=b"ten bytes?"), frames[3]]
    comparator.feed_both(frames, other, 3)
    assert [action.frame for action in comparator.actions() if isinstance(action, Released)] == [4, 5]
    (divergence,) = [event for event in comparator.events() if hasattr(event, "offset")]
    assert divergence.offset == 5 + 20 + 9  # of the first byte that differs


def test_either_side_may_be_empty_and_frames_are_checked() -> None:
    comparator = protected()
    frame = wire.tcp(FLOW, 106, 1, payload=b"x")
    assert comparator.feed_both([], [frame], 3) == (0, 1)
    assert comparator.feed_both([frame], [], 4) == (1, 0)
    assert len([action for action in comparator.actions() if isinstance(action, Released)]) == 1
    with pytest.raises(MisuseError):
        comparator.feed_both([frame], [Frame(frame, 13)], 5)
    assert comparator.feed(Side.PRIMARY, [wire.tcp(FLOW, 107, 1, payload=b"y")], 6) == 1


def test_at_a_limit_the_rest_is_not_taken() -> None:
    comparator = Comparator(max_frames=20)
    comparator.commit(resumed=0, now=0)
    frames = [wire.udp(FLOW, b"%d" % i) for i in range(15)]
    assert comparator.feed_both(frames, [], 1) == (10, 0)
    assert comparator.feed_both(frames[10:], frames, 2)[1] == 15
    assert sum(isinstance(action, Released) for action in comparator.actions()) >= 10


def test_alone_everything_passes() -> None:
    comparator = Comparator()
    frame = wire.udp(FLOW, b"x")
    assert comparator.feed_both([frame] * 3, [frame] * 2, 1) == (3, 2)
    assert len(comparator.actions()) == 5
