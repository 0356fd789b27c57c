# SPDX-License-Identifier: Apache-2.0
"""A tiny world: a client, two VMs that serve it, a checkpoint, and a comparator in between.

The VMs are deterministic but for events of their own and for the order in which they see requests. A checkpoint makes
the secondary's state a copy of the primary's. After every step the world asks what would be if the primary died right
now (R1 of DESIGN.md): has the client received anything that the survivor has not sent, or been told of the arrival of
anything that the survivor does not have?
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field

import wire
from conversation import EDGES, Dice, make_noise
from model.facts import PROTECTED
from model.flow import PRIMARY, SECONDARY, near
from model.fragments import Reassembly
from model.packet import Cls, Packet, parse
from model.run import Abort, Alone, Commit, Feed, Run, Step, Stop, Tick
from model.verdict import Emit, Release, Violation
from wire import Noise, Options, Path

CLOSES_AFTER = 70  # bytes of the client's
DATAGRAMS = 9  # the index of the flow of datagrams


@dataclass
class Server:
    """A VM's end of one connection."""

    isn: int
    client_isn: int
    received: int = 0  # of the client's bytes, in order
    written: bytearray = field(default_factory=bytearray)
    sent: int = 0
    closed: bool = False  # nothing more will be written
    fin_sent: bool = False
    reset: bool = False


@dataclass
class VM:
    servers: dict[int, Server] = field(default_factory=dict)
    requests: int = 0  # of all connections: the order in which they came shows in the answers
    mood: int = 0  # what deterministic computation can't foretell
    datagrams: set[bytes] = field(default_factory=set)
    idents: int = 0  # of its fragmented datagrams

    def receive(self, flow: int, start: int, end: int) -> None:
        server = self.servers.get(flow)
        if server is None or not start <= server.received < end:
            return
        for position in range(server.received, end):
            if position % 10 == 0:
                self.requests += 1
            if position % 3 == 0 and not server.closed:
                server.written += bytes((position * 11 + self.requests // 4 + self.mood + k) & 0xFF for k in range(5))
        server.received = end
        server.closed |= end >= CLOSES_AFTER

    def answer(self, number: int) -> bytes:
        body = bytes((number * 17 + self.mood + k) & 0xFF for k in range(8))
        self.datagrams.add(body)
        return body


@dataclass
class Client:
    """The client's end of one connection."""

    isn: int
    server_isn: int | None = None
    sent: int = 0
    got: dict[int, int] = field(default_factory=dict)
    fin: int | None = None
    reset: bool = False
    told: int = 0  # of its own bytes


@dataclass(frozen=True)
class Fragment:
    packet: Packet
    time: int = 0


class World:
    """`act` performs one step, chosen by a Dice; the Run feeds the comparator and its oracle."""

    def __init__(self, run: Run, dice: Dice, keep_gap: bool) -> None:
        self.run, self.dice, self.keep_gap = run, dice, keep_gap
        self.log: list[Step] = []
        self.vms = [VM(), VM()]
        self.inbox: list[deque[tuple[int, int, int]]] = [deque(), deque()]  # what the client sent: flow, start, end
        self.wires: list[deque[tuple[bytes, bool]]] = [deque(), deque()]  # frame; whether it is of the old epoch
        self.clients: dict[int, Client] = {}
        self.client_datagrams: set[bytes] = set()
        self.client_fragments: Reassembly[Fragment] = Reassembly()
        self.phase = "run"  # run, stopped, loaded, resumed
        self.resumed = 0
        self.moods = 0
        self.now = 10
        self.perform(Stop(1))
        self.perform(Commit(2, 3))

    def perform(self, step: Step) -> None:
        self.log.append(step)
        actions, _ = self.run.step(step)
        for action in actions:
            if isinstance(action, Release | Emit):
                self._client_receives(action.data)

    # ---- what may happen

    def act(self) -> None:
        self.now += self.dice.pick(1, 50)
        side = self.dice.pick(0, 1)
        index = self.dice.pick(0, 1)
        choice = self.dice.pick(0, 39)
        if choice <= 4:
            self._client_sends(index)
        elif choice == 5:
            self._client_repeats(index)
        elif choice == 6:
            number = self.dice.pick(0, 9)
            self._to_both(DATAGRAMS, number, number)
        elif choice <= 14:
            for _ in range(self.dice.pick(1, 3)):
                self._vm_reads(side)
        elif choice <= 22:
            self._vm_sends(side, index)
        elif choice <= 24:
            self._vm_repeats(side, index)
        elif choice == 25:
            self._surprise(side, index)
        elif choice <= 36:
            self._deliver(side)
        elif choice <= 38:
            self._checkpoint()
        elif self.dice.chance(8):
            self.now += 4_000_000_000
            self.perform(Tick(self.now))
        self._if_the_primary_died_now()

    def _runs(self, side: int) -> bool:
        return self.phase == "run" or self.phase == "resumed" or (self.phase == "loaded" and side == SECONDARY)

    def _client_sends(self, index: int) -> None:
        client = self.clients.get(index)
        if client is None:
            self.clients[index] = client = Client((self.dice.choose(EDGES) - 10) % 2**32)
            self._to_both(index, -1, 0)
        elif client.server_isn is not None and not client.reset:
            start, client.sent = client.sent, client.sent + self.dice.pick(1, 30)
            self._to_both(index, start, client.sent)

    def _client_repeats(self, index: int) -> None:
        client = self.clients.get(index)
        if client is not None and client.server_isn is None:
            self._to_both(index, -1, 0)
        elif client is not None and client.told < client.sent:
            self._to_both(index, client.told, client.sent)

    def _to_both(self, index: int, start: int, end: int) -> None:
        self.inbox[PRIMARY].append((index, start, end))
        self.inbox[SECONDARY].append((index, start, end))

    def _vm_reads(self, side: int) -> None:
        if not self._runs(side) or not self.inbox[side]:
            return
        index, start, end = self.inbox[side].popleft()
        if self.dice.chance(15):
            return  # lost on the way
        vm = self.vms[side]
        if index == DATAGRAMS:
            frame = wire.udp(Path(dport=999), vm.answer(start), make_noise(self.dice, side, 0))
            vm.idents += 1
            frames = wire.fragments(frame, (8,), vm.idents) if self.dice.chance(4) else [frame]
            self.wires[side].extend((frame, False) for frame in frames)
        elif start < 0:
            if index not in vm.servers:
                isn = (self.dice.choose(EDGES) - 20 + side * 2**30) % 2**32
                vm.servers[index] = Server(isn, self.clients[index].isn)
            if self.clients[index].server_isn is None:
                self._vm_sends_frame(side, index, 0, b"", wire.SYN | wire.ACK)
        else:
            vm.receive(index, start, end)

    def _vm_sends(self, side: int, index: int) -> None:
        server = self.vms[side].servers.get(index)
        if server is None or not self._runs(side) or self.clients[index].server_isn is None or server.reset:
            return
        start = server.sent
        server.sent = min(len(server.written), start + self.dice.pick(0, 40))
        flags = wire.ACK
        if server.closed and server.sent == len(server.written) and not server.fin_sent:
            server.fin_sent = True
            flags |= wire.FIN
        self._vm_sends_frame(side, index, start, bytes(server.written[start : server.sent]), flags)

    def _vm_repeats(self, side: int, index: int) -> None:
        server = self.vms[side].servers.get(index)
        if server is None or not self._runs(side) or server.reset:
            return
        if self.clients[index].server_isn is None:
            self._vm_sends_frame(side, index, 0, b"", wire.SYN | wire.ACK)
        elif server.sent:
            start = self.dice.pick(0, server.sent - 1)
            end = self.dice.pick(start + 1, server.sent)
            self._vm_sends_frame(side, index, start, bytes(server.written[start:end]), wire.ACK)

    def _vm_sends_frame(self, side: int, index: int, start: int, payload: bytes, flags: int) -> None:
        server, client = self.vms[side].servers[index], self.clients[index]
        base = server.isn + 1
        if side == SECONDARY and client.server_isn is not None:
            base = client.server_isn + 1  # the rewriter
        seq = server.isn if flags & wire.SYN else base + start
        ack = server.client_isn + 1 + server.received
        noise: Noise = make_noise(self.dice, side, len(self.log))
        options = Options(mss=1460) if flags & wire.SYN else Options()
        frame = wire.tcp(Path(dport=1000 + index), seq, ack, flags, payload, options, noise)
        self.wires[side].append((frame, False))

    def _surprise(self, side: int, index: int) -> None:
        """Something that the other VM does not do."""
        if not self._runs(side):
            return
        self.moods += 1
        server = self.vms[side].servers.get(index)
        if server is not None and self.dice.chance(6) and self.clients[index].server_isn is not None:
            server.reset = True
            self._vm_sends_frame(side, index, server.sent, b"", wire.ACK | wire.RST)
        else:
            self.vms[side].mood = 100 + self.moods

    def _deliver(self, side: int) -> None:
        queue = self.wires[side]
        frames = [queue.popleft()[0] for _ in range(min(len(queue), self.dice.pick(1, 6)))]
        if frames:
            self.perform(Feed(side, tuple(frames), self.now))

    def _checkpoint(self) -> None:
        """The next of a checkpoint's steps."""
        if self.phase == "run":
            for side in (PRIMARY, SECONDARY):
                keep = 0 if side == SECONDARY and self.keep_gap else self.dice.pick(0, 2)
                queue = self.wires[side]
                frames = [queue.popleft()[0] for _ in range(max(0, len(queue) - keep))]
                if frames:
                    self.perform(Feed(side, tuple(frames), self.now))
            self.now += 1
            self.perform(Stop(self.now))
            self.wires[SECONDARY] = deque((frame, True) for frame, _ in self.wires[SECONDARY])
            self.phase = "stopped"
        elif self.phase == "stopped" and self.dice.chance(4):
            self.wires[SECONDARY] = deque((frame, False) for frame, _ in self.wires[SECONDARY])
            self.perform(Abort(self.now))
            self.phase = "run"
        elif self.phase == "stopped":
            self.vms[SECONDARY] = copy.deepcopy(self.vms[PRIMARY])
            self.phase = "loaded"
        elif self.phase == "loaded":
            self.wires[SECONDARY] = deque((frame, old) for frame, old in self.wires[SECONDARY] if not old)
            self.resumed = self.now
            self.phase = "resumed"
        else:
            self.perform(Commit(self.resumed, self.now))
            self.phase = "run"

    def finish(self) -> None:
        """R2: a last commit, or the loss of the secondary, lets everything go."""
        for side in (PRIMARY, SECONDARY):
            frames = [frame for frame, _ in self.wires[side]]
            if frames and self.phase in ("run", "stopped"):
                self.perform(Feed(side, tuple(frames), self.now))
        if self.dice.chance(2):
            self.perform(Alone(self.now + 1))
        else:
            self.perform(Commit(self.now + 1, self.now + 1))
        if self.run.held:
            raise Violation("R2", f"{self.run.held} are held at the end")

    # ---- the client

    def _client_receives(self, data: bytes) -> None:
        packet = parse(data)
        if packet.cls == Cls.FRAGMENT:
            done = self.client_fragments.add(Fragment(packet))
            if done is None:
                return
            packet = parse(done[0])
        if packet.cls == Cls.UDP:
            self.client_datagrams.add(packet.body)
            return
        client = self.clients[packet.key.dport - 1000]
        if packet.syn and client.server_isn is None:
            client.server_isn = packet.seq
        if client.server_isn is None or packet.syn:
            return
        if packet.rst:
            client.reset = True
            return
        start = near(0, packet.seq - client.server_isn - 1)
        for index, byte in enumerate(packet.body):
            if client.got.setdefault(start + index, byte) != byte:
                raise Violation("R1", f"the client got two values for byte {start + index}")
        if packet.fin:
            client.fin = start + len(packet.body)
        client.told = max(client.told, near(0, packet.ack - client.isn - 1))

    def _if_the_primary_died_now(self) -> None:
        """R1, the property: the survivor contradicts nothing that the client knows."""
        if self.run.oracle.mode != PROTECTED and self.phase == "run":
            return
        survivor = self.vms[SECONDARY]
        if not self.client_datagrams <= survivor.datagrams:
            raise Violation("R1", "the client has a datagram that the survivor never sent")
        for index, client in self.clients.items():
            if client.server_isn is None:
                continue
            server = survivor.servers.get(index)
            if server is None:
                raise Violation("R1", f"the client has a connection {index} that the survivor does not know")
            for position, byte in client.got.items():
                if position >= server.sent or server.written[position] != byte:
                    raise Violation("R1", f"the client has byte {position} of connection {index}, the survivor has not")
            if client.told > server.received:
                raise Violation("R1", f"the client was told {client.told}, the survivor has {server.received}")
            if client.fin is not None and not (server.fin_sent and server.sent == client.fin):
                raise Violation("R1", f"the client saw connection {index} end, the survivor's goes on")
            if client.reset and not server.reset:
                raise Violation("R1", f"the client saw connection {index} reset, the survivor's goes on")
