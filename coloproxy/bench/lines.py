# SPDX-License-Identifier: Apache-2.0
"""A run for people: a line an interval, as iperf3 has it, and a summary. Pure."""

from __future__ import annotations

from coloproxy.bench.cpu import CpuTime
from coloproxy.bench.options import Role
from coloproxy.bench.result import Interval, Result
from coloproxy.bench.traffic import Sink

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
    transfer = amount(interval.sent_bytes, "Bytes", base=1024)
    bitrate = amount(8 * interval.sent_bytes / seconds, "bits/s")
    return (
        f"{interval.begin.at / 1e9:7.2f}-{interval.end.at / 1e9:<7.2f} {transfer:>14} {bitrate:>14}"
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
    n = total.end.counters
    if n.checkpoint_wishes:
        lines.append(f"checkpoints  {n.checkpoints:,}, asked for {n.checkpoint_wishes:,} times")
    if n.skew_given_up:
        lines.append(f"skew         not kept {n.skew_given_up:,} times: the comparator had stopped reading the primary")
    if result.cpu is not None:
        per_gb = result.cpu_seconds_per_gb
        lines.append(_cpu_line("comparator", result.cpu, total) + (f", {per_gb:.3f} s/GB released" if per_gb else ""))
    lines.append(_cpu_line("generator", result.own_cpu, total))
    if result.may_lose:
        lines += [f"result       {what}" for what in result.misorders]
    if result.role is Role.BOTH and not result.faults and not result.misorders and result.sink is not Sink.DISCARD:
        lines.append("all that the primary sent came out")
    return lines + [f"FAULT        {fault}" for fault in result.faults]


def _cpu_line(name: str, cpu: CpuTime, total: Interval) -> str:
    percent = 100 * cpu.total / (total.seconds or 1e-9)
    return f"CPU          {name} {percent:.1f} % ({cpu.user:.2f} s user, {cpu.system:.2f} s system)"
