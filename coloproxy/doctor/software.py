# SPDX-License-Identifier: Apache-2.0
"""Python, OpenSSL, the preload library for TCG, systemd's unit."""

from __future__ import annotations

import shutil
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from coloproxy.errors import VmmError
from coloproxy.vmm.acceleration import find_shim

from .check import Finding, Subject, check, fail, ok, warn

_UNIT: Final = "coloproxy@.service"
_UNIT_DIRECTORIES: Final = (
    "etc/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
_OLDEST_SSL: Final = (3, 0)


@check("python", "Python and OpenSSL")
def python(subject: Subject) -> Iterator[Finding]:
    yield from judge_versions(sys.version_info[:3], ssl.OPENSSL_VERSION_INFO[:2], ssl.OPENSSL_VERSION, ssl.HAS_TLSv1_3)


def judge_versions(
    python_version: tuple[int, ...], openssl: tuple[int, ...], openssl_text: str, has_tls13: bool
) -> Iterator[Finding]:
    text = f"Python {'.'.join(map(str, python_version))}, {openssl_text}"
    if python_version < (3, 11):
        yield fail(text, "Python 3.11 or later is needed")
    elif openssl < _OLDEST_SSL or not has_tls13:
        yield fail(text, "OpenSSL 3.0 or later is needed: the link speaks TLS 1.3 with it")
    else:
        yield ok(text)


@check("tcg-shim", "the library that QEMU must preload where there is no KVM")
def shim(subject: Subject) -> Iterator[Finding]:
    try:
        yield ok(f"{find_shim().name} is there")
    except VmmError as error:
        compiler = shutil.which("cc") or shutil.which("gcc")
        yield warn(
            str(error), "only needed without KVM" if compiler else "only needed without KVM; there is no C compiler"
        )


@check("systemd", "the service's unit")
def unit(subject: Subject) -> Iterator[Finding]:
    if not (subject.root / "run/systemd/system").is_dir():
        yield warn("this system does not run systemd", "see that something starts coloproxy again when it ends")
        return
    for directory in _UNIT_DIRECTORIES:
        if (path := subject.root / directory / _UNIT).is_file():
            yield ok(str(path))
            return
    yield warn(f"there is no {_UNIT}", f"cp packaging/systemd/{_UNIT} {Path('/etc/systemd/system')} (docs/control.md)")
