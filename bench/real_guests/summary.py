# SPDX-License-Identifier: Apache-2.0
"""From every round's figures to medians, spreads and ratios, and to a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from .setups import COLOPROXY, STOCK, UNPROTECTED
from .work import Figures


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure is, for whoever shows it."""

    title: str
    unit: str
    better: str
    """`lower`, `higher`, or empty: neither."""
    shown: bool = True
    """In the table."""


FIGURES: Final[Mapping[str, Figure]] = {
    "p50_ms": Figure("latency, p50", "ms", "lower"),
    "p99_ms": Figure("latency, p99", "ms", "lower"),
    "max_ms": Figure("latency, max", "ms", "lower"),
    "mean_ms": Figure("latency, mean", "ms", "lower"),
    "answered": Figure("requests answered", "", "higher", shown=False),
    "mbit_per_second": Figure("throughput", "Mbit/s", "higher"),
    "bytes": Figure("bytes received", "bytes", "higher", shown=False),
    "retransmits": Figure("TCP retransmits of the sender", "", "lower"),
    "errors": Figure("errors", "", "lower"),
    "connects": Figure("connections opened", "", "", shown=False),
    "seconds": Figure("time taken", "s", "", shown=False),
    "checkpoints": Figure("checkpoints", "", "lower"),
    "checkpoints_per_1000_requests": Figure("checkpoints / 1000 requests", "", "lower", shown=False),
    "checkpoints_per_100_mb": Figure("checkpoints / 100 MB", "", "lower"),
    "pause_median_ms": Figure("pause of a checkpoint, median", "ms", "lower"),
    "pause_max_ms": Figure("pause of a checkpoint, max", "ms", "lower"),
    "pause_sum_ms": Figure("pauses in all", "ms", "lower", shown=False),
    "cpu_primary_s": Figure("CPU of the primary's QEMU", "s", "lower", shown=False),
    "cpu_secondary_s": Figure("CPU of the secondary's QEMU", "s", "lower", shown=False),
    "cpu_comparator_s": Figure("CPU of the comparator's process", "s", "lower"),
    "cpu_s_per_gb": Figure("CPU of the coloproxies by 10^9 bytes", "s", "lower", shown=False),
    "cpu_primary_and_comparator_s": Figure("CPU, primary's QEMU + comparator", "s", "lower"),
}

_RATIOS = ((COLOPROXY, STOCK), (COLOPROXY, UNPROTECTED), (STOCK, UNPROTECTED))
_WIDTH = 26


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{work: {set-up: {figure: {median, min, max, count}}}}, of the figures that were measured at all."""
    columns: dict[str, dict[str, dict[str, list[float]]]] = {}
    for entry in rounds:
        for work, result in entry["results"].items():
            for figure, value in result["figures"].items():
                if value is not None:
                    column = columns.setdefault(work, {}).setdefault(entry["set_up"], {}).setdefault(figure, [])
                    column.append(float(value))
    return {
        work: {
            set_up: {figure: _spread(column) for figure, column in figures.items()} for set_up, figures in per.items()
        }
        for work, per in columns.items()
    }


def ratios(
    summary: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    wanted: Sequence[tuple[str, str]] = _RATIOS,
) -> dict[str, dict[str, Figures]]:
    """{work: {figure: {"coloproxy/stock": ratio of the medians, ...}}}; null where there is none."""
    found: dict[str, dict[str, Figures]] = {}
    for work, per_set_up in summary.items():
        names = {figure for figures in per_set_up.values() for figure in figures}
        for figure in (name for name in FIGURES if name in names):
            pairs: Figures = {}
            for over, under in wanted:
                if over in per_set_up and under in per_set_up:
                    above = per_set_up[over].get(figure, {}).get("median")
                    below = per_set_up[under].get(figure, {}).get("median")
                    pairs[f"{over}/{under}"] = above / below if above is not None and below else None
            if pairs:
                found.setdefault(work, {})[figure] = pairs
    return found


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines: for each work a block, a line a figure: medians with their spread, and the ratio."""
    set_ups = document["parameters"]["set_ups"]
    wide = max(52, *(len(title) for title in document["works"].values())) + 1
    for work, title in document["works"].items():
        if work not in document["summary"]:
            yield from ("", f"{title}: not measured")
            continue
        yield ""
        ratio = "coloproxy/stock" if {COLOPROXY, STOCK} <= set(set_ups) else ""
        yield f"{title:<{wide}}" + "".join(f"{name:>{_WIDTH}}" for name in set_ups) + f"{ratio:>17}"
        per_set_up = document["summary"][work]
        for name, figure in FIGURES.items():
            if not figure.shown or not any(name in figures for figures in per_set_up.values()):
                continue
            label = f"  {figure.title}{f' ({figure.unit})' if figure.unit else ''}"
            cells = (_cell(per_set_up.get(set_up, {}).get(name)) for set_up in set_ups)
            quotient = document["ratios"].get(work, {}).get(name, {}).get("coloproxy/stock")
            yield (
                f"{label:<{wide}}"
                + "".join(f"{cell:>{_WIDTH}}" for cell in cells)
                + (f"{quotient:>17.2f}" if quotient is not None else "")
            )


def _spread(column: Sequence[float]) -> dict[str, float]:
    return {"median": median(column), "min": min(column), "max": max(column), "count": len(column)}


def _cell(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    if spread["count"] == 1:
        return _number(spread["median"])
    return f"{_number(spread['median'])} ({_number(spread['min'])}..{_number(spread['max'])})"


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
