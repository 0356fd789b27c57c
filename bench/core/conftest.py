# SPDX-License-Identifier: Apache-2.0
"""How long the suites in this directory measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from core.library import Built, Spec, Workload, build
from core.sizes import Measure, cold_frames
from suite.machine import last_cache, machine, versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a smoke run: few rounds of small workloads")


def pytest_benchmark_update_json(output_json: dict[str, object]) -> None:
    """The report wants to know on what it was measured in the words of the other documents."""
    output_json["coloproxy"] = {"machine": machine(), "versions": versions()}


@pytest.fixture(scope="session")
def built() -> Built:
    return build()


@pytest.fixture
def measure(benchmark: BenchmarkFixture, built: Built, request: pytest.FixtureRequest) -> Measure:
    """Measures one pass of a workload a round; frames=0: as many as are out of the caches; evict=1: all of them."""
    quick = bool(request.config.getoption("--quick"))

    def run(spec: Spec) -> None:
        cold = spec.frames == 0
        spec = replace(
            spec,
            frames=spec.frames or cold_frames(spec.length, quick),
            evict=2 * last_cache() if spec.evict and not quick else 0,
        )
        with Workload(spec, built) as workload:
            rounds = 3 if quick else 15 if cold or spec.flows > 1000 else 101
            benchmark.extra_info.update(
                flows=spec.flows,
                frames=workload.frames,
                bytes=workload.bytes,
                length=spec.length,
                cold=bool(spec.evict),
            )
            benchmark.pedantic(workload.run, setup=workload.fill, rounds=rounds, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
        if benchmark.stats is not None:
            seconds = benchmark.stats.stats.median
            benchmark.extra_info.update(
                ns_per_frame=seconds * 1e9 / workload.frames, gbit_per_s=workload.bytes * 8 / seconds / 1e9
            )

    return run
