# SPDX-License-Identifier: Apache-2.0
"""Reads the file of a pair: `load(path, role)`.

The same file lies on both hosts, and is checked for both of them wherever it is read. All that is wrong is told at
once, each with its line and key::

    pair.toml:17: vm.web.nic[0].tap.mtu: must be between 68 and 65521

A key that may differ between the hosts is given as one value, or as `{ primary = ..., secondary = ... }`; a role that
is left out there has the default. What the keys are is in model.py.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from coloproxy.errors import ConfigError

from .model import (
    HOST_NAMES,
    ROLES,
    Checkpoint,
    Compare,
    Control,
    Filters,
    Link,
    Nic,
    Pair,
    Process,
    Role,
    Tap,
    Vm,
    VmSide,
)
from .positions import Path as KeyPath
from .positions import key_lines
from .table import PerHost, Table
from .units import Endpoint

__all__ = [
    "HOST_NAMES",
    "ROLES",
    "Checkpoint",
    "Compare",
    "Control",
    "Endpoint",
    "Filters",
    "Link",
    "Nic",
    "Pair",
    "Process",
    "Role",
    "Tap",
    "Vm",
    "VmSide",
    "load",
    "parse",
]

_PER_HOST: Final = {*HOST_NAMES, *HOST_NAMES.values()}
_WANTED: Final = {
    "string_type": "a text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
}
_AT: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: Path | str, role: Role) -> Pair:
    """The pair as the host in that role sees it. Raises ConfigError: the file can't be read, or has mistakes."""
    return load_both(path)[role]


def load_both(path: Path | str) -> dict[Role, Pair]:
    """As each host sees it. Raises ConfigError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8: {error.reason}"]) from error
    return parse_both(text, source=str(path))


def parse(text: str, role: Role, source: str = "pair.toml") -> Pair:
    """The same from the file's text; `source`: its name in errors. Raises ConfigError."""
    return parse_both(text, source)[role]


def parse_both(text: str, source: str = "pair.toml") -> dict[Role, Pair]:
    """As each host sees it. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(str(error), text, source)]) from error
    except RecursionError:
        raise ConfigError([f"{source}: tables or lists are nested too deeply"]) from None
    lines = key_lines(text.replace("\r\n", "\n"))
    found: dict[tuple[int, str], None] = {}  # in order, and those that hold for both hosts once
    pairs: dict[Role, Pair | None] = {}
    for each in ROLES:
        reading = _Reading(document, each)
        pairs[each] = reading.pair()
        for at, what in reading.problems:
            found[(_line(lines, at), f"{_name(document, at)}{what}")] = None
    if found:
        raise ConfigError([f"{source}:{line}: {what}" for line, what in sorted(found, key=lambda item: item[0])])
    return {each: pair for each, pair in pairs.items() if pair is not None}  # all are: there were no problems


def _syntax(message: str, text: str, source: str) -> str:
    at = _AT.search(message)
    if at is None:
        return f"{source}: {message}"
    if at[1] is None:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    else:
        line, column = int(at[1]), int(at[2])
    what = message[: at.start()]
    return f"{source}:{line}:{column}: {what[0].lower()}{what[1:]}"


def _line(lines: dict[KeyPath, int], at: KeyPath) -> int:
    """Of the key, or of the innermost table around it that is there."""
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


def _name(document: dict[str, Any], at: KeyPath) -> str:
    """`vm.web.nic[0].tap.mtu: ` for people: a VM goes by its name if it has one."""
    parts: list[str] = []
    inside: Any = document
    for step in at:
        try:
            inside = inside[step]
        except (KeyError, IndexError, TypeError):
            inside = None
        if isinstance(step, str):
            parts.append(f".{step}" if re.fullmatch(r"[\w-]+", step, re.ASCII) else f".{json.dumps(step)}")
        elif parts == [".vm"] and isinstance(inside, dict) and _is_plain(inside.get("name")):
            parts.append(f".{inside['name']}")
        else:
            parts.append(f"[{step}]")
    return "".join(parts).removeprefix(".") + ": " if parts else ""


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None


# ------------------------------------------------------------- one host's view


@dataclass(slots=True)
class _Reading:
    """The document as one host sees it, and what is wrong with that. `problems` are by the file's paths."""

    document: dict[str, Any]
    role: Role
    problems: list[tuple[KeyPath, str]] = field(default_factory=list)
    _origins: dict[KeyPath, KeyPath] = field(default_factory=dict)
    _left_out: dict[KeyPath, str] = field(default_factory=dict)
    """Keys that are given for the other host only, and this host as the file would name it there."""

    def pair(self) -> Pair | None:
        """None: there are problems."""
        resolved = self._resolve(Pair, self.document, (), ())
        pair = self._examine(Pair, resolved, ())
        return pair if isinstance(pair, Pair) and not self.problems else None

    # What is given for each host becomes the value of this one.

    def _resolve(self, model: type[Table], table: dict[str, Any], at: KeyPath, origin: KeyPath) -> dict[str, Any]:
        fields = keys_of(model)
        made: dict[str, Any] = {}
        for key, value in table.items():
            here, there = (*at, key), (*origin, key)
            info = fields.get(key)
            if info is not None and isinstance(value, dict) and is_per_host(info) and self._by_host(info, value, there):
                name = next((name for name in (self.role, HOST_NAMES[self.role]) if name in value), None)
                if name is None:
                    by_name = value.keys() & HOST_NAMES.values()
                    self._left_out[here] = f"host {HOST_NAMES[self.role]}" if by_name else f"the {self.role}"
                    self._origins[here] = there
                    continue
                value, there = value[name], (*there, name)
            self._origins[here] = there
            inner = None if info is None else table_of(info)
            if inner is not None and isinstance(value, dict):
                value = self._resolve(inner, value, here, there)
            elif inner is not None and isinstance(value, list):
                value = [self._element(inner, item, (*here, i), (*there, i)) for i, item in enumerate(value)]
            made[key] = value
        return made

    def _element(self, model: type[Table], item: Any, at: KeyPath, origin: KeyPath) -> Any:
        self._origins[at] = origin
        return self._resolve(model, item, at, origin) if isinstance(item, dict) else item

    def _by_host(self, info: FieldInfo, value: dict[str, Any], origin: KeyPath) -> bool:
        if table_of(info) is not None:
            return bool(value) and set(value) <= _PER_HOST
        for key in value:
            if key not in _PER_HOST:
                self.problems.append(
                    ((*origin, key), "unknown key; a value for each host is given as primary and secondary, or a and b")
                )
        return any(key in _PER_HOST for key in value)

    # Checks of each key, then of one key against another as far as these are right.

    def _examine(self, model: type[Table], table: dict[str, Any], at: KeyPath) -> Table | None:
        made: Table | None
        try:
            # JSON, for there strict types have lists for tuples. What JSON lacks (dates) is no value of any key.
            made = model.model_validate_json(json.dumps(table, default=repr), context={"role": self.role})
        except ValidationError as error:
            if not at:
                self._tell(error, model)
            made = None
        if made is not None:
            for where, what in made.problems():
                self.problems.append((self._origin((*at, *where)), what))
        for key, info in keys_of(model).items():
            inner, value = table_of(info), table.get(key)
            if inner is None:
                continue
            if isinstance(value, dict):
                self._examine(inner, value, (*at, key))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        self._examine(inner, item, (*at, key, index))
        return made

    def _tell(self, error: ValidationError, model: type[Table]) -> None:
        for details in error.errors(include_url=False):
            at = tuple(details["loc"])
            if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
                continue  # elements that are wrong themselves don't count for pydantic
            left_out = details["type"] == "missing" and at in self._left_out
            what = f"has no value for {self._left_out[at]}" if left_out else _explain(details, model)
            self.problems.append((self._origin(at), what))

    def _origin(self, at: KeyPath) -> KeyPath:
        rest: KeyPath = ()
        while at and at not in self._origins:
            at, rest = at[:-1], (at[-1], *rest)
        return (*self._origins.get(at, ()), *rest)


def _explain(details: ErrorDetails, model: type[Table]) -> str:
    """What pydantic found, in the words of somebody who writes the file."""
    kind, value = details["type"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    if kind == "coloproxy":
        return str(context["text"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        *around, key = details["loc"]
        known = list(keys_of(_model_at(model, tuple(around))))
        close = difflib.get_close_matches(str(key), known, n=1)
        return f'unknown key, did you mean "{close[0]}"?' if close else f"unknown key; there are {', '.join(known)}"
    if isinstance(value, dict) and value and set(value) <= _PER_HOST:
        return "must be the same on both hosts"
    if kind == "literal_error":
        return f"must be one of {str(context['expected']).replace(' or ', ', ')}".replace("'", '"')
    if kind in ("too_short", "too_long"):
        limit, few = (context.get("min_length"), True) if kind == "too_short" else (context.get("max_length"), False)
        return f"must have at {'least' if few else 'most'} {limit}"
    wanted = _WANTED.get(kind, "a table" if "model" in kind else None)
    return details["msg"] if wanted is None else f"must be {wanted}, not {_described(value)}"


def _described(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {json.dumps(value)}"
    return "a list" if isinstance(value, list | tuple) else "a table"


# ------------------------------------------------------------------ the models


def keys_of(model: type[Table]) -> dict[str, FieldInfo]:
    """The keys of a table, as the file has them."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def is_per_host(info: FieldInfo) -> bool:
    return any(isinstance(mark, PerHost) for mark in info.metadata)


def table_of(info: FieldInfo) -> type[Table] | None:
    """The model of a key whose value is a table, or a list of them."""
    return next(_tables_in(info.annotation), None)


def _tables_in(annotation: Any) -> Iterator[type[Table]]:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, Table)
    ):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _tables_in(part)


def _model_at(model: type[Table], at: KeyPath) -> type[Table]:
    for step in at:
        if isinstance(step, str):
            inner = table_of(keys_of(model)[step])
            assert inner is not None  # pydantic has been there
            model = inner
    return model
