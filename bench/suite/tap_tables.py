# SPDX-License-Identifier: Apache-2.0
"""The TAP attach's document as tables: a block for each kind of card, a row for each work, a column for each way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from suite.tables import NONE, Table, number, spread

_SHOWN: Final = ("mbit_per_second", "cpu_s_per_gb", "p50_ms", "p99_ms")


def _quotient(document: Mapping[str, Any], cell: str, work: str, figure: str, pair: str) -> str:
    value = document["ratios"].get(cell, {}).get(work, {}).get(figure, {}).get(pair)
    return NONE if value is None else f"{number(value)}x"


def tap_tables(document: Mapping[str, Any]) -> list[Table]:
    """For each cell one: medians with what the rounds lie between, then the ratios of the medians."""
    tables = []
    ways, pairs = document["ways"], document["parameters"]["ratios"]
    for cell, title in document["cells"].items():
        summary = document["summary"].get(cell, {})
        shown = [way for way in ways if any(way in found for found in summary.values())]
        wanted = [pair for pair in pairs if set(pair.split("/")) <= set(shown)]
        rows = []
        for work, about in document["works"].items():
            for figure in _SHOWN:
                found = {way: summary.get(work, {}).get(way, {}).get(figure) for way in shown}
                if not any(found.values()):
                    continue
                rows.append(
                    (
                        f"{about}: {document['figures'][figure]}",
                        *(spread(found[way]) for way in shown),
                        *(_quotient(document, cell, work, figure, pair) for pair in wanted),
                    )
                )
        notes = (_checkpoints(document, cell), *_errors(document, cell))
        tables.append(
            Table(
                title, ("work", *(ways[way] for way in shown), *wanted), tuple(rows), notes=tuple(filter(None, notes))
            )
        )
    return tables


def _checkpoints(document: Mapping[str, Any], cell: str) -> str:
    counts: dict[str, int] = {}
    for entry in document["rounds"]:
        if entry["cell"] == cell:
            for result in entry["results"].values():
                if (count := result["figures"].get("checkpoints")) is not None:
                    counts[entry["way"]] = counts.get(entry["way"], 0) + count
    said = ", ".join(f"{way} {count}" for way, count in counts.items())
    return f"Checkpoints in all rounds: {said}." if said else ""


def _errors(document: Mapping[str, Any], cell: str) -> list[str]:
    found = []
    for entry in document["rounds"]:
        if entry["cell"] != cell:
            continue
        where = f"round {entry['round']}, {document['ways'][entry['way']]}"
        if entry["error"]:
            found.append(f"{where}: {entry['error']}")
        found += [f"{where}, {work}: {one['error']}" for work, one in entry["results"].items() if one["error"]]
    return found
