# SPDX-License-Identifier: Apache-2.0
"""What both sides have said on one flow. Slow and obvious: a stream is a dict from position to byte.

A position is a sequence number of the primary's, without its limit of 32 bits. A commit makes everything the primary
said before it `covered`; what the secondary said before it is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import wire

from coloproxy.rules import ToleranceRule
from model.packet import Key, Packet, SynOptions
from model.rules import mask, may_stand

PRIMARY, SECONDARY = 0, 1


def near(reference: int, number: int) -> int:
    """The unbounded integer that is `number` modulo 2^32 and nearest to `reference`."""
    distance = (number - reference) % 2**32
    return reference + (distance if distance < 2**31 else distance - 2**32)


@dataclass
class Said:
    """One side's output of one incarnation of a connection, in one epoch."""

    data: dict[int, int] = field(default_factory=dict)
    fins: set[int] = field(default_factory=set)
    syns: set[SynOptions] = field(default_factory=set)
    marks: dict[int, int] = field(default_factory=dict)  # positions that urgent pointers point at; in which step first
    resets: int = 0
    ack: int | None = None


def same_syns(ours: set[SynOptions], theirs: set[SynOptions], any_scale: bool) -> bool:
    """What the two sides' SYNs announced is the same; with `any_scale` but for the factor of a window scale option."""
    if not any_scale:
        return ours == theirs
    one, other = ({replace(o, wscale=None if o.wscale is None else 0) for o in said} for said in (ours, theirs))
    return one == other


@dataclass
class Incarnation:
    """One connection of a TCP flow. A SYN with another initial sequence number begins the next."""

    isn: list[int | None] = field(default_factory=lambda: [None, None])
    zero: int | None = None  # the position that is called offset 0
    mid_stream: bool = False  # zero is but the first position met in this epoch
    reference: list[int | None] = field(default_factory=lambda: [None, None])
    ack_reference: int | None = None
    said: list[Said] = field(default_factory=lambda: [Said(), Said()])
    end: int | None = None  # behind all that the primary ever said
    ack_ever: int | None = None  # the highest ACK the primary ever said
    reset_ever: bool = False
    mark_ever: int | None = None  # the primary's last urgent one
    covered: int | None = None  # positions below are covered by a commit
    covered_reset: bool = False
    floor: int | None = None  # the secondary's highest ACK when the step in progress began
    floor_step: int = -1
    repeats: list[tuple[int, bytes]] = field(default_factory=list)  # the secondary's ACKs with SACK blocks, this step
    echoes: set[int] = field(default_factory=set)  # timestamps that the secondary echoed
    told: int | None = None  # the highest ACK the client has got
    released_end: int | None = None  # behind all that the client has got
    owed: list[tuple[int, int]] = field(default_factory=list)  # (ACK, time) of frames that left with it lowered
    differences: set[int] = field(default_factory=set)  # positions where both said another byte in this epoch
    conflicts: set[int] = field(default_factory=set)  # positions where one side contradicted itself in this epoch
    ever: dict[int, int] = field(default_factory=dict)  # what the primary ever said

    def is_covered(self, position: int) -> bool:
        return self.covered is not None and position < self.covered


@dataclass(frozen=True)
class Segment:
    """A TCP frame in positions."""

    packet: Packet
    incarnation: int
    start: int
    ack: int | None

    @property
    def end(self) -> int:
        return self.start + len(self.packet.body) + self.packet.fin

    @property
    def has_range(self) -> bool:
        """It says something at some position."""
        return not self.packet.rst and bool(self.packet.body or self.packet.syn or self.packet.fin)

    @property
    def fin(self) -> int | None:
        return self.start + len(self.packet.body) if self.packet.fin else None

    @property
    def mark(self) -> int | None:
        """Where the urgent pointer points: counted from the sequence number, a SYN's too (RFC 9293, 3.1)."""
        if not self.packet.flags & wire.URG:
            return None
        return self.start - self.packet.syn + self.packet.urgent


class TcpFlow:
    def __init__(self, key: Key, tolerances: Sequence[ToleranceRule] = (), any_scale: bool = False) -> None:
        self.key = key
        self.tolerances = tolerances
        self.any_scale = any_scale
        self.incarnations: dict[int, Incarnation] = {}
        self.current = [0, 0]  # the number of each side's incarnation
        self.said_incarnation = 0  # the primary's, of what it has said (placed frames may be ahead)
        self.step = 0  # of the oracle

    def incarnation(self, number: int) -> Incarnation:
        return self.incarnations.setdefault(number, Incarnation())

    @staticmethod
    def _sent_again(inc: Incarnation, side: int, packet: Packet) -> bool:
        """A SYN that is there already; the secondary's may come translated to the primary's number the second time."""
        if side == SECONDARY and inc.isn[SECONDARY] is not None and packet.seq == inc.isn[PRIMARY]:
            return True
        return packet.seq == inc.isn[side]

    def place(self, side: int, packet: Packet) -> Segment:
        """Finds a frame's positions. Frames of one side must be placed in the order in which they came."""
        if packet.syn and not self._sent_again(self.incarnation(self.current[side]), side, packet):
            self.current[side] += 1
            self.incarnation(self.current[side]).isn[side] = packet.seq
        number = self.current[side]
        inc = self.incarnation(number)
        start = self._position(inc, side, packet)
        if packet.syn and side == SECONDARY:
            pass  # in its own numbering: no reference for what follows
        elif not packet.rst:  # a reset's numbers may be anything
            if side == PRIMARY and inc.zero is None:
                inc.zero, inc.mid_stream = start, True
            end = start + len(packet.body) + packet.fin
            inc.reference[side] = max(end, inc.reference[side] or end)
        ack = None
        if packet.acks:
            reference = packet.ack + 2**33 if inc.ack_reference is None else inc.ack_reference
            ack = near(reference, packet.ack)
            if not packet.rst:
                inc.ack_reference = ack
        return Segment(packet, number, start, ack)

    def _position(self, inc: Incarnation, side: int, packet: Packet) -> int:
        """Of the first payload byte."""
        if packet.syn:
            if side == PRIMARY and inc.zero is None:
                inc.zero = packet.seq + 2**33 + 1
            return inc.zero if inc.zero is not None else packet.seq + 2**33 + 1
        reference = inc.reference[side]
        if reference is None:
            reference = inc.reference[1 - side]
        if reference is None:
            return packet.seq + 2**33
        choices = [near(reference, packet.seq)]
        primary_isn, secondary_isn = inc.isn
        if side == SECONDARY and primary_isn is not None and secondary_isn is not None:
            choices.append(near(reference, packet.seq - secondary_isn + primary_isn))
        return min(choices, key=lambda choice: abs(choice - reference))

    def say(self, side: int, segment: Segment) -> None:
        """Records that `side` has said this, in the present epoch."""
        packet = segment.packet
        inc = self.incarnation(segment.incarnation)
        said = inc.said[side]
        if side == SECONDARY and inc.floor_step != self.step:
            inc.floor, inc.floor_step, inc.repeats = said.ack, self.step, []
        if side == SECONDARY and packet.timestamps:
            inc.echoes.add(packet.timestamps[1])
        if side == SECONDARY and packet.pure_ack and packet.sack and segment.ack is not None:
            inc.repeats.append((segment.ack, packet.sack))
        if segment.ack is not None and not packet.rst:  # the ACK number of a reset tells the client nothing
            said.ack = segment.ack if said.ack is None else max(said.ack, segment.ack)
        if side == PRIMARY:
            self.said_incarnation = segment.incarnation
            if segment.ack is not None and not packet.rst:
                inc.ack_ever = segment.ack if inc.ack_ever is None else max(inc.ack_ever, segment.ack)
        if packet.rst:
            said.resets += 1
            inc.reset_ever |= side == PRIMARY
            return
        if segment.mark is not None:
            said.marks.setdefault(segment.mark, self.step)
            if side == PRIMARY:
                inc.mark_ever = segment.mark
        if packet.syn:
            said.syns.add(packet.options)
            if len(said.syns) > 1:
                inc.conflicts.add(segment.start - 1)
        other = inc.said[1 - side].data
        for position, byte in enumerate(packet.body, segment.start):
            if said.data.setdefault(position, byte) != byte or position in said.fins:
                inc.conflicts.add(position)
            if side == PRIMARY:
                inc.ever.setdefault(position, byte)
            if other.get(position, byte) != byte and not inc.is_covered(position):
                inc.differences.add(position)
        if segment.fin is not None:
            said.fins.add(segment.fin)
            if segment.fin in said.data:
                inc.conflicts.add(segment.fin)
        if side == PRIMARY:
            inc.end = segment.end if inc.end is None else max(inc.end, segment.end)

    def commit(self) -> None:
        """A new epoch: the secondary is the primary's clone."""
        self.current[SECONDARY] = self.said_incarnation
        for number, inc in self.incarnations.items():
            inc.said = [Said(), Said()]
            inc.differences = set()
            inc.conflicts = set()
            if number > self.said_incarnation:
                inc.isn[SECONDARY] = None
                inc.reference[SECONDARY] = None
                continue
            inc.isn[SECONDARY] = inc.isn[PRIMARY]
            inc.reference[SECONDARY] = inc.end
            if inc.end is not None:
                inc.covered = max(inc.end, inc.covered or inc.end)
            inc.covered_reset = inc.reset_ever
            inc.mid_stream = False
            inc.said[SECONDARY].ack = inc.ack_ever
            if inc.mark_ever is not None:
                inc.said[SECONDARY].marks = {inc.mark_ever: -1}

    def ack_floor(self, segment: Segment) -> int | None:
        """ack_limit as it was when the step began: frames may have left early in it."""
        inc = self.incarnation(segment.incarnation)
        return inc.floor if inc.floor_step == self.step else inc.said[SECONDARY].ack

    # ---- the rules of "equivalent output"

    def bytes_match(self, segment: Segment) -> bool:
        inc = self.incarnation(segment.incarnation)
        said = inc.said[SECONDARY].data
        return all(
            inc.is_covered(segment.start + index)
            or said.get(segment.start + index) == byte
            or self.tolerates(inc, segment.start + index)
            for index, byte in enumerate(segment.packet.body)
        )

    def tolerates(self, inc: Incarnation, position: int) -> bool:
        """Both have said something there, and a rule lets it differ.

        That is so if a text that both said ends before it, and all bytes from there on may stand in a window. More than
        a comparator that looks at the stream once, from its beginning, may tolerate, where texts and windows overlap.
        """
        theirs = inc.said[SECONDARY].data.get(position)
        if theirs is None or not self.tolerances:
            return False
        return any(
            may_stand(rule, theirs)
            and all(may_stand(rule, inc.ever.get(p, 0)) for p in range(start, position + 1))
            and all(self._both_said(inc, start - len(rule.after) + i, byte) for i, byte in enumerate(rule.after))
            for rule in self.tolerances
            for start in range(position - rule.length + 1, position + 1)
        )

    def _both_said(self, inc: Incarnation, position: int, byte: int) -> bool:
        theirs = inc.said[SECONDARY].data
        return inc.ever.get(position) == byte and (inc.is_covered(position) or theirs.get(position) == byte)

    def is_contiguous(self, segment: Segment) -> bool:
        """Both have said all before it, or a commit covers it."""
        inc = self.incarnation(segment.incarnation)
        begin = inc.covered if inc.covered is not None else inc.zero
        ours, theirs = (said.data for said in inc.said)
        return begin is None or all(p in ours and p in theirs for p in range(begin, segment.start))

    def content_matches(self, segment: Segment, before: float = inf) -> bool:
        """Everything but the ACK number has been said by the secondary, or is covered by a commit.

        What the secondary marked as urgent in step `before` or later may have come after the frame had left.
        """
        inc = self.incarnation(segment.incarnation)
        packet, said = segment.packet, inc.said[SECONDARY]
        if packet.rst:
            return said.resets > 0 or inc.covered_reset
        if packet.syn and not (inc.is_covered(segment.start - 1) or self.syn_was_said(packet, said)):
            return False
        if segment.fin is not None and not (inc.is_covered(segment.fin) or segment.fin in said.fins):
            return False
        return self.bytes_match(segment) and self.marks_match(segment, before)

    def syn_was_said(self, packet: Packet, said: Said) -> bool:
        return any(same_syns({packet.options}, {options}, self.any_scale) for options in said.syns)

    def marks_match(self, segment: Segment, before: float) -> bool:
        """Both mark the same bytes as urgent; what the client has had may be repeated without its mark."""
        inc = self.incarnation(segment.incarnation)
        marks, end = inc.said[SECONDARY].marks, segment.start + len(segment.packet.body)
        if segment.mark is not None:
            return segment.mark in marks
        if inc.released_end is not None and end <= inc.released_end:
            return True
        return not any(segment.start < mark <= end and step < before for mark, step in marks.items())

    def reset_is_due(self, segment: Segment) -> bool:
        """The secondary has reset as often as the primary: nobody could hold this reset back."""
        inc = self.incarnation(segment.incarnation)
        return inc.said[SECONDARY].resets >= inc.said[PRIMARY].resets

    def ack_limit(self, segment: Segment) -> int | None:
        """The highest ACK number that the secondary has said too."""
        return self.incarnation(segment.incarnation).said[SECONDARY].ack

    def first_difference(self) -> tuple[Incarnation, int] | None:
        """Where both sides said another byte, if both have said all before it in this epoch."""
        for inc in self.incarnations.values():
            differences = {p for p in inc.differences if not self.tolerates(inc, p)}
            if not differences:
                continue
            first = min(differences)
            begin = inc.covered if inc.covered is not None else inc.zero
            ours, theirs = inc.said[PRIMARY].data, inc.said[SECONDARY].data
            if begin is not None and all(p in ours and p in theirs for p in range(begin, first)):
                return inc, first
        return None

    def gap(self, number: int) -> int | None:
        """The first position that the primary said, the secondary did not, and the secondary went on beyond.

        Of that incarnation; both have said all before it in this epoch, or a commit covers it.
        """
        inc = self.incarnation(number)
        ours, theirs = inc.said
        if inc.zero is None:
            return None
        begin = inc.zero if inc.covered is None else max(inc.zero - 1, inc.covered)
        if inc.isn[PRIMARY] is not None and not inc.is_covered(inc.zero - 1):
            begin = inc.zero if theirs.syns and ours.syns else inc.zero - 1
        while begin in ours.data and begin in theirs.data:
            begin += 1
        is_said = begin in ours.data or begin in ours.fins or (begin < inc.zero and ours.syns)
        if not is_said or begin in theirs.data or begin in theirs.fins:
            return None
        return begin if any(p > begin for said in (theirs.data, theirs.fins) for p in said) else None

    def fin_differs(self) -> bool:
        """One side ends a stream where the other goes on, or ends it elsewhere."""
        for inc in self.incarnations.values():
            for said, other in (inc.said, inc.said[::-1]):
                for fin in said.fins:
                    if not inc.is_covered(fin) and (any(p >= fin for p in other.data) or other.fins - {fin}):
                        return True
        return False

    def begins_earlier(self) -> bool:
        """The primary said something before the place where the flow was met in mid-stream."""
        return any(
            inc.mid_stream and inc.zero is not None and min(inc.said[PRIMARY].data, default=inc.zero) < inc.zero
            for inc in self.incarnations.values()
        )

    def first_contradiction(self, waiting: Iterable[Segment]) -> tuple[Incarnation, int] | None:
        """Where one side's frames, all of which still wait, say two things at one place."""
        if not any(inc.conflicts for inc in self.incarnations.values()):
            return None
        told: dict[tuple[int, int], object] = {}
        for segment in waiting:
            packet = segment.packet
            if packet.rst:
                continue
            what: dict[int, object] = dict(enumerate(packet.body, segment.start))
            if packet.syn:
                what[segment.start - 1] = packet.options
            if segment.fin is not None:
                what[segment.fin] = "FIN"
            for position, value in sorted(what.items()):
                if told.setdefault((segment.incarnation, position), value) != value:
                    return self.incarnation(segment.incarnation), position
        return None

    def syn_differs(self) -> bool:
        return any(
            ours.syns and theirs.syns and not same_syns(ours.syns, theirs.syns, self.any_scale)
            for ours, theirs in (inc.said for inc in self.incarnations.values())
        )

    def is_answered(self, segment: Segment) -> bool:
        """The primary has said all that this frame of the secondary's says, or a commit covers it."""
        inc = self.incarnation(segment.incarnation)
        ours, packet = inc.said[PRIMARY], segment.packet
        if packet.rst:
            return ours.resets > 0 or inc.covered_reset
        if packet.syn and not ours.syns and not inc.is_covered(segment.start - 1):
            return False
        if segment.fin is not None and not ours.fins and not inc.is_covered(segment.fin):
            return False
        return all(inc.is_covered(p) or p in ours.data for p in range(segment.start, segment.start + len(packet.body)))


class DatagramFlow:
    """Datagrams of the secondary's that no primary frame has been released for, as a bag that remembers its order."""

    def __init__(self, key: Key, tolerances: Sequence[ToleranceRule] = ()) -> None:
        self.key = key
        self.tolerances = tolerances
        self.waiting: list[tuple[int, bytes]] = []

    def essence(self, packet: Packet) -> list[tuple[int, bytes]]:
        """What must be equal, datagram by datagram."""
        return [(tag, mask(self.tolerances, body)) for tag, body in packet.datagrams]

    def say(self, packet: Packet) -> None:
        self.waiting += self.essence(packet)

    def commit(self) -> None:
        self.waiting = []

    def matches(self, packet: Packet) -> bool:
        return not Counter(self.essence(packet)) - self.bag()

    def matches_within(self, packet: Packet, reach: int) -> bool:
        return not Counter(self.essence(packet)) - Counter(self.waiting[:reach])

    def use(self, packet: Packet) -> None:
        for datagram in self.essence(packet):
            self.waiting.remove(datagram)

    def bag(self) -> Counter[tuple[int, bytes]]:
        return Counter(self.waiting)
