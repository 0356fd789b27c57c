# SPDX-License-Identifier: Apache-2.0
"""What must be true of the comparator whatever the frames are; the oracle of tests/model judges every step.

COLOPROXY_TEST_PROFILE=thorough tries very many more examples, and new ones each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import wire
from chaos import make_chaos, make_garbage
from conversation import EDGES, Conversation, Dice, end_alone, make_conversation, text
from hypothesis import assume, given, note
from hypothesis import strategies as st
from model.core import Core
from model.flow import PRIMARY, SECONDARY
from model.minimise import explain
from model.oracle import Oracle
from model.run import Commit, Feed, Run, Step, Stop, Tick
from model.verdict import Cause, Config, Emit, Release, Subject, Violation
from strategies import (
    Spoiled,
    conversations,
    dice,
    one_byte_differs,
    one_fin_is_early,
    profile,
    seeded,
    seeds,
)
from world import World

MILLISECOND = 1_000_000
TIGHT: dict[str, Any] = {
    "max_frames": 24,
    "max_bytes": 6000,
    "max_flows": 3,
    "max_flow_frames": 8,
    "max_fragments": 5,
    "max_flow_bytes": 2500,
}


def new_run(config: Config, *, strict: bool = True, live: bool = True, subject: type[Subject] = Core) -> Run:
    return Run(subject(config), Oracle(config, strict=strict, live=live))  # type: ignore[call-arg]


def play(schedule: list[Step], make: Callable[[], Run]) -> Run:
    """Plays the schedule; what fails is told as a small one."""
    try:
        return make().play(schedule)
    except Violation:
        note(explain(make, schedule))
        raise


def checkpoint(run: Run, now: int) -> None:
    run.step(Stop(now))
    run.step(Commit(now + 1, now + 1))


# ------------------------------------------------------------------ equal streams


def check_equal(conversation: Conversation) -> Run:
    config = Config(keep_gap=conversation.keep_gap)
    run = play(conversation.schedule(), lambda: new_run(config))
    skipped = run.oracle.fragmented  # half a segment left by a commit: such a flow may begin in mid-stream
    assert not [event for event in run.oracle.divergences if event.key not in skipped]
    assert skipped or not run.oracle.wants
    assert not [name for name in run.held if run.oracle.inside[name].packet.key not in skipped], "both said all"
    return run


@profile(200)
@given(conversations())
def test_equal_streams_never_diverge_however_cut_reordered_or_repeated(conversation: Conversation) -> None:
    check_equal(conversation)


def test_equal_streams_never_diverge_many_seeds() -> None:
    for seed in seeds(300):
        conversation = make_conversation(seeded(seed))
        try:
            check_equal(conversation)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def of_two_nics(schedule: list[Step]) -> list[Step]:
    """
    Each VM says all of it by a second NIC too, with the same addresses, ports and numbers: one step later, so that the
    one's copy is there when the other's is not.
    """
    out: list[Step] = []
    late: list[Feed] = []
    stopped = False
    for step in schedule:
        stopped = isinstance(step, Stop) or (stopped and isinstance(step, Feed))
        out += [Feed(feed.side, feed.frames, max(feed.now, out[-1].now)) for feed in late]
        out.append(step)
        late = (
            [Feed(step.side, tuple(wire.of_nic(f, 1) for f in step.frames), step.now)] if isinstance(step, Feed) else []
        )
        if stopped:  # which epoch a frame is of is a matter of its time
            out += late
            late = []
    return out + late


@profile(60)
@given(conversations())
def test_nics_with_the_same_addresses_are_apart(conversation: Conversation) -> None:
    config = Config(keep_gap=conversation.keep_gap)
    run = play(of_two_nics(conversation.schedule()), lambda: new_run(config))
    skipped = run.oracle.fragmented
    assert not [event for event in run.oracle.divergences if event.key not in skipped]
    assert not [name for name in run.held if run.oracle.inside[name].packet.key not in skipped]


class NicBlind(Core):
    """A comparator that takes all frames for those of one NIC."""

    def feed(self, side: int, frames: Sequence[tuple[int, bytes]], now: int) -> int:
        return super().feed(side, [(name, wire.of_nic(frame, 0)) for name, frame in frames], now)


def test_the_oracle_knows_nics_apart() -> None:
    with pytest.raises(Violation):
        new_run(Config(), subject=NicBlind).play(of_two_nics(make_conversation(seeded(1)).schedule()))


@pytest.mark.parametrize("edge", [0, 2**31, 2**32], ids=["0", "2^31", "2^32"])
def test_sequence_and_ack_numbers_wrap(edge: int) -> None:
    """The streams of all connections, and their ACK numbers, run across the edge."""

    def pick_near(throw: Dice) -> Dice:
        return Dice(lambda low, high: EDGES.index(edge % 2**32) if high == len(EDGES) - 1 else throw.pick(low, high))

    for seed in seeds(60):
        check_equal(make_conversation(pick_near(seeded(seed))))


@profile(60)
@given(conversations())
def test_batches_make_no_difference(conversation: Conversation) -> None:
    """Frames fed one by one give the same actions and events as many at a time."""

    def outcome(schedule: list[Step]) -> list[object]:
        subject = Core(Config(keep_gap=conversation.keep_gap))
        run = Run(subject, Oracle(Config(keep_gap=conversation.keep_gap)))
        return [item for step in schedule for part in run.step(step) for item in part]

    one_by_one: list[Step] = []
    for step in conversation.schedule():
        one_by_one += [Feed(step.side, (f,), step.now) for f in step.frames] if isinstance(step, Feed) else [step]
    assert outcome(conversation.schedule()) == outcome(one_by_one)


@profile(60)
@given(conversations(), st.booleans())
def test_nothing_is_lost_when_limits_are_tight(conversation: Conversation, alone: bool) -> None:
    """R2: limits ask for a checkpoint or refuse frames; in the end every primary frame has left, each once."""
    config = Config(keep_gap=conversation.keep_gap, **TIGHT)
    schedule = end_alone(conversation).schedule() if alone else conversation.schedule()
    run = play(schedule, lambda: new_run(config, live=False))
    now = conversation.now + 10
    for _ in range(1000):
        if not run.held:
            break
        checkpoint(run, now)
        now += 10
    assert not run.held
    fed = sum(frame.side == PRIMARY for frame in conversation.frames())
    assert len(run.oracle.released) == fed


# ------------------------------------------------------------------ differences


def check_one_divergence(spoiled: Spoiled, cause: Cause) -> Run:
    conversation = spoiled.conversation
    run = play(conversation.schedule(), lambda: new_run(Config(keep_gap=conversation.keep_gap)))
    (event,) = run.oracle.divergences
    assert event.cause == cause
    assert event.key is not None
    assert event.key.dport == spoiled.port
    if spoiled.opened:
        assert event.offset == spoiled.offset
    (want,) = run.oracle.wants
    assert want.cause == cause
    held = [run.oracle.inside[name].packet.key.dport for name in run.held]
    assert set(held) == {spoiled.port}, "the other flows go on"
    checkpoint(run, conversation.now + 10)
    assert not run.held
    assert len(run.oracle.divergences) == len(run.oracle.wants) == 1
    return run


@profile(150)
@given(one_byte_differs())
def test_one_flipped_byte_always_diverges_once(spoiled: Spoiled | None) -> None:
    assume(spoiled is not None)
    assert spoiled is not None
    run = check_one_divergence(spoiled, Cause.PAYLOAD)
    (event,) = run.oracle.divergences
    assert event.primary[: event.context] == event.secondary[: event.context]
    assert event.primary[event.context] != event.secondary[event.context]


@profile(100)
@given(one_fin_is_early())
def test_an_early_fin_always_diverges_once(spoiled: Spoiled | None) -> None:
    assume(spoiled is not None)
    assert spoiled is not None
    check_one_divergence(spoiled, Cause.FIN)


@profile(100)
@given(dice())
def test_one_altered_datagram_always_diverges_once(throw: Dice) -> None:
    bodies = [text(n, 12) for n in range(throw.pick(1, 8))]
    which, at = throw.pick(0, len(bodies) - 1), throw.pick(0, 11)
    altered = [bytes(b ^ (n == which and i == at) for i, b in enumerate(body)) for n, body in enumerate(bodies)]
    path = throw.choose((wire.Path(), wire.Path.v6(), wire.Path(vlans=(3,))))
    run = new_run(Config(reorder_window=10 * MILLISECOND))
    checkpoint(run, 0)
    feeds = [(PRIMARY, body) for body in throw.swap_neighbours(bodies, 4)]
    for theirs in throw.swap_neighbours(altered, 4):
        feeds.insert(throw.pick(0, len(feeds)), (SECONDARY, theirs))
    for now, (side, body) in enumerate(feeds, 10):
        run.step(Feed(side, (wire.udp(path, body),), now))
    assert not run.oracle.divergences
    run.step(Tick(100 + 10 * MILLISECOND))
    (event,) = run.oracle.divergences
    assert event.cause == Cause.DATAGRAM
    checkpoint(run, 200 + 10 * MILLISECOND)
    assert not run.held


# ------------------------------------------------------------------ R1


def live_in_a_world(throw: Dice, acts: int, keep_gap: bool, subject: type[Subject] = Core) -> None:
    config = Config(keep_gap=keep_gap)
    run = new_run(config, subject=subject)
    world = World(run, throw, keep_gap)
    try:
        for _ in range(acts):
            world.act()
        world.finish()
    except Violation as violation:
        violation.add_note(explain(lambda: new_run(config, subject=subject), world.log))
        raise


@profile(100)
@given(dice(), st.integers(50, 300), st.booleans())
def test_the_survivor_contradicts_nothing_whenever_the_primary_dies(throw: Dice, acts: int, keep_gap: bool) -> None:
    """R1. The primary may die at any instant: so at every instant the world compares client and survivor."""
    live_in_a_world(throw, acts, keep_gap)


def test_the_survivor_contradicts_nothing_many_seeds() -> None:
    for seed in seeds(500):
        try:
            live_in_a_world(seeded(seed), 300, seed % 3 == 0)
        except Violation as violation:
            violation.add_note(f"seed {seed}")
            raise


@profile(200)
@given(dice(), st.booleans())
def test_safety_in_chaos(throw: Dice, keep_gap: bool) -> None:
    """R1 to R4 for frames and checkpoints that follow no plan."""
    config = Config(keep_gap=keep_gap)
    play(make_chaos(throw), lambda: new_run(config, live=False))


def test_safety_in_chaos_many_seeds() -> None:
    for seed in seeds(1000):
        config = Config(keep_gap=seed % 3 == 0)
        schedule = make_chaos(seeded(seed))
        try:
            new_run(config, live=False).play(schedule)
        except Violation as violation:
            violation.add_note(f"seed {seed}\n{explain(lambda: new_run(config, live=False), schedule)}")  # noqa: B023
            raise


# ------------------------------------------------------------------ hostile input


@profile(200)
@given(dice(), st.booleans())
def test_garbage_is_held_or_passed_within_the_limits(throw: Dice, tight: bool) -> None:
    """R6: no crash; R2, R4 and the limits hold for frames of any kind and any content."""
    config = Config(**(TIGHT if tight else {}))
    run = play(make_garbage(throw), lambda: new_run(config, strict=False))
    for now in range(10**12, 10**12 + 1000, 2):
        if not run.held:
            break
        checkpoint(run, now)
    assert not run.held


@profile(200)
@given(st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=120)), max_size=20))
def test_random_bytes_never_crash(frames: list[tuple[int, bytes]]) -> None:
    run = new_run(Config(), strict=False)
    checkpoint(run, 0)
    for now, (side, frame) in enumerate(frames, 10):
        run.step(Feed(side, (frame,), now))
    checkpoint(run, 100)
    assert not run.held


@profile(60)
@given(dice())
def test_counters_agree_with_what_was_seen(throw: Dice) -> None:
    """Counters are what operators see: frames in, released, lowered, emitted, held."""
    conversation = make_conversation(throw, 2, 2)
    config = Config(keep_gap=conversation.keep_gap)
    core = Core(config)
    run = Run(core, Oracle(config))
    lowered = emitted = 0
    fed = {frame.name: frame for frame in run.oracle.inside.values()}
    for step in conversation.schedule():
        actions, _ = run.step(step)
        fed.update(run.oracle.inside)
        emitted += sum(isinstance(action, Emit) for action in actions)
        lowered += sum(isinstance(a, Release) and a.name in fed and bytes(a.data) != bytes(fed[a.name].data)
                       for a in actions)  # fmt: skip
    counters = core.comparator.counters()
    assert sum(counters.released.values()) == len(run.oracle.released)
    assert counters.acks_emitted + counters.parts_emitted == emitted
    assert counters.acks_lowered >= lowered
    assert counters.held_frames[0] == len(run.held) == 0
    assert sum(counters.frames_in) == len(conversation.frames())
    assert counters.frames_in[1] == sum(counters.discarded.values()) + counters.held_frames[1]
