# SPDX-License-Identifier: Apache-2.0
"""What clients do while hosts die: transfers on one TCP connection each, and a write log."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .client import Client, Transfer, TransferResult
from .errors import DeadlineError, ProcessError
from .guest_files import GUEST_IPV4
from .node_guest import LARGE_PATH, LOG_PORT, DiskImage
from .node_verify import record
from .process import in_namespace

_CLOSE_SECONDS = 3.0


class WriteLog:
    """Sends numbered records over one TCP connection, each once the one before was acknowledged.

    A record is acknowledged once the guest has it on its disk.  Another WriteLog can go on with the same log by
    *after*: the number of its last record.
    """

    def __init__(self, name: str, child: asyncio.subprocess.Process, after: int, interval: float) -> None:
        self.name = name
        self.sent = self.acknowledged = after
        self.longest_stall = 0.0
        """The longest time between a record and its acknowledgement, in seconds."""
        self._child = child
        self._interval = interval
        self._ending = False
        self._waiting_since: float | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def start(cls, client: Client, name: str, *, after: int = 0, interval: float = 0.02) -> WriteLog:
        """*interval*: seconds between an acknowledgement and the next record.  A name is of a-z, 0-9 and dashes."""
        child = await asyncio.create_subprocess_exec(
            *in_namespace(client.namespace, ["busybox", "nc", GUEST_IPV4, str(LOG_PORT)]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return cls(name, child, after, interval)

    @property
    def running(self) -> bool:
        """True until its connection is gone, or it was ended."""
        return not self._task.done()

    @property
    def stalled(self) -> float:
        """Seconds that a record waits for its acknowledgement now."""
        return time.monotonic() - self._waiting_since if self._waiting_since is not None else 0.0

    async def reached(self, number: int, deadline: float) -> None:
        """Until record *number* is acknowledged.  Raises DeadlineError, or ProcessError if the connection is gone."""
        try:
            async with asyncio.timeout(deadline):
                while self.acknowledged < number:
                    self._check()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise DeadlineError(f"log {self.name}: {self.acknowledged} of {number} after {deadline:g} s") from error

    async def end(self, deadline: float) -> tuple[str, int, int]:
        """Wait for the last acknowledgement, hang up; for verify(): name, records sent, records acknowledged.

        Raises DeadlineError, or ProcessError if the connection is gone.
        """
        self._check()
        self._ending = True
        try:
            async with asyncio.timeout(deadline):
                await asyncio.shield(self._task)
        except TimeoutError as error:
            raise DeadlineError(f"log {self.name}: record {self.sent} isn't acknowledged") from error
        finally:
            await self.close()
        if self.acknowledged != self.sent:
            raise ProcessError(f"log {self.name}: the connection ended at record {self.sent}")
        return self.counted

    @property
    def counted(self) -> tuple[str, int, int]:
        """As end() says it; for a log whose connection is gone."""
        return self.name, self.sent, self.acknowledged

    async def close(self) -> None:
        """Hang up at once."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(ProcessLookupError):
            if self._child.returncode is None:
                self._child.kill()
        await asyncio.shield(self._child.wait())

    def _check(self) -> None:
        if self._task.done() and not self._ending:
            raise ProcessError(f"log {self.name}: the connection ended at record {self.sent}")

    async def _run(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(f"{self.name}\n".encode())
            while not self._ending:
                self._waiting_since = begun = time.monotonic()
                self.sent += 1
                self._child.stdin.write(record(self.name, self.sent))
                await self._child.stdin.drain()
                answer = await self._child.stdout.readline()
                if answer != b"%d\n" % self.sent:
                    return
                self._waiting_since = None
                self.longest_stall = max(self.longest_stall, time.monotonic() - begun)
                self.acknowledged = self.sent
                self._changed.set()
                await asyncio.sleep(self._interval)
        except ConnectionError:
            return
        finally:
            self._changed.set()


@dataclass(frozen=True, slots=True)
class Kept:
    """How a transfer came through."""

    kind: str
    """download or upload."""
    kept: bool
    """Every byte, the right digest, on its first TCP connection."""
    stall: float
    """The longest time without a byte, in seconds."""
    text: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Moving:
    """A transfer now."""

    kind: str
    """download or upload."""
    bytes: int
    size: int
    stalled: float | None
    """Seconds since its last byte; None: it has ended."""


class Traffic:
    """Downloads of the file on the disk, and uploads, all at once."""

    def __init__(self, client: Client, disk: DiskImage, seed: str = "traffic") -> None:
        self._client = client
        self._disk = disk
        self._random = random.Random(seed)
        self._transfers: list[tuple[str, Transfer, int, str]] = []  # kind, it, its bytes, the right digest

    async def start(
        self, *, downloads: int = 1, uploads: int = 1, upload_bytes: int = 20_000_000, ipv6: bool = False
    ) -> None:
        """Begin so many more."""
        for _ in range(downloads):
            transfer = await self._client.download(LARGE_PATH, ipv6=ipv6)
            self._transfers.append(("download", transfer, self._disk.large_bytes, self._disk.large_sha256))
        for _ in range(uploads):
            body = self._random.randbytes(upload_bytes)
            transfer = await self._client.upload(body, ipv6=ipv6)
            self._transfers.append(("upload", transfer, upload_bytes, hashlib.sha256(body).hexdigest()))

    def moving(self) -> Sequence[Moving]:
        """All of them, as they are now."""
        return [
            Moving(kind, transfer.bytes, size, transfer.stalled if transfer.running else None)
            for kind, transfer, size, _ in self._transfers
        ]

    async def reached(self, part: float, deadline: float) -> None:
        """Until every transfer has moved that part of its bytes.  Raises DeadlineError, or ProcessError."""
        until = time.monotonic() + deadline
        for _, transfer, size, _ in self._transfers:
            await transfer.reached(int(size * part), until - time.monotonic())

    async def finish(self, patience: float = 30.0) -> Sequence[Kept]:
        """The end of all; *patience* seconds without a byte are a loss."""
        outcomes: list[Kept] = []
        for kind, transfer, size, want in self._transfers:
            if await transfer.ended(patience):
                outcomes.append(_judge(kind, await transfer.result(patience), size, want))
            else:
                outcomes.append(Kept(kind, False, transfer.stalled, f"no byte since {transfer.bytes} of {size}"))
                await transfer.close()
        self._transfers.clear()
        return outcomes


def _judge(kind: str, result: TransferResult, size: int, want: str) -> Kept:
    kept = result.returncode == 0 and result.bytes == size and result.sha256 == want and result.connections == 1
    text = f"{result.bytes} of {size} bytes in {result.seconds:.1f} s, longest stall {result.longest_stall:.2f} s"
    if not kept:
        right = "right" if result.sha256 == want else "WRONG"
        text += f"; curl {result.returncode} {result.error}; {result.connections} connections; sha256 {right}"
    return Kept(kind, kept, result.longest_stall, text)
