# SPDX-License-Identifier: Apache-2.0
"""A status, laid out for people. What it doesn't know is shown too, key by key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GOOD: Final = frozenset({"protected", "up", "connected", "running", "open", "synchronised", "committed", "ok"})
_BAD: Final = frozenset({"alone", "down", "lost", "failed", "holding", "disconnected", "error", "closed", "refused"})
_HEAD: Final = ("pair", "role", "state", "pid", "uptime_s", "vms")
_VM: Final = ("name", "state", "epoch", "checkpoints", "last_checkpoint", "link", "nics")


def render(status: Mapping[str, Any]) -> RenderableType:
    """The whole status, as `coloproxy ctl status` prints it."""
    parts: list[RenderableType] = [_head(status)]
    rest = {key: value for key, value in status.items() if key not in _HEAD}
    if rest:
        parts.append(Padding(_pairs(rest), (0, 0, 0, 2), expand=False))
    parts += [_vm(vm) for vm in listed(status.get("vms"))]
    return Group(*parts)


def _head(status: Mapping[str, Any]) -> Text:
    text = Text()
    text.append(plain(status.get("pair", "?")), "bold")
    text.append(f"  {plain(status.get('role', '?'))}  ")
    text.append(*state_text(status.get("state")))
    if "pid" in status:
        text.append(f"  pid {plain(status['pid'])}", "dim")
    if "uptime_s" in status:
        text.append(f"  up {_value('uptime_s', status['uptime_s'])}", "dim")
    return text


def _vm(vm: Mapping[str, Any]) -> RenderableType:
    title = Text("\nVM ")
    title.append(plain(vm.get("name", "?")), "bold")
    title.append("  ")
    title.append(*state_text(vm.get("state")))
    for key in ("epoch", "checkpoints"):
        if key in vm:
            title.append(f"  {key} {_value(key, vm[key])}")
    rows: list[tuple[str, RenderableType]] = []
    for key in ("last_checkpoint", "link"):
        if vm.get(key):
            rows.append((key.replace("_", " "), line(vm[key])))
    for nic in listed(vm.get("nics")):
        rows.append((f"NIC {plain(nic.get('name', '?'))}", _nic(nic)))
    for key, value in vm.items():
        if key not in _VM:
            rows.append(
                (key.replace("_", " "), _pairs(value) if isinstance(value, Mapping) else Text(_value(key, value)))
            )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, what in rows:
        table.add_row(Text(name), what)
    return Group(title, Padding(table, (0, 0, 0, 2), expand=False))


def _nic(nic: Mapping[str, Any]) -> RenderableType:
    first = {key: value for key, value in nic.items() if key not in ("name", "open", "counters")}
    text = line(first)
    if "open" in nic:
        text.append("  ")
        text.append(*state_text("open" if nic["open"] else "closed"))
    counters = nic.get("counters")
    return Group(text, _pairs(counters)) if counters else text


def line(values: object) -> Text:
    """A few values on one line; what is called state first and in colour."""
    if not isinstance(values, Mapping):
        return Text(_value("", values))
    text = Text()
    if "state" in values:
        text.append(*state_text(values["state"]))
    for key, value in values.items():
        if key == "state" or value is None or value == "":
            continue
        text.append("  " if text else "")
        text.append(f"{_label(key)} ", "dim")
        text.append(_value(key, value))
    return text


def _pairs(values: Mapping[str, Any]) -> RenderableType:
    """Counters and the like in columns. Zeros are left out: what never happened is what one needn't read."""
    flat = [(name, value) for name, value in _flat(values) if value != 0 or isinstance(value, bool)]
    if not flat:
        return Text("all zero" if values else "-", "dim")
    table = Table.grid(padding=(0, 3))
    columns = 3
    for _ in range(columns):
        table.add_column(no_wrap=True)
    cells = []
    for name, value in flat:
        cell = Text(f"{_label(name)} ", "dim")
        cell.append(_value(name, value), "default")
        cells.append(cell)
    for start in range(0, len(cells), columns):
        table.add_row(*cells[start : start + columns])
    return table


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key == "histogram":  # for programs; its count and sum are shown
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def state_text(state: object) -> tuple[str, str]:
    """A state and the style that it is written in."""
    text = plain(state if state is not None else "?")
    words = set(text.lower().replace("-", " ").split())
    return text, "bold green" if words & _GOOD and not words & _BAD else "bold red" if words & _BAD else "bold yellow"


def _label(key: str) -> str:
    for unit in ("_s", "_ms", "_us", "_ns"):
        key = key.removesuffix(unit)
    return plain(key).replace("_", " ")


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return "-"
        if key.endswith("_s"):
            return duration(float(value))
        for unit in ("ms", "us", "ns"):
            if key.endswith(f"_{unit}"):
                return f"{value:,.3g} {unit}" if isinstance(value, float) else f"{value:,} {unit}"
        if key.endswith("bytes"):
            return size(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    if isinstance(value, list):
        return ", ".join(_value(key, item) for item in value) or "-"
    return "-" if value is None else plain(value)


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 5 s`, `3 d 2 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(number: float) -> str:
    """`512 B`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    raise AssertionError  # GiB takes all


def listed(value: object) -> list[Mapping[str, Any]]:
    """The mappings in it, if it is a list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def plain(value: object) -> str:
    """As text that does nothing to a terminal: a peer's certificate can name anything."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))
