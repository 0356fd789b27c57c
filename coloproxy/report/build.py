# SPDX-License-Identifier: Apache-2.0
"""From the result of a replay to what a report shows: bounded in size, whatever the captures hold."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from coloproxy.report.decode import Decoded, compare, decode
from coloproxy.report.explain import explain
from coloproxy.report.hexview import printable, side_by_side
from coloproxy.report.plot import describe, progress_svg
from coloproxy.report.view import Difference, HistoryRow, View

if TYPE_CHECKING:
    from coloproxy.events import Tolerated
    from coloproxy.replay import DivergenceRecord, FlowResult, HistoryEntry, Result, Source, Tally

__all__ = ["MAX_FULL", "MAX_HISTORY", "build"]

MAX_FULL = 10
"""Differences in full."""

MAX_MORE = 200
"""Further ones that get a line."""

MAX_TOLERATED = 50
"""Samples of tolerated differences."""

MAX_HISTORY = 160
"""Frames of a flow's history."""

_NS_PER_MS = 1e6
_COLUMNS = ("primary", "secondary", "released", "passed", "committed", "withheld", "unmatched")


def build(result: Result) -> View:
    """Makes the view of a `coloproxy.replay.Result`. Decodes the packets, which takes a second where scapy is."""
    full = result.divergences[:MAX_FULL]
    packets = [packet for record in full for packet in (record.primary, record.secondary) if packet is not None]
    decoded = iter(decode([packet.data for packet in packets]))
    differences = []
    for index, record in enumerate(full):
        primary = next(decoded) if record.primary is not None else None
        secondary = next(decoded) if record.secondary is not None else None
        differences.append(_difference(result, index, record, primary, secondary))
    rest = result.divergences[MAX_FULL:]
    return View(
        good=result.equal,
        verdict=_verdict(result),
        counts_head=("class", *_COLUMNS),
        counts=_counts(result),
        sources=tuple(_source(source) for source in result.sources),
        differences=tuple(differences),
        more=tuple(_line(record) for record in rest[:MAX_MORE]),
        more_untold=max(0, len(rest) - MAX_MORE),
        limits=tuple((str(limit.cause), explain(limit.cause).meaning) for limit in result.limits[:MAX_MORE]),
        tolerated=tuple(_tolerated(sample) for sample in result.tolerated[:MAX_TOLERATED]),
        tolerated_times=result.counters.tolerated,
        settings=tuple(
            (_option(name), _value(name, value)) for name, value in result.settings.items() if value is not None
        ),
        command=_command(result),
        notes=tuple(result.notes),
    )


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _verdict(result: Result) -> str:
    total = result.total
    read = _number(total.primary.frames, "frame", "frames")
    if result.equal:
        return (
            f"No difference: the secondary said all that the primary did, and all {read} of the primary were released."
        )
    withheld = f"{total.withheld.frames:,} of the primary's {read} were withheld"
    if not result.divergences:
        return f"No difference was found, yet {withheld}."
    event = result.divergences[0].event
    found = _number(len(result.divergences), "difference", "differences")
    where = f" in {event.flow}" if event.flow is not None else ""
    return f"{found}, the first{where} at offset {event.offset:,}: {explain(event.cause).title}; {withheld}."


def _counts(result: Result) -> tuple[tuple[str, ...], ...]:
    named = [(str(frame_class), row) for frame_class, row in result.classes.items()]
    return tuple(
        (name, *(_tally(getattr(row, column)) for column in _COLUMNS)) for name, row in [*named, ("all", result.total)]
    )


def _tally(tally: Tally) -> str:
    return f"{tally.frames:,} ({tally.bytes:,} B)" if tally.frames else "0"


def _source(source: Source) -> tuple[str, ...]:
    span = "empty"
    if source.first is not None and source.last is not None:
        span = f"{_utc(source.first)}, {(source.last - source.first) / 1e9:,.3f} s"
    return (str(source.role), source.path, source.interface or "", _tally(source.read), span)


def _utc(captured: int) -> str:
    try:
        moment = datetime.fromtimestamp(captured // 10**9, UTC)
    except (OverflowError, ValueError, OSError):  # a capture may claim any time
        return f"{captured} ns"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{captured % 10**9:09d} UTC"


def _option(name: str) -> str:
    """The option of a setting: a unit at the end of the setting's name is none of the option's."""
    return "--" + name.removesuffix("_ms").replace("_", "-")


def _value(name: str, value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if value is None:
        return "none"
    return f"{value} ms" if name.endswith("_ms") else str(value)


def _command(result: Result) -> str:
    words = ["coloproxy", "replay"]
    inbound = []
    for source in result.sources:
        if str(source.role) == "inbound":
            inbound += ["--inbound", source.path]
        elif source.path not in words or source.interface is None:  # one file with both is named once
            words.append(source.path)
    words += inbound
    for name, value in result.settings.items():
        if value is None:
            continue
        if name == "vm" and isinstance(value, (list, tuple)):  # the one option that is given again for each
            for item in value:
                words += [_option(name), str(item)]
        elif isinstance(value, (list, tuple)):
            words += [_option(name), ",".join(str(item) for item in value) or "none"]
        else:
            words += [_option(name), str(value)]
    return shlex.join(words)


def _line(record: DivergenceRecord) -> str:
    event = record.event
    where = str(event.flow) if event.flow is not None else "no flow"
    return f"{event.time / 1e9:.6f} s, {where}, offset {event.offset:,}: {explain(event.cause).title}"


def _tolerated(event: Tolerated) -> str:
    """A few bytes from the first that differs on."""
    ours, theirs = (printable(side[event.context : event.context + 24]) for side in (event.primary, event.secondary))
    return f"tolerance {event.rule + 1}, {event.flow}, offset {event.offset:,}: {ours} | {theirs}"


def _difference(
    result: Result, index: int, record: DivergenceRecord, primary: Decoded | None, secondary: Decoded | None
) -> Difference:
    event = record.event
    flow = next((flow for flow in result.flows if index in flow.divergences), None)
    plot, words = None, ""
    if flow is not None:
        plot = progress_svg(
            flow.primary_progress, flow.secondary_progress, mark=event.time, ident=f"difference-{index + 1}"
        )
        words = describe(flow.primary_progress, flow.secondary_progress, event.time)
    notes = [packet.note for packet in (primary, secondary) if packet is not None and packet.note is not None]
    start = event.offset - event.context
    if event.primary and event.secondary:
        say = f"Bytes around offset {event.offset:,}; those that differ are marked."
    elif event.primary or event.secondary:
        silent = "secondary" if event.primary else "primary"
        say = f"The {silent} said nothing here, so there is nothing to compare with and nothing is marked."
    else:
        say = "Neither side has bytes to show here."
    history, cut = _history(record)
    return Difference(
        number=index + 1,
        flow=str(event.flow) if event.flow is not None else "no flow could be made for the frame",
        facts=_facts(record, flow),
        why=explain(event.cause),
        rows=side_by_side(event.primary, event.secondary, start),
        rows_say=say,
        layers=compare(primary or Decoded(), secondary or Decoded()),
        decoding_notes=tuple(dict.fromkeys(notes)),
        history=history,
        history_cut=cut,
        plot=plot,
        plot_words=words,
    )


def _facts(record: DivergenceRecord, flow: FlowResult | None) -> tuple[tuple[str, str], ...]:
    event = record.event
    facts = [
        ("cause", str(event.cause)),
        ("offset", f"{event.offset:,}"),
        ("found at", f"{event.time / 1e9:.6f} s of the replay, epoch {event.epoch}"),
    ]
    ages = (("primary", record.primary, event.primary_age), ("secondary", record.secondary, event.secondary_age))
    for side, packet, age in ages:
        waited = "" if age is None else f", had waited {age / _NS_PER_MS:,.3f} ms"
        if packet is None:
            facts.append((f"{side}'s packet", f"none{waited}"))
        else:
            facts.append(
                (f"{side}'s packet", f"{packet.path}, packet {packet.number}, {_utc(packet.captured)}{waited}")
            )
    facts.append(("held then", f"{_number(event.held_frames, 'frame', 'frames')}, {event.held_bytes:,} B of all flows"))
    if flow is not None:
        facts.append(("flow in all", f"{_tally(flow.released)} released, {_tally(flow.withheld)} withheld"))
    return tuple(facts)


def _history(record: DivergenceRecord) -> tuple[tuple[HistoryRow, ...], str]:
    entries = list(record.history)
    before, after = record.cut_before, record.cut_after
    if len(entries) > MAX_HISTORY:
        first = next((i for i, entry in enumerate(entries) if entry.time >= record.event.time), len(entries))
        start = max(0, min(first - MAX_HISTORY * 3 // 4, len(entries) - MAX_HISTORY))
        before, after = before or start > 0, after or start + MAX_HISTORY < len(entries)
        entries = entries[start : start + MAX_HISTORY]
    these = {(packet.path, packet.role, packet.number) for packet in (record.primary, record.secondary) if packet}
    rows = tuple(
        HistoryRow(
            when=f"{(entry.time - record.event.time) / _NS_PER_MS:+,.3f}",
            role=str(entry.role),
            number=entry.number,
            what=_what(entry),
            verdict=entry.verdict + (", ACK lowered" if entry.lowered else ""),
            here=(entry.path, entry.role, entry.number) in these,
        )
        for entry in entries
    )
    ends = " and ".join(word for word, is_cut in (("earlier", before), ("later", after)) if is_cut)
    return rows, f"The flow has {ends} frames that are not listed." if ends else ""


def _what(entry: HistoryEntry) -> str:
    parts = [entry.flags] if entry.flags else []
    if entry.seq is not None:
        parts.append(f"seq {entry.seq:,}")
    if entry.ack is not None:
        parts.append(f"ack {entry.ack:,}")
    parts.append(f"{entry.length:,} B")
    return " ".join(parts)
