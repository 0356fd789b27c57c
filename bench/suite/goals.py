# SPDX-License-Identifier: Apache-2.0
"""What is measured side by side, and what is wanted of it: works, rows, and the ratios of a row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, NamedTuple

SUPER: Final = 45 * 1448
"""The payload of a TSO super-frame of 64 KiB, as Linux makes them."""

OURS, STOCK, RELAY, MEMORY = "coloproxy", "qemu", "relay", "memory"
NAMES: Final[Mapping[str, str]] = {
    OURS: "coloproxy",
    STOCK: "stock colo-compare",
    RELAY: "relay",
    MEMORY: "memcmp + memcpy",
}
"""Comparators as people call them. `memory` is none: the bytes are compared and copied, nothing else."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the VMs put out. `options` are those of `coloproxy bench`; None: in process, without sockets."""

    title: str
    options: tuple[str, ...] | None
    unix: bool = False


WORKS: Final[Mapping[str, Work]] = {
    "1448x1": Work("1448-byte segments, 1 flow", ("-l", "1448", "-P", "1")),
    "1448x64": Work("1448-byte segments, 64 flows", ("-l", "1448", "-P", "64")),
    "64x64": Work("64-byte segments, 64 flows", ("-l", "64", "-P", "64")),
    "1448x1000": Work("1448-byte segments, 1,000 flows", ("-l", "1448", "-P", "1000")),
    "1448x100000": Work("1448-byte segments, 100,000 flows", ("-l", "1448", "-P", "100000")),
    "recut": Work("secondary cuts 1000 against 1448, 1 flow", ("-l", "1448", "-P", "1", "--recut", "1000")),
    "skew": Work("secondary 1 MB behind, 1 flow", ("-l", "1448", "-P", "1", "--skew", "1M")),
    "tso": Work("TSO frames of 64 KiB, 1 flow", ("-l", str(SUPER), "-P", "1", "--vnet-hdr")),
    "request": Work(
        "one small request at a time, 1 ms apart",
        ("--request-response", "-P", "1", "-l", "200", "--think-time", "1", "--no-affinity"),
    ),
    "process": Work("1448 bytes in process, out of cache, one core", None),
    "1448x1-unix": Work("1448-byte segments, 1 flow", ("-l", "1448", "-P", "1"), unix=True),
    "1448x64-unix": Work("1448-byte segments, 64 flows", ("-l", "1448", "-P", "64"), unix=True),
    "64x64-unix": Work("64-byte segments, 64 flows", ("-l", "64", "-P", "64"), unix=True),
}

FIGURES: Final[Mapping[str, str]] = {
    "frames_per_second": "frames/s",
    "gbit_per_second": "Gbit/s",
    "latency_p50_us": "us, p50",
    "latency_p99_us": "us, p99",
    "cpu_seconds_per_gb": "CPU s/GB",
}


class Arm(NamedTuple):
    """One comparator at one work: what a run measures."""

    work: str
    comparator: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the goals' table. `goal`: of the ratio ours / against; None: for information."""

    figure: str
    ours: Arm
    against: Arm
    goal: float | None
    lower: bool = False  # the ratio must be at most the goal, not at least
    nothing_lost: bool = False
    at_least: float | None = None  # of the figure itself
    beyond: Arm | None = None  # what is taken from both figures of a round: what is not the comparators' doing


def _throughput(work: str, comparator: str, goal: float | None) -> Row:
    return Row("frames_per_second", Arm(work, OURS), Arm(work, comparator), goal)


def _own(work: str, goal: float) -> Row:
    return Row("frames_per_second", Arm(work, OURS), Arm("1448x1", OURS), goal, nothing_lost=True)


def _less(work: str, figure: str, goal: float | None, beyond: Arm | None = None) -> Row:
    return Row(figure, Arm(work, OURS), Arm(work, STOCK), goal, lower=True, beyond=beyond)


ROWS: Final[Mapping[str, Row]] = {
    "stock-1448x1": _throughput("1448x1", STOCK, 10),
    "stock-1448x64": _throughput("1448x64", STOCK, 10),
    "stock-64x64": _throughput("64x64", STOCK, 30),
    "relay-1448x1": _throughput("1448x1", RELAY, 0.85),
    "relay-1448x64": _throughput("1448x64", RELAY, 0.85),
    "flows-1000": _own("1448x1000", 0.8),
    "flows-100000": _own("1448x100000", 0.8),
    "recut": _own("recut", 0.7),
    "skew": _own("skew", 0.7),
    "tso": _throughput("tso", RELAY, 0.9),
    "process": Row("gbit_per_second", Arm("process", OURS), Arm("process", MEMORY), 0.5, at_least=40),
    "added-p50": _less("request", "latency_p50_us", 0.5, beyond=Arm("request", RELAY)),
    "added-p99": _less("request", "latency_p99_us", 0.5, beyond=Arm("request", RELAY)),
    "latency-p50": _less("request", "latency_p50_us", None),
    "latency-p99": _less("request", "latency_p99_us", None),
    "cpu-1448x1": _less("1448x1", "cpu_seconds_per_gb", 0.1),
    "cpu-1448x64": _less("1448x64", "cpu_seconds_per_gb", 0.1),
    "unix-stock-1448x1": _throughput("1448x1-unix", STOCK, None),
    "unix-stock-1448x64": _throughput("1448x64-unix", STOCK, None),
    "unix-stock-64x64": _throughput("64x64-unix", STOCK, None),
    "unix-relay-1448x1": _throughput("1448x1-unix", RELAY, None),
    "unix-relay-1448x64": _throughput("1448x64-unix", RELAY, None),
}


def arms(rows: Iterable[str]) -> list[Arm]:
    """Each of the rows' arms, once."""
    return list(dict.fromkeys(arm for name in rows for arm in _arms_of(ROWS[name])))


def _arms_of(row: Row) -> list[Arm]:
    return [row.ours, row.against, *([row.beyond] if row.beyond else [])]


def order(of: Sequence[Arm], number: int) -> list[Arm]:
    """Of one round: each begins elsewhere, each second one goes backwards, so that no arm has a place of its own."""
    shift = number * 3 % len(of) if of else 0
    turned = [*of[shift:], *of[:shift]]
    return turned[::-1] if number % 2 else turned


# ------------------------------------------------------------------ results


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def _values(runs: Iterable[Mapping[str, Any]], arm: Arm, figure: str) -> dict[int, float]:
    """By round."""
    return {
        run["round"]: run["figures"][figure]
        for run in runs
        if (run["work"], run["comparator"]) == arm and run["figures"].get(figure) is not None
    }


def _faults(runs: Iterable[Mapping[str, Any]], arm: Arm) -> list[str]:
    """What was wrong in any round of an arm, each once."""
    found: dict[str, None] = {}
    for run in runs:
        if (run["work"], run["comparator"]) == arm:
            found.update(dict.fromkeys(([run["error"]] if run.get("error") else []) + run["figures"].get("faults", [])))
    return list(found)


def _lost(runs: Sequence[Mapping[str, Any]], arm: Arm) -> int | None:
    """The most frames lost in a round; None: in some round nobody knows."""
    lost = [run["figures"].get("lost_frames") for run in runs if (run["work"], run["comparator"]) == arm]
    return None if not lost or None in lost else max(lost)


def judge(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row's figures, its ratio, and whether the goal is met (None: there is no goal, or a figure is missing).

    The ratio is that of the medians; its spread is that of the rounds' own ratios. `notes`: what else was seen.
    """
    row = ROWS[name]
    ours, against = (_values(runs, arm, row.figure) for arm in (row.ours, row.against))
    if row.beyond is not None:
        base = _values(runs, row.beyond, row.figure)
        ours, against = ({n: of[n] - base[n] for n in of if n in base} for of in (ours, against))
    pairs = [ours[n] / against[n] for n in ours if against.get(n)]
    mine, other = _spread(list(ours.values())), _spread(list(against.values()))
    ratio = mine["median"] / other["median"] if mine and other and other["median"] else None
    notes = [f"{NAMES[arm.comparator]}: {fault}" for arm in _arms_of(row) for fault in _faults(runs, arm)]
    met: bool | None = None
    if row.goal is not None and ratio is not None and mine is not None:
        met = ratio <= row.goal if row.lower else ratio >= row.goal
        if row.at_least is not None:
            met = met and mine["median"] >= row.at_least
        if row.nothing_lost:
            lost = _lost(runs, row.ours)
            met = met and lost == 0
            if lost != 0:
                notes.append("lost frames: unknown" if lost is None else f"lost {lost:,} frames")
    return {
        "name": name,
        "work": row.ours.work,
        "title": WORKS[row.ours.work].title + (", beyond the sockets' hops" if row.beyond else ""),
        "transport": transport(row.ours.work),
        "figure": row.figure,
        "against": NAMES[row.against.comparator]
        if row.against.work == row.ours.work
        else f"own figure, {WORKS[row.against.work].title}",
        "ours": mine,
        "theirs": other,
        "ratio": ratio,
        "ratio_min": min(pairs, default=None),
        "ratio_max": max(pairs, default=None),
        "goal": row.goal,
        "lower": row.lower,
        "at_least": row.at_least,
        "nothing_lost": row.nothing_lost,
        "met": met,
        "notes": notes,
    }


def transport(work: str) -> str:
    """Of a work, for people."""
    of = WORKS[work]
    return "in process" if of.options is None else "unix sockets" if of.unix else "TCP sockets"


def figures(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of `coloproxy bench -J` says, by the names used here; None where it says nothing."""

    def at(*path: str) -> Any:
        value: Any = document
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    ours = ("end", "coloproxy")
    frames, length = at(*ours, "frames", "per_second") or None, at("start", "test_start", "blksize")
    return {
        "frames_per_second": frames,
        "gbit_per_second": frames * length * 8 / 1e9 if frames and length else None,  # payload
        "latency_p50_us": at(*ours, "latency_us", "p50"),
        "latency_p99_us": at(*ours, "latency_us", "p99"),
        "cpu_seconds_per_gb": at(*ours, "cpu_seconds_per_gb"),
        "cpu_percent_comparator": at("end", "cpu_utilization_percent", "remote_total"),
        "cpu_percent_generator": at("end", "cpu_utilization_percent", "host_total"),
        "lost_frames": at(*ours, "lost_frames"),
        "checkpoints": at(*ours, "checkpoints"),
        "faults": at(*ours, "faults") or [],
    }
