# SPDX-License-Identifier: Apache-2.0
"""The documents' figures as tables, for Markdown and HTML alike. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from suite.goals import FIGURES

NONE: Final = "-"
_GOALS_HEAD: Final = ("work", "through", "against", "goal", "figure", "coloproxy", "against", "ratio", "met")


@dataclass(frozen=True, slots=True)
class Table:
    """Of text. The first `left` columns are words, the others numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    notes: tuple[str, ...] = ()


def number(value: float | None) -> str:
    """With three digits that count, or whole from 1,000 on: `0.031`, `12.3`, `1,204,000`."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if not size:
        return "0"
    if size >= 1000:
        digits = max(0, len(f"{size:.0f}") - 4)
        return f"{round(value, -digits):,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def spread(figure: Mapping[str, Any] | None) -> str:
    """`median (min to max)`; the median alone where there is nothing else."""
    if figure is None:
        return NONE
    if figure["min"] == figure["max"]:
        return number(figure["median"])
    return f"{number(figure['median'])} ({number(figure['min'])} to {number(figure['max'])})"


def _goal(row: Mapping[str, Any]) -> str:
    if row["goal"] is None:
        return "none"
    text = f"{'at most' if row['lower'] else 'at least'} {row['goal']:g}x"
    if row["at_least"] is not None:
        text += f", and {row['at_least']:g} {FIGURES[row['figure']]}"
    return text + (", nothing lost" if row["nothing_lost"] else "")


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return NONE
    if row["ratio_min"] is None or row["ratio_min"] == row["ratio_max"]:
        return f"{number(row['ratio'])}x"
    return f"{number(row['ratio'])}x ({number(row['ratio_min'])} to {number(row['ratio_max'])})"


def _met(row: Mapping[str, Any]) -> str:
    if row["met"] is None:
        return "" if row["goal"] is None else "not measured"
    return "yes" if row["met"] else "NO"


def goals_table(rows: Sequence[Mapping[str, Any]], caption: str = "Side by side") -> Table:
    """Of a side-by-side document's rows."""
    return Table(
        caption,
        _GOALS_HEAD,
        tuple(
            (
                row["title"],
                row["transport"],
                row["against"],
                _goal(row),
                FIGURES[row["figure"]],
                spread(row["ours"]),
                spread(row["theirs"]),
                _ratio(row),
                _met(row),
            )
            for row in rows
        ),
        left=5,
        notes=tuple(f"{row['title']}, {row['transport']}: {note}" for row in rows for note in row["notes"]),
    )


def core_table(document: Mapping[str, Any]) -> Table:
    """Of pytest-benchmark's JSON of bench/core."""
    rows = []
    for entry in document["benchmarks"]:
        extra, stats = entry["extra_info"], entry["stats"]
        if "ns_per_frame" in extra:
            of = [stats[name] * 1e9 / extra["frames"] for name in ("median", "min", "max")]
            ns = spread(dict(zip(("median", "min", "max"), of, strict=True)))
        else:
            ns = NONE
        rows.append(
            (
                entry["name"].removeprefix("test_").replace("_", " ").replace("[", " [", 1),
                entry["group"] or "",
                number(extra.get("flows")),
                ns,
                number(extra.get("gbit_per_s")),
                number(extra.get("bytes_per_flow")),
            )
        )
    return Table(
        "The comparator in process", ("suite", "group", "flows", "ns a frame", "Gbit/s", "bytes a flow"), tuple(rows), 2
    )


def by_point(runs: Iterable[Mapping[str, Any]], figure: str) -> dict[tuple[str, str, float], list[float]]:
    """A scaling document's figures by (series, line, x)."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for run in runs:
        value = run["figures"].get(figure)
        if value is not None:
            found.setdefault((run["series"], run["line"], run["x"]), []).append(value)
    return found


def scaling_table(document: Mapping[str, Any], series: str) -> Table:
    """Of one series of a scaling document: a row for each x, a column for each line."""
    about = document["series"][series]
    found = by_point(document["runs"], about["figure"])
    xs = sorted({x for name, _, x in found if name == series})
    rows = []
    for x in xs:
        cells = []
        for line in about["lines"]:
            values = found.get((series, line, x))
            cells.append(spread({"median": median(values), "min": min(values), "max": max(values)}) if values else NONE)
        rows.append((f"{x:,}", *cells))
    return Table(f"{about['title']} ({about['unit']})", (about["x"], *about["lines"].values()), tuple(rows), 1)


def guests_tables(document: Mapping[str, Any]) -> list[Table]:
    """Of the real guests' document: a table for each work, a row for each figure, a column for each set-up."""
    tables = []
    for work, title in document["works"].items():
        found = document["summary"].get(work, {})
        set_ups = list(found)
        names = dict.fromkeys(name for one in found.values() for name in one)
        rows = []
        for name in names:
            about = document["figures"].get(name, {})
            cells = (spread(found[set_up].get(name)) for set_up in set_ups)
            rows.append((f"{about.get('title', name)} ({about['unit']})" if about.get("unit") else name, *cells))
        tables.append(Table(title, ("figure", *set_ups), tuple(rows)))
    return tables


def facts_table(document: Mapping[str, Any]) -> Table:
    """On what it was measured, with which versions and parameters."""
    machine, versions, parameters = (document.get(name, {}) for name in ("machine", "versions", "parameters"))

    caches = machine.get("caches") or {}
    rows = [
        ("CPU", f"{machine.get('cpu', NONE)}, {machine.get('cpus', NONE)} of them"),
        ("caches", ", ".join(f"{name} {_size(value)}" for name, value in caches.items()) or "not told"),
        ("memory", _size(machine.get("memory"))),
        ("virtual machine", {True: "yes", False: "no"}.get(machine.get("hypervisor"), NONE)),
        ("frequency governor", machine.get("governor") or "not told"),
        ("kernel", f"{machine.get('kernel', NONE)}, {machine.get('system') or NONE}"),
        *((name.replace("_", " "), str(value)) for name, value in versions.items()),
        ("measured", f"{document.get('began', NONE)}"),
        *(
            (name.replace("_", " "), _parameter(value))
            for name, value in parameters.items()
            if not isinstance(value, list)
        ),
    ]
    return Table("Machine, versions, parameters", ("what", "value"), tuple(rows), 2)


def _size(value: int | None) -> str:
    if not value:
        return NONE
    shift, unit = next(
        (shift, unit) for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B")) if value >> shift
    )
    return f"{value / (1 << shift):.3g} {unit}"


def _parameter(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown, and its notes as a list."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---" if i < table.left else "---:" for i in range(len(table.head))]
    out = [line(table.head), "|" + "|".join(rule) + "|", *(line(row) for row in table.rows)]
    if table.notes:
        out += ["", *(f"- {' '.join(note.split())}" for note in table.notes)]
    return "\n".join(out)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """For the terminal: columns as wide as they must be."""
    table = goals_table(rows)
    widths = [max(len(row[i]) for row in (table.head, *table.rows)) for i in range(len(table.head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (table.head, *table.rows)
    ]
    return "\n".join([*lines, *(f"- {note}" for note in table.notes)])
