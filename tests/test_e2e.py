# SPDX-License-Identifier: Apache-2.0
"""`coloproxy compare` between two real QEMUs: real guests, real TCP stacks, real clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coloproxy.capture import CapturedFrame, read_capture
from coloproxy.replay.recording import replay_recording
from coloproxy.testbed import PairOptions, VmPair, missing
from coloproxy.testbed.guest_files import CLIENT_IPV4, UDP_LOG_PORT
from coloproxy.testbed.pair import ComparatorCommand, Endpoints, coloproxy_compare
from coloproxy.testbed.process import in_namespace

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}"),
]

DEADLINE = 60.0
DETECTION = 0.3  # seconds from the death to the failover: deliberate, as a heartbeat would take


class Journal:
    """The records of `--json-events`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines]
        return [record for record in records if not kinds or record["event"] in kinds]

    async def wait(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Until there are so many records of that kind."""
        until = time.monotonic() + DEADLINE
        while len(found := self.records(kind)) < count:
            assert time.monotonic() < until, f"no {kind} in {self.records()}"
            await asyncio.sleep(0.02)
        return found


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "events.jsonl")


def options(journal: Journal, tmp_path: Path, command: ComparatorCommand | None = None, **more: Any) -> PairOptions:
    return PairOptions(command or coloproxy_compare("--json-events", str(journal.path)), keep_logs=tmp_path, **more)


async def protect(pair: VmPair, journal: Journal) -> None:
    await pair.start_colo()
    await journal.wait("protected")


async def fail_over(pair: VmPair) -> None:
    killed = time.monotonic()
    await pair.kill_primary()
    await asyncio.sleep(max(0.0, DETECTION - (time.monotonic() - killed)))
    await pair.fail_over()


@pytest.mark.parametrize("nic", ["e1000", "virtio"])
async def test_the_whole_life(nic: str, journal: Journal, tmp_path: Path) -> None:
    async with VmPair(options(journal, tmp_path, nic=nic)) as pair:
        await protect(pair, journal)
        client, guest = pair.client, pair.guest

        for number in range(100):
            assert await client.get("/hello.txt") == guest.hello
            answer = await client.get(f"/cgi-bin/dynamic?{number}")
            assert answer.startswith(f"query: {number}\n".encode())
        assert await client.get("/hello.txt", ipv6=True) == guest.hello
        (await client.run("busybox", "ping", "-c", "5", "10.99.0.2")).check()
        assert await a_datagram(pair, "some-words") is not None

        result = await (await client.download()).result(DEADLINE)
        assert (result.returncode, result.sha256) == (0, guest.large_sha256)
        body = random.Random(1).randbytes(50_000_000)
        upload = await (await client.upload(body)).result(DEADLINE)
        assert (upload.returncode, upload.sha256) == (0, hashlib.sha256(body).hexdigest())

        await a_divergence(pair, journal)

        transfer = await client.download()
        await transfer.reached(20_000_000, DEADLINE)
        await fail_over(pair)
        result = await transfer.result(DEADLINE)
        assert (result.returncode, result.sha256, result.connections) == (0, guest.large_sha256, 1)
        assert b"host: host-b\n" in await client.get("/cgi-bin/diverge")


async def a_datagram(pair: VmPair, text: str) -> bytes | None:
    """Lets the guest send one UDP datagram, and returns what a real socket in the client's namespace received."""
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('{CLIENT_IPV4}', {UDP_LOG_PORT})); s.settimeout(20); print('ready', flush=True)\n"
        f"while True:\n    d = s.recv(2000)\n    if b'{text}' in d: print(d); break"
    )
    listener = await asyncio.create_subprocess_exec(
        *in_namespace(pair.client.namespace, ["python3", "-c", program]), stdout=asyncio.subprocess.PIPE
    )
    assert listener.stdout is not None
    await listener.stdout.readline()
    await pair.client.get(f"/cgi-bin/datagram?{text}")
    line = await listener.stdout.readline()
    await listener.wait()
    return line or None


async def a_divergence(pair: VmPair, journal: Journal) -> None:
    """The page that differs on purpose: evidence, one checkpoint, the primary's answer exactly once."""
    divergences, commits = len(journal.records("divergence")), len(journal.records("checkpoint-committed"))
    answer = await pair.client.get("/cgi-bin/diverge")
    assert answer.count(b"host: host-a\n") == 1
    assert answer.count(b"the end\n") == 1
    await journal.wait("checkpoint-committed", commits + 1)
    found = journal.records("divergence")[divergences:]
    assert len(found) == 1
    assert len(journal.records("checkpoint-committed")) == commits + 1
    evidence = found[0]
    assert evidence["cause"] == "payload"
    assert evidence["flow"]["text"].startswith("tcp 10.99.0.2:80 > 10.99.0.1:")
    primary, secondary = bytes.fromhex(evidence["primary"]["hex"]), bytes.fromhex(evidence["secondary"]["hex"])
    assert primary[: evidence["context"]] == secondary[: evidence["context"]]
    assert primary[evidence["context"]] != secondary[evidence["context"]]
    assert primary[: evidence["context"]].endswith(b"host: host-")
    assert primary[evidence["context"] :].startswith(b"a\n")
    assert secondary[evidence["context"] :].startswith(b"b\n")


async def a_recorded_divergence(pair: VmPair, journal: Journal) -> dict[str, Any]:
    """With a file of its own: there is one in ten seconds at most, and what a kill left out may have made one."""
    for _ in range(10):
        files = len(journal.records("divergence-recorded"))
        await a_divergence(pair, journal)
        await asyncio.sleep(2)
        if made := journal.records("divergence-recorded")[files:]:
            return made[-1]
    pytest.fail("no divergence of ten, in twenty seconds, has got a file")


async def test_primary_killed_in_mid_upload(journal: Journal, tmp_path: Path) -> None:
    async with VmPair(options(journal, tmp_path)) as pair:
        await protect(pair, journal)
        body = random.Random(2).randbytes(30_000_000)
        transfer = await pair.client.upload(body)
        await transfer.reached(12_000_000, DEADLINE)
        await fail_over(pair)
        result = await transfer.result(DEADLINE)
        assert (result.returncode, result.guest_bytes, result.connections) == (0, len(body), 1)
        assert result.sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_comparator_killed_and_restarted(how: signal.Signals, journal: Journal, tmp_path: Path) -> None:
    recording = ["--record", str(tmp_path / "seen.pcapng"), "--record-size", "10000"]  # the second one's is 00002
    ring = ["--record-ring", "5", "--record-dir", str(tmp_path)]
    command = coloproxy_compare("--json-events", str(journal.path), *recording, *ring)
    async with VmPair(options(journal, tmp_path, command)) as pair:
        await protect(pair, journal)
        transfer = await pair.client.download(rate=10_000_000)
        await transfer.reached(10_000_000, DEADLINE)
        await pair.restart_comparator(how)
        result = await transfer.result(DEADLINE)
        assert (result.returncode, result.sha256, result.connections) == (0, pair.guest.large_sha256, 1)
        dump = await a_recorded_divergence(pair, journal)
        # Protection is whole again: the survivor keeps a connection.
        transfer = await pair.client.download()
        await transfer.reached(20_000_000, DEADLINE)
        await fail_over(pair)
        result = await transfer.result(DEADLINE)
        assert (result.returncode, result.sha256, result.connections) == (0, pair.guest.large_sha256, 1)
    evidence = {"primary_in": b"host: host-a", "secondary_in": b"host: host-b"}
    seen = {frame.interface_name for frame in read_capture(dump["path"]) if evidence_in(frame, evidence)}
    assert seen >= evidence.keys()
    if how == signal.SIGTERM:  # else the file has no end
        replays_as_recorded(tmp_path / "seen-00001.pcapng")


def evidence_in(frame: CapturedFrame, evidence: dict[str, bytes]) -> bool:
    return evidence.get(frame.interface_name or "", b"nothing") in frame.data


def replays_as_recorded(path: Path) -> None:
    """Each verdict is the recorded one, up to the first frame that found no room in the recording, if there is one."""
    seqs = {
        int(match[1])
        for frame in read_capture(str(path))
        for text in frame.comments
        if (match := re.search(r" seq=(\d+) ", text))
    }
    missing_from = next(seq for seq in itertools.count(1) if seq not in seqs)
    result = replay_recording(str(path))
    assert result.frames > 1000
    assert missing_from > 1000, result.notes
    assert [mismatch for mismatch in result.mismatches if mismatch.seq < missing_from] == []


class QmpRelay:
    """Stands between the comparator and QEMU's monitor, so that the connection can be cut and come back."""

    def __init__(self, listen: Path, target: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen(1)
        self._target = target
        self._pair: list[socket.socket] = []
        self.allowed = threading.Event()
        self.allowed.set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.allowed.wait()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(str(self._target))
                except OSError:  # QEMU isn't there yet: so to the comparator
                    near.close()
                    far.close()
                    continue
                self._pair = [near, far]
                pumps = [
                    threading.Thread(target=self._pump, args=ends, daemon=True) for ends in ((near, far), (far, near))
                ]
                for pump in pumps:
                    pump.start()
                for pump in pumps:
                    pump.join()
                near.close()
                far.close()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.allowed.clear()
        for end in self._pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.allowed.set()
        self._listener.close()


@contextlib.contextmanager
def relays() -> Iterator[list[QmpRelay]]:
    made: list[QmpRelay] = []
    yield made
    for relay in made:
        relay.close()


async def test_qmp_gone_and_back(journal: Journal, tmp_path: Path) -> None:
    with relays() as made:

        def command(endpoints: Endpoints) -> list[str]:
            listen = endpoints.directory / "relay.qmp"
            made.append(QmpRelay(listen, Path(endpoints.qmp.removeprefix("unix:"))))
            argv = list(coloproxy_compare("--json-events", str(journal.path))(endpoints))
            argv[argv.index("--qmp") + 1] = f"unix:{listen}"
            return argv

        async with VmPair(options(journal, tmp_path, command)) as pair:
            await protect(pair, journal)
            transfer = await pair.client.download(rate=10_000_000)
            await transfer.reached(10_000_000, DEADLINE)
            made[0].cut()
            await journal.wait("qmp-lost")
            await pair.checkpoint()  # unseen by the comparator: evidence of two epochs must not mix
            held = transfer.bytes
            made[0].allowed.set()
            result = await transfer.result(DEADLINE)
            assert (result.returncode, result.sha256, result.connections) == (0, pair.guest.large_sha256, 1)
            assert held < result.bytes
            await a_divergence(pair, journal)
            transfer = await pair.client.download()
            await transfer.reached(20_000_000, DEADLINE)
            await fail_over(pair)
            result = await transfer.result(DEADLINE)
            assert (result.returncode, result.sha256, result.connections) == (0, pair.guest.large_sha256, 1)
