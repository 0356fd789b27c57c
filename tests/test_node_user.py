# SPDX-License-Identifier: Apache-2.0
"""QEMU as another user than the node: it can use what the node has made for it."""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pair_files import NODE, PAIR
from qemu_process import needs_qemu

from coloproxy import vmm
from coloproxy.node.record import RecordFile
from coloproxy.node.setting import Setting
from coloproxy.node.work import Work
from coloproxy.vmm import QemuProcess, StateDirectory

SIZE = 1 << 20

pytestmark = [needs_qemu, pytest.mark.skipif(os.geteuid() != 0, reason="only root can start QEMU as another user")]


@pytest.fixture
def directory() -> Iterator[Path]:
    """That everybody can go through, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)  # noqa: PTH101 - ruff takes Path.chmod for a slow one
        yield Path(made)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def no_frames() -> None:
    pass


async def test_a_secondary_of_another_user(directory: Path) -> None:
    key = directory / "key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    node = NODE.replace("192.0.2.1:", "127.0.0.1:").replace("192.0.2.2:", "127.0.0.2:")
    node = node.replace('{ a = "192.0.2.1", b = "192.0.2.2" }', '{ a = "127.0.0.1", b = "127.0.0.2" }')
    node = node.replace("/vms/web.qcow2", f"{directory}/images/web.qcow2").replace(
        "[node]\n",
        f'[node]\nstate_dir = "{directory}/state"\nnbd_port = {free_port()}\nmigration_port = {free_port()}\n'
        'qemu = { user = "nobody", options = ["-M", "pc", "-m", "16392k"] }\n',
    )
    file = directory / "pair.toml"
    pair = PAIR.replace('psk_file = { primary = "/etc/a.psk", secondary = "/etc/b.psk" }', f'psk_file = "{key}"')
    file.write_text(pair + node)
    setting = Setting.load(file, "b")
    # No frame moves here, and a data path would need a bridge.
    plane = SimpleNamespace(
        end=no_frames, before_launch=no_frames, become_secondary=no_frames, qemu_arguments=lambda role: []
    )
    seen: list[QemuProcess] = []
    with StateDirectory.open(setting.directory) as state:
        work = Work(setting, state, RecordFile(setting.directory), plane, seen.append)  # type: ignore[arg-type]
        try:
            for _ in range(2):  # once with files that are there
                assert await work.prepare([SIZE])
                assert work.qemu is not None and await work.qemu.status() == "inmigrate"
                owner = os.stat(f"/proc/{work.qemu.pid}").st_uid  # noqa: PTH116
                assert owner == pwd.getpwnam("nobody").pw_uid
                nodes = await work.qemu.execute("query-named-block-nodes")
                assert isinstance(nodes, list)
                writable = {n["node-name"] for n in nodes if not n["ro"]}
                assert {"parent0", "hidden0", "active0"} <= writable
        finally:
            await work.kill()
    assert len(seen) == 2


def test_what_is_no_file_is_not_given_away(tmp_path: Path) -> None:
    """The directory may be the other user's, who could put a link in a file's place."""
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").touch()
    with pytest.raises(OSError):
        vmm.give(tmp_path / "link", 1, 1)
    assert (tmp_path / "victim").stat().st_uid == os.getuid()
