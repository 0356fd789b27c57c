# SPDX-License-Identifier: Apache-2.0
"""One node of the search in pair.py: what the table makes of it, and what dies with what.

Nodes are kept once each, so that they are compared and hashed by identity; what is computed of them is remembered. What
no guard can ever look at again is left out of them: see `keep`, and the test that it is so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final, NamedTuple

from coloproxy.node.facts import Advert, Facts, Record, Standing, State, VmView
from coloproxy.node.machine import Action, Event, Step, decide

LONG: Final = frozenset({Action.SETTLE, Action.PREPARE, Action.PROTECT})
ASKS: Final = frozenset({State.SUSPENDED, State.YIELDED, State.CLAIM, State.STOPPED})
NEW: Final = "*"
"""An offer that nobody has heard of yet; it is renamed with the world."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    facts: Facts
    up: bool = True
    """The coloproxy process."""
    host_up: bool = True
    frozen: bool = False
    """All of the host's processes stand still; its TAPs stay as they are."""
    is_open: bool = False
    """The TAPs."""
    doing: Action | None = None
    """The long action under way."""
    answer: Event | None = None
    """The arbiter's, on its way here."""
    lost_colo: bool = False
    """QEMU has said so, and it has not been heard yet."""
    behind: bool = False
    """Clients were told what is not here."""
    old: Advert | None = None
    """Frozen: what it will hear first, from before."""
    shape: tuple[object, ...] = ()
    """Orders the two of a world."""
    low: int = 0
    """The lowest generation that it knows of, but 0."""
    offers: tuple[str, ...] = ()
    spents: tuple[str, ...] = ()


class Played(NamedTuple):
    """What an event makes of a node, and of the world."""

    node: Node
    kills: bool
    """QEMU is killed."""
    ghost: int
    """A claim that nobody waits for any more, or 0."""
    crashed: Node | None
    """It died as it had written its record, and done nothing yet."""


Decide = Callable[[Facts, Event], Step | None]

_FIELDS: Final = tuple(f.name for f in fields(Facts))
_STATES: Final = {state: n for n, state in enumerate(State)}
_STANDINGS: Final = {standing: n for n, standing in enumerate(Standing)}
_VMS: Final = {view: n for n, view in enumerate(VmView)}
_ACTIONS: Final = {None: 0} | {action: n for n, action in enumerate(Action, 1)}


def stripped(facts: Facts) -> Facts:
    """Without what no guard, no write and no advert can depend on."""
    changes: dict[str, object] = {}
    peer = facts.peer
    if not facts.claiming and facts.claimed:
        changes["claimed"] = 0
    if facts.image and facts.own.standing is not Standing.FRESH:
        changes["image"] = False
    if peer is not None:
        if not facts.alive:
            peer = Advert(State.DISCOVER, peer.standing, peer.generation, spent=peer.spent)
        elif peer.image and peer.standing is not Standing.FRESH:
            peer = replace(peer, image=False)
        if peer != facts.peer:
            changes["peer"] = peer
    return facts.with_(**changes) if changes else facts


class Nodes:
    """All nodes of a search, and what follows from one of them alone."""

    def __init__(self, decide: Decide = decide, *, register: bool) -> None:
        self.decide = decide
        self.register = register
        self._kept: dict[tuple[object, ...], Node] = {}
        self._played: dict[tuple[Node, Event], Played | None] = {}
        self._heard: dict[tuple[Node, Node], Node] = {}
        self._renamed: dict[tuple[object, ...], Node] = {}
        self._made: dict[tuple[str, Node], Node] = {}

    def keep(self, node: Node, **changes: object) -> Node:
        """The one node that is like this one, but for that. Names of Facts' fields are changed in `facts`."""
        inner = {name: changes.pop(name) for name in tuple(changes) if name in _FIELDS}
        facts = node.facts.with_(**inner) if inner else node.facts
        get = changes.get
        up, frozen = get("up", node.up), get("frozen", node.frozen)
        if not up:  # all but record and QEMU dies with the process
            offer = facts.offer if facts.vm is VmView.WAITING else ""
            facts = Facts(
                facts.host, own=facts.own, vm=facts.vm, register=facts.register, image=facts.image, offer=offer
            )
        facts = stripped(facts)
        key = (
            facts, up, get("host_up", node.host_up), frozen, get("is_open", node.is_open) and up,
            get("doing", node.doing) if up else None, get("answer", node.answer) if facts.claiming else None,
            get("lost_colo", node.lost_colo), get("behind", node.behind), get("old", node.old) if frozen else None,
        )  # fmt: skip
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = Node(*key, *_known(*key))  # type: ignore[arg-type]
        return kept

    def once(self, name: str, make: Callable[[Node], Node], node: Node) -> Node:
        made = self._made.get((name, node))
        if made is None:
            made = self._made[name, node] = make(node)
        return made

    # ------------------------------------------------------------------- what befalls it

    def began(self, node: Node) -> Node:
        return self.once("began", lambda n: self.keep(n, up=True, offer="", is_open=False, doing=None), node)

    def died(self, node: Node) -> Node:
        return self.once("died", lambda n: self.keep(n, up=False, frozen=False), node)

    def crashed(self, node: Node) -> Node:
        return self.once(
            "crashed", lambda n: self.keep(self.without_vm(n), up=False, host_up=False, frozen=False), node
        )

    def without_vm(self, node: Node) -> Node:
        return self.once("without vm", self._without_vm, node)

    def _without_vm(self, node: Node) -> Node:
        facts = node.facts
        had = facts.vm in (VmView.COLO, VmView.RUNNING)
        behind = node.behind or (had and facts.own.standing is Standing.SECONDARY)  # its disk is the last checkpoint's
        return self.keep(node, vm=VmView.NONE, lost_colo=False, behind=behind)

    def without_colo(self, node: Node) -> Node:
        """Its QEMU has noticed that COLO is over."""
        if node.facts.vm is not VmView.COLO:
            return node
        if node.up:
            return self.once("without colo", lambda n: self.keep(n, lost_colo=True), node)
        return self.once("without colo", lambda n: self.keep(n, vm=VmView.RUNNING), node)

    def hears_of_colo(self, node: Node) -> Node:
        vm = VmView.RUNNING if node.facts.vm is VmView.COLO else node.facts.vm
        return self.once("hears", lambda n: self.keep(n, lost_colo=False, colo_lost=True, vm=vm), node)

    def deaf(self, node: Node) -> Node:
        return self.once("deaf", lambda n: self.keep(n, alive=False), node)

    def hears(self, node: Node, peer: Node) -> Node:
        heard = self._heard.get((node, peer))
        if heard is None:
            heard = self._heard[node, peer] = self.keep(node, peer=peer.facts.advert(), alive=True)
        return heard

    # -------------------------------------------------------------------------- it acts

    def plays(self, node: Node, event: Event) -> Played | None:
        key = (node, event)
        if key not in self._played:
            self._played[key] = self._plays(node, event)
        return self._played[key]

    def _plays(self, me: Node, event: Event) -> Played | None:
        step = self.decide(me.facts, event)
        if step is None:
            return None
        if step.record.generation < me.facts.own.generation:
            raise Shrunk(step)
        crashed = None
        if step.record != me.facts.own and step.actions:
            crashed = self.keep(me, own=step.record)
        changes: dict[str, object] = {"state": step.state, "own": step.record, "moment": 0}
        if me.facts.state is State.PROTECT and event is Event.FAILED:
            changes["spent"] = me.facts.offer
        if step.state not in (State.SETTLE, State.JOIN, State.PROTECT):  # what was being done has no point any more
            changes["doing"] = None
        ghost, kills = 0, False
        if me.facts.claiming and step.state not in ASKS:  # the answer has no meaning any more
            changes |= {"claiming": False}
            ghost = me.facts.claimed if me.answer is None else 0
        after = self.keep(me, **changes)
        for action in step.actions:
            match action:
                case Action.CLAIM:
                    if after.facts.claiming and after.answer is None:
                        ghost = after.facts.claimed
                    after = self.keep(after, claiming=True, claimed=after.facts.next_generation, answer=None)
                case Action.MUTE:
                    after = self.keep(after, is_open=False)
                case Action.ADOPT:
                    is_primary = after.facts.own.standing is Standing.PRIMARY
                    after = self.keep(after, is_open=is_primary and step.state is State.PROTECTED)
                case Action.DISCARD:
                    kills = True
                    after = self.keep(self.without_vm(after), is_open=False, doing=None)
                case Action.PROTECT:
                    assert after.facts.peer is not None
                    after = self.keep(after, doing=action, offer=after.facts.peer.offer)
                case _:
                    after = self.keep(after, doing=action)
        return Played(after, kills, ghost if self.register else 0, crashed)

    # ----------------------------------------------------------------- names and numbers

    def renamed(self, node: Node, shift: int, names: tuple[tuple[str, str], ...], swap: bool) -> Node:
        """With generations less by `shift`, offers named so, and on the other host."""
        key = (node, shift, names, swap)
        done = self._renamed.get(key)
        if done is None:
            done = self._renamed[key] = self._rename(node, shift, dict(names), swap)
        return done

    def _rename(self, node: Node, shift: int, names: dict[str, str], swap: bool) -> Node:
        def advert(a: Advert | None) -> Advert | None:
            if a is None:
                return None
            offer, spent = names.get(a.offer, ""), names.get(a.spent, "")
            return replace(a, generation=_less(a.generation, shift), offer=offer, spent=spent)

        f = node.facts
        own = Record(f.own.standing, _less(f.own.generation, shift), names.get(f.own.offer, ""))
        host = f.host if not swap else ("b" if f.host == "a" else "a")
        return self.keep(
            node, host=host, own=own, peer=advert(f.peer), claimed=_less(f.claimed, shift),
            offer=names.get(f.offer, ""), spent=names.get(f.spent, ""), old=advert(node.old),
        )  # fmt: skip


class Shrunk(Exception):
    """A record of an earlier generation than the one before."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.row.why)


def _less(generation: int, shift: int) -> int:
    return max(generation - shift, 0)


def _known(
    facts: Facts, up: bool, host_up: bool, frozen: bool, is_open: bool, doing: Action | None, answer: Event | None,
    lost_colo: bool, behind: bool, old: Advert | None,
) -> tuple[tuple[object, ...], int, tuple[str, ...], tuple[str, ...]]:  # fmt: skip
    adverts = [a for a in (facts.peer, old) if a is not None]
    generations = [facts.own.generation, facts.claimed, *(a.generation for a in adverts)]
    offers = (facts.offer, facts.own.offer, *(a.offer for a in adverts))
    shape = (
        _STATES[facts.state], _STANDINGS[facts.own.standing], _VMS[facts.vm], up, host_up, frozen, is_open,
        _ACTIONS[doing], answer is not None, lost_colo, behind, facts.alive, facts.claiming,
        0 if facts.peer is None else 1 + _STATES[facts.peer.state],
    )  # fmt: skip
    return (
        shape,
        min((g for g in generations if g), default=0),
        tuple(offer for offer in offers if offer),
        tuple(spent for spent in (facts.spent, *(a.spent for a in adverts)) if spent),
    )
