# SPDX-License-Identifier: Apache-2.0
"""All that two nodes, their network, an arbiter and failures can make of the table of coloproxy/node/machine.py.

An explicit-state search, breadth first. The table is the code's own; here is the world around it, with everything that
may happen at any time happening at every time: messages late or lost in either direction, processes, VMs and hosts
that die and come back, claims whose answer is lost, COLO that breaks. Failures are bounded by a budget, recoveries are
free. Generations are counted from the lowest one, so that the world is finite.

Judged are, of every state that can be reached:

    reachable  no two VMs serve clients by themselves (R5)
    truth      never two owners; whoever serves has all that clients were told (R1, in the large)
    progress   without further failures a protected pair can be reached, but for the states named in EXCUSED
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from coloproxy.node.facts import Facts, Standing, State, VmView
from coloproxy.node.machine import Action, Event, decide


class Kind(enum.Enum):
    """Of arbiter."""

    REGISTER = "register"
    FENCE = "fence"
    PRIMARY = "on_partition = primary"
    STOP = "on_partition = stop"


@dataclass(frozen=True, slots=True)
class Node:
    facts: Facts
    up: bool = True  # the coloproxy process
    host_up: bool = True
    is_open: bool = False  # the TAPs
    doing: Action | None = None  # the long action under way
    lost_colo: bool = False  # QEMU has said so, and it has not been heard yet
    behind: bool = False  # clients were told what is not here


@dataclass(frozen=True, slots=True)
class World:
    a: Node
    b: Node
    linked: bool = False  # the two QEMUs run in COLO with one another
    cut: tuple[bool, bool] = (False, False)  # from a to b, from b to a
    register: tuple[int, str] = (0, "")
    ghost: tuple[int, str] = (0, "")  # a claim that nobody waits for any more, on its way to the register
    faults: int = 0
    offers: int = 0

    def node(self, i: int) -> Node:
        return self.b if i else self.a

    def put(self, i: int, node: Node, **changes: object) -> World:
        return replace(self, **{"ab"[i]: node}, **changes)  # type: ignore[arg-type]


_LONG: Final = frozenset({Action.SETTLE, Action.PREPARE, Action.PROTECT})
_SERVES: Final = frozenset({State.SETTLE, State.ALONE, State.PROTECT})
_ASKS: Final = frozenset({State.SUSPENDED, State.YIELDED, State.CLAIM, State.STOPPED})
_OFFERS: Final = 3


def begin(kind: Kind) -> World:
    """Two hosts, one image."""
    a, b = (Node(Facts(host, register=kind is Kind.REGISTER, image=host == "a")) for host in ("a", "b"))  # type: ignore[arg-type]
    return World(a, b)


@dataclass
class Search:
    """`run` visits all. `budget`: how many failures; `limit`: of states, a search that is cut short says so."""

    kind: Kind
    budget: int
    limit: int = 2_000_000
    seen: dict[World, tuple[World, str] | None] = field(default_factory=dict)
    forward: dict[World, list[World]] = field(default_factory=dict)  # without failures
    problem: tuple[str, World] | None = None
    complete: bool = True

    # ---------------------------------------------------------------- the search

    def run(self) -> Search:
        first = begin(self.kind)
        self.seen[first] = None
        queue = deque([first])
        while queue:
            world = queue.popleft()
            self.forward[world] = []
            for name, is_fault, after in self.steps(world):
                after = normal(after)
                if not is_fault:
                    self.forward[world].append(after)
                if after in self.seen:
                    continue
                self.seen[after] = (world, name)
                wrong = judge(after)
                if wrong is not None:
                    self.problem = (wrong, after)
                    return self
                if len(self.seen) >= self.limit:
                    self.complete = False
                    return self
                queue.append(after)
        return self

    def stuck(self) -> list[World]:
        """Those from which no protected pair can be reached any more, though nothing else fails."""
        back: dict[World, list[World]] = {}
        for world, nexts in self.forward.items():
            for after in nexts:
                back.setdefault(after, []).append(world)
        good = {world for world in self.forward if is_goal(world)}
        queue = deque(good)
        while queue:
            for before in back.get(queue.popleft(), ()):
                if before not in good:
                    good.add(before)
                    queue.append(before)
        return [world for world in self.forward if world not in good and not is_excused(world)]

    def story(self, world: World) -> list[str]:
        """How one gets there."""
        lines = [describe(world)]
        step = self.seen[world]
        while step is not None:
            before, name = step
            lines += [f"-- {name}", describe(before)]
            step = self.seen[before]
        return lines[::-1]

    # ------------------------------------------------------------------ the steps

    def steps(self, w: World) -> Iterator[tuple[str, bool, World]]:
        """What may happen: its name, whether it is a failure, and what comes of it."""
        for i in (0, 1):
            yield from self._of_node(w, i)
        may_fail = w.faults < self.budget
        if may_fail:
            failed = replace(w, faults=w.faults + 1)
            for i in (0, 1):
                yield from self._failures(failed, i)
            if w.linked:
                yield "COLO breaks", True, _unlink(failed)
        if w.ghost[0]:
            wins = w.register[0] < w.ghost[0]
            yield "a claim of old comes", False, replace(w, ghost=(0, ""), register=w.ghost if wins else w.register)
        for way in (0, 1):
            cut = tuple(not c if k == way else c for k, c in enumerate(w.cut))
            if w.cut[way]:
                yield f"{'ab'[way]}'s messages come again", False, replace(w, cut=cut)  # type: ignore[arg-type]
            elif may_fail:
                cut_off = replace(w, cut=cut, faults=w.faults + 1)  # type: ignore[arg-type]
                yield f"{'ab'[way]}'s messages are lost", True, cut_off

    def _of_node(self, w: World, i: int) -> Iterator[tuple[str, bool, World]]:
        me, peer, name = w.node(i), w.node(1 - i), "ab"[i]
        if not me.host_up:
            yield f"{name}'s host comes back", False, w.put(i, replace(me, host_up=True))
            return
        if not me.up:
            facts = Facts(
                me.facts.host, own=me.facts.own, vm=me.facts.vm, register=me.facts.register, image=me.facts.image
            )
            fresh = replace(me, up=True, facts=facts, doing=None, is_open=False)
            yield f"{name} begins", False, self.happens(w.put(i, fresh), i, Event.BEGIN)
            return
        if peer.up and not w.cut[1 - i]:
            heard = replace(me, facts=me.facts.with_(peer=peer.facts.advert(), alive=True))
            yield f"{name} hears the peer", False, self.happens(w.put(i, heard), i, Event.PEER)
        elif me.facts.alive or me.facts.peer is None or me.facts.state in (State.STANDBY, State.PROTECTED):
            deaf = replace(me, facts=me.facts.with_(alive=False))
            yield f"{name} hears nothing", False, self.happens(w.put(i, deaf), i, Event.PEER_DEAD)
        yield f"{name} ticks", False, self.happens(w, i, Event.TICK)
        if me.lost_colo:
            told = replace(me, lost_colo=False, facts=me.facts.with_(colo_lost=True, vm=_after_colo(me.facts.vm)))
            yield f"{name} hears that COLO is over", False, self.happens(w.put(i, told), i, Event.COLO_LOST)
        if me.facts.claiming:
            yield from self._claims(w, i)
        if me.doing is not None:
            yield from self._ends(w, i)

    def _claims(self, w: World, i: int) -> Iterator[tuple[str, bool, World]]:
        me, name = w.node(i), "ab"[i]
        answered = replace(me, facts=me.facts.with_(claiming=False))
        claimed, done = me.facts.claimed, w.put(i, answered)
        may_fail = w.faults < self.budget
        match self.kind:
            case Kind.REGISTER:
                won = w.register[0] < claimed or w.register == (claimed, name)
                after = replace(done, register=(claimed, name)) if won else done
                yield f"{name} asks", False, self.happens(after, i, Event.WON if won else Event.LOST)
                if may_fail:
                    lost = replace(after, faults=w.faults + 1)
                    yield f"{name} asks, the answer is lost", True, self.happens(lost, i, Event.UNKNOWN)
                    away = replace(done, faults=w.faults + 1)
                    yield f"{name} asks in vain", True, self.happens(away, i, Event.UNKNOWN)
            case Kind.FENCE:
                shot = _crash(done, 1 - i)
                yield f"{name} fences the peer", False, self.happens(shot, i, Event.WON)
                if may_fail:
                    away = replace(done, faults=w.faults + 1)
                    yield f"{name}'s fencing fails", True, self.happens(away, i, Event.UNKNOWN)
            case Kind.PRIMARY if me.facts.own.standing is Standing.PRIMARY:
                yield f"{name} is the primary", False, self.happens(done, i, Event.WON)
            case _:
                yield f"{name} is refused", False, self.happens(done, i, Event.UNKNOWN)

    def _ends(self, w: World, i: int) -> Iterator[tuple[str, bool, World]]:
        me, peer, name = w.node(i), w.node(1 - i), "ab"[i]
        idle = replace(me, doing=None)
        may_fail = w.faults < self.budget
        failed = replace(w.put(i, idle), faults=w.faults + 1)
        match me.doing:
            case Action.SETTLE:
                gen, owner = w.register
                own = me.facts.own.generation
                if self.kind is Kind.REGISTER and (gen > own or (gen == own and owner != name)):
                    yield f"{name} finds another owner", False, self.happens(w.put(i, idle), i, Event.FAILED)
                    return
                world = _unlink(w, quiet=i) if w.linked else w
                here = replace(
                    world.node(i), doing=None, is_open=True, lost_colo=False,
                    facts=me.facts.with_(vm=VmView.RUNNING, colo_lost=False, offer=""),
                )  # fmt: skip
                other = replace(world.node(1 - i), behind=True)
                world = world.put(i, here).put(1 - i, other)
                if self.kind is Kind.REGISTER:
                    world = replace(world, register=(own, name))
                yield f"{name}'s VM runs", False, self.happens(world, i, Event.SETTLED)
            case Action.PREPARE:
                offer = f"{name}{w.offers}"
                waits = replace(
                    idle, facts=me.facts.with_(vm=VmView.WAITING, offer=offer, colo_lost=False), lost_colo=False
                )
                world = replace(w.put(i, waits), offers=(w.offers + 1) % _OFFERS)
                yield f"{name}'s QEMU waits", False, self.happens(world, i, Event.READY)
                if may_fail:
                    yield f"{name} can't prepare", True, self.happens(failed, i, Event.FAILED)
            case Action.PROTECT:
                wants = me.facts.offer
                there = peer.host_up and peer.facts.vm is VmView.WAITING and peer.facts.offer == wants
                if there and w.cut == (False, False):
                    both = w.put(1 - i, replace(peer, facts=peer.facts.with_(vm=VmView.COLO), behind=False))
                    ours = replace(idle, facts=me.facts.with_(vm=VmView.COLO, colo_lost=False), lost_colo=False)
                    world = replace(both.put(i, ours), linked=True)
                    yield f"{name} migrates", False, self.happens(world, i, Event.COLO)
                else:
                    yield f"{name} can't migrate", False, self.happens(w.put(i, idle), i, Event.FAILED)
                if may_fail:
                    yield f"{name}'s migration fails", True, self.happens(failed, i, Event.FAILED)
            case _:
                raise AssertionError(me.doing)

    def _failures(self, w: World, i: int) -> Iterator[tuple[str, bool, World]]:
        me, name = w.node(i), "ab"[i]
        if me.up:
            dead = replace(me, up=False, is_open=False, doing=None, facts=me.facts.with_(claiming=False))
            yield f"{name}'s coloproxy dies", True, w.put(i, dead)
        if me.host_up:
            yield f"{name}'s host dies", True, _crash(w, i)
        if me.host_up and me.facts.vm is not VmView.NONE:
            world = _kill_vm(w, i)
            yield f"{name}'s VM dies", True, self.happens(world, i, Event.VM_DEAD) if me.up else world

    # ------------------------------------------------------------------- a node acts

    def happens(self, w: World, i: int, event: Event) -> World:
        """The node hears of the event, and does what the table says."""
        me = w.node(i)
        step = decide(me.facts, event)
        if step is None:
            return w
        facts = me.facts.with_(state=step.state, own=step.record)
        if me.facts.state is State.PROTECT and event is Event.FAILED:
            facts = facts.with_(spent=me.facts.offer)
        if step.state not in (State.SETTLE, State.JOIN, State.PROTECT):  # whatever was being done has no point any more
            me = replace(me, doing=None)
        if me.facts.claiming and step.state not in _ASKS:  # the answer has no meaning any more
            facts = facts.with_(claiming=False)
            if self.kind is Kind.REGISTER:
                w = replace(w, ghost=(me.facts.claimed, facts.host))
        w = w.put(i, replace(me, facts=facts))
        for action in step.actions:
            w = self._act(w, i, action)
        return w

    def _act(self, w: World, i: int, action: Action) -> World:
        me = w.node(i)
        match action:
            case Action.CLAIM:
                return w.put(i, replace(me, facts=me.facts.with_(claiming=True, claimed=me.facts.next_generation)))
            case Action.MUTE:
                return w.put(i, replace(me, is_open=False))
            case Action.ADOPT:
                is_primary = me.facts.own.standing is Standing.PRIMARY
                return w.put(i, replace(me, is_open=is_primary and me.facts.state is State.PROTECTED))
            case Action.DISCARD:
                w = _kill_vm(w, i)
                return w.put(i, replace(w.node(i), is_open=False, doing=None))
            case Action.PROTECT:
                assert me.facts.peer is not None
                me = replace(me, facts=me.facts.with_(offer=me.facts.peer.offer))
        return w.put(i, replace(me, doing=action))


def _after_colo(view: VmView) -> VmView:
    return VmView.RUNNING if view is VmView.COLO else view


def _unlink(w: World, quiet: int | None = None) -> World:
    """COLO is over; each QEMU says so, but for one that is being told to."""
    for i in (0, 1):
        node = w.node(i)
        if node.facts.vm is VmView.COLO and i != quiet:
            if node.up:
                node = replace(node, lost_colo=True)
            else:
                node = replace(node, facts=node.facts.with_(vm=VmView.RUNNING))
            w = w.put(i, node)
    return replace(w, linked=False)


def _kill_vm(w: World, i: int) -> World:
    if w.linked and w.node(i).facts.vm is VmView.COLO:
        w = _unlink(w, quiet=i)
    me = w.node(i)
    had = me.facts.vm in (VmView.COLO, VmView.RUNNING)
    behind = me.behind or (had and me.facts.own.standing is Standing.SECONDARY)  # its disk is the last checkpoint's
    return w.put(i, replace(me, facts=me.facts.with_(vm=VmView.NONE), lost_colo=False, behind=behind))


def _crash(w: World, i: int) -> World:
    w = _kill_vm(w, i)
    me = w.node(i)
    facts = me.facts.with_(claiming=False)
    return w.put(i, replace(me, host_up=False, up=False, is_open=False, doing=None, facts=facts))


def judge(w: World) -> str | None:
    """What is wrong with this state."""
    serving = [n for n in (w.a, w.b) if n.is_open and n.facts.state in _SERVES and n.facts.vm is not VmView.NONE]
    if len(serving) > 1:
        return "R5: two VMs serve clients"
    if w.a.facts.own.standing is w.b.facts.own.standing is Standing.OWNER:
        return "truth: two owners"
    for node in serving:
        if node.behind and node.facts.state is not State.SETTLE:
            return f"R1: {node.facts.host} serves, and lacks what clients were told"
    return None


def is_goal(w: World) -> bool:
    states = {w.a.facts.state, w.b.facts.state}
    return states == {State.PROTECTED, State.STANDBY} and w.linked


def is_excused(w: World) -> bool:
    """A person has to choose: docs/node.md says when."""
    if State.FAILED in (w.a.facts.state, w.b.facts.state):
        return True
    voids = (Standing.VOID, Standing.FRESH)
    return w.a.facts.own.standing in voids and w.b.facts.own.standing is Standing.VOID


def normal(w: World) -> World:
    """Generations count from the lowest that anybody knows of, less one; 0 stays 0."""
    known = [w.register[0], w.ghost[0]]
    for node in (w.a, w.b):
        f = node.facts
        known += [f.own.generation, f.claimed if f.claiming else 0, 0 if f.peer is None else f.peer.generation]
    low = min((g for g in known if g > 0), default=1) - 1

    def shift(g: int) -> int:
        return max(g - low, 0) if g > 0 else 0

    nodes = []
    for node in (w.a, w.b):
        f = node.facts
        peer = None if f.peer is None else replace(f.peer, generation=shift(f.peer.generation))
        own = replace(f.own, generation=shift(f.own.generation))
        nodes.append(replace(node, facts=f.with_(own=own, peer=peer, claimed=shift(f.claimed) if f.claiming else 0)))
    return replace(
        w, a=nodes[0], b=nodes[1], register=(shift(w.register[0]), w.register[1]), ghost=(shift(w.ghost[0]), w.ghost[1])
    )


def describe(w: World) -> str:
    parts = []
    for n in (w.a, w.b):
        f = n.facts
        flags = "".join(
            c
            for c, on in (("!", not n.up), ("#", not n.host_up), ("o", n.is_open), ("~", n.behind), ("?", f.claiming))
            if on
        )
        peer = "-" if f.peer is None else f"{f.peer.state.value}/{f.peer.standing.value}{f.peer.generation}"
        parts.append(
            f"{f.host}{flags} {f.state.value} {f.own.standing.value}{f.own.generation} vm={f.vm.value}"
            f" sees {peer}{'' if f.alive else ' (dead)'} doing={n.doing.value if n.doing else '-'} offer={f.offer or f.own.offer or '-'}"
        )
    return f"{' | '.join(parts)} | register {w.register} linked={w.linked} cut={w.cut} faults={w.faults}"
