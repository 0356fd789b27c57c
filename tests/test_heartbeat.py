# SPDX-License-Identifier: Apache-2.0
"""The heartbeat without I/O: tables of what is refused, and properties over a virtual clock."""

from __future__ import annotations

import hmac
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from heartbeat_world import OTHER, PSK, Network, Stall, World, straight
from hypothesis import given
from hypothesis import strategies as st
from strategies import profile

from coloproxy.errors import LimitError, MisuseError
from coloproxy.heartbeat import BUCKETS_NS, INTERVAL, START_TIMEOUT, STATE_MAX, TIMEOUT, Reason, Settings
from coloproxy.heartbeat.detector import (
    CHALLENGES,
    LEAST_BEATS,
    MS,
    RETIRED,
    Alive,
    Dead,
    Detector,
    PathDown,
    PathUp,
    Stalled,
    StateChanged,
)
from coloproxy.heartbeat.message import MESSAGE_MAX, Codec, Host, Message, Refusal, decode_state, encode_state
from coloproxy.heartbeat.silence import PATIENCE, Silence
from coloproxy.heartbeat.statistics import WINDOW, RoundTripMeter, Window

S = 1000 * MS
A = Settings("web", "a", PSK)
PLAIN = Message(0, b"bootboot", 1, b"n" * 16, b"e" * 16, 7, 5, 3, INTERVAL, 2, b'{"role":"primary"}')


# The message


def opened(data: bytes, *, path: int = 0, host: Host = "b", pair: str = "web", psk: bytes = PSK) -> Message | Refusal:
    return Codec(psk, pair, host).open(data, path)


@pytest.mark.parametrize(
    "message",
    [
        PLAIN,
        replace(PLAIN, state=b"{}", path=15),
        replace(PLAIN, state=b"x" * STATE_MAX),
        replace(PLAIN, seq=2**64 - 1, sent=2**64 - 1, echo_sent=2**64 - 1, echo_held=2**64 - 1, number=2**64 - 1),
    ],
    ids=["plain", "no state", "longest", "largest numbers"],
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    data = Codec(PSK, "web", "a").seal(message)
    assert len(data) <= MESSAGE_MAX
    assert opened(data, path=message.path) == message


SEALED = Codec(PSK, "web", "a").seal(PLAIN)


@pytest.mark.parametrize(
    ("result", "reason", "words"),
    [
        (opened(b""), Reason.MALFORMED, "0 bytes"),
        (opened(b"x" * 200), Reason.MALFORMED, "200 bytes"),
        (opened(SEALED + b"x"), Reason.MALFORMED, "wrong in itself"),
        (opened(SEALED[:4] + b"\x01c" + SEALED[6:]), Reason.MALFORMED, "wrong in itself"),
        (opened(SEALED.ljust(MESSAGE_MAX + 1, b"x")), Reason.MALFORMED, "no heartbeat"),
        (opened(SEALED[:4] + b"\x02" + SEALED[5:]), Reason.VERSION, "version 2 on the other side, 1 on this one"),
        (opened(SEALED[:4] + b"\x02"), Reason.VERSION, "version 2"),
        (opened(SEALED.replace(b"\x01a", b"\x09a", 1).ljust(2000)), Reason.VERSION, "version 9"),
        (opened(SEALED, pair="mail"), Reason.PAIR, "another pair than 'mail'"),
        (opened(SEALED, host="a"), Reason.REFLECTED, "are both hosts called a?"),
        (opened(SEALED, path=1), Reason.PATH, "path 0 on path 1"),
        (opened(SEALED, psk=PSK[::-1]), Reason.FORGED, "the same pre-shared key?"),
    ],
)
def test_what_is_no_message_of_the_peers(result: Message | Refusal, reason: Reason, words: str) -> None:
    assert isinstance(result, Refusal)
    assert result.reason == reason
    assert words in result.text


def test_what_one_host_has_signed_never_passes_for_the_others() -> None:
    """Even if the host's letter is another one, and a's own key has signed that."""
    turned = SEALED.replace(b"\x01a", b"\x01b", 1)[:-32]
    keys = {host: hmac.digest(PSK, b"coloproxy heartbeat 1\0" + host + b"\0web", "sha256") for host in (b"a", b"b")}
    by_a, by_b = (opened(turned + hmac.digest(keys[host], turned, "sha256"), host="a") for host in (b"a", b"b"))
    assert isinstance(by_a, Refusal)
    assert by_a.reason == Reason.FORGED
    assert by_b == PLAIN


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    for length in range(len(SEALED)):
        assert isinstance(opened(SEALED[:length]), Refusal), length
    for bit in range(len(SEALED) * 8):
        spoiled = bytearray(SEALED)
        spoiled[bit // 8] ^= 1 << bit % 8
        assert isinstance(opened(bytes(spoiled)), Refusal), bit


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b'{"a":NaN}', b'{"a":Infinity}', b"\xff{}", b"[" * STATE_MAX, b"1" * STATE_MAX, b'"a"'],
)
def test_a_state_that_is_no_object(text: bytes) -> None:
    assert decode_state(text) is None


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({"x": object()}, MisuseError),
        ({"x": float("nan")}, MisuseError),
        ({"x": "y" * STATE_MAX}, LimitError),
    ],
)
def test_a_state_that_cant_be_sent(state: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        encode_state(state)
    with pytest.raises(error):
        Detector(A, ["one"], 0, state=state)


def test_the_longest_state() -> None:
    state = {"x": "y" * (STATE_MAX - len('{"x":""}'))}
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize(
    "settings",
    [
        replace(A, interval=MS - 1),
        replace(A, timeout=LEAST_BEATS * INTERVAL - 1),
        replace(A, start_timeout=TIMEOUT - 1),
        replace(A, psk=b"short"),
        replace(A, pair=""),
        replace(A, host="c"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cant_be_used(settings: Settings) -> None:
    with pytest.raises(MisuseError):
        Detector(settings, ["one"], 0)


@pytest.mark.parametrize("paths", [[], ["one", "one"], [str(i) for i in range(17)]])
def test_paths_that_cant_be_used(paths: list[str]) -> None:
    with pytest.raises(MisuseError):
        Detector(A, paths, 0)


def test_the_key_is_not_shown() -> None:
    assert PSK.hex() not in repr(A)
    assert repr(PSK)[2:-1] not in repr(A)


# Numbers and round trips


@profile(300)
@given(st.integers(1, 2**64 - 2 * WINDOW), st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_window_against_a_set(base: int, offsets: list[int]) -> None:
    """Each number once, none that is too old; lost is what was left out and hasn't come."""
    window, seen, lost, first = Window(), set[int](), 0, 0
    for seq in (base + offset for offset in offsets):
        old = bool(seen) and (seq <= max(seen) - WINDOW or seq < first)
        assert window.seen(seq) == (seq in seen or old)
        if window.seen(seq):
            continue
        first = first or seq
        gap = window.add(seq)
        assert (gap < 0) == (bool(seen) and seq < max(seen))
        lost += gap if gap >= 0 else -1
        seen.add(seq)
        assert window.newest == max(seen)
        assert lost == len([n for n in range(first, max(seen)) if n not in seen])


def test_what_a_seal_leaves_out() -> None:
    window = Window()
    assert [window.add(seq) for seq in (10, 15, 13)] == [0, 4, -1]
    assert [seq for seq in range(20) if not window.seen(seq)] == [11, 12, 14, 16, 17, 18, 19]
    window.seal()
    assert [seq for seq in range(20) if not window.seen(seq)] == [16, 17, 18, 19]


def test_zero_is_no_number() -> None:
    assert Window().seen(0)


def test_round_trips() -> None:
    meter = RoundTripMeter()
    assert meter.snapshot().ewma is None
    for ns in (-1, 50_000, 50_001, 3 * S, 61 * S):  # the first and the last can't be
        meter.add(ns)
    trips = meter.snapshot()
    assert (trips.least, trips.most, trips.count, trips.total) == (50_000, 3 * S, 3, 100_001 + 3 * S)
    assert trips.ewma == 50_000 + ((3 * S - 50_000) >> 3)
    assert trips.histogram == (1, *(2,) * (len(BUCKETS_NS) - 1), 3)


# Silence

LIMIT, PACE = 400, 50


@pytest.mark.parametrize(
    ("steps", "deadline"),
    [
        ([], 400),
        ([("heard", 100)], 500),
        ([("heard", 100), ("heard", 90)], 500),  # the clock that was read before the sockets
        ([("stalled", 50, 300)], 650),  # 50 were listened to, 350 are left
        ([("stalled", 350, 450)], 450 + 100 + PACE),  # 50 would be left: the grace is longer
        ([("stalled", 50, 9000)], 9400),  # and never longer than the limit
        ([("stalled", 400, 9000)], 9400),
        ([("heard", 310), ("stalled", 50, 300)], 710),  # what lay in the sockets was read before
        ([("stalled", 350, 450), ("heard", 460)], 860),
        ([("stalled", 100, 200), ("stalled", 250, 300)], 300 + 250),  # 150 were listened to
        ([("stalled", 400 * i + 400, 400 * i + 400) for i in range(PATIENCE - 1)], 400 * (PATIENCE - 1) + PACE),
        ([("stalled", 400 * i + 400, 400 * i + 400) for i in range(PATIENCE)], 400 * PATIENCE),  # no grace any more
        ([("stalled", 400 * i + 400, 400 * i + 400) for i in range(PATIENCE)] + [("heard", 1700)], 2100),
    ],
)
def test_silence(steps: list[tuple[str, int]], deadline: int) -> None:
    it = Silence(LIMIT, PACE, 0)
    for name, *arguments in steps:
        getattr(it, name)(*arguments)
    assert it.deadline() == deadline
    assert not it.over(deadline - 1)
    assert it.over(deadline)


# Two detectors


def pair(network: Network | None = None, *, paths: int = 1, until: int = S) -> World:
    world = World(network, paths=paths)
    world.start("a", "b")
    world.run(until)
    return world


def test_two_meet() -> None:
    world = pair(paths=2)
    a, b = world.nodes["a"], world.nodes["b"]
    assert a.of(Alive) == [Alive(world.of("b").boot, False, INTERVAL)]
    assert b.of(Alive) == [Alive(world.of("a").boot, False, INTERVAL)]
    assert a.of(StateChanged) == [StateChanged({"host": "b"})]
    assert {event.path for event in a.of(PathUp) if isinstance(event, PathUp)} == {0, 1}
    assert a.of(Dead, PathDown, Stalled) == []
    assert a.events[-1][0] <= 10 * MS  # some round trips, and no waiting for the next beat
    stats = world.of("a").stats(world.now)
    assert stats.alive
    assert stats.boots == 1
    for path in stats.paths:
        assert path.up
        assert (path.lost, path.reordered) == (0, 0)
        assert path.received == pytest.approx(S / INTERVAL, abs=3)
        assert path.refused[Reason.UNPROVEN] <= 4
        assert path.silent_ns is not None
        assert path.silent_ns < INTERVAL


def test_round_trips_are_the_networks() -> None:
    """3 ms there, 4 ms back, and not how long the other waited for its beat."""
    world = pair(lambda sender, _path, _now: (3 * MS if sender == "a" else 4 * MS,))
    for name in OTHER:
        trips = world.of(name).stats(world.now).paths[0].rtt
        assert (trips.least, trips.ewma, trips.most) == (7 * MS, 7 * MS, 7 * MS)
        assert trips.count >= S // INTERVAL - 2
        assert trips.histogram[BUCKETS_NS.index(5 * MS)] == 0
        assert trips.histogram[BUCKETS_NS.index(10 * MS)] == trips.count


def forge(world: World, **fields: object) -> bytes:
    """What b has sent last, with other fields, and b's signature."""
    last = opened(datagrams(world, "b", 1)[-1], host="a")
    assert isinstance(last, Message)
    return Codec(PSK, "web", "b").seal(replace(last, **fields))  # type: ignore[arg-type]


def test_a_round_trip_of_another_process_is_none() -> None:
    """b may still echo the clock of our last process, of before a reboot, say: it must not spoil what comes then."""
    world = pair(until=S + 10 * MS)
    before = world.of("a").stats(world.now).paths[0].rtt
    data = forge(world, seq=1000, echo=bytes(16), echo_sent=S - MS, echo_held=0)
    assert world.of("a").receive(0, data, world.now) is None
    assert world.of("a").stats(world.now).paths[0].rtt == before
    assert world.of("a").receive(0, forge(world, seq=1001, echo_sent=S, echo_held=0), world.now) is None
    assert world.of("a").stats(world.now).paths[0].rtt.count == before.count + 1


def test_what_comes_late_is_no_sign_of_life() -> None:
    """A message that was overtaken is counted, and that is all."""
    world = pair(until=S + 10 * MS)
    world.kill("b")
    late, newest = forge(world, seq=1000), forge(world, seq=1001)
    world.at(S + 20 * MS, lambda: world.deliver("a", 0, newest))
    world.at(S + 300 * MS, lambda: world.deliver("a", 0, late))
    world.run(2 * S)
    assert world.nodes["a"].deaths() == [S + 20 * MS + TIMEOUT]
    assert world.of("a").stats(world.now).paths[0].reordered == 1


def test_a_host_that_vanishes() -> None:
    world = pair()
    world.kill("b")
    world.run(3 * S)
    (death,) = world.nodes["a"].deaths()
    assert TIMEOUT - INTERVAL <= death - S <= TIMEOUT + MS
    assert world.nodes["a"].of(Dead) == [Dead("silent on all paths: path0 for 400 ms")]
    world.start("b")
    world.run(4 * S)
    assert world.nodes["a"].of(Alive)[1:] == [Alive(world.of("b").boot, True, INTERVAL)]
    assert world.nodes["a"].of(StateChanged) == [StateChanged({"host": "b"})] * 2
    world.check()


def test_a_quick_restart_is_told_without_a_death() -> None:
    world = pair(paths=2)
    world.kill("b")
    world.run(S + 100 * MS)
    world.start("b")
    world.run(2 * S)
    assert world.nodes["a"].of(Alive)[1:] == [Alive(world.of("b").boot, True, INTERVAL)]
    assert world.nodes["a"].of(Dead, PathDown) == []
    assert world.of("a").stats(world.now).boots == 2


def test_one_path_dies_and_comes_again() -> None:
    cut = range(S, 3 * S)
    world = pair(lambda _sender, path, now: () if path == 1 and now in cut else (MS,), paths=2, until=5 * S)
    for node in world.nodes.values():
        times = [(at // (100 * MS), event.path) for at, event in node.events if isinstance(event, PathDown)]
        assert times in ([(13, 1)], [(14, 1)])
        assert [event.path for event in node.of(PathUp) if isinstance(event, PathUp)][2:] == [1]
        assert node.of(Dead) == []
        assert len(node.of(Alive)) == 1
    assert [path.downs for path in world.of("a").stats(world.now).paths] == [0, 1]


def test_the_peer_is_dead_only_when_the_last_path_is_silent() -> None:
    def network(_sender: Host, path: int, now: int) -> tuple[int, ...]:
        return () if now >= S + path * 300 * MS else (MS,)

    world = pair(network, paths=2, until=4 * S)
    (death,) = world.nodes["a"].deaths()
    assert death >= S + 300 * MS + TIMEOUT - INTERVAL
    assert death <= S + 300 * MS + TIMEOUT + MS


def test_a_peer_that_was_never_there() -> None:
    world = World()
    world.start("a")
    world.run(5 * S)
    assert world.nodes["a"].events == [(START_TIMEOUT, Dead("never heard since our start"))]
    world.start("b")
    world.run(6 * S)
    assert world.of("a").alive
    world.check()


def test_a_peer_that_does_not_hear_us() -> None:
    """Its words prove nothing, as far as we know they are a recording."""
    world = pair(lambda sender, _path, _now: () if sender == "a" else (MS,), until=2 * S)
    (dead,) = world.nodes["a"].of(Dead, Alive)
    assert isinstance(dead, Dead)
    assert "messages that echo nothing of ours: it does not hear us" in dead.reason


def test_one_way_lost_later_is_the_other_ones_verdict() -> None:
    """b hears nothing any more and says so; a hears b, and b's state says what b thinks."""
    world = pair(lambda sender, _path, now: () if sender == "a" and now >= S else (MS,), until=3 * S)
    assert world.nodes["a"].of(Dead) == []
    assert len(world.nodes["b"].of(Dead)) == 1


def test_a_change_of_state_is_sent_at_once_on_all_paths() -> None:
    world = pair(paths=2, until=S + 20 * MS)  # in the middle of an interval
    world.set_state("b", {"role": "primary"})
    assert [(at, path) for at, _, _, path, _, _ in world.sent[-2:]] == [(world.now, 0), (world.now, 1)]
    world.run(S + 21 * MS)
    assert world.nodes["a"].events[-1] == (S + 21 * MS, StateChanged({"role": "primary"}))
    before = len(world.sent)
    world.set_state("b", {"role": "primary"})  # nothing new
    assert len(world.sent) == before
    world.run(2 * S)
    state = world.of("a").peer_state
    assert state is not None
    assert (state.state, state.number, state.since) == ({"role": "primary"}, 1, S + 21 * MS)
    assert 0 <= world.now - state.confirmed <= INTERVAL
    assert len(world.nodes["a"].of(StateChanged)) == 2


def test_a_lost_change_of_state_comes_with_the_next_beat() -> None:
    lost = range(S, S + 30 * MS)
    world = World(lambda _sender, _path, now: () if now in lost else (MS,))
    world.start("a", "b")
    world.run(S + 20 * MS)
    world.set_state("b", {"x": 1})
    world.run(S + 20 * MS + INTERVAL + MS)
    assert world.nodes["a"].of(StateChanged)[-1] == StateChanged({"x": 1})


def test_an_overtaken_state_is_not_taken_for_the_latest() -> None:
    """Path 0 has become slow: what it brings was overtaken on path 1."""
    world = pair(lambda _sender, path, now: (120 * MS if path == 0 and now >= S else MS,), paths=2, until=S + 10 * MS)
    world.set_state("b", {"x": 1})
    world.run(S + 20 * MS)
    world.set_state("b", {"x": 2})
    world.run(2 * S)
    assert world.nodes["a"].of(StateChanged)[1:] == [StateChanged({"x": 1}), StateChanged({"x": 2})]


# Who is believed


def datagrams(world: World, sender: Host, life: int, path: int = 0) -> list[bytes]:
    return [data for _, who, its, way, data, _ in world.sent if (who, its, way) == (sender, life, path)]


def refuse(world: World, name: Host, data: bytes, path: int = 0) -> Reason:
    """Gives it to the detector: it must be refused, and change nothing but counters of its own path."""
    detector = world.of(name)
    assert detector.events() == []

    def picture() -> object:
        stats = detector.stats(world.now)
        paths = [replace(p, refused={}, sent=0) for p in stats.paths]
        return (replace(stats, paths=tuple(paths)), detector.peer_state, detector.deadline, detector.alive)

    before, refused = picture(), sum(detector.stats(world.now).paths[path].refused.values())
    refusal = detector.receive(path, data, world.now)
    assert refusal is not None
    assert detector.events() == []
    assert picture() == before
    assert sum(detector.stats(world.now).paths[path].refused.values()) == refused + 1
    answers = detector.datagrams()
    assert len(answers) <= (refusal.reason == Reason.UNPROVEN)
    return refusal.reason


def test_recordings_of_the_present_process() -> None:
    world = pair(paths=2, until=20 * S + 10 * MS)  # nothing is under way
    for data in datagrams(world, "b", 1):
        assert refuse(world, "a", data) == Reason.REPLAY
        assert refuse(world, "a", data, path=1) == Reason.PATH
        assert refuse(world, "b", data) == Reason.REFLECTED


def test_recordings_of_an_older_process() -> None:
    world = pair()
    world.kill("b")
    world.start("b")
    world.run(2 * S)
    assert {refuse(world, "a", data) for data in datagrams(world, "b", 1)} == {Reason.OLD_BOOT}


def test_recordings_played_to_a_process_that_knows_nobody() -> None:
    """Everything that b has ever sent to a's last process, played to a new one."""
    world = pair(paths=2)
    world.kill("a")
    world.kill("b")
    world.start("a")
    assert {refuse(world, "a", data) for data in datagrams(world, "b", 1)} == {Reason.UNPROVEN}
    world.start("b")
    world.run(2 * S)
    assert world.of("a").alive
    # b's first process was never believed by this one; the nonces that it echoes are none of ours
    assert {refuse(world, "a", data) for data in datagrams(world, "b", 1)} == {Reason.UNPROVEN}


def test_recordings_of_the_other_path() -> None:
    """One path was cut for a long time, one was not; what b has sent on the cut one is played when it is up again."""
    cut = range(S, 3 * S)
    world = pair(lambda _sender, path, now: () if path == 1 and now in cut else (MS,), paths=2, until=4 * S)
    for at, sender, _, path, data, _ in list(world.sent):
        if sender == "b" and path == 1 and at < 2 * S:
            assert refuse(world, "a", data, path=1) == Reason.REPLAY


def test_what_the_network_kept_back_does_not_raise_the_dead() -> None:
    world = pair(lambda _sender, _path, now: () if now >= S else (MS,), until=S + 200 * MS)
    world.kill("b")
    world.run(3 * S)
    assert world.of("a").alive is False
    late = [data for at, sender, _, _, data, _ in world.sent if sender == "b" and at >= S]
    assert len(late) >= 3
    assert {refuse(world, "a", data) for data in late} == {Reason.UNPROVEN}
    assert world.of("a").alive is False


def test_the_same_process_is_alive_again_when_the_network_is_back() -> None:
    cut = range(S, 2 * S)
    world = pair(lambda _sender, _path, now: () if now in cut else (MS,), until=4 * S)
    for node in world.nodes.values():
        assert [type(event) for event in node.of(Alive, Dead)] == [Alive, Dead, Alive]
        assert all(not event.restarted for event in node.of(Alive) if isinstance(event, Alive))
        assert len(node.of(StateChanged)) == 1


def test_challenges_are_bounded() -> None:
    world = pair()
    world.kill("a")
    world.start("a")
    recorded = datagrams(world, "b", 1)
    before = world.of("a").stats(world.now).paths[0].sent
    for data in recorded * 3:
        world.of("a").receive(0, data, world.now)
    assert world.of("a").stats(world.now).paths[0].sent == before + CHALLENGES
    assert len(recorded) > CHALLENGES


def test_two_living_processes_of_one_host() -> None:
    """A mistake of the operator's: the one that came last is believed, the other counted, and no flapping."""
    world = pair()
    first = world.of("b")
    world.start("b")
    world.run(2 * S)
    first.set_state({"I": "live"}, world.now)
    ((_, data),) = first.datagrams()
    assert refuse(world, "a", data) == Reason.OLD_BOOT


def test_the_retired_are_bounded() -> None:
    world = pair(until=100 * MS)
    for _ in range(RETIRED + 5):
        world.start("b")
        world.run(world.now + 100 * MS)
    assert world.of("a").stats(world.now).boots == RETIRED + 6
    reasons = {life: refuse(world, "a", datagrams(world, "b", life)[-1]) for life in (1, RETIRED + 5)}
    assert reasons == {1: Reason.UNPROVEN, RETIRED + 5: Reason.OLD_BOOT}


def test_a_signed_message_with_a_broken_state_changes_nothing() -> None:
    world = pair()
    good = opened(datagrams(world, "b", 1)[-1], host="a")
    assert isinstance(good, Message)
    broken = replace(good, seq=good.seq + 1, number=good.number + 1, state=b"[]")
    assert refuse(world, "a", Codec(PSK, "web", "b").seal(broken)) == Reason.STATE


# Stalls of our own


def test_a_stall_gives_a_fresh_grace() -> None:
    """a is paused, with all its queues; b is well. Nothing lies in a's sockets when it runs again."""
    world = World(stalls={"a": [Stall(S, 6 * S, keeps=False)]})
    world.start("a", "b")
    world.run(8 * S)
    assert world.nodes["a"].of(Dead) == []
    (stalled,) = world.nodes["a"].of(Stalled)
    assert isinstance(stalled, Stalled)
    assert 5 * S - INTERVAL <= stalled.late <= 5 * S
    assert [type(event) for event in world.nodes["b"].of(Alive, Dead)] == [Alive, Dead, Alive]
    stats = world.of("a").stats(world.now)
    assert (stats.stalls, stats.longest_stall_ns) == (1, stalled.late)


@pytest.mark.parametrize("begin", range(0, 401, 25))
@pytest.mark.parametrize("length", [60, 100, 200])
def test_a_stall_between_a_death_and_its_verdict(begin: int, length: int) -> None:
    world = World(stalls={"a": [Stall(S + begin * MS, S + (begin + length) * MS)]})
    world.start("a", "b")
    world.run(S + 10 * MS)
    world.kill("b")
    world.run(3 * S)
    (death,) = world.nodes["a"].deaths()
    assert death >= S + TIMEOUT
    assert death <= S + 10 * MS + TIMEOUT + INTERVAL + 2 * length * MS


def test_a_stall_right_at_our_start() -> None:
    world = World(stalls={"a": [Stall(100 * MS, 2 * S)]})
    world.start("a")
    world.run(S)
    world.start("b")
    world.run(3 * S)
    assert world.nodes["a"].of(Dead) == []
    assert world.of("a").alive


def test_a_peer_that_dies_while_we_stall_is_dead_a_timeout_after() -> None:
    world = World(stalls={"a": [Stall(S, 2 * S)]})
    world.start("a", "b")
    world.at(S + 500 * MS, lambda: world.kill("b"))
    world.run(4 * S)
    assert world.nodes["a"].deaths() == [2 * S + TIMEOUT]


@pytest.mark.parametrize("keeps", [True, False])
def test_who_stalls_all_the_time_judges_late_but_does(keeps: bool) -> None:
    """200 ms of each 220: a living peer is never called dead, a dead one is in the end."""
    stalls = [Stall(at, at + 200 * MS, keeps) for at in range(S, 60 * S, 200 * MS + INTERVAL + 2 * MS)]
    world = World(stalls={"a": stalls})
    world.start("a", "b")
    world.run(30 * S)
    assert world.nodes["a"].of(Dead) == []
    world.kill("b")
    world.run(60 * S)
    (death,) = world.nodes["a"].deaths()
    rounds = PATIENCE * TIMEOUT // INTERVAL + 2
    assert death - 30 * S <= rounds * (250 * MS + 2 * MS)


def test_an_early_tick_does_nothing() -> None:
    detector = Detector(A, ["one"], 0)
    detector.tick(0)
    assert len(detector.datagrams()) == 1
    detector.tick(detector.deadline - 1)
    assert detector.datagrams() == []
    assert detector.deadline == INTERVAL


def test_beats_keep_their_pace_with_late_timers() -> None:
    detector, beats, now = Detector(A, ["one"], 0), 0, 0
    while now < 10 * S:
        detector.tick(now)
        beats += len(detector.datagrams())
        now = detector.deadline + 7 * MS
    assert beats == pytest.approx(10 * S / INTERVAL, abs=1)


# Properties


class Weather:
    """Loss (two in a row at the most), delay, re-ordering, duplicates on each path; and times of storm.

    storms: in these, all is lost, or all is held back until they are over. What the storm has taken doesn't end a row
    of lost ones: so between two that arrive at most two were lost by chance.
    """

    def __init__(self, seed: int, jitter: int, storms: list[tuple[int, int, bool]]) -> None:
        self._random = random.Random(seed)
        self._jitter = jitter
        self._storms = storms
        self._row: dict[tuple[Host, int], int] = {}

    def __call__(self, sender: Host, path: int, now: int) -> list[int]:
        draw = self._random
        storm = next(((end, drops) for begin, end, drops in self._storms if begin <= now < end), None)
        if storm is not None and storm[1]:
            return []
        hold = storm[0] - now if storm is not None else 0
        if self._row.get((sender, path), 0) < 2 and draw.random() < 0.3:
            self._row[sender, path] = self._row.get((sender, path), 0) + 1
            return []
        self._row[sender, path] = 0
        return [hold + draw.randint(1, self._jitter) for _ in range(draw.choice((1, 1, 1, 2)))]


JITTER = 20 * MS
STALL = 200 * MS


@st.composite
def troubles(draw: st.DrawFn) -> tuple[list[tuple[int, int, bool]], dict[Host, list[Stall]], int]:
    """Storms and stalls of either side, up to 200 ms long each, one at a time; and when all is over."""
    storms: list[tuple[int, int, bool]] = []
    stalls: dict[Host, list[Stall]] = {"a": [], "b": []}
    at = S
    for kind in draw(st.lists(st.sampled_from(["a", "b", "drop", "hold"]), min_size=1, max_size=12)):
        at += draw(st.integers(TIMEOUT, 2 * TIMEOUT))
        end = at + draw(st.one_of(st.just(STALL), st.integers(1, STALL)))
        if kind in ("drop", "hold"):
            storms.append((at, end, kind == "drop"))
        else:
            stalls["a" if kind == "a" else "b"].append(Stall(at, end, draw(st.booleans())))
        at = end
    return storms, stalls, at + S


@profile(150)
@given(troubles(), st.integers(0, 2**32), st.integers(1, 2))
def test_stalls_of_200_ms_never_give_a_verdict(
    trouble: tuple[list[tuple[int, int, bool]], dict[Host, list[Stall]], int], seed: int, paths: int
) -> None:
    storms, stalls, end = trouble
    world = World(Weather(seed, JITTER, storms), paths=paths, stalls=dict(stalls))
    world.start("a", "b")
    world.run(end)
    for node in world.nodes.values():
        assert node.of(Dead, PathDown) == []
        assert len(node.of(Alive)) == 1
        assert world.of(node.name).alive
    world.check()


@profile(100)
@given(
    st.lists(st.tuples(st.integers(INTERVAL + JITTER, S), st.integers(1, 10 * S), st.booleans()), max_size=12),
    st.integers(0, 2**32),
)
def test_our_own_stalls_of_any_length_never_give_a_verdict(plan: list[tuple[int, int, bool]], seed: int) -> None:
    """Even with the queues lost; a has but one beat's time to listen in between."""
    stalls, at = [], S
    for gap, length, keeps in plan:
        at += gap
        stalls.append(Stall(at, at + length, keeps))
        at += length
    draw = random.Random(seed)
    world = World(lambda *_: (draw.randint(1, JITTER),), stalls={"a": stalls})
    world.start("a", "b")
    world.run(at + S)
    assert world.nodes["a"].of(Dead) == []
    assert world.of("a").alive
    assert world.of("b").alive
    world.check()


@profile(100)
@given(
    st.integers(0, 2**32),
    st.integers(S, 2 * S),
    st.integers(1, 3),
    st.sampled_from([(INTERVAL, TIMEOUT), (20 * MS, 100 * MS), (10 * MS, 30 * MS), (250 * MS, 2 * S)]),
    st.booleans(),
)
def test_true_silence_gives_one_verdict_in_time(
    seed: int, when: int, paths: int, setting: tuple[int, int], cut: bool
) -> None:
    """A host that vanishes, or all paths cut: timeout + 2 intervals after the last word, at the latest."""
    interval, timeout = setting
    weather = Weather(seed, interval // 4, [(when, 10**18, True)] if cut else [])
    world = World(weather, paths=paths, interval=interval, timeout=timeout, start_timeout=4 * S)
    world.start("a", "b")
    world.run(when)
    deaths_before = len(world.nodes["a"].deaths())  # 30 ms can't stand such weather
    if not cut:
        world.kill("b")
    last = max(
        [arrival for _, sender, _, _, _, arrivals in world.sent if sender == "b" for arrival in arrivals], default=0
    )
    world.run(when + 2 * timeout + 4 * interval)
    world.check()
    assert world.of("a").alive is False
    death = world.nodes["a"].deaths()[-1]
    assert death <= max(last, when) + timeout + 2 * interval
    assert len(world.nodes["a"].deaths()) <= deaths_before + 1
    if timeout >= 8 * interval:  # at most two lost in a row: no verdict before its time
        assert deaths_before == 0
        assert death >= when + timeout - 4 * interval


@profile(60)
@given(st.data())
def test_an_attacker_who_records_everything_changes_nothing(data: st.DataObject) -> None:
    """Processes come and go; all that was ever sent is played again, spoilt, sent back, or to the other path."""
    restarts: list[tuple[Host, int]] = data.draw(
        st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([100 * MS, S])), min_size=1, max_size=4)
    )
    calm, attacked = (pair(straight(2 * MS), paths=2) for _ in range(2))
    seen = set[Reason]()
    for name, pause in restarts:
        for world in (calm, attacked):
            world.kill(name)
            world.run(world.now + pause)
            world.start(name)
        for _ in range(data.draw(st.integers(0, 5))):
            # Nothing that is still under way: to bring that sooner is no attack.
            recorded = [entry for entry in attacked.sent if entry[0] + 2 * MS < attacked.now]
            for target in OTHER:
                for _ in range(5):
                    *_, old = data.draw(st.sampled_from(recorded))[:5]
                    old = data.draw(st.sampled_from(SPOIL))(old)
                    seen.add(refuse(attacked, target, old, data.draw(st.integers(0, 1))))
            step = data.draw(st.integers(1, 300)) * MS
            for world in (calm, attacked):
                world.run(world.now + step)
        for world in (calm, attacked):
            world.run(world.now + S)
    for target in OTHER:
        told = [world.nodes[target].of(Alive, Dead, StateChanged) for world in (calm, attacked)]
        assert [replace_reason(event) for event in told[0]] == [replace_reason(event) for event in told[1]]
        assert attacked.of(target).alive
    attacked.check()


def replace_reason(event: object) -> object:
    """How long it was silent differs by the challenges, which are words too."""
    return Dead("") if isinstance(event, Dead) else event


SPOIL: list[Callable[[bytes], bytes]] = [
    lambda data: data,
    lambda data: data,
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],  # its number, within the signature
    lambda data: data.replace(b"\x01a", b"\x01b", 1),
    lambda data: data.replace(b"\x01b", b"\x01a", 1),
]


@profile(200)
@given(st.binary(max_size=MESSAGE_MAX + 10) | st.binary(max_size=200).map(lambda tail: SEALED[:16] + tail))
def test_noise_changes_nothing(noise: bytes) -> None:
    world = pair(until=100 * MS)
    assert refuse(world, "b", noise) in (Reason.MALFORMED, Reason.VERSION, Reason.PAIR, Reason.PATH, Reason.FORGED)


# The document


DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "heartbeat.md").read_text(encoding="utf-8")


def test_every_reason_is_explained() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| .* \| (?:once|no|in) ?.*\|$", DOCUMENT, re.MULTILINE) == list(Reason)


def test_the_documents_offsets() -> None:
    table = DOCUMENT.partition("\n## The message\n")[2]
    rows = [(int(at), int(size)) for at, size in re.findall(r"^\| (\d+) \| (\d+) \| ", table, re.MULTILINE)]
    assert rows
    assert [at for at, _ in rows] == [sum(size for _, size in rows[:i]) for i in range(len(rows))]
    (state,) = (int(at) for at in re.findall(r"^\| (\d+) \| 0 to 1024 \| state", DOCUMENT, re.MULTILINE))
    assert state == sum(size for _, size in rows)
    assert SEALED[state:-32] == PLAIN.state
    assert f"{MESSAGE_MAX:,} bytes" in DOCUMENT


def test_the_documents_defaults() -> None:
    for name, value in (("interval", INTERVAL), ("timeout", TIMEOUT), ("start_timeout", START_TIMEOUT)):
        (text,) = re.findall(rf"^\| `{name}` \| (\d+ m?s) \|", DOCUMENT, re.MULTILINE)
        assert text in (f"{value // MS} ms", f"{value // S} s")
