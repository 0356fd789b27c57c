# SPDX-License-Identifier: Apache-2.0
"""Stream progress of both sides over time, as an SVG element.

Drawn by hand and not by matplotlib: two staircases and two axes are a page of code, while matplotlib would bring
a hundred megabytes of installation, a second of import, and colours that are fixed in the file. This SVG takes its
colours from the page's CSS, so it follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

__all__ = ["MAX_POINTS", "progress_svg", "thin"]

MAX_POINTS = 600
"""Points drawn of one line: more than the plot is wide would not show."""

_WIDTH, _HEIGHT = 900, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 16, 44

Point = tuple[int, int]
"""(ns, stream offset)."""


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` of the points, evenly spread over their number, always with the first and the last."""
    if len(points) <= limit:
        return list(points)
    step = (len(points) - 1) / (limit - 1)
    return [points[round(i * step)] for i in range(limit)]


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between both, inclusive."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _bytes_label(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.6g} {unit}"
    return f"{value:.0f}"


def _time_unit(span_ns: float) -> tuple[str, float]:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if span_ns >= 2 * size:
            return unit, size
    return "ns", 1.0


def progress_svg(
    primary: Sequence[Point], secondary: Sequence[Point], *, mark: int | None = None, ident: str = "progress"
) -> str | None:
    """The SVG element as text, or None if there is nothing to draw.

    Args:
        primary, secondary: (time in ns, stream offset reached), in order of time.
        mark: time in ns of the difference: a vertical line.
        ident: prefix of the element's ids, for a page with several plots.
    """
    everything = [*primary, *secondary]
    if len(everything) < 2:
        return None
    times = [time for time, _ in everything] + ([] if mark is None else [mark])
    t0, t1 = min(times), max(times)
    low, high = min(offset for _, offset in everything), max(offset for _, offset in everything)
    span_t, span_o = max(t1 - t0, 1), max(high - low, 1)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(time: float) -> float:
        return _LEFT + (time - t0) / span_t * wide

    def y(offset: float) -> float:
        return _TOP + tall - (offset - low) / span_o * tall

    unit, size = _time_unit(span_t)
    out = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="12" '
        f'aria-labelledby="{escape(ident)}-title {escape(ident)}-desc">',
        f'<title id="{escape(ident)}-title">Stream progress of both sides</title>',
        f'<desc id="{escape(ident)}-desc">{escape(describe(primary, secondary, mark))}</desc>',
    ]
    # The page's CSS says how things look; these attributes serve a viewer that does not apply it to SVG.
    faint = 'stroke="currentColor" stroke-opacity="0.2"'
    for tick in nice_ticks(low, high):
        at = y(tick)
        out.append(f'<line class="grid" {faint} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_bytes_label(tick)}</text>')
    for tick in nice_ticks(0, span_t / size):
        at = x(t0 + tick * size)
        foot = _TOP + tall
        out.append(f'<line class="grid" {faint} x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{foot}"/>')
        out.append(f'<text x="{at:.1f}" y="{foot + 16}" text-anchor="middle">{tick:.6g}</text>')
    out.append(
        f'<text x="{_LEFT + wide / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{unit} since the first frame shown</text>"
    )
    out.append(
        f'<rect class="frame" fill="none" stroke="currentColor" x="{_LEFT}" y="{_TOP}" width="{wide}" height="{tall}"/>'
    )
    for name, points in (("primary", primary), ("secondary", secondary)):
        if points:
            look = 'fill="none" stroke="currentColor"' + (' stroke-dasharray="6 4"' if name == "secondary" else "")
            out.append(f'<path class="{name}" {look} d="{_steps(thin(points), x, y)}"/>')
    if mark is not None:
        at = x(mark)
        out.append(
            f'<line class="mark" stroke="currentColor" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_TOP + tall}"/>'
        )
    out.append("</svg>")
    return "\n".join(out)


def _steps(points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """A staircase: progress stays where it is until the next frame. A lone point becomes a short line."""
    time, offset = points[0]
    path = [f"M{x(time):.1f} {y(offset):.1f}"]
    for time, offset in points[1:]:
        path.append(f"H{x(time):.1f}V{y(offset):.1f}")
    if len(points) == 1:
        path.append("h3")
    return "".join(path)


def describe(primary: Sequence[Point], secondary: Sequence[Point], mark: int | None) -> str:
    """The plot in words, for those who can't see it."""
    words = []
    for name, points in (("primary", primary), ("secondary", secondary)):
        if points:
            spent = (points[-1][0] - points[0][0]) / 1e6
            words.append(
                f"The {name} goes from offset {points[0][1]:,} to {points[-1][1]:,} in {spent:,.3f} ms, "
                f"{len(points):,} points."
            )
        else:
            words.append(f"The {name} sent nothing.")
    if mark is not None:
        words.append("A vertical line marks the difference.")
    return " ".join(words)
