# SPDX-License-Identifier: Apache-2.0
"""A client of VMs that are namespaces: what client.py is, and a call for each of their other services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from .client import Client, url
from .errors import ProcessError
from .guest_files import GUEST_IPV4, GUEST_IPV6, HTTP_PORT
from .services import DNS_NAME, DNS_PORT, H2_PORT, IPERF_PORTS, SSH_PORT, TLS_PORT

Direction = Literal["client_to_vm", "vm_to_client"]


class VmClient(Client):
    """Runs commands in the client's namespace."""

    def __init__(self, namespace: str, key: Path) -> None:
        """*key*: the private key for ssh()."""
        super().__init__(namespace)
        self._key = key

    async def get_http2(self, path: str, *, tls: bool, ipv6: bool = False, deadline: float = 30.0) -> bytes:
        """Fetch a page by HTTP/2, over TLS or plain.  Raises ProcessError unless the answer is 2xx."""
        where = url(path, port=TLS_PORT if tls else H2_PORT, ipv6=ipv6)
        how = ["--insecure", "--http2"] if tls else ["--http2-prior-knowledge"]
        argv = ["curl", "--silent", "--show-error", "--fail", *how, "--write-out", "%{stderr}%{http_version}"]
        done = (await self.run(*argv, where.replace("http:", "https:") if tls else where, deadline=deadline)).check()
        if done.stderr != b"2":
            raise ProcessError(f"{where}: not HTTP/2: {done.stderr.decode(errors='replace')}")
        return done.stdout

    async def put(self, name: str, body: bytes, *, ipv6: bool = False, deadline: float = 30.0) -> None:
        """Upload to nginx; VmServices.put_file() of either VM has what arrived there.  Raises ProcessError."""
        argv = ["curl", "--silent", "--show-error", "--fail", "--upload-file", "-"]
        where = url(f"/put/{name}", port=HTTP_PORT, ipv6=ipv6)
        (await self.run(*argv, where, stdin=body, deadline=deadline)).check()

    async def ssh(self, command: str, *, stdin: bytes = b"", ipv6: bool = False, deadline: float = 30.0) -> bytes:
        """Run a shell command in the VM and return what it wrote.  Raises ProcessError."""
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self._key),
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
        }
        argv = ["ssh", "-F", "none", "-p", str(SSH_PORT), *(f"-o{name}={value}" for name, value in options.items())]
        argv.append(f"nobody@{GUEST_IPV6 if ipv6 else GUEST_IPV4}")
        return (await self.run(*argv, command, stdin=stdin, deadline=deadline)).check().stdout

    async def iperf3(
        self, direction: Direction, *, count: int, ipv6: bool = False, deadline: float = 60.0
    ) -> dict[str, Any]:
        """Send that many bytes and return iperf3's report.  Raises ProcessError."""
        argv = ["iperf3", "--client", GUEST_IPV6 if ipv6 else GUEST_IPV4, "--port", str(IPERF_PORTS[direction])]
        argv += ["--json", "--connect-timeout", "3000", "--bytes", str(count)]
        if direction == "vm_to_client":
            argv.append("--reverse")
        done = await self.run(*argv, deadline=deadline)
        try:
            report: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            report = {}
        if "error" in report or "sum_received" not in report.get("end", {}):
            raise ProcessError(f"iperf3: {report.get('error') or done.stderr.decode(errors='replace') or 'no result'}")
        return report

    async def resolve(
        self, name: str = DNS_NAME, kind: str = "A", *, tcp: bool = False, ipv6: bool = False, deadline: float = 10.0
    ) -> list[str]:
        """Ask the VM's DNS server, once; the records of the answer as text.  Raises ProcessError."""
        server = GUEST_IPV6 if ipv6 else GUEST_IPV4
        argv = ["dig", f"@{server}", "-p", str(DNS_PORT), "+short", "+tries=1", "+time=5", "+tcp" if tcp else "+notcp"]
        done = (await self.run(*argv, kind, name, deadline=deadline)).check()
        return done.stdout.decode().splitlines()

    async def ping(
        self, count: int = 3, *, size: int = 56, ipv6: bool = False, interval: float = 0.3, deadline: float = 30.0
    ) -> int:
        """Send so many echo requests; returns how many were answered, duplicates not counted.

        For the last answer ping waits for an interval (s), or two round trips if these are longer.
        """
        argv = ["ping", "-6" if ipv6 else "-4", "-n", "-c", str(count), "-s", str(size), "-i", str(interval), "-W", "1"]
        done = await self.run(*argv, GUEST_IPV6 if ipv6 else GUEST_IPV4, deadline=deadline)
        for line in done.stdout.decode().splitlines():
            if " packets transmitted, " in line:
                return int(line.split(", ")[1].split()[0])
        raise ProcessError(f"ping: {done.stderr.decode(errors='replace').strip() or 'no result'}")
