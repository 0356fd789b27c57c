# SPDX-License-Identifier: Apache-2.0
"""The keys of a pair's file for people: a complete file with all defaults, and the tables of docs/configuration.md.

Both are made of the models, so neither can say anything else than what is checked.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .config import is_per_host, keys_of, table_of
from .model import Pair
from .table import Example, Table
from .units import (
    Account,
    Count,
    Duration,
    EndpointText,
    FilePath,
    Interface,
    Ip,
    Mac,
    Name,
    Namespace,
    Place,
    Size,
    Text,
    format_duration,
    format_size,
)

_HEAD = """\
# A pair of hosts for coloproxy: the same file lies on both. Every key is here, with its default.
# A line that begins with "#" and no blank is a key without a default, or one that is not needed here. So is a whole
# table where each line has one: without these it is a right one ("##": what is not needed in it either).
# Keys marked [per host] may be given as { primary = ..., secondary = ... }, or with a and b for these.
"""
_WORDS: dict[type, str] = {
    Account: "a user or group",
    EndpointText: "a socket",
    FilePath: "an absolute path",
    Interface: "an interface",
    Ip: "an IP address",
    Mac: "an Ethernet address",
    Name: "a name",
    Namespace: "a network namespace",
    Place: "an address",
    Text: "a text",
}


def defaults() -> str:
    """A valid file with every key: those that are needed with an example, the others with their default."""
    return "\n".join([_HEAD, *_lines(Pair, "")]).rstrip() + "\n"


def tables() -> str:
    """The tables of docs/configuration.md, in Markdown."""
    parts = []
    for title, model in _all_tables(Pair, ""):
        rows = [
            f"| `{key}` | {_type(info)} | {_default(info)} | {_cell(info)} |"
            for key, info in keys_of(model).items()
            if table_of(info) is None
        ]
        head = f"### {f'`{title}`' if title else 'At the top'}\n\n{_about(model)}\n"
        parts.append("\n".join([head, "| key | value | default | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _lines(model: type[Table], path: str) -> Iterator[str]:
    keys = keys_of(model)
    for key, info in keys.items():
        if table_of(info) is None:
            yield from textwrap.wrap(
                f"{info.description}{_marks(info)}", 110, initial_indent="# ", subsequent_indent="# "
            )
            yield _assignment(key, info)
            yield ""
    for key, info in keys.items():
        inner = table_of(info)
        if inner is not None:
            header = f"{path}{key}"
            section = [
                f"[[{header}]]" if _is_list(info) else f"[{header}]",
                *textwrap.wrap(_about(inner), 110, initial_indent="# ", subsequent_indent="# "),
                "",
                *_lines(inner, f"{header}."),
            ]
            needed = info.is_required() or info.default_factory is not None
            yield from section if needed else (f"#{line}" if line and line[:2] != "# " else line for line in section)


def _assignment(key: str, info: FieldInfo) -> str:
    example = _example(info)
    if info.is_required():
        assert example is not None, key  # a model without it fails in the tests
        return f"{key} = {example.text}"
    if info.default is None:
        assert example is not None, key
        return f"{'' if example.shown else '#'}{key} = {example.text}"
    return f"{key} = {to_toml(info, info.default)}"


def _marks(info: FieldInfo) -> str:
    marks = ["required"] if info.is_required() else []
    if is_per_host(info):
        marks.append("per host")
    return f" [{', '.join(marks)}]" if marks else ""


def to_toml(info: FieldInfo, value: Any) -> str:
    """A value of that key as the file has it."""
    mark = _unit(info)
    if isinstance(mark, Duration):
        return f'"{format_duration(value)}"'
    if isinstance(mark, Size):
        return f'"{format_size(value)}"'
    if isinstance(mark, Count) and mark.octal:
        return f"0o{value:o}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _all_tables(model: type[Table], path: str, many: bool = False) -> Iterator[tuple[str, type[Table]]]:
    yield (f"[[{path}]]" if many else f"[{path}]") if path else "", model
    for key, info in keys_of(model).items():
        inner = table_of(info)
        if inner is not None:
            yield from _all_tables(inner, f"{path}.{key}" if path else key, _is_list(info))


def _about(model: type[Table]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _is_list(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is tuple


def _example(info: FieldInfo) -> Example | None:
    return next((mark for mark in info.metadata if isinstance(mark, Example)), None)


def _unit(info: FieldInfo) -> object:
    known = (*_WORDS, Duration, Size, Count)
    return next((mark for mark in info.metadata if isinstance(mark, known)), None)


def _type(info: FieldInfo) -> str:
    mark = _unit(info)
    options = _literals(info.annotation)
    if options:
        return ", ".join(f'`"{option}"`' for option in options)
    if isinstance(mark, Duration):
        return f"{format_duration(mark.least)} to {format_duration(mark.most)}"
    if isinstance(mark, Size):
        return f"{format_size(mark.least)} to {format_size(mark.most)}"
    if isinstance(mark, Count):
        return f"`0o{mark.least:o}` to `0o{mark.most:o}`" if mark.octal else f"{mark.least:,} to {mark.most:,}"
    if mark is not None:
        return _WORDS[type(mark)]
    return "`true` or `false`" if info.annotation is bool else "a list"


def _literals(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := _literals(part))), ())


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default is None or info.default is PydanticUndefined:
        return ""
    return f"`{to_toml(info, info.default)}`"


def _cell(info: FieldInfo) -> str:
    text = info.description or ""
    example = _example(info)
    if example is not None:
        text += f" `{example.text}`"
    return text + (" *per host*" if is_per_host(info) else "")
