# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's schedules, against the model: the kept seeds, and each with bytes changed at random (a fixed seed)."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from fuzz.schedule import decode, describe, play
from fuzz.targets import SEEDS, build, clang_missing

KEPT = sorted((SEEDS / "schedule").iterdir())


def variants(count: int) -> list[bytes]:
    """Each kept schedule with a few bytes changed, doubled or left out."""
    dice = random.Random(3)
    out = []
    for number in range(count):
        data = bytearray(KEPT[number % len(KEPT)].read_bytes())
        for _ in range(dice.randint(1, 8)):
            at = dice.randrange(len(data))
            how = dice.randrange(3)
            if how == 0:
                data[at] = dice.choice((dice.randrange(256), data[at] ^ 1 << dice.randrange(8)))
            elif how == 1:
                data[at:at] = data[at : at + dice.randint(1, 9)]
            elif len(data) > 20:
                del data[at : at + dice.randint(1, 9)]
        out.append(bytes(data))
    return out


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_the_model_agrees_on_a_kept_schedule(path: Path) -> None:
    assert len(play(path.read_bytes())) > 5


def test_the_model_agrees_on_variants() -> None:
    for data in variants(300):
        try:
            play(data)
        except AssertionError as error:
            error.add_note(f"input {data.hex()}")
            raise


@pytest.mark.skipif(clang_missing() is not None, reason=f"no {clang_missing()}")
def test_both_decoders_read_the_same_steps(tmp_path: Path) -> None:
    build(tmp_path, "schedule")
    inputs = [path.read_bytes() for path in KEPT] + variants(200)
    files = []
    for number, data in enumerate(inputs):
        files.append(tmp_path / f"input{number:04}")
        files[-1].write_bytes(data)
    command = [str(tmp_path / "fuzz_schedule"), "-print", *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [line for data in inputs for line in describe(decode(data)).splitlines()]
