# SPDX-License-Identifier: Apache-2.0
"""The table of machine.py for people: docs/node-table.md, made of the rows and of the docstrings beside them.

Its one input is what `coloproxy node` plays, so it can't say anything else. Docstrings of an enum's members are not
kept by Python: they are read from the source.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .facts import Facts, Standing, State
from .machine import TABLE, Action, Event, Row, Write

BEGIN = "<!-- table: made by coloproxy.node.describe.page(); a test compares -->"
END = "<!-- end of table -->"

_GROUPS = (
    ("Who has the truth?", (State.DISCOVER,)),
    ("The owner", (State.SETTLE, State.ALONE, State.PROTECT)),
    ("The primary of a pair", (State.PROTECTED, State.SUSPENDED, State.YIELDED)),
    ("The secondary", (State.JOIN, State.READY, State.STANDBY, State.CLAIM)),
    ("The end", (State.STOPPED, State.FAILED)),
)


def page() -> str:
    """All that stands between the markers of docs/node-table.md."""
    parts = ["## Diagram", diagram(), "## Rows"]
    for title, states in _GROUPS:
        parts += [f"### {title}", rows(states)]
    parts += ["## Words"]
    for kind, title in ((State, "States"), (Standing, "Records"), (Event, "Events"), (Action, "Actions")):
        parts += [f"### {title}", words(kind)]
    parts += ["### What is written", writes(), "### Conditions", guards()]
    return "\n\n".join(parts) + "\n"


def diagram() -> str:
    """States and the events between them (Mermaid). Rows that stay in their state are left out."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for row in TABLE:
        for state in row.states:
            if row.to not in (None, state):
                labels = arrows.setdefault((state, row.to), [])
                labels += [event.value for event in row.events if event.value not in labels]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.DISCOVER.name}"]
    for (state, to), labels in sorted(arrows.items(), key=lambda item: (_order(item[0][0]), _order(item[0][1]))):
        lines.append(f"    {state.name} --> {to.name}: {', '.join(labels)}")
    return "\n".join([*lines, "```"])


def rows(states: tuple[State, ...]) -> str:
    """Those that begin in one of these, in the table's order: the first one that fits is taken."""
    lines = ["| in | on | if | to | written | done | why |", "|---|---|---|---|---|---|---|"]
    lines += [_line(row, states) for row in TABLE if any(state in row.states for state in states)]
    return "\n".join(lines)


def words(kind: type[enum.Enum]) -> str:
    """The members of an enum, with their docstrings."""
    texts = member_docs(kind)
    return "\n".join(
        ["| name | meaning |", "|---|---|", *(f"| {each.name} | {texts.get(each.name, '')} |" for each in kind)]
    )


def writes() -> str:
    """What each write makes of the record."""
    return "\n".join(
        ["| name | the record becomes |", "|---|---|", *(f"| {each.name} | {each.value} |" for each in Write)]
    )


def guards() -> str:
    """The conditions that rows name, in the order that they are met."""
    found: dict[str, str] = {}
    for row in TABLE:
        for guard in row.when:
            if "<" not in guard.__qualname__:
                found.setdefault(guard.__name__, condition(guard))
    return "\n".join(["| name | holds if |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in found.items())])


def condition(guard: Callable[[Facts], bool]) -> str:
    """A guard in words: the first line of its docstring."""
    text = (guard.__doc__ or "").strip().splitlines()
    if not text or guard.__name__ == "<lambda>":
        raise ValueError(f"a guard without a name or a docstring: {guard!r}")
    return text[0]


def member_docs(kind: type[enum.Enum]) -> dict[str, str]:
    """The string below each member's assignment, as one line."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    return dict(_member_docs(body))


def _member_docs(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    name = ""
    for statement in body.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
        elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            yield name, " ".join(str(statement.value.value).split())
            name = ""
        else:
            name = ""


def _line(row: Row, states: tuple[State, ...]) -> str:
    cells = (
        ", ".join(state.name for state in row.states if state in states),
        ", ".join(event.value for event in row.events),
        "; ".join(condition(guard) for guard in row.when) or "-",
        "-" if row.to is None else row.to.name,
        "-" if row.write is None else row.write.name,
        ", ".join(action.name for action in row.actions) or "-",
        row.why,
    )
    return "| " + " | ".join(cells) + " |"


def _order(state: State) -> int:
    return list(State).index(state)


def renewed(text: str) -> str:
    """The page's file with what is between the markers made anew."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{page()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    _file = Path(sys.argv[1])
    _file.write_text(renewed(_file.read_text()))
