# SPDX-License-Identifier: Apache-2.0
"""What the benchmark adds to the test bed's guest: nginx with one small page, and an iperf3 server.

The guest's own web server (busybox) closes each connection after one answer; nginx keeps it. iperf3 is installed on
this machine, whose client it is as well. nginx is unpacked into the cache and not installed: installing it would start
a server on this machine.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from coloproxy.testbed.addition import AddedFile, Addition, program_files
from coloproxy.testbed.debian import command, unpack_package
from coloproxy.testbed.guest import cache_directory

PROGRAMS = {"iperf3": "iperf3"}
"""Programs that must be installed here, each with its Debian package."""

NGINX_PORT = 8081
IPERF_PORTS = {"client_to_guest": 5201, "guest_to_client": 5202}
"""By direction. The second server sends zeros. Of its own data, iperf3 sends the buffer's beginning once more after
each write that the socket took in part: so the two VMs would say different bytes, and a checkpoint for each would be
right (as it would with iperf3's usual random data)."""

PAGE = "/small"
PAGE_CONTENT = (b"0123456789abcdef" * 64)[:1024]

_NGINX_DIRECTORY = "nginx-package"
_NGINX_CONFIGURATION = f"""\
user root;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    default_type text/plain;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    server {{
        listen {NGINX_PORT};
        root /served;
    }}
}}
"""
_START = f"""\
mkdir -p /var/lib/nginx /run
/usr/bin/nginx -e stderr -c /etc/nginx.conf
serve() {{ while :; do /usr/bin/iperf3 --server "$@" > /dev/null 2>&1; sleep 0.1; done }}
serve --port {IPERF_PORTS["client_to_guest"]} &
serve --port {IPERF_PORTS["guest_to_client"]} --file /dev/zero &
"""


def addition() -> Addition:
    """Both servers; blocks, and downloads nginx the first time.  Raises GuestError."""
    files = {
        **program_files(_nginx(cache_directory()), "nginx"),
        **program_files(Path(shutil.which("iperf3") or "/usr/bin/iperf3"), "iperf3"),
        "etc/nginx.conf": AddedFile(_NGINX_CONFIGURATION.encode()),
        "etc/passwd": AddedFile(b"root:x:0:0:root:/:/bin/sh\n"),
        "etc/group": AddedFile(b"root:x:0:\n"),
        f"served{PAGE}": AddedFile(PAGE_CONTENT),
    }
    return Addition(files, _START)


def versions() -> dict[str, str]:
    """Of nginx and iperf3."""
    return {
        "nginx": command(["sh", "-c", f"{_nginx(cache_directory())} -v 2>&1"]).strip().rpartition("/")[2],
        "iperf3": command(["iperf3", "--version"]).split()[1],
    }


def _nginx(cache: Path) -> Path:
    place = cache / _NGINX_DIRECTORY
    program = place / "usr/sbin/nginx"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="downloading-", dir=cache) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            unpack_package("nginx", whole)
            with contextlib.suppress(OSError):  # somebody else was quicker
                whole.rename(place)
    return program
