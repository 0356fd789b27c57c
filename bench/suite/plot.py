# SPDX-License-Identifier: Apache-2.0
"""Lines and bars as SVG elements, by hand as coloproxy/report/plot.py and for its reasons. Pure.

Colours come from the page's CSS; lines also differ by their dashes and marks, so that colour is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple

from coloproxy.report.plot import nice_ticks
from suite.tables import number

_WIDTH: Final = 900
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 70, 48
_TALL: Final = 230
_DASHES: Final = ("", "7 4", "2 3", "9 3 2 3")
_BAR, _GAP, _NAMES, _SPACE_RIGHT = 17, 12, 250, 190


class Spread(NamedTuple):
    """A median, and what the rounds were between."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Its points by x."""

    title: str
    points: dict[float, Spread]


@dataclass(frozen=True, slots=True)
class Bars:
    """One group: a bar for each name."""

    title: str
    bars: dict[str, Spread]


def short(value: float) -> str:
    """An axis label: `64`, `1.4k`, `65k`, `16M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def _open(ident: str, height: int, title: str, words: str) -> list[str]:
    name = escape(ident)
    return [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" font-size="12" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(words)}</desc>',
    ]


def _mark(index: int, x: float, y: float) -> str:
    look = f'class="mark l{index}" fill="currentColor"'
    if index == 0:
        return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if index == 1:
        return f'<rect {look} x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    return f'<path {look} d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>'


def _dash(index: int) -> str:
    dash = _DASHES[index % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def describe_lines(lines: Sequence[Line], unit: str) -> str:
    """The plot in words, for those who can't see it."""
    words = []
    for line in lines:
        if line.points:
            first, last = min(line.points), max(line.points)
            words.append(
                f"{line.title}: {number(line.points[first].median)} {unit} at {short(first)}, "
                f"{number(line.points[last].median)} at {short(last)}."
            )
    return " ".join(words)


def lines_svg(ident: str, title: str, x_title: str, unit: str, lines: Sequence[Line]) -> str | None:
    """Lines over points that stand evenly, whatever their distance; None: there is nothing to draw."""
    xs = sorted({x for line in lines for x in line.points})
    if not xs:
        return None
    top = max(spread.high for line in lines for spread in line.points.values()) or 1.0
    ticks = nice_ticks(0, top * 1.05)
    top = max(top * 1.05, ticks[-1])
    wide, foot = _WIDTH - _LEFT - _RIGHT, _TOP + _TALL

    def place_x(x: float) -> float:
        return _LEFT + wide * (xs.index(x) + 0.5) / len(xs)

    def place_y(y: float) -> float:
        return foot - y / top * _TALL

    out = _open(ident, foot + _BOTTOM, f"{title}, {unit}", describe_lines(lines, unit))
    out.append(f'<text class="head" x="8" y="16" font-weight="600">{escape(title)}</text>')
    faint = 'stroke="currentColor" stroke-opacity="0.2"'
    for tick in ticks:
        at = place_y(tick)
        out.append(f'<line class="grid" {faint} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for x in xs:
        out.append(f'<text x="{place_x(x):.1f}" y="{foot + 18}" text-anchor="middle">{short(x)}</text>')
    out.append(f'<text x="{_LEFT + wide / 2:.0f}" y="{foot + 38}" text-anchor="middle">{escape(x_title)}</text>')
    out.append(f'<text x="8" y="{_TOP - 24}">{escape(unit)}</text>')
    out += _legend([line.title for line in lines])
    for index, line in enumerate(lines):
        out += _line(index, line, place_x, place_y)
    out.append("</svg>")
    return "\n".join(out)


def _legend(titles: Sequence[str]) -> list[str]:
    out = []
    at = _LEFT + 60
    for index, title in enumerate(titles):
        y = _TOP - 28
        out.append(
            f'<path class="l{index}" fill="none" stroke="currentColor" stroke-width="2" '
            f'd="M{at} {y}h36"{_dash(index)}/>'
        )
        out.append(_mark(index, at + 18, y))
        out.append(f'<text x="{at + 44}" y="{y + 4}">{escape(title)}</text>')
        at += 70 + 7 * len(title)
    return out


def _line(
    index: int, line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[str]:  # fmt: skip
    points = [(place_x(x), line.points[x]) for x in sorted(line.points)]
    look = f'class="l{index}" fill="none" stroke="currentColor"'
    way = "L".join(f"{x:.1f} {place_y(spread.median):.1f}" for x, spread in points)
    out = [f'<path {look} stroke-width="2" d="M{way}"{_dash(index)}/>']
    for x, spread in points:
        low, high = place_y(spread.low), place_y(spread.high)
        if low - high > 1:
            out.append(f'<path {look} d="M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"/>')
        out.append(_mark(index, x, place_y(spread.median)))
    return out


def bars_svg(ident: str, title: str, unit: str, groups: Sequence[Bars]) -> str | None:
    """Groups of horizontal bars, each group by its own scale: its longest bar is full; None: nothing to draw."""
    groups = [group for group in groups if group.bars]
    if not groups:
        return None
    titles = list(dict.fromkeys(name for group in groups for name in group.bars))
    height = 28 + sum(_BAR * len(group.bars) + _GAP + 22 for group in groups)
    words = " ".join(
        f"{group.title}: "
        + ", ".join(f"{name} {number(spread.median)}" for name, spread in group.bars.items())
        + f" {unit}."
        for group in groups
    )
    out = _open(ident, height, f"{title}, {unit}", words)
    out.append(f'<text class="head" x="8" y="16" font-weight="600">{escape(title)}, {escape(unit)}</text>')
    wide = _WIDTH - _NAMES - _SPACE_RIGHT
    y = 44
    for group in groups:
        out.append(f'<text class="name" x="8" y="{y}">{escape(group.title)}</text>')
        y += 6
        full = max(spread.high for spread in group.bars.values()) or 1.0
        for name, spread in group.bars.items():
            long, low, high = (value / full * wide for value in (spread.median, spread.low, spread.high))
            middle = y + _BAR / 2
            out.append(f'<text x="{_NAMES - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
            out.append(
                f'<rect class="bar l{titles.index(name)}" fill="currentColor" x="{_NAMES}" y="{y + 2}" '
                f'width="{max(long, 1):.1f}" height="{_BAR - 4}"/>'
            )
            if high - low > 1:
                out.append(
                    f'<path class="spread" fill="none" stroke="currentColor" '
                    f'd="M{_NAMES + low:.1f} {middle:.1f}H{_NAMES + high:.1f}"/>'
                )
            out.append(f'<text x="{_NAMES + high + 8:.1f}" y="{middle + 4:.1f}">{number(spread.median)} {unit}</text>')
            y += _BAR
        y += _GAP + 16
    out.append("</svg>")
    return "\n".join(out)
