# SPDX-License-Identifier: Apache-2.0
"""The comparator in process, part by part: one timed round is one workload_pass, its frames are made between rounds.

    pytest bench/core --benchmark-json=FILE [--quick]

`cold`: no byte of the frames is in a cache when the pass begins. `warm`: both sides' frames fit the second-level cache.
extra_info of each: ns_per_frame, gbit_per_s (of the primary's frames, headers included), flows, frames, bytes.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from core.library import Built, Spec, run_driver
from core.sizes import Measure, warm_frames

MEBIBYTE = 1 << 20
SUPER = 45 * 1448
"""The payload of a TSO super-frame: 64 KiB, as Linux makes them."""


@pytest.mark.benchmark(group="parse")
@pytest.mark.parametrize("length", [64, 1448])
def test_parse(measure: Measure, length: int) -> None:
    measure(Spec(kind="parse", length=length, frames=warm_frames(length)))


@pytest.mark.benchmark(group="flow look-up")
@pytest.mark.parametrize("flows", [1, 1_000, 100_000])
def test_look_up(measure: Measure, flows: int) -> None:
    """By its id, in an order that is not that of their making."""
    measure(Spec(kind="lookup", flows=flows, burst=1, length=64, frames=max(flows, 1000)))


@pytest.mark.benchmark(group="flows")
@pytest.mark.parametrize("flows", [1, 64, 1_000, 100_000])
def test_equal_streams(measure: Measure, flows: int) -> None:
    """Small segments of many flows: what a flow costs, not its bytes."""
    measure(Spec(flows=flows, length=64, frames=max(flows, 2000), burst=1))


@pytest.mark.benchmark(group="flows")
def test_memory_per_flow(benchmark: BenchmarkFixture, built: Built) -> None:
    """By how much a process grows for each of 100,000 flows; what is timed is a whole process, and of no interest."""
    flows = 100_000
    spec = Spec(flows=flows, length=1, frames=flows, burst=1)

    grown = benchmark.pedantic(lambda: run_driver(spec, 1, built)["grown"], rounds=1, iterations=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info.update(flows=flows, bytes_per_flow=grown / flows)


@pytest.mark.benchmark(group="1448 bytes, warm")
@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_warm(measure: Measure, kind: str) -> None:
    measure(Spec(kind=kind, frames=warm_frames(1448)))


@pytest.mark.benchmark(group="1448 bytes, cold")
@pytest.mark.parametrize("kind", ["memory", "tcp", "udp", "commit"])
def test_cold(measure: Measure, kind: str) -> None:
    """memory: memcmp of both sides and memcpy of one; commit: held, and flushed by a checkpoint."""
    measure(Spec(kind=kind, frames=0, evict=1))


@pytest.mark.benchmark(group="1448 bytes, cold")
@pytest.mark.parametrize("recut", [1000, 536])
def test_recut(measure: Measure, recut: int) -> None:
    """The secondary cuts its stream otherwise."""
    measure(Spec(frames=0, recut=recut, evict=1))


@pytest.mark.benchmark(group="1448 bytes, cold")
def test_skew(measure: Measure) -> None:
    """The secondary is a mebibyte behind."""
    measure(Spec(frames=0, skew=MEBIBYTE, evict=1))


@pytest.mark.benchmark(group="1448 bytes, cold")
@pytest.mark.parametrize("flows", [64, 1_000])
def test_many_flows(measure: Measure, flows: int) -> None:
    measure(Spec(frames=0, flows=flows, evict=1))


@pytest.mark.benchmark(group="64 KiB super-frames, cold")
@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_super_frames(measure: Measure, kind: str) -> None:
    measure(Spec(kind=kind, frames=0, length=SUPER, vnet_len=12, burst=4, turn=4, evict=1))


@pytest.mark.benchmark(group="datagrams")
@pytest.mark.parametrize("flows", [1, 64])
def test_datagrams(measure: Measure, flows: int) -> None:
    measure(Spec(kind="udp", flows=flows, length=64, frames=2048))


@pytest.mark.benchmark(group="held")
@pytest.mark.parametrize("flows", [1, 64])
def test_hold_and_commit(measure: Measure, flows: int) -> None:
    """Small segments of the primary alone, then a commit: what a record costs."""
    measure(Spec(kind="commit", flows=flows, length=64, frames=4096))
