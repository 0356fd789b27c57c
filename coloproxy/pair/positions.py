# SPDX-License-Identifier: Apache-2.0
"""In which line of a TOML document each key stands.

tomllib tells values without their places, and tomlkit (0.15) keeps the text around each value, but no position. So the
document is gone through a second time. It has been parsed by tomllib before and is known to be valid, which is what
keeps this short: only names, brackets and the ends of strings matter.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS: Final = (  # the long ones first; quotes may stand right before the end of those
    re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:[^"\\]|\\.)*"'),
    re.compile(r"'[^']*'"),
)
_SCALAR: Final = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """Lines, from 1 on, of all keys and list elements by their path; of a table that of its header.

    Args:
        text: a document that tomllib takes.
    """
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1  # of `_counted`
        self._counted = 0
        self._lines: dict[Path, int] = {}
        self._lists: dict[Path, int] = {}  # how many tables each [[list]] has so far

    def run(self) -> dict[Path, int]:
        table: Path = ()
        self._skip()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip()
        return self._lines

    def _skip(self) -> None:
        found = _BLANK.match(self._text, self._at)
        assert found is not None  # it matches nothing too
        self._at = found.end()

    def _note(self, path: Path) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(path, self._line)

    def _header(self) -> Path:
        start = self._at
        many = self._text.startswith("[[", start)
        self._at += 2 if many else 1
        names = self._names()
        self._skip()
        end, self._at = self._at + (2 if many else 1), start
        path: Path = ()
        for place, name in enumerate(names):
            path = (*path, name)
            self._note(path)
            if many and place == len(names) - 1:
                self._lists[path] = self._lists.get(path, 0) + 1
            if path in self._lists:  # a [list.table] belongs to the list's last element
                path = (*path, self._lists[path] - 1)
                self._note(path)
        self._at = end
        return path

    def _names(self) -> list[str]:
        names = []
        while True:
            self._skip()
            bare = _BARE.match(self._text, self._at)
            if bare is not None:
                names.append(bare[0])
                self._at = bare.end()
            else:
                quoted = self._string()
                names.append(tomllib.loads(f"k = {quoted}")["k"])
            self._skip()
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _pair(self, table: Path) -> None:
        start = self._at
        names = self._names()
        value, self._at = self._at + 1, start  # behind the =
        path = table
        for name in names:
            path = (*path, name)
            self._note(path)
        self._at = value
        self._skip()
        self._value(path)

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first == "[":
            self._list(path)
        elif first == "{":
            self._inline_table(path)
        elif first in "\"'":
            self._string()
        else:
            scalar = _SCALAR.match(self._text, self._at)
            assert scalar is not None
            self._at = scalar.end()

    def _list(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._more("]"):
            self._note((*path, index))
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._more("}"):
            self._pair(path)

    def _more(self, end: str) -> bool:
        """Skips to the next element; False, and behind `end`, where there is none."""
        self._skip()
        if self._text[self._at] == ",":
            self._at += 1
            self._skip()
        if self._text[self._at] != end:
            return True
        self._at += 1
        return False

    def _string(self) -> str:
        for pattern in _STRINGS:
            found = pattern.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
                return found[0]
        raise AssertionError("tomllib took this document")  # our own invariant, see the module's text
