# SPDX-License-Identifier: Apache-2.0
"""Real etcd servers: one, or the members of a cluster, each a process with a data directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import DeadlineError
from .process import Completed, Daemon, run
from .programs import fetch_program

_LOOK: Final = 0.05  # s


@dataclass(frozen=True, slots=True)
class Member:
    """Where one server of a cluster listens.

    Attributes:
        name: unique in the cluster.
        address: an IPv4 address.
        client, peer: TCP ports.
    """

    name: str
    address: str
    client: int
    peer: int

    @property
    def peer_url(self) -> str:
        return f"http://{self.address}:{self.peer}"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files, PEM. With them clients speak TLS, and must have a certificate of the same CA."""

    ca: Path
    cert: Path
    key: Path


def loopback_members(count: int) -> list[Member]:
    """Members on free ports of 127.0.0.1; free at this moment, that is."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(2 * count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    return [Member(f"m{i}", "127.0.0.1", ports[2 * i], ports[2 * i + 1]) for i in range(count)]


class Etcd:
    """One server. `start` again after `kill` or `stop`: it goes on with its data."""

    def __init__(
        self,
        member: Member,
        cluster: Sequence[Member],
        directory: Path,
        *,
        namespace: str | None = None,
        certificates: Certificates | None = None,
        listen: str | None = None,
        durable: bool = True,
    ) -> None:
        """directory: of this member; made if it isn't there. listen: for clients, another address than the member's.

        durable: False: without fsync, for those who don't pull the plug.
        """
        self.member = member
        self._cluster = cluster
        self._directory = directory
        self._namespace = namespace
        self._certificates = certificates
        self._listen = listen or member.address
        self._durable = durable
        self._daemon: Daemon | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return self._url(self.member.address)

    def _url(self, address: str) -> str:
        scheme = "http" if self._certificates is None else "https"
        return f"{scheme}://{address}:{self.member.client}"

    async def start(self) -> None:
        """Raises ProcessError, GuestError: there is no etcd and it can't be had."""
        self._directory.mkdir(parents=True, exist_ok=True)
        members = ",".join(f"{one.name}={one.peer_url}" for one in self._cluster)
        program = await asyncio.to_thread(fetch_program, "etcd")
        argv = [str(program), f"--name={self.member.name}", f"--data-dir={self._directory / 'data'}"]
        argv += [f"--listen-client-urls={self._url(self._listen)}", f"--advertise-client-urls={self.url}"]
        argv += [f"--listen-peer-urls={self.member.peer_url}", f"--initial-advertise-peer-urls={self.member.peer_url}"]
        argv += [f"--initial-cluster={members}", f"--initial-cluster-token={self._cluster[0].client}"]
        if (files := self._certificates) is not None:
            argv += [f"--cert-file={files.cert}", f"--key-file={files.key}"]
            argv += [f"--trusted-ca-file={files.ca}", "--client-cert-auth"]
        argv += [] if self._durable else ["--unsafe-no-fsync"]
        name = f"etcd {self.member.name}"
        self._daemon = await Daemon.start(name, argv, self._directory / "log", namespace=self._namespace)

    async def wait_ready(self, deadline: float = 30.0) -> None:
        """Until it answers a client, which takes a majority of the cluster. Raises ProcessError, DeadlineError."""
        assert self._daemon is not None
        try:
            async with asyncio.timeout(deadline):
                while (await self._health()) != 0:
                    self._daemon.check()
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise DeadlineError(f"{self.url} is not ready after {deadline:g} s: {self._daemon.tail()}") from None

    async def ctl(self, *arguments: str) -> Completed:
        """Runs etcdctl against this server."""
        program = await asyncio.to_thread(fetch_program, "etcdctl")
        argv = ["env", "ETCDCTL_API=3", str(program), f"--endpoints={self.url}"]
        if (files := self._certificates) is not None:
            argv += [f"--cacert={files.ca}", f"--cert={files.cert}", f"--key={files.key}"]
        return await run([*argv, *arguments], namespace=self._namespace)

    async def freeze(self) -> None:
        """When this returns no thread of it runs: the kernel still accepts connections, and nobody answers there."""
        assert self._daemon is not None
        self._daemon.signal(signal.SIGSTOP)
        while _runs(self._daemon.pid):  # noqa: ASYNC110 -- the kernel's doing, which nothing tells us
            await asyncio.sleep(0.001)

    def thaw(self) -> None:
        assert self._daemon is not None
        self._daemon.signal(signal.SIGCONT)

    async def kill(self) -> None:
        if self._daemon is not None:
            await self._daemon.kill()

    async def _health(self) -> int:
        argv = ["curl", "--silent", "--fail", "--max-time", "2", f"{self.url}/health"]  # true of a majority only
        if (files := self._certificates) is not None:
            argv += ["--cacert", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]
        return (await run(argv, namespace=self._namespace)).returncode


def _runs(pid: int) -> bool:
    return any(_state(task) not in "TXZ" for task in Path(f"/proc/{pid}/task").iterdir())


def _state(task: Path) -> str:
    """A thread's, as a letter (proc(5)); X: it has ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
