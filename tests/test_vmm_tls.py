# SPDX-License-Identifier: Apache-2.0
"""The key that two QEMUs prove to each other, on a real NBD connection between them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu_process import QEMU, needs_qemu

from coloproxy.errors import QmpError
from coloproxy.vmm import Credentials, QemuProcess, StateDirectory

KEY = bytes(range(32))
SIZE = 1 << 20

pytestmark = needs_qemu


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[QemuProcess, QemuProcess]]:
    """Two QEMUs without a guest."""
    made: list[QemuProcess] = []
    states = [StateDirectory.open(tmp_path / name) for name in "ab"]
    try:
        for state in states:
            argv = [str(QEMU), "-name", "guest=x", "-M", "none", "-nodefaults", "-display", "none"]
            argv += ["-pidfile", str(state.files.pidfile)]
            for path in state.files.sockets:
                argv += ["-qmp", f"unix:{path},server=on,wait=off"]
            made.append(await QemuProcess.launch(state, "x", argv))
        yield made[0], made[1]
    finally:
        for qemu in made:
            await qemu.kill()
            await qemu.close()
        for state in states:
            state.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def serve(qemu: QemuProcess, image: Path, port: int, tls: str) -> None:
    """Exports that disk."""
    await qemu.execute("blockdev-add", {"driver": "file", "node-name": "disk", "filename": str(image)})
    addr = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
    await qemu.execute("nbd-server-start", {"addr": addr, "tls-creds": tls})
    await qemu.execute(
        "block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True}
    )


async def connect(qemu: QemuProcess, port: int, tls: str | None) -> None:
    """Raises QmpError."""
    server = {"type": "inet", "host": "127.0.0.1", "port": str(port)}
    node = {"driver": "nbd", "node-name": "remote", "export": "disk", "server": server, "open-timeout": 1}
    await qemu.execute("blockdev-add", node | ({} if tls is None else {"tls-creds": tls}))
    await qemu.execute("blockdev-del", {"node-name": "remote"})


async def test_only_who_has_the_key_is_let_in(ends: tuple[QemuProcess, QemuProcess], tmp_path: Path) -> None:
    server, client = ends
    port = free_port()
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    await serve(server, tmp_path / "disk", port, await Credentials(tmp_path / "s", KEY, "web").offer(server, "server"))
    await connect(client, port, await Credentials(tmp_path / "c", KEY, "web").offer(client, "client"))
    for key, pair in ((bytes(32), "web"), (KEY, "mail")):
        name = await Credentials(tmp_path / "c", key, pair).offer(client, "client")
        with pytest.raises(QmpError):
            await connect(client, port, name)
    with pytest.raises(QmpError):
        await connect(client, port, None)
    # And after all of them the right one still is.
    await connect(client, port, await Credentials(tmp_path / "c", KEY, "web").offer(client, "client"))


def test_nobody_else_can_read_the_key(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    old = os.umask(0)
    try:
        Credentials(directory, KEY, "web")._write()
    finally:
        os.umask(old)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = (directory / "keys.psk").read_text()
    assert KEY.hex() not in text  # QEMU's key gives the link's away to nobody


def test_the_parameters_are_those_of_the_standard(tmp_path: Path) -> None:
    """RFC 7919, by OpenSSL's own copy of them."""
    Credentials(tmp_path, KEY, "web")._write()
    command = ["openssl", "dhparam", "-in", str(tmp_path / "dh-params.pem"), "-check", "-noout", "-text"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ffdhe2048" in done.stdout
