# SPDX-License-Identifier: Apache-2.0
"""Schedules that make no sense: both sides say whatever, at whatever time, about one and the same small stream.

Nothing is equal for long here, connections begin anew, end twice and reset each other, checkpoints come at any time.
What may be asked of a comparator then is safety alone: R1 to R4, and to stay alive.
"""

from __future__ import annotations

import random
from dataclasses import replace

import wire
from conversation import Dice, make_noise, text
from model.flow import PRIMARY, SECONDARY
from model.run import Abort, Alone, Commit, Feed, Step, Stop, Tick
from wire import Options, Path

ISNS = (2**32 - 9, 2**31 - 7, 2**30)  # of the primary's connections; the rewriter translates all but the SYN
CLIENT_ISN = 2**31 - 10
LENGTH = 24


def make_chaos(dice: Dice, steps: int = 40) -> list[Step]:
    out: list[Step] = [Stop(0), Commit(1, 2)]
    epoch, now, stopped = 0, 10, None
    generation = {(side, port): -1 for side in (PRIMARY, SECONDARY) for port in (0, 1)}
    cloned = dict(generation)
    history: list[tuple[int, int, int]] = []  # when the primary began which connection on which port
    for _ in range(dice.pick(1, steps)):
        now += dice.pick(1, 1000)
        what = dice.pick(0, 19)
        if what <= 15:
            side = dice.pick(0, 1) if stopped is None else PRIMARY
            frames = tuple(_tcp(dice, side, epoch, generation, cloned) for _ in range(dice.pick(1, 3)))
            if dice.chance(3):
                frames += tuple(any_fragment(dice) for _ in range(dice.pick(1, 6)))
            out.append(Feed(side, frames, now))
            history += [(now, port, generation[PRIMARY, port]) for port in (0, 1)] if side == PRIMARY else []
        elif what == 16:
            now += 4_000_000_000
            out.append(Tick(now))
        elif what == 17:
            stopped = now
            out.append(Stop(now))
        elif what == 18 and stopped is not None:
            resumed = dice.pick(stopped + 1, now + 1) if now >= stopped else now
            out.append(Commit(resumed, max(now, resumed)))
            now, stopped = max(now, resumed), None
            epoch += 1
            for port in (0, 1):  # the secondary is what the primary was when it resumed
                last = max((g for time, p, g in history if p == port and time < resumed), default=-1)
                cloned[SECONDARY, port] = generation[SECONDARY, port] = last
        elif what == 19:
            out.append(Abort(now) if dice.chance(2) else Alone(now) if dice.chance(6) else Tick(now))
            stopped = None if isinstance(out[-1], Abort | Alone) else stopped
    return out


def _tcp(
    dice: Dice,
    side: int,
    epoch: int,
    generation: dict[tuple[int, int], int],
    cloned: dict[tuple[int, int], int],
) -> bytes:
    port = dice.pick(0, 1)
    path = Path(dport=1000 + port)
    kind = dice.pick(0, 11)
    if generation[side, port] < 0 or (kind == 0 and dice.chance(2)):
        generation[side, port] += 1  # a new connection
        kind = 0
    if side == SECONDARY and generation[side, port] > generation[PRIMARY, port]:
        kind = 0  # it can't know the primary's numbers yet
    if generation[side, port] <= cloned[side, port] and kind == 0:
        kind = 2  # the other one would not repeat its SYN either
    number = generation[side, port] % len(ISNS)
    isn = ISNS[number]
    stream = bytearray(text(number, LENGTH))
    if side == SECONDARY and epoch % 3:
        stream[(epoch * 7) % LENGTH] ^= 0x40  # differs in some epochs, always there
    start = dice.pick(0, LENGTH)
    end = dice.pick(start, min(LENGTH, start + 8))
    client_isn = CLIENT_ISN + 1000 * generation[side, port]
    ack = client_isn + 1 + dice.pick(0, 20)
    noise = make_noise(dice, side, 0)
    if kind == 0:
        if side == SECONDARY and generation[side, port] > cloned[side, port]:
            isn += 2**30
        return wire.tcp(path, isn, client_isn + 1, wire.SYN | wire.ACK, b"", Options(mss=1460), noise)
    seq = isn + 1 + start
    if kind == 1:
        flags = dice.choose((wire.RST, wire.FIN))
        return wire.tcp(path, isn + 1 + LENGTH, ack, wire.ACK | flags, noise=noise)
    if kind == 2:
        return wire.tcp(path, seq, ack, wire.ACK, noise=noise)
    payload, mark = stream[start:end], dice.choose((8, 16))
    if side == SECONDARY and payload and dice.chance(20):
        payload[-1] ^= 1  # contradicts what it says elsewhere; the primary's are not seen where they have left
    if start < mark and dice.chance(8):
        return wire.tcp(path, seq, ack, wire.ACK | wire.URG, bytes(payload), noise=noise, urgent=mark - start)
    return wire.tcp(path, seq, ack, wire.ACK, bytes(payload), noise=noise)


def spoil(dice: Dice, frame: bytes) -> bytes:
    """A frame with bytes changed, cut off or added."""
    out = bytearray(frame)
    for _ in range(dice.pick(0, 3) if out else 0):
        out[dice.pick(0, len(out) - 1)] = dice.choose((0, 1, 0x7F, 0x80, 0xFF, dice.pick(0, 255)))
    if out and dice.chance(4):
        del out[dice.pick(0, len(out) - 1) :]
    if dice.chance(6):
        out += random.Random(len(out)).randbytes(dice.pick(1, 40))
    return bytes(out)


def make_garbage(dice: Dice, steps: int = 30) -> list[Step]:
    """Frames of all kinds, many spoiled; the secondary says some of the same."""
    out: list[Step] = [Stop(0), Commit(1, 2)]
    now = 10
    seen: list[bytes] = []
    for _ in range(dice.pick(1, steps)):
        now += dice.pick(1, 1000)
        what = dice.pick(0, 15)
        if what <= 13:
            side = dice.pick(0, 1)
            frames = []
            for _ in range(dice.pick(1, 4)):
                if seen and dice.chance(2):
                    frames.append(dice.choose(seen))
                else:
                    frames.append(spoil(dice, _any_frame(dice)))
                    seen.append(frames[-1])
            out.append(Feed(side, tuple(frames), now))
        elif what == 14:
            now += dice.choose((30_000_000, 4_000_000_000))
            out.append(Tick(now))
        else:
            out += [Stop(now), Commit(now + 1, now + 1)]
            now += 2
    return out


def any_fragment(dice: Dice) -> bytes:
    """Of few datagrams, all to one client: they meet often, agree now and then, and contradict each other often."""
    path = dice.choose((Path(), Path.v6()))
    port = dice.choose((9, 9, 10))
    frame = wire.udp(replace(path, dport=port), text(port, 40))
    low = 8 * dice.pick(0, 5)
    last = dice.chance(3)
    high = 48 if last else low + 8 * dice.pick(1, 3)
    if dice.chance(20):
        high += dice.pick(0, 9)
    return wire.fragment(frame, low, high, not last, dice.pick(1, 3))


def _any_frame(dice: Dice) -> bytes:
    path = dice.choose((Path(), Path(vlans=(5,)), Path.v6(), Path.v6(3, extensions=(0, 43, 60)), Path(pad=True)))
    path = replace(path, dport=1000 + dice.pick(0, 1))
    body = text(dice.pick(0, 3), dice.pick(0, 30))
    kind = dice.pick(0, 8)
    if kind <= 2:
        flags = dice.choose((wire.ACK, wire.ACK, wire.SYN, wire.ACK | wire.FIN, wire.RST, 0))
        options = dice.choose((Options(), Options(timestamps=True), Options(md5=True), Options(mss=1, wscale=2)))
        return wire.tcp(path, dice.pick(0, 60), dice.pick(0, 60), flags, body, options)
    if kind == 3:
        return wire.udp(path, body)
    if kind == 4:
        return wire.echo_reply(path, 1, dice.pick(0, 2))
    if kind == 5:
        return wire.ip(path, dice.choose((wire.GRE, wire.SCTP, 200)), body)
    if kind == 6:
        return any_fragment(dice)
    if kind == 7:
        return dice.choose(tuple(wire.PASS_FRAMES.values()))()
    return random.Random(dice.pick(0, 99)).randbytes(dice.pick(0, 80))
