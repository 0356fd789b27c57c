# SPDX-License-Identifier: Apache-2.0
"""What has been fed, and which epoch it belongs to: all that the oracle judges by."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from coloproxy.rules import Policy, Rules
from model.flow import PRIMARY, SECONDARY, DatagramFlow, Segment, TcpFlow
from model.fragments import Reassembly
from model.packet import PASSED_BY_DEFAULT, Cls, Key, Packet, parse
from model.rules import policy_of, tolerances_of
from model.verdict import Cause, Config, Diverged, Reason, Tolerated, Want

ALONE, PROTECTED, STOPPED = "alone", "protected", "stopped"


@dataclass(eq=False)
class Held:
    name: int
    side: int
    data: bytes
    packet: Packet
    time: int
    segment: Segment | None = None
    committed: bool = False
    whole: Held | None = None  # a fragment's datagram, once all of it has come
    frames: list[Held] = field(default_factory=list)  # that such a datagram came in


class Facts:
    """`strict` off: the frames may be garbage, so that numbers prove little; only R2, R4 and the limits are judged.
    `live` off: it need not be shown that what could leave has left, and what differs was told.
    """

    def __init__(
        self, config: Config, *, strict: bool = True, live: bool = True, passed: Iterable[Cls] = PASSED_BY_DEFAULT
    ) -> None:
        self.config = config
        self.strict = strict
        self.live = strict and live
        self.passed = frozenset(passed)
        self.mode = ALONE
        self.before_stop = ALONE
        self.flows: dict[Key, TcpFlow | DatagramFlow] = {}
        self.queues: dict[Key, deque[Held]] = defaultdict(deque)  # the primary's frames, in order
        self.reassembly: tuple[Reassembly[Held], Reassembly[Held]] = (Reassembly(config.max_fragments), Reassembly())
        self.inside: dict[int, Held] = {}  # every frame that has not come back
        self.gone: set[int] = set()
        self.leaving: deque[Held] = deque()  # fragments whose datagram has begun to leave
        self.fragmented: set[Key] = set()  # see _forget_fragmented
        self.gap: list[Held] = []  # read while stopped: their epoch is not known yet
        self.unanswered: list[Held] = []  # the secondary's, of this epoch, perhaps not yet said by the primary
        self.gaps: dict[Key, tuple[int, int, int]] = {}  # incarnation and position (TcpFlow.gap), and since when
        self.latest: dict[Key, Packet] = {}  # the last frame of the flow that left
        self.epoch_began = 0
        self.now = 0
        self.step_number = 0
        # of this epoch
        self.wanted: Want | None = None
        self.diverged: dict[Key, Diverged] = {}
        self.settled_divergence: set[Key] = set()  # told of in an earlier step
        self.timed_out: Diverged | None = None
        self.limits: set[Cause] = set()
        self.sampled: dict[int, int] = {}  # by rule: when a sample was told last
        self.event_epochs: dict[int, int] = {}  # the implementation's epoch number -> ours
        self.epoch = 0
        self.overdue: dict[Cause, bool] = {}
        self.was_refused = False
        # for tests to ask
        self.history: list[Held] = []
        self.divergences: list[Diverged] = []
        self.tolerated: list[Tolerated] = []
        self.timeouts: list[Diverged] = []
        self.wants: list[Want] = []
        self.released: list[tuple[int, bytes, Reason]] = []
        self.emitted: list[bytes] = []

    def policy(self, key: Key) -> Policy:
        rules = (
            Rules() if key.cls == Cls.FRAGMENT else self.config.rules
        )  # they are asked about the datagram, once whole
        return policy_of(rules, self.passed, key)

    # ---- facts

    def fed(self, side: int, name: int, data: bytes, now: int) -> None:
        self._step(now)
        packet = parse(data)
        held = Held(name, side, data, packet, now)
        self.inside[name] = held
        self.history.append(held)
        policy = self.policy(packet.key)
        if policy == Policy.PASS or (policy == Policy.DROP_SECONDARY and side == SECONDARY):
            return
        if side == PRIMARY and packet.cls != Cls.FRAGMENT:
            self._queue(held)
        if self.mode == STOPPED:
            self.gap.append(held)
        elif self.mode == PROTECTED:
            self._say(held)

    def _queue(self, held: Held) -> None:
        flow = self._flow(held.packet.key)
        if isinstance(flow, TcpFlow) and self.mode != ALONE:
            held.segment = flow.place(PRIMARY, held.packet)
        queue = self.queues[held.packet.key]
        later = sum(other.name > held.name for other in queue)  # queued, but not judged, while the VMs stood still
        queue.insert(len(queue) - later, held)

    def _take_fragment(self, held: Held) -> None:
        """It waits, or completes a datagram, which takes its place in its flow when it is whole."""
        done = self.reassembly[held.side].add(held)
        if done is None:
            return
        data, frames = done
        packet = replace(parse(data), auth=True)  # the ACK number lies in one of several frames
        whole = Held(held.name, held.side, data, packet, held.time, frames=frames)
        for frame in frames:
            frame.whole = whole
        policy = self.policy(packet.key)
        if policy == Policy.PASS or (policy == Policy.DROP_SECONDARY and held.side == SECONDARY):
            return
        if held.side == PRIMARY:
            self._queue(whole)
        self._say_whole(whole)

    def _waiting_fragments(self, side: int) -> list[Held]:
        """Those whose datagram is not whole; not what was read while stopped."""
        return [h for h in self.inside.values() if h.side == side and h.packet.cls == Cls.FRAGMENT
                and h.packet.cls not in self.passed and h.whole is None and h not in self.gap]  # fmt: skip

    def _commit_fragments(self, resumed: int, gap: list[Held]) -> list[Held]:
        """Fragments go each by its own time. Returns the primary's that no commit covers, for the new epoch."""
        for queue in self.queues.values():
            for whole in [h for h in queue if h.frames and h.time >= resumed]:
                queue.remove(whole)
                for frame in whole.frames:
                    frame.whole = None
        waiting = [held for held in self._waiting_fragments(PRIMARY) if held not in gap]
        for held in waiting:
            held.committed = held.time < resumed
            if held.committed:
                self._forget_fragmented(held)
        return [held for held in waiting if not held.committed]

    def _forget_fragmented(self, held: Held) -> None:
        """What was never whole may have been TCP: an implementation does not know what was covered."""
        key = held.packet.key
        self.fragmented |= {
            k
            for k in self.flows
            if k.cls == Cls.TCP and (k.nic, k.vlans, k.src, k.dst) == (key.nic, key.vlans, key.src, key.dst)
        }

    def refused(self, side: int, now: int) -> None:
        """The implementation took fewer frames of `side` than it was offered."""
        self._step(now)
        self.was_refused = True

    def ticked(self, now: int) -> None:
        self._step(now)

    def stopped(self, now: int) -> None:
        self._step(now)
        if self.mode == ALONE:
            self.flows = {}  # what was said without a secondary is not remembered
        if self.mode != STOPPED:
            self.before_stop, self.mode = self.mode, STOPPED

    def committed(self, resumed: int, now: int) -> None:
        self._step(now)
        gap, self.gap = self.gap, []
        if self.mode == ALONE:
            self.flows = {}
        for held in gap:
            if held.side == PRIMARY and held.time < resumed:
                if held.packet.cls == Cls.FRAGMENT:
                    held.committed = True
                    self._forget_fragmented(held)
                else:
                    self._say(held)
        again = self._commit_fragments(resumed, gap)
        for queue in self.queues.values():
            for held in queue:
                held.committed |= held.time < resumed
        for flow in self.flows.values():
            flow.commit()
        self.mode = PROTECTED
        self._new_epoch(now)
        for held in again:
            self._say(held)
        for held in gap:
            if held.time >= resumed or (held.side == SECONDARY and self.config.keep_gap):
                self._say(held)

    def aborted(self, now: int) -> None:
        self._step(now)
        if self.mode != STOPPED:
            return
        self.mode = self.before_stop
        gap, self.gap = self.gap, []
        if self.mode == PROTECTED:
            for held in gap:
                self._say(held)

    def left_alone(self, now: int) -> None:
        self._step(now)
        if self._compared:
            for held in self.gap:
                if held.side == PRIMARY and held.packet.cls != Cls.FRAGMENT:
                    self._say(held)
        self.gap = []
        self.mode = ALONE
        for flow in self.flows.values():
            flow.commit()
        self._new_epoch(now)

    @property
    def _compared(self) -> bool:
        return self.mode == PROTECTED or (self.mode == STOPPED and self.before_stop == PROTECTED)

    def _step(self, now: int) -> None:
        self.now = now
        self.was_refused = False
        latest = now - self.config.compare_timeout
        held = any(h.time <= latest for queue in self.queues.values() for h in queue)
        held = held or any(h.time <= latest for h in self._waiting_fragments(PRIMARY))
        owed = any(t <= latest for f in self._tcp_flows() for i in f.incarnations.values() for _, t in i.owed)
        theirs = any(h.time <= latest and (h.name in self.inside or self._is_unanswered(h)) for h in self.unanswered)
        self.overdue = {
            Cause.PRIMARY_TIMEOUT: held,
            Cause.ACK_TIMEOUT: held or owed,
            Cause.SECONDARY_TIMEOUT: theirs,
            Cause.GAP: bool(self.fragmented or self._overdue_gaps()),
        }

    def _new_epoch(self, now: int) -> None:
        self.epoch += 1
        self.epoch_began = now
        self.wanted = None
        self.diverged = {}
        self.settled_divergence = set()
        self.timed_out = None
        self.limits = set()
        self.unanswered = []
        self.gaps = {}
        for side in self.reassembly:
            side.clear()

    def _flow(self, key: Key) -> TcpFlow | DatagramFlow:
        if key not in self.flows:
            tolerances = tolerances_of(self.config.rules, key)
            self.flows[key] = (
                TcpFlow(key, tolerances, self.config.any_scale) if key.cls == Cls.TCP else DatagramFlow(key, tolerances)
            )
        return self.flows[key]

    def _tcp_flows(self) -> Iterable[TcpFlow]:
        return (flow for flow in self.flows.values() if isinstance(flow, TcpFlow))

    def _say(self, held: Held) -> None:
        if held.packet.cls == Cls.FRAGMENT:
            self._take_fragment(held)
        else:
            self._say_whole(held)

    def _say_whole(self, held: Held) -> None:
        flow = self._flow(held.packet.key)
        if isinstance(flow, TcpFlow):
            if held.segment is None:
                held.segment = flow.place(held.side, held.packet)
            flow.step = self.step_number
            flow.say(held.side, held.segment)
            self._watch_gap(flow, held.time)
        elif held.side == SECONDARY:
            flow.say(held.packet)
        if held.side == SECONDARY:
            self.unanswered.append(held)

    def _watch_gap(self, flow: TcpFlow, now: int) -> None:
        """Of the connection that the primary's first held frame is of: others wait, or are over."""
        waiting = (held.segment for held in self.queues[flow.key] if held.segment and not held.committed)
        first = next(waiting, None)
        position = None if first is None else flow.gap(first.incarnation)
        if first is None or position is None:
            self.gaps.pop(flow.key, None)
        elif self.gaps.get(flow.key, ())[:2] != (first.incarnation, position):
            self.gaps[flow.key] = first.incarnation, position, now

    def _overdue_gaps(self) -> list[Key]:
        latest = self.now - self.config.gap_window
        return [key for key, (_, _, since) in self.gaps.items() if since <= latest and key not in self.diverged]

    def _is_unanswered(self, held: Held) -> bool:
        """The secondary said there what the primary has not said, and no commit covers."""
        flow = self._flow(held.packet.key)
        if isinstance(flow, DatagramFlow):
            bag = flow.bag()
            bag.subtract(d for h in self.queues[held.packet.key] for d in flow.essence(h.packet))
            later = self.unanswered[self.unanswered.index(held) + 1 :]
            same = Counter(d for h in later if h.packet.key == flow.key for d in flow.essence(h.packet))
            return any(
                bag[what] > same[what] for what in flow.essence(held.packet)
            )  # of equal ones the first have been answered
        assert held.segment is not None
        return not flow.is_answered(held.segment)
