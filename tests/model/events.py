# SPDX-License-Identifier: Apache-2.0
"""The oracle's judgement of events: they are true, told once, and none is missing."""

from __future__ import annotations

from coloproxy.rules import Policy
from model.facts import PROTECTED, Facts
from model.flow import PRIMARY, SECONDARY, DatagramFlow, TcpFlow
from model.packet import Key
from model.rules import fits, may_stand
from model.verdict import TIMEOUTS, Cause, Diverged, Event, Limit, Tolerated, Violation, Want

SAMPLE_EVERY = 1_000_000_000

LIMIT_CAUSES = {
    Cause.LIMIT_FRAMES,
    Cause.LIMIT_BYTES,
    Cause.LIMIT_FLOWS,
    Cause.LIMIT_FLOW_FRAMES,
    Cause.LIMIT_FLOW_BYTES,
    Cause.LIMIT_FRAGMENTS,
}


class EventJudge(Facts):
    def _judge_event(self, event: Event) -> None:
        if self.event_epochs.setdefault(event.epoch, self.epoch) != self.epoch:
            raise Violation("events", f"{event} names the epoch of earlier events")
        if isinstance(event, Want):
            if self.wanted is not None:
                raise Violation("events", f"a second checkpoint is wanted in one epoch: {self.wanted}, {event}")
            self.wanted = event
            self.wants.append(event)
            self._judge_cause(event)
        elif isinstance(event, Tolerated):
            self._judge_tolerated(event)
        elif isinstance(event, Limit):
            if event.cause in self.limits or event.cause not in LIMIT_CAUSES:
                raise Violation("events", f"{event} is told twice in one epoch, or is no limit")
            self.limits.add(event.cause)
        elif event.cause in TIMEOUTS:  # has evidence too, but does not make its flow wait
            if self.timed_out is not None:
                raise Violation("events", f"a second time-out in one epoch: {event}")
            self.timed_out = event
            self.timeouts.append(event)
            if self.live:
                self._judge_timeout_true(event.cause)
        else:
            known = self.diverged.get(event.key) if event.key is not None else None
            if event.key is None or (known is not None and known is not self.timed_out):
                raise Violation("events", f"a second divergence of one flow and epoch, or one of no flow: {event}")
            if event.cause == Cause.RST and self.timed_out is None and any(self.overdue.values()):
                self.timed_out = event  # a reset that stayed alone: it may be no more than a time-out
            self.diverged[event.key] = event
            self.divergences.append(event)
            if self.live and event.key not in self.fragmented:
                self._judge_divergence(event.key, event)

    def _judge_tolerated(self, event: Tolerated) -> None:
        rules = self.config.rules.tolerances
        if event.rule >= len(rules) or not fits(rules[event.rule].match, event.key):
            raise Violation("events", f"{event}, but no such rule fits that flow")
        if self.now - self.sampled.get(event.rule, -SAMPLE_EVERY) < SAMPLE_EVERY:
            raise Violation("events", f"{event}: a second sample of one rule within a second")
        self.sampled[event.rule] = self.now
        self.tolerated.append(event)
        ours, theirs = event.primary[event.context :], event.secondary[event.context :]
        if not ours or not theirs or ours[0] == theirs[0]:
            raise Violation("events", f"{event}: the evidence shows no difference there")
        if not may_stand(rules[event.rule], ours[0]) or not may_stand(rules[event.rule], theirs[0]):
            raise Violation("events", f"{event}: that byte is not to be tolerated")

    def _judge_cause(self, event: Want) -> None:
        if event.cause in LIMIT_CAUSES:
            if event.cause not in self.limits:
                raise Violation("events", f"{event}, but no event told of that limit")
        elif event.cause == Cause.POLICY:
            if not any(queue and self.policy(key) == Policy.DROP_SECONDARY for key, queue in self.queues.items()):
                raise Violation("events", f"{event}, but no frame waits for a commit by the rules")
        elif event.cause in TIMEOUTS and not self.live:
            pass
        elif event.cause in TIMEOUTS:
            self._judge_timeout_true(event.cause)
        elif event.cause not in {d.cause for d in (*self.diverged.values(), *filter(None, [self.timed_out]))}:
            raise Violation("events", f"{event}, but no divergence told why")

    def _judge_timeout_true(self, cause: Cause) -> None:
        if not self.overdue[cause]:
            raise Violation("events", f"{cause.name} at {self.now}, but nothing has waited so long")

    def _judge_divergence(self, key: Key, event: Diverged) -> None:
        flow = self._flow(key)
        if isinstance(flow, DatagramFlow):
            if event.cause != Cause.DATAGRAM:
                raise Violation("events", f"{event} on a flow of datagrams")
            self._judge_datagram_divergence(flow, event)
        elif event.cause == Cause.PAYLOAD:
            self._judge_payload_divergence(flow, event)
        elif event.cause == Cause.FIN:
            if not flow.fin_differs():
                raise Violation("events", f"{event}, but no FIN is out of place")
        elif event.cause == Cause.SYN_OPTIONS:
            if not flow.syn_differs():
                raise Violation("events", f"{event}, but the options agree")
        elif event.cause == Cause.CONFLICT:
            self._judge_conflict(flow, event)
        elif event.cause == Cause.MID_STREAM:
            if not flow.begins_earlier():
                raise Violation("events", f"{event}, but the primary said nothing before where it was met")
        elif event.cause == Cause.RST:
            if not any(said.resets for inc in flow.incarnations.values() for said in inc.said):
                raise Violation("events", f"{event}, but nobody reset the connection")
        else:
            raise Violation("events", f"{event}: not a cause for a divergence")

    def _judge_datagram_divergence(self, flow: DatagramFlow, event: Diverged) -> None:
        queued = [datagram for h in self.queues[flow.key] for datagram in flow.essence(h.packet)]
        bag = flow.bag()
        bag.subtract(queued)
        if not any(bag.values()):
            raise Violation("events", f"{event}, but both sides said the same datagrams")

    def _judge_conflict(self, flow: TcpFlow, event: Diverged) -> None:
        """Its evidence is of one side: what came first as the primary's, what contradicts it as the secondary's."""
        if not any((inc.zero or 0) + event.offset in inc.conflicts for inc in flow.incarnations.values()):
            raise Violation("events", f"{event}, but neither side contradicted itself there")
        first, second = (evidence[event.context : event.context + 1] for evidence in (event.primary, event.secondary))
        if first and first == second:
            raise Violation("events", f"{event}: the evidence is equal at the place")

    def _judge_payload_divergence(self, flow: TcpFlow, event: Diverged) -> None:
        for inc in flow.incarnations.values():
            if inc.zero is None:
                continue
            ours, theirs = inc.said[PRIMARY].data, inc.said[SECONDARY].data
            position = inc.zero + event.offset
            if ours.get(position) == theirs.get(position) or position not in ours or position not in theirs:
                continue
            for said, evidence in ((ours, event.primary), (theirs, event.secondary)):
                for index, byte in enumerate(evidence):
                    at = position - event.context + index
                    if at in said and said[at] != byte:
                        raise Violation("events", f"{event}: evidence byte {index} is not what that side said")
                if len(evidence) <= event.context:
                    raise Violation("events", f"{event}: the evidence ends before the difference")
            return
        raise Violation("events", f"{event}, but the bytes at that offset do not differ")

    def _judge_divergences_found(self) -> None:
        for flow in self._tcp_flows():
            difference = flow.first_difference()
            if difference is None or flow.key in self.diverged:
                continue
            inc, position = difference
            raise Violation("events", f"no divergence was told of at {position - (inc.zero or 0)} of {flow.key}")
        for flow in self._tcp_flows():
            waiting = [held.segment for held in self.queues[flow.key] if held.segment and not held.committed]
            waiting = [segment for segment in waiting if segment.incarnation == waiting[0].incarnation]
            if flow.key not in self.diverged and flow.first_contradiction(waiting) is not None:
                raise Violation("events", f"no divergence was told of frames that contradict each other on {flow.key}")
        if self.diverged and self.wanted is None:
            raise Violation("events", "a divergence, and no checkpoint is wanted")
        if self.was_refused and (self.wanted is None or not self.limits):
            raise Violation("events", "frames were refused, and no limit was told of or no checkpoint is wanted")

    def judge_timeouts_found(self) -> None:
        """To be called when the implementation has had its tick, if it wanted one."""
        if self.wanted is not None or self.mode != PROTECTED or not self.live:
            return
        for key in self._overdue_gaps():
            if self.policy(key) == Policy.COMPARE and key not in self.fragmented:
                raise Violation("events", f"{key} has a gap since {self.gaps[key][2]}, and no checkpoint is wanted")
        latest = self.now - self.config.compare_timeout
        if self.epoch_began > latest:
            return
        for queue in self.queues.values():
            if queue and queue[0].time <= latest:
                raise Violation("events", f"frame {queue[0].name} has waited too long, and no checkpoint is wanted")
        for held in self._waiting_fragments(PRIMARY):
            if held.time <= latest:
                raise Violation("events", f"fragment {held.name} has waited too long, and no checkpoint is wanted")
        for held in self.unanswered:
            if held.time <= latest and self._is_unanswered(held):
                raise Violation("events", f"frame {held.name} of the secondary's was never answered, and no checkpoint "
                                          "is wanted")  # fmt: skip
