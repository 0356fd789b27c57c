# SPDX-License-Identifier: Apache-2.0
"""A secondary that has taken over becomes a primary in its own process: TAPs stay open, connections go on."""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

import pytest

from coloproxy.errors import TableError
from coloproxy.path.path import Path as DataPath
from coloproxy.path.path import Role
from coloproxy.run import estate
from coloproxy.run.estate import load_table, save_table
from coloproxy.testbed.namespaces import NamespaceOptions, NamespacePair
from coloproxy.testbed.proxies import fail_over, protect
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
BODY = random.Random(8).randbytes(6_000_000)


@pytest.mark.e2e
@pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")
async def test_a_survivor_becomes_a_primary(tmp_path: Path) -> None:
    async with NamespacePair(NamespaceOptions(kind="packet", large_bytes=6_000_000, keep_logs=tmp_path)) as bed:
        heir = (sys.executable, str(Path(__file__).with_name("heir.py")))
        proxies = await protect(bed, services=("nginx", "upload"), prefix=heir)
        transfers = [await bed.client.download(rate=1_000_000), await bed.client.upload(BODY, rate=1_000_000)]
        for transfer in transfers:
            await transfer.reached(1_000_000, deadline=30)
        await fail_over(bed, proxies["secondary"], "kill")
        for transfer in transfers:
            await transfer.reached(2_000_000, deadline=30)
        answer = await proxies["secondary"].ask("succeed")
        assert answer["inherited"] == 2
        status = await proxies["secondary"].vm_status()
        (tmp_path / "gap.txt").write_text(f"{status['handed_over_ms']} ms without a frame moving\n")
        assert (status["state"], status["rewriter"]["inherited"]) == ("unprotected", 2)
        for transfer, digest in zip(
            transfers, (bed.content.large_sha256, hashlib.sha256(BODY).hexdigest()), strict=True
        ):
            result = await transfer.result(60)
            assert (result.returncode, result.sha256, result.connections) == (0, digest, 1)


# ------------------------------------------------------------------ the file


def test_a_table_is_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "vm.connections"
    assert load_table(path) is None
    for table in (b"", b"\n\n", bytes(range(256)) * 1000):
        save_table(path, table)
        found = load_table(path)
        assert found is not None
        assert found[0] == table
        assert 0 <= found[1] < 60e9
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["vm.connections"]


def test_a_table_of_another_boot_is_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vm.connections"
    save_table(path, b"table")
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr(estate, "_BOOT_ID", other)
    assert load_table(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no newline",
        b"[]\n",
        b'{"coloproxy": "other"}\n',
        b'{"coloproxy": "connections", "boot": "x"}\n',
        b'{"coloproxy": "connections", "boot": "x", "at": true}\n',
        b'{"coloproxy": "connections", "boot": "x", "at": -1}\n',
        b'{"coloproxy": "connections", "pad": "' + b"x" * 300 + b'"}\n',
        b"\xff\xfe\n",
    ],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vm.connections"
    path.write_bytes(content)
    with pytest.raises(TableError):
        load_table(path)


def test_a_table_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vm.connections"
    save_table(path, b"")
    line = path.read_bytes().replace(b'"at": ', b'"at": 9')
    path.write_bytes(line)
    with pytest.raises(TableError, match="future"):
        load_table(path)


# ------------------------------------------------------------------ the path's calls


def test_what_a_path_imports() -> None:
    with DataPath(Role.PRIMARY) as path:
        empty = path.export_table()
        path.import_table(empty)
        assert path.export_table() == empty
        for wrong in (b"", b"CORW", empty + b"x", empty[:4] + b"\2" + empty[5:]):
            with pytest.raises(TableError, match="table"):
                path.import_table(wrong)
    with DataPath(Role.SECONDARY) as path:
        with pytest.raises(TableError, match="time"):
            path.import_table(empty)
        path.takeover()
        assert path.export_table() == empty
