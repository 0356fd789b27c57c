# SPDX-License-Identifier: Apache-2.0
"""Two detectors, a network between them and a virtual clock: what the tests of the heartbeat play in. Times in ns."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from coloproxy.heartbeat.detector import MS, Alive, Dead, Detector, Event, Settings
from coloproxy.heartbeat.message import Host

PSK = bytes(range(32))
OTHER: dict[Host, Host] = {"a": "b", "b": "a"}

Network = Callable[[Host, int, int], Sequence[int]]
"""(sender, path, now): after how long each copy arrives; none: it is lost."""


def straight(delay: int = MS) -> Network:
    return lambda _sender, _path, _now: (delay,)


@dataclass(frozen=True)
class Stall:
    """A host doesn't run from `begin` to `end`; what comes meanwhile waits for it, or is lost (a paused host)."""

    begin: int
    end: int
    keeps: bool = True


@dataclass
class Node:
    """One host. `life` counts its processes; 0: there was none yet."""

    name: Host
    stalls: Sequence[Stall] = ()
    detector: Detector | None = None
    life: int = 0
    inbox: list[tuple[int, bytes]] = field(default_factory=list)
    events: list[tuple[int, Event]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # indices of events

    def stall(self, now: int) -> Stall | None:
        return next((stall for stall in self.stalls if stall.begin <= now < stall.end), None)

    def of(self, *kinds: type) -> list[Event]:
        return [event for _, event in self.events if isinstance(event, kinds)]

    def deaths(self) -> list[int]:
        return [at for at, event in self.events if isinstance(event, Dead)]


class World:
    """`run` plays until a time. `sent` has all datagrams: (when, sender, its life, path, datagram, arrivals)."""

    def __init__(
        self,
        network: Network | None = None,
        *,
        paths: int = 1,
        stalls: dict[Host, Sequence[Stall]] | None = None,
        **settings: int,
    ) -> None:
        self.now = 0
        self.network = network or straight()
        self.names = [f"path{i}" for i in range(paths)]
        self.nodes: dict[Host, Node] = {"a": Node("a"), "b": Node("b")}
        for name, list_ in (stalls or {}).items():
            self.nodes[name].stalls = list_
        self.sent: list[tuple[int, Host, int, int, bytes, list[int]]] = []
        self._settings = settings
        self._order = count()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        for node in self.nodes.values():
            for stall in node.stalls:
                self.at(stall.end, lambda node=node: self.read(node))  # type: ignore[misc]

    def at(self, when: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what))

    def run(self, until: int) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = until

    def start(self, *names: Host) -> None:
        """A new process on each host."""
        for name in names:
            node = self.nodes[name]
            node.life += 1
            draw = random.Random(f"{name}{node.life}").randbytes
            settings = Settings("web", name, PSK, **self._settings)
            node.detector = Detector(settings, self.names, self.now, state={"host": name}, random=draw)
            node.inbox.clear()
            node.starts.append(len(node.events))
            self._wake(node, node.life)

    def kill(self, name: Host) -> None:
        self.nodes[name].detector = None

    def of(self, name: Host) -> Detector:
        detector = self.nodes[name].detector
        assert detector is not None
        return detector

    def set_state(self, name: Host, state: dict[str, object]) -> None:
        self.of(name).set_state(state, self.now)
        self._after(self.nodes[name])

    def deliver(self, name: Host, path: int, data: bytes) -> None:
        node = self.nodes[name]
        stall = node.stall(self.now)
        if node.detector is None or (stall is not None and not stall.keeps):
            return
        node.inbox.append((path, data))
        self.read(node)

    def read(self, node: Node) -> None:
        if node.detector is None or node.stall(self.now) is not None:
            return
        inbox, node.inbox = node.inbox, []
        for path, data in inbox:
            node.detector.receive(path, data, self.now)
        self._after(node)

    def _wake(self, node: Node, life: int) -> None:
        if node.detector is None or node.life != life:
            return
        stall = node.stall(self.now)
        if stall is not None:
            self.at(stall.end, lambda: self._wake(node, life))
            return
        self.read(node)
        node.detector.tick(self.now)
        self._after(node)
        self.at(node.detector.deadline, lambda: self._wake(node, life))

    def _after(self, node: Node) -> None:
        assert node.detector is not None
        node.events += [(self.now, event) for event in node.detector.events()]
        for path, data in node.detector.datagrams():
            arrivals = [self.now + delay for delay in self.network(node.name, path, self.now)]
            self.sent.append((self.now, node.name, node.life, path, data, arrivals))
            for arrival in arrivals:
                self.at(arrival, lambda path=path, data=data: self.deliver(OTHER[node.name], path, data))  # type: ignore[misc]

    def check(self) -> None:
        """What holds in every world: verdicts alternate, but for an Alive of a new process."""
        for node in self.nodes.values():
            alive: bool | None = None
            for number, (_, event) in enumerate(node.events):
                if number in node.starts:
                    alive = None
                match event:
                    case Dead():
                        assert alive is not False, node.events
                        alive = False
                    case Alive(restarted=restarted):
                        assert not alive or restarted, node.events
                        alive = True
