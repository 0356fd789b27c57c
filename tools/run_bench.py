# SPDX-License-Identifier: Apache-2.0
"""Runs all that bench/ measures, one after the other, and makes the report: `make bench`.

Documents, report.html and report.md go to build/bench. What fails doesn't stop the rest; the exit status tells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / "build" / "bench"
GUESTS = TOP / "bench" / "guests.py"


def steps(quick: bool) -> dict[str, list[str]]:
    """Name: command. Each writes OUT/NAME.json."""
    python, some = sys.executable, ["--quick"] if quick else []
    core = [python, "-m", "pytest", "--import-mode=importlib", "-q", "bench/core"]
    found = {
        "core": [*core, f"--benchmark-json={OUT / 'core.json'}", *some],
        "side_by_side": [python, "bench/side_by_side.py", "--json", str(OUT / "side_by_side.json"), *some],
        "scaling": [python, "bench/scaling.py", "--json", str(OUT / "scaling.json"), *some],
    }
    found["tap"] = [python, "bench/tap.py", "--json", str(OUT / "tap.json"), *some]
    if GUESTS.exists():
        found["guests"] = [python, str(GUESTS.relative_to(TOP)), "--json", str(OUT / "guests.json"), *some]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures are no figures")
    options = parser.parse_args()

    from coloproxy.testbed import install_missing

    install_missing(lambda step: print(step, flush=True))
    OUT.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, command in steps(options.quick).items():
        (OUT / f"{name}.json").unlink(missing_ok=True)  # the report shall not show an older one beside the others
        begin = time.monotonic()
        print(f"== {name}: {' '.join(command[1:])}", flush=True)
        # pytest would put this directory first, and the package in it; programs need what lies beside them.
        safe = {"PYTHONSAFEPATH": "1"} if "pytest" in command else {}
        if subprocess.run(command, cwd=TOP, env={**os.environ, **safe}, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - begin:.0f} s", flush=True)
    if subprocess.run([sys.executable, "bench/report.py"], cwd=TOP, check=False).returncode:
        failed.append("report")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
