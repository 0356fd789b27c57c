# SPDX-License-Identifier: Apache-2.0
"""One page of all that was measured, and the tables of docs/performance.md, from the documents that bench/ writes.

    python bench/report.py [--from build/bench] [--html FILE] [--markdown FILE] [--update docs/performance.md]

Reads side_by_side.json, scaling.json, core.json (pytest-benchmark's), tap.json and guests.json, as far as they are
there. The page refers to nothing outside of itself. --update replaces what stands in a Markdown file between

    <!-- bench:NAME:begin -->   and   <!-- bench:NAME:end -->

for each NAME of machine, goals, core, scaling, tap, and guests; what has no marks, or no document, stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core.library import OUT
from suite.goals import NAMES, ROWS, WORKS
from suite.plot import Bars, Line, Spread, bars_svg, lines_svg
from suite.tables import (
    Table,
    by_point,
    core_table,
    facts_table,
    goals_table,
    guests_tables,
    markdown,
    scaling_table,
)
from suite.tap_tables import tap_tables

DOCUMENTS: Final = ("side_by_side", "scaling", "core", "tap", "guests")
QUICK: Final = "A smoke run: these figures are no figures."

Documents = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Section:
    """Of the page. `name` is that of the marks in Markdown."""

    name: str
    title: str
    tables: tuple[Table, ...]
    texts: tuple[str, ...] = ()
    plots: tuple[tuple[str, str], ...] = ()
    folded: bool = False

    @property
    def ident(self) -> str:
        return f"s-{self.name}"


@dataclass(frozen=True, slots=True)
class Page:
    """All of it."""

    verdict: str
    sections: tuple[Section, ...]


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """The documents that are there. Raises ValueError where one is no JSON."""
    found = {}
    for name in DOCUMENTS:
        path = directory / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _is_quick(document: Mapping[str, Any]) -> bool:
    return bool(document.get("parameters", {}).get("quick"))


def _verdict(documents: Documents) -> str:
    document = documents.get("side_by_side")
    if document is None:
        return "Not measured side by side."
    with_goal = [row for row in document["rows"] if row["goal"] is not None]
    met = sum(row["met"] is True for row in with_goal)
    missing = sum(row["met"] is None for row in with_goal)
    text = f"{met} of {len(with_goal)} goals are met" + (f", {missing} not measured" if missing else "") + "."
    return f"{QUICK} {text}" if _is_quick(document) else text


def _spread_of(figure: Mapping[str, Any]) -> Spread:
    return Spread(figure["median"], figure["min"], figure["max"])


def _spread_over(values: list[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def _bars(rows: list[Mapping[str, Any]], figure: str) -> list[Bars]:
    """A group for each work: all comparators that have the figure."""
    groups: dict[str, dict[str, Spread]] = {}
    for row in rows:
        if row["figure"] != figure:
            continue
        of = WORKS[row["work"]]
        bars = groups.setdefault(f"{of.title}, {row['transport']}", {})
        if row["ours"] is not None:
            bars[NAMES["coloproxy"]] = _spread_of(row["ours"])
        if row["theirs"] is not None and row["against"] in NAMES.values():
            bars[row["against"]] = _spread_of(row["theirs"])
    return [
        Bars(name, {other: bars[other] for other in NAMES.values() if other in bars})
        for name, bars in groups.items()
        if len(bars) > 1
    ]


def _goals(document: Mapping[str, Any]) -> Section:
    rows = [row for row in document["rows"] if row["name"] in ROWS]
    plots = []
    for figure, unit, title in (
        ("frames_per_second", "frames/s", "Throughput"),
        ("latency_p50_us", "us", "Latency of one small request, p50"),
        ("latency_p99_us", "us", "Latency of one small request, p99"),
        ("cpu_seconds_per_gb", "s/GB", "CPU time per released GB"),
    ):
        svg = bars_svg(f"goals-{figure}", title, unit, _bars(rows, figure))
        if svg is not None:
            plots.append((svg, "Medians; the thin line is what the rounds lie between."))
    parameters = document["parameters"]
    return Section(
        "goals",
        "Side by side",
        (goals_table(document["rows"]),),
        texts=(
            *((QUICK,) if _is_quick(document) else ()),
            f"Medians of {parameters['rounds']} rounds of {parameters['seconds']:g} s each, between parentheses the "
            "smallest and the largest; ratios are those of the medians, and of single rounds.",
        ),
        plots=tuple(plots),
    )


def _scaling(document: Mapping[str, Any]) -> Section:
    plots = []
    for name, about in document["series"].items():
        found = by_point(document["runs"], about["figure"])
        lines = [
            Line(title, {x: _spread_over(of) for (s, key, x), of in found.items() if (s, key) == (name, line)})
            for line, title in about["lines"].items()
        ]
        svg = lines_svg(f"scaling-{name}", about["title"], about["x"], about["unit"], lines)
        if svg is not None:
            plots.append((svg, f"{about['unit']} by {about['x']}; points stand evenly, not to scale."))
    errors = tuple(
        dict.fromkeys(f"{run['series']} at {run['x']:,}: {run['error']}" for run in document["runs"] if run["error"])
    )
    tables = tuple(scaling_table(document, name) for name in document["series"])
    return Section(
        "scaling",
        "How cost grows",
        (*tables[:-1], replace(tables[-1], notes=errors)) if tables else (),
        folded=True,
        texts=(QUICK,) if _is_quick(document) else (),
        plots=tuple(plots),
    )


def _tap(document: Mapping[str, Any]) -> Section:
    parameters = document["parameters"]
    return Section(
        "tap",
        "TAP attach",
        tuple(tap_tables(document)),
        texts=(
            *((QUICK,) if _is_quick(document) else ()),
            f"Medians of {parameters['rounds']} rounds, between parentheses the smallest and the largest; ratios are "
            f"those of the medians. iperf3 for {parameters['seconds']} s, {parameters['requests']} requests.",
        ),
        folded=True,
    )


def build_page(documents: Documents) -> Page:
    """What the page says, in order."""
    sections = []
    if (document := documents.get("side_by_side")) is not None:
        sections.append(_goals(document))
    if (document := documents.get("core")) is not None:
        sections.append(Section("core", "The comparator in process", (core_table(document),)))
    if (document := documents.get("scaling")) is not None:
        sections.append(_scaling(document))
    if (document := documents.get("tap")) is not None:
        sections.append(_tap(document))
    if (document := documents.get("guests")) is not None:
        tables = tuple(guests_tables(document))
        sections.append(Section("guests", "Real guests: end to end", tables, folded=True))
    for name in ("side_by_side", "scaling"):
        if (document := documents.get(name)) is not None:
            sections.append(Section("machine", "On what it was measured", (facts_table(document),)))
            break
    return Page(_verdict(documents), tuple(sections))


def render_html(page: Page) -> str:
    """The page as one HTML file. Everything is escaped; the only markup let through is our own SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent / "suite"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page=page)


def render_section(section: Section) -> str:
    """A section's tables as Markdown, without its title."""
    many = len(section.tables) > 1
    parts = [f"{text}" for text in section.texts]
    for table in section.tables:
        parts.append(f"**{table.caption}**\n\n{markdown(table)}" if many else markdown(table))
    return "\n\n".join(parts)


def render_markdown(page: Page) -> str:
    """All sections as one Markdown file."""
    parts = ["# Measured", page.verdict]
    for section in page.sections:
        parts += [f"## {section.title}", render_section(section)]
    return "\n\n".join(parts) + "\n"


def update(text: str, page: Page) -> str:
    """A Markdown file with its marked parts replaced by the page's sections."""
    for section in page.sections:
        begin, end = (f"<!-- bench:{section.name}:{which} -->" for which in ("begin", "end"))
        inner = f"{begin}\n\n{render_section(section)}\n\n{end}"
        text = re.sub(rf"{begin}.*?{end}", inner.replace("\\", r"\\"), text, flags=re.DOTALL)
    return text


def main() -> int:
    """Reads, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=OUT, metavar="DIR", help="of the JSON documents")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page (DIR/report.html)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables (DIR/report.md)")
    parser.add_argument("--update", type=Path, metavar="FILE", help="replace the marked parts of this file too")
    options = parser.parse_args()
    documents = read(options.source)
    if not documents:
        print(f"report.py: {options.source} has no document of a measurement", file=sys.stderr)
        return 1
    page = build_page(documents)
    html = options.html or options.source / "report.html"
    html.write_text(render_html(page), encoding="utf-8")
    text = options.markdown or options.source / "report.md"
    text.write_text(render_markdown(page), encoding="utf-8")
    print(f"{page.verdict}\nwrote {html} and {text}")
    if options.update is not None:
        options.update.write_text(update(options.update.read_text(encoding="utf-8"), page), encoding="utf-8")
        print(f"updated {options.update}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
