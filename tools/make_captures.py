# SPDX-License-Identifier: Apache-2.0
"""Makes the golden captures in tests/captures anew: real programs, over the real TCP/IP stacks of two namespaces.

    python tools/make_captures.py                   # all of them, half a minute; needs root
    python tools/make_captures.py --only http dns   # those whose names begin so
    python tools/make_captures.py --list

One namespace is the server: it stands for the VM, and its outbound frames for the VM's output. Another is its client,
and between them is a switch. tcpdump runs on the server's link, sees both directions, and stamps in nanoseconds.
Ports, keys, sequence numbers and times are as chance has it, so a new set is never byte for byte the old one. What
each is, and which programs made it, is written to captures.toml beside them.

Nothing is installed; what lacks is named. Everything runs in a scratch directory and in namespaces of unique names,
both removed in the end; only processes that were started here are ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dpkt
from dpkt import pcapng

from coloproxy.errors import ColoproxyError
from coloproxy.testbed.errors import NetworkError
from coloproxy.testbed.leftovers import new_name
from coloproxy.testbed.net import batch, ip
from coloproxy.testbed.process import Daemon, in_namespace, run

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "captures"

SERVER_MAC, CLIENT_MAC = "52:54:00:c0:10:01", "52:54:00:c0:10:02"
SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}  # for documentation: RFC 5737, RFC 3849
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
VLAN, VLAN_SERVER = 42, {4: "198.51.100.1", 6: "2001:db8:42::1"}
VLAN_CLIENT = {4: "198.51.100.2", 6: "2001:db8:42::2"}
VXLAN, VXLAN_PORT, VXLAN_SERVER = 7, 4789, {4: "203.0.113.1", 6: "2001:db8:43::1"}
VXLAN_CLIENT = {4: "203.0.113.2", 6: "2001:db8:43::2"}
ANSWER_PORT, RESET_PORT, LAST_WORD_PORT, REFUSED_PORT = 9000, 9001, 9002, 9999
IPERF_PORT, SSH_PORT = 5201, 22

PROGRAMS = {  # program: Debian package, how it tells its version
    "curl": ("curl", ["--version"]),
    "nginx": ("nginx-light", ["-v"]),
    "openssl": ("openssl", ["version"]),
    "ssh": ("openssh-client", ["-V"]),
    "ssh-keygen": ("openssh-client", None),
    "sshd": ("openssh-server", None),
    "iperf3": ("iperf3", ["--version"]),
    "named": ("bind9", ["-v"]),
    "dig": ("bind9-dnsutils", ["-v"]),
    "ping": ("iputils-ping", ["-V"]),
    "nc": ("netcat-openbsd", None),
    "tcpdump": ("tcpdump", ["--version"]),
    "ethtool": ("ethtool", None),
    "ip": ("iproute2", ["-V"]),
    "tc": ("iproute2", None),
    "nsenter": ("util-linux", None),
    "setpriv": ("util-linux", None),
}


@dataclass(slots=True)
class Bed:
    """The namespaces and the scratch directory."""

    server: str
    client: str
    switch: str
    scratch: Path
    has_vlan: bool = True
    daemons: list[Daemon] = field(default_factory=list)

    async def serve(self, name: str, *argv: str) -> Daemon:
        """Start a program of the server that runs until the end."""
        daemon = await Daemon.start(
            name, [_path(argv[0]), *argv[1:]], self.scratch / f"{name}.log", namespace=self.server
        )
        self.daemons.append(daemon)
        return daemon

    async def do(self, *argv: str, status: int | None = 0, stdin: bytes | None = None) -> str:
        """Run a program of the client to its end; ``status`` None: any."""
        done = await run([_path(argv[0]), *argv[1:]], namespace=self.client, stdin=stdin, deadline=60)
        if status is not None and done.returncode != status:
            done.check()
            raise ColoproxyError(f"{' '.join(argv)}: exit status {done.returncode}, not {status}")
        return done.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One capture (for each family)."""

    name: str
    what: str
    act: Callable[[Bed, int], Awaitable[object]]
    suffix: str = ".pcap.gz"
    before: Callable[[Bed], Awaitable[object]] | None = None
    after: Callable[[Bed], Awaitable[object]] | None = None


def _path(program: str) -> str:
    """Where it is; root's PATH lacks the sbin directories in some containers."""
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    return found or program


def _host(family: int, address: str | None = None) -> str:
    address = address or SERVER[family]
    return f"[{address}]" if family == 6 else address


def text(lines: int) -> bytes:
    """Lines that all differ, always the same ones: so that the captures compress, and no byte could be another."""
    rng = random.Random(1)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "two", "machines", "agree"]
    return "".join(f"{number:6} {' '.join(rng.choices(words, k=9))}\n" for number in range(lines)).encode()


# ------------------------------------------------------------------- scenarios


async def _curl(bed: Bed, family: int, *arguments: str, address: str | None = None, scheme: str = "http") -> None:
    *options, path = arguments
    await bed.do("curl", "-sS", "--fail", "-o", "/dev/null", *options, f"{scheme}://{_host(family, address)}/{path}")


async def _http_keepalive(bed: Bed, family: int) -> None:
    urls = [f"http://{_host(family)}/{path}" for path in ("small.txt", "medium.txt", "nothing", "small.txt?again")]
    await bed.do("curl", "-sS", *(word for url in urls for word in ("-o", "/dev/null", url)))


async def _ssh(bed: Bed, family: int) -> None:
    config = [
        "-F",
        "none",
        "-i",
        str(bed.scratch / "user_key"),
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "BatchMode=yes",
    ]
    config += ["-o", f"UserKnownHostsFile={bed.scratch / 'known_hosts'}", "-o", "LogLevel=ERROR"]
    output = await bed.do("ssh", *config, f"root@{SERVER[family]}", f"cat {bed.scratch / 'www' / 'medium.txt'}; id -u")
    if not output.endswith("\n0\n"):
        raise ColoproxyError(f"ssh brought {output[-100:]!r}")


def _iperf(*options: str) -> Callable[[Bed, int], Awaitable[object]]:
    async def act(bed: Bed, family: int) -> None:
        await bed.do("iperf3", f"-{family}", "-c", SERVER[family], "-p", str(IPERF_PORT), *options)

    return act


async def _dns(bed: Bed, family: int) -> None:
    for query in (
        ["www.colo.test", "A"],
        ["www.colo.test", "AAAA"],
        ["text.colo.test", "TXT"],
        ["nobody.colo.test", "A"],
        ["text.colo.test", "TXT", "+tcp"],
    ):
        await bed.do("dig", f"-{family}", f"@{SERVER[family]}", "+tries=1", *query)


async def _dns_fragments(bed: Bed, family: int) -> None:
    out = await bed.do(
        "dig", f"-{family}", f"@{SERVER[family]}", "+tries=1", "+bufsize=4096", "+ignore", "long.colo.test", "TXT"
    )
    if "3000" not in out:
        raise ColoproxyError(f"no long answer: {out}")


def _ping(*options: str) -> Callable[[Bed, int], Awaitable[object]]:
    async def act(bed: Bed, family: int) -> None:
        await bed.do("ping", f"-{family}", "-i", "0.05", *options, SERVER[family])

    return act


async def _nc(bed: Bed, family: int, port: int, stdin: bytes, status: int | None = 0) -> None:
    await bed.do("nc", f"-{family}", "-N", "-w", "5", SERVER[family], str(port), stdin=stdin, status=status)


async def _half_close_server(bed: Bed, family: int) -> None:
    """The server ends its half; the client goes on."""
    words = bed.scratch / "www" / "small.txt"
    pipe = f"(sleep 0.2; cat {words}) | nc -{family} -N -w 5 {SERVER[family]} {LAST_WORD_PORT}"
    await bed.do("sh", "-c", pipe)


async def _refused(bed: Bed, family: int) -> None:
    await _nc(bed, family, REFUSED_PORT, b"", status=1)
    await bed.do(
        "nc", f"-{family}", "-u", "-w", "1", SERVER[family], str(REFUSED_PORT), stdin=b"anybody?\n", status=None
    )


MANNERS = """
import socket, socketserver, struct, sys, threading

class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4 with it
    allow_reuse_address = True

class Answer(socketserver.StreamRequestHandler):  # when the client has ended its half
    def handle(self):
        self.wfile.write(b"got %d bytes\\n" % len(self.rfile.read()) * 1000)

class Reset(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(self.request)  # without shutdown(2)

class LastWord(socketserver.StreamRequestHandler):  # ends its half, then listens
    def handle(self):
        self.wfile.write(b"that is all\\n")
        self.request.shutdown(socket.SHUT_WR)
        self.rfile.read()

for port, handler in zip(sys.argv[1:], (Answer, Reset, LastWord)):
    threading.Thread(target=Server(("::", int(port)), handler).serve_forever).start()
"""

SLOW_READER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
sock.connect((sys.argv[1], 80))
sock.sendall(b"GET /large.txt HTTP/1.0\\r\\n\\r\\n")
got, slept = 0, False
while data := sock.recv(65536):
    got += len(data)
    if got > 30000 and not slept:
        time.sleep(1.2)  # the window closes; the server probes it
        slept = True
assert got > 290000, got
"""


async def _zero_window(bed: Bed, family: int) -> None:
    await bed.do(sys.executable, "-c", SLOW_READER, SERVER[family])


async def _active_open(bed: Bed, family: int) -> None:
    """The server is the client of a connection."""
    listener = in_namespace(bed.client, [_path("nc"), f"-{family}", "-l", "-N", "-p", "7777"])
    child = await asyncio.create_subprocess_exec(
        *listener, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        await asyncio.sleep(0.2)
        argv = [_path("nc"), f"-{family}", "-N", "-w", "5", CLIENT[family], "7777"]
        answer = asyncio.create_task(child.communicate(text(40)))
        (await run(argv, namespace=bed.server, stdin=text(300), deadline=20)).check()
        await asyncio.wait_for(answer, 5)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _offloads(bed: Bed, state: str) -> None:
    for namespace in (bed.server, bed.client):
        argv = [_path("ethtool"), "-K", "eth0", *(w for o in ("tx", "tso", "gso", "gro") for w in (o, state))]
        (await run(argv, namespace=namespace)).check()


async def _offloads_off(bed: Bed) -> None:
    await _offloads(bed, "off")


async def _offloads_on(bed: Bed) -> None:
    await _offloads(bed, "on")


async def _narrow(bed: Bed) -> None:
    """A slow port of the switch with a short queue: it drops."""
    shape = ["tbf", "rate", "20mbit", "burst", "5kb", "limit", "30kb"]
    argv = [_path("tc"), "qdisc", "add", "dev", "client0", "root", *shape]
    (await run(argv, namespace=bed.switch)).check()


async def _widen(bed: Bed) -> None:
    (await run([_path("tc"), "qdisc", "delete", "dev", "client0", "root"], namespace=bed.switch)).check()


SCENARIOS = (
    Scenario("http-small", "curl fetches 2 KB from nginx", lambda b, f: _curl(b, f, "small.txt"), ".pcap"),
    Scenario("http-download", "curl fetches 300 KB: GSO super-frames", lambda b, f: _curl(b, f, "large.txt")),
    Scenario(
        "http-mtu",
        "the same with offloads off: frames of MTU size, complete checksums",
        lambda b, f: _curl(b, f, "large.txt"),
        before=_offloads_off,
        after=_offloads_on,
    ),
    Scenario(
        "http-upload",
        "curl uploads 300 KB by PUT",
        lambda b, f: _curl(b, f, "-T", str(b.scratch / "www" / "large.txt"), f"upload/{f}"),
    ),
    Scenario("http-keepalive", "four requests on one connection", _http_keepalive, ".pcapng"),
    Scenario(
        "https",
        "curl fetches 40 KB over TLS, self-signed certificate",
        lambda b, f: _curl(b, f, "--insecure", "medium.txt", scheme="https"),
        ".pcapng.gz",
    ),
    Scenario("ssh", "OpenSSH runs a command with 40 KB of output", _ssh, ".pcapng.gz"),
    Scenario("iperf3-tcp", "iperf3, 256 KB to the server", _iperf("--repeating-payload", "-n", "256K"), ".pcap.gz"),
    Scenario(
        "iperf3-tcp-reverse",
        "iperf3, 256 KB from the server",
        _iperf("--repeating-payload", "-n", "256K", "-R"),
        ".pcapng.gz",
    ),
    Scenario(
        "iperf3-udp",
        "iperf3, 64 KB of UDP to the server",
        _iperf("--repeating-payload", "-u", "-n", "64K", "-b", "4M", "-l", "1200"),
    ),
    Scenario(
        "iperf3-udp-reverse",
        "iperf3, 64 KB of UDP from the server",
        _iperf("--repeating-payload", "-u", "-n", "64K", "-b", "4M", "-l", "1200", "-R"),
    ),
    Scenario("dns", "dig asks named: A, AAAA, TXT, no such name, and TXT over TCP", _dns, ".pcapng"),
    Scenario("dns-fragments", "dig gets an answer of 3 KB over UDP, in fragments", _dns_fragments, ".pcap"),
    Scenario("ping", "ping, 5 echoes", _ping("-c", "5"), ".pcapng"),
    Scenario("ping-fragments", "ping, 3 echoes of 4000 bytes, in fragments", _ping("-c", "3", "-s", "4000"), ".pcap"),
    Scenario(
        "half-close",
        "nc sends 2 KB and ends its half; the server answers then",
        lambda b, f: _nc(b, f, ANSWER_PORT, text(40)),
    ),
    Scenario("half-close-server", "the server ends its half first, the client goes on", _half_close_server),
    Scenario(
        "reset",
        "the server answers, then resets the connection",
        lambda b, f: _nc(b, f, RESET_PORT, b"bye\n", status=None),
    ),
    Scenario(
        "refused", "a TCP and a UDP port on which nobody listens: RST, ICMP port unreachable", _refused, ".pcapng"
    ),
    Scenario("zero-window", "a reader that sleeps: the window closes, the server probes it", _zero_window),
    Scenario("active-open", "the server opens the connection, both sides send", _active_open),
    Scenario(
        "http-loss",
        "the download over a slow port that drops: real loss, SACK, retransmissions",
        lambda b, f: _curl(b, f, "large.txt"),
        before=_narrow,
        after=_widen,
    ),
    Scenario(
        "vxlan",
        "curl fetches 40 KB through a VXLAN tunnel between the two (over IPv4)",
        lambda b, f: _curl(b, f, "medium.txt", address=VXLAN_SERVER[f]),
        ".pcapng.gz",
    ),
    Scenario(
        "vlan",
        f"curl fetches 40 KB in VLAN {VLAN}",
        lambda b, f: _curl(b, f, "medium.txt", address=VLAN_SERVER[f]),
        ".pcapng.gz",
    ),
)


# ------------------------------------------------------------------- the bed


NGINX = """
daemon off; master_process off; error_log stderr; pid {scratch}/nginx.pid; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; root {scratch}/www; default_type text/plain; client_max_body_size 2m;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  server {{
    listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
    ssl_certificate {scratch}/tls.crt; ssl_certificate_key {scratch}/tls.key;
    location /upload/ {{ dav_methods PUT; }}
  }}
}}
"""

SSHD = """
Port {port}
HostKey {scratch}/host_key
AuthorizedKeysFile {scratch}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PrintMotd no
"""

NAMED = """
options {{
  directory "{scratch}"; pid-file none; session-keyfile none; managed-keys-directory "{scratch}";
  listen-on {{ any; }}; listen-on-v6 {{ any; }}; recursion no; dnssec-validation no; empty-zones-enable no;
  edns-udp-size 4096; max-udp-size 4096;
}};
controls {{ }};
zone "colo.test" {{ type primary; file "{scratch}/zone"; }};
"""


def _zone() -> str:
    def strings(size: int) -> str:
        line = f"{size} bytes: " + text(60).decode().replace("\n", ",")
        return " ".join(f'"{(line * 2)[at : at + 200]}"' for at in range(0, size, 200))

    return "\n".join(
        (
            "$TTL 60",
            "@ IN SOA ns root 1 60 60 60 60",
            "@ IN NS ns",
            *(f"{name} IN A {SERVER[4]}\n{name} IN AAAA {SERVER[6]}" for name in ("ns", "www")),
            f"text IN TXT {strings(600)}",
            f"long IN TXT {strings(3000)}",
            "",
        )
    )


def _make_files(scratch: Path) -> None:
    www = scratch / "www"
    (www / "upload").mkdir(parents=True)
    for name, lines in {"small": 40, "medium": 720, "large": 5500}.items():
        (www / f"{name}.txt").write_bytes(text(lines))
    (scratch / "nginx.conf").write_text(NGINX.format(scratch=scratch))
    (scratch / "sshd.conf").write_text(SSHD.format(scratch=scratch, port=SSH_PORT))
    (scratch / "named.conf").write_text(NAMED.format(scratch=scratch))
    (scratch / "zone").write_text(_zone())
    for key in ("host_key", "user_key"):
        _quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "golden", "-f", str(scratch / key))
    _quietly(
        *(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ),
        *("-subj", "/CN=colo.test", "-keyout", str(scratch / "tls.key"), "-out", str(scratch / "tls.crt")),
    )


def _quietly(*argv: str) -> None:
    subprocess.run([_path(argv[0]), *argv[1:]], check=True, capture_output=True, timeout=30)


def _link(bed: Bed) -> None:
    """server eth0 --- server0 switch client0 --- eth0 client; the same with VLAN and VXLAN devices upon it."""
    batch(
        bed.switch,
        [
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "link set br0 addrgenmode none up",
            f"link add server0 type veth peer name eth0 address {SERVER_MAC} netns {bed.server}",
            f"link add client0 type veth peer name eth0 address {CLIENT_MAC} netns {bed.client}",
            "link set server0 addrgenmode none master br0 up",
            "link set client0 addrgenmode none master br0 up",
        ],
    )
    batch(bed.server, ["link set lo up", "link set eth0 addrgenmode none up", *_addresses("eth0", SERVER)])
    batch(bed.client, ["link set lo up", "link set eth0 addrgenmode none up", *_addresses("eth0", CLIENT)])
    for namespace, remote, addresses in ((bed.server, CLIENT, VXLAN_SERVER), (bed.client, SERVER, VXLAN_CLIENT)):
        tunnel = f"type vxlan id {VXLAN} remote {remote[4]} dstport {VXLAN_PORT} noudpcsum dev eth0"
        device = f"vxlan{VXLAN}"
        up = f"link set {device} addrgenmode none up"
        batch(namespace, [f"link add {device} {tunnel}", up, *_addresses(device, addresses)])
    for namespace, addresses in ((bed.server, VLAN_SERVER), (bed.client, VLAN_CLIENT)):
        device = f"vlan{VLAN}"
        add, up = f"link add link eth0 name {device} type vlan id {VLAN}", f"link set {device} addrgenmode none up"
        try:
            batch(namespace, [add, up, *_addresses(device, addresses)])
        except NetworkError:
            bed.has_vlan = False  # a kernel without 8021q


def _addresses(device: str, addresses: dict[int, str]) -> list[str]:
    return [f"addr add {addresses[4]}/24 dev {device}", f"addr add {addresses[6]}/64 dev {device} nodad"]


@contextlib.contextmanager
def _privilege_separation() -> Iterator[None]:
    """The directory that sshd insists on; its package makes it at boot."""
    path = Path("/run/sshd")
    made = not path.exists()
    path.mkdir(mode=0o755, exist_ok=True)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.asynccontextmanager
async def the_bed() -> AsyncIterator[Bed]:
    """Namespaces, files and servers; all gone in the end."""
    name = new_name()
    scratch = Path(tempfile.gettempdir()) / name
    scratch.mkdir(mode=0o755)
    bed = Bed(f"{name}-server", f"{name}-client", f"{name}-switch", scratch)
    try:
        _make_files(scratch)
        for namespace in (bed.switch, bed.server, bed.client):
            ip(["netns", "add", namespace])
        _link(bed)
        await bed.serve("nginx", "nginx", "-c", str(scratch / "nginx.conf"))
        await bed.serve("sshd", "sshd", "-D", "-e", "-f", str(scratch / "sshd.conf"))
        await bed.serve("named", "named", "-g", "-n", "1", "-c", str(scratch / "named.conf"))
        await bed.serve("iperf3", "iperf3", "-s", "-p", str(IPERF_PORT))
        ports = [str(port) for port in (ANSWER_PORT, RESET_PORT, LAST_WORD_PORT)]
        await bed.serve("manners", sys.executable, "-c", MANNERS, *ports)
        await _listening(bed)
        yield bed
    except ColoproxyError:
        for daemon in bed.daemons:
            if not daemon.running:
                print(f"{daemon.name} ended:\n{daemon.tail()}", file=sys.stderr)
        raise
    finally:
        for daemon in reversed(bed.daemons):
            await daemon.stop()
        for namespace in (bed.server, bed.client, bed.switch):
            with contextlib.suppress(NetworkError):
                ip(["netns", "delete", namespace])
        shutil.rmtree(scratch, ignore_errors=True)


async def _listening(bed: Bed, deadline: float = 15.0) -> None:
    """Waits until every server has its ports open."""
    wanted = {80, 443, 53, SSH_PORT, IPERF_PORT, ANSWER_PORT, RESET_PORT, LAST_WORD_PORT}
    end = time.monotonic() + deadline
    while True:
        for daemon in bed.daemons:
            daemon.check()
        table = await run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], namespace=bed.server)
        lines = [line.split() for line in table.stdout.decode().splitlines()]
        lacking = wanted - {int(line[1].rpartition(":")[2], 16) for line in lines if len(line) > 3 and line[3] == "0A"}
        if not lacking:
            return
        if time.monotonic() > end:
            raise ColoproxyError(f"nobody listens on {sorted(lacking)}")
        await asyncio.sleep(0.05)


# ------------------------------------------------------------------- captures


@contextlib.asynccontextmanager
async def capture(bed: Bed, path: Path) -> AsyncIterator[None]:
    """Runs tcpdump on the server's link."""
    argv = [
        _path("tcpdump"),
        "-i",
        "eth0",
        "-s",
        "66000",
        "-B",
        "65536",
        "--time-stamp-precision=nano",
        "-n",
        "-Z",
        "root",
    ]
    log = path.with_suffix(".log")
    dump = await Daemon.start("tcpdump", [*argv, "--immediate-mode", "-U", "-w", str(path)], log, namespace=bed.server)
    try:
        end = time.monotonic() + 10
        while "listening on" not in dump.tail():
            dump.check()
            if time.monotonic() > end:
                raise ColoproxyError("tcpdump does not begin to listen")
            await asyncio.sleep(0.02)
        yield
        await asyncio.sleep(0.3)  # the last ACKs, and tcpdump's own reading
        dump.signal(signal.SIGINT)
        await dump.wait()
    finally:
        await dump.stop()
    lost = re.search(r"(\d+) packets? dropped by kernel", dump.tail())
    if lost is None or int(lost[1]):
        raise ColoproxyError(f"{path.name}: tcpdump missed frames, or does not say: {dump.tail()}")


def store(raw: Path, name: str) -> Path:
    """Puts tcpdump's file (pcap, nanoseconds) among the captures, in the format that the name says."""
    path = OUTPUT / name
    data = raw.read_bytes()
    if ".pcapng" in name:
        data = to_pcapng(raw)
    path.write_bytes(gzip.compress(data, 9, mtime=0) if name.endswith(".gz") else data)
    return path


def to_pcapng(raw: Path) -> bytes:
    """The same frames as pcapng, by dpkt: so that our own reader is tried on what it has not written itself."""
    blocks: list[object] = [
        pcapng.SectionHeaderBlockLE(opts=[pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT)]),
        pcapng.InterfaceDescriptionBlockLE(
            snaplen=262144,
            linktype=dpkt.pcap.DLT_EN10MB,
            opts=[
                pcapng.PcapngOptionLE(code=2, data=b"eth0"),  # if_name
                pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_IF_TSRESOL, data=b"\x09"),
                pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT),
            ],
        ),
    ]
    with raw.open("rb") as stream:
        for seconds, data in dpkt.pcap.Reader(stream):  # seconds is an exact Decimal
            high, low = divmod(int(seconds * 10**9), 1 << 32)
            size = len(data)
            blocks.append(
                pcapng.EnhancedPacketBlockLE(ts_high=high, ts_low=low, caplen=size, pkt_len=size, pkt_data=data)
            )
    return b"".join(bytes(block) for block in blocks)


async def make(bed: Bed, scenario: Scenario, family: int) -> Path:
    """Runs one scenario, captures it."""
    for namespace in (bed.server, bed.client):
        batch(namespace, ["neigh flush dev eth0"])
    raw = bed.scratch / f"{scenario.name}-ipv{family}.pcap"
    if scenario.before:
        await scenario.before(bed)
    try:
        async with capture(bed, raw):
            await scenario.act(bed, family)
    finally:
        if scenario.after:
            await scenario.after(bed)
    return store(raw, f"{scenario.name}-ipv{family}{scenario.suffix}")


def versions() -> dict[str, str]:
    """What each program says of itself, shortened to its first line."""
    told = {"kernel": os.uname().release.partition("-")[0]}
    for program, (_, arguments) in PROGRAMS.items():
        if arguments:
            done = subprocess.run([_path(program), *arguments], capture_output=True, text=True, timeout=10, check=False)
            number = re.search(r"\d[\d.]+\w*", done.stdout + done.stderr)
            told[program] = number[0] if number else "?"
    return dict(sorted(told.items()))


def write_table() -> None:
    """captures.toml: what a test, or a person, has to know of them."""
    lines = [
        "# Written by tools/make_captures.py. The VM is the server: its outbound frames are the output to compare.",
        f'vm = "{SERVER_MAC}"',
        f'client = "{CLIENT_MAC}"',
        "",
        "[programs]",
        *(f'{name} = "{version}"' for name, version in versions().items()),
        "",
        "[captures]",
        *(
            f'"{scenario.name}-ipv{family}{scenario.suffix}" = "{scenario.what}"'
            for scenario in SCENARIOS
            for family in (4, 6)
            if (OUTPUT / f"{scenario.name}-ipv{family}{scenario.suffix}").exists()
        ),
        "",
    ]
    (OUTPUT / "captures.toml").write_text("\n".join(lines))


def lacking() -> list[str]:
    """What this machine has not got, for people."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root is needed (network namespaces)")
    missing = [program for program in PROGRAMS if shutil.which(_path(program)) is None]
    if missing:
        packages = sorted({PROGRAMS[program][0] for program in missing})
        lacks.append(f"there is no {', '.join(missing)}; try: apt-get install {' '.join(packages)}")
    return lacks


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only captures whose names begin so")
    parser.add_argument("--list", action="store_true", help="list them and exit")
    arguments = parser.parse_args()
    chosen = [s for s in SCENARIOS if not arguments.only or any(s.name.startswith(name) for name in arguments.only)]
    if arguments.list:
        for scenario in chosen:
            print(f"{scenario.name:20} {scenario.what}")
        return 0
    if not chosen:
        parser.error(f"no capture is called {' or '.join(arguments.only)}")
    if lacks := lacking():
        print("\n".join(lacks), file=sys.stderr)
        return 1
    OUTPUT.mkdir(exist_ok=True)
    try:
        with _privilege_separation():
            async with the_bed() as bed:
                for scenario in chosen:
                    if scenario.name == "vlan" and not bed.has_vlan:
                        print("vlan: left out, this kernel has no VLAN devices (module 8021q)", flush=True)
                        continue
                    for family in (4, 6):
                        path = await make(bed, scenario, family)
                        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)
    except ColoproxyError as error:
        print(f"make_captures: {error}", file=sys.stderr)
        return 1
    if not arguments.only:
        write_table()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
