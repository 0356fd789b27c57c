# SPDX-License-Identifier: Apache-2.0
"""Damaged captures, from the golden ones with a fixed seed: frames or a CaptureError that names the file."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from coloproxy.capture import CaptureError, read_capture

GOLDEN = [path for path in sorted((Path(__file__).parent / "captures").glob("*.pcap*")) if path.stat().st_size < 5000]
ROUNDS = 60


def damage(dice: random.Random, data: bytearray) -> None:
    """A few changes; half of them are lengths and types, which lie near the front of a block."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data)) if dice.random() < 0.5 else dice.randrange(min(len(data), 160))
        how = dice.randrange(5)
        if how == 0:
            data[at] = dice.randrange(256)
        elif how == 1:
            data[at : at + 4] = dice.choice((0, 1, 3, 12, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)).to_bytes(
                4, dice.choice(("little", "big"))
            )
        elif how == 2:
            del data[at : at + dice.randint(1, 40)]
        elif how == 3:
            data[at:at] = data[at : at + dice.randint(1, 200)]
        else:
            del data[at:]
        if not data:
            return


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_a_damaged_capture_is_read_or_refused(golden: Path, tmp_path: Path) -> None:
    dice = random.Random(golden.name)
    packed = golden.suffix == ".gz"
    plain = gzip.decompress(golden.read_bytes()) if packed else golden.read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for number in range(ROUNDS):
        data = bytearray(plain)
        damage(dice, data)
        if packed and number % 2:
            data = bytearray(gzip.compress(bytes(data), mtime=0))
            if number % 4 == 1:
                damage(dice, data)
        path.write_bytes(data)
        try:
            for frame in read_capture(path):
                assert frame.wire_len >= len(frame.data)
        except CaptureError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 0
