# SPDX-License-Identifier: Apache-2.0
"""Comparators that a run starts for itself, on loopback or unix sockets, and ends again by their process id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from coloproxy.address import Address
from coloproxy.bench.attach import attach
from coloproxy.bench.options import Kind
from coloproxy.errors import ColoproxyError, MisuseError, PeerError

QEMU: Final = "qemu-system-x86_64"
READY_S: Final = 15.0
# Ours is started from this very package, whatever the working directory or the environment have.
_PACKAGE: Final = Path(__file__).resolve().parents[2]
_PYTHON: Final = (sys.executable, "-P", "-m")
PORTS: Final = ("primary_in", "secondary_in", "outdev", "notify_dev")


@dataclass(frozen=True, slots=True)
class Running:
    """A comparator with its peers connected. The sockets are closed by whoever started it."""

    pid: int
    command: tuple[str, ...]
    socks: dict[str, socket.socket]


def wait_until_accepted(commands: IO[bytes], answers: IO[bytes], deadline_s: float = READY_S) -> None:
    """Waits, over QMP, until none of QEMU's chardevs is disconnected.

    QEMU takes connections in its main loop, and drops what it should send to one that it has not taken yet.
    Raises PeerError.
    """
    commands.write(b'{"execute": "qmp_capabilities"}\n')
    until = time.monotonic() + deadline_s
    while True:
        commands.write(b'{"execute": "query-chardev"}\n')
        commands.flush()
        answer: object = {}
        while not isinstance(answer, list) or not answer:
            line = answers.readline()
            if not line:
                raise PeerError("QEMU ended before its sockets were connected")
            answer = json.loads(line).get("return")
        if not any(str(device["filename"]).startswith("disconnected:") for device in answer):
            return
        if time.monotonic() > until:
            raise PeerError(f"not all of QEMU's sockets are connected: {answer}")
        time.sleep(0.01)


def stock_command(addresses: dict[str, Address], *, vnet_hdr: bool = False, options: str = "") -> list[str]:
    """QEMU without a machine, with its colo-compare object alone; QMP on standard input and output."""
    command = [QEMU, "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    for name, address in addresses.items():
        where = f"path={address.path}" if address.path is not None else f"host={address.host},port={address.port}"
        command += ["-chardev", f"socket,id={name},{where},server=on,wait=off"]
    compare = "colo-compare,id=c0,primary_in=primary_in,secondary_in=secondary_in,outdev=outdev,iothread=io1"
    if "notify_dev" in addresses:
        compare += ",notify_dev=notify_dev"
    if vnet_hdr:
        compare += ",vnet_hdr_support=on"
    return [*command, "-object", "iothread,id=io1", "-object", compare + (f",{options}" if options else "")]


def _command(
    kind: Kind, addresses: dict[str, Address], vnet_hdr: bool, options: tuple[str, ...], *, passes_secondary: bool
) -> list[str]:
    listening = {name: str(address).removeprefix("connect:") for name, address in addresses.items()}
    if kind is Kind.QEMU:
        if shutil.which(QEMU) is None:
            raise MisuseError(f"--comparator qemu: there is no {QEMU} here (Debian: apt-get install qemu-system-x86)")
        extra = ",".join(option.strip(",") for option in options)
        if "max_queue_size" not in extra:
            extra = f"max_queue_size=1000000,{extra}".rstrip(",")
        return stock_command(addresses, vnet_hdr=vnet_hdr, options=extra)
    if kind is Kind.RELAY:
        if options:
            raise MisuseError("--comparator-options: the relay has none")
        primary, secondary, out = (listening[name] for name in PORTS[:3])
        inputs = (secondary, primary) if passes_secondary else (primary, secondary)
        return [*_PYTHON, "coloproxy.bench.relay", *inputs, out]
    command = [*_PYTHON, "coloproxy", "compare"]
    for name, where in listening.items():
        command += [f"--{name.replace('_', '-')}", where]
    return [*command, *(["--vnet-hdr-support"] if vnet_hdr else []), *options]


def _environment() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{_PACKAGE}{os.pathsep}{path}" if path else str(_PACKAGE)}


def _free_ports(count: int) -> list[int]:
    """Different ones: all are bound at once."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _addresses(folder: Path, *, unix: bool, notify: bool) -> dict[str, Address]:
    names = PORTS if notify else PORTS[:3]
    if unix:
        return {name: Address(connect=True, path=str(folder / name)) for name in names}
    ports = zip(names, _free_ports(len(names)), strict=True)
    return {name: Address(connect=True, host="127.0.0.1", port=port) for name, port in ports}


def _wait_for_log(log: Path, process: subprocess.Popen[bytes], names: list[str]) -> None:
    """Until `coloproxy compare` has said of each that it is connected, and that it compares: before, all would pass."""
    until = time.monotonic() + READY_S
    while True:
        text = log.read_text(errors="replace")
        if all(f"{name}: connected" in text for name in names) and "protected:" in text:
            return
        if process.poll() is not None or time.monotonic() > until:
            raise PeerError("it took no connections")
        time.sleep(0.005)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def started(
    kind: Kind,
    *,
    unix: bool = False,
    notify: bool = False,
    vnet_hdr: bool = False,
    options: tuple[str, ...] = (),
    cpus: frozenset[int] | None = None,
    passes_secondary: bool = False,
) -> Iterator[Running]:
    """A comparator whose sockets are connected to ours, on those CPUs. Raises MisuseError, PeerError, AddressError.

    passes_secondary: the relay passes the secondary's bytes on in place of the primary's.
    """
    with tempfile.TemporaryDirectory(prefix="coloproxy-bench-") as name:
        folder = Path(name)
        addresses = _addresses(folder, unix=unix, notify=notify)
        command = _command(kind, addresses, vnet_hdr, options, passes_secondary=passes_secondary)
        log = folder / "log"
        pipe = subprocess.PIPE if kind is Kind.QEMU else subprocess.DEVNULL
        with log.open("wb") as errors:
            # A session of its own: Ctrl-C is for us, who end it.
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True, env=_environment()
            )
        if cpus is not None:
            os.sched_setaffinity(process.pid, cpus)  # its threads, which it has not made yet, inherit that
        socks: dict[str, socket.socket] = {}
        try:
            try:
                socks = attach(addresses, stop=lambda: process.poll() is not None)
                if kind is Kind.QEMU:
                    assert process.stdin is not None and process.stdout is not None
                    wait_until_accepted(process.stdin, process.stdout)
                elif kind is Kind.COLOPROXY:
                    _wait_for_log(log, process, [n for n in addresses if n != "notify_dev"])
            except ColoproxyError as error:
                said = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise PeerError(f"{kind}: {error}: {' / '.join(said)}" if said else f"{kind}: {error}") from error
            yield Running(process.pid, tuple(command), socks)
        finally:
            for sock in socks.values():
                sock.close()
            _end(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
