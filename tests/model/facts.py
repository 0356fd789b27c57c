# SPDX-License-Identifier: Apache-2.0
"""What has been fed, and which epoch it belongs to: all that the oracle judges by."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from coloproxy.rules import Policy
from model.flow import PRIMARY, SECONDARY, DatagramFlow, Segment, TcpFlow
from model.packet import PASSED_BY_DEFAULT, Cls, Key, Packet, parse
from model.rules import policy_of
from model.verdict import Cause, Config, Diverged, Reason, Want

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
        self.inside: dict[int, Held] = {}  # every frame that has not come back
        self.gone: set[int] = set()
        self.renewed: set[Key] = set()  # see _forget_renewed
        self.gap: list[Held] = []  # read while stopped: their epoch is not known yet
        self.unanswered: list[Held] = []  # the secondary's, of this epoch, perhaps not yet said by the primary
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
        self.event_epochs: dict[int, int] = {}  # the implementation's epoch number -> ours
        self.epoch = 0
        self.overdue: dict[Cause, bool] = {}
        self.was_refused = False
        # for tests to ask
        self.history: list[Held] = []
        self.divergences: list[Diverged] = []
        self.timeouts: list[Diverged] = []
        self.wants: list[Want] = []
        self.released: list[tuple[int, bytes, Reason]] = []
        self.emitted: list[bytes] = []

    def policy(self, key: Key) -> Policy:
        return policy_of(self.config.rules, self.passed, key)

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
        if side == PRIMARY:
            flow = self._flow(packet.key)
            if isinstance(flow, TcpFlow) and self.mode != ALONE:
                held.segment = flow.place(PRIMARY, packet)
            self.queues[packet.key].append(held)
        if self.mode == STOPPED:
            self.gap.append(held)
        elif self.mode == PROTECTED:
            self._say(held)

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
                self._say(held)
        for queue in self.queues.values():
            for held in queue:
                held.committed |= held.time < resumed
        for flow in self.flows.values():
            flow.commit()
        self._forget_renewed()
        self.mode = PROTECTED
        self._new_epoch(now)
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
                if held.side == PRIMARY:
                    self._say(held)
        self.gap = []
        self.mode = ALONE
        for flow in self.flows.values():
            flow.commit()
        self._new_epoch(now)

    @property
    def _compared(self) -> bool:
        return self.mode == PROTECTED or (self.mode == STOPPED and self.before_stop == PROTECTED)

    def _forget_renewed(self) -> None:
        """Where a new connection waited behind frames of the old, an implementation may begin in mid-stream: it
        knows nothing of what was covered."""
        for key, queue in self.queues.items():
            began = {held.segment.incarnation for held in queue if held.segment is not None and held.committed}
            if len(began) > 1:
                self.renewed.add(key)

    def _step(self, now: int) -> None:
        self.now = now
        self.was_refused = False
        latest = now - self.config.compare_timeout
        held = any(h.time <= latest for queue in self.queues.values() for h in queue)
        owed = any(t <= latest for f in self._tcp_flows() for i in f.incarnations.values() for _, t in i.owed)
        theirs = any(h.time <= latest and (h.name in self.inside or self._is_unanswered(h)) for h in self.unanswered)
        self.overdue = {
            Cause.PRIMARY_TIMEOUT: held,
            Cause.ACK_TIMEOUT: held or owed,
            Cause.SECONDARY_TIMEOUT: theirs,
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

    def _flow(self, key: Key) -> TcpFlow | DatagramFlow:
        if key not in self.flows:
            self.flows[key] = TcpFlow(key) if key.cls == Cls.TCP else DatagramFlow(key)
        return self.flows[key]

    def _tcp_flows(self) -> Iterable[TcpFlow]:
        return (flow for flow in self.flows.values() if isinstance(flow, TcpFlow))

    def _say(self, held: Held) -> None:
        flow = self._flow(held.packet.key)
        if isinstance(flow, TcpFlow):
            if held.segment is None:
                held.segment = flow.place(held.side, held.packet)
            flow.step = self.step_number
            flow.say(held.side, held.segment)
        elif held.side == SECONDARY:
            flow.say(held.packet)
        if held.side == SECONDARY:
            self.unanswered.append(held)

    def _is_unanswered(self, held: Held) -> bool:
        """The secondary said there what the primary has not said, and no commit covers."""
        flow = self._flow(held.packet.key)
        if isinstance(flow, DatagramFlow):
            bag = flow.bag()
            bag.subtract((h.packet.tag, h.packet.body) for h in self.queues[held.packet.key])
            what = (held.packet.tag, held.packet.body)
            later = self.unanswered[self.unanswered.index(held) + 1 :]
            same = sum((h.packet.key, h.packet.tag, h.packet.body) == (flow.key, *what) for h in later)
            return bag[what] > same  # of equal ones the first have been answered
        assert held.segment is not None
        return not flow.is_answered(held.segment)
