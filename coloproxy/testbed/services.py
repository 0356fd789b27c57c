# SPDX-License-Identifier: Apache-2.0
"""The servers of a VM that is a namespace: real programs, the same content in both VMs, TCP stacks of their own.

| port          | server         | equal on both VMs? |
|---------------|----------------|--------------------|
| 80            | nginx HTTP/1.1, also PUT below /put/ | yes: the date is fixed, the files are the same |
| 8082          | nginx HTTP/2 without TLS             | yes |
| 443           | nginx HTTP/2 over TLS                | no: each draws keys of its own |
| 8080          | upload_server.py                     | yes |
| 5201          | iperf3, client to VM                 | up to the results at the end |
| 5202          | iperf3, VM to client, zeros          | up to the results at the end |
| 22            | sshd                                 | no: each draws keys of its own |
| 53, UDP + TCP | dnsmasq                              | yes |

All but the upload server run as nobody, the upload server as root without any capability (it runs on our Python, which
nobody may not reach).  Each is one process, or the first of a process namespace: when it goes, all of it goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from .debian import command
from .errors import DeadlineError
from .guest import large_file
from .guest_files import GUEST_IPV4, GUEST_IPV6, HELLO, HTTP_PORT, UPLOAD_PORT
from .process import Daemon, run
from .server_programs import ServerPrograms, copy_programs, server_programs

Service = Literal["nginx", "upload", "iperf3", "sshd", "dnsmasq"]
ALL_SERVICES: Final[frozenset[Service]] = frozenset(get_args(Service))

TLS_PORT: Final = 443
H2_PORT: Final = 8082
"""HTTP/2 without TLS, from the first byte on ("prior knowledge")."""
IPERF_PORTS: Final = {"client_to_vm": 5201, "vm_to_client": 5202}
"""By direction.  The second server sends zeros: iperf3's own data differ between two servers."""
SSH_PORT: Final = 22
DNS_PORT: Final = 53
DNS_NAME: Final = "vm.bed.test"
DNS_TEXT: Final = "text.bed.test"
DNS_TEXT_VALUE: Final = "an answer of some length " * 9

_NOBODY: Final = 65534
_AS_NOBODY: Final = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
_HARDENED: Final = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=KILL", "--"]
_LISTENING: Final = "0A"
_FIXED_TIME: Final = 1_767_225_600  # 2026-01-01, of every file
_UP_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.02

_NGINX: Final = """\
load_module {module};
daemon off;
master_process off;
pid {own}/nginx/pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    default_type application/octet-stream;
    more_set_headers "Date: Thu, 01 Jan 2026 00:00:00 GMT";
    client_max_body_size 0;
    client_body_temp_path {own}/nginx/body;
    proxy_temp_path {own}/nginx/proxy;
    fastcgi_temp_path {own}/nginx/fastcgi;
    uwsgi_temp_path {own}/nginx/uwsgi;
    scgi_temp_path {own}/nginx/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    ssl_certificate {content}/tls.crt;
    ssl_certificate_key {content}/tls.key;
    server {{
        listen [::]:{http} ipv6only=off;
        listen [::]:{h2} ipv6only=off http2;
        listen [::]:{tls} ipv6only=off ssl http2;
        root {content}/www;
        location /put/ {{
            root {own};
            dav_methods PUT;
        }}
    }}
}}
"""
_SSHD: Final = """\
Port {port}
HostKey {content}/host_key
AuthorizedKeysFile {content}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


@dataclass(frozen=True, slots=True)
class Content:
    """What the servers of both VMs share, and may only read."""

    directory: Path
    programs: ServerPrograms
    large_sha256: str

    @property
    def client_key(self) -> Path:
        """The client's key for ssh."""
        return self.directory / "client_key"


def prepare_content(directory: Path, large_bytes: int) -> Content:
    """Make web pages, keys and certificates below *directory*, which must not exist; blocks.

    hello.txt is guest_files.HELLO; large.bin the first *large_bytes* of guest.large_file.  Raises GuestError.
    """
    www = directory / "www"
    www.mkdir(parents=True)
    large = large_file(large_bytes)
    for name, data in {"hello.txt": HELLO, "large.bin": large}.items():
        (www / name).write_bytes(data)
        os.utime(www / name, (_FIXED_TIME, _FIXED_TIME))  # Last-Modified and ETag
    certificate = ["-subj", f"/CN={DNS_NAME}", "-addext", f"subjectAltName=IP:{GUEST_IPV4},IP:{GUEST_IPV6}"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", f"{directory}/tls.key"]
    command(["openssl", "req", "-x509", "-days", "3650", *key, *certificate, "-out", f"{directory}/tls.crt"])
    for name in ("host_key", "client_key"):
        command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test bed", "-f", f"{directory}/{name}"])
    for name in ("tls.key", "host_key"):
        os.chown(directory / name, _NOBODY, _NOBODY)
    # A shell for nobody and an account that isn't locked, seen by sshd alone.
    (directory / "passwd").write_text(f"nobody:x:{_NOBODY}:{_NOBODY}::/tmp:/bin/sh\n")
    (directory / "shadow").write_text("nobody:*:1::::::\n")
    return Content(
        directory, copy_programs(server_programs(), directory / "programs"), hashlib.sha256(large).hexdigest()
    )


class VmServices:
    """The running servers of one VM."""

    def __init__(self, namespace: str, content: Content, directory: Path) -> None:
        """*directory*: of this VM alone; is made, and removed by whoever removes what it is in."""
        self.namespace = namespace
        self.directory = directory
        self.daemons: dict[str, Daemon] = {}
        self._content = content

    async def start(self, which: Collection[Service] = ALL_SERVICES) -> None:
        """Returns once all of them listen.  Raises ProcessError or DeadlineError."""
        self.directory.mkdir(exist_ok=True)
        for name in ("put", "nginx"):
            (self.directory / name).mkdir(exist_ok=True)
            os.chown(self.directory / name, _NOBODY, _NOBODY)
        starters = {
            "nginx": self._start_nginx,
            "upload": self._start_upload,
            "iperf3": self._start_iperf3,
            "sshd": self._start_sshd,
            "dnsmasq": self._start_dnsmasq,
        }
        ports: set[str] = set()
        for service in sorted(which):
            ports |= await starters[service]()
        await self._listening(ports)

    async def restart(self, service: Service) -> None:
        """Kill it, with all that it was doing for anybody, and start it anew.  Raises as start() does."""
        for name in [name for name in self.daemons if name.partition("-")[0] == service]:
            await self.daemons.pop(name).kill()
        await self.start([service])

    def put_file(self, name: str) -> bytes:
        """What a client has put to /put/*name*."""
        return (self.directory / "put" / name).read_bytes()

    def check(self) -> None:
        """Raise ProcessError if one of them has ended."""
        for daemon in self.daemons.values():
            daemon.check()

    async def kill(self) -> None:
        """SIGKILL all of them, as a power cut would."""
        for daemon in self.daemons.values():
            daemon.signal(signal.SIGKILL)
        for daemon in self.daemons.values():
            await daemon.kill()

    async def _start_nginx(self) -> set[str]:
        programs, content, own = self._content.programs, self._content.directory, self.directory
        configuration = own / "nginx.conf"
        configuration.write_text(
            _NGINX.format(
                module=programs.nginx_headers_more,
                own=own,
                content=content,
                http=HTTP_PORT,
                h2=H2_PORT,
                tls=TLS_PORT,
            )
        )
        argv = [*_AS_NOBODY, *_HARDENED, str(programs.nginx), "-e", "stderr", "-p", str(own), "-c", str(configuration)]
        await self._start("nginx", argv)
        return {f"tcp {port}" for port in (HTTP_PORT, H2_PORT, TLS_PORT)}

    async def _start_upload(self) -> set[str]:
        argv = ["setpriv", *_HARDENED, sys.executable, "-P", "-m", "coloproxy.testbed.upload_server"]
        await self._start("upload", [*argv, "--port", str(UPLOAD_PORT)])
        return {f"tcp {UPLOAD_PORT}"}

    async def _start_iperf3(self) -> set[str]:
        for direction, port in IPERF_PORTS.items():
            argv = [*_AS_NOBODY, *_HARDENED, "iperf3", "--server", "--port", str(port)]
            if direction == "vm_to_client":
                argv += ["--file", "/dev/zero"]
            await self._start(f"iperf3-{port}", argv)
        return {f"tcp {port}" for port in IPERF_PORTS.values()}

    async def _start_sshd(self) -> set[str]:
        content, configuration = self._content.directory, self.directory / "sshd_config"
        configuration.write_text(_SSHD.format(port=SSH_PORT, content=content))
        sshd = [str(self._content.programs.sshd), "-D", "-e", "-f", str(configuration)]
        # Process and mount namespaces of its own: sshd has children, and needs a user with a shell.
        script = "".join(f'mount --bind "{content}/{name}" /etc/{name} && ' for name in ("passwd", "shadow"))
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c"]
        await self._start("sshd", [*argv, script + 'exec "$@"', "sh", *_AS_NOBODY, *_HARDENED, *sshd])
        return {f"tcp {SSH_PORT}"}

    async def _start_dnsmasq(self) -> set[str]:
        argv = [*_AS_NOBODY, *_HARDENED, str(self._content.programs.dnsmasq), "--keep-in-foreground"]
        argv += ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--pid-file=", f"--port={DNS_PORT}"]
        argv += [f"--host-record={DNS_NAME},{GUEST_IPV4},{GUEST_IPV6}", f"--txt-record={DNS_TEXT},{DNS_TEXT_VALUE}"]
        await self._start("dnsmasq", [*argv, "--local-ttl=60", "--log-facility=-"])
        return {f"tcp {DNS_PORT}", f"udp {DNS_PORT}"}

    async def _start(self, name: str, argv: Sequence[str]) -> None:
        log = self.directory / f"{name}.log"
        environment = self._content.programs.environment
        self.daemons[name] = await Daemon.start(name, argv, log, namespace=self.namespace, env=environment)

    async def _listening(self, ports: set[str]) -> None:
        until = time.monotonic() + _UP_SECONDS
        while missing := ports - await self._open_ports():
            self.check()
            if time.monotonic() >= until:
                logs = "".join(f"\n{name}: {daemon.tail()}" for name, daemon in self.daemons.items())
                raise DeadlineError(f"nobody listens at {', '.join(sorted(missing))}; the logs end:{logs}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _open_ports(self) -> set[str]:
        # proc_net_tcp.rst: sl, local address:port in hex, remote, state
        script = 'for f in tcp tcp6 udp udp6; do sed "s/^/$f /" /proc/net/$f; done'
        done = (await run(["sh", "-c", script], namespace=self.namespace)).check()
        found: set[str] = set()
        for line in done.stdout.decode().splitlines():
            kind, _, local, _, state, *_ = line.split()
            if ":" in local and (kind.startswith("udp") or state == _LISTENING):
                found.add(f"{kind.removesuffix('6')} {int(local.rpartition(':')[2], 16)}")
        return found
