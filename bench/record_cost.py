# SPDX-License-Identifier: Apache-2.0
"""What recording costs the data path: the engine over loopback TCP, with and without a recording, in turn.

    PYTHONPATH=. python bench/record_cost.py [--seconds 2] [--rounds 5] [--rates 0,20000,100000] [--dir DIR] [--ring]

Both VMs send the same UDP datagrams in frames of 1,448 bytes; rate 0 is as fast as it goes. One process sends, one
reads outdev. Printed are medians over the rounds: frames a second, CPU time of the engine's thread a frame, and the
part of the packets that the recording lost. With --ring: of a ring of 10 seconds in place of a file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import struct
import tempfile
import time
from pathlib import Path
from statistics import median

from coloproxy.engine import Engine
from coloproxy.engine_events import Port
from coloproxy.recording import RecordOptions, RingOptions

FRAME = 1448
BATCH = 128  # frames of one turn at full speed
FOREVER = 3600 * 10**9


def frames(count: int) -> bytes:
    """So many framed datagrams, 16 a flow. No UDP checksum; IPv4's is not looked at either."""
    out = bytearray()
    for i in range(count):
        body = struct.pack("!HHHH", 53, 1024 + i // 16, FRAME - 34, 0) + struct.pack("!I", i) * 350
        body = body[: FRAME - 34].ljust(FRAME - 34, b".")
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
        frame = bytes.fromhex("5254000000c15254001234560800") + head + body
        out += struct.pack("!I", len(frame)) + frame
    return bytes(out)


def send(primary: socket.socket, secondary: socket.socket, seconds: float, rate: int) -> None:
    """Whole rounds of the same frames, to both sides in turn, until the time is over."""
    data = memoryview(frames(BATCH))
    step = len(data) // BATCH
    start = time.monotonic()
    sent = 0
    while (now := time.monotonic()) - start < seconds:
        due = BATCH if rate == 0 else min(BATCH, int((now - start) * rate) - sent)
        if due <= 0:
            time.sleep(0.0005)
            continue
        for sock in (primary, secondary):
            sock.sendall(data[: due * step])
        sent += due
    for sock in (primary, secondary):
        sock.shutdown(socket.SHUT_WR)


def swallow(sock: socket.socket) -> None:
    """Reads outdev."""
    while sock.recv(1 << 18):
        pass


def engine_cpu() -> float:
    """CPU seconds of the engine's thread so far; waits until the thread has given itself its name."""
    while True:
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().strip() == "colo-engine":
                return int((task / "schedstat").read_text().split()[0]) / 1e9
        time.sleep(0.001)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def measure(seconds: float, rate: int, path: Path | None, ring: bool) -> tuple[float, float, float]:
    """(frames a second, engine ns a frame, part lost)"""
    with Engine(compare_timeout=FOREVER, reorder_window=FOREVER) as engine:
        if path is not None:
            if ring:
                engine.record(None, ring=RingOptions(path.parent, 10 * 10**9))
            else:
                engine.record(RecordOptions(path))
        engine.start()
        far: dict[Port, socket.socket] = {}
        for port in Port:
            near, far[port] = pair()
            engine.attach(port, near)
        engine.checkpoint_commit(time.monotonic_ns())
        context = multiprocessing.get_context("fork")
        sink = context.Process(target=swallow, args=(far[Port.OUTDEV],), daemon=True)
        source = context.Process(target=send, args=(far[Port.PRIMARY_IN], far[Port.SECONDARY_IN], seconds, rate))
        sink.start()
        source.daemon = True
        begin, cpu = time.monotonic(), engine_cpu()
        source.start()
        source.join()
        while engine.counters().connected[:2] != (False, False) or engine.counters().comparator.held_frames[0]:
            far[Port.PRIMARY_IN].close()
            far[Port.SECONDARY_IN].close()
            time.sleep(0.001)
        took, cpu = time.monotonic() - begin, engine_cpu() - cpu
        engine.stop(1)
        counters = engine.counters()
        far[Port.OUTDEV].close()
        sink.terminate()  # it holds a copy of the engine's end, so it sees no end
        sink.join()
    released = sum(counters.comparator.released.values())
    packets = sum(counters.comparator.frames_in) if ring else counters.recorded + counters.record_lost
    return released / took, cpu * 1e9 / released, counters.record_lost / packets if packets else 0.0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", default="0,20000,100000", help="frames a second; 0: full speed")
    parser.add_argument("--dir", default=None, help="where the recordings go; they are deleted")
    parser.add_argument("--ring", action="store_true", help="a ring instead of a file")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {options.rounds} rounds of {options.seconds} s, frames of {FRAME} bytes; medians")
    print(
        f"{'rate':>10} {'recording':>10} {'frames/s':>10} {'engine ns/frame':>16} {'lost':>7} {'speed':>7} {'CPU':>7}"
    )
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = Path(folder) / "cost.pcapng"
        for rate in map(int, options.rates.split(",")):
            got: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
            for _ in range(options.rounds):
                for on in (False, True):
                    got[on].append(measure(options.seconds, rate, path if on else None, options.ring))
                    path.unlink(missing_ok=True)
            middle = {on: [median(column) for column in zip(*rows, strict=True)] for on, rows in got.items()}
            for on, (speed, cpu, lost) in middle.items():
                ratio = f"{speed / middle[False][0]:7.2f} {cpu / middle[False][1]:7.2f}" if on else ""
                print(
                    f"{rate or 'full':>10} {'on' if on else 'off':>10} {speed:10.0f} {cpu:16.0f} {lost:7.1%} {ratio}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
