# SPDX-License-Identifier: Apache-2.0
"""The engine: a thread of the C core that moves frames between the three sockets of QEMU's socket filters.

It runs without the GIL and calls nothing in Python; Python gives it sockets and commands, and reads events and
counters::

    with Engine() as engine:
        engine.start()
        engine.attach(Port.PRIMARY_IN, primary)      # connected stream sockets; the engine owns them from now on
        engine.attach(Port.SECONDARY_IN, secondary)
        engine.attach(Port.OUTDEV, outdev)
        loop.add_reader(engine.event_fd, lambda: handle(engine.events()))

It starts in mode ALONE: what the primary says is released at once. ``checkpoint_commit`` begins protection.

Back-pressure. Reading stops, and QEMU's end of the socket fills, when released bytes wait for outdev
(``max_out_bytes``), when the comparator takes no more, or when all receive slabs of a side are held by frames in the
comparator: then a ``LimitHit`` and a ``CheckpointWanted`` with the cause LIMIT_BYTES come, once an epoch, for a commit
makes room. Nothing of the primary is ever dropped.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Unpack

from coloproxy import errors
from coloproxy._native import check, ffi, lib
from coloproxy.comparator import Counters, counters_from_native
from coloproxy.config import ComparatorOptions, fill, fill_comparator
from coloproxy.engine_events import EngineEvent, Port, engine_event_from_native
from coloproxy.recording import OUTDEV_SNAP, RecordOptions, RingOptions, numbered, options_json, wall_offset
from coloproxy.rules import NO_RULES

__all__ = ["Engine", "EngineCounters"]

_BATCH = 64
_FOR_EVER = 2**63 - 1

_Three = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """A consistent snapshot of ``struct colo_engine_counters``. Triples are by Port.

    Attributes:
        comparator: the comparator's own.
        bytes_read, bytes_written: framing included; what outdev sends is read and thrown away.
        reads, writes: system calls on the three sockets.
        wakeups: turns of the thread's loop.
        attached: connections so far.
        faults: peers that broke the framing so far.
        pauses: how often reading stopped for back-pressure; for OUTDEV: how often its socket was full.
        slabs: receive slabs in use now.
        out_bytes: released bytes that wait for outdev now.
        gate_closed: how often frames waited for the control plane to deal with QMP messages.
        lease_waits: how often released frames waited because the lease was over.
        events_lost: divergences and limits that found the event ring full (no other event is ever lost).
        recorded, recorded_bytes: packets that the recording has, and bytes of its files.
        record_lost: frames, ACKs and marks that are missing in it: the disk was too slow, or failed.
        record_files: opened so far.
        record_error: the errno that ended the recording, 0: none.
        ring_bytes: kept in memory for the next divergence.
        dumps, dumps_failed: files for divergences that were written, and that could not be.
        connected: whether there is a peer now.
    """

    comparator: Counters
    bytes_read: _Three
    bytes_written: _Three
    reads: int
    writes: int
    wakeups: int
    attached: _Three
    faults: _Three
    pauses: _Three
    slabs: int
    out_bytes: int
    gate_closed: int
    lease_waits: int
    events_lost: int
    recorded: int
    recorded_bytes: int
    record_lost: int
    record_files: int
    record_error: int
    ring_bytes: int
    dumps: int
    dumps_failed: int
    connected: tuple[bool, bool, bool]


class Engine:
    """One comparator with its thread. A context manager: leaving it stops and closes the engine.

    Every method may be called from any thread, but for ``close``, which must be the last one. Commands are carried
    out by the engine's thread in the order given; those given before ``start`` when it starts.

    Args:
        vnet_hdr: QEMU's filters have vnet_hdr_support=on.
        nics: of the VM, 1 to 255. With more than one, which needs ``vnet_hdr``, the top byte of the second word before
            each frame is its NIC, from 0 on; QEMU's own filters speak for NIC 0.
        max_frame: largest frame accepted, bytes; 69,632 by default, as QEMU itself.
        slab_size: bytes of one receive slab; at least ``max_frame`` + 8. 512 KiB by default.
        max_slabs: bound of the memory for frames, both sides together, allocated when needed; each side owns a
            quarter that the other can't take. 768 by default (384 MiB).
        max_out_bytes: released bytes that may wait for outdev before the inputs are no longer read. 16 MiB by default.
        options: of its comparator, see :class:`coloproxy.config.ComparatorOptions`; hash_seed is random if left out.

    Raises:
        MisuseError: a limit or time that makes no sense.
    """

    def __init__(
        self,
        *,
        vnet_hdr: bool = False,
        nics: int = 1,
        max_frame: int | None = None,
        slab_size: int | None = None,
        max_slabs: int | None = None,
        max_out_bytes: int | None = None,
        **options: Unpack[ComparatorOptions],
    ) -> None:
        config = ffi.new("struct colo_engine_config *")
        lib.colo_engine_config_default(config)
        own = {
            "nics": nics,
            "max_frame": max_frame,
            "slab_size": slab_size,
            "max_slabs": max_slabs,
            "max_out_bytes": max_out_bytes,
        }
        fill(config, "Engine", own)
        config.vnet_hdr = vnet_hdr
        config.comparator.hash_seed = secrets.randbits(64)
        rules = fill_comparator(config.comparator, "Engine", options)
        handle = lib.colo_engine_create(config)
        del rules  # the C core has its own copy
        if handle == ffi.NULL:
            raise errors.MisuseError(f"Engine: unusable configuration (or no memory): {own | dict(options)}")
        self._e: Any = ffi.gc(handle, lib.colo_engine_destroy)
        self._config = config  # its rules are gone: recording wants the numbers
        self._rules = options.get("rules", NO_RULES)
        self._max_frame = int(config.max_frame)
        self._vnet_hdr = vnet_hdr
        self._nics = nics
        self._stopped = False

    # ------------------------------------------------------------ life

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the thread.

        Raises:
            MisuseError: it was started before.
            NativeError: the thread can't be made.
        """
        check(lib.colo_engine_start(self._handle), "Engine.start")

    def record(self, options: RecordOptions | None, number: int = 0, *, ring: RingOptions | None = None) -> None:
        """Records what the engine sees from its start on; see docs/recording.md. Before ``start``, once.

        What the disk is too slow for is not recorded, and counted. An error of the disk later ends the recording with
        a ``RecordingEnded``, nothing else. Each file that is written for a divergence, or can't be, is a
        ``RingDumped``.

        Args:
            options: where to, and when a file ends; None: no file.
            number: of the first file, see :func:`coloproxy.recording.next_number`.
            ring: keeps the last seconds for files of divergences; None: no ring.

        Raises:
            MisuseError: the file or the directory can't be opened, with its name; neither is wanted; the engine was
                started, or records already.
        """
        config = ffi.new("struct colo_record_config *")
        texts = [
            ffi.new("char[]", options_json(self._config.comparator, self._rules, vnet_hdr=self._vnet_hdr).encode())
        ]
        config.options = texts[0]
        own: dict[str, int | None] = {"outdev_snap": OUTDEV_SNAP, "wall_offset": wall_offset()}
        places = []
        if ring is not None:
            ring.check()
            places.append(str(ring.directory))
            texts.append(ffi.new("char[]", os.fsencode(ring.directory)))
            config.ring_dir = texts[-1]
            own |= {"ring_bytes": ring.max_bytes, "ring_time": ring.time, "ring_wait": ring.wait, "ring_gap": ring.gap}
        if options is not None:
            options.check()
            places.append(str(numbered(options.path, number)))
            if options.rotates and number == 0:
                raise errors.MisuseError(f"recording {places[-1]}: files that follow one another are numbered from 1")
            texts.append(ffi.new("char[]", os.fsencode(options.path)))
            config.path = texts[-1]
            own |= {
                "max_bytes": options.max_bytes,
                "max_time": options.max_time,
                "keep": options.keep,
                "number": number,
            }
        where = " or ".join(places)
        fill(config, f"recording {where}", own)
        result = lib.colo_engine_record(self._handle, config)
        if result == lib.COLO_ERR_SYSTEM:
            raise errors.MisuseError(f"recording {where}: {os.strerror(ffi.errno)}")
        check(result, f"Engine.record({where})")

    def stop(self, linger: float = 1.0) -> None:
        """Ends the thread and joins it; closes all sockets, outdev's when all that was released is written.

        Idempotent. Events and counters can still be read. Frames that are held are not released.

        Args:
            linger: seconds to try for, when outdev takes the bytes slowly.
        """
        self._stopped = True
        check(lib.colo_engine_stop(self._handle, max(0, min(int(linger * 1000), 2**31 - 1))), "Engine.stop")

    def close(self) -> None:
        """Stops without lingering and frees everything. Idempotent; every other call raises MisuseError from now on."""
        self._stopped = True
        if self._e is not None:
            handle, self._e = self._e, None
            ffi.release(handle)

    @property
    def _handle(self) -> Any:
        if self._e is None:
            raise errors.MisuseError("this Engine is closed")
        return self._e

    # ----------------------------------------------------------- peers

    def attach(self, port: Port, sock: socket.socket) -> None:
        """Gives a connected stream socket to the engine, which owns it from now on: ``sock`` is detached from it.

        Raises:
            MisuseError: the port has a peer, or the engine was stopped.
            LimitError: too many commands wait, or events of earlier ones were not read.
            NativeError: not a connected stream socket; or the engine has failed.
        """
        call = f"Engine.attach({port!s})"
        result = lib.colo_engine_attach(self._handle, port, sock.fileno())
        if result == lib.COLO_ERR_MISUSE:
            raise errors.MisuseError(f"{call}: the engine was stopped" if self._stopped else f"{call}: it has a peer")
        check(result, call)
        sock.detach()

    def detach(self, port: Port) -> None:
        """Closes the port's connection, if there is one; no event tells. The port may have its next peer at once.

        Raises:
            MisuseError: the engine was stopped.
            LimitError: too many commands wait.
            NativeError: the engine has failed.
        """
        check(lib.colo_engine_detach(self._handle, port), f"Engine.detach({port!s})")

    # ---------------------------------------------------------- events

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable while events wait. The engine owns it: poll it, don't read it."""
        return int(lib.colo_engine_event_fd(self._handle))

    def events(self) -> list[EngineEvent]:
        """All events that wait, oldest first. Never blocks."""
        out: list[EngineEvent] = []
        native = ffi.new("struct colo_engine_event[]", _BATCH)
        while count := lib.colo_engine_events(self._handle, native, _BATCH):
            out.extend(
                engine_event_from_native(native[i], self._max_frame, self._vnet_hdr, self._nics) for i in range(count)
            )
        return out

    def counters(self) -> EngineCounters:
        """A consistent snapshot as of the thread's last wake-up. Events read before are included in it."""
        n = ffi.new("struct colo_engine_counters *")
        lib.colo_engine_counters(self._handle, n)
        return EngineCounters(
            comparator=counters_from_native(n.comparator),
            bytes_read=tuple(n.bytes_read),
            bytes_written=tuple(n.bytes_written),
            reads=n.reads,
            writes=n.writes,
            wakeups=n.wakeups,
            attached=tuple(n.attached),
            faults=tuple(n.faults),
            pauses=tuple(n.pauses),
            slabs=n.slabs,
            out_bytes=n.out_bytes,
            gate_closed=n.gate_closed,
            lease_waits=n.lease_waits,
            events_lost=n.events_lost,
            recorded=n.recorded,
            recorded_bytes=n.recorded_bytes,
            record_lost=n.record_lost,
            record_files=n.record_files,
            record_error=n.record_error,
            ring_bytes=n.ring_bytes,
            dumps=n.dumps,
            dumps_failed=n.dumps_failed,
            connected=(bool(n.connected[0]), bool(n.connected[1]), bool(n.connected[2])),
        )

    # ------------------------------------------------------------ gate

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        """Puts the engine between a connected QMP socket and its user.

        The engine owns ``sock`` from now on (it is detached) and hands back a socket over which to speak QMP in its
        place. From each line that QEMU sends until ``gate_done`` says that it was dealt with, the engine judges no
        frame, so none is judged by the rules of an epoch that has ended (csrc/gate.h). A gate attached before is
        detached. File descriptors (QMP's getfd) don't pass.

        Raises:
            MisuseError: the engine was stopped.
            LimitError: too many commands wait, or events of earlier ones were not read.
            NativeError: not a connected stream socket; the system gives no socket pair; or the engine has failed.
        """
        near = check(lib.colo_engine_gate_attach(self._handle, sock.fileno()), "Engine.gate_attach")
        sock.detach()
        return socket.socket(fileno=near)

    def gate_done(self, messages: int) -> None:
        """So many more lines from QEMU were dealt with: commands that had to follow from them were given before.

        Of no effect when the engine was stopped: nothing waits any more.

        Raises:
            MisuseError: a negative number.
            LimitError: too many commands wait.
            NativeError: the engine has failed.
        """
        if messages < 0:
            raise errors.MisuseError(f"Engine.gate_done: {messages} messages")
        if not self._stopped:
            check(lib.colo_engine_gate_done(self._handle, messages), "Engine.gate_done")

    def gate_detach(self) -> None:
        """Closes the QMP connection and opens the gate. Of no effect when there is none, or the engine was stopped.

        Raises:
            LimitError: too many commands wait.
            NativeError: the engine has failed.
        """
        if not self._stopped:
            check(lib.colo_engine_gate_detach(self._handle), "Engine.gate_detach")

    # ----------------------------------------------------- checkpoints

    def checkpoint_stop(self) -> None:
        """The VMs stand still for a checkpoint: see :meth:`coloproxy.Comparator.stop`.

        What the secondary has sent so far is read to the end and belongs to the epoch that ends; output of the
        primary is kept from now on, and belongs to the epoch in which it was read.

        Raises:
            MisuseError: the engine was stopped.
            LimitError: too many commands wait.
            NativeError: the engine has failed.
        """
        check(lib.colo_engine_checkpoint_stop(self._handle), "Engine.checkpoint_stop")

    def checkpoint_commit(self, resumed_ns: int) -> None:
        """The checkpoint has committed, the primary resumed at ``resumed_ns`` (CLOCK_MONOTONIC; now, if later).

        Releases what was read before; a ``Committed`` event says how much. Begins a new epoch, and protection.

        Raises:
            MisuseError: the engine was stopped, or ``resumed_ns`` is out of range.
            LimitError: too many commands wait, or events of earlier ones were not read.
            NativeError: the engine has failed.
        """
        try:
            result = lib.colo_engine_checkpoint_commit(self._handle, resumed_ns)
        except OverflowError as error:
            raise errors.MisuseError(f"Engine.checkpoint_commit: resumed_ns={resumed_ns} is out of range") from error
        check(result, "Engine.checkpoint_commit")

    def checkpoint_abort(self) -> None:
        """The VMs run again without a commit: the epoch goes on. Raises as ``checkpoint_stop`` does."""
        check(lib.colo_engine_checkpoint_abort(self._handle), "Engine.checkpoint_abort")

    def alone(self) -> None:
        """There is no secondary: releases all that is held, and all to come at once. Raises as ``checkpoint_stop``."""
        check(lib.colo_engine_alone(self._handle), "Engine.alone")

    # ----------------------------------------------------------- lease

    def lease(self, until_ns: int | None) -> None:
        """Nothing is written to outdev from then on, CLOCK_MONOTONIC; None, as in the beginning: no limit.

        What is released then waits, and goes out under a later lease. It holds at once, before all queued commands.

        Raises:
            MisuseError: the engine is closed.
        """
        check(lib.colo_engine_lease(self._handle, _FOR_EVER if until_ns is None else until_ns), "Engine.lease")
