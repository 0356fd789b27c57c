# SPDX-License-Identifier: Apache-2.0
"""The comparator beside one primary whose QEMU has the socket filters: what stands in the place of `colo-compare`.

It gives the engine its sockets, takes the engine's events, lets a guide (QMP, or Xen's messages) end the epochs, and
makes QEMU's redirector listen again. For any asyncio program: `coloproxy compare` and `coloproxy node` are two::

    comparing = Comparing(options, Journal(None), tell, failed)
    await comparing.open()                       # its addresses are listened on
    comparing.start()
    ...
    await comparing.stop(linger_s=1.0)           # what was released is written
    comparing.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from . import redirector
from .address import PeerSource
from .checkpoint_pacer import Pacer, activity_of
from .command_guide import CommandGuide
from .engine import Engine, EngineCounters
from .engine_events import EngineEvent, EngineFailed, PeerAttached, PeerLost, Port
from .errors import ColoproxyError, LimitError, MisuseError, NativeError
from .guide import Guide, PlainGuide, QmpGuide
from .held import HeldAtTheEnd
from .journal import Journal
from .notify import NotifyPort
from .options import CompareOptions
from .reports import Report
from .stats import Snapshot
from .voice import Voice

log = logging.getLogger(__name__)

_NS: Final = 1_000_000_000


class Comparing:
    """See the module. In the event loop's thread. The options' journal, statistics and lingering are the caller's.

    tell: all reports of the guide.
    failed: it can't go on, for that reason; told once.
    name: of the VM, where there may be others: stands before each log line and in the journal's.
    hold_when_over: when COLO ends, whoever ended it, all is held until `alone` is called: somebody must know first that
        the secondary does not go on.
    in_colo: a predecessor has left us a pair that is in COLO, or was: so it is from the beginning.
    silence: ns; a secondary's host that answers nothing for so long counts as gone (whole seconds, at least two).
        None: as of all sockets (coloproxy.address.tune).
    """

    def __init__(
        self,
        options: CompareOptions,
        journal: Journal,
        tell: Callable[[Report], None],
        failed: Callable[[str], None],
        *,
        name: str = "",
        hold_when_over: bool = False,
        in_colo: bool = False,
        silence: int | None = None,
    ) -> None:
        options.check()
        self._options = options
        self._journal = journal
        self._told = tell
        self._failed = failed
        self._silence = silence
        self._holds = hold_when_over
        self._in_colo = in_colo
        self._held: HeldAtTheEnd | None = None
        self._voice = Voice(
            journal,
            options.rules,
            options.record,
            options.record_ring,
            prefix=f"{name}: " if name else "",
            extra={"vm": name} if name else None,
        )
        self._sources = {
            Port.PRIMARY_IN: PeerSource(options.primary_in, "--primary-in"),
            Port.SECONDARY_IN: PeerSource(options.secondary_in, "--secondary-in"),
            Port.OUTDEV: PeerSource(options.outdev, "--outdev"),
        }
        self._engine = options.engine()
        self._lease: int | None = None
        self._done = Snapshot()  # of engines before this one
        self._lost: dict[Port, asyncio.Event] = {}
        self._attached = {port: asyncio.Event() for port in Port}
        self._peers: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._out_peer: redirector.Peer | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._primary_lost = False
        self._stopping = False
        self._notify: NotifyPort | None = None
        self._notify_source: PeerSource | None = None
        self._guide, self._qmp_guide = self._make_guide()
        self._pacer = Pacer(
            options.policy, lambda: activity_of(self._engine.counters()), lambda cause: self._guide.want(cause)
        )

    def _make_guide(self) -> tuple[Guide, QmpGuide | None]:
        options = self._options
        if options.qmp is not None:
            guide = QmpGuide(options.qmp, options.timing, self._tell, self._revive)
            return guide, guide
        if options.checkpoint_command is not None:
            return CommandGuide(options.checkpoint_command, self._tell), None
        ask = None
        if options.notify_dev is not None:
            self._notify_source = PeerSource(options.notify_dev, "--notify-dev")
            self._notify = NotifyPort(self._notify_source, lambda: plain.commit(), vnet_hdr=options.vnet_hdr_support)
            ask = self._notify.ask
        plain = PlainGuide(self._tell, ask, options.expired_scan_cycle_ms / 1000)
        return plain, None

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Listens. Raises AddressError."""
        sources = [*self._sources.values()]
        if self._notify_source is not None:
            sources.append(self._notify_source)
        for source in sources:
            await source.open()
            for where in source.bound():
                log.info("%s: listening on %s", source.option.removeprefix("--").replace("-", "_"), where)
        if self._options.checkpoint_command is not None:
            log.info("checkpoints by %s", " ".join(self._options.checkpoint_command.command))
        elif self._options.qmp is None:
            what = "checkpoints are up to notify_dev" if self._notify is not None else "no checkpoint can be asked for"
            log.warning("no --qmp: %s; comparing begins when the secondary connects", what)

    def start(self) -> None:
        """From now on frames move, and epochs are kept."""
        self._start_engine()
        self._tasks.append(self._spawn(self._guide.run(), "guide"))
        if self._notify is not None:
            self._tasks.append(self._spawn(self._notify.run(), "notify_dev"))

    async def stop(self, linger_s: float) -> None:
        """Ends all of it; what was released is written for so long, what is held is not released. Idempotent."""
        self._stopping = True
        self._pacer.rest()
        tasks = [*self._tasks, *self._peers, *([self._reviving] if self._reviving is not None else [])]
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # told by _spawn
                await task
        with contextlib.suppress(ColoproxyError):
            await asyncio.to_thread(self._engine.stop, linger_s)
            self._drain_events()
            self._tell_recording()

    def close(self) -> None:
        """After `stop`, or in its place if nothing was started. Idempotent."""
        with contextlib.suppress(MisuseError):
            asyncio.get_running_loop().remove_reader(self._engine.event_fd)
        self._engine.close()
        for source in [*self._sources.values(), *([self._notify_source] if self._notify_source is not None else [])]:
            source.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task whose failure is ours."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("%s", name, exc_info=error)
                self._fail(f"{name}: {error}" if isinstance(error, ColoproxyError) else f"{name}: {error!r}")

        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(ended)
        return task

    def _fail(self, reason: str) -> None:
        if not self._stopping:
            self._stopping = True
            self._failed(reason)

    # ------------------------------------------------------------------- use

    def alone(self) -> None:
        """There is no secondary any more: releases all that is held, and all to come. Raises as Engine.alone."""
        self._pacer.rest()
        if self._held is not None:
            self._held.let_go()
        self._engine.alone()

    def lease(self, until_ns: int | None) -> None:
        """Nothing goes to a client from then on, CLOCK_MONOTONIC: it waits. None: no limit."""
        self._lease = until_ns
        self._engine.lease(until_ns)

    def want(self, cause: str) -> None:
        """A checkpoint. Raises MisuseError: there is nobody to be made equal."""
        if not self._guide.protected():
            raise MisuseError("it is not protected: there is no secondary to be made equal")
        self._guide.want(cause)

    def protected(self) -> bool:
        """Whether frames are compared, or held for it."""
        return self._guide.protected()

    def connected(self, port: Port) -> bool:
        """Whether it has its peer."""
        return self._attached[port].is_set()

    async def until_connected(self, port: Port) -> None:
        """As long as it takes."""
        await self._attached[port].wait()

    def addresses(self) -> dict[str, str]:
        """Of the ports, as they were given."""
        return {str(port): str(source.address) for port, source in self._sources.items()}

    def counters(self) -> EngineCounters:
        """Of the engine of the moment."""
        return self._engine.counters()

    def policy(self) -> dict[str, Any]:
        """The checkpoint policy, for the status."""
        return self._pacer.status()

    def snapshot(self) -> Snapshot:
        """Of this engine and those before it. Not after `close`."""
        return self._done + Snapshot.of(self._engine.counters())

    # ---------------------------------------------------------------- engine

    def _start_engine(self) -> None:
        engine = self._engine
        self._lost = {port: asyncio.Event() for port in Port}
        for attached in self._attached.values():
            attached.clear()
        engine.lease(self._lease)
        asyncio.get_running_loop().add_reader(engine.event_fd, self._drain_events)
        self._held = HeldAtTheEnd(engine, engine.checkpoint_stop, begun=self._in_colo) if self._holds else None
        self._guide.begin(self._held or engine)
        engine.start()
        self._peers = [self._spawn(self._serve(engine, port), str(port)) for port in Port]

    def _replace_engine(self) -> None:
        """The primary's QEMU has died: what it said and what was held of it must never reach a client (R1)."""
        self._primary_lost = self._in_colo = False
        self._pacer.rest()
        held = self._engine.counters().comparator.held_frames[0]
        text = f"the primary is gone: {held} held frames of it are void; waiting for the next primary"
        log.warning("%s", text)
        self._journal.write("primary-gone", {"held_frames": held})
        for task in self._peers:
            task.cancel()
        asyncio.get_running_loop().remove_reader(self._engine.event_fd)
        self._engine.stop(0)
        for event in self._engine.events():
            self._voice.tell(event)
        self._done = self.snapshot()
        self._tell_recording()
        self._engine.close()
        try:
            self._engine = self._options.engine(again=True)
        except MisuseError as error:  # the disk is no reason to leave a primary without its proxy
            log.log(logging.ERROR, "%s; not recorded from here on", error)
            self._options = dataclasses.replace(self._options, record=None, record_ring=None)
            self._engine = self._options.engine()
        self._out_peer = None
        self._start_engine()

    def _tell_recording(self) -> None:
        """The engine has been stopped: what its recording has, and what it lacks."""
        if self._options.record is None:
            return
        n = self._engine.counters()
        fields = {
            "path": str(self._options.record.path), "files": n.record_files, "packets": n.recorded,
            "bytes": n.recorded_bytes, "lost": n.record_lost,
        }  # fmt: skip
        log.log(
            logging.WARNING if n.record_lost else logging.INFO,
            "recording %(path)s: %(packets)d packets in %(files)d files; %(lost)d could not be recorded",
            fields,
        )
        self._journal.write("recorded", fields)

    def _drain_events(self) -> None:
        engine = self._engine
        for event in engine.events():
            self._on_engine(event)
            if engine is not self._engine:
                return

    def _on_engine(self, event: EngineEvent) -> None:
        self._voice.tell(event)
        match event:
            case PeerAttached():
                self._attached[event.port].set()
                if event.port is Port.PRIMARY_IN:
                    self._primary_lost = False
            case PeerLost():
                self._attached[event.port].clear()
                self._lost[event.port].set()
                if event.port is Port.OUTDEV:
                    self._out_peer = None
                if event.port is Port.PRIMARY_IN:
                    self._primary_lost = True
            case EngineFailed():
                self._fail(event.reason)
            case _:
                pass
        self._guide.on_engine(event)
        if isinstance(event, PeerAttached) and event.port is Port.OUTDEV:
            self._revive()
        self._look_after_primary()

    def _look_after_primary(self) -> None:
        if self._primary_lost and not self._stopping and self._guide.primary_is_gone():
            self._replace_engine()

    # ----------------------------------------------------------------- peers

    async def _serve(self, engine: Engine, port: Port) -> None:
        """One peer after the other."""
        source, lost = self._sources[port], self._lost[port]
        while True:
            sock = await source.next()
            peer = _peer_of(sock)
            if port is Port.SECONDARY_IN and self._silence is not None:
                _set_silence(sock, self._silence)
            lost.clear()
            try:
                engine.attach(port, sock)
            except (MisuseError, LimitError, NativeError) as error:
                sock.close()
                log.warning("%s", error)
                await asyncio.sleep(0.1)
                continue
            if port is Port.OUTDEV:
                self._out_peer = peer
            await lost.wait()

    def _revive(self) -> None:
        """outdev has a peer, or QMP is there: when both are, see that the redirector behind outdev listens."""
        if self._qmp_guide is None or not self._qmp_guide.link.connected:
            return
        if self._options.out_redirector == "none" or self._out_peer is None:
            return
        if self._reviving is not None and not self._reviving.done():
            self._reviving.cancel()
        self._reviving = asyncio.get_running_loop().create_task(self._revive_now(self._qmp_guide, self._out_peer))

    async def _revive_now(self, guide: QmpGuide, peer: redirector.Peer) -> None:
        named = self._options.out_redirector

        async def execute(name: str, arguments: Mapping[str, object]) -> object:
            return await guide.link.execute(name, arguments or None)

        try:
            revived = await redirector.revive(execute, peer, None if named == "auto" else named)
        except ColoproxyError as error:
            log.warning("outdev: can't see to QEMU's redirector: %s", error)
            self._journal.write("trouble", {"text": str(error)})
            return
        if revived is not None:
            log.info("outdev: QEMU's redirector %s had gone deaf, it was made anew", revived)
            self._journal.write("redirector-revived", {"id": revived})

    # --------------------------------------------------------------- telling

    def _tell(self, report: Report) -> None:
        self._told(report if self._held is None else self._held.as_told(report))
        self._pacer.on_report(report)
        # QMP lost: the primary's socket may have been lost before
        asyncio.get_running_loop().call_soon(self._look_after_primary)


def _peer_of(sock: socket.socket) -> redirector.Peer:
    """Both ends of a connected socket, as query-chardev names them."""
    with contextlib.suppress(OSError):
        local, remote = sock.getsockname(), sock.getpeername()
        if sock.family == socket.AF_UNIX:
            return redirector.Peer(path=str(local or remote))
        return redirector.Peer(local=(local[0], local[1]), remote=(remote[0], remote[1]))
    return redirector.Peer()


def _set_silence(sock: socket.socket, limit: int) -> None:
    """The secondary is only heard: keepalives of the kernel's, a second apart, are all that shows that it is gone."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, math.ceil(limit / _NS) - 1))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(2000, limit // 1_000_000))
