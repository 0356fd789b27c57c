# SPDX-License-Identifier: Apache-2.0
"""QEMU's options as `coloproxy qemu-args` prints them, in a real QEMU: it takes them and the sockets meet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pair_files import changed
from qemu_process import QEMU, needs_qemu

from coloproxy.pair.config import Pair, Role, parse
from coloproxy.pair.qemu import Attach, qemu_arguments

DEADLINE = 30.0

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("unshare") is None,
    reason="needs root and /dev/net/tun",
)
pytestmark = needs_qemu


class Monitor:
    """QEMU's QMP, in so far as these tests need it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")
        self._file.readline()  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def wait(self, event: str) -> None:
        while json.loads(self._file.readline()).get("event") != event:
            pass

    def quit(self) -> None:
        """By the monitor; it has ended when the monitor's socket has."""
        with contextlib.suppress(ConnectionResetError):  # as it closes a socket that it hasn't read to its end
            self("quit")
            while self._file.readline():
                pass
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def qemu(directory: Path, arguments: list[str], *, own_network: bool = False) -> Iterator[Monitor]:
    """A QEMU with these arguments, its guest not started; the monitor is the one that they name."""
    # -daemonize: returns when the monitor listens, or with an error.
    pidfile = directory / "qemu.pid"
    command = [str(QEMU), "-S", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "16", "-nodefaults"]
    command += ["-daemonize", "-pidfile", str(pidfile), *arguments]
    if own_network:
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    with (directory / "qemu.log").open("w+b") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, timeout=DEADLINE, check=False)
    assert ended.returncode == 0, (directory / "qemu.log").read_text()
    pid = int(pidfile.read_text())
    try:
        monitor = Monitor(directory / "vm.qmp")
        yield monitor
        monitor.quit()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise


def pair(directory: Path, role: Role, nic: str, more: str = "") -> Pair:
    text = changed('vm = { address = "unix:/run/web-nic0.sock" }', f"vm = {{ {nic} }}\n{more}")
    return parse(text.replace("/run/web.qmp", f"{directory}/vm.qmp"), role)


def arguments(made: Pair, attach: Attach = "tap", *, vnet_hdr: bool = False) -> list[str]:
    return qemu_arguments(made, made.vms[0], attach, vnet_hdr=vnet_hdr)


def network(monitor: Monitor) -> str:
    return str(monitor("human-monitor-command", **{"command-line": "info network"}))


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def dial(family: socket.AddressFamily, where: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(where)  # type: ignore[arg-type]
    return sock


@pytest.mark.parametrize("attach", ["tap", "filters"])
@pytest.mark.parametrize(("model", "virtio"), [("virtio-net-pci", True), ("virtio-net-device", True), ("e1000", False)])
def test_a_virtio_card_is_never_marked_as_disabled(tmp_path: Path, attach: Attach, model: str, virtio: bool) -> None:
    made = arguments(pair(tmp_path, "secondary", 'address = "unix:/a"', f'model = "{model}"'), attach)
    assert ("virtio-device.use-disabled-flag=off" in made) is virtio


# ------------------------------------------------------------------ TAP attach


@pytest.mark.parametrize("model", ["virtio-net-pci", "e1000"])
def test_stream_unix_qemu_listens_and_takes_the_next_peer(tmp_path: Path, model: str) -> None:
    path = tmp_path / "a, b.sock"
    made = pair(tmp_path, "primary", f'address = "unix:{path}"', f'model = "{model}"')
    with qemu(tmp_path, [*arguments(made)]) as monitor:
        assert "hn0: index=0,type=stream" in network(monitor)
        assert "52:54:00:12:34:56" in network(monitor)
        for _ in range(2):
            with dial(socket.AF_UNIX, str(path)):
                monitor.wait("NETDEV_STREAM_CONNECTED")
            monitor.wait("NETDEV_STREAM_DISCONNECTED")


def test_stream_tcp_qemu_listens(tmp_path: Path) -> None:
    port = free_port()
    with qemu(tmp_path, arguments(pair(tmp_path, "secondary", f'address = "tcp:127.0.0.1:{port}"'))):
        dial(socket.AF_INET, ("127.0.0.1", port)).close()


def test_stream_tcp6_qemu_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        port = sock.getsockname()[1]
    with qemu(tmp_path, arguments(pair(tmp_path, "secondary", f'address = "tcp:[::1]:{port}"'))):
        dial(socket.AF_INET6, ("::1", port)).close()


def test_stream_unix_we_listen(tmp_path: Path) -> None:
    path = tmp_path / "nic.sock"
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(DEADLINE)
        ours.bind(str(path))
        ours.listen()
        with qemu(tmp_path, arguments(pair(tmp_path, "primary", f'listen = true, address = "unix:{path}"'))):
            ours.accept()[0].close()


def test_socket_qemu_listens(tmp_path: Path) -> None:
    port = free_port()
    nic = f'kind = "socket", address = "tcp:127.0.0.1:{port}"'
    with qemu(tmp_path, arguments(pair(tmp_path, "primary", nic))) as monitor:
        assert "hn0: index=0,type=socket" in network(monitor)
        dial(socket.AF_INET, ("127.0.0.1", port)).close()


def test_socket_we_listen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        ours.settimeout(DEADLINE)
        nic = f'kind = "socket", listen = true, address = "tcp:127.0.0.1:{ours.getsockname()[1]}"'
        with qemu(tmp_path, arguments(pair(tmp_path, "primary", nic))):
            ours.accept()[0].close()


def test_dgram_unix(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.sock", tmp_path / "ours.sock"
    nic = f'kind = "dgram", address = "unix:{theirs}", local = "unix:{ours}"'
    with qemu(tmp_path, arguments(pair(tmp_path, "primary", nic))) as monitor:
        assert "hn0: index=0,type=dgram" in network(monitor)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(ours))
            assert sock.sendto(bytes(60), str(theirs)) == 60  # fails where nobody has bound it
        assert str(ours) in network(monitor)


def test_dgram_udp(tmp_path: Path) -> None:
    theirs, ours = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    nic = f'kind = "dgram", address = "udp:127.0.0.1:{theirs}", local = "udp:127.0.0.1:{ours}"'
    with qemu(tmp_path, arguments(pair(tmp_path, "primary", nic))) as monitor:
        assert f"type=dgram,udp=127.0.0.1:{theirs}/127.0.0.1:{ours}" in network(monitor)


def test_another_mtu_is_the_guests_too(tmp_path: Path) -> None:
    made = pair(tmp_path, "primary", f'address = "unix:{tmp_path}/nic.sock"')
    text = changed('bridge = "br0"', "mtu = 9000")
    big = parse(text.replace("/run/web", f"{tmp_path}/web").replace("web.qmp", "vm.qmp"), "primary")
    assert "host_mtu" not in " ".join(arguments(made))
    assert arguments(big)[-1].endswith(",host_mtu=9000")
    with qemu(tmp_path, [*arguments(big)]) as monitor:
        assert "hn0" in network(monitor)


@needs_namespaces
@pytest.mark.parametrize("header", ["true", "false"])
def test_packet_is_qemus_own_tap(tmp_path: Path, header: str) -> None:
    text = changed("tap = {", f"tap = {{ vnet_hdr = {header},")
    text = changed('address = "unix:/run/web-nic0.sock"', f'kind = "packet", name = "q0", vnet_hdr = {header}', text)
    made = parse(text.replace("/run/web.qmp", f"{tmp_path}/vm.qmp"), "primary")
    with qemu(tmp_path, arguments(made), own_network=True) as monitor:
        assert "hn0: index=0,type=tap,ifname=q0" in network(monitor)


# --------------------------------------------------------------- filter attach

FILTERS: dict[Role, list[str]] = {  # QEMU's own docs/colo-proxy.txt, with an external comparator
    "primary": [
        "-netdev", "tap,id=hn0,ifname=webp,script=no,downscript=no,vhost=off,vnet_hdr=off",
        "-device", "e1000,netdev=hn0,mac=52:54:00:12:34:56",
        "-chardev", "socket,id=mirror0,host=192.0.2.2,port=9003,reconnect=1",
        "-chardev", "socket,id=compare0,host=127.0.0.1,port=9001,reconnect=1",
        "-chardev", "socket,id=compare_out,host=127.0.0.1,port=9004,reconnect=1",
        "-object", "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
        "-object", "filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out",
        "-object", "filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0",
    ],
    "secondary": [
        "-netdev", "tap,id=hn0,ifname=webs,script=no,downscript=no,vhost=off,vnet_hdr=off",
        "-device", "e1000,netdev=hn0,mac=52:54:00:12:34:56",
        "-chardev", "socket,id=red0,host=192.0.2.2,port=9003,server=on,wait=off",
        "-chardev", "socket,id=red1,host=192.0.2.1,port=9002,reconnect=1",
        "-object", "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0",
        "-object", "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1",
        "-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all",
        "-incoming", "tcp:192.0.2.2:9998",
    ],
}  # fmt: skip
NAMES: dict[Role, set[str]] = {"primary": {"m0", "redire0", "redire1"}, "secondary": {"f1", "f2", "rew0"}}


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_the_filters(role: Role, tmp_path: Path) -> None:
    made = pair(tmp_path, role, 'address = "unix:/unused"', 'model = "e1000"')
    assert arguments(made, "filters") == ["-qmp", f"unix:{tmp_path}/vm.qmp,server=on,wait=off", *FILTERS[role]]


@needs_namespaces
@pytest.mark.parametrize("vnet_hdr", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", ""])
@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_real_qemu_takes_the_filters(role: Role, host: str, vnet_hdr: bool, tmp_path: Path) -> None:
    text = changed('primary = "192.0.2.1"', 'primary = "127.0.0.1"')
    text = changed('"192.0.2.2:9810"', f'{{ primary = "127.0.0.1:9810", secondary = "{host}:9810" }}', text)
    made = parse(text.replace("/run/web.qmp", f"{tmp_path}/vm.qmp"), role)
    given = arguments(made, "filters", vnet_hdr=vnet_hdr)
    assert sum("vnet_hdr_support=on" in each for each in given) == (3 if vnet_hdr else 0)
    with qemu(tmp_path, given, own_network=True) as monitor:
        objects = {each["name"] for each in monitor("qom-list", path="/objects")}
        assert objects >= NAMES[role]
        assert "hn0: index=0,type=tap,ifname=web" in network(monitor)
