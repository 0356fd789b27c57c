# SPDX-License-Identifier: Apache-2.0
"""A comparator of the slow and obvious kind.

It shows that the rules can be kept (the oracle must accept it), and lends itself to being broken on purpose
(test_model_mutants.py): each decision is a method of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import wire

from coloproxy.rules import Policy
from model.flow import PRIMARY, SECONDARY, DatagramFlow, Incarnation, Segment, TcpFlow
from model.fragments import Reassembly
from model.packet import PASSED_BY_DEFAULT, Cls, Key, Packet, parse
from model.rules import policy_of, tolerances_of
from model.verdict import (
    NEVER,
    Action,
    Cause,
    Config,
    Discard,
    Diverged,
    Emit,
    Event,
    Limit,
    Reason,
    Release,
    Want,
)

ALONE, PROTECTED, STOPPED = "alone", "protected", "stopped"


@dataclass
class Item:
    name: int
    side: int
    data: bytes
    packet: Packet
    time: int
    segment: Segment | None = None
    parts: tuple[Item, ...] = ()  # the fragments of a datagram that came in several frames


@dataclass
class Track:
    """All that the toy knows of one flow."""

    facts: TcpFlow | DatagramFlow
    queue: list[Item] = field(default_factory=list)
    theirs: list[Item] = field(default_factory=list)  # the secondary's frames of this epoch
    latest: Item | None = None  # the last frame that left
    overtaken_since: int | None = None
    gap: tuple[int, int] | None = None  # incarnation and position
    gap_since: int = 0
    diverged: bool = False


class Toy:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.mode = ALONE
        self.before_stop = ALONE
        self.tracks: dict[Key, Track] = {}
        self.gap: list[Item] = []
        self.reassembly = (self.reassembler(), self.reassembler())
        self.loose: list[Item] = []  # fragments of both sides whose datagram is not whole
        self.actions: list[Action] = []
        self.events: list[Event] = []
        self.epoch = 0
        self.wanted = False
        self.limits: set[Cause] = set()
        self.now = 0
        self.epoch_began = 0

    # ---- the interface

    def feed(self, side: int, frames: Sequence[tuple[int, bytes]], now: int) -> int:
        self.now = now
        taken = 0
        for name, data in frames:
            if not self.has_room(len(data)):
                self.limit_reached(Cause.LIMIT_FRAMES)
                break
            self.take_in(Item(name, side, data, parse(data), now))
            taken += 1
        self.settle()
        return taken

    def take(self) -> tuple[list[Action], list[Event]]:
        out = self.actions, self.events
        self.actions, self.events = [], []
        return out

    def deadline(self) -> int:
        if self.mode != PROTECTED:
            return NEVER
        times = [track.overtaken_since + self.config.reorder_window for track in self.tracks.values()
                 if track.overtaken_since is not None and not track.diverged]  # fmt: skip
        times += [since + self.config.compare_timeout for item in self.loose if item.side == SECONDARY
                  and (since := self.reassembly[SECONDARY].since(item)) is not None]  # fmt: skip
        if not self.wanted:
            times += [time + self.config.gap_window for time in self.gap_times()]
            times += [i.time + self.config.compare_timeout for i in self.loose if i.side == PRIMARY]
            for track in self.tracks.values():
                times += [item.time + self.config.compare_timeout for item in track.queue[:1]]
                times += [t.time + self.config.compare_timeout for t in track.theirs if not self.is_answered(track, t)]
                times += [time + self.config.compare_timeout for time in self.owed_times(track)]
        return max(min(times, default=NEVER), 0)

    def tick(self, now: int) -> None:
        self.now = now
        self.settle()
        if self.mode != PROTECTED:
            return
        latest = now - self.config.compare_timeout
        self.drop_fragments(latest)
        if any(time <= now - self.config.gap_window for time in self.gap_times()):
            self.want(Cause.GAP)
        if any(item.time <= latest for item in self.loose if item.side == PRIMARY):
            self.want(Cause.PRIMARY_TIMEOUT)
        for track in self.tracks.values():
            if any(item.time <= latest for item in track.queue[:1]):
                self.want(Cause.PRIMARY_TIMEOUT)
            if any(item.time <= latest and not self.is_answered(track, item) for item in track.theirs):
                self.want(Cause.SECONDARY_TIMEOUT)
            if any(time <= latest for time in self.owed_times(track)):
                self.want(Cause.ACK_TIMEOUT)

    def stop(self, now: int) -> None:
        self.now = now
        if self.mode == ALONE:
            self.tracks = {}  # what was said without a secondary is not remembered
        if self.mode != STOPPED:
            self.before_stop, self.mode = self.mode, STOPPED

    def commit(self, resumed: int, now: int) -> None:
        self.now = now
        gap, self.gap = self.gap, []
        if self.mode == ALONE:
            self.tracks = {}
        for item in gap:
            if item.side == PRIMARY and self.is_before(item, resumed):
                if item.packet.cls == Cls.FRAGMENT:
                    self.loose.append(item)
                else:
                    self.say(item)
        self.drop_fragments(NEVER)
        self.free_fragments(resumed)
        self.flush(resumed)
        for track in self.tracks.values():
            self.forget(track)
        self.mode = PROTECTED
        self.new_epoch()
        self.forget_fragments()
        for item in gap:
            if item.side == PRIMARY:
                if not self.is_before(item, resumed):
                    self.take_up(item)
            elif self.is_stale(item, resumed):
                self.actions.append(Discard(item.name, Reason.STALE))
            else:
                self.take_up(item)
        self.settle()

    def abort(self, now: int) -> None:
        self.now = now
        if self.mode != STOPPED:
            return
        self.mode = self.before_stop
        gap, self.gap = self.gap, []
        for item in gap:
            if self.mode == PROTECTED:
                self.take_up(item)
            elif item.packet.cls == Cls.FRAGMENT:
                self.leave(item, item.data, Reason.ALONE)
            elif item.side == PRIMARY:
                self.release_first(self.track(item.packet.key), Reason.ALONE)
            else:
                self.actions.append(Discard(item.name, Reason.ALONE))
        self.settle()

    def alone(self, now: int) -> None:
        self.now = now
        fragments = [item for item in self.gap if item.packet.cls == Cls.FRAGMENT]
        for item in [*self.loose, *fragments]:
            self.leave(item, item.data, Reason.ALONE)
        self.loose = []
        for item in self.gap:
            if item in fragments:
                continue
            if item.side == PRIMARY:
                self.say(item)
            else:
                self.actions.append(Discard(item.name, Reason.ALONE))
        self.gap = []
        for track in self.tracks.values():
            while track.queue:
                self.release_first(track, Reason.ALONE)
            self.forget(track)
        self.mode = ALONE
        self.new_epoch()
        self.settle()

    # ---- fragments

    def reassembler(self) -> Reassembly[Item]:
        return Reassembly()

    def join(self, item: Item) -> None:
        """It waits, or completes its datagram."""
        self.loose.append(item)
        done = self.reassembly[item.side].add(item)
        if done is None:
            return
        data, parts = done
        self.loose = [other for other in self.loose if not any(other is part for part in parts)]
        packet = replace(parse(data), auth=True)
        self.take_in(Item(item.name, item.side, data, packet, item.time, parts=tuple(parts)))

    def free_fragments(self, resumed: int) -> None:
        """Before a flush: a datagram that began before the cut and ended behind it is none."""
        for track in self.tracks.values():
            for item in [i for i in track.queue if i.parts and not self.is_before(i, resumed)]:
                track.queue.remove(item)
                self.loose += item.parts
        for item in [i for i in self.loose if i.side == PRIMARY and self.is_before(i, resumed)]:
            self.loose.remove(item)
            self.leave(item, item.data, Reason.COMMITTED)

    def drop_fragments(self, latest: int) -> None:
        """Of the secondary's, all of a datagram whose first came by then."""
        theirs = self.reassembly[SECONDARY]
        for item in [i for i in self.loose if i.side == SECONDARY and (theirs.since(i) or 0) <= latest]:
            self.loose.remove(item)
            if theirs.since(item) is not None:
                theirs.remove(item)
            self.leave(item, item.data, Reason.STALE)

    def forget_fragments(self) -> None:
        """A new epoch: what waits is looked at anew."""
        waiting, self.loose = self.loose, []
        for side in self.reassembly:
            side.clear()
        for item in sorted(waiting, key=lambda item: item.name):
            self.join(item)

    # ---- frames come in

    def has_room(self, size: int) -> bool:
        held = [item for track in self.tracks.values() for item in track.queue]
        held += [item for item in self.gap if item.side == SECONDARY]
        held = [part for item in held for part in item.parts or (item,)] + self.loose
        held += [item for item in self.gap if item.side == PRIMARY and item.packet.cls == Cls.FRAGMENT]
        return len(held) < self.config.max_frames and sum(len(i.data) for i in held) + size <= self.config.max_bytes

    def take_in(self, item: Item) -> None:
        if self.passes(item.packet):
            self.leave(item, item.data, Reason.PASSED)
            return
        if item.side == SECONDARY and self.waits_for_commit(item.packet.key):
            self.leave(item, item.data, Reason.IGNORED)
            return
        if item.packet.cls == Cls.FRAGMENT and not item.parts:
            if self.mode == STOPPED:
                self.gap.append(item)
            elif self.mode == PROTECTED:
                self.join(item)
            else:
                self.leave(item, item.data, Reason.ALONE)
            return
        track = self.track(item.packet.key)
        if item.side == PRIMARY:
            if isinstance(track.facts, TcpFlow):
                item.segment = track.facts.place(PRIMARY, item.packet)
            track.queue.append(item)
            track.queue.sort(key=lambda queued: queued.name)  # a datagram's last fragment tells its place
        if self.mode == STOPPED:
            self.gap.append(item)
        elif self.mode == PROTECTED:
            self.say(item)
        elif item.side == PRIMARY:
            self.release_first(track, Reason.ALONE)
        else:
            self.actions.append(Discard(item.name, Reason.ALONE))

    def passes(self, packet: Packet) -> bool:
        return self.policy(packet.key) == Policy.PASS

    def waits_for_commit(self, key: Key) -> bool:
        return self.policy(key) == Policy.DROP_SECONDARY

    def policy(self, key: Key) -> Policy:
        return policy_of(self.config.rules, PASSED_BY_DEFAULT, key)

    def track(self, key: Key) -> Track:
        if key not in self.tracks:
            rules = tolerances_of(self.config.rules, key)
            self.tracks[key] = Track(
                TcpFlow(key, rules, self.config.any_scale) if key.cls == Cls.TCP else DatagramFlow(key, rules)
            )
        return self.tracks[key]

    def take_up(self, item: Item) -> None:
        """Read while stopped, and of this epoch."""
        if item.packet.cls == Cls.FRAGMENT:
            self.join(item)
        else:
            self.say(item)

    def say(self, item: Item) -> None:
        """The frame counts in this epoch."""
        track = self.track(item.packet.key)
        if isinstance(track.facts, TcpFlow):
            if item.segment is None:
                item.segment = track.facts.place(item.side, item.packet)
            track.facts.say(item.side, item.segment)
            self.watch_gap(track, track.facts, item.time)
            if item.side == PRIMARY and self.mode == PROTECTED and not track.diverged:
                self.send_part(track, track.facts, item)
        elif item.side == SECONDARY:
            track.facts.say(item.packet)
        if self.mode == PROTECTED and self.waits_for_commit(item.packet.key):
            self.want(Cause.POLICY)
        if item.side == SECONDARY:
            track.theirs.append(item)
            self.leave(item, item.data, Reason.MATCHED)

    # ---- frames go out

    def leave(self, item: Item, data: bytes, reason: Reason) -> None:
        for part in item.parts or (item,):
            if item.side == SECONDARY:
                self.actions.append(Discard(part.name, reason))
            else:
                self.actions.append(Release(part.name, part.data if item.parts else data, reason))

    def settle(self) -> None:
        if self.mode == STOPPED:
            return
        for track in self.tracks.values():
            if self.waits_for_commit(track.facts.key):
                continue
            if self.mode == PROTECTED:
                self.look_for_divergence(track)
                if not track.diverged:
                    self.release_ready(track)
                if isinstance(track.facts, TcpFlow):
                    self.watch_gap(track, track.facts, self.now)
            if isinstance(track.facts, TcpFlow) and not track.diverged:
                self.emit_ack(track, track.facts)

    def release_ready(self, track: Track) -> None:
        if isinstance(track.facts, DatagramFlow):
            while track.queue and track.facts.matches(track.queue[0].packet):
                track.facts.use(track.queue[0].packet)
                self.release_first(track, Reason.MATCHED)
            return
        for _ in range(self.ready(track, track.facts)):
            assert track.queue[0].segment is not None
            self.release_first(track, Reason.MATCHED, self.ack_limit(track.facts, track.queue[0].segment))

    def ready(self, track: Track, facts: TcpFlow) -> int:
        """How many frames, from the first on, may leave now."""
        count = 0
        for index, item in enumerate(track.queue):
            segment = item.segment
            assert segment is not None
            packet, limit = item.packet, self.ack_limit(facts, segment)
            if not self.content_matches(facts, segment):
                break
            lowerable = limit is not None and self.is_lowerable(packet)
            covered = segment.ack is None or packet.rst or (limit is not None and segment.ack <= limit)
            if (covered and count == index) or (lowerable and not packet.pure_ack):
                count = index + 1
            elif not lowerable:
                break
        return count

    def content_matches(self, facts: TcpFlow, segment: Segment) -> bool:
        return facts.content_matches(segment)

    def ack_limit(self, facts: TcpFlow, segment: Segment) -> int | None:
        return facts.ack_limit(segment)

    def is_lowerable(self, packet: Packet) -> bool:
        return not (packet.syn or packet.rst or packet.auth)

    def release_first(self, track: Track, reason: Reason, limit: int | None = None) -> None:
        item = track.queue.pop(0)
        data, segment = item.data, item.segment
        if segment is not None and isinstance(track.facts, TcpFlow):
            inc = track.facts.incarnation(segment.incarnation)
            ack = segment.ack
            if item.packet.rst:
                ack = None
            if ack is not None and limit is not None and ack > limit:
                inc.owed.append((ack, self.now))
                data = self.lower(item, limit % 2**32)
                ack = limit
            if ack is not None:
                inc.told = ack if inc.told is None else max(inc.told, ack)
            if not item.packet.rst:
                inc.released_end = segment.end if inc.released_end is None else max(inc.released_end, segment.end)
        if not item.packet.rst:
            track.latest = item
        self.leave(item, data, reason)

    def lower(self, item: Item, ack: int) -> bytes:
        """The frame with a lower ACK number; RFC 1624 for the checksum."""
        frame = bytearray(item.data)
        at, csum_at = item.packet.l4 + 8, item.packet.l4 + 16
        old = struct.unpack_from("!HH", frame, at)
        struct.pack_into("!I", frame, at, ack)
        if not item.packet.partial:
            (csum,) = struct.unpack_from("!H", frame, csum_at)
            total = (~csum & 0xFFFF) + sum(~word & 0xFFFF for word in old) + (ack >> 16) + (ack & 0xFFFF)
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            struct.pack_into("!H", frame, csum_at, ~total & 0xFFFF)
        return bytes(frame)

    def emit_ack(self, track: Track, facts: TcpFlow) -> None:
        numbers = [number for number, inc in facts.incarnations.items() if inc.told is not None]
        if not numbers or track.latest is None:
            return
        number = max(numbers)
        inc = facts.incarnation(number)
        assert inc.told is not None
        owed = [ack for ack, _ in inc.owed]
        head = track.queue[0].segment if track.queue else None
        if head is not None and head.packet.pure_ack and head.incarnation == number and head.ack is not None:
            owed.append(head.ack)
        limit = inc.ack_ever if self.mode == ALONE else inc.said[SECONDARY].ack
        if not owed or limit is None:
            return
        ack = self.ack_to_emit(max(owed), limit)
        if ack > inc.told:
            inc.told = ack
            self.actions.append(Emit(self.build_ack(track.latest, inc, ack), nic=track.latest.packet.key.nic))
        inc.owed = [(ack, time) for ack, time in inc.owed if ack > inc.told]

    def ack_to_emit(self, owed: int, limit: int) -> int:
        return min(owed, limit)

    def send_part(self, track: Track, facts: TcpFlow, item: Item) -> None:
        """The primary repeats what waits: what both have said of it goes ahead."""
        segment = item.segment
        assert segment is not None
        inc = facts.incarnation(segment.incarnation)
        waiting = next((i for i in track.queue if i.segment and i.segment.has_range), None)
        if waiting is None or waiting is item or waiting.segment is None or inc.told is None:
            return
        marked = segment.mark is not None or inc.mark_ever is not None or inc.said[SECONDARY].marks
        if waiting.segment.incarnation != segment.incarnation or item.packet.syn or item.packet.rst or marked:
            return
        if not self.is_lowerable(waiting.packet) or self.content_matches(facts, waiting.segment):
            return
        body = self.said_by_both(facts, segment)[:752]
        if body and not inc.conflicts:
            inc.released_end = max(inc.released_end or 0, segment.start + len(body))
            data = self.build(waiting, segment.start, inc.told, body)
            self.actions.append(Emit(data, nic=waiting.packet.key.nic))

    def said_by_both(self, facts: TcpFlow, segment: Segment) -> bytes:
        """The front of what it says."""
        body = segment.packet.body
        parts = (replace(segment, packet=replace(segment.packet, body=body[:length], flags=wire.ACK))
                 for length in range(len(body), 0, -1))  # fmt: skip
        return next((p.packet.body for p in parts if facts.content_matches(p) and facts.is_contiguous(p)), b"")

    def build_ack(self, like: Item, inc: Incarnation, ack: int) -> bytes:
        return self.build(like, inc.released_end or 0, ack)

    def build(self, like: Item, start: int, ack: int, body: bytes = b"") -> bytes:
        packet, key = like.packet, like.packet.key
        path = wire.Path(key.family, key.src, key.dst, key.sport, key.dport, key.vlans)
        stamps = packet.timestamps
        noise = wire.Noise(window=packet.window, tsval=stamps[0] if stamps else 0, tsecr=stamps[1] if stamps else 0)
        options = wire.Options(timestamps=stamps is not None)
        return wire.tcp(path, start, ack, wire.ACK, body, options=options, noise=noise)

    # ---- epochs

    def is_before(self, item: Item, resumed: int) -> bool:
        return item.time < resumed

    def is_stale(self, item: Item, resumed: int) -> bool:
        return item.time < resumed and not self.config.keep_gap

    def flush(self, resumed: int) -> None:
        while True:
            ready = [track for track in self.tracks.values() if track.queue and self.is_before(track.queue[0], resumed)]
            if not ready:
                return
            self.release_first(min(ready, key=lambda track: track.queue[0].name), Reason.COMMITTED)

    def forget(self, track: Track) -> None:
        track.facts.commit()
        track.theirs = []
        track.overtaken_since = None
        track.gap = None
        track.diverged = False

    def new_epoch(self) -> None:
        self.epoch += 1
        self.epoch_began = self.now
        self.wanted = False
        self.limits = set()

    # ---- events

    def want(self, cause: Cause) -> None:
        if not self.wanted:
            self.wanted = True
            self.events.append(Want(cause, self.epoch))

    def limit_reached(self, cause: Cause) -> None:
        if cause not in self.limits:
            self.limits.add(cause)
            self.events.append(Limit(cause, self.epoch))
        self.want(cause)

    def look_for_divergence(self, track: Track) -> None:
        if track.diverged:
            return
        if isinstance(track.facts, DatagramFlow):
            self.look_for_overtaken(track, track.facts)
            return
        facts = track.facts
        conflict = self.first_contradiction(track, facts)
        if conflict is not None:
            self.diverge(track, Cause.CONFLICT, conflict[1] - (conflict[0].zero or 0))
            return
        difference = self.first_difference(facts)
        if difference is not None:
            inc, position = difference
            self.diverge(track, Cause.PAYLOAD, position - (inc.zero or 0), *self.evidence(inc, position))
        elif facts.fin_differs():
            self.diverge(track, Cause.FIN)
        elif facts.begins_earlier():
            self.diverge(track, Cause.MID_STREAM)
        elif facts.syn_differs():
            self.diverge(track, Cause.SYN_OPTIONS)

    def first_contradiction(self, track: Track, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        return facts.first_contradiction([item.segment for item in track.queue if item.segment is not None])

    def first_difference(self, facts: TcpFlow) -> tuple[Incarnation, int] | None:
        return facts.first_difference()

    def evidence(self, inc: Incarnation, position: int) -> tuple[int, bytes, bytes]:
        context = 0
        while context < 16 and all(position - context - 1 in said.data for said in inc.said):
            context += 1
        both = []
        for said in inc.said:
            at, window = position - context, b""
            while len(window) < 96 and at in said.data:
                window += bytes([said.data[at]])
                at += 1
            both.append(window)
        return context, both[PRIMARY], both[SECONDARY]

    def look_for_overtaken(self, track: Track, facts: DatagramFlow) -> None:
        bodies = [datagram for item in track.queue for datagram in facts.essence(item.packet)]
        ours_passed = bool(bodies) and bodies[0] not in facts.waiting and any(b in facts.waiting for b in bodies[1:])
        if not ours_passed:
            track.overtaken_since = None
        elif track.overtaken_since is None:
            track.overtaken_since = self.now
        elif self.now - track.overtaken_since >= self.config.reorder_window:
            self.diverge(track, Cause.DATAGRAM, 0, 0, track.queue[0].packet.body[:96], b"")

    def watch_gap(self, track: Track, facts: TcpFlow, now: int) -> None:
        first = next((item.segment for item in track.queue if item.segment), None)
        position = None if first is None else facts.gap(first.incarnation)
        if first is None or position is None:
            track.gap = None
        elif track.gap != (first.incarnation, position):
            track.gap, track.gap_since = (first.incarnation, position), self.gap_begins(track, now)

    def gap_begins(self, track: Track, now: int) -> int:
        return now

    def gap_times(self) -> list[int]:
        return [track.gap_since for track in self.tracks.values() if track.gap and not track.diverged]

    def diverge(
        self, track: Track, cause: Cause, offset: int = 0, context: int = 0, ours: bytes = b"", theirs: bytes = b""
    ) -> None:
        track.diverged = True
        self.events.append(Diverged(cause, self.epoch, track.facts.key, offset, context, ours, theirs))
        self.want(cause)

    def is_answered(self, track: Track, item: Item) -> bool:
        if isinstance(track.facts, TcpFlow):
            assert item.segment is not None
            return track.facts.is_answered(item.segment)
        bag = track.facts.bag()
        bag.subtract(datagram for queued in track.queue for datagram in track.facts.essence(queued.packet))
        return all(bag[datagram] <= 0 for datagram in track.facts.essence(item.packet))

    def owed_times(self, track: Track) -> list[int]:
        if isinstance(track.facts, DatagramFlow):
            return []
        return [time for inc in track.facts.incarnations.values() for _, time in inc.owed]
