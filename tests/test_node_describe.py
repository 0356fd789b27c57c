# SPDX-License-Identifier: Apache-2.0
"""docs/node-table.md is what the code plays, and says something of everything in it."""

from __future__ import annotations

import ast
import enum
from pathlib import Path

import pytest

from coloproxy.node.describe import BEGIN, END, condition, diagram, member_docs, page, rows
from coloproxy.node.facts import Standing, State
from coloproxy.node.machine import TABLE, Action, Event, Write

DOCS = Path(__file__).parent.parent / "docs" / "node-table.md"


def test_the_page_is_what_the_code_says() -> None:
    text = DOCS.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    inside = text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"
    assert inside == page(), "make it anew: python -m coloproxy.node.describe docs/node-table.md"


def test_each_row_is_on_the_page_where_it_begins() -> None:
    for state in State:
        lines = rows((state,)).splitlines()[2:]
        assert len(lines) == sum(state in row.states for row in TABLE)


def test_the_diagram_has_each_change_of_state() -> None:
    drawn = {tuple(line.split(":")[0].split()[::2]) for line in diagram().splitlines() if "-->" in line}
    meant = {(state.name, row.to.name) for row in TABLE for state in row.states if row.to not in (None, state)}
    assert drawn == meant | {("[*]", "DISCOVER")}


@pytest.mark.parametrize("kind", [State, Standing, Action])
def test_each_word_is_explained(kind: type[enum.Enum]) -> None:
    assert set(member_docs(kind)) == {each.name for each in kind}


def test_events_are_explained_where_their_name_is_not_enough() -> None:
    assert {each.name for each in Event} - set(member_docs(Event)) <= {"WON"}


def test_each_condition_has_words() -> None:
    texts = {condition(guard) for row in TABLE for guard in row.when}
    assert all(texts) and all(text == text.strip() for text in texts)
    with pytest.raises(ValueError, match="without a name"):
        condition(lambda facts: True)


def test_each_write_is_used() -> None:
    assert {row.write for row in TABLE} - {None} == set(Write)


# ---------------------------------------------------------------------- docs/node-safety.md: events, rows, tests

TESTS = Path(__file__).parent
SAFETY = DOCS.with_name("node-safety.md")


def listed_events() -> list[tuple[str, list[str], list[str]]]:
    """What can happen, its rows (empty: none, with the reason), its tests."""
    text = SAFETY.read_text().partition("<!-- events:")[2].partition("<!-- end of events -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [
        (what, [] if rows.startswith("none: ") else rows.split("; "), tests.split("; "))
        for what, rows, tests in cells[2:]
    ]


def test_each_event_of_the_safety_page_has_rows_that_there_are() -> None:
    events = listed_events()
    assert len(events) > 15
    there = {f"{state.name}: {event.value}" for row in TABLE for state in row.states for event in row.events}
    assert {row for _, rows, _ in events for row in rows} <= there


def test_each_event_of_the_safety_page_has_tests_that_there_are() -> None:
    named = {test for _, _, tests in listed_events() for test in tests}
    there = set()
    for file in {test.partition("::")[0] for test in named}:
        tree = ast.parse((TESTS / file).read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        there |= {f"{file}::{function.name}" for function in functions}
    assert named <= there
