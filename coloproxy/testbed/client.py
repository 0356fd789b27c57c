# SPDX-License-Identifier: Apache-2.0
"""A client of the guest: curl, run in the client's namespace, with an eye on every byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import DeadlineError, ProcessError
from .guest_files import GUEST_IPV4, GUEST_IPV6, HTTP_PORT, UPLOAD_PORT
from .process import Completed, in_namespace, run

_CHUNK = 1 << 16
_PACES_A_SECOND = 50
_POLL_SECONDS = 0.005
_REPORT = "%{stderr}\n%{json}"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """How a transfer ended."""

    returncode: int
    """curl's exit status; 0 is success."""
    bytes: int
    """Bytes of the body that were received, or handed to curl for sending."""
    sha256: str
    """Digest of the body that was received (download), or that the guest says it received (upload)."""
    guest_bytes: int | None
    """Upload only: how many bytes the guest says it received."""
    seconds: float
    longest_stall: float
    """The longest time without a byte, in seconds."""
    connections: int
    """TCP connections that curl opened: 1 if the transfer stayed on its connection."""
    local_port: int
    error: str
    """What curl complained about."""

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0


class Transfer:
    """A download or upload that runs beside the caller.  Made by Client.download() and Client.upload()."""

    def __init__(self, child: asyncio.subprocess.Process, body: bytes | None, rate: int | None = None) -> None:
        self.bytes = 0
        """Bytes received so far, or handed to curl so far."""
        self.rate = rate
        """At most so many bytes a second; None: all that goes.  May be changed while it runs.

        curl's own limit is an average, so behind a stall it lets all go at once that was not sent in it.  This one
        never catches up: a paced transfer lasts at least its size through its rate, whatever happens to it.
        """
        self.longest_stall = 0.0
        self._child = child
        self._started = self._last = time.monotonic()
        self._task = asyncio.create_task(self._download() if body is None else self._upload(body))

    @property
    def running(self) -> bool:
        """True until the transfer has ended, well or not."""
        return not self._task.done()

    @property
    def stalled(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self._last

    async def reached(self, count: int, deadline: float) -> None:
        """Wait until *count* bytes went over.  Raises DeadlineError, or ProcessError if it ends before."""
        until = time.monotonic() + deadline
        while self.bytes < count:
            if self._task.done():
                raise ProcessError(f"the transfer ended at {self.bytes} bytes: {self._task.result().error}")
            if time.monotonic() >= until:
                raise DeadlineError(f"the transfer is at {self.bytes} of {count} bytes after {deadline:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def ended(self, patience: float) -> bool:
        """Wait for the end; False if no byte went over for *patience* seconds."""
        while not self._task.done():
            if self.stalled >= patience:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def result(self, deadline: float) -> TransferResult:
        """Wait for the end.  Raises DeadlineError; a transfer that failed is a result, not an exception."""
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(self._task)
        except TimeoutError as error:
            raise DeadlineError(
                f"the transfer is at {self.bytes} bytes after {deadline:g} s, the last {self.stalled:.1f} s ago"
            ) from error

    async def close(self) -> None:
        """End the transfer if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if self._child.returncode is None:
                self._child.kill()
        self.rate = None  # asyncio waits for the pipes' ends, too, so what is in them has to be read
        await asyncio.shield(self._task)

    async def _download(self) -> TransferResult:
        assert self._child.stdout is not None
        digest = hashlib.sha256()
        report = asyncio.create_task(self._report())
        while data := await self._child.stdout.read(self._chunk):
            self._progress(len(data))
            digest.update(data)
            await self._pause(len(data))
        self._progress(0)
        return await self._end(digest.hexdigest(), None, await report)

    async def _upload(self, body: bytes) -> TransferResult:
        assert self._child.stdin is not None and self._child.stdout is not None
        report = asyncio.create_task(self._report())
        answer = asyncio.create_task(self._child.stdout.read())
        with contextlib.suppress(ConnectionError):
            while data := body[self.bytes : self.bytes + self._chunk]:
                self._child.stdin.write(data)
                await self._child.stdin.drain()
                self._progress(len(data))
                await self._pause(len(data))
        self._child.stdin.close()
        fields = dict(line.split(": ", 1) for line in (await answer).decode().splitlines() if ": " in line)
        self._progress(0)
        count = fields.get("bytes")
        return await self._end(fields.get("sha256", ""), int(count) if count else None, await report)

    @property
    def _chunk(self) -> int:
        return min(_CHUNK, max(1, self.rate // _PACES_A_SECOND)) if self.rate else _CHUNK

    async def _pause(self, count: int) -> None:
        if self.rate:
            await asyncio.sleep(count / self.rate)

    async def _report(self) -> str:
        assert self._child.stderr is not None
        return (await self._child.stderr.read()).decode(errors="replace")

    async def _end(self, sha256: str, guest_bytes: int | None, report: str) -> TransferResult:
        returncode = await self._child.wait()
        error, _, facts = report.rpartition("\n")
        try:
            details = json.loads(facts)
        except ValueError:
            error, details = report, {}
        return TransferResult(
            returncode=returncode,
            bytes=self.bytes,
            sha256=sha256,
            guest_bytes=guest_bytes,
            seconds=time.monotonic() - self._started,
            longest_stall=self.longest_stall,
            connections=int(details.get("num_connects", 0)),
            local_port=int(details.get("local_port", 0)),
            error=error.strip(),
        )

    def _progress(self, count: int) -> None:
        now = time.monotonic()
        self.bytes += count
        self.longest_stall = max(self.longest_stall, now - self._last)
        self._last = now


class Client:
    """Runs commands in the client's namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._transfers: list[Transfer] = []

    async def run(self, *argv: str, stdin: bytes | None = None, deadline: float = 30.0) -> Completed:
        """Run a command to its end and return what it wrote; see process.run."""
        return await run(argv, namespace=self.namespace, stdin=stdin, deadline=deadline)

    async def get(self, path: str, *options: str, ipv6: bool = False, deadline: float = 30.0) -> bytes:
        """Fetch a page by curl and return its body.  Raises ProcessError unless the answer is 2xx."""
        argv = ("curl", "--silent", "--show-error", "--fail", *options, url(path, ipv6=ipv6))
        return (await self.run(*argv, deadline=deadline)).check().stdout

    async def download(
        self,
        path: str = "/large.bin",
        *,
        rate: int | None = None,
        keepalive: int | None = None,
        ipv6: bool = False,
    ) -> Transfer:
        """Begin a download of at most *rate* bytes a second.

        *keepalive*: seconds of silence until it asks whether its connection is still known there; else it is 60.
        """
        options = ["--keepalive-time", str(keepalive)] if keepalive else []
        return await self._transfer(None, rate, [*options, "--no-buffer", url(path, ipv6=ipv6)])

    async def upload(self, body: bytes, *, rate: int | None = None, ipv6: bool = False) -> Transfer:
        """Begin an upload of at most *rate* bytes a second; the guest answers with size and digest of what came."""
        # The guest knows neither "Expect: 100-continue" nor chunks: so say the length, and pass the body as is.
        options = ["--request", "POST", "--header", "Expect:", "--header", "Transfer-Encoding:"]
        options += ["--header", f"Content-Length: {len(body)}", "--upload-file", "-"]
        return await self._transfer(body, rate, [*options, url("/upload", port=UPLOAD_PORT, ipv6=ipv6)])

    async def close(self) -> None:
        """End every transfer that still runs."""
        for transfer in self._transfers:
            await transfer.close()
        self._transfers.clear()

    async def _transfer(self, body: bytes | None, rate: int | None, arguments: Sequence[str]) -> Transfer:
        argv = ["curl", "--silent", "--show-error", "--fail", "--write-out", _REPORT, *arguments]
        child = await asyncio.create_subprocess_exec(
            *in_namespace(self.namespace, argv),
            stdin=asyncio.subprocess.DEVNULL if body is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        transfer = Transfer(child, body, rate)
        self._transfers.append(transfer)
        return transfer


def url(path: str, *, port: int = HTTP_PORT, ipv6: bool = False) -> str:
    """The guest's URL for that path."""
    return f"http://{f'[{GUEST_IPV6}]' if ipv6 else GUEST_IPV4}:{port}{path}"
