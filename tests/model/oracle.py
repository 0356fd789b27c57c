# SPDX-License-Identifier: Apache-2.0
"""Watches a schedule and what an implementation does, and raises Violation when a rule of DESIGN.md is broken.

The oracle predicts no sequence of actions. It keeps the facts (flow.py) and judges:

    R1         nothing left that the secondary had not said, no commit covers, with a secondary present
    R2         nothing is lost: commit and alone release all they cover, and every frame comes back
    R3         what the secondary said in an earlier epoch released nothing
    R4         each frame once, and in the order of its flow
    live       what could leave, left; what both acknowledged, the client has been told
    bytes      frames leave as they came, but for a lowered ACK number, with right checksums
    events     divergences are true, found, and told once; one checkpoint is asked for in an epoch
    limits     the comparator never holds more than it may

Call, in this order, for each step: the fact (feed, stop, ...), then observe() with the actions and events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import wire

from coloproxy.rules import Policy
from model.events import EventJudge
from model.facts import ALONE, PROTECTED, STOPPED, Held
from model.flow import PRIMARY, SECONDARY, DatagramFlow, Incarnation, Segment, TcpFlow, near
from model.packet import Cls, Key, Packet, parse
from model.verdict import Action, Cause, Discard, Emit, Event, Limit, Reason, Release, Violation, Want


class Oracle(EventJudge):
    def observe(self, actions: Iterable[Action], events: Iterable[Event]) -> None:
        """What the implementation did in answer to the last fact."""
        events = list(events)
        told = self.limits | {event.cause for event in events if isinstance(event, Limit)}
        for action in actions:
            if self.leaving and not (isinstance(action, Release) and action.name == self.leaving[0].name):
                raise Violation("R4", f"{action} came before fragment {self.leaving[0].name} of the same datagram")
            if isinstance(action, Release):
                self._judge_release(action)
            elif isinstance(action, Discard):
                self._judge_discard(action, told)
            elif self.strict:
                self._judge_emit(action)
        if self.leaving:
            raise Violation("R2", f"fragment {self.leaving[0].name} stayed behind when its datagram left")
        for event in sorted(events, key=lambda event: isinstance(event, Want)):  # reasons first
            self._judge_event(event)
        if self.mode == PROTECTED:
            for flow in self._tcp_flows():
                self._watch_gap(flow, self.now)
        self._judge_limits()
        self._judge_nothing_lost()
        if self.live:
            self._judge_progress()
        if self.live and self.mode == PROTECTED:
            self._judge_divergences_found()
        self.settled_divergence = set(self.diverged)
        self.step_number += 1

    def _judge_release(self, action: Release) -> None:
        held = self.inside.get(action.name)
        if held is None:
            how = "twice" if action.name in self.gone else "that was never fed"
            raise Violation("R4", f"frame {action.name} was released {how}")
        if held.side != PRIMARY:
            raise Violation("R1", f"frame {action.name} of the secondary was released")
        del self.inside[action.name]
        self.gone.add(action.name)
        self.released.append((action.name, action.data, action.reason))
        if self.policy(held.packet.key) == Policy.PASS:
            self._unchanged(held, action)
            if action.reason != Reason.PASSED and self.mode != ALONE:
                raise Violation("events", f"frame {action.name} passed for the reason {action.reason.name}")
            return
        if held.packet.cls == Cls.FRAGMENT:
            self._judge_fragment(held, action)
        else:
            self._judge_datagram(held, action)

    def _judge_fragment(self, held: Held, action: Release) -> None:
        """A datagram's fragments leave together, in order of arrival; those of none leave uncompared only."""
        self._unchanged(held, action)
        if held.whole is None:
            self._judge_reason(held, action)
            return
        whole = held.whole
        if self.leaving:
            self.leaving.popleft()
        elif whole.frames[0] is not held:
            raise Violation("R4", f"fragment {held.name} overtook fragment {whole.frames[0].name} of its datagram")
        else:
            self.leaving = deque(whole.frames[1:])
            action = Release(held.name, whole.data, action.reason)
            if self.policy(whole.packet.key) != Policy.PASS:
                self._judge_datagram(whole, action)
            elif action.reason != Reason.PASSED:
                raise Violation("events", f"datagram {held.name} passed for the reason {action.reason.name}")

    def _judge_datagram(self, held: Held, action: Release) -> None:
        queue = self.queues[held.packet.key]
        if queue[0] is not held:
            raise Violation("R4", f"frame {action.name} overtook frame {queue[0].name} of its flow")
        queue.popleft()
        self._judge_reason(held, action)
        if not held.packet.rst:
            self.latest[held.packet.key] = held.packet
        if held.segment is not None:
            self._client_got(held, held.segment, action)

    def _judge_reason(self, held: Held, action: Release) -> None:
        if action.reason == Reason.PASSED:
            raise Violation("R1", f"frame {action.name} of class {held.packet.cls.name} was passed")
        if self.mode == ALONE:
            self._unchanged(held, action)
            if action.reason != Reason.ALONE:
                raise Violation("events", f"frame {action.name} released {action.reason.name} without a secondary")
        elif held.committed:
            self._unchanged(held, action)
            if action.reason != Reason.COMMITTED:
                raise Violation("events", f"frame {action.name} released {action.reason.name} by a commit")
        elif self.mode == STOPPED:
            raise Violation("R1", f"frame {action.name} left while the VMs stood still")
        elif self.policy(held.packet.key) == Policy.DROP_SECONDARY:
            raise Violation("R1", f"frame {action.name} left, and by the rules nothing but a commit covers it")
        elif action.reason != Reason.MATCHED:
            raise Violation("R1", f"frame {action.name} released {action.reason.name}, but no commit covers it")
        elif self.strict:
            self._judge_match(held, action)

    def _judge_match(self, held: Held, action: Release) -> None:
        if held.packet.cls == Cls.FRAGMENT and not held.frames:
            raise Violation("R1", f"fragment {action.name} left, and its datagram is not whole")
        flow = self._flow(held.packet.key)
        told = self.diverged.get(held.packet.key) if held.packet.key in self.settled_divergence else None
        if told is not None and told.cause != Cause.RST and not held.packet.pure_ack:
            raise Violation("R1", f"frame {action.name} left though its flow waits for a checkpoint")
        if isinstance(flow, DatagramFlow):
            self._unchanged(held, action)
            if not flow.matches(held.packet):
                raise Violation("R1", f"datagram {action.name} left, and the secondary has not said it in this epoch")
            flow.use(held.packet)
            return
        assert held.segment is not None
        if not flow.content_matches(held.segment, before=self.step_number):
            raise Violation("R1", f"frame {action.name} left, and the secondary has not said all of it in this epoch")
        inc = flow.incarnation(held.segment.incarnation)
        limit = flow.ack_limit(held.segment)
        ack = self._ack_as_sent(held, action)
        if held.segment.ack is None or held.packet.rst:
            return
        if limit is None or ack > limit:
            raise Violation("R1", f"frame {action.name} told the client ACK {ack}, the secondary's is {limit}")
        if ack != held.segment.ack:
            packet = held.packet
            if packet.syn or packet.rst or packet.auth:
                raise Violation("bytes", f"frame {action.name} may not have its ACK number lowered")
            flow.step = self.step_number
            floor = flow.ack_floor(held.segment)
            if floor is not None and ack < floor and self.live and flow.key not in self.fragmented:
                raise Violation("live", f"frame {action.name} left with ACK {ack}, it could have had {floor}")
            inc.owed.append((held.segment.ack, held.time))

    def _ack_as_sent(self, held: Held, action: Release) -> int:
        """Checks that the frame is itself but for a lowered ACK; returns that ACK, in positions."""
        assert held.segment is not None
        packet = held.packet
        sent = parse(_like(held.data, action.data))
        if sent.key != packet.key or len(action.data) != len(held.data):
            raise Violation("bytes", f"frame {action.name} is no longer itself")
        if sent.ack == packet.ack:
            self._unchanged(held, action)
            return held.segment.ack or 0
        lowered = (packet.ack - sent.ack) % 2**32
        if not packet.acks or lowered >= 2**31:
            raise Violation("R1", f"frame {action.name}: the ACK number was raised")
        ack_at, csum_at = packet.l4 + 8, packet.l4 + 16
        rest = bytearray(action.data)
        rest[ack_at : ack_at + 4] = held.data[ack_at : ack_at + 4]
        if rest[csum_at : csum_at + 2] != held.data[csum_at : csum_at + 2] and packet.partial:
            raise Violation("bytes", f"frame {action.name}: a checksum that is completed later was touched")
        rest[csum_at : csum_at + 2] = held.data[csum_at : csum_at + 2]
        if bytes(rest) != bytes(held.data):
            raise Violation("bytes", f"frame {action.name}: more than the ACK number was changed")
        if packet.checksums_ok and not sent.checksums_ok:
            raise Violation("bytes", f"frame {action.name}: the checksum is wrong after lowering")
        assert held.segment.ack is not None
        return held.segment.ack - lowered

    def _unchanged(self, held: Held, action: Release) -> None:
        if bytes(action.data) != bytes(held.data):
            raise Violation("bytes", f"frame {action.name} was changed")

    def _client_got(self, held: Held, segment: Segment, action: Release) -> None:
        flow = self._flow(held.packet.key)
        assert isinstance(flow, TcpFlow)
        inc = flow.incarnation(segment.incarnation)
        if segment.ack is not None and not held.packet.rst:
            ack = segment.ack - (held.packet.ack - parse(_like(held.data, action.data)).ack) % 2**32
            inc.told = ack if inc.told is None else max(inc.told, ack)
        if not held.packet.rst:
            inc.released_end = segment.end if inc.released_end is None else max(inc.released_end, segment.end)

    def _judge_discard(self, action: Discard, told: set[Cause]) -> None:
        held = self.inside.pop(action.name, None)
        if held is None:
            raise Violation("R4", f"frame {action.name} was given back, but it is not inside")
        self.gone.add(action.name)
        if held.side != SECONDARY:
            raise Violation("R2", f"frame {action.name} of the primary was discarded")
        if held.packet.cls == Cls.FRAGMENT:
            since = self.reassembly[SECONDARY].since(held)
            if since is None:
                return
            if self.live and self.now - since < self.config.compare_timeout and Cause.LIMIT_FRAGMENTS not in told:
                raise Violation("live", f"fragment {action.name} was dropped while its datagram could become whole")
            self.reassembly[SECONDARY].remove(held)

    def _judge_emit(self, action: Emit) -> None:
        packet = parse(wire.of_nic(action.data, action.nic, action.vnet_len))
        flow = self.flows.get(packet.key)
        if not isinstance(flow, TcpFlow):
            raise Violation("bytes", "a frame of no known TCP flow was emitted")
        self.emitted.append(action.data)
        if packet.flags != wire.ACK:
            raise Violation("bytes", f"what was emitted has more flags than ACK ({packet.flags:#x})")
        if not packet.checksums_ok:
            raise Violation("bytes", "an emitted segment has a wrong checksum")
        latest = self.latest.get(packet.key)
        if latest is None:
            raise Violation("bytes", "an ACK was emitted on a flow of which nothing has left")
        if packet.key in self.fragmented:
            return
        if packet.body:
            self._judge_part(flow, packet)
            return
        inc = flow.incarnation(self._newest_released(flow))
        self._judge_emitted_numbers(flow, inc, packet, latest)

    def _judge_part(self, flow: TcpFlow, packet: Packet) -> None:
        """Part of a held frame, which the primary has repeated: it says what both have said."""
        waiting = next((h for h in self.queues[packet.key] if h.segment and h.segment.has_range), None)
        if self.mode != PROTECTED or self.policy(packet.key) != Policy.COMPARE or packet.key in self.settled_divergence:
            raise Violation("R1", "part of a frame was emitted, and nothing but a commit covers it")
        number = waiting.segment.incarnation if waiting and waiting.segment else -1
        inc = flow.incarnation(number)
        reference = inc.reference[PRIMARY]
        if waiting is None or reference is None or inc.told is None:
            raise Violation("bytes", "part of a frame was emitted, and no frame waits")
        part = Segment(packet, number, near(reference, packet.seq), inc.told)
        ever = [inc.ever.get(position) for position in range(part.start, part.end)]
        if ever != list(packet.body):
            raise Violation(
                "R1", f"{len(packet.body)} bytes at {part.start} were emitted that the primary has not said"
            )
        if not flow.content_matches(part, before=self.step_number):
            raise Violation(
                "R1", f"{len(packet.body)} bytes at {part.start} were emitted that the secondary has not said"
            )
        if packet.ack != inc.told % 2**32 or packet.sack:
            raise Violation("R1", f"part of a frame was emitted with ACK {packet.ack}, the client was told {inc.told}")
        ours = waiting.packet.timestamps
        if (ours and ours[0]) != (packet.timestamps and packet.timestamps[0]):
            raise Violation(
                "bytes", f"part of {waiting.name} was emitted with timestamps {packet.timestamps}, not {ours}"
            )
        if packet.timestamps and ours and packet.timestamps[1] not in {ours[1], *inc.echoes}:
            raise Violation("bytes", f"part of {waiting.name} was emitted with an echo that neither sent")
        inc.released_end = part.end if inc.released_end is None else max(inc.released_end, part.end)

    def _newest_released(self, flow: TcpFlow) -> int:
        return max(number for number, inc in flow.incarnations.items() if inc.told is not None)

    def _judge_emitted_numbers(self, flow: TcpFlow, inc: Incarnation, packet: Packet, latest: Packet) -> None:
        assert inc.told is not None
        ack = inc.told + (packet.ack - inc.told) % 2**32
        limit = inc.said[SECONDARY].ack
        if self.mode == ALONE:
            limit = inc.ack_ever
        if ack == inc.told and packet.sack and inc.floor_step == self.step_number and (ack, packet.sack) in inc.repeats:
            inc.repeats.remove((ack, packet.sack))  # the secondary misses a segment: said in the primary's name
        elif ack - inc.told >= 2**31 or ack == inc.told or packet.sack:
            raise Violation("bytes", f"an ACK was emitted that tells the client nothing: told {inc.told}, {packet.ack}")
        if inc.ack_ever is None or ack > inc.ack_ever:
            raise Violation("R1", f"ACK {ack} was emitted, the primary's is {inc.ack_ever}")
        if limit is None or ack > limit:
            raise Violation("R1", f"ACK {ack} was emitted, the secondary's is {limit}")
        if self.mode == STOPPED:
            raise Violation("R1", "an ACK was emitted while the VMs stood still")
        if inc.released_end is not None and packet.seq != inc.released_end % 2**32:
            raise Violation("bytes", f"an ACK was emitted at {packet.seq}, the stream is at {inc.released_end % 2**32}")
        self._judge_emitted_timestamps(inc, packet, latest)
        inc.told = ack

    def _judge_emitted_timestamps(self, inc: Incarnation, packet: Packet, latest: Packet) -> None:
        """The primary's own value, of what has left or is about to; the echo is its, or one of the secondary's."""
        waiting = [held.packet.timestamps for held in self.queues[packet.key] if held.packet.pure_ack]
        good = [latest.timestamps, *waiting]
        if packet.timestamps in good:
            return
        values = {stamps[0] for stamps in good if stamps}
        if packet.timestamps is None or packet.timestamps[0] not in values or packet.timestamps[1] not in inc.echoes:
            raise Violation("bytes", f"an ACK was emitted with timestamps {packet.timestamps}, not {latest.timestamps}")

    # ---- what must have happened

    def _judge_nothing_lost(self) -> None:
        for held in self.inside.values():
            if held.side == PRIMARY and held.committed:
                raise Violation("R2", f"frame {held.name} was not released by the commit that covers it")
            if self.mode == ALONE:
                raise Violation("R2", f"frame {held.name} is still inside without a secondary")
            policy = self.policy((held.whole or held).packet.key)
            if policy == Policy.PASS and self.mode != STOPPED:
                raise Violation("live", f"frame {held.name} of class {held.packet.cls.name} did not pass")
            if policy == Policy.DROP_SECONDARY and held.side == SECONDARY:
                raise Violation("live", f"frame {held.name} proves nothing, and is kept")

    def _judge_progress(self) -> None:
        if self.limits & {Cause.LIMIT_FLOWS, Cause.LIMIT_FLOW_FRAMES, Cause.LIMIT_FLOW_BYTES, Cause.LIMIT_FRAGMENTS}:
            return  # the secondary's frames may have been thrown away: the checkpoint makes it good
        if self.mode == PROTECTED:
            for key, queue in self.queues.items():
                if queue and self.policy(key) == Policy.DROP_SECONDARY:
                    if self.wanted is None:
                        raise Violation("live", f"frame {queue[0].name} waits for a commit, and none is asked for")
                elif queue and key not in self.diverged and key not in self.fragmented:
                    self._judge_head(key, queue)
        if self.mode != STOPPED:
            for flow in self._tcp_flows():
                compared = self.policy(flow.key) == Policy.COMPARE
                if compared and flow.key not in self.diverged and flow.key not in self.fragmented:
                    self._judge_told(flow)

    def _judge_head(self, key: Key, queue: deque[Held]) -> None:
        flow = self._flow(key)
        head = queue[0]
        if isinstance(flow, DatagramFlow):
            if flow.matches_within(head.packet, self.config.reorder_frames // 2):
                raise Violation("live", f"datagram {head.name} is held though the secondary has said it")
            return
        waiting = False  # a pure ACK above the secondary's is first; it leaves only before a matched data frame
        for held in queue:
            segment = held.segment
            assert segment is not None
            packet, limit = held.packet, flow.ack_limit(segment)
            if flow.tolerances and not flow.is_contiguous(segment):
                return  # what may differ there shows only when the gap is closed
            if segment.incarnation != head.segment.incarnation:  # type: ignore[union-attr]
                return
            if not flow.content_matches(segment) or (packet.rst and not flow.reset_is_due(segment)):
                return
            covered = segment.ack is None or packet.rst or (limit is not None and segment.ack <= limit)
            lowerable = limit is not None and not (packet.syn or packet.rst or packet.auth)
            if (covered and not waiting) or (lowerable and not packet.pure_ack):
                raise Violation("live", f"frame {head.name} is held though frame {held.name} behind it could leave")
            if not lowerable:
                return
            waiting = True

    def _judge_told(self, flow: TcpFlow) -> None:
        for number, inc in flow.incarnations.items():
            if inc.told is None or number != self._newest_released(flow):
                continue
            owed = [ack for ack, _ in inc.owed]
            queue = self.queues[flow.key]
            head = queue[0].segment if queue else None
            if head is not None and head.packet.pure_ack and head.incarnation == number and head.ack is not None:
                owed.append(head.ack)
            if not owed:
                continue
            limit = inc.ack_ever if self.mode == ALONE else inc.said[SECONDARY].ack
            if limit is not None and inc.told < min(max(owed), limit):
                raise Violation("live", f"both acknowledged {min(max(owed), limit)}, the client was told {inc.told}")
            if inc.told >= max(owed):
                inc.owed = []

    def _judge_limits(self) -> None:
        frames = len(self.inside)
        size = sum(len(held.data) for held in self.inside.values())
        if frames > self.config.max_frames or size > self.config.max_bytes:
            raise Violation("limits", f"{frames} frames of {size} bytes are inside")


def _like(original: bytes, data: bytes) -> bytes:
    """`data`, with the virtio-net header and the NIC that `original` has."""
    return wire.of_nic(data, wire.nic_of(original), wire.vnet_len(original))
