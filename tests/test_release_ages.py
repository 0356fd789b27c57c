# SPDX-License-Identifier: Apache-2.0
"""How long released frames were held: the comparator's histogram of it, and the shape it has in the status."""

from __future__ import annotations

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st

from coloproxy import Comparator, Reason, Side
from coloproxy.histogram import Histogram, release_ages

START = 1_000_000_000
FLOW = wire.Path(sport=80, dport=40000)


def frame(number: int) -> bytes:
    """Compared whole: its ethertype is experimental."""
    return bytes(12) + b"\x88\xb5" + number.to_bytes(50, "big")


def held(age: int, how: Reason) -> Comparator:
    """A comparator that has released one frame after it was held for `age` ns."""
    comparator = Comparator(compare_timeout=2**62)
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [frame(1)], START)
    if how is Reason.MATCHED:
        comparator.feed(Side.SECONDARY, [frame(1)], START + age)
    else:
        comparator.stop(START + age)
        comparator.commit(START + age, START + age)
    return comparator


@pytest.mark.parametrize("how", [Reason.MATCHED, Reason.COMMITTED])
@pytest.mark.parametrize(
    ("age", "bucket"),
    [(1, 0), (2, 1), (3, 1), (4, 2), (1023, 9), (1024, 10), (1_000_000, 19), (2**40 - 1, 39), (2**40, 40)],
)
def test_a_frames_age(how: Reason, age: int, bucket: int) -> None:
    counters = held(age, how).counters()
    other = Reason.COMMITTED if how is Reason.MATCHED else Reason.MATCHED
    assert [i for i, n in enumerate(counters.release_ages[how]) if n] == [bucket]
    assert counters.release_age_sum[how] == age
    assert sum(counters.release_ages[other]) == counters.release_age_sum[other] == 0


@given(st.lists(st.tuples(st.integers(0, 10**12), st.booleans()), max_size=30))
def test_every_released_frame_is_in_one_bucket(frames: list[tuple[int, bool]]) -> None:
    comparator = Comparator(compare_timeout=2**62)
    comparator.commit(0, 0)
    now = START
    for number, (pause, matches) in enumerate(frames):
        comparator.feed(Side.PRIMARY, [frame(number)], now)
        now += pause
        if matches:
            comparator.feed(Side.SECONDARY, [frame(number)], now)
    comparator.stop(now + 1)
    comparator.commit(now + 1, now + 1)
    counters = comparator.counters()
    for how in (Reason.MATCHED, Reason.COMMITTED):
        assert sum(counters.release_ages[how]) == counters.released[how]
    assert sum(counters.released.values()) == len(frames)


def test_frames_that_are_fed_as_pairs_have_no_age() -> None:
    """They leave by records that were used before, so an old time would show."""
    comparator = Comparator(compare_timeout=2**62)
    comparator.commit(0, 0)
    syn = wire.tcp(FLOW, 100, 1, wire.SYN | wire.ACK)
    first = wire.tcp(FLOW, 101, 1, payload=b"first")  # from now on the connection is calm
    frames = [syn, first, *(wire.tcp(FLOW, 106 + 10 * i, 1, payload=b"ten bytes!") for i in range(60))]
    for start in range(0, len(frames), 2):
        batch = frames[start : start + 2]
        assert comparator.feed_both(batch, batch, START + start * 1_000_000) == (2, 2)
        comparator.actions()
    counters = comparator.counters()
    assert counters.released[Reason.MATCHED] == len(frames)
    assert counters.release_ages[Reason.MATCHED][0] == len(frames)
    assert counters.release_age_sum[Reason.MATCHED] == 0


def test_a_status_has_fewer_buckets_and_all_frames() -> None:
    ages = tuple(range(1, 65))
    status = release_ages(ages, 2_500_000)
    pairs = status["histogram"]
    assert [bound for bound, _ in pairs[:3]] == [0.001024, 0.004096, 0.016384]
    assert pairs[-1][0] is None
    assert [count for _, count in pairs[:3]] == [sum(range(1, 11)), 11 + 12, 13 + 14]
    assert status["count"] == sum(count for _, count in pairs) == sum(ages)
    assert status["sum_ms"] == 2.5


def test_durations_are_counted_at_or_below_their_bound() -> None:
    histogram = Histogram((1.0, 2.5))
    for ns in (0, 1_000_000, 1_000_001, 2_500_000, 2_500_001, 10**12):
        histogram.add(ns)
    assert histogram.status() == {
        "count": 6,
        "sum_ms": 1_000_007.000002,
        "histogram": [[1.0, 2], [2.5, 2], [None, 2]],
    }
