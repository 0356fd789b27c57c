# SPDX-License-Identifier: Apache-2.0
"""The oracle can say no: each of these comparators breaks one rule, and each must be caught.

The toy itself must pass whatever the core must pass. A mutant is the toy with one decision made wrongly; its docstring
begins with the rule that it breaks, as the oracle names it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import wire
from chaos import make_chaos
from conversation import Conversation, Dice, make_conversation
from model.flow import PRIMARY, SECONDARY, DatagramFlow, Incarnation, Segment, TcpFlow
from model.fragments import Reassembly, name_of, put_together
from model.minimise import minimise
from model.oracle import Oracle
from model.packet import PASSED_BY_DEFAULT, Key, Packet, SynOptions, parse
from model.rules import policy_of, tolerances_of
from model.run import Commit, Feed, Run, Step, Stop, Tick
from model.toy import Item, Toy, Track
from model.verdict import NEVER, Cause, Config, Diverged, Emit, Reason, Release, Violation, Want
from strategies import seeded, spoil_one_byte, spoil_one_fin
from world import World

from coloproxy.rules import Match, Policy, PolicyRule, Rules, ToleranceRule

# ------------------------------------------------------------------ the mutants, by the rule they break


class ReleasesUnmatched(Toy):
    """R1: payload leaves when the secondary has said anything at all (as payload-free segments do in QEMU)."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        return bool(facts.incarnation(segment.incarnation).said[SECONDARY].data) or super().content_matches(
            facts, segment
        )


class ReleasesWhenLastByteMatches(Toy):
    """R1: only the end of a frame is looked at."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        inc = facts.incarnation(segment.incarnation)
        if not segment.packet.body or segment.packet.rst:
            return super().content_matches(facts, segment)
        return segment.start + len(segment.packet.body) - 1 in inc.said[SECONDARY].data


class IgnoresFin(Toy):
    """R1: a FIN leaves with the data before it."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        return super().content_matches(facts, segment) or (segment.packet.fin and facts.bytes_match(segment))


class IgnoresSynOptions(Toy):
    """R1: any SYN of the secondary's will do."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        said = facts.incarnation(segment.incarnation).said[SECONDARY]
        return super().content_matches(facts, segment) or (segment.packet.syn and bool(said.syns))

    def look_for_divergence(self, track: Track) -> None:
        if not (isinstance(track.facts, TcpFlow) and track.facts.syn_differs()):
            super().look_for_divergence(track)


class IgnoresAnAbsentScale(Toy):
    """R1: where any scale factor will do, none at all will do too."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        said = facts.incarnation(segment.incarnation).said[SECONDARY]
        return super().content_matches(facts, segment) or (
            segment.packet.syn and self.is_loosely(facts, {segment.packet.options}, said.syns)
        )

    def look_for_divergence(self, track: Track) -> None:
        if not (
            isinstance(track.facts, TcpFlow)
            and any(
                self.is_loosely(track.facts, inc.said[PRIMARY].syns, inc.said[SECONDARY].syns)
                for inc in track.facts.incarnations.values()
            )
        ):
            super().look_for_divergence(track)

    def is_loosely(self, facts: TcpFlow, ours: set[SynOptions], theirs: set[SynOptions]) -> bool:
        one, other = ({replace(options, wscale=0) for options in said} for said in (ours, theirs))
        return facts.any_scale and bool(one) and one == other


class AlwaysTakesAnyScale(Toy):
    """R1: scale factors never bind."""

    def track(self, key: Key) -> Track:
        track = super().track(key)
        if isinstance(track.facts, TcpFlow):
            track.facts.any_scale = True
        return track


class NeverTakesAnyScale(Toy):
    """live/events: scale factors always bind."""

    def track(self, key: Key) -> Track:
        track = super().track(key)
        if isinstance(track.facts, TcpFlow):
            track.facts.any_scale = False
        return track


class ReleasesResets(Toy):
    """R1: an RST leaves at once."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        return segment.packet.rst or super().content_matches(facts, segment)


class IgnoresAcks(Toy):
    """R1: ACK numbers leave as the primary gave them (as in stock colo-compare)."""

    def ack_limit(self, facts: TcpFlow, segment: Segment) -> int | None:
        return facts.incarnation(segment.incarnation).ack_ever


class EmitsTheHighestAck(Toy):
    """R1: what is owed is paid in full as soon as anything may be paid."""

    def ack_to_emit(self, owed: int, limit: int) -> int:
        return owed


class LowersByTooLittle(Toy):
    """R1: lowered to one above what the secondary acknowledged."""

    def lower(self, item: Item, ack: int) -> bytes:
        return super().lower(item, (ack + 1) % 2**32)


class ReleasesWhileStopped(Toy):
    """R1/live: frames read between STOP and RESUME are judged by the old epoch."""

    def stop(self, now: int) -> None:
        self.now = now


class KeepsOldOutput(Toy):
    """R3/R1: what the secondary said before the commit still counts."""

    def forget(self, track: Track) -> None:
        if isinstance(track.facts, DatagramFlow):
            return
        old = {number: inc.said[SECONDARY] for number, inc in track.facts.incarnations.items()}
        super().forget(track)
        for number, said in old.items():
            track.facts.incarnation(number).said[SECONDARY].data.update(said.data)


class KeepsOldDatagrams(Toy):
    """R3/R1: the same for datagrams."""

    def forget(self, track: Track) -> None:
        if isinstance(track.facts, DatagramFlow):
            track.diverged = False
        else:
            super().forget(track)


class KeepsTheGap(Toy):
    """R3/R1: secondary frames read between STOP and RESUME prove something, whatever the configuration."""

    def is_stale(self, item: Item, resumed: int) -> bool:
        return False


class FlushesYoungFrames(Toy):
    """R1: the commit releases frames read after RESUME too."""

    def is_before(self, item: Item, resumed: int) -> bool:
        return True


class TakesAnAbortForACommit(Toy):
    """R1: a checkpoint that failed covers nothing."""

    def abort(self, now: int) -> None:
        self.commit(now, now)


class LosesFramesAtTheCommit(Toy):
    """R2."""

    def flush(self, resumed: int) -> None:
        super().flush(resumed)
        self.actions = self.actions[:-1]


class DropsWhenFull(Toy):
    """R2/R4/limits: what has no room is thrown away, as a full queue of colo-compare's does."""

    def feed(self, side: int, frames: object, now: int) -> int:
        offered = list(frames)  # type: ignore[call-overload]
        super().feed(side, offered, now)
        return len(offered)


class LosesWhatTheSecondarySaidWhileStopped(Toy):
    """live: an abort must bring the secondary's frames back into the epoch."""

    def abort(self, now: int) -> None:
        self.gap = [item for item in self.gap if item.side != SECONDARY]
        super().abort(now)


class ReleasesTheLastFirst(Toy):
    """R4."""

    def release_first(self, track: Track, reason: Reason, limit: int | None = None) -> None:
        track.queue.insert(0, track.queue.pop())
        super().release_first(track, reason, limit)


class ReleasesTwice(Toy):
    """R4."""

    def release_first(self, track: Track, reason: Reason, limit: int | None = None) -> None:
        super().release_first(track, reason, limit)
        self.actions.append(self.actions[-1])


class OvertakesWithDatagrams(Toy):
    """R4: a matched datagram does not wait for an earlier one."""

    def release_ready(self, track: Track) -> None:
        if isinstance(track.facts, DatagramFlow):
            track.queue.sort(key=lambda item: not track.facts.matches(item.packet))  # type: ignore[union-attr]
        super().release_ready(track)


class ForgetsThatDatagramsServeOnce(Toy):
    """R1: one datagram of the secondary's releases any number of equal ones."""

    def release_ready(self, track: Track) -> None:
        if not isinstance(track.facts, DatagramFlow):
            super().release_ready(track)
            return
        while track.queue and track.facts.matches(track.queue[0].packet):
            self.release_first(track, Reason.MATCHED)


class MatchesDatagramsByLength(Toy):
    """R1."""

    def release_ready(self, track: Track) -> None:
        if not isinstance(track.facts, DatagramFlow):
            super().release_ready(track)
            return
        while track.queue:
            lengths = [len(body) for _, body in track.facts.waiting]
            if len(track.queue[0].packet.body) not in lengths:
                return
            del track.facts.waiting[lengths.index(len(track.queue[0].packet.body))]
            self.release_first(track, Reason.MATCHED)


class ComparesFragmentByFragment(Toy):
    """R1: a fragment leaves when the secondary has sent its equal, whatever becomes of the rest."""

    def join(self, item: Item) -> None:
        super().join(item)
        said = [(i.packet.start, i.packet.body) for i in self.loose if i.side == SECONDARY]
        for ours in [i for i in self.loose if i.side == PRIMARY and (i.packet.start, i.packet.body) in said]:
            self.loose.remove(ours)
            self.leave(ours, ours.data, Reason.MATCHED)


class ReassemblyWithHoles(Reassembly[Item]):
    """Whole when its last fragment is there: what is missing is zeros."""

    def add(self, piece: Item) -> tuple[bytes, list[Item]] | None:
        done = super().add(piece)
        parts = self.waiting.get(name_of(piece.packet))
        if done is not None or parts is None:
            return done
        packets = [p.packet for p in parts.pieces]
        first = [p for p in packets if p.start == 0]
        last = [p for p in packets if not p.more]
        if not first or not last:
            return None
        zeros = dataclasses.replace(first[0], body=bytes(last[0].start))
        whole = put_together([zeros, *packets])
        del self.waiting[name_of(piece.packet)]
        return None if whole is None else (whole, parts.pieces)


class TakesTheFirstAndTheLastForAll(Toy):
    """R1/R4: a datagram with a fragment missing counts as whole."""

    def reassembler(self) -> Reassembly[Item]:
        return ReassemblyWithHoles()


class TrustingReassembly(Reassembly[Item]):
    """Fragments that contradict each other: the one that comes last wins."""

    def add(self, piece: Item) -> tuple[bytes, list[Item]] | None:
        done = super().add(piece)
        parts = self.waiting.get(name_of(piece.packet))
        if done is not None or parts is None:
            return done
        whole = put_together([p.packet for p in parts.pieces])
        if whole is None:
            return None
        del self.waiting[name_of(piece.packet)]
        return whole, parts.pieces


class TrustsContradictingFragments(Toy):
    """R1/R4."""

    def reassembler(self) -> Reassembly[Item]:
        return TrustingReassembly()


class KeepsOldFragments(Toy):
    """R1/live: a datagram of the secondary's may be half of the old epoch."""

    def forget_fragments(self) -> None:
        theirs = dict(self.reassembly[SECONDARY].waiting)
        super().forget_fragments()
        self.reassembly[SECONDARY].waiting.update(theirs)

    def drop_fragments(self, latest: int) -> None:
        super().drop_fragments(latest if latest != NEVER else -1)


class LeavesTheLastFragmentFirst(Toy):
    """R4."""

    def leave(self, item: Item, data: bytes, reason: Reason) -> None:
        super().leave(dataclasses.replace(item, parts=item.parts[::-1]), data, reason)


class KeepsAFragmentBack(Toy):
    """R2/R4: a datagram leaves, and one of its fragments stays."""

    def leave(self, item: Item, data: bytes, reason: Reason) -> None:
        super().leave(dataclasses.replace(item, parts=item.parts[:-1]), data, reason)


class ForgetsFragmentsAtTheCommit(Toy):
    """R2: fragments whose datagram is not whole are lost."""

    def free_fragments(self, resumed: int) -> None:
        self.loose = [item for item in self.loose if item.side == SECONDARY]


class DropsFragmentsAtOnce(Toy):
    """live: the secondary's datagrams in fragments are thrown away."""

    def join(self, item: Item) -> None:
        super().join(item)
        self.drop_fragments(NEVER)


class HoldsFragments(Toy):
    """live: a datagram in fragments only leaves by a commit."""

    def release_ready(self, track: Track) -> None:
        if not (track.queue and track.queue[0].parts):
            super().release_ready(track)


class WaitsForEverForFragments(Toy):
    """events: nobody asks for a checkpoint for what is never whole."""

    def deadline(self) -> int:
        loose, self.loose = self.loose, []
        try:
            return super().deadline()
        finally:
            self.loose = loose


class ComparesFramesNotStreams(Toy):
    """live: only a segment cut like this one will do."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        theirs = {(t.segment.start, t.segment.end) for t in self.tracks[facts.key].theirs if t.segment is not None}
        return super().content_matches(facts, segment) and (
            not segment.packet.body or (segment.start, segment.end) in theirs
        )


class HoldsDataForTheAck(Toy):
    """live: data wait until their ACK number may leave."""

    def is_lowerable(self, packet: Packet) -> bool:
        return False


class NeverEmits(Toy):
    """live: what was lowered is never made good."""

    def emit_ack(self, track: Track, facts: TcpFlow) -> None:
        pass


class LowersTooFar(Toy):
    """live: lowered below what both have acknowledged."""

    def lower(self, item: Item, ack: int) -> bytes:
        return super().lower(item, (ack - 1) % 2**32)


class ComparesUnsigned(Toy):
    """live: 32-bit ACK numbers are compared as plain integers."""

    def ack_limit(self, facts: TcpFlow, segment: Segment) -> int | None:
        limit = facts.ack_limit(segment)
        if limit is None or segment.ack is None:
            return limit
        return limit if segment.ack % 2**32 <= limit % 2**32 else min(limit, segment.ack - 1)


class ReadsOwnNumbersOnly(Toy):
    """live/events: a rewriter between the secondary and the comparator is not allowed for."""

    def say(self, item: Item) -> None:
        facts = self.track(item.packet.key).facts
        if isinstance(facts, TcpFlow) and item.side == SECONDARY and not item.packet.syn and item.segment is None:
            inc = facts.incarnation(facts.current[SECONDARY])
            ours, theirs = inc.isn
            item.segment = facts.place(SECONDARY, item.packet)
            if ours is not None and theirs is not None and ours != theirs:
                item.segment = Segment(item.packet, item.segment.incarnation, item.segment.start + 1, item.segment.ack)
        super().say(item)


class ForgetsTheChecksum(Toy):
    """bytes: a lowered frame keeps the checksum it had."""

    def lower(self, item: Item, ack: int) -> bytes:
        frame = bytearray(item.data)
        frame[item.packet.l4 + 8 : item.packet.l4 + 12] = ack.to_bytes(4, "big")
        return bytes(frame)


class EmitsAtTheWrongPlace(Toy):
    """bytes: an emitted ACK stands at a sequence number that has not come yet."""

    def build_ack(self, like: Item, inc: Incarnation, ack: int) -> bytes:
        inc.released_end = (inc.released_end or 0) + 1
        return super().build_ack(like, inc, ack)


class EmitsWithoutVlan(Toy):
    """bytes: an emitted ACK leaves on another network."""

    def build_ack(self, like: Item, inc: Incarnation, ack: int) -> bytes:
        key = like.packet.key
        path = wire.Path(key.family, key.src, key.dst, key.sport, key.dport, vlans=(5,))
        return wire.tcp(path, inc.released_end or 0, ack)


class SendsMoreThanItsPart(Toy):
    """R1: of a held frame that the primary repeats all goes ahead, not what both have said."""

    def said_by_both(self, facts: TcpFlow, segment: Segment) -> bytes:
        return segment.packet.body if super().said_by_both(facts, segment) else b""


class SendsPartsWithNewerStamps(Toy):
    """bytes: a part has the repetition's timestamps, to which the held frame's are older."""

    def send_part(self, track: Track, facts: TcpFlow, item: Item) -> None:
        before = len(self.actions)
        super().send_part(track, facts, item)
        if len(self.actions) > before and item.segment is not None:
            *_, part = self.actions
            assert isinstance(part, Emit)
            packet = parse(part.data)
            self.actions[-1] = Emit(self.build(item, packet.seq, packet.ack, packet.body), nic=part.nic)


class StripsPadding(Toy):
    """bytes: frames leave as they were parsed, not as they came."""

    def release_first(self, track: Track, reason: Reason, limit: int | None = None) -> None:
        super().release_first(track, reason, limit)
        last = self.actions[-1]
        assert isinstance(last, Release)
        self.actions[-1] = Release(last.name, last.data.rstrip(b"\xa5"), last.reason)


class HoldsArp(Toy):
    """live/events: classes that pass are compared."""

    def passes(self, packet: Packet) -> bool:
        return False


class NeverDiverges(Toy):
    """events."""

    def look_for_divergence(self, track: Track) -> None:
        pass


class DivergesOnOrder(Toy):
    """events: a gap in the secondary's stream is taken for a difference."""

    def first_difference(self, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        for inc in facts.incarnations.values():
            theirs = inc.said[SECONDARY].data
            if theirs and inc.zero is not None and max(theirs) - min(theirs) + 1 != len(theirs):
                return inc, min(theirs)
        return super().first_difference(facts)


class NamesAnotherOffset(Toy):
    """events."""

    def evidence(self, inc: Incarnation, position: int) -> tuple[int, bytes, bytes]:
        context, ours, theirs = super().evidence(inc, position)
        return context + 1, ours, theirs


class TellsTwice(Toy):
    """events: each further frame of a flow that has diverged tells so again."""

    def look_for_divergence(self, track: Track) -> None:
        track.diverged = False
        super().look_for_divergence(track)


class WantsTwice(Toy):
    """events: a checkpoint is wanted for each divergence."""

    def want(self, cause: Cause) -> None:
        self.events.append(Want(cause, self.epoch))


class NeverWants(Toy):
    """events: divergences, but no wish for a checkpoint."""

    def want(self, cause: Cause) -> None:
        pass


class BlamesAnotherFlow(Toy):
    """events."""

    def diverge(self, track: Track, cause: Cause, *more: object) -> None:
        super().diverge(track, cause, *more)  # type: ignore[arg-type]
        for index, event in enumerate(self.events):
            if isinstance(event, Diverged):
                other = next((key for key in self.tracks if key != event.key), event.key)
                self.events[index] = Diverged(event.cause, event.epoch, other, event.offset, event.context,
                                              event.primary, event.secondary)  # fmt: skip


class IgnoresUrgentMarks(Toy):
    """R1: the primary marks a byte as urgent, the secondary does not."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        plain = replace(segment.packet, flags=segment.packet.flags & ~wire.URG)
        return facts.content_matches(replace(segment, packet=plain)) or facts.content_matches(segment)


class OverlooksContradictions(Toy):
    """events: held frames of the primary's say two things at one offset."""

    def first_contradiction(self, track: Track, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        return None


class SeesContradictionsEverywhere(Toy):
    """events: any overlap is taken for one."""

    def first_contradiction(self, track: Track, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        if len(track.queue) > 1 and facts.incarnations:
            return facts.incarnation(0), 0
        return None


class TakesTheLastRule(Toy):
    """R1: the last rule that fits decides, not the first."""

    def policy(self, key: Key) -> Policy:
        return policy_of(Rules(self.config.rules.policies[::-1]), PASSED_BY_DEFAULT, key)


class PassesWhatAPrefixAlmostFits(Toy):
    """R1: the client's address is not looked at."""

    def policy(self, key: Key) -> Policy:
        rules = [replace(rule, match=replace(rule.match, client=None)) for rule in self.config.rules.policies]
        return policy_of(Rules(tuple(rules)), PASSED_BY_DEFAULT, key)


class TrustsWhatIsDropped(Toy):
    """R1: what a rule says proves nothing is taken as proof."""

    def policy(self, key: Key) -> Policy:
        policy = super().policy(key)
        return Policy.COMPARE if policy == Policy.DROP_SECONDARY else policy


class WaitsAndDoesNotAsk(Toy):
    """live: output that only a commit can cover is held, and no commit is asked for."""

    def want(self, cause: Cause) -> None:
        if cause != Cause.POLICY:
            super().want(cause)


class ToleratesAnything(Toy):
    """R1: where a rule lets some bytes differ, all may."""

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        said = facts.incarnation(segment.incarnation).said[SECONDARY].data
        every = range(segment.start, segment.start + len(segment.packet.body))
        loose = bool(facts.tolerances) and not segment.packet.syn and all(position in said for position in every)
        return loose or super().content_matches(facts, segment)

    def first_difference(self, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        return None if facts.tolerances else super().first_difference(facts)


class ToleratesOneByteMore(Toy):
    """R1: a window is longer than the rule says."""

    def track(self, key: Key) -> Track:
        track = super().track(key)
        if isinstance(track.facts, TcpFlow):
            rules = tolerances_of(self.config.rules, key)
            track.facts.tolerances = [replace(rule, length=rule.length + 1) for rule in rules]
        return track


class ToleratesUpToTheEnd(Toy):
    """R1: the byte that ends a value is not looked for."""

    def track(self, key: Key) -> Track:
        track = super().track(key)
        if isinstance(track.facts, TcpFlow):
            track.facts.tolerances = [replace(rule, until=None) for rule in tolerances_of(self.config.rules, key)]
        return track


class HasNoClock(Toy):
    """events: nothing ever waits too long."""

    def deadline(self) -> int:
        return NEVER


class IsImpatient(Toy):
    """events: everything has waited too long at once."""

    def deadline(self) -> int:
        waiting = any(track.queue for track in self.tracks.values())
        return 0 if waiting and not self.wanted and self.mode == "protected" else super().deadline()

    def tick(self, now: int) -> None:
        self.want(Cause.PRIMARY_TIMEOUT)
        super().tick(now)


class NeverMindsGaps(Toy):
    """events: what the secondary has left out waits for compare_timeout."""

    def gap_times(self) -> list[int]:
        return []


class HasNoPatienceWithGaps(Toy):
    """events: a gap asks for a checkpoint before what is re-ordered can have come."""

    def gap_begins(self, track: Track, now: int) -> int:
        return now - self.config.gap_window + 1


class TakesOneGapForAnother(Toy):
    """events: when a gap has closed, the time of the next one runs already."""

    def gap_begins(self, track: Track, now: int) -> int:
        return track.gap_since or now


MUTANTS = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Toy) and value is not Toy
]

# ------------------------------------------------------------------ what they are put through


def different_options() -> list[Step]:
    path = wire.Path()
    ours, theirs = (wire.tcp(path, 9, 9, wire.SYN | wire.ACK, options=wire.Options(mss=mss)) for mss in (1460, 1400))
    return [Stop(0), Commit(1, 2), Feed(1, (theirs,), 3), Feed(0, (ours,), 4), Stop(5), Commit(6, 6)]


def scales(*said: int | None) -> list[Step]:
    ours, theirs = (wire.tcp(wire.Path(), 9, 9, wire.SYN | wire.ACK, options=wire.Options(mss=9, wscale=scale))
                    for scale in said)  # fmt: skip
    return [Stop(0), Commit(1, 2), Feed(1, (theirs,), 3), Feed(0, (ours,), 4), Stop(5), Commit(6, 6)]


RULED = Rules(
    (
        PolicyRule("one client", Policy.PASS, Match(client=ipaddress.ip_network("10.0.0.1/32"))),
        PolicyRule("ours", Policy.DROP_SECONDARY, Match(protocol=17)),
        PolicyRule("the rest", Policy.PASS, Match(protocol=17)),
    )
)


def ruled() -> list[Step]:
    """A datagram that both sides say, and that may leave by a commit only."""
    frame = wire.udp(wire.Path(), b"abc")
    return [Stop(0), Commit(1, 2), Feed(1, (frame,), 3), Feed(0, (frame,), 4), Stop(5), Commit(6, 6)]


TOLERANT = Rules(tolerances=(ToleranceRule("id", b" id=", 3, ord("|")),))


def tolerated(*said: bytes) -> list[Step]:
    ours, theirs = (wire.tcp(wire.Path(), 9, 9, wire.ACK, body) for body in said)
    return [Stop(0), Commit(1, 2), Feed(1, (theirs,), 3), Feed(0, (ours,), 4), Stop(5), Commit(6, 6)]


def urgent() -> list[Step]:
    """Only the primary's byte is marked."""
    ours = wire.tcp(wire.Path(), 9, 9, wire.ACK | wire.URG, b"abc", urgent=3)
    theirs = wire.tcp(wire.Path(), 9, 9, wire.ACK, b"abc")
    return [Stop(0), Commit(1, 2), Feed(1, (theirs,), 3), Feed(0, (ours,), 4), Stop(5), Commit(6, 6)]


def part() -> list[Step]:
    """The primary repeats a frame of which the secondary has said the front."""
    options = wire.Options(timestamps=True)

    def segment(at: int, body: bytes, tsval: int) -> bytes:
        return wire.tcp(wire.Path(), at, 9, wire.ACK, body, options, wire.Noise(tsval=tsval))

    ours, again, theirs = segment(12, b"abcdef", 5), segment(12, b"abcdef", 6), segment(9, b"xyzabcd", 5)
    begin: list[Step] = [Stop(0), Commit(1, 2), Feed(1, (theirs,), 3)]
    return [*begin, Feed(0, (segment(9, b"xyz", 5), ours), 4), Feed(0, (again,), 5), Stop(6), Commit(7, 7)]


def contradiction() -> list[Step]:
    """The primary overlaps a held frame of its own with another byte."""
    ours = tuple(wire.tcp(wire.Path(), 9 + at, 9, wire.ACK, data) for at, data in ((0, b"abc"), (1, b"Bcd")))
    return [Stop(0), Commit(1, 2), Feed(0, ours, 3), Stop(5), Commit(6, 6)]


def silences() -> Iterable[list[Step]]:
    frame = wire.tcp(wire.Path(), 9, 9, wire.ACK, b"abc")
    for side in (0, 1):
        yield [Stop(0), Commit(1, 2), Feed(side, (frame,), 3), Tick(4_000_000_000)]


def gaps() -> Iterable[list[Step]]:
    """The secondary leaves out one byte, then another."""
    ours, *theirs = (wire.tcp(wire.Path(), 9 + at, 9, wire.ACK, b"abcdef"[at:end])
                     for at, end in ((0, 6), (1, 3), (4, 6), (0, 1)))  # fmt: skip
    begin: list[Step] = [Stop(0), Commit(1, 2), Feed(0, (ours,), 3), Feed(1, tuple(theirs[:2]), 4)]
    window = Config().gap_window
    yield [*begin, Tick(3 + window), Tick(4 + window)]
    yield [*begin, Feed(1, (theirs[2],), 3 + window), Tick(2 + 2 * window), Tick(3 + 2 * window)]


def half_datagrams() -> Iterable[list[Step]]:
    whole = wire.udp(wire.Path(), bytes(range(8)) + bytes(16) + bytes(range(20)))
    all_three = first, second, third = tuple(wire.fragments(whole, (16, 32)))
    other = wire.fragment(wire.udp(wire.Path(), b"\1" * 44), 16, 32, more=True)
    begin: list[Step] = [Stop(0), Commit(1, 2)]
    yield [*begin, Feed(1, all_three, 3), Feed(0, (first, third), 4), Feed(0, (second,), 5)]
    yield [*begin, Feed(0, (first, second), 3), Tick(4_000_000_000)]
    yield [*begin, Feed(1, (first, second), 3), Stop(4), Commit(5, 5), Feed(0, all_three, 6), Feed(1, (third,), 7)]
    yield [*begin, Feed(0, (first, other, second, third), 3), Feed(1, (whole,), 4), Stop(5), Commit(6, 6)]
    split: list[Step] = [Feed(0, (first,), 3), Stop(4), Feed(0, (second,), 6), Commit(5, 7), Feed(0, (third,), 8)]
    yield [*begin, *split, Commit(9, 9)]


def a_reset() -> list[Step]:
    return [Stop(0), Commit(1, 2), Feed(0, (wire.tcp(wire.Path(), 9, 9, wire.ACK | wire.RST),), 3)]


def conversations() -> Iterable[Conversation]:
    for seed in range(60):
        conversation = make_conversation(seeded(seed), 3, 3)
        yield conversation
        for spoil in (spoil_one_byte, spoil_one_fin):
            spoiled = spoil(seeded(seed), make_conversation(seeded(seed), 2, 2))
            if spoiled is not None:
                yield spoiled.conversation


def trials(make: type[Toy]) -> Iterable[Callable[[], object]]:
    """Ever harder things to get right, each a function that raises Violation where it was not."""

    def play(
        schedule: list[Step], config: Config, *, live: bool = True, end: int | None = None
    ) -> Callable[[], object]:
        def trial() -> None:
            run = Run(make(config), Oracle(config, live=live)).play(schedule)
            if end is not None:
                run.step(Commit(end, end))
                if run.held:
                    raise Violation("R2", "held at the end")

        return trial

    def live_in_a_world(seed: int) -> Callable[[], object]:
        def trial() -> None:
            config = Config(keep_gap=seed % 3 == 0)
            world = World(Run(make(config), Oracle(config)), seeded(seed), config.keep_gap)
            for _ in range(300):
                world.act()
            world.finish()

        return trial

    yield play(different_options(), Config())
    for any_scale in (False, True):
        for pair in ((7, 9), (7, None), (None, 0)):
            yield play(scales(*pair), Config(any_scale=any_scale))
    yield play(a_reset(), Config())
    yield play(urgent(), Config())
    yield play(contradiction(), Config())
    yield play(part(), Config())
    yield play(ruled(), Config(rules=RULED))
    for said in ((b"id=", b"id="), (b"the id=12|x", b"the id=34|x"), (b"the id=12|x", b"the id=34|y"),
                 (b"the id=1234", b"the id=5678"), (b"the id=1|2", b"the id=123")):  # fmt: skip
        yield play(tolerated(*said), Config(rules=TOLERANT))
    for schedule in (*silences(), *gaps(), *half_datagrams()):
        yield play(schedule, Config())
    for conversation in conversations():
        config = Config(keep_gap=conversation.keep_gap)
        yield play(conversation.schedule(), config, end=conversation.now + 10)
    for seed in range(20):
        tight = make_conversation(seeded(seed), 3, 2)
        yield play(tight.schedule(), Config(keep_gap=tight.keep_gap, max_frames=6), live=False)
    for seed in range(60):
        yield live_in_a_world(seed)
        yield play(make_chaos(seeded(seed)), Config(), live=False)


def test_the_toy_passes() -> None:
    for trial in trials(Toy):
        trial()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant: type[Toy]) -> None:
    rules = (mutant.__doc__ or "").split(":")[0].rstrip(".").split("/")
    for trial in trials(mutant):
        try:
            trial()
        except Violation as violation:
            assert violation.rule in rules, f"caught for another reason: {violation}"
            return
    pytest.fail("the oracle accepts it")


def test_minimise_finds_the_heart_of_a_failure() -> None:
    """A frame that is released twice: one frame is enough to show it."""
    config = Config()
    conversation = make_conversation(seeded(5), 2, 1)
    steps = minimise(lambda: Run(ReleasesTwice(config), Oracle(config)), conversation.schedule())
    assert len([step for step in steps if isinstance(step, Feed)]) <= 2


def test_syn_options_are_values() -> None:
    """The model keeps them in sets."""
    assert SynOptions(mss=1460) == SynOptions(1460)
    assert len({SynOptions(1), SynOptions(2), SynOptions(1)}) == 2


def test_dice_are_all_that_a_conversation_depends_on() -> None:
    def log(dice: Dice) -> str:
        return repr(make_conversation(dice))

    assert log(seeded(7)) == log(seeded(7))
    assert log(seeded(7)) != log(seeded(8))
