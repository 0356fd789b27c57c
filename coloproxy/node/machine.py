# SPDX-License-Identifier: Apache-2.0
"""The life cycle of a node as one table: in this state, on this event, if that holds: to there, having done these.

Nothing else decides. `coloproxy node` plays it (play.py), tests/model/pair.py searches all that two nodes, a network,
an arbiter and their failures can make of it (R5 of DESIGN.md), and docs/node-table.md shows it; all three read TABLE.

What makes it safe. A record is written before anything rests on it. While a pair exists both records have its
generation g, and nobody may go on alone but as the owner of a later one:

  with a register (etcd)  by winning it there; the first one does, and no other ever
  without                 by the other's word that it will not (VOID, YIELDED: written before it is said), by having
                          fenced it, or, of a primary, by the operator's on_partition = "primary"

The primary's record says PRIMARY before the secondary's can say SECONDARY. So whoever finds OWNER in his record knows
that nobody can have taken over from him but by an operator's word, and goes on by himself, after a reboot too.

A host without a record was perhaps the owner before its disk was lost: its VOID has generation 0, and is no word. It
becomes one when it has heard the owner (PREPARE).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from .facts import Facts, Record, Standing, State, VmView


class Event(enum.Enum):
    """What happens to a node."""

    BEGIN = "begin"
    """The process has started: record and QEMU have been looked at."""
    PEER = "peer"
    """The peer is alive, and may have said something new."""
    PEER_DEAD = "peer dead"
    """All paths of the heartbeat are silent."""
    TICK = "tick"
    """Now and then."""
    WON = "won"
    """The arbiter says: that generation is ours."""
    LOST = "lost"
    """Another one owns that generation, or a later one."""
    UNKNOWN = "unknown"
    """The arbiter could not tell."""
    SETTLED = "settled"
    """The VM runs by itself, as the clients' one."""
    READY = "ready"
    """QEMU waits for a primary."""
    COLO = "colo"
    """QEMU runs in COLO, as the primary: the first checkpoint has committed."""
    FAILED = "failed"
    """What was being done has failed, for the reason given."""
    COLO_LOST = "colo lost"
    """COLO has ended by itself, or replication has: QEMU said so."""
    VM_DEAD = "vm dead"
    """QEMU's process has ended, and not because the guest or the operator wanted it to; or it hung, and was killed."""
    VM_SHUTDOWN = "vm shutdown"
    """The guest has powered off, or QEMU was told to quit."""
    START = "start"
    """The operator: run the VM again."""
    FORCE = "force"
    """The operator: go on here, whatever the other one does. He knows that it is dead, or gives its data up."""


class Action(enum.Enum):
    """What is done, in order. A long one is told of by an event when it is over; a new long one ends the last."""

    CLAIM = "claim"
    """Ask the arbiter for the next generation. Tells WON, LOST or UNKNOWN."""
    MUTE = "mute"
    """Close the TAPs: nothing of this VM reaches a client."""
    SETTLE = "settle"
    """Whatever QEMU does: make the VM run by itself, and open the TAPs. Tells SETTLED or FAILED."""
    DISCARD = "discard"
    """Close the TAPs, and kill QEMU."""
    PREPARE = "prepare"
    """Fresh overlays, QEMU that waits, its disk exported. Tells READY or FAILED."""
    PROTECT = "protect"
    """Copy the disks, and migrate into COLO. Tells COLO or FAILED."""
    ADOPT = "adopt"
    """The data path for the QEMU that runs already, in the record's role."""


FAR: Final = 1000
"""More generations than a node can have gone through without its peer's knowing."""


class Write(enum.Enum):
    """What the record becomes."""

    OWNER = "owner of the next generation"
    FORCED = "owner of a generation far beyond"
    WINNER = "owner of the claimed generation"
    PRIMARY = "primary of the next generation"
    SECONDARY = "secondary of the primary's generation"
    YIELDED = "yielded"
    VOID = "void"
    DECLINED = "void of the claimed generation"
    BLANK = "void of generation 0"

    def of(self, facts: Facts) -> Record:
        peer = 0 if facts.peer is None else facts.peer.generation
        match self:
            case Write.OWNER:
                return Record(Standing.OWNER, facts.next_generation)
            case Write.FORCED:
                # Whom an operator forces may know of nobody, and so may whom he forces after that on the other host:
                # only the time of day tells which word was the later one.
                return Record(Standing.OWNER, max(facts.next_generation + FAR, facts.moment))
            case Write.WINNER:
                return Record(Standing.OWNER, facts.claimed)
            case Write.DECLINED:
                return Record(Standing.VOID, facts.claimed)
            case Write.BLANK:
                return Record(Standing.VOID)
            case Write.PRIMARY:
                return Record(Standing.PRIMARY, facts.next_generation, facts.offer)
            case Write.SECONDARY:
                return Record(Standing.SECONDARY, peer, facts.offer)
            case Write.YIELDED:
                return Record(Standing.YIELDED, facts.own.generation, facts.own.offer)
            case Write.VOID:
                asked = facts.own.standing is Standing.SECONDARY  # for the next, perhaps: the primary asks for a later
                return Record(Standing.VOID, max(facts.own.generation + asked, peer))


Guard = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """`when`: all of them hold. The first row that fits is taken; none: the event changes nothing."""

    states: tuple[State, ...]
    events: tuple[Event, ...]
    when: tuple[Guard, ...]
    to: State | None
    """None: stays."""
    write: Write | None
    actions: tuple[Action, ...]
    why: str


# ---------------------------------------------------------------------- guards: the docs show their first lines


def superseded(f: Facts) -> bool:
    """the peer owns a later generation"""
    return f.peer is not None and f.peer.generation > f.own.generation and f.peer.standing in _HOLDS


def gave_up(f: Facts) -> bool:
    """the secondary has said that it will not take over"""
    return f.peer is not None and f.peer.standing is Standing.VOID and f.peer.generation >= f.own.generation


def is_blank(f: Facts) -> bool:
    """the peer's host is new, and cannot know what the old one has done"""
    peer = f.peer
    return peer is not None and f.alive and peer.standing is Standing.VOID and peer.generation == 0


def can_not_go_on(f: Facts) -> bool:
    """the secondary has said that it will not take over, or its host is new"""
    return gave_up(f) or is_blank(f)


def offered(f: Facts) -> bool:
    """the primary has said that its VM is dead"""
    return f.peer is not None and f.peer.standing is Standing.YIELDED and f.peer.generation == f.own.generation


def wants_to_go_on(f: Facts) -> bool:
    """the primary lives, and has lost us or its guest has ended"""
    peer = f.peer
    return (
        peer is not None
        and f.alive
        and peer.standing is Standing.PRIMARY
        and peer.generation == f.own.generation
        and peer.state in (State.SUSPENDED, State.STOPPED)
    )


def is_back(f: Facts) -> bool:
    """the primary is there as ever"""
    peer = f.peer
    return peer is not None and f.alive and peer.state is State.PROTECTED and peer.generation == f.own.generation


def register(f: Facts) -> bool:
    """there is a register"""
    return f.register


def no_register(f: Facts) -> bool:
    """there is no register"""
    return not f.register


def idle(f: Facts) -> bool:
    """no claim is open"""
    return not f.claiming


def asked(f: Facts) -> bool:
    """a claim is open"""
    return f.claiming


def may_ask(f: Facts) -> bool:
    """no claim is open, and there is a register, or the peer is dead or its host new"""
    return not f.claiming and (f.register or not f.alive or is_blank(f))


def peer_asks(f: Facts) -> bool:
    """the secondary asks the arbiter"""
    peer = f.peer
    return peer is not None and f.alive and peer.state is State.CLAIM and peer.generation == f.own.generation


def heard(f: Facts) -> bool:
    """the peer is alive"""
    return f.alive


def unheard(f: Facts) -> bool:
    """the peer is dead"""
    return not f.alive


def peer_lost_colo(f: Facts) -> bool:
    """the peer says that COLO has ended"""
    return f.peer is not None and f.alive and f.peer.colo_lost and f.peer.generation == f.own.generation


def peer_is_ready(f: Facts) -> bool:
    """the peer's QEMU waits, and we have not tried in vain with it"""
    return f.peer is not None and f.alive and f.peer.state is State.READY and f.peer.offer != f.spent


def peer_serves(f: Facts) -> bool:
    """the peer owns the truth and runs it"""
    return f.peer is not None and f.alive and f.peer.standing is Standing.OWNER and f.peer.state is State.ALONE


def has_paired(f: Facts) -> bool:
    """the peer is the primary of a pair that is newer than our record (and our host is not new)"""
    peer = f.peer
    return (
        peer is not None
        and f.alive
        and f.own.generation > 0
        and peer.standing in (Standing.PRIMARY, Standing.YIELDED)
        and peer.generation > f.own.generation
    )


def by_our_offer(f: Facts) -> bool:
    """our offer has become that pair"""
    return f.peer is not None and f.peer.offer == f.offer != ""


def not_by_our_offer(f: Facts) -> bool:
    """another offer has become that pair"""
    return not by_our_offer(f)


def is_spent(f: Facts) -> bool:
    """the peer has tried in vain with our offer"""
    return f.peer is not None and f.peer.spent == f.offer != ""


def first_of_all(f: Facts) -> bool:
    """nobody was ever part of the pair, and the image to begin with is here"""
    peer = f.peer
    if peer is None or not f.alive or peer.standing is not Standing.FRESH or not f.image:
        return False
    return f.host == "a" or not peer.image


def peer_has_it(f: Facts) -> bool:
    """the peer was part of the pair, or has the image to begin with"""
    peer = f.peer
    if peer is None or not f.alive:
        return False
    return peer.standing is not Standing.FRESH or (peer.image and not (f.image and f.host == "a"))


def own(*standings: Standing) -> Guard:
    """The record says one of these."""

    def holds(f: Facts) -> bool:
        return f.own.standing in standings

    holds.__doc__ = f"the record says {' or '.join(standing.value for standing in standings)}"
    return holds


def vm(*views: VmView) -> Guard:
    """Our QEMU is in one of these."""

    def holds(f: Facts) -> bool:
        return f.vm in views

    holds.__doc__ = f"QEMU: {' or '.join(view.value for view in views)}"
    return holds


_HOLDS: Final = frozenset({Standing.OWNER, Standing.PRIMARY, Standing.YIELDED, Standing.SECONDARY})

# ----------------------------------------------------------------------------------------------------- the table


def _row(
    states: State | Iterable[State],
    events: Event | Iterable[Event],
    when: Guard | Iterable[Guard],
    to: State | None,
    write: Write | None,
    actions: Iterable[Action],
    why: str,
) -> Row:
    return Row(
        (states,) if isinstance(states, State) else tuple(states),
        (events,) if isinstance(events, Event) else tuple(events),
        (when,) if callable(when) else tuple(when),
        to,
        write,
        tuple(actions),
        why,
    )


_E, _S, _A, _W = Event, State, Action, Write
_LOOK: Final = (Event.BEGIN, Event.PEER, Event.PEER_DEAD, Event.TICK)
_HEARD: Final = (Event.PEER, Event.PEER_DEAD)
"""What the peer says is known, or that it says nothing."""
_SERVING: Final = (State.SETTLE, State.ALONE, State.PROTECT)
_PAIRED: Final = (State.PROTECTED, State.SUSPENDED, State.YIELDED, State.STANDBY, State.CLAIM)

TABLE: Final[tuple[Row, ...]] = (
    # -- who has the truth?
    _row(_S.DISCOVER, _LOOK, (own(Standing.FRESH), first_of_all), _S.SETTLE, _W.OWNER, [_A.SETTLE],
         "the pair begins here"),
    _row(_S.DISCOVER, _LOOK, (own(Standing.FRESH), peer_has_it), _S.JOIN, _W.BLANK, [_A.DISCARD], "the pair is there"),
    _row(_S.DISCOVER, _LOOK, superseded, _S.JOIN, _W.VOID, [_A.DISCARD], "the peer went on without us"),
    _row(_S.DISCOVER, _E.BEGIN, (own(Standing.OWNER), vm(VmView.COLO, VmView.RUNNING)), _S.SETTLE, None, [_A.SETTLE],
         "only coloproxy was away"),
    _row(_S.DISCOVER, _HEARD, own(Standing.OWNER), _S.SETTLE, None, [_A.SETTLE],
         "nobody can have taken over from us, but by an operator's word: the peer would say so"),
    _row(_S.DISCOVER, _LOOK, (own(Standing.PRIMARY), vm(VmView.COLO)), _S.PROTECTED, None, [_A.ADOPT],
         "only coloproxy was away"),
    _row(_S.DISCOVER, _LOOK, (own(Standing.PRIMARY), vm(VmView.RUNNING)), _S.SUSPENDED, None, [_A.MUTE, _A.ADOPT],
         "COLO ended while coloproxy was away"),
    _row(_S.DISCOVER, _HEARD, own(Standing.PRIMARY, Standing.YIELDED), _S.YIELDED, _W.YIELDED, [_A.DISCARD],
         "our VM is dead; the secondary may live"),
    _row(_S.DISCOVER, _LOOK, (own(Standing.SECONDARY), vm(VmView.COLO, VmView.RUNNING)), _S.STANDBY, None, [_A.ADOPT],
         "only coloproxy was away"),
    _row(_S.DISCOVER, _LOOK, own(Standing.SECONDARY), _S.JOIN, _W.VOID, [_A.DISCARD], "our copy died with its QEMU"),
    _row(_S.DISCOVER, _LOOK, own(Standing.VOID), _S.JOIN, None, [_A.DISCARD], "the truth is the peer's"),
    # -- alone
    _row(_SERVING, _E.PEER, superseded, _S.JOIN, _W.VOID, [_A.DISCARD], "an operator has forced the peer to go on"),
    _row(_S.SETTLE, _E.SETTLED, (), _S.ALONE, None, [], "the VM serves"),
    _row(_S.SETTLE, _E.FAILED, (), _S.FAILED, None, [_A.MUTE], "the VM could not be made to run"),
    _row(_S.SETTLE, _E.VM_DEAD, (), None, None, [_A.SETTLE], "once more"),
    _row(_S.ALONE, _E.VM_DEAD, (), _S.SETTLE, None, [_A.SETTLE], "nobody else can: start it again"),
    _row(_S.ALONE, (_E.PEER, _E.TICK), peer_is_ready, _S.PROTECT, None, [_A.PROTECT], "a secondary is there"),
    _row(_S.PROTECT, _E.COLO, (), _S.PROTECTED, _W.PRIMARY, [], "from now on the secondary may take over"),
    _row(_S.PROTECT, (_E.FAILED, _E.PEER_DEAD, _E.COLO_LOST, _E.VM_DEAD), (), _S.SETTLE, None, [_A.SETTLE],
         "the attempt has failed; nobody but us can go on"),
    # The secondary's guest powers off in the same moment: its loss may be told first, and be what SETTLE was begun for.
    _row((*_SERVING, _S.FAILED), _E.VM_SHUTDOWN, (), _S.STOPPED, None, [_A.DISCARD], "as the guest wanted"),
    # -- the primary of a pair
    _row(_PAIRED, _E.PEER, superseded, _S.JOIN, _W.VOID, [_A.DISCARD], "the peer went on"),
    _row((_S.PROTECTED, _S.SUSPENDED), _E.PEER, (can_not_go_on, no_register), _S.SETTLE, _W.OWNER, [_A.SETTLE],
         "the secondary has given up"),
    _row((_S.PROTECTED, _S.SUSPENDED), _E.PEER, (can_not_go_on, idle), _S.SUSPENDED, None, [_A.CLAIM],
         "the secondary has given up; the register must know"),
    _row(_S.YIELDED, _E.PEER, (gave_up, no_register), _S.SETTLE, _W.OWNER, [_A.SETTLE],
         "both VMs are dead; the disk here is right"),
    _row(_S.PROTECTED, _E.PEER_DEAD, (), _S.SUSPENDED, None, [_A.MUTE, _A.CLAIM], "dead, or cut off from us?"),
    _row(_S.PROTECTED, _E.COLO_LOST, may_ask, _S.SUSPENDED, None, [_A.CLAIM], "QEMU has lost the secondary"),
    _row(_S.PROTECTED, _E.COLO_LOST, (), _S.SUSPENDED, None, [],
         "QEMU has lost the secondary; its node may still answer"),
    _row(_S.PROTECTED, _E.PEER, (peer_lost_colo, may_ask), _S.SUSPENDED, None, [_A.CLAIM], "its QEMU has lost us"),
    _row(_S.PROTECTED, _E.PEER, peer_lost_colo, _S.SUSPENDED, None, [], "its QEMU has lost us"),
    _row(_S.PROTECTED, _E.PEER, (peer_asks, register, idle), _S.SUSPENDED, None, [_A.CLAIM],
         "it has asked the register: one of us must win there"),
    _row(_S.SUSPENDED, _E.VM_DEAD, (no_register, asked), None, None, [_A.DISCARD],
         "first the answer: it may fence the secondary"),
    _row(_S.SUSPENDED, _E.UNKNOWN, vm(VmView.NONE), _S.YIELDED, _W.YIELDED, [], "the secondary is to go on"),
    _row((_S.PROTECTED, _S.SUSPENDED), _E.VM_DEAD, (), _S.YIELDED, _W.YIELDED, [_A.DISCARD],
         "the secondary is to go on"),
    _row((_S.PROTECTED, _S.SUSPENDED), _E.VM_SHUTDOWN, (), _S.STOPPED, None, [_A.DISCARD], "as the guest wanted"),
    _row(_S.SUSPENDED, _E.PEER_DEAD, may_ask, None, None, [_A.MUTE, _A.CLAIM], "now its node is gone too"),
    _row((_S.SUSPENDED, _S.YIELDED), _E.WON, (), _S.SETTLE, _W.WINNER, [_A.SETTLE], "nobody else can go on"),
    _row((_S.SUSPENDED, _S.YIELDED), _E.LOST, (), None, None, [_A.MUTE],
         "the secondary has won: it will say what comes of it"),
    _row(_S.SUSPENDED, _E.UNKNOWN, (), None, None, [_A.MUTE], "who goes on is not known: nobody here does"),
    _row(_S.SUSPENDED, _E.TICK, may_ask, None, None, [_A.CLAIM], "ask again"),
    _row(_S.YIELDED, _E.PEER, (can_not_go_on, register, idle), None, None, [_A.CLAIM],
         "both VMs are dead; the disk here is right"),
    _row(_S.YIELDED, (_E.PEER_DEAD, _E.TICK), (register, may_ask, unheard), None, None, [_A.CLAIM],
         "nobody answers"),
    # -- the secondary of a pair
    _row(_S.JOIN, (_E.PEER, _E.TICK), peer_serves, _S.JOIN, _W.VOID, [_A.PREPARE], "somebody to be protected"),
    _row(_S.JOIN, _E.READY, (), _S.READY, None, [], "the primary may send its state"),
    _row(_S.JOIN, _E.PEER, has_paired, None, _W.VOID, [], "the secondary of that pair is no more, and says so"),
    _row(_S.READY, (_E.PEER, _E.TICK, _E.COLO), (has_paired, by_our_offer, vm(VmView.COLO, VmView.RUNNING)), _S.STANDBY,
         _W.SECONDARY, [], "from now on we may take over"),
    _row(_S.READY, _E.PEER, (has_paired, not_by_our_offer), _S.JOIN, _W.VOID, [_A.DISCARD],
         "the secondary of that pair is no more, and says so"),
    _row(_S.READY, (_E.PEER, _E.TICK), is_spent, _S.JOIN, None, [_A.DISCARD], "the attempt has failed"),
    _row(_S.READY, (_E.VM_DEAD, _E.VM_SHUTDOWN, _E.COLO_LOST, _E.PEER_DEAD), (), _S.JOIN, None, [_A.DISCARD],
         "the attempt has failed"),
    _row(_S.STANDBY, _E.PEER, (offered, no_register), _S.SETTLE, _W.OWNER, [_A.SETTLE], "the primary's VM is dead"),
    _row(_S.STANDBY, _E.PEER, (offered, idle), _S.CLAIM, None, [_A.CLAIM],
         "the primary's VM is dead; the register must know"),
    _row(_S.STANDBY, _E.PEER, wants_to_go_on, _S.JOIN, _W.VOID, [_A.DISCARD], "the primary is to go on"),
    _row(_S.STANDBY, _E.PEER, is_blank, _S.CLAIM, None, [_A.CLAIM], "the primary's host is new, and its data are gone"),
    _row(_S.CLAIM, (_E.VM_DEAD, _E.VM_SHUTDOWN, _E.UNKNOWN, _E.PEER, _E.TICK), (vm(VmView.NONE), no_register, idle),
         _S.JOIN, _W.VOID, [_A.DISCARD], "our copy died with its QEMU"),
    _row(_S.CLAIM, _E.PEER, (wants_to_go_on, no_register, idle), _S.JOIN, _W.VOID, [_A.DISCARD],
         "the primary is to go on"),
    _row(_S.CLAIM, _E.PEER, (is_back, no_register, idle), _S.STANDBY, None, [], "it was away for a while only"),
    _row(_S.STANDBY, _E.PEER_DEAD, (), _S.CLAIM, None, [_A.CLAIM], "dead, or cut off from us?"),
    _row(_S.STANDBY, (_E.VM_DEAD, _E.VM_SHUTDOWN), (), _S.JOIN, _W.VOID, [_A.DISCARD], "our copy died with its QEMU"),
    _row(_S.CLAIM, _E.PEER, (offered, no_register, vm(VmView.COLO, VmView.RUNNING)), _S.SETTLE, _W.OWNER, [_A.SETTLE],
         "the primary's VM is dead"),
    _row(_S.CLAIM, _E.LOST, (offered, heard, register), _S.JOIN, _W.VOID, [_A.DISCARD],
         "the primary had won before its VM died: its disk is the truth"),
    _row(_S.CLAIM, _E.WON, vm(VmView.NONE), _S.JOIN, _W.DECLINED, [_A.DISCARD],
         "our copy died while we asked: the primary's disk is the truth"),
    _row(_S.CLAIM, _E.WON, (), _S.SETTLE, _W.WINNER, [_A.SETTLE], "nobody else can go on: take over"),
    _row(_S.CLAIM, _E.TICK, may_ask, None, None, [_A.CLAIM], "ask again"),
    # -- the end
    _row((_S.STOPPED, _S.FAILED), _E.PEER, superseded, _S.JOIN, _W.VOID, [_A.DISCARD], "the peer went on"),
    _row(_S.STOPPED, _E.PEER, (own(Standing.PRIMARY), can_not_go_on, no_register), None, _W.OWNER, [],
         "the secondary has given up"),
    _row(_S.STOPPED, (_E.PEER, _E.TICK), (own(Standing.PRIMARY), register, idle), None, None, [_A.CLAIM],
         "the register must know"),
    _row(_S.STOPPED, _E.WON, own(Standing.PRIMARY), None, _W.WINNER, [], "nobody else can go on"),
    _row((_S.STOPPED, _S.FAILED), _E.START, own(Standing.OWNER), _S.SETTLE, None, [_A.SETTLE], "the operator's wish"),
    _row((_S.DISCOVER, _S.SUSPENDED, _S.YIELDED, _S.CLAIM, _S.JOIN, _S.STOPPED, _S.FAILED), _E.FORCE, (), _S.SETTLE,
         _W.FORCED, [_A.SETTLE], "the operator's word that nobody else goes on"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """What a row makes of the facts."""

    row: Row
    state: State
    record: Record
    actions: tuple[Action, ...]


Decide = Callable[[Facts, Event], Step | None]


def decider(table: Iterable[Row]) -> Decide:
    """What plays this table."""
    table = tuple(table)
    rows = {
        (state, event): tuple(row for row in table if state in row.states and event in row.events)
        for state in State
        for event in Event
    }

    def decide(facts: Facts, event: Event) -> Step | None:
        for row in rows[facts.state, event]:
            if all(guard(facts) for guard in row.when):
                record = facts.own if row.write is None else row.write.of(facts)
                return Step(row, row.to or facts.state, record, row.actions)
        return None

    return decide


_DECIDE: Final = decider(TABLE)


def decide(facts: Facts, event: Event) -> Step | None:
    """The first row that fits. None: the event changes nothing."""
    return _DECIDE(facts, event)
