# SPDX-License-Identifier: Apache-2.0
"""All that two nodes, their network, an arbiter and failures can make of the table of coloproxy/node/machine.py.

An explicit-state search, breadth first. The table is the code's own; here is the world around it, with everything that
may happen at any time happening at every time: messages lost in either direction, processes, VMs and hosts that die,
freeze, and come back, hosts that come back with an empty disk, claims whose answer is lost or late, an arbiter that is
away, COLO that breaks, a VM that can't be made to run, a guest that powers off, an operator who forces a node because
the other host is down. Failures (and the guest's and operator's acts) are bounded by a budget, recoveries are free.

Worlds that differ only in what can't matter are one: generations are counted from the lowest one, offers are numbered
as they are met, and the hosts are exchanged for one another once neither of them is fresh.

Judged are, of every state that can be reached:

    reachable  no two VMs serve clients by themselves (R5)
    truth      never two owners; whoever serves has all that clients were told (R1, in the large)
    record     its generation never shrinks
    progress   without further failures a protected pair can be reached, but for the states named in is_excused
"""

from __future__ import annotations

import enum
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from coloproxy.node.facts import HOSTS, Advert, Facts, Record, Standing, State, VmView
from coloproxy.node.machine import Action, Event, decide

from .pair_node import NEW, Decide, Node, Nodes, Shrunk


class Kind(enum.Enum):
    """Of arbiter."""

    REGISTER = "register"
    FENCE = "fence"
    PRIMARY = "on_partition = primary"
    STOP = "on_partition = stop"


class Claim(NamedTuple):
    generation: int
    host: int


NOBODY: Final = Claim(0, -1)


class World(NamedTuple):
    a: Node
    b: Node
    linked: bool = False
    """The two QEMUs run in COLO with one another."""
    cut_a: bool = False
    """What a sends is lost."""
    cut_b: bool = False
    register: Claim = NOBODY
    away: bool = False
    """The register can't be reached."""
    ghosts: tuple[Claim, ...] = ()
    """Claims that nobody waits for any more, on their way to the register."""
    given_up: int = -1
    """The host whose data an operator gave up: it comes back where it hears the other one, and not elsewhere."""
    faults: int = 0

    def node(self, i: int) -> Node:
        return self[i]  # type: ignore[return-value]

    def cut(self, i: int) -> bool:
        return self[3 + i]  # type: ignore[return-value]

    @property
    def moment(self) -> int:
        """The time of day, of which only this is so: it is later than all that was forced before."""
        known = [node.facts.peer.generation for node in (self.a, self.b) if node.facts.peer is not None]
        return 1 + max(self.a.facts.own.generation, self.b.facts.own.generation, *known)

    def put(self, i: int, node: Node) -> World:
        return World(node, *self[1:]) if i == 0 else World(self[0], node, *self[2:])


Name = tuple[int, str]
"""Who does it, and what; -1: nobody's node."""
Steps = Iterator[tuple[Name, bool, World]]
_SERVES: Final = frozenset({State.SETTLE, State.ALONE, State.PROTECT})
_MISSES: Final = frozenset({State.STANDBY, State.PROTECTED})


@dataclass
class Search:
    """`run` visits all. `budget`: how many failures; `limit`: of states, a search that is cut short says so."""

    kind: Kind
    budget: int
    limit: int = 2_000_000
    decide: Decide = decide
    nodes: Nodes = field(init=False)
    seen: dict[World, tuple[World, Name, bool] | None] = field(default_factory=dict)
    forward: dict[World, list[World]] = field(default_factory=dict)  # without failures
    problem: tuple[str, World] | None = None
    complete: bool = True

    def __post_init__(self) -> None:
        self.nodes = Nodes(self.decide, register=self.kind is Kind.REGISTER)

    # ---------------------------------------------------------------- the search

    def begin(self) -> World:
        """Two hosts, one image."""
        facts = [Facts(host, register=self.kind is Kind.REGISTER, image=host == "a") for host in HOSTS]
        return World(*(self.nodes.keep(Node(each)) for each in facts))

    def run(self) -> Search:
        first = self.begin()
        self.seen[first] = None
        queue = deque([first])
        while queue:
            world = queue.popleft()
            forward = self.forward[world] = []
            try:
                for name, is_fault, raw in self.steps(world):
                    if raw == world:
                        continue
                    after, swapped = self.normal(raw)
                    if not is_fault:
                        forward.append(after)
                    if after in self.seen:
                        continue
                    self.seen[after] = (world, name, swapped)
                    wrong = judge(after) or (None if is_fault else judge_step(world, raw))
                    if wrong is not None:
                        self.problem = (wrong, after)
                        return self
                    if len(self.seen) >= self.limit:
                        self.complete = False
                        return self
                    queue.append(after)
            except Shrunk as wrong:
                self.problem = (f"record: its generation shrinks: {wrong}", world)
                return self
        return self

    def walk(self, seed: int, depth: int) -> Search:
        """One way through it, by chance; every fourth step at most is a failure."""
        dice = random.Random(seed)
        world = self.begin()
        self.seen[world] = None
        for _ in range(depth):
            may = list(self.steps(world))
            faults = [step for step in may if step[1]]
            rest = [step for step in may if not step[1]]
            name, _, raw = dice.choice(faults if faults and dice.random() < 0.25 else rest)
            after, swapped = self.normal(raw)
            after = after._replace(faults=0)
            if after not in self.seen:
                self.seen[after] = (world, name, swapped)
                wrong = judge(after)
                if wrong is not None:
                    self.problem = (wrong, after)
                    return self
            world = after
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
        return [world for world in self.forward if world not in good and not is_excused(world, self.kind)]

    def last_of(self, world: World) -> World:
        """Of all that follows a stuck state without a failure, the one that was found last."""
        after, queue = {world}, [world]
        while queue:
            for each in self.forward[queue.pop()]:
                if each not in after:
                    after.add(each)
                    queue.append(each)
        order = {each: n for n, each in enumerate(self.seen)}
        return max(after, key=order.__getitem__)

    def story(self, world: World) -> list[str]:
        """How one gets there."""
        steps = []
        step = self.seen[world]
        while step is not None:
            steps.append((world, *step[1:]))
            world = step[0]
            step = self.seen[world]
        lines, swapped = [describe(world, False)], False
        for after, (i, text), swaps in reversed(steps):
            who = "" if i < 0 else HOSTS[i ^ swapped] + " "
            swapped ^= swaps
            lines += [f"-- {who}{text}", describe(after, swapped)]
        return lines

    def normal(self, w: World) -> tuple[World, bool]:
        """The one of all worlds like this one, and whether the hosts have changed their names in it."""
        fresh = (Standing.FRESH,)
        swap = w.a.shape > w.b.shape and not any(
            n.facts.own.standing in fresh
            or (n.facts.peer is not None and n.facts.peer.standing in fresh)
            or (n.old is not None and n.old.standing in fresh)
            for n in (w.a, w.b)
        )
        a, b = (w.b, w.a) if swap else (w.a, w.b)
        ghosts = w.ghosts and tuple(sorted({g for g in w.ghosts if g.generation > w.register.generation}))
        lows = [a.low, b.low, w.register.generation, *(g.generation for g in ghosts)]
        shift = max(min((low for low in lows if low), default=1) - 1, 0)
        names: dict[str, str] = {}
        for offer in (*a.offers, *b.offers):
            names.setdefault(offer, str(len(names) + 1))
        same = all(x == y for x, y in names.items()) and all(s in names for s in (*a.spents, *b.spents))
        if not swap and not shift and same:
            return (w if ghosts == w.ghosts else w._replace(ghosts=ghosts)), False
        mapping = tuple(names.items())
        a, b = self.nodes.renamed(a, shift, mapping, swap), self.nodes.renamed(b, shift, mapping, swap)
        if not swap and not shift:
            return World(a, b, *w[2:7], ghosts, *w[8:]), False

        def claim(c: Claim) -> Claim:
            if not c.generation:
                return c
            return Claim(max(c.generation - shift, 0), c.host ^ swap) if c.generation > shift else NOBODY

        return World(
            a, b, w.linked, w.cut(0 ^ swap), w.cut(1 ^ swap), claim(w.register), w.away,
            tuple(sorted(claim(g) for g in ghosts)), w.given_up ^ swap if w.given_up >= 0 else -1, w.faults,
        ), swap  # fmt: skip

    # ------------------------------------------------------------------ the steps

    def steps(self, w: World) -> Steps:
        """What may happen: its name, whether it is a failure, and what comes of it."""
        may_fail = w.faults < self.budget and not self.is_promised(w)
        failed = w._replace(faults=w.faults + 1)
        for i in (0, 1):
            yield from self._of_node(w, i, may_fail)
            if may_fail:
                yield from self._failures(failed, i)
        if may_fail and w.linked:
            yield (-1, "COLO breaks"), True, self.unlinked(failed)
        for ghost in w.ghosts:
            ghosts = tuple(g for g in w.ghosts if g != ghost)
            yield (ghost.host, "'s claim of old comes"), False, w._replace(ghosts=ghosts, register=ghost)
        if w.away:
            yield (-1, "the register is there again"), False, w._replace(away=False)
        elif may_fail and self.kind is Kind.REGISTER:
            yield (-1, "the register is away"), True, failed._replace(away=True)
        if w.cut_a:
            yield (0, "'s messages come again"), False, w._replace(cut_a=False)
        elif may_fail:
            yield (0, "'s messages are lost"), True, failed._replace(cut_a=True)
        if w.cut_b:
            yield (1, "'s messages come again"), False, w._replace(cut_b=False)
        elif may_fail:
            yield (1, "'s messages are lost"), True, failed._replace(cut_b=True)

    def is_promised(self, w: World) -> bool:
        """An operator has promised that the two hear each other, and they have not yet."""
        return w.given_up >= 0 and w.node(w.given_up).host_up

    def _of_node(self, w: World, i: int, may_fail: bool) -> Steps:
        me, peer, nodes = w.node(i), w.node(1 - i), self.nodes
        if not me.host_up:
            if w.given_up != i or (peer.up and not peer.frozen and not w.cut_a and not w.cut_b):
                yield (
                    (i, "'s host comes back"),
                    False,
                    w.put(i, nodes.once("boot", lambda n: nodes.keep(n, host_up=True), me)),
                )
            return
        if not me.up:
            yield from self.happens("begins", w.put(i, nodes.began(me)), i, Event.BEGIN, may_fail)
            return
        if me.frozen:
            thawed = nodes.once("thaw", lambda n: nodes.keep(n, frozen=False), me)
            yield (i, "thaws"), False, w.put(i, thawed)
            if me.old is not None:
                late = nodes.once("late", lambda n: nodes.keep(n, frozen=False, peer=n.old, alive=True), me)
                yield from self.happens(
                    "thaws, and hears what the peer said of old", w.put(i, late), i, Event.PEER, may_fail
                )
            return
        if peer.up and not peer.frozen and not w.cut(1 - i):
            heard = w.put(i, nodes.hears(me, peer))
            if w.given_up == i:
                heard = heard._replace(given_up=-1)
            yield from self.happens("hears the peer", heard, i, Event.PEER, may_fail)
        elif me.facts.alive or me.facts.peer is None or me.facts.state in _MISSES:
            yield from self.happens("hears nothing", w.put(i, nodes.deaf(me)), i, Event.PEER_DEAD, may_fail)
        yield from self.happens("ticks", w, i, Event.TICK, may_fail)
        if me.lost_colo:
            told = w.put(i, nodes.hears_of_colo(me))
            yield from self.happens("hears that COLO is over", told, i, Event.COLO_LOST, may_fail)
        if me.facts.claiming:
            yield from self._claims(w, i, may_fail)
        if me.doing is not None:
            yield from self._ends(w, i, may_fail)
        if me.facts.state in (State.STOPPED, State.FAILED):
            yield from self.happens("is started by the operator", w, i, Event.START, may_fail)

    def _claims(self, w: World, i: int, may_fail: bool) -> Steps:
        me, nodes = w.node(i), self.nodes
        if me.answer is not None:
            # the row of WON looks at `claimed`, so the facts keep it until the event is over
            yield from self.answered(f"hears that it has {me.answer.value}", w, i, me.answer, may_fail)
            if may_fail:
                yield from self.answered(
                    "does not hear the answer", w._replace(faults=w.faults + 1), i, Event.UNKNOWN, False
                )
            return
        match self.kind:
            case Kind.REGISTER:
                if w.away:
                    yield from self.answered("asks in vain", w, i, Event.UNKNOWN, may_fail)
                    return
                claim = Claim(me.facts.claimed, i)
                if w.register == NOBODY and claim.generation > 1:  # it has lost its data, or was never told
                    yield from self.answered("asks in vain", w, i, Event.UNKNOWN, may_fail)
                    return
                won = w.register.generation < claim.generation or w.register == claim
                answer = Event.WON if won else Event.LOST
                pending = nodes.once(f"answer {won}", lambda n: nodes.keep(n, answer=answer), me)
                yield (i, "asks"), False, w.put(i, pending)._replace(register=claim if won else w.register)
            case Kind.FENCE:
                pending = nodes.once("fenced", lambda n: nodes.keep(n, answer=Event.WON), me)
                yield (i, "fences the peer"), False, self.crash(w.put(i, pending), 1 - i)
                if may_fail:
                    yield from self.answered(
                        "'s fencing fails", w._replace(faults=w.faults + 1), i, Event.UNKNOWN, False
                    )
            case Kind.PRIMARY if me.facts.own.standing is Standing.PRIMARY:
                yield from self.answered("is the primary", w, i, Event.WON, may_fail)
            case _:
                yield from self.answered("is refused", w, i, Event.UNKNOWN, may_fail)

    def answered(self, text: str, w: World, i: int, event: Event, may_fail: bool) -> Steps:
        """As `happens`; the claim is over. Its generation is known until then."""
        nodes = self.nodes

        def make(node: Node) -> Node:  # not kept: this one event sees `claimed`
            return replace(node, facts=node.facts.with_(claiming=False), answer=None)

        me = nodes.once("answered", make, w.node(i))
        return self.happens(text, w.put(i, me), i, event, may_fail)

    def _ends(self, w: World, i: int, may_fail: bool) -> Steps:
        me, peer, nodes = w.node(i), w.node(1 - i), self.nodes
        idle = nodes.once("idle", lambda n: nodes.keep(n, doing=None), me)
        failed = w.put(i, idle)._replace(faults=w.faults + 1)
        match me.doing:
            case Action.SETTLE:
                own, known = Claim(me.facts.own.generation, i), w.register
                asks = self.kind is Kind.REGISTER and not w.away
                if asks and known.generation >= own.generation and known.host != i:
                    yield from self.happens("finds another owner", w.put(i, idle), i, Event.FAILED, may_fail)
                    return
                if w.linked:
                    out = self.unlinked(w, quiet=i)
                    yield (i, "'s QEMU leaves COLO"), False, out.put(i, nodes.hears_of_colo(out.node(i)))
                world = self.unlinked(w, quiet=i) if w.linked else w
                here = nodes.keep(
                    world.node(i),
                    doing=None,
                    is_open=True,
                    lost_colo=False,
                    vm=VmView.RUNNING,
                    colo_lost=False,
                    offer="",
                )
                there = nodes.once("behind", lambda n: nodes.keep(n, behind=True), world.node(1 - i))
                world = world.put(i, here).put(1 - i, there)
                if asks and known < own:
                    world = world._replace(register=own)
                yield from self.happens("'s VM runs", world, i, Event.SETTLED, may_fail)
                if may_fail:
                    yield from self.happens("'s VM can't be made to run", failed, i, Event.FAILED, False)
            case Action.PREPARE:
                waits = nodes.keep(idle, vm=VmView.WAITING, offer=NEW, colo_lost=False, lost_colo=False)
                yield from self.happens("'s QEMU waits", w.put(i, waits), i, Event.READY, may_fail)
                if may_fail:
                    yield from self.happens("can't prepare", failed, i, Event.FAILED, False)
            case Action.PROTECT:
                there = peer.host_up and peer.facts.vm is VmView.WAITING and peer.facts.offer == me.facts.offer
                if self.kind is Kind.REGISTER:  # it must know whose the pair is, before it has to decide
                    there = there and not w.away
                    w = w if w.away else w._replace(register=max(w.register, Claim(me.facts.own.generation, i)))
                if there and not w.cut_a and not w.cut_b and not peer.frozen:
                    them = nodes.keep(peer, vm=VmView.COLO, behind=False)
                    us = nodes.keep(idle, vm=VmView.COLO, colo_lost=False, lost_colo=False)
                    world = w.put(1 - i, them).put(i, us)._replace(linked=True)
                    yield from self.happens("migrates", world, i, Event.COLO, may_fail)
                else:
                    yield from self.happens("can't migrate", w.put(i, idle), i, Event.FAILED, may_fail)
                if may_fail:
                    yield from self.happens("'s migration fails", failed, i, Event.FAILED, False)
            case _:
                raise AssertionError(me.doing)

    def _failures(self, w: World, i: int) -> Steps:
        """`w`: it is counted already."""
        me, peer, nodes = w.node(i), w.node(1 - i), self.nodes
        if me.up and not me.frozen:
            yield (i, "'s coloproxy dies"), True, self.die(w, i)
            old = peer.facts.advert() if peer.up and not peer.frozen and not w.cut(1 - i) else None
            yield (i, "freezes"), True, w.put(i, nodes.keep(me, frozen=True, old=old))
            if me.facts.vm in (VmView.COLO, VmView.RUNNING):
                yield from self.happens("'s guest powers off", self.kill_vm(w, i), i, Event.VM_SHUTDOWN, False, True)
            if not peer.host_up and w.given_up < 0 and me.facts.state is not State.FAILED:
                forced = w.put(i, nodes.keep(me, behind=False, moment=w.moment))._replace(given_up=1 - i)
                if nodes.plays(forced.node(i), Event.FORCE) is not None:
                    yield from self.happens("is forced: the other host is down", forced, i, Event.FORCE, False, True)
        if me.host_up:
            yield (i, "'s host dies"), True, self.crash(w, i)
            if w.given_up < 0:
                for image in (False, True):
                    lost = self.crash(w, i)
                    other_is_fresh = peer.facts.own.standing is Standing.FRESH
                    empty = nodes.keep(lost.node(i), own=Record(), image=image, behind=not other_is_fresh)
                    if other_is_fresh:  # nothing is left: the pair begins anew
                        lost = lost.put(1 - i, nodes.keep(peer, behind=False))
                    text = "'s host is replaced" + (", with an image" if image else "")
                    yield (i, text), True, lost.put(i, empty)
        if me.host_up and not me.frozen and me.facts.vm is not VmView.NONE:
            world = self.kill_vm(w, i)
            if me.up:
                yield from self.happens("'s VM dies", world, i, Event.VM_DEAD, False, True)
            else:
                yield (i, "'s VM dies"), True, world

    # ------------------------------------------------------------------- what follows

    def happens(self, text: str, w: World, i: int, event: Event, may_fail: bool, is_fault: bool | None = None) -> Steps:
        """The node hears of the event, and does what the table says. `may_fail`: or it dies while it does."""
        if is_fault is None:
            is_fault = False
        played = self.nodes.plays(w.node(i), event)
        if played is None:
            yield (i, text), is_fault, w.put(i, self.nodes.keep(w.node(i)))
            return
        if played.kills:
            w = self.kill_vm(w, i)
        after = w.put(i, played.node)
        if played.ghost:
            after = after._replace(ghosts=(*after.ghosts, Claim(played.ghost, i)))
        yield (i, text), is_fault, after
        if may_fail and played.crashed is not None:
            written = after.put(i, played.crashed)._replace(faults=w.faults + 1)
            yield (i, f"{text}, writes it down, and dies"), True, self.die(written, i)
            yield (i, f"{text}, writes it down, and its host dies"), True, self.crash(written, i)

    def unlinked(self, w: World, quiet: int | None = None) -> World:
        """COLO is over; each QEMU says so, but for one that is being told to."""
        if quiet != 0:
            w = w.put(0, self.nodes.without_colo(w.a))
        if quiet != 1:
            w = w.put(1, self.nodes.without_colo(w.b))
        return w._replace(linked=False)

    def kill_vm(self, w: World, i: int) -> World:
        if w.linked and w.node(i).facts.vm is VmView.COLO:
            w = self.unlinked(w, quiet=i)
        return w.put(i, self.nodes.without_vm(w.node(i)))

    def die(self, w: World, i: int) -> World:
        """The coloproxy process; a claim that it made may yet come to the register."""
        me = w.node(i)
        if me.facts.claiming and me.answer is None and self.kind is Kind.REGISTER:
            w = w._replace(ghosts=(*w.ghosts, Claim(me.facts.claimed, i)))
        return w.put(i, self.nodes.died(me))

    def crash(self, w: World, i: int) -> World:
        w = self.die(self.kill_vm(w, i), i)
        return w.put(i, self.nodes.crashed(w.node(i)))


def judge(w: World) -> str | None:
    """What is wrong with this state.

    A node that is PROTECTED or SUSPENDED does not count, though its TAPs may be open: its comparator lets nothing out
    but what its secondary has said too. A frozen one counts as what it was: docs/node-safety.md.
    """
    serving = [
        n for n in (w.a, w.b) if n.is_open and n.facts.state in _SERVES and n.facts.vm is not VmView.NONE
    ]  # fmt: skip
    if len(serving) > 1:
        return "R5: two VMs serve clients"
    if w.a.facts.own.standing is w.b.facts.own.standing is Standing.OWNER and w.given_up < 0:
        return "truth: two owners"
    for node in serving:
        if node.behind and node.facts.state is not State.SETTLE:
            return f"R1: {node.facts.host} serves, and lacks what clients were told"
    return None


def judge_step(before: World, after: World) -> str | None:
    """What is wrong with this step, which is no failure."""
    if any(map(is_good, before[:2])) and not any(map(is_good, after[:2])):
        return "truth: the last good copy is given up"
    return None


def is_good(node: Node) -> bool:
    """The pair can go on from here."""
    facts = node.facts
    if node.behind or facts.own.standing in _NOTHING:
        return False
    return facts.own.standing is not Standing.SECONDARY or facts.vm in (VmView.COLO, VmView.RUNNING)


def is_goal(w: World) -> bool:
    states = {w.a.facts.state, w.b.facts.state}
    return states == {State.PROTECTED, State.STANDBY} and w.linked


def is_excused(w: World, kind: Kind) -> bool:
    """A person has to choose: docs/node-safety.md says what.

    Both nodes lack what clients were told; or a host was replaced, and who went on before that is not known; or both
    were, and the register remembers another owner.
    """
    a, b = w.a.facts.own, w.b.facts.own
    if w.a.facts.vm is VmView.NONE and a.standing is Standing.PRIMARY:
        a = Record(Standing.YIELDED, a.generation)  # so it will say
    if w.b.facts.vm is VmView.NONE and b.standing is Standing.PRIMARY:
        b = Record(Standing.YIELDED, b.generation)
    if is_nothing(w.a) and is_nothing(w.b):
        begins = a.standing is b.standing is Standing.FRESH and (w.a.facts.image or w.b.facts.image)
        return not begins or w.register != NOBODY
    if kind is Kind.REGISTER:
        return any(is_refused(w, i) and is_nothing(w.node(1 - i)) for i in (0, 1))
    unknown = (Standing.YIELDED,) if kind is Kind.FENCE else (Standing.YIELDED, Standing.SECONDARY)
    return any(
        one.standing in unknown and other.generation == 0 and other.standing in _NOTHING
        for one, other in ((a, b), (b, a))
    )


_NOTHING: Final = (Standing.VOID, Standing.FRESH)


def is_refused(w: World, i: int) -> bool:
    """The register knows of another owner than this one, who is a new host now."""
    own, peer = w.node(i).facts.own, w.node(1 - i).facts.own
    if own.standing is Standing.OWNER:
        return w.register.generation >= own.generation and w.register.host != i
    return peer.generation == 0 and w.register.generation > own.generation and w.register.host != i


def is_nothing(node: Node) -> bool:
    return node.facts.own.standing in _NOTHING or node.behind


def describe(w: World, swapped: bool = False) -> str:
    """One line. `swapped`: a is called b."""
    parts = []
    for i in (1, 0) if swapped else (0, 1):
        n = w.node(i)
        f = n.facts
        marks = {"!": not n.up, "#": not n.host_up, "*": n.frozen, "o": n.is_open, "~": n.behind, "?": f.claiming}
        doing = "" if n.doing is None else f" {n.doing.value}s"
        parts.append(
            f"{HOSTS[i ^ swapped]}{''.join(mark for mark, on in marks.items() if on)} {f.state.value}"
            f" {f.own.standing.value}{f.own.generation} vm={f.vm.value}{doing} offer={f.offer or f.own.offer or '-'}"
            f" sees {_sight(f.peer)}{'' if f.alive else ' (dead)'}"
        )
    world = [f"register {w.register.generation}{HOSTS[w.register.host ^ swapped]}" if w.register.generation else ""]
    world += [f"ghost {g.generation}{HOSTS[g.host ^ swapped]}" for g in w.ghosts]
    world += [word for word, on in (("linked", w.linked), ("away", w.away), ("given up", w.given_up >= 0)) if on]
    world += [f"{HOSTS[i ^ swapped]} cut" for i in (0, 1) if w.cut(i)]
    return " | ".join([*parts, " ".join(word for word in world if word)])


def _sight(peer: Advert | None) -> str:
    return "-" if peer is None else f"{peer.state.value}/{peer.standing.value}{peer.generation}"


def main(words: list[str]) -> int:
    """BUDGET [KIND...]: searches, and says what it has found."""
    budget = int(words[0]) if words else 2
    kinds = [Kind[word.upper()] for word in words[1:]] or list(Kind)
    bad = False
    for kind in kinds:
        began = time.monotonic()
        search = Search(kind, budget, limit=50_000_000).run()
        stuck = search.stuck() if search.problem is None else []
        excused = sum(is_excused(world, kind) for world in search.forward)
        print(
            f"{kind.name:8} budget {budget}: {len(search.seen):,} states, {excused:,} of them excused,"
            f" {time.monotonic() - began:.0f} s; {search.problem[0] if search.problem else 'no violation'},"
            f" {len(stuck):,} stuck",
            flush=True,
        )
        if search.problem is not None or stuck:
            bad = True
            print("\n".join(search.story(search.last_of(stuck[0]) if search.problem is None else search.problem[1])))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
