# SPDX-License-Identifier: Apache-2.0
"""Builds the libFuzzer targets of tests/fuzz/, runs each for a while, and says what they did.

The corpus grows in tests/fuzz/build/corpus/ and is used again by the next run; an input that breaks something is kept
in tests/fuzz/build/crashes/. docs/testing.md tells what to do with it. Exit status 1: something broke.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from requirements import install_missing_tools

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from fuzz.schedule import play  # noqa: E402
from fuzz.targets import TARGETS, build, run, write_seeds  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default 60)")
    parser.add_argument("--build", type=Path, default=TOP / "tests" / "fuzz" / "build", help="where to build")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(t.name for t in TARGETS))
    options = parser.parse_args()
    unknown = set(options.targets) - {target.name for target in TARGETS}
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")

    install_missing_tools(lambda step: print(step, flush=True))
    directory: Path = options.build.resolve()
    build(directory)
    os.nice(10)
    broken = False
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        corpus = directory / "corpus" / target.name
        write_seeds(target, corpus)
        before = time.monotonic()
        result = run(target, directory, corpus, f"-max_total_time={options.seconds}")
        seconds = time.monotonic() - before
        entries = len(list(corpus.iterdir()))
        print(f"{target.name:10} {result.executions:12,} executions in {seconds:.0f} s, {entries} inputs in the corpus",
              flush=True)  # fmt: skip
        if result.crash:
            broken = True
            print(f"{target.name} broke on {result.crash}:\n{result.output[-6000:]}", flush=True)
        if target.name == "schedule":
            broken |= not model_agrees(corpus, options.seconds)
    return int(broken)


def model_agrees(corpus: Path, seconds: int) -> bool:
    """Plays the newest inputs of the corpus against the Python model, for at most `seconds`."""
    newest = sorted(corpus.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    end, played, good = time.monotonic() + seconds, 0, True
    for path in newest:
        if time.monotonic() > end:
            break
        try:
            play(path.read_bytes())
        except AssertionError as error:
            good = False
            print(f"the model rejects {path}: {error}\n" + "\n".join(getattr(error, "__notes__", [])), flush=True)
        played += 1
    print(f"{'model':10} {played:12,} schedules of {len(newest):,} played", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
