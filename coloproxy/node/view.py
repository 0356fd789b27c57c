# SPDX-License-Identifier: Apache-2.0
"""Both nodes of a pair side by side, for people: `coloproxy status` and `coloproxy top`.

A status is what the control socket's `status` gives, of a node or of `coloproxy run`, which knows less. None: it can't
be had. What a status does not have is left out. Pure: no socket, no clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from coloproxy.control.view import duration, listed, plain, size, state_text

Status = Mapping[str, Any]

HISTORY: Final = 8
"""Transitions of each node that are shown."""
_BAR: Final = 24


def render(
    status_a: Status | None, status_b: Status | None = None, before: Sequence[Status | None] = (), seconds: float = 0.0
) -> RenderableType:
    """The pair.

    Args:
        status_a, status_b: of its two nodes, in any order. Without the second, what the first has heard of it is shown.
        before: the same, from `seconds` ago: rates are shown too.
        seconds: since then.
    """
    nodes = [status_a, status_b if status_b is not None else told_of(status_a)]
    known = [node for node in nodes if node is not None]
    if not known:
        return Text("no node answers", "bold red")
    old = {_who(node): node for node in before if node is not None}
    title = Text("pair ")
    title.append(plain(known[0].get("pair", "?")), "bold")
    parts: list[RenderableType] = [title, _nodes(known)]
    for node in known:
        for vm in vms_of(node):
            earlier = {str(each.get("name")): each for each in vms_of(old.get(_who(node)))}.get(str(vm.get("name")))
            parts.append(_vm(node, vm, earlier, seconds))
    for heading, build in (("disks", _disks), ("heartbeat", _heartbeats), ("history", _history)):
        table = build(known)
        if table.row_count:
            parts += [Text(f"\n{heading}", "bold"), Padding(table, (0, 0, 0, 2), expand=False)]
    return Group(*parts)


def told_of(status: Status | None) -> Status | None:
    """What a node has heard of the other one, as the other one's status."""
    peer = status.get("peer") if status is not None else None
    if not isinstance(peer, Mapping) or status is None:
        return None
    role = {"primary": "secondary", "secondary": "primary"}.get(str(status.get("role")))
    heard = {key: peer.get(key) for key in ("host", "generation")}
    alive = bool(peer.get("alive"))
    return {
        "pair": status.get("pair"),
        "role": role if alive else None,
        "state": peer.get("state") if alive else "lost",
        "reason": "as its heartbeat says" if alive else "its heartbeat is not heard",
        "heard_ms": peer.get("age_ms"),
        **heard,
    }


def vms_of(status: Status | None) -> list[Mapping[str, Any]]:
    """The VMs of a status: a node has one, `coloproxy run` has several."""
    if status is None:
        return []
    vm = status.get("vm")
    return [vm] if isinstance(vm, Mapping) else listed(status.get("vms"))


# ----------------------------------------------------------------- the nodes


def _nodes(nodes: Sequence[Status]) -> RenderableType:
    rows: tuple[tuple[str, Callable[[Status], Text | None]], ...] = (
        ("role", lambda node: _text(node.get("role"))),
        ("state", lambda node: Text(*state_text(node.get("state")))),
        ("since", lambda node: _seconds(node.get("since_s", node.get("uptime_s")))),
        ("reason", lambda node: _text(node.get("reason"))),
        ("generation", lambda node: _text(node.get("generation"))),
        ("hears the other", _peer),
        ("arbiter", _arbiter),
        ("QEMU", _qemu),
        ("copied", _resync),
        ("pid", lambda node: _text(node.get("pid"))),
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("", style="cyan", no_wrap=True)
    for node in nodes:
        table.add_column(plain(node.get("host", node.get("role", "?"))), overflow="fold")
    for name, read in rows:
        cells = [read(node) for node in nodes]
        if any(cells):
            table.add_row(name, *[cell or Text("-", "dim") for cell in cells])
    return Padding(table, (0, 0, 0, 2), expand=False)


def _peer(node: Status) -> Text | None:
    if "heard_ms" in node:
        return _joined(("heard", _milliseconds(node["heard_ms"]), "ago"))
    peer = node.get("peer")
    if not isinstance(peer, Mapping):
        return None
    text = Text("yes", "green") if peer.get("alive") else Text("no", "bold red")
    for what, value in (("last", peer.get("age_ms")), ("round trip", peer.get("rtt_ms"))):
        if value is not None:
            text.append(f"  {what} {_milliseconds(value)}", "default")
    return text


def _arbiter(node: Status) -> Text | None:
    arbiter = node.get("arbiter")
    if not isinstance(arbiter, Mapping):
        return None
    text = Text(plain(arbiter.get("kind", "?")))
    if arbiter.get("owner") is not None:
        text.append(f": {plain(arbiter['owner'])} owns generation {plain(arbiter.get('generation', '?'))}")
    if arbiter.get("reachable") is False:
        text.append("  unreachable", "bold red")
    return text


def _qemu(node: Status) -> Text | None:
    qemu = node.get("qemu")
    if not isinstance(qemu, Mapping):
        return None
    text = Text(*state_text(qemu.get("state")))
    if qemu.get("hung"):
        text.append("  HUNG", "bold red")
    if qemu.get("halted"):
        text.append(f"  STANDS STILL: {plain(qemu.get('halt_reason') or 'its disk')}", "bold red")
    if qemu.get("pid") is not None:
        text.append(f"  pid {plain(qemu['pid'])}", "dim")
    return text


def _resync(node: Status) -> Text | None:
    """The last copy of the disks that this node has made, or makes."""
    resync = node.get("resync")
    if not isinstance(resync, Mapping):
        return None
    text = Text(f"{plain(resync.get('mode', '?'))}, {plain(resync.get('state', '?'))}")
    copied, seconds, pause = (_number(resync, key) for key in ("copied", "seconds", "pause_s"))
    text.append("" if copied is None else f"  {size(copied)}")
    text.append("" if seconds is None else f" in {duration(seconds)}")
    text.append(f", the VM stood still for {duration(pause)}" if pause else "")
    text.append(f"  {plain(resync.get('reason', ''))}", "dim")
    return text


# -------------------------------------------------------------------- a VM


def _vm(node: Status, vm: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> RenderableType:
    title = Text("\nVM ")
    title.append(plain(vm.get("name", "?")), "bold")
    title.append(f" on {plain(node.get('host', node.get('role', '?')))}  ")
    title.append(*state_text(vm.get("state")))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _vm_rows(vm, before, seconds):
        table.add_row(name, text)
    return Group(title, Padding(table, (0, 0, 0, 2), expand=False))


def _vm_rows(vm: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> Iterator[tuple[str, Text]]:
    def rate(*path: str, side: int | None = None) -> str:
        """` (12.3/s)` where there is an earlier status."""
        now, then = _number(vm, *path, side=side), _number(before, *path, side=side)
        if now is None or then is None or seconds <= 0 or now < then:  # smaller: it was started anew
            return ""
        return f" ({(now - then) / seconds:,.1f}/s)"

    epoch = Text(plain(vm.get("epoch", "-")))
    if (age := _seconds(vm.get("epoch_age_s"))) is not None:
        epoch.append_text(Text.assemble("  age ", age))
    yield "epoch", epoch
    if "checkpoints" in vm:
        text = Text(f"{plain(vm['checkpoints'])}{rate('checkpoints')}")
        causes = vm.get("checkpoints_by_cause")
        if isinstance(causes, Mapping) and causes:
            ordered = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
            text.append("  " + ", ".join(f"{plain(cause)} {count:,}" for cause, count in ordered), "dim")
        if vm.get("checkpoints_failed"):
            text.append(f"  {vm['checkpoints_failed']:,} failed", "bold red")
        yield "checkpoints", text
    if (pauses := _quantiles(vm.get("pauses"))) is not None:
        yield "pauses", pauses
    comparator = vm.get("comparator")
    if isinstance(comparator, Mapping):
        frames, held = _number(vm, "comparator", "held_frames", side=0), _number(vm, "comparator", "held_bytes", side=0)
        if frames is not None and held is not None:
            yield "held", Text(f"{frames:,.0f} frames, {size(held)}")
        for reason in ("matched", "committed"):
            ages = _quantiles(_at(comparator, "release_ages", reason))
            count = _number(vm, "comparator", "released", reason)
            if count:
                text = Text(f"{count:,.0f}{rate('comparator', 'released', reason)}")
                if ages is not None:
                    text.append_text(Text.assemble("  held ", ages))
                yield f"released, {reason}", text
        differs = comparator.get("divergences")
        if isinstance(differs, Mapping) and differs:
            yield (
                "divergences",
                Text(", ".join(f"{plain(cause)} {count:,}" for cause, count in differs.items()), "yellow"),
            )
    link = vm.get("link")
    if isinstance(link, Mapping):
        text = Text(*state_text(link.get("state")))
        for what, value in (("to", link.get("peer")), ("", link.get("reason"))):
            if value:
                text.append(f"  {what} {plain(value)}" if what else f"  {plain(value)}")
        if link.get("rtt_ms") is not None:
            text.append(f"  round trip {_milliseconds(link['rtt_ms'])}", "dim")
        if "queued_bytes" in link:
            text.append(f"  queued {size(link['queued_bytes'])}", "dim")
        yield "link", text
    for nic in listed(vm.get("nics")):
        text = Text(*state_text("open" if nic.get("open") else "closed"))
        for side, what in (("client", "clients"), ("vm", "VM")):
            counts = nic.get(side)
            if isinstance(counts, Mapping):
                text.append(f"  {what} in {counts.get('frames_in', 0):,} out {counts.get('frames_out', 0):,}", "dim")
        yield f"NIC {plain(nic.get('name', '?'))}", text


def quantile_ms(histogram: Sequence[Sequence[float | None]], share: float) -> float | None:
    """The bound below which that share of a histogram's values lies; None: there are none. inf: beyond the last."""
    total = sum(count or 0 for _, count in histogram)
    so_far: float = 0
    for bound, count in histogram:
        so_far += count or 0
        if total and so_far >= share * total:
            return float("inf") if bound is None else bound
    return None


def _quantiles(value: object) -> Text | None:
    histogram = value.get("histogram") if isinstance(value, Mapping) else None
    if not isinstance(histogram, list):
        return None
    words = []
    for name, share in (("median", 0.5), ("p99", 0.99)):
        bound = quantile_ms(histogram, share)
        if bound is None:
            return None
        last = max((each for each, _ in histogram if each is not None), default=0)
        words.append(
            f"{name} > {_milliseconds(last)}" if bound == float("inf") else f"{name} <= {_milliseconds(bound)}"
        )
    return Text(", ".join(words))


# ------------------------------------------------------------------- the rest


def _disks(nodes: Sequence[Status]) -> Table:
    table = Table.grid(padding=(0, 3))
    for node in nodes:
        for disk in listed(node.get("disks")):
            text = Text(*state_text(disk.get("state")))
            resync = disk.get("resync")
            total = _number(disk, "resync", "total")
            if isinstance(resync, Mapping) and total:
                offset, rate, eta = (_number(disk, "resync", key) for key in ("offset", "rate", "eta_s"))
                share = min(1.0, (offset or 0) / total)
                text.append(f"  {'#' * int(share * _BAR):.<{_BAR}} {share:.0%} of {size(total)}")
                text.append(f"  {size(rate)}/s" if rate is not None else "")
                text.append(f"  {duration(eta)} left" if eta is not None else "")
            of = _number(disk, "size")
            table.add_row(_who_text(node), plain(disk.get("name", "?")), "" if of is None else size(of), text)
    return table


def _heartbeats(nodes: Sequence[Status]) -> Table:
    table = Table.grid(padding=(0, 3))
    for node in nodes:
        for path in listed(_at(node, "heartbeat", "paths")):
            text = Text(f"sent {path.get('sent', 0):,}  received {path.get('received', 0):,}")
            lost = path.get("lost", 0)
            text.append(f"  lost {lost:,}", "yellow" if lost else "dim")
            refused = path.get("refused")
            if isinstance(refused, Mapping) and (total := sum(refused.values())):
                text.append(f"  refused {total:,}", "yellow")
            rtt = path.get("rtt_ms")
            if isinstance(rtt, Mapping) and rtt.get("avg") is not None:
                text.append(
                    "  round trip " + "/".join(f"{rtt.get(key, 0):.3g}" for key in ("min", "avg", "max")) + " ms"
                )
            table.add_row(_who_text(node), plain(path.get("name", "?")), text)
    return table


def _history(nodes: Sequence[Status]) -> Table:
    table = Table.grid(padding=(0, 3))
    for node in nodes:
        for entry in listed(node.get("history"))[-HISTORY:]:
            change = Text(f"{plain(entry.get('from', '?'))} -> ")
            change.append(*state_text(entry.get("to")))
            why = f"{plain(entry.get('event', ''))}: {plain(entry.get('reason', ''))}"
            table.add_row(_who_text(node), Text(_moment(entry.get("at")), "dim"), change, why)
    return table


def _who(node: Status) -> str:
    return str(node.get("host", node.get("role")))


def _who_text(node: Status) -> Text:
    return Text(plain(_who(node)), "cyan")


def _at(value: object, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: object, *path: str, side: int | None = None) -> float | None:
    found = _at(value, *path)
    if side is not None:
        found = found[side] if isinstance(found, list) and len(found) > side else None
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _text(value: object) -> Text | None:
    return None if value is None or value == "" else Text(plain(value))


def _seconds(value: object) -> Text | None:
    return Text(duration(value)) if isinstance(value, int | float) else None


def _moment(value: object) -> str:
    """UTC, as in the journal."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "?"
    try:
        return f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z"
    except (ValueError, OverflowError, OSError):
        return "?"


def _milliseconds(value: object) -> str:
    if not isinstance(value, int | float):
        return "?"
    return duration(value / 1000) if value >= 1000 else f"{value:.3g} ms" if value >= 1 else f"{value * 1000:.3g} us"


def _joined(words: Sequence[str]) -> Text:
    return Text(" ".join(words))
