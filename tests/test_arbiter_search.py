# SPDX-License-Identifier: Apache-2.0
"""Two hosts claim, crash and lose answers at random: never two winners of one generation; and one as soon as it heals.

The same scripts run against etcd in memory, in virtual time, many of them; and against the real one, fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from arbiter_world import Fate, How, MemoryEtcd, Network, VirtualLoop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coloproxy.arbiter import Claim, EtcdArbiter, EtcdOptions, Ruling, Verdict
from coloproxy.arbiter.claim import HOSTS, Host, Role
from coloproxy.arbiter.etcd_record import Owner
from coloproxy.testbed.etcd import Etcd, loopback_members
from coloproxy.testbed.programs import find_program

PAIR = "web"


@dataclass(frozen=True)
class Act:
    """What one host does in a round.

    start: it claims so long after the round's begin, in attempts' time-outs.
    crash: its coloproxy dies so long after that, and is started again; None: it doesn't.
    twice: it has two claims under way at once (the old coloproxy's and the new one's, say).
    records: it says as well where it stands, if it was the owner there.
    rejoins: whoever has lost takes the winner's generation at the end of the round; else it stays where it was.
    """

    start: float
    crash: float | None
    twice: bool
    records: bool
    rejoins: bool


@dataclass(frozen=True)
class Round:
    a: Act
    b: Act
    handover: bool  # before the claims, where both are at one generation: the owner declares that the other is it now


@dataclass(frozen=True)
class Script:
    fates: tuple[Fate, ...]
    rounds: tuple[Round, ...]


@dataclass
class Seen:
    """What has come of it."""

    winners: dict[int, set[str]] = field(default_factory=dict)
    unknown: int = 0

    def won(self, generation: int, host: str) -> None:
        self.winners.setdefault(generation, set()).add(host)


Make = Callable[[EtcdOptions, httpx.AsyncBaseTransport], EtcdArbiter]

delays = st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.1, 3.0, 9.0])
hows: st.SearchStrategy[How] = st.sampled_from(["well", "well", "lost", "broken", "twice", "refused"])
fates = st.builds(Fate, hows, delays, delays)
acts = st.builds(Act, delays, st.none() | delays, st.booleans(), st.booleans(), st.booleans())
rounds = st.builds(Round, acts, acts, st.booleans())
scripts = st.builds(
    Script,
    st.lists(fates, max_size=40).map(tuple),
    st.lists(rounds, min_size=1, max_size=4).map(tuple),
)


class Player:
    """Plays a script. unit: s, the time-out of an attempt, which all of a script's times are multiples of."""

    def __init__(
        self, script: Script, inner: httpx.AsyncBaseTransport, endpoints: tuple[str, ...], unit: float, make: Make
    ) -> None:
        self._script = script
        self._unit = unit
        self._make = make
        scaled = [replace(one, before=one.before * unit, after=one.after * unit) for one in script.fates]
        self._well = Network(inner, [])
        self._network = Network(inner, scaled)
        self._options = EtcdOptions(endpoints, deadline_s=4 * unit, attempt_s=unit)
        # Where all is well, an answer must come: in its own time, for a real server has a busy machine's.
        self._patient = EtcdOptions(endpoints, deadline_s=120.0, attempt_s=60.0)
        self._disk: dict[str, int] = dict.fromkeys(HOSTS, 1)
        self._primary: Host = "a"
        self.seen = Seen()

    async def play(self) -> Seen:
        assert await self._record("a", 1, self._make(self._patient, self._well))
        self.seen.won(1, "a")
        for one in self._script.rounds:
            if one.handover and self._disk["a"] == self._disk["b"]:
                await self._hand_over()
            before = dict(self._disk)
            await asyncio.gather(self._act("a", one.a), self._act("b", one.b))
            self._end_round(one, before)
        self._network.heal()
        await self._network.settled()
        await self._last_word()
        return self.seen

    def _arbiter(self, *, patient: bool = False) -> EtcdArbiter:
        return self._make(self._patient if patient else self._options, self._network)

    async def _record(self, host: Host, generation: int, arbiter: EtcdArbiter) -> bool:
        try:
            return await arbiter.record(PAIR, host, generation)
        finally:
            await arbiter.close()

    async def _hand_over(self) -> None:
        other: Host = "b" if self._primary == "a" else "a"
        generation = self._disk["a"] + 1
        if await self._record(other, generation, self._arbiter()):
            self.seen.won(generation, other)
            self._disk = dict.fromkeys(HOSTS, generation)
            self._primary = other

    async def _act(self, host: Host, act: Act) -> None:
        await asyncio.sleep(act.start * self._unit)
        generation = self._disk[host] + 1
        rulings: list[Ruling] = []
        if act.crash is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(act.crash * self._unit):
                    rulings.append(await self._claim(host, generation))
        if act.records and host in self.seen.winners.get(self._disk[host], ()):
            await self._record(host, self._disk[host], self._arbiter())
        for _ in range(2):
            claims = [self._claim(host, generation) for _ in range(2 if act.twice else 1)]
            rulings += await asyncio.gather(*claims)
            if rulings[-1].verdict is not Verdict.UNKNOWN:
                break
        for ruling in rulings:
            self._judge(host, generation, ruling)

    async def _claim(self, host: Host, generation: int, *, patient: bool = False) -> Ruling:
        role: Role = "primary" if host == self._primary else "secondary"
        arbiter = self._arbiter(patient=patient)
        try:
            ruling = await arbiter.claim(Claim(PAIR, host, role, generation))
        finally:
            await arbiter.close()
        if ruling.verdict is Verdict.WON:
            self.seen.won(generation, host)
        return ruling

    def _judge(self, host: Host, generation: int, ruling: Ruling) -> None:
        self.seen.unknown += ruling.verdict is Verdict.UNKNOWN
        if ruling.verdict is Verdict.WON:
            assert (ruling.owner, ruling.generation) == (host, generation)
            self._disk[host] = generation
        elif ruling.verdict is Verdict.LOST:
            assert ruling.generation is not None
            assert ruling.generation > generation or (ruling.generation == generation and ruling.owner != host)

    def _end_round(self, one: Round, before: dict[str, int]) -> None:
        for host, other, act in (("a", "b", one.a), ("b", "a", one.b)):
            ahead = self._disk[other] > self._disk[host]
            if ahead and self._disk[host] == before[host] and act.rejoins:
                self._disk[host] = self._disk[other]
                self._primary = "b" if host == "a" else "a"

    async def _last_word(self) -> None:
        """The network is well: whoever asks is told, and the youngest generation's next can be won."""
        rulings = {host: await self._claim(host, self._disk[host] + 1, patient=True) for host in HOSTS}
        assert all(ruling.verdict is not Verdict.UNKNOWN for ruling in rulings.values()), rulings
        for host, ruling in rulings.items():
            again = await self._claim(host, self._disk[host] + 1, patient=True)
            assert again.verdict is ruling.verdict
        asked = await self._ask()
        assert asked.generation == max(self.seen.winners)
        assert self.seen.winners[asked.generation] == {asked.owner}

    async def _ask(self) -> Ruling:
        arbiter = self._arbiter(patient=True)
        try:
            return await arbiter.owner(PAIR)
        finally:
            await arbiter.close()


def only_one_each(seen: Seen) -> None:
    for generation, hosts in seen.winners.items():
        assert len(hosts) == 1, f"generation {generation} was won by {sorted(hosts)}"


def in_memory(script: Script, make: Make = EtcdArbiter, compares: bool = True) -> None:
    etcd = MemoryEtcd(compares)
    player = Player(script, etcd, ("http://one", "http://two"), 1.0, make)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        only_one_each(runner.run(player.play()))
    generations = [value["generation"] for _, value in etcd.history]
    assert generations == sorted(set(generations)), "a generation was written again, or lowered"


@given(scripts)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_never_two_winners(script: Script) -> None:
    in_memory(script)


BROKEN = settings(max_examples=2000, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


class Hopeful(EtcdArbiter):
    """Takes no answer for a yes."""

    async def claim(self, claim: Claim) -> Ruling:
        ruling = await super().claim(claim)
        if ruling.verdict is Verdict.UNKNOWN:
            return Ruling(Verdict.WON, claim.host, claim.generation, "", 0.0)
        return ruling


def overwrites(host: str, generation: int, found: Owner) -> bool | None:
    """A record that looks at nobody else's."""
    return True if (found.host, found.generation) == (host, generation) else None


@pytest.mark.parametrize("broken", ["etcd", "client", "record"])
def test_the_search_finds_what_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "record":
        monkeypatch.setattr("coloproxy.arbiter.etcd.decide_record", overwrites)

    @BROKEN
    @given(scripts)
    def search(script: Script) -> None:
        in_memory(script, Hopeful if broken == "client" else EtcdArbiter, broken != "etcd")

    with pytest.raises(AssertionError, match=r"won by|written again"):
        search()


@pytest.mark.skipif(
    find_program("etcd") is None, reason="NO etcd HERE: the real one was NOT tested (tools/requirements.py fetches it)"
)
def test_never_two_winners_with_the_real_etcd(tmp_path: Path) -> None:
    (member,) = loopback_members(1)
    server = Etcd(member, [member], tmp_path / "etcd")
    endpoints = (server.url, server.url.replace("127.0.0.1", "localhost"))
    count = 0

    with asyncio.Runner() as runner:
        runner.run(server.start())
        try:
            runner.run(server.wait_ready())

            @given(scripts)
            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
            def search(script: Script) -> None:
                nonlocal count
                count += 1

                async def play() -> Seen:
                    await server.ctl("del", "--prefix", "coloproxy/")
                    async with httpx.AsyncHTTPTransport() as transport:
                        return await Player(script, transport, endpoints, 0.05, EtcdArbiter).play()

                only_one_each(runner.run(play()))

            search()
        finally:
            runner.run(server.kill())
    assert count >= 25
