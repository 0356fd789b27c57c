# SPDX-License-Identifier: Apache-2.0
"""The generator in C (csrc/traffic/), as a class. The one module that touches its ffi and lib."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Final

from coloproxy import errors

try:
    from coloproxy._traffic import ffi, lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise errors.NativeError(
        f"coloproxy's traffic generator is not built ({error}); install the package with `pip install .`"
    ) from error

MAX_FLOWS: Final[int] = lib.COLO_TRAFFIC_MAX_FLOWS
MAX_BURST: Final[int] = lib.COLO_TRAFFIC_MAX_BURST
MAX_LENGTH: Final[int] = lib.COLO_TRAFFIC_MAX_LENGTH
MAX_TURN: Final[int] = lib.COLO_TRAFFIC_MAX_TURN
MIN_DATAGRAM: Final[int] = lib.COLO_TRAFFIC_MIN_DATAGRAM


class Sink(IntEnum):
    """What is done with what comes out."""

    VERIFY = lib.COLO_SINK_VERIFY
    COUNT = lib.COLO_SINK_COUNT
    DISCARD = lib.COLO_SINK_DISCARD


class End(IntEnum):
    """Why `Traffic.run` returned."""

    TIME = lib.COLO_TRAFFIC_TIME
    COMPLETE = lib.COLO_TRAFFIC_COMPLETE
    CLOSED = lib.COLO_TRAFFIC_CLOSED
    BROKEN = lib.COLO_TRAFFIC_BROKEN
    INTERRUPTED = lib.COLO_TRAFFIC_INTERRUPTED


@dataclass(frozen=True, slots=True)
class TrafficConfig:
    """struct colo_traffic_config, by the same names and in the same units (bytes, ns, parts per million)."""

    flows: int = 1
    length: int = 1448
    recut: int = 0
    burst: int = 16
    turn: int = 65536
    gso_size: int = 1448
    skew: int = 0
    max_segments: int = 0
    rate: float = 0.0
    sample_every: int = 64
    loss_ppm: int = 0
    divergence_ppm: int = 0
    loss_delay: int = 20_000_000
    think_time: int = 0
    response_timeout: int = 5_000_000_000
    checkpoint_pause: int = 10_000_000
    drain: int = 5_000_000_000
    seed: int = 1
    sink: Sink = Sink.VERIFY
    request_response: bool = False
    udp: bool = False
    ipv6: bool = False
    vnet_hdr: bool = False
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """Of one side. `segments` and `payload` count each byte of the stream once."""

    frames: int = 0
    segments: int = 0
    payload: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """struct colo_traffic_counters; all only grow."""

    primary: Sent = field(default_factory=Sent)
    secondary: Sent = field(default_factory=Sent)
    released_frames: int = 0
    released_segments: int = 0
    released_payload: int = 0
    released_bytes: int = 0
    gaps: int = 0
    late: int = 0
    repeated: int = 0
    corrupt: int = 0
    foreign: int = 0
    lost_late: int = 0
    diverged: int = 0
    checkpoints: int = 0
    checkpoint_wishes: int = 0
    given_up: int = 0
    skew_given_up: int = 0
    polls: int = 0


_PLAIN: Final = tuple(f.name for f in fields(Counters) if f.name not in ("primary", "secondary"))
_SENT: Final = tuple(f.name for f in fields(Sent))


def _check(result: int, call: str) -> int:
    if result >= 0:
        return result
    if result == lib.COLO_TRAFFIC_ERR_MISUSE:
        raise errors.MisuseError(f"{call}: the options contradict one another")
    if result == lib.COLO_TRAFFIC_ERR_SYSTEM:
        code = ffi.errno
        raise errors.NativeError(f"{call}: {errno.errorcode.get(code, code)}: {os.strerror(code)}")
    raise errors.NativeError(f"{call}: out of memory")


def _native_config(config: TrafficConfig) -> Any:
    native = ffi.new("struct colo_traffic_config *")
    for each in fields(config):
        setattr(native, each.name, getattr(config, each.name))
    return native


def is_possible(config: TrafficConfig) -> bool:
    """Whether the generator takes it."""
    return bool(lib.colo_traffic_check(_native_config(config)) == 0)


class Traffic:
    """One run of the generator over connected, non-blocking sockets, given by descriptor; they stay the caller's.

    Raises:
        MisuseError: the configuration contradicts itself.
        NativeError: no memory.
    """

    def __init__(
        self, config: TrafficConfig, *, primary_in: int = -1, secondary_in: int = -1, outdev: int = -1, notify: int = -1
    ) -> None:
        sockets = ffi.new("struct colo_traffic_sockets *", [primary_in, secondary_in, outdev, notify])
        out = ffi.new("colo_traffic **")
        _check(lib.colo_traffic_create(_native_config(config), sockets, out), "colo_traffic_create")
        self._native = out[0]

    def run(self, until: int) -> End:
        """Until that time (CLOCK_MONOTONIC, ns) or the end. Without the GIL; signals wait until it returns."""
        return End(_check(lib.colo_traffic_run(self._native, until), "colo_traffic_run"))

    def stop(self) -> None:
        """Nothing new from now on; `run` then goes on until what was begun is complete."""
        lib.colo_traffic_stop(self._native)

    def counters(self) -> Counters:
        native = ffi.new("struct colo_traffic_counters *")
        lib.colo_traffic_get_counters(self._native, native)
        primary, secondary = (Sent(**{name: getattr(native.sent[i], name) for name in _SENT}) for i in (0, 1))
        return Counters(primary, secondary, **{name: getattr(native, name) for name in _PLAIN})

    @property
    def fault(self) -> str:
        """What was wrong, after End.CLOSED and End.BROKEN."""
        return str(ffi.string(lib.colo_traffic_fault(self._native)).decode())

    def latency(self) -> dict[int, int]:
        """How many samples so far for each latency, in ns (of a bucket of 0.1 %, its greatest)."""
        counts = ffi.new("const uint64_t **")
        size = lib.colo_traffic_latency(self._native, counts)
        values = ffi.unpack(counts[0], size)
        return {int(lib.colo_traffic_latency_greatest(i)): n for i, n in enumerate(values) if n}

    def close(self) -> None:
        """Frees it; idempotent."""
        native, self._native = self._native, ffi.NULL
        lib.colo_traffic_destroy(native)


def relay(primary_in: int, secondary_in: int, outdev: int, stop: int) -> None:
    """Relays until `stop` is readable or a peer has closed. Raises NativeError."""
    _check(lib.colo_relay_run(primary_in, secondary_in, outdev, stop), "colo_relay_run")
