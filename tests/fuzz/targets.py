# SPDX-License-Identifier: Apache-2.0
"""Builds the libFuzzer targets, gives them seeds, runs them and counts what they did."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coloproxy.capture import read_capture

HERE = Path(__file__).resolve().parent
CAPTURES = HERE.parent / "captures"
SEEDS = HERE / "seeds"
"""Hand-picked inputs and, of each crash found, the input: one directory a target."""


@dataclass(frozen=True)
class Target:
    """One fuzz_NAME.c. `max_len`: bytes of an input; longer ones find nothing new, slower."""

    name: str
    max_len: int

    @property
    def file(self) -> str:
        return f"fuzz_{self.name}"


TARGETS = (
    Target("parse", 512),
    Target("framing", 1024),
    Target("input", 1024),
    Target("gate", 512),
    Target("schedule", 512),
    Target("rewriter", 512),
    Target("link", 512),
    Target("route", 512),
    Target("inherit", 1200),
)


@dataclass(frozen=True)
class Result:
    target: Target
    executions: int
    seconds: int
    crash: Path | None  # the input that broke it
    output: str


def build(directory: Path, only: str = "") -> None:
    """Builds all targets in `directory`, or only that one. Raises CalledProcessError with make's words."""
    jobs = min(2, os.cpu_count() or 1)
    command = ["make", "-s", "-C", str(HERE), f"-j{jobs}", f"BUILD={directory}", f"ONLY={only}"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def write_seeds(target: Target, directory: Path) -> int:
    """Puts a seed corpus for the target into `directory`; returns how many files that are."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = SEEDS / target.name
    seeds = [path.read_bytes() for path in sorted(kept.iterdir())] if kept.is_dir() else []
    if target.name == "parse":
        seeds += [b"\0\x07" + frame for frame in _captured(target.max_len - 2)]
    elif target.name in ("framing", "input"):
        seeds += list(_streams(target, _captured(90)))
    for number, seed in enumerate(seeds):
        (directory / f"seed{number:04}").write_bytes(seed[: target.max_len])
    return len(seeds)


def _captured(longest: int) -> list[bytes]:
    """The frames of the golden captures, one of each kind and length, the short ones."""
    kinds: dict[bytes, bytes] = {}
    for path in sorted(CAPTURES.glob("*.pcap*")):
        for frame in read_capture(path):
            data = frame.data
            if len(data) <= longest:
                kinds.setdefault(data[12:24] + len(data).to_bytes(2) + data[46:48], data)
    return list(kinds.values())


def _streams(target: Target, frames: list[bytes]) -> Iterator[bytes]:
    """Framed streams of a few frames each: bytes before them choose options, cuts and acts."""
    for start in range(0, len(frames), 8):
        some = frames[start : start + 8]
        plain = b"".join(len(f).to_bytes(4) + f for f in some)
        vnet = b"".join((len(f) + n).to_bytes(4) + n.to_bytes(4) + bytes(n) + f
                        for f, n in zip(some, (0, 10, 12) * 3, strict=False))  # fmt: skip
        for options, stream in ((0, plain), (1, vnet)):
            if target.name == "input":
                acts = bytes([0xFC, 1, 0xFE, 0x50, 1, 2, 3] * 4)  # send, read, take; ...; and give back
                yield bytes([options, len(acts)]) + acts + stream
            else:
                yield bytes([options | 2, start & 0xFF]) + stream


def run(target: Target, build_directory: Path, corpus: Path, *options: str, timeout: float | None = None) -> Result:
    """Runs one target on `corpus`, which grows. `options` are libFuzzer's: -runs=N, -max_total_time=S, -seed=N."""
    crashes = build_directory / "crashes"
    crashes.mkdir(exist_ok=True)
    prefix = crashes / f"{target.name}-"
    before = set(crashes.iterdir())
    command = [
        str(build_directory / target.file),
        f"-max_len={target.max_len}",
        f"-artifact_prefix={prefix}",
        "-timeout=20",  # seconds for one input: what takes so long is a finding too
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        *options,
        str(corpus),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    new = sorted(set(crashes.iterdir()) - before)
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    seconds = re.search(r"Done \d+ runs in (\d+) second", done.stderr)
    failed = new[0] if new else None
    if done.returncode and failed is None:
        failed = prefix  # it ended without an input to blame: a leak of the process, or it could not begin
    return Result(
        target, int(executions[1]) if executions else 0, int(seconds[1]) if seconds else 0, failed, done.stderr
    )


def clang_missing() -> str | None:
    """What the targets need and this machine lacks."""
    if shutil.which("clang") is None:
        return "clang"
    where = subprocess.run(["clang", "-print-runtime-dir"], capture_output=True, text=True, check=True).stdout.strip()
    return None if any(Path(where).glob("libclang_rt.fuzzer*")) else "libFuzzer (Debian: libclang-rt-VERSION-dev)"
