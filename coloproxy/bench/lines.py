# SPDX-License-Identifier: Apache-2.0
"""A run for people: a line an interval, as iperf3 has it, and a summary. Pure."""

from __future__ import annotations

from coloproxy.bench.result import Interval, Result
from coloproxy.bench.traffic import End

HEADER = "interval (s)          transfer        bitrate      frames/s    released/s         lag  checkpoints"


def amount(value: float, unit: str, *, base: int = 1000) -> str:
    """`1.25 Gbit/s`, three digits."""
    prefixes = ("", "K", "M", "G", "T")
    index = 0
    while value >= base and index < len(prefixes) - 1:
        value /= base
        index += 1
    text = f"{value:.0f}" if value >= 100 or (index == 0 and value == int(value)) else f"{value:.3g}"
    return f"{text} {prefixes[index]}{unit}"


def interval_line(interval: Interval) -> str:
    """One interval: what the primary sent as payload, its frames, what came out."""
    seconds = interval.seconds or 1e-9
    checkpoints = interval.end.counters.checkpoints - interval.begin.counters.checkpoints
    return (
        f"{interval.begin.at / 1e9:7.2f}-{interval.end.at / 1e9:<7.2f}"
        f" {amount(interval.sent_bytes, 'Bytes', base=1024):>14} {amount(8 * interval.sent_bytes / seconds, 'bits/s'):>14}"
        f" {interval.sent_frames / seconds:13,.0f} {interval.rate('released_frames'):13,.0f} {interval.lag:11,}"
        f" {checkpoints:12,}{'  (omitted)' if interval.omitted else ''}"
    )


def summary(result: Result) -> list[str]:
    """What a run has come to."""
    total = result.total
    lines = ["- " * 48, interval_line(total)]
    if result.lost_frames is not None:
        lines.append(f"lost         {result.lost_frames:,} frames ({result.lost_percent:.3g} %)")
    if result.latency is not None:
        of = result.latency
        each = "  ".join(f"{name} {value:,.1f}" for name, value in of.percentiles.items())
        lines.append(f"latency      {each}  max {of.maximum:,.1f} us  ({of.samples:,} samples)")
    if total.end.counters.checkpoints:
        lines.append(f"checkpoints  {total.end.counters.checkpoints:,}")
    seconds = total.seconds or 1e-9
    for name, cpu in (("comparator", result.cpu), ("generator", result.own_cpu)):
        if cpu is not None:
            per_gb = (
                f", {result.cpu_seconds_per_gb:.3f} s/GB released"
                if name == "comparator" and (result.cpu_seconds_per_gb is not None)
                else ""
            )
            lines.append(
                f"CPU          {name} {100 * cpu.total / seconds:.1f} % ({cpu.user:.2f} s user, {cpu.system:.2f} s "
                f"system{per_gb})"
            )
    if result.end is End.COMPLETE and not result.faults:
        lines.append("all that the primary sent came out" if result.receives and result.sends else "done")
    lines += [f"FAULT        {fault}" for fault in result.faults]
    return lines
