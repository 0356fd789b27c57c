# SPDX-License-Identifier: Apache-2.0
"""What an operator asks a node for, and how long he waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coloproxy.control.protocol import FAILED, REFUSED
from coloproxy.errors import ControlRefused, MisuseError, PeerError
from coloproxy.journal import Journal
from coloproxy.node.board import Board
from coloproxy.node.commands import Commands
from coloproxy.node.facts import Facts, Record, Standing, State
from coloproxy.node.history import History
from coloproxy.node.machine import Event
from coloproxy.reports import CheckpointCommitted
from coloproxy.run.checkpoints import Checkpoints

LONG = 60.0  # s; nothing here waits for it


class Primary:
    """A plane of which checkpoints are asked. protected: one has sense."""

    def __init__(self) -> None:
        self.protected = True
        self.asked: list[str] = []
        self.history = Checkpoints(0)

    def checkpoint(self, reason: str) -> asyncio.Future[None]:
        if not self.protected:
            raise MisuseError("web is not protected")
        self.asked.append(reason)
        return self.history.next()


class Desk:
    """Commands, and all that they touch."""

    def __init__(self, state: State) -> None:
        self.board = Board(Facts("a", state, Record(Standing.OWNER, 3)), Journal(None))
        self.history = History(self.board)
        self.plane = Primary()
        self.noted: list[Event | None] = []
        commands = Commands(self.board, self.history, self.plane, "web", dict, self._wanted)  # type: ignore[arg-type]
        self._handlers = commands.handlers()

    async def _wanted(self) -> None:
        """Nothing of it was said before it is on disk."""
        self.board.say(Event.TICK, "")
        self.noted.append((await self.board.next()).event)

    def ask(self, command: str, **arguments: Any) -> asyncio.Task[object]:
        async def answer() -> object:
            return await self._handlers[command](arguments)

        return asyncio.create_task(answer())

    def move(self, state: State) -> None:
        before = self.board.facts.state
        self.board.know(state=state)
        self.history.note(before, Event.TICK, f"so it is {state.value}", "")


# ---------------------------------------------------------------------- checkpoint


async def test_a_checkpoint_is_asked_for() -> None:
    desk = Desk(State.PROTECTED)
    assert await desk.ask("checkpoint", reason="a test") == {"asked": ["web"]}
    assert desk.plane.asked == ["a test"]


async def test_a_checkpoint_is_waited_for() -> None:
    desk = Desk(State.PROTECTED)
    answer = desk.ask("checkpoint", wait_s=LONG)
    await asyncio.sleep(0)
    assert desk.plane.asked == ["the operator's wish"] and not answer.done()
    desk.plane.history.hear(CheckpointCommitted(1, (), 1, 2, 3))
    assert await answer == {"committed": ["web"]}


async def test_a_checkpoint_that_does_not_come() -> None:
    desk = Desk(State.PROTECTED)
    with pytest.raises(PeerError, match="no checkpoint has committed in 0 s"):
        await desk.ask("checkpoint", wait_s=0)
    answer = desk.ask("checkpoint", wait_s=LONG)
    await asyncio.sleep(0)
    desk.plane.history.over("COLO_EXIT")
    with pytest.raises(PeerError, match="protection has ended: COLO_EXIT"):
        await answer
    desk.plane.protected = False
    with pytest.raises(MisuseError, match="not protected"):
        await desk.ask("checkpoint", wait_s=LONG)


# ---------------------------------------------------------------------- start, and go on here whatever the other does

SERVED: list[tuple[str, str, State, list[State], str]] = [
    # what, command, the state when it is asked, those that it goes to, the answer's key or what of the error
    ("a stopped one", "start", State.STOPPED, [State.SETTLE, State.ALONE], "started"),
    ("one that has failed may fail no more", "start", State.FAILED, [State.SETTLE, State.ALONE], "started"),
    ("one that has failed fails again", "start", State.FAILED, [State.SETTLE, State.FAILED], "is failed: so it is fa"),
    ("its guest powers off at once", "start", State.STOPPED, [State.SETTLE, State.STOPPED], "is stopped: so it is st"),
    ("forced", "failover", State.DISCOVER, [State.SETTLE, State.ALONE], "forced"),
    ("forced, the arbiter was quicker", "alone", State.SUSPENDED, [State.PROTECTED], "forced"),
    ("forced, it fails", "failover", State.JOIN, [State.SETTLE, State.FAILED], "is failed: so it is failed"),
]


@pytest.mark.parametrize(("command", "state", "moves", "said"), [case[1:] for case in SERVED],
                         ids=[case[0] for case in SERVED])  # fmt: skip
async def test_it_is_waited_until_the_vm_is_served(command: str, state: State, moves: list[State], said: str) -> None:
    desk = Desk(state)
    answer = desk.ask(command, force=True, wait_s=LONG)
    happened = await desk.board.next()
    assert happened.event is (Event.START if command == "start" else Event.FORCE)
    assert desk.noted == [Event.TICK]
    for each in moves:
        await asyncio.sleep(0)
        assert not answer.done()
        desk.move(each)
    if said.startswith("is "):
        with pytest.raises(ControlRefused, match=said) as caught:
            await answer
        assert caught.value.kind == FAILED
    else:
        assert await answer == {said: "a"}


@pytest.mark.parametrize("command", ["start", "failover"])
async def test_it_is_not_waited_for_ever(command: str) -> None:
    desk = Desk(State.STOPPED)
    with pytest.raises(ControlRefused, match="not served after 0 s: this node is stopped") as caught:
        await desk.ask(command, force=True, wait_s=0)
    assert caught.value.kind == FAILED
    assert (await desk.board.next()).event in (Event.START, Event.FORCE)  # it is done even so


async def test_without_a_time_nothing_is_waited_for() -> None:
    assert await Desk(State.STOPPED).ask("start") == {"started": "a"}
    assert await Desk(State.STOPPED).ask("alone", force=True) == {"forced": "a"}


@pytest.mark.parametrize(("command", "state", "force", "said"), [
    ("start", State.ALONE, False, "nothing to start: this node is alone"),
    ("alone", State.ALONE, True, "nothing to force: this node is alone"),
    ("failover", State.CLAIM, False, "decides that by itself"),
])  # fmt: skip
async def test_what_has_no_sense_is_refused(command: str, state: State, force: bool, said: str) -> None:
    desk = Desk(state)
    with pytest.raises(ControlRefused, match=said) as caught:
        await desk.ask(command, force=force, wait_s=LONG)
    assert caught.value.kind == REFUSED and desk.noted == []
