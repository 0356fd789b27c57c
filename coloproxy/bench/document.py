# SPDX-License-Identifier: Apache-2.0
"""A run as one JSON object of iperf3's shape, with what only a comparator has under `coloproxy`. Pure.

`bytes` and `bits_per_second` are payload, as iperf3's; of the released side too, where frames are verified.
"""

from __future__ import annotations

import platform
from typing import Any

from coloproxy import __version__
from coloproxy.bench.cpu import CpuTime
from coloproxy.bench.options import BenchOptions
from coloproxy.bench.result import Interval, Result
from coloproxy.bench.traffic import Sink


def _sum(interval: Interval, sent: int, *, sender: bool) -> dict[str, Any]:
    begin, end = interval.begin.at / 1e9, interval.end.at / 1e9
    seconds = interval.seconds
    return {
        "start": begin,
        "end": end,
        "seconds": seconds,
        "bytes": sent,
        "bits_per_second": 8 * sent / seconds if seconds > 0 else 0.0,
        "sender": sender,
    }


def _released(interval: Interval) -> int:
    """Payload where it is known, else bytes on the socket."""
    before, after = interval.begin.counters, interval.end.counters
    return (after.released_payload - before.released_payload) or (after.released_bytes - before.released_bytes)


def _interval(interval: Interval) -> dict[str, Any]:
    seconds = interval.seconds or 1e-9
    total = _sum(interval, interval.sent_bytes, sender=True) | {
        "omitted": interval.omitted,
        "frames": interval.sent_frames,
        "frames_per_second": interval.sent_frames / seconds,
        "released_frames_per_second": interval.rate("released_frames"),
        "lag_frames": interval.lag,
        "checkpoints": interval.end.counters.checkpoints - interval.begin.counters.checkpoints,
    }
    return {"streams": [], "sum": total}


def _percent(prefix: str, cpu: CpuTime | None, seconds: float) -> dict[str, float | None]:
    parts = {"total": None, "user": None, "system": None} if cpu is None else {
        "total": cpu.total, "user": cpu.user, "system": cpu.system
    }  # fmt: skip
    return {f"{prefix}_{name}": None if part is None else 100 * part / seconds for name, part in parts.items()}


def _test_start(options: BenchOptions) -> dict[str, Any]:
    traffic = options.traffic
    return {
        "protocol": "UDP" if traffic.udp else "TCP",
        "num_streams": traffic.flows,
        "blksize": traffic.length,
        "omit": options.omit,
        "affinity": options.affinity,
        "duration": options.time,
        "bytes": traffic.max_segments * traffic.length,
        "target_bitrate": traffic.rate * 8 * traffic.length,
        "ipv6": traffic.ipv6,
        "vnet_hdr": traffic.vnet_hdr,
        "timestamps": traffic.timestamps,
        "burst": traffic.burst,
        "turn": traffic.turn,
        "skew": traffic.skew,
        "recut": traffic.recut,
        "loss_percent": traffic.loss_ppm / 10_000,
        "divergence_per_million": traffic.divergence_ppm,
        "request_response": traffic.request_response,
        "think_time_ms": traffic.think_time / 1e6,
        "sink": traffic.sink.name.lower(),
    }


def document(options: BenchOptions, result: Result, command: tuple[str, ...]) -> dict[str, Any]:
    """The whole run. `command`: of the comparator, where it was started here."""
    total, last = result.total, result.last.counters
    seconds = total.seconds or 1e-9
    latency = result.latency
    connected = {} if options.sockets is None else options.sockets.given()
    remote = _percent("remote", result.cpu, seconds)
    return {
        "start": {
            "connected": [{"name": name, "address": str(address)} for name, address in connected.items()],
            "version": f"coloproxy {__version__}",
            "system_info": " ".join(platform.uname()),
            "connecting_to": {"comparator": None if options.sockets is not None else str(options.comparator)},
            "command": list(command),
            "role": str(options.role),
            "test_start": _test_start(options),
        },
        "intervals": [_interval(interval) for interval in result.intervals],
        "end": {
            "streams": [],
            "sum_sent": _sum(total, total.sent_bytes, sender=True),
            "sum_received": _sum(total, _released(total), sender=False),
            "cpu_utilization_percent": _percent("host", result.own_cpu, seconds) | remote,
            "coloproxy": {
                "frames": {
                    "sent": last.primary.frames,
                    "secondary_sent": last.secondary.frames,
                    "released": None if result.sink is Sink.DISCARD or not result.receives else last.released_frames,
                    "per_second": total.rate("released_frames"),
                    "gaps": last.gaps,
                    "late": last.late,
                    "repeated": last.repeated,
                    "corrupt": last.corrupt,
                    "foreign": last.foreign,
                },
                "lost_frames": result.lost_frames,
                "lost_percent": result.lost_percent,
                "latency_us": None
                if latency is None
                else latency.percentiles
                | {
                    "max": latency.maximum,
                    "mean": latency.mean,
                    "samples": latency.samples,
                    "hdrhistogram_ns": latency.histogram,
                },
                "checkpoints": last.checkpoints,
                "checkpoint_wishes": last.checkpoint_wishes,
                "secondary": {"late": last.lost_late, "diverged": last.diverged, "skew_given_up": last.skew_given_up},
                "responses_given_up": last.given_up,
                "cpu_seconds": None if result.cpu is None else {"user": result.cpu.user, "system": result.cpu.system},
                "cpu_seconds_per_gb": result.cpu_seconds_per_gb,
                "misorders": result.misorders,
                "interrupted": result.interrupted,
                "faults": result.faults,
            },
        },
    }
