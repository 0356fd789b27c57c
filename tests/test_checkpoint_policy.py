# SPDX-License-Identifier: Apache-2.0
"""The checkpoint policy over a virtual clock: a model guest, random traffic, and the bounds that always hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloproxy.checkpoint_model import FIRST_AGE, LEARNED, OLDEST, SHORT, SHORT_EVERY, PauseModel
from coloproxy.checkpoint_policy import PERIOD, QUIET, SAVING, Activity, CheckpointPolicy, PolicyOptions

MS = 1_000_000
S = 1000 * MS
ADAPTIVE = PolicyOptions(mode="adaptive")


@dataclass(frozen=True)
class Commit:
    """A checkpoint of the simulation; times in ns."""

    cause: str
    asked: int
    resumed: int
    pause: int


@dataclass
class Sim:
    """A pair in COLO whose pause is base + per_s * the seconds since the last checkpoint; time moves by inputs."""

    options: PolicyOptions
    base: int = 5 * MS
    per_s: int = 10 * MS
    most: int = S
    now: int = 1000 * S
    commits: list[Commit] = field(default_factory=list)
    frames: int = 0
    held: int = 0
    looks: int = 0
    delay: int = 2 * MS
    """From the wish to STOP."""

    def __post_init__(self) -> None:
        self.policy = CheckpointPolicy(self.options)
        self.policy.on_protected(self.now)
        self._last = self.now

    def pause(self) -> int:
        return self.base + min(self.per_s * (self.now - self._last) // S, self.most)

    def checkpoint(self, cause: str) -> None:
        asked = self.now
        if cause not in {QUIET, PERIOD}:
            self.policy.on_asked()
        self.now += self.delay
        pause = self.pause()
        self.now += pause
        self.policy.on_commit(self.now, pause)
        self.commits.append(Commit(cause, asked, self.now, pause))
        self._last = self.now

    def run(self, until: int) -> None:
        """Nothing but the policy's own looks until then."""
        while (due := self.policy.next_look(self.now)) is not None and max(due, self.now) <= until:
            self.now = max(due, self.now)
            self.looks += 1
            cause = self.policy.look(self.now, Activity(self.frames, self.held))
            if cause is not None:
                self.checkpoint(cause)
            else:
                following = self.policy.next_look(self.now)
                assert following is None or following > self.now, "a look that leads nowhere"
        self.now = max(self.now, until)

    def of(self, cause: str) -> list[Commit]:
        return [commit for commit in self.commits if commit.cause == cause]


# ------------------------------------------------------------------- what it does


def test_a_quiet_network_with_dirty_pages_gets_checkpoints_that_keep_the_pause_short() -> None:
    sim = Sim(ADAPTIVE)
    sim.run(sim.now + 60 * S)
    assert {commit.cause for commit in sim.commits} == {QUIET}
    assert max(commit.pause for commit in sim.commits[2 * SHORT_EVERY :]) <= 2.6 * sim.base


def test_a_guest_that_writes_nothing_gets_one_a_while() -> None:
    sim = Sim(ADAPTIVE, per_s=0)
    sim.run(sim.now + 200 * S)
    assert 10 <= len(sim.commits) <= 200 * S // OLDEST + LEARNED + 200 * S // OLDEST // SHORT_EVERY


@pytest.mark.parametrize("seed", range(5))
def test_a_busy_host_is_not_taken_for_dirty_pages(seed: int) -> None:
    chance = random.Random(seed)
    sim = Sim(ADAPTIVE, per_s=0)
    end = sim.now + 300 * S
    while sim.now < end:
        sim.base = round((5 + chance.expovariate(1 / 5)) * MS)
        sim.run(sim.now + chance.randrange(S))
        if chance.random() < 0.3:
            sim.checkpoint("payload")
    assert len(sim.of(QUIET)) < 300
    assert sim.policy.spent < 300 * S * ADAPTIVE.budget / 100 / 3


def test_a_guest_that_begins_to_write_is_noticed() -> None:
    sim = Sim(ADAPTIVE, per_s=0)
    sim.run(sim.now + 60 * S)
    before = len(sim.commits)
    sim.per_s = 20 * MS
    sim.run(sim.now + 60 * S)
    assert len(sim.commits) > before + 60
    assert sim.commits[-1].pause <= 3 * sim.base


@pytest.mark.parametrize("gap", [1 * MS, 5 * MS, 19 * MS])
def test_a_busy_network_gets_none(gap: int) -> None:
    sim = Sim(ADAPTIVE)
    end = sim.now + 30 * S
    while sim.now < end:
        sim.frames += 1
        sim.run(sim.now + gap)
    assert sim.commits == []


@pytest.mark.parametrize("held", [1, 100])
def test_none_while_frames_are_held(held: int) -> None:
    sim = Sim(ADAPTIVE, held=held)
    sim.run(sim.now + 30 * S)
    assert sim.commits == []


def test_fixed_wants_none_and_never_looks() -> None:
    sim = Sim(PolicyOptions())
    sim.run(sim.now + 100 * S)
    assert (sim.commits, sim.looks, PolicyOptions().is_idle) == ([], 0, True)


def test_a_period_counts_from_the_last_commit_whatever_the_traffic() -> None:
    sim = Sim(PolicyOptions(period=2 * S), per_s=0)
    sim.run(sim.now + S)
    sim.checkpoint("payload")
    sim.held = sim.frames = 1
    first = sim.now
    sim.run(first + 9 * S)
    assert [commit.cause for commit in sim.commits] == ["payload"] + [PERIOD] * 4
    assert [commit.asked - before.resumed for before, commit in zip(sim.commits, sim.commits[1:], strict=False)] == [
        2 * S
    ] * 4


def test_one_wish_at_a_time_and_none_while_anothers_is_on_its_way() -> None:
    sim = Sim(ADAPTIVE)
    sim.policy.on_asked()
    sim.run(sim.now + 10 * S)
    assert (sim.commits, sim.policy.next_look(sim.now)) == ([], None)
    sim.policy.on_commit(sim.now, 5 * MS)
    sim.run(sim.now + 10 * S)
    assert sim.of(QUIET)


def test_none_without_protection() -> None:
    sim = Sim(ADAPTIVE)
    sim.policy.on_unprotected()
    sim.run(sim.now + 10 * S)
    assert sim.commits == []
    sim.policy.on_commit(sim.now, 5 * MS)  # QMP was away; the checkpoint that ends the doubt
    sim.run(sim.now + 10 * S)
    assert sim.of(QUIET)


# ------------------------------------------------------------------------ bounds

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lull"), st.integers(0, 5 * S)),
        st.tuples(st.just("frames"), st.integers(0, 50 * MS)),
        st.tuples(st.just("held"), st.integers(0, 100 * MS)),
        st.tuples(st.just("diverges"), st.integers(0, 300 * MS)),
        st.tuples(st.just("writes"), st.integers(0, 200 * MS)),  # from now on, by second
        st.tuples(st.just("away"), st.integers(0, S)),
    ),
    min_size=1,
    max_size=60,
)


@given(
    steps=STEPS,
    quiet=st.integers(MS, 100 * MS),
    budget=st.integers(1, 50),
    min_interval=st.integers(0, S),
    period=st.one_of(st.just(0), st.integers(100 * MS, 3 * S)),
    base=st.integers(MS, 200 * MS),
    most=st.integers(0, 2 * S),
)
def test_its_bounds_hold_for_any_traffic(
    steps: list[tuple[str, int]], quiet: int, budget: int, min_interval: int, period: int, base: int, most: int
) -> None:
    options = PolicyOptions("adaptive", period, min_interval, quiet, budget)
    sim = Sim(options, base=base, most=most)
    start, traffic, whole = sim.now, [sim.now], True
    for kind, value in steps:
        match kind:
            case "lull":
                sim.run(sim.now + value)
            case "frames":
                sim.frames += 1
                traffic.append(sim.now)
                sim.run(sim.now + value)
            case "held":
                sim.held = 1
                sim.run(sim.now + value)
                sim.held = 0
                traffic.append(sim.now)
            case "diverges":
                sim.run(sim.now + value)
                sim.checkpoint("payload")
            case "writes":
                sim.per_s = value
            case _:
                whole = False
                sim.policy.on_unprotected()
                sim.now += value
                sim.policy.on_protected(sim.now)
                sim._last = sim.now
    # Not before the minimum distance.
    for before, commit in zip(sim.commits, sim.commits[1:], strict=False):
        if commit.cause in {QUIET, PERIOD}:
            assert commit.asked >= before.resumed + min_interval
    # Quiet is quiet.
    for commit in sim.of(QUIET):
        assert commit.asked >= max(at for at in traffic if at <= commit.asked) + quiet
    # Standing still is paid for: over any span, but for the last one, which nobody can know before.
    quiets = sim.of(QUIET)
    for first in range(len(quiets)):
        spent = 0
        for commit in quiets[first:]:
            span = commit.asked - quiets[first].asked
            assert spent <= (span + SAVING) * budget / 100 + 1000
            spent += commit.pause
    assert sim.policy.spent == sum(commit.pause for commit in quiets)
    # At least so often.
    if period and whole:
        ends = [start, *(commit.resumed for commit in sim.commits)]
        begins = [*(commit.asked for commit in sim.commits), sim.now]
        longest = max(period, min_interval)
        for end, begin in zip(ends, begins, strict=True):
            assert begin - end <= longest


@given(gaps=st.lists(st.integers(0, 20 * MS - 1), min_size=1, max_size=200), per_s=st.integers(0, S))
def test_traffic_without_a_lull_is_never_disturbed(gaps: list[int], per_s: int) -> None:
    sim = Sim(ADAPTIVE, per_s=per_s)
    for gap in gaps:
        sim.run(sim.now + gap)
        sim.frames += 1
    assert sim.commits == []


@given(
    base=st.integers(MS, 100 * MS),
    per_s=st.integers(0, 100 * MS),
    quiet=st.integers(10 * MS, 100 * MS),
    wait=st.integers(0, 5 * S),
)
def test_a_lull_is_used_as_soon_as_it_is_worth_it_and_paid_for(base: int, per_s: int, quiet: int, wait: int) -> None:
    sim = Sim(PolicyOptions("adaptive", quiet=quiet), base=base, per_s=per_s)
    end = sim.now + wait
    while sim.now < end:
        sim.frames += 1
        sim.run(sim.now + max(quiet // 2, 5 * MS))
    assert sim.commits == []
    lull = sim.now
    sim.run(lull + OLDEST)
    # A baseline and a look, or as many again where a look just missed the end of the traffic.
    allowed = max(3 * quiet, lull - sim.now, FIRST_AGE + 1000 * S - lull + quiet)
    assert sim.commits[0].asked - lull <= allowed


# ------------------------------------------------------------------------- model

LEARNING: list[tuple[str, Callable[[int], int], float, int]] = [
    ("no growth", lambda _: 5 * MS, 0.0, 5 * MS),
    ("10 ms a second", lambda age: 5 * MS + age // 100, 0.01, 5 * MS),
    ("80 ms a second", lambda age: 20 * MS + age * 8 // 100, 0.08, 20 * MS),
]


@pytest.mark.parametrize(("pause", "growth", "base"), [row[1:] for row in LEARNING], ids=[row[0] for row in LEARNING])
def test_the_model_learns(pause: Callable[[int], int], growth: float, base: int) -> None:
    model = PauseModel()
    for _ in range(64):
        age = model.worth_after()
        model.learn(age, pause(age), short=True)
    assert model.growth == pytest.approx(growth, abs=growth / 3)
    assert base <= model.base <= 1.5 * base + 1
    if growth:
        assert base / growth / SHORT <= model.worth_after() <= 3 * base / growth


def test_the_model_begins_by_looking_often() -> None:
    model, ages = PauseModel(), []
    for _ in range(LEARNED):
        ages.append(model.worth_after())
        model.learn(ages[-1], 5 * MS, short=True)
    assert ages == [FIRST_AGE, 2 * FIRST_AGE, 4 * FIRST_AGE, 8 * FIRST_AGE]
    assert model.worth_after() == OLDEST


def test_a_guest_that_writes_to_the_same_pages_is_not_expected_to_stand_for_ever() -> None:
    model = PauseModel()
    for age in (S, 2 * S, 3 * S):
        model.learn(age, 100 * MS, short=False)
    assert model.expected(1000 * S) == 100 * MS
