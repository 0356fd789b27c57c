# SPDX-License-Identifier: Apache-2.0
"""Servers from Debian's packages but not installed: of a VM nginx, OpenSSH, dnsmasq.

Installing them would start servers on this machine, or enable them for its next boot; so their packages, and those
that they need and this machine lacks, are unpacked into the cache.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .debian import command, unpack_package, update_index
from .errors import GuestError
from .guest import cache_directory
from .programs import kept_once

PROGRAMS = {
    "iperf3": "iperf3",
    "ethtool": "ethtool",
    "ping": "iputils-ping",
    "dig": "bind9-dnsutils",
    "ssh": "openssh-client",
    "openssl": "openssl",
    "unshare": "util-linux",
}
"""Programs that must be installed here besides those of every test bed, each with its Debian package."""

_PACKAGES = ("nginx", "libnginx-mod-http-headers-more-filter", "openssh-server", "dnsmasq-base")
_DIRECTORY = "server-packages"
_TO_INSTALL = re.compile(r"^Inst (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ServerPrograms:
    """Where they are."""

    root: Path

    @property
    def nginx(self) -> Path:
        """The web server."""
        return self.root / "usr/sbin/nginx"

    @property
    def nginx_headers_more(self) -> Path:
        """Its module that sets any header."""
        return self.root / "usr/lib/nginx/modules/ngx_http_headers_more_filter_module.so"

    @property
    def sshd(self) -> Path:
        """The SSH server."""
        return self.root / "usr/sbin/sshd"

    @property
    def dnsmasq(self) -> Path:
        """The DNS server."""
        return self.root / "usr/sbin/dnsmasq"

    @property
    def environment(self) -> dict[str, str]:
        """What they must have in their environment to find their libraries."""
        directories = sorted({str(path.parent) for path in (self.root / "usr/lib").glob("*-linux-*/*.so*")})
        return {"LD_LIBRARY_PATH": ":".join(directories)} if directories else {}


def server_programs(cache: Path | None = None) -> ServerPrograms:
    """From the cache; blocks, and downloads them the first time.  Raises GuestError."""
    return ServerPrograms(kept_once((cache or cache_directory()) / _DIRECTORY, _unpack_wanted))


def copy_programs(programs: ServerPrograms, into: Path) -> ServerPrograms:
    """A copy that users without privileges can read, wherever the cache is.  *into* must not exist."""
    for part in ("usr/sbin", "usr/lib"):
        shutil.copytree(programs.root / part, into / part, symlinks=True)
    return ServerPrograms(into)


def _unpack_wanted(into: Path) -> None:
    for package in _wanted():
        unpack_package(package, into)


def _wanted() -> list[str]:
    argv = ["apt-get", "--quiet", "--simulate", "--no-install-recommends", "install", *_PACKAGES]
    try:
        plan = command(argv)
    except GuestError:  # apt may know of none yet
        update_index()
        plan = command(argv)
    return sorted({*_PACKAGES, *_TO_INSTALL.findall(plan)})
