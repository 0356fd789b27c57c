# SPDX-License-Identifier: Apache-2.0
"""Runs the test suite against the installed package; `--all` insists that nothing is left out.

With --all a test that would be skipped fails instead (COLOPROXY_REQUIRE_ALL, see tests/conftest.py), and what the
real VMs and the tests' own tools need is installed first. Everything behind the options goes to pytest.

Tests of whole VMs wait for most of their time, so with --all, and nothing for pytest, the others run beside them, in a
process of their own and with lower priority; what that one has said is printed when the first is done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from requirements import install_missing_tools

TOP = Path(__file__).resolve().parent.parent
WITH_VMS, WITHOUT = ("-m", "e2e"), ("-m", "not e2e")
BESIDE = 10
"""Niceness of what runs beside the VMs."""


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
    aside = ["nice", "-n", str(BESIDE), *pytest(["-p", "no:cacheprovider", *WITHOUT])]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(aside, cwd=TOP, env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL) as other,
    ):
        try:
            code = subprocess.run(pytest(WITH_VMS), cwd=TOP, env=environment, check=False).returncode
            code = other.wait() or code
        finally:
            other.terminate()
        said.seek(0)
        print(f"\nbeside it, {' '.join(WITHOUT)}:\n", flush=True)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
