# SPDX-License-Identifier: Apache-2.0
"""The engine over real TCP sockets, from Python: what the C tests (tests/c) don't see, and the big load."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

import pytest
import wire

from coloproxy._native import ffi, lib
from coloproxy.engine import Engine, EngineCounters
from coloproxy.engine_events import (
    Committed,
    EngineEvent,
    EngineFailed,
    Fault,
    GateLost,
    PeerAttached,
    PeerLost,
    Port,
    engine_event_from_native,
)
from coloproxy.errors import LimitError, MisuseError, NativeError
from coloproxy.events import Cause, CheckpointWanted, Divergence, FrameClass, LimitHit, Mode, Reason

PATIENCE = 20.0  # seconds; a test that waits so long has failed
FOREVER = 3600 * 10**9
ETHERNET = bytes.fromhex("5254000000c1525400123456")

Event = TypeVar("Event", bound=EngineEvent)


def framed(frame: bytes, vnet_len: int | None = None, nic: int = 0) -> bytes:
    """As QEMU's socket filters send it; ``vnet_len`` with vnet_hdr_support=on; ``nic`` of several."""
    if vnet_len is None:
        return struct.pack("!I", len(frame)) + frame
    return struct.pack("!II", vnet_len + len(frame), nic << 24 | vnet_len) + bytes(vnet_len) + frame


def experimental(text: bytes) -> bytes:
    """A frame of an experimental ethertype: it is compared as a whole."""
    return ETHERNET + b"\x88\xb5" + text.ljust(46, b".")


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(PATIENCE)
    return ours, theirs


def read_exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(min(length - len(data), 1 << 20))
        assert piece, f"the stream ended after {len(data)} of {length} bytes"
        data += piece
    return bytes(data)


class Rig:
    """A running engine with the far ends of its sockets."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.far: dict[Port, socket.socket] = {}
        self.seen: list[EngineEvent] = []  # taken, not yet waited for

    def attach(self, port: Port) -> None:
        ours, self.far[port] = connected()
        self.engine.attach(port, ours)
        assert ours.fileno() == -1
        assert self.wait(PeerAttached).port is port

    def send(self, port: Port, data: bytes) -> None:
        self.far[port].sendall(data)

    def expect(self, data: bytes) -> None:
        assert read_exactly(self.far[Port.OUTDEV], len(data)) == data

    def silent(self) -> bool:
        return not select.select([self.far[Port.OUTDEV]], [], [], 0)[0]

    def wait(self, kind: type[Event]) -> Event:
        """The next event of this kind; others before it are passed over."""
        while True:
            while self.seen:
                event = self.seen.pop(0)
                if isinstance(event, kind):
                    return event
            assert select.select([self.engine.event_fd], [], [], PATIENCE)[0], f"no {kind.__name__} came"
            self.seen = self.engine.events()

    def until(self, condition: Callable[[EngineCounters], bool]) -> EngineCounters:
        end = time.monotonic() + PATIENCE
        while not condition(counters := self.engine.counters()):
            assert time.monotonic() < end, counters
        return counters

    def protect(self) -> None:
        self.engine.checkpoint_commit(time.monotonic_ns())
        self.wait(Committed)


@contextmanager
def rig(ports: Sequence[Port] = tuple(Port), **config: object) -> Iterator[Rig]:
    config = {"compare_timeout": FOREVER, "reorder_window": FOREVER, **config}
    with Engine(**config) as engine:  # type: ignore[arg-type]
        engine.start()
        r = Rig(engine)
        try:
            for port in ports:
                r.attach(port)
            yield r
        finally:
            for sock in r.far.values():
                sock.close()


# ------------------------------------------------------------------ passage


@pytest.mark.parametrize("vnet_len", [None, 0, 10, 12])
def test_alone_passes_everything_in_order(vnet_len: int | None) -> None:
    with rig(vnet_hdr=vnet_len is not None) as r:
        frames = b"".join(framed(experimental(b"%d" % i), vnet_len) for i in range(100))
        r.send(Port.PRIMARY_IN, frames)
        r.send(Port.SECONDARY_IN, frames)
        r.expect(frames)
        counters = r.until(lambda n: n.comparator.frames_in == (100, 100))
        assert counters.comparator.mode is Mode.ALONE
        assert counters.comparator.released[Reason.ALONE] == 100
        assert counters.comparator.discarded[Reason.ALONE] == 100
        assert counters.bytes_read == (len(frames), len(frames), 0)
        assert counters.bytes_written == (0, 0, len(frames))
        assert counters.connected == (True, True, True)
        assert counters.attached == (1, 1, 1)
        assert counters.out_bytes == 0


def test_difference_checkpoint_release() -> None:
    with rig(reorder_window=1) as r:
        r.protect()
        theirs, same = framed(experimental(b"theirs")), framed(experimental(b"same"))
        r.send(Port.PRIMARY_IN, framed(experimental(b"ours")) + same)
        r.send(Port.SECONDARY_IN, theirs + same)
        divergence = r.wait(Divergence)
        assert divergence.flow is not None
        assert divergence.flow.frame_class is FrameClass.OTHER
        assert divergence.cause is Cause.DATAGRAM
        assert r.wait(CheckpointWanted).cause is Cause.DATAGRAM
        assert r.silent()
        r.engine.checkpoint_stop()
        r.engine.checkpoint_commit(time.monotonic_ns())
        r.expect(framed(experimental(b"ours")) + same)
        assert r.wait(Committed).released_frames == 2


def test_aborted_checkpoint_and_the_end_of_protection() -> None:
    with rig() as r:
        r.protect()
        one, two = framed(experimental(b"one")), framed(experimental(b"two"))
        r.engine.checkpoint_stop()
        r.send(Port.PRIMARY_IN, one)
        r.send(Port.SECONDARY_IN, one)
        r.until(lambda n: n.comparator.frames_in[0] == 1)
        assert r.silent()
        r.engine.checkpoint_abort()
        r.expect(one)
        r.send(Port.PRIMARY_IN, two)
        r.until(lambda n: n.comparator.held_frames[0] == 1)
        r.engine.alone()
        r.expect(two)
        assert r.until(lambda n: n.comparator.mode is Mode.ALONE).comparator.aborts == 1


def test_nics_are_compared_apart() -> None:
    """Both have a connection of the same addresses and ports; the ACK that is paid leaves by the NIC it is owed on."""
    with rig(vnet_hdr=True, nics=3) as r:
        r.protect()

        def tcp(nic: int, ack: int, body: bytes = b"", seq: int = 1000) -> bytes:
            return framed(wire.tcp(wire.PLAIN, seq, ack, wire.ACK, body), 12, nic)

        def fed(*counts: int) -> None:
            r.until(lambda n: n.comparator.frames_in == counts)

        r.send(Port.PRIMARY_IN, tcp(0, 7, b"first") + tcp(2, 7, b"second"))
        fed(2, 0)
        r.send(Port.SECONDARY_IN, tcp(2, 7, b"second"))
        r.expect(tcp(2, 7, b"second"))
        r.send(Port.SECONDARY_IN, tcp(0, 7, b"first"))
        r.expect(tcp(0, 7, b"first"))
        r.send(Port.PRIMARY_IN, tcp(2, 9, b"third", 1006))
        fed(3, 2)
        r.send(Port.SECONDARY_IN, tcp(2, 7, b"third", 1006))
        r.expect(tcp(2, 7, b"third", 1006))  # its ACK number was lowered
        r.send(Port.SECONDARY_IN, tcp(0, 9, b"", 1005))
        fed(3, 4)
        assert r.silent()
        r.send(Port.SECONDARY_IN, tcp(2, 9, b"", 1011))
        length, word = struct.unpack("!II", read_exactly(r.far[Port.OUTDEV], 8))
        assert word == 2 << 24 | 12
        ack = read_exactly(r.far[Port.OUTDEV], length)[12:]
        assert struct.unpack("!II", ack[38:46]) == (1011, 9)
        assert r.engine.counters().comparator.acks_emitted == 1


def test_a_difference_names_its_nic() -> None:
    with rig(vnet_hdr=True, nics=2) as r:
        r.protect()
        r.send(Port.PRIMARY_IN, framed(wire.tcp(wire.PLAIN, 1, 7, wire.ACK, b"one"), 0, 1))
        r.until(lambda n: n.comparator.frames_in == (1, 0))
        r.send(Port.SECONDARY_IN, framed(wire.tcp(wire.PLAIN, 1, 7, wire.ACK, b"two"), 0, 1))
        flow = r.wait(Divergence).flow
        assert flow is not None
        assert flow.nic == 1
        assert str(flow).startswith("nic1 tcp ")


# -------------------------------------------------------------------- peers


@pytest.mark.parametrize(
    ("nics", "garbage", "fault", "text"),
    [
        (
            0,
            b"GET / HTTP/1.1\r\n",
            Fault.OVERSIZE,
            "secondary_in: length prefix 1195725856 (text 'GET ') at byte 64 is above the limit of 69632 bytes; "
            "is that peer QEMU's filter-redirector, with vnet_hdr_support=off as here?",
        ),
        (
            0,
            bytes(4),
            Fault.EMPTY,
            "secondary_in: length prefix 0 at byte 64; "
            "is that peer QEMU's filter-redirector, with vnet_hdr_support=off as here?",
        ),
        (
            1,
            framed(experimental(b"no vnet word")),
            Fault.VNET,
            "secondary_in: vnet header length 1381236736 at byte 72 is none of 0, 10 and 12, or longer than its frame; "
            "is that peer QEMU's filter-redirector, with vnet_hdr_support=on as here?",
        ),
        (
            2,
            framed(experimental(b"the third of two"), 0, 2),
            Fault.NIC,
            "secondary_in: NIC 2 at byte 72, but this VM has NICs 0 to 1 only; "
            "does that peer write NICs into the vnet_hdr word, with vnet_hdr_support=on as here?",
        ),
    ],
)
def test_peer_that_breaks_the_framing(nics: int, garbage: bytes, fault: Fault, text: str) -> None:
    with rig(vnet_hdr=nics > 0, nics=max(nics, 1)) as r:
        good = framed(experimental(b"good"), 0 if nics else None)
        r.send(Port.SECONDARY_IN, good + garbage)
        lost = r.wait(PeerLost)
        assert (lost.port, lost.fault, lost.errno) == (Port.SECONDARY_IN, fault, None)
        assert lost.reason == text
        assert r.far[Port.SECONDARY_IN].recv(1) == b""
        r.send(Port.PRIMARY_IN, good)  # the others are unharmed
        r.expect(good)
        r.attach(Port.SECONDARY_IN)
        assert r.engine.counters().faults == (0, 1, 0)
        assert r.engine.counters().attached == (1, 2, 1)


def test_peers_that_close() -> None:
    with rig() as r:
        whole = framed(experimental(b"whole"))
        r.send(Port.PRIMARY_IN, whole + whole[:20])
        r.far[Port.PRIMARY_IN].close()
        lost = r.wait(PeerLost)
        assert lost.fault is Fault.TRUNCATED
        assert lost.reason == (
            "primary_in: closed by its peer in the middle of a frame of 60 bytes that began at byte 64"
        )
        r.expect(whole)
        r.far[Port.SECONDARY_IN].close()
        assert r.wait(PeerLost).reason == "secondary_in: closed by its peer"
        r.far[Port.OUTDEV].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        r.far[Port.OUTDEV].close()
        lost = r.wait(PeerLost)
        assert lost.reason == "outdev: connection lost: Connection reset by peer (ECONNRESET)"
        for port in Port:
            r.attach(port)
        r.send(Port.PRIMARY_IN, whole)
        r.expect(whole)


def test_outdev_comes_late() -> None:
    with rig((Port.PRIMARY_IN, Port.SECONDARY_IN), max_out_bytes=100_000, slab_size=128 * 1024) as r:
        frames = b"".join(framed(experimental(b"%d" % i) * 20) for i in range(5000))
        writer = threading.Thread(target=r.send, args=(Port.PRIMARY_IN, frames))
        writer.start()
        counters = r.until(lambda n: n.pauses[0] == 1)
        assert 100_000 < counters.out_bytes < 400_000
        r.attach(Port.OUTDEV)
        r.expect(frames)
        writer.join(PATIENCE)


def test_past_its_lease_nothing_leaves_and_nothing_is_lost() -> None:
    one, two = framed(experimental(b"one")), framed(experimental(b"two"))
    with rig() as r:
        r.engine.lease(time.monotonic_ns())
        r.send(Port.PRIMARY_IN, one)
        counters = r.until(lambda n: n.lease_waits == 1)
        assert counters.out_bytes == len(one) and r.silent()
        r.engine.lease(time.monotonic_ns() + FOREVER)
        r.expect(one)
        r.engine.lease(0)
        r.send(Port.PRIMARY_IN, two)
        assert r.until(lambda n: n.lease_waits == 2).out_bytes == len(two)
        r.engine.lease(None)
        r.expect(two)
    with pytest.raises(MisuseError, match="closed"):
        r.engine.lease(None)


def test_slabs_run_out_and_a_commit_makes_room() -> None:
    with rig(max_slabs=8, slab_size=128 * 1024) as r:
        r.protect()
        frames = b"".join(framed(experimental(b"%d" % i) * 20) for i in range(2000))  # 2.4 MB, a side has 768 KiB
        writer = threading.Thread(target=r.send, args=(Port.PRIMARY_IN, frames))
        writer.start()
        assert r.wait(LimitHit).cause is Cause.LIMIT_BYTES
        assert r.wait(CheckpointWanted).cause is Cause.LIMIT_BYTES
        r.engine.alone()
        r.expect(frames)
        writer.join(PATIENCE)


# --------------------------------------------------------------------- gate


def test_gate() -> None:
    with rig() as r:
        r.protect()
        ours, qemu = connected()
        with closing(qemu), closing(r.engine.gate_attach(ours)) as qmp:
            assert ours.fileno() == -1
            qmp.settimeout(PATIENCE)
            qmp.sendall(b'{"execute": "qmp_capabilities"}\n')
            assert qemu.recv(100) == b'{"execute": "qmp_capabilities"}\n'
            frame = framed(experimental(b"frame"))
            r.send(Port.SECONDARY_IN, frame)
            r.until(lambda n: n.comparator.held_frames[1] == 1)
            lines = b'{"event": "STOP"}\r\n{"event": "RESUME"}\r\n'
            qemu.sendall(lines)
            assert read_exactly(qmp, len(lines)) == lines
            r.send(Port.PRIMARY_IN, frame)
            before = r.engine.counters().wakeups
            r.engine.gate_done(1)
            r.until(lambda n: n.wakeups > before)
            assert r.silent()
            r.engine.gate_done(1)
            r.expect(frame)
            qemu.close()
            assert r.wait(GateLost).reason == "QMP: closed"
            assert qmp.recv(1) == b""
            r.send(Port.PRIMARY_IN, frame)
            r.send(Port.SECONDARY_IN, frame)
            before = r.engine.counters().wakeups
            r.engine.gate_done(0)
            r.until(lambda n: n.wakeups > before)
            assert r.silent()  # nobody knows of checkpoints now
            r.engine.gate_detach()
            r.expect(frame)


# ------------------------------------------------------------ life and misuse


def test_misuse_names_the_call() -> None:
    ours, theirs = connected()
    with closing(theirs), rig() as r:
        with pytest.raises(MisuseError, match=r"Engine\.attach\(outdev\): it has a peer"):
            r.engine.attach(Port.OUTDEV, ours)
        assert ours.fileno() >= 0  # still the caller's
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dgram:
            r.engine.detach(Port.OUTDEV)
            with pytest.raises(NativeError, match=r"Engine\.attach\(outdev\): system call failed: E"):
                r.engine.attach(Port.OUTDEV, dgram)
            with pytest.raises(NativeError, match=r"Engine\.gate_attach: system call failed: E"):
                r.engine.gate_attach(dgram)
        r.engine.attach(Port.OUTDEV, ours)
        with pytest.raises(MisuseError, match=r"Engine\.start"):
            r.engine.start()
        with pytest.raises(MisuseError, match=r"gate_done: -1 messages"):
            r.engine.gate_done(-1)
        with pytest.raises(MisuseError, match="out of range"):
            r.engine.checkpoint_commit(2**63)


def test_bad_configuration() -> None:
    for bad in ({"max_frames": 0}, {"slab_size": 1000}, {"max_slabs": 2}, {"compare_timeout": -1}):
        with pytest.raises(MisuseError, match="unusable configuration"):
            Engine(**bad)  # type: ignore[arg-type]
    for bad in ({"max_frames": -1}, {"max_slabs": 2**32}, {"hash_seed": 2**64}):
        with pytest.raises(MisuseError, match="is out of range"):
            Engine(**bad)  # type: ignore[arg-type]


def test_after_stop_and_close() -> None:
    with rig() as r:
        frames = framed(experimental(b"last words")) * 1000
        r.send(Port.PRIMARY_IN, frames)
        r.until(lambda n: n.comparator.frames_in[0] == 1000)
        r.engine.stop(linger=PATIENCE)
        r.engine.stop()
        r.expect(frames)
        for sock in r.far.values():
            assert sock.recv(1) == b""
        assert r.engine.counters().connected == (False, False, False)
        assert r.engine.counters().comparator.released[Reason.ALONE] == 1000
        r.engine.gate_done(1)  # nothing waits any more: no error
        r.engine.gate_detach()
        ours, theirs = connected()
        with closing(ours), closing(theirs):
            with pytest.raises(MisuseError, match="was stopped"):
                r.engine.attach(Port.OUTDEV, ours)
            with pytest.raises(MisuseError):
                r.engine.alone()
            r.engine.close()
            r.engine.close()
            with pytest.raises(MisuseError, match="closed"):
                r.engine.counters()


def test_commands_before_start_wait_for_it_and_are_bounded() -> None:
    with Engine() as engine:
        ours, theirs = connected()
        engine.attach(Port.OUTDEV, ours)
        with pytest.raises(LimitError, match=r"Engine\.alone: limit reached"):
            for _ in range(1000):
                engine.alone()
        assert engine.events() == []
        engine.start()
        assert select.select([engine.event_fd], [], [], PATIENCE)[0]
        assert isinstance(engine.events()[0], PeerAttached)
    with closing(theirs):
        assert theirs.recv(1) == b""


def test_a_failed_engine_says_so() -> None:
    event = ffi.new("struct colo_engine_event *", {"kind": lib.COLO_ENGINE_FATAL, "error": 12, "time": 5})
    assert engine_event_from_native(event, 69632, False) == EngineFailed(
        5, "engine: Cannot allocate memory (ENOMEM)", 12
    )


# ----------------------------------------------------------------------- load

FLOWS = 20_000
ROUNDS = 3
SEGMENT = 1448
CLIENT_ACK = 7001


def tcp(flow: int, seq: int, flags: int, payload: bytes) -> bytes:
    """From 10.0.0.2:80 to a client of its own; checksums left to the network card, as guests do."""
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        40 + len(payload),
        0,
        0x4000,
        64,
        6,
        0,
        b"\x0a\0\0\2",
        struct.pack("!I", 0x0A010000 + flow),
    )
    header = struct.pack("!HHIIBBHHH", 80, 1024 + flow % 50_000, seq & 0xFFFFFFFF, CLIENT_ACK, 0x50, flags, 502, 0, 0)
    return ETHERNET + b"\x08\0" + ip + header + payload


def stream(flow: int, number: int) -> bytes:
    """The flow's segment of this number: unlike any other."""
    return struct.pack("!II", flow, number) * (SEGMENT // 8)


def conversation(isn: int, order: random.Random | None) -> list[list[bytes]]:
    """By round: a SYN-ACK of each flow, then a segment of each; each round in another order, if one is given."""
    rounds: list[list[bytes]] = []
    for number in range(-1, ROUNDS):
        flows = list(range(FLOWS))
        if order is not None:
            order.shuffle(flows)
        if number < 0:
            rounds.append([framed(tcp(flow, isn + flow, 0x12, b"")) for flow in flows])
        else:
            rounds.append(
                [framed(tcp(flow, isn + flow + 1 + number * SEGMENT, 0x18, stream(flow, number))) for flow in flows]
            )
    return rounds


def split(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("!I", data, at)
        yield data[at : at + 4 + length]
        at += 4 + length
    assert at == len(data)


def test_20000_flows_lose_nothing() -> None:
    """Issue 2: 20,000 flows of 1448-byte segments through the three sockets, the secondary in another order, with other
    initial sequence numbers; every frame of the primary comes out once, unaltered, in its flow's order."""
    primary = conversation(0xFFFFFFFF - FLOWS // 2, None)  # half of the flows wrap
    secondary = conversation(0x12345678, random.Random(1))
    total = sum(len(frame) for frames in primary for frame in frames)
    begin = time.monotonic()
    with rig() as r:
        r.protect()
        writers = [
            threading.Thread(target=r.send, args=(port, b"".join(frame for frames in rounds for frame in frames)))
            for port, rounds in ((Port.PRIMARY_IN, primary), (Port.SECONDARY_IN, secondary))
        ]
        for writer in writers:
            writer.start()
        received = read_exactly(r.far[Port.OUTDEV], total)
        for writer in writers:
            writer.join(PATIENCE)
        counters = r.until(lambda n: n.comparator.held_frames == (0, 0))
        assert r.silent()
    took = time.monotonic() - begin
    by_flow: dict[bytes, list[bytes]] = {}
    for frame in split(received):
        by_flow.setdefault(frame[34:38], []).append(frame)  # by the client's address
    assert by_flow == {frames[0][34:38]: list(frames) for frames in zip(*primary, strict=True)}
    frames_sent = FLOWS * (ROUNDS + 1)
    assert counters.comparator.frames_in == (frames_sent, frames_sent)
    assert counters.comparator.released[Reason.MATCHED] == frames_sent
    assert counters.comparator.compared_bytes == FLOWS * ROUNDS * SEGMENT
    assert sum(counters.comparator.divergences.values()) == 0
    assert counters.comparator.checkpoints_wanted == 0
    assert took < 10, f"took {took:.1f} s"
