# SPDX-License-Identifier: Apache-2.0
"""The parts of the test bed that need neither root nor a virtual machine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from coloproxy.testbed import guest, kernel, leftovers, process, qemu, requirements, tcg
from coloproxy.testbed.addition import NO_ADDITION, START_FILE, AddedFile, Addition, program_files
from coloproxy.testbed.cpio import CpioWriter
from coloproxy.testbed.errors import DeadlineError, GuestError, ProcessError
from coloproxy.testbed.net import LINK_PRIMARY, LINK_SECONDARY
from coloproxy.testbed.programs import fetch_program, find_program, kept_once
from coloproxy.vmm.acceleration import probe_rom


def archive() -> bytes:
    """One entry of each kind, with lengths of every remainder by four."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.directory("dir")
    for size in range(5):
        writer.file(f"dir/{'n' * size}x", b"a" * size)
    writer.file("run", b"#!/bin/sh\n", 0o755)
    writer.symlink("link", "dir/x")
    writer.finish()
    return out.getvalue()


def test_cpio_is_reproducible() -> None:
    assert archive() == archive()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here to compare with")
def test_cpio_unpacks(tmp_path: Path) -> None:
    subprocess.run(["cpio", "-id", "--quiet"], input=archive(), cwd=tmp_path, check=True)
    assert [(tmp_path / "dir" / f"{'n' * n}x").read_bytes() for n in range(5)] == [b"a" * n for n in range(5)]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "link").readlink() == Path("dir/x")


def make_kernel(tmp_path: Path, dep: str, builtin: str = "") -> kernel.Kernel:
    (tmp_path / "modules.dep").write_text(dep)
    (tmp_path / "modules.builtin").write_text(builtin)
    return kernel.Kernel("1", tmp_path / "vmlinuz-1", tmp_path)


def names(files: Sequence[Path]) -> list[str]:
    return [file.name for file in files]


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    dep = "n/top.ko: n/middle.ko n/base.ko\nn/middle.ko: n/base.ko\nn/base.ko:\nn/other-one.ko.xz: n/base.ko\n"
    found = make_kernel(tmp_path, dep).module_files(("top", "other_one"))
    assert names(found) == ["base.ko", "middle.ko", "top.ko", "other-one.ko.xz"]


def test_builtin_modules_are_left_out(tmp_path: Path) -> None:
    found = make_kernel(tmp_path, "a.ko:\n", "kernel/drivers/b.ko\n")
    assert names(found.module_files(("a", "b"))) == ["a.ko"]
    with pytest.raises(GuestError, match="no module c"):
        found.module_files(("c",))


def test_large_file_begins_the_same_at_any_size() -> None:
    assert guest.large_file(1000) == guest.large_file(5000)[:1000]
    data = guest.large_file(1 << 20)
    blocks = {data[i : i + 512] for i in range(0, 1 << 20, 512)}
    assert len(blocks) == 2048  # no block stands in for another


def test_built_guest_is_found_again(tmp_path: Path) -> None:
    first = guest.build_guest(tmp_path, large_bytes=1000)
    assert guest.build_guest(tmp_path, large_bytes=1000) == first
    assert first.large_sha256 == hashlib.sha256(guest.large_file(1000)).hexdigest()
    assert guest.build_guest(tmp_path, large_bytes=1001) != first
    assert not list(tmp_path.glob("building-*"))


def test_an_addition_is_another_guest(tmp_path: Path) -> None:
    some = Addition({"etc/deep/name": AddedFile(b"text")}, "echo started\n")
    built = guest.build_guest(tmp_path, large_bytes=1000, addition=some)
    assert guest.build_guest(tmp_path, large_bytes=1000, addition=some) == built
    assert guest.build_guest(tmp_path, large_bytes=1000) != built


def test_each_part_of_an_addition_makes_it_another() -> None:
    some = Addition({"etc/deep/name": AddedFile(b"text")}, "echo started\n")
    others = [
        NO_ADDITION,
        Addition(some.files, "echo other\n"),
        Addition({"etc/deep/name": AddedFile(b"texts")}, some.start),
        Addition({"etc/deep/name": AddedFile(b"text", 0o755)}, some.start),
        Addition({"etc/deep/names": AddedFile(b"text")}, some.start),
    ]
    assert all(other.fingerprint() != some.fingerprint() for other in others)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here to unpack it")
def test_an_addition_brings_its_directories_and_its_start(tmp_path: Path) -> None:
    out = io.BytesIO()
    archive = CpioWriter(out)
    Addition({"etc/deep/name": AddedFile(b"text"), "etc/run": AddedFile(b"#!", 0o755)}, "echo started\n").write(archive)
    archive.finish()
    subprocess.run(["cpio", "-id", "--quiet"], input=out.getvalue(), cwd=tmp_path, check=True)
    assert (tmp_path / "etc/deep/name").read_bytes() == b"text"
    assert (tmp_path / "etc/run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / START_FILE).read_text() == "#!/bin/sh\necho started\n"
    assert (tmp_path / START_FILE).stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd here")
def test_a_program_runs_on_the_files_it_is_said_to_need(tmp_path: Path) -> None:
    files = program_files(Path("/usr/bin/env"), "mine")
    assert files["usr/bin/mine"].mode == 0o755
    loaders = [path for path in files if path.startswith("lib64/ld-")]
    assert len(loaders) == 1 and any("libc.so" in path for path in files)
    for path, file in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(file.data)
        (tmp_path / path).chmod(file.mode)
    done = subprocess.run(["chroot", str(tmp_path), "/usr/bin/mine", "--version"], capture_output=True, check=False)
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(GuestError, match="script is not a 64-bit ELF program"):
        program_files(tmp_path / "script", "script")


def test_leftovers_of_the_dead_go_and_of_the_living_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / leftovers.new_name()
    pid, start = os.getpid(), int(mine.name.split("-")[2])
    reused = tmp_path / f"colotb-{pid}-{start - 1}-1"  # my process id, but somebody who had it before
    dead = tmp_path / "colotb-4194305-5-1"  # beyond the largest process id
    foreign = tmp_path / "colotb-notes"
    for path in (mine, reused, dead, foreign):
        path.mkdir()
    leftovers.remove_leftovers()
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign])


@pytest.mark.skipif(shutil.which(tcg.QEMU) is None, reason="no QEMU here")
def test_the_kvm_probe_runs_to_its_end_when_emulated(tmp_path: Path) -> None:
    rom = tmp_path / "rom"
    rom.write_bytes(probe_rom())
    argv = [tcg.QEMU, "-accel", "tcg", "-M", "pc", "-m", "1", "-nodefaults", "-display", "none", "-bios", str(rom)]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    assert subprocess.run(argv, check=False, timeout=30).returncode == 33


def test_ram_under_tcg_is_no_multiple_of_256_kib() -> None:
    assert tcg.TCG_RAM_KIB % 256 != 0


@pytest.mark.parametrize("nic", ["e1000", "virtio"])
@pytest.mark.parametrize("stock", [False, True])
def test_vnet_headers_are_everywhere_or_nowhere(nic: qemu.Nic, stock: bool) -> None:
    built = guest.Guest(Path("k"), Path("i"), "1", b"", 0, "")
    options = qemu.MachineOptions(built, tcg.Acceleration("tcg", 1, None), nic=nic, stock_comparator=stock)
    for role, command in (("primary", qemu.primary_command), ("secondary", qemu.secondary_command)):
        argv = command(options, qemu.Sockets.below(Path("/d"), role))  # type: ignore[arg-type]
        for argument in argv:
            if argument.startswith(("filter-", "colo-compare")):
                assert ("vnet_hdr_support=on" in argument) == (nic == "virtio")
        assert any(argument.endswith(f"vnet_hdr={'on' if nic == 'virtio' else 'off'}") for argument in argv)


def test_each_socket_of_the_secondary_has_its_counterpart() -> None:
    built = guest.Guest(Path("k"), Path("i"), "1", b"", 0, "")
    options = qemu.MachineOptions(built, tcg.Acceleration("tcg", 1, None))
    primary = " ".join(qemu.primary_command(options, qemu.Sockets.below(Path("/d"), "primary")))
    secondary = " ".join(qemu.secondary_command(options, qemu.Sockets.below(Path("/d"), "secondary")))
    assert f"id=mirror0,host={LINK_SECONDARY},port={qemu.MIRROR_PORT},reconnect=1" in primary
    assert f"id=red0,host={LINK_SECONDARY},port={qemu.MIRROR_PORT},server=on" in secondary
    assert f"id=red1,host={LINK_PRIMARY},port={qemu.SECONDARY_IN_PORT},reconnect=1" in secondary
    assert primary.index("id=redire0") < primary.index("id=redire1")


def test_a_single_machine_is_the_primary_without_its_filters() -> None:
    built = guest.Guest(Path("k"), Path("i"), "1", b"", 0, "")
    options = qemu.MachineOptions(built, tcg.Acceleration("tcg", 1, None))
    sockets = qemu.Sockets.below(Path("/d"), "primary")
    single, primary = qemu.single_command(options, sockets), qemu.primary_command(options, sockets)
    assert primary[: len(single)] == single
    assert not [argument for argument in single if argument.startswith(("filter-", "colo-compare", "socket"))]


async def test_run_captures_both_streams_and_the_status() -> None:
    done = await process.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    with pytest.raises(ProcessError, match="exit status 3: err"):
        done.check()


async def test_run_kills_what_takes_too_long() -> None:
    with pytest.raises(DeadlineError, match="sleep 60: not done"):
        await process.run(["sleep", "60"], deadline=0.2)


async def test_a_stopped_daemon_still_ends(tmp_path: Path) -> None:
    daemon = await process.Daemon.start("sleeper", ["sleep", "60"], tmp_path / "log")
    daemon.signal(signal.SIGSTOP)
    await daemon.stop(grace=5.0)
    assert daemon.returncode == -signal.SIGTERM


async def test_a_daemon_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    argv = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    daemon = await process.Daemon.start("deaf", argv, tmp_path / "log")
    while "\nready" not in daemon.tail():  # noqa: ASYNC110 - it is another process that we wait for
        await asyncio.sleep(0.01)
    await daemon.stop(grace=0.2)
    assert daemon.returncode == -signal.SIGKILL


async def test_a_daemon_that_ended_says_why(tmp_path: Path) -> None:
    daemon = await process.Daemon.start("broken", ["sh", "-c", "echo no such luck; exit 2"], tmp_path / "log")
    await daemon.wait()
    with pytest.raises(ProcessError, match=r"status 2(.|\n)*no such luck"):
        daemon.check()


async def test_the_cpu_time_of_a_daemon(tmp_path: Path) -> None:
    busy = await process.Daemon.start("busy", ["sh", "-c", "while :; do :; done"], tmp_path / "busy")
    idle = await process.Daemon.start("idle", ["sleep", "60"], tmp_path / "idle")
    until = asyncio.get_running_loop().time() + 20.0
    while busy.cpu_seconds() < 0.2:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.01)
    assert idle.cpu_seconds() < 0.1
    for daemon in (busy, idle):
        await daemon.kill()
    with pytest.raises(ProcessError, match="busy has ended"):
        busy.cpu_seconds()


def test_more_programs_can_be_asked_for() -> None:
    lacks = requirements.missing({"no-such-program": "its-package", "sh": "dash"})
    found = [item for item in lacks if item.package in ("its-package", "dash")]
    assert found == [requirements.Missing("no-such-program", "its-package")]


# ----------------------------------------------------------- what is kept in the cache


def test_a_directory_of_the_cache_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def fails(into: Path) -> None:
        (into / "half").touch()
        raise GuestError("no more")

    with pytest.raises(GuestError, match="no more"):
        kept_once(cache / "place", fails)
    assert list(cache.iterdir()) == []
    kept_once(cache / "place", lambda into: (into / "whole").touch())
    kept_once(cache / "place", fails)  # there is nothing to do
    assert [path.relative_to(cache) for path in cache.rglob("*")] == [Path("place"), Path("place/whole")]


def test_a_program_is_this_machines_or_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_program("etcd", tmp_path) is None
    with pytest.raises(GuestError, match="there is no apt-get here"):
        fetch_program("etcd", tmp_path)
    for place in (tmp_path / "program-etcd" / "etcd", tmp_path / "bin" / "etcd"):
        place.parent.mkdir()
        place.touch(0o755)
        assert find_program("etcd", tmp_path) == fetch_program("etcd", tmp_path) == place
