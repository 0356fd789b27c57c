# SPDX-License-Identifier: Apache-2.0
"""Runs the test suite against the installed package; `--all` insists that nothing is left out.

With --all a test that would be skipped fails instead (COLOPROXY_REQUIRE_ALL, see tests/conftest.py), and what the
real VMs and the tests' own tools need is installed first. Everything behind the options goes to pytest.

Tests of whole VMs come last, and alone: with other work beside them, hosts that are only busy are taken for dead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from requirements import install_missing_tools

TOP = Path(__file__).resolve().parent.parent
WITH_VMS, WITHOUT = ("-m", "e2e"), ("-m", "not e2e")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--all", action="store_true", help="with real VMs (root, Debian); a skipped test is a failure")
    options, pytest_args = parser.parse_known_args()

    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # test what is installed, not what lies in this directory
    if options.all:
        environment["COLOPROXY_REQUIRE_ALL"] = "1"
        from coloproxy.testbed import install_missing

        install_missing(lambda step: print(step, flush=True))
        install_missing_tools(lambda step: print(step, flush=True))
    else:
        pytest_args = [*WITHOUT, *pytest_args]
    if options.all and not pytest_args:
        return run_both(environment)
    return subprocess.run(pytest(pytest_args), cwd=TOP, env=environment, check=False).returncode


def pytest(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments]


def run_both(environment: Mapping[str, str]) -> int:
    """The exit status is 0 only if both are well."""
    codes = [
        subprocess.run(pytest(part), cwd=TOP, env=environment, check=False).returncode for part in (WITHOUT, WITH_VMS)
    ]
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
