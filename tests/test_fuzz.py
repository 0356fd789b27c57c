# SPDX-License-Identifier: Apache-2.0
"""Each libFuzzer target builds, and a few thousand executions from its seeds, the same ones each time, break nothing.

`make fuzz T=60` runs them for as long as one likes: docs/testing.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.targets import HERE, TARGETS, Target, build, clang_missing, run, write_seeds

RUNS = 5000

pytestmark = pytest.mark.skipif(clang_missing() is not None, reason=f"no {clang_missing()}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz")
    build(directory)
    return directory


def test_every_target_is_run_and_names_its_invariant() -> None:
    files = sorted(HERE.glob("fuzz_*.c"))
    assert [path.stem for path in files] == sorted(target.file for target in TARGETS)
    for path in files:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("/* ")
        assert first.endswith(". */")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_breaks_in_a_short_run(target: Target, built: Path, tmp_path: Path) -> None:
    assert write_seeds(target, tmp_path) > 0
    result = run(target, built, tmp_path, f"-runs={RUNS}", "-seed=1")
    assert result.crash is None, f"{result.crash}\n{result.output[-8000:]}"
    assert result.executions >= RUNS
