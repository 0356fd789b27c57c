# SPDX-License-Identifier: Apache-2.0
"""The table that `coloproxy node` plays is safe, and makes progress, whatever the search of model/pair.py does to it.

And the search can say no: each of the damaged tables must be caught, most of them by one row that is another.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pytest
from model.pair import Kind, Search, is_excused

from coloproxy.node import machine
from coloproxy.node.facts import Facts, Record, Standing, State, other
from coloproxy.node.machine import TABLE, Action, Event, Row, Step, Write, decide, decider

# ------------------------------------------------------------------------------------------------- the table is right


@pytest.mark.parametrize("kind", Kind)
def test_nothing_goes_wrong_and_all_ends_well(kind: Kind) -> None:
    search, _ = searched(kind)
    assert search.problem is None, "\n".join(search.story(search.problem[1]))
    assert search.complete
    stuck = search.stuck()
    assert not stuck, f"{len(stuck)} states; one:\n" + "\n".join(search.story(search.last_of(stuck[0])))
    excused = sum(is_excused(world, kind) for world in search.forward)
    print(f"{kind.name}: {len(search.seen):,} states, {excused:,} of them excused")
    assert len(search.seen) > 40_000  # the world has not become poorer by mistake


@pytest.mark.parametrize("kind", Kind)
def test_nothing_goes_wrong_on_long_ways(kind: Kind) -> None:
    """Any number of failures, on ways that are found by chance."""
    search = Search(kind, budget=1)
    for seed in range(25):
        search.walk(seed, depth=200)
        assert search.problem is None, f"seed {seed}:\n" + "\n".join(search.story(search.problem[1]))
    assert len(search.seen) > 1_000


def test_each_row_is_taken() -> None:
    never = {row.why for row in TABLE} - {row.why for kind in Kind for row in searched(kind)[1]}
    assert never == {"an operator has forced the peer to go on"}  # against his word: the other host was not down


@functools.cache
def searched(kind: Kind) -> tuple[Search, set[Row]]:
    """All that two failures can do, and the rows that were taken."""
    taken = set()

    def watched(facts: Facts, event: Event) -> Step | None:
        step = decide(facts, event)
        if step is not None:
            taken.add(step.row)
        return step

    return Search(kind, budget=2, decide=watched).run(), taken


# ---------------------------------------------------------------------- what the search leaves out makes no difference


@pytest.mark.parametrize("kind", Kind)
def test_what_is_left_out_makes_no_difference(kind: Kind) -> None:
    """`stripped` may take it away, and the hosts may be exchanged where neither is fresh."""
    search = Search(kind, budget=1).run()
    for node in {each for world in search.seen for each in (world.a, world.b) if each.up}:
        for event in Event:
            for facts in junk(node.facts, event):
                assert plain(decide(facts, event)) == plain(decide(node.facts, event)), (event, facts)


def junk(facts: Facts, event: Event) -> Iterable[Facts]:
    peer = facts.peer
    if not facts.claiming and event not in (Event.WON, Event.LOST, Event.UNKNOWN):
        yield facts.with_(claimed=99)
    if facts.own.standing is not Standing.FRESH:
        yield facts.with_(image=True)
        if peer is None or peer.standing is not Standing.FRESH:
            yield facts.with_(host=other(facts.host))
            yield facts.with_(peer=peer and replace(peer, image=True))
    if peer is not None and not facts.alive and event is not Event.PEER:
        for state in State:
            yield facts.with_(peer=replace(peer, state=state, colo_lost=True, image=True, offer=facts.offer or "x"))


def plain(step: Step | None) -> object:
    return None if step is None else (step.row, step.state, step.record, step.actions)


# --------------------------------------------------------------------------------------------------- damaged tables

Table = tuple[Row, ...]


def at(why: str, state: State | None = None, event: Event | None = None) -> int:
    """The one row that says so."""
    found = [
        n
        for n, row in enumerate(TABLE)
        if row.why == why and (state is None or state in row.states) and (event is None or event in row.events)
    ]
    assert len(found) == 1, (why, found)
    return found[0]


def with_row(index: int, **changes: object) -> Table:
    return (*TABLE[:index], replace(TABLE[index], **changes), *TABLE[index + 1 :])  # type: ignore[arg-type]


def without(index: int, event: Event | None = None) -> Table:
    if event is None:
        return TABLE[:index] + TABLE[index + 1 :]
    return with_row(index, events=tuple(each for each in TABLE[index].events if each is not event))


def guarded(old: Callable[[Facts], bool], new: Callable[[Facts], bool]) -> Table:
    """With another guard in place of that one."""
    rows = tuple(replace(row, when=tuple(new if guard is old else guard for guard in row.when)) for row in TABLE)
    assert rows != TABLE
    return rows


def written(write: Write, make: Callable[[Facts], Record]) -> Callable[[Facts, Event], Step | None]:
    """The table with another record where it writes that one."""

    def damaged(facts: Facts, event: Event) -> Step | None:
        step = decide(facts, event)
        return step if step is None or step.row.write is not write else replace(step, record=make(facts))

    return damaged


def old_void_is_a_word(f: Facts) -> bool:
    return f.peer is not None and f.peer.standing is Standing.VOID


def same_generation_supersedes(f: Facts) -> bool:
    peer = f.peer
    return peer is not None and peer.generation >= f.own.generation and peer.standing is not Standing.VOID


def always(f: Facts) -> bool:
    return True


ALONE = {"to": State.SETTLE, "write": Write.OWNER, "actions": (Action.SETTLE,)}
PAIR_WAS_AWAY = "our VM is dead; the secondary may live"


@dataclass(frozen=True)
class Mutant:
    name: str
    kind: Kind
    decide: Callable[[Facts, Event], Step | None]


def mutant(name: str, kind: Kind, table: Table | Callable[[Facts, Event], Step | None]) -> Mutant:
    return Mutant(name, kind, table if callable(table) else decider(table))


SAID = "the secondary of that pair is no more, and says so"
COPY_DIED = "our copy died with its QEMU"
BOTH_DEAD = next(n for n, row in enumerate(TABLE) if row.when == (machine.gave_up, machine.no_register))
# Not here, for they change nothing that can happen:
# - `offered` without its generation: a secondary has heard PRIMARY of its own pair, and nobody says YIELDED of an older
#   one after that;
# - `by_our_offer` left out: a VM that has come into COLO was sent by the primary that took our offer;
# - MUTE left out: the comparator holds, as docs/node-safety.md says;
# - going on at COLO_LOST with `on_partition`: there the secondary never does without the primary's word.
MUTANTS = [
    mutant("the secondary gives way, and does not write it", Kind.STOP,
           with_row(at("the primary is to go on", State.STANDBY), write=None)),
    mutant("the secondary takes over without asking", Kind.FENCE,
           with_row(at("dead, or cut off from us?", State.STANDBY), **ALONE)),
    mutant("the primary goes on without asking when the peer is silent", Kind.FENCE,
           with_row(at("dead, or cut off from us?", State.PROTECTED), **ALONE)),
    mutant("the primary goes on without asking when COLO has ended", Kind.FENCE,
           with_row(at("QEMU has lost the secondary; its node may still answer"), **ALONE)),
    mutant("a primary without a VM may fence", Kind.FENCE,
           with_row(at("nobody answers"), when=(machine.may_ask, machine.unheard))),
    mutant("a primary that has lost voids at once", Kind.REGISTER,
           with_row(at("the secondary has won: it will say what comes of it"),
                    to=State.JOIN, write=Write.VOID, actions=(Action.DISCARD,))),
    mutant("a secondary that has won serves, though its VM is dead", Kind.REGISTER,
           without(at("our copy died while we asked: the primary's disk is the truth"))),
    mutant("a pair's node does not see that it is superseded", Kind.REGISTER,
           without(at("the peer went on", State.PROTECTED))),
    mutant("nor when it begins", Kind.FENCE, without(at("the peer went on without us"))),
    mutant("a pair without a generation of its own", Kind.STOP,
           written(Write.PRIMARY, lambda f: Record(Standing.PRIMARY, f.own.generation, f.offer))),
    mutant("a pair that is not written down", Kind.STOP,
           with_row(at("from now on the secondary may take over"), write=None)),
    mutant("a secondary whose VM died takes over after its restart", Kind.REGISTER,
           with_row(at(COPY_DIED, State.DISCOVER), to=State.CLAIM, write=None, actions=(Action.CLAIM,))),
    mutant("a primary boots again without asking", Kind.FENCE, with_row(at(PAIR_WAS_AWAY), **ALONE)),
    mutant("a primary's VM died, and that is not written", Kind.STOP,
           with_row(at("the secondary is to go on", State.PROTECTED), write=None)),
    mutant("a VOID of an earlier pair is a word", Kind.FENCE, guarded(machine.can_not_go_on, old_void_is_a_word)),
    mutant("an operator's generation is just the next one", Kind.STOP,
           written(Write.FORCED, lambda f: Record(Standing.OWNER, f.next_generation))),
    mutant("an operator's generation does not tell when he spoke", Kind.REGISTER,
           written(Write.FORCED, lambda f: Record(Standing.OWNER, f.next_generation + machine.FAR))),
    mutant("an owner settles before it has listened", Kind.STOP,
           with_row(at("nobody can have taken over from us, but by an operator's word: the peer would say so"),
                    events=(Event.BEGIN,))),
    mutant("a primary without a VM asks before it has listened", Kind.REGISTER,
           with_row(at(PAIR_WAS_AWAY), events=(Event.BEGIN,))),
    mutant("a new host's VOID is a word", Kind.STOP,
           with_row(BOTH_DEAD, when=(machine.can_not_go_on, machine.no_register))),
    mutant("a new host has the generation of the pair", Kind.STOP,
           written(Write.BLANK, lambda f: Record(Standing.VOID, 0 if f.peer is None else f.peer.generation))),
    mutant("a secondary that may have asked voids its own generation only", Kind.REGISTER,
           written(Write.VOID, lambda f: Record(
               Standing.VOID, max(f.own.generation, 0 if f.peer is None else f.peer.generation)))),
    mutant("the primary does not ask when the secondary does", Kind.REGISTER,
           without(at("it has asked the register: one of us must win there"))),
    mutant("the secondary waits for a primary that has won and has no VM", Kind.REGISTER,
           without(at("the primary had won before its VM died: its disk is the truth"))),
    mutant("a guest's power-off is not noticed by the secondary", Kind.STOP,
           without(at(COPY_DIED, State.STANDBY), Event.VM_SHUTDOWN)),
    mutant("a stopped primary does not look whether it is superseded", Kind.REGISTER,
           without(at("the peer went on", State.STOPPED))),
    mutant("an attempt is tried for ever", Kind.STOP, without(at("the attempt has failed", State.READY, Event.TICK))),
    mutant("a secondary that was never one says nothing", Kind.STOP, without(at(SAID, State.JOIN))),
    mutant("whoever has the same generation has gone on", Kind.STOP,
           guarded(machine.superseded, same_generation_supersedes)),
    mutant("the winner's record is not written", Kind.FENCE,
           with_row(at("nobody else can go on", State.SUSPENDED), write=None)),
    mutant("the secondary takes over, and does not write it", Kind.FENCE,
           with_row(at("nobody else can go on: take over"), write=None)),
]  # fmt: skip


ONE_FAILURE_IS_ENOUGH = {
    "the secondary gives way, and does not write it",
    "the secondary takes over without asking",
    "a pair's node does not see that it is superseded",
    "a pair that is not written down",
    "a primary boots again without asking",
    "a primary's VM died, and that is not written",
    "a new host has the generation of the pair",
    "an attempt is tried for ever",
    "a secondary that was never one says nothing",
    "whoever has the same generation has gone on",
    "the winner's record is not written",
    "the secondary takes over, and does not write it",
}
"""Seconds each. The others take a search with two failures, minutes each, and are left to COLOPROXY_THOROUGH=1. Nine of
those were never seen caught: what they take back was found wrong by longer searches."""
A_WALK_IS_ENOUGH = {
    "nor when it begins",
    "an operator's generation is just the next one",
    "an operator's generation does not tell when he spoke",
    "an owner settles before it has listened",
}
"""Found by chance within seconds, on ways with more than two failures, on which the table itself does nothing wrong."""
WALKS = range(100)
CHOSEN = [each for each in MUTANTS if each.name in ONE_FAILURE_IS_ENOUGH or os.environ.get("COLOPROXY_THOROUGH")]


@pytest.mark.parametrize("damaged", CHOSEN, ids=lambda each: each.name)
def test_a_damaged_table_is_caught(damaged: Mutant) -> None:
    assert verdict(damaged) is not None


@pytest.mark.parametrize("name", sorted(A_WALK_IS_ENOUGH))
def test_a_damaged_table_is_caught_on_a_long_way(name: str) -> None:
    (damaged,) = (each for each in MUTANTS if each.name == name)
    for seed in WALKS:
        if Search(damaged.kind, 1, decide=damaged.decide).walk(seed, depth=250).problem is not None:
            assert Search(damaged.kind, 1).walk(seed, depth=250).problem is None
            return
    pytest.fail(f"not within {len(WALKS)} walks")


def verdict(damaged: Mutant) -> str | None:
    """What the search says, with one failure, or else with two."""
    for budget in (1,) if damaged.name in ONE_FAILURE_IS_ENOUGH else (1, 2):
        search = Search(damaged.kind, budget, decide=damaged.decide).run()
        if search.problem is not None:
            return search.problem[0]
        if search.stuck():
            return "progress"
    return None
