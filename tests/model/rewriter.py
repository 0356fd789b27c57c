# SPDX-License-Identifier: Apache-2.0
"""The rewriter as docs/rewriter.md tells it: slow, obvious, and not written from csrc/path.

It has no limit of flows. Each rule that a test breaks on purpose is a method of its own.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field, replace

from wire import ACK, FIN, RST, SYN, ones_sum

NONE, DONE, DROP = 0, 1, 2
MS = 1_000_000
NEAR = 1 << 24

Key = tuple[int, tuple[int, ...], bytes, int, bytes, int]  # NIC, VLANs, VM, its port, client, its port


def diff(a: int, b: int) -> int:
    """How far `a` is ahead of `b`, as sequence numbers go: from -2**31 to 2**31 - 1."""
    return (a - b + 2**31) % 2**32 - 2**31


def num(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4])


@dataclass
class Segment:
    """A TCP header in a frame. `there`: the offset behind its last byte that the frame has."""

    at: int
    there: int
    src: bytes
    dst: bytes
    vlans: tuple[int, ...]
    data: bytes
    end: int = 0  # of all that IP carries
    fragment: bool = False

    def __post_init__(self) -> None:
        self.sport, self.dport = struct.unpack_from("!HH", self.data, self.at)
        self.cut = self.there - self.at < 20 or self.header > self.there - self.at
        if not self.cut:
            self.seq, self.ack = struct.unpack_from("!II", self.data, self.at + 4)
            self.flags = self.data[self.at + 13]
            self.window = int.from_bytes(self.data[self.at + 14 : self.at + 16])
            self.length = self.end - self.at - self.header + bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def header(self) -> int:
        return (self.data[self.at + 12] >> 4) * 4

    def options(self) -> list[tuple[int, int, int]]:
        """Kind, offset and length of each that begins before `there`."""
        out = []
        at, end = self.at + 20, self.at + self.header if self.there - self.at > 12 else 0
        while at < min(end, self.there) and self.data[at] != 0:
            size = 1
            if self.data[at] != 1:
                if at + 2 > min(end, self.there) or not 2 <= self.data[at + 1] <= end - at:
                    break
                size = self.data[at + 1]
            out.append((self.data[at], at, size))
            at += size
        return out

    def option(self, kind: int, size: int) -> int | None:
        places = [at for k, at, n in self.options() if (k, n) == (kind, size)]
        return places[-1] if places else None

    @property
    def tsval(self) -> int | None:
        at = self.option(8, 10)
        return None if at is None else num(self.data, at + 2)

    @property
    def tsecr(self) -> int:
        at = self.option(8, 10)
        assert at is not None
        return num(self.data, at + 6)

    @property
    def wscale(self) -> int | None:
        at = self.option(3, 3)
        return None if at is None else self.data[at + 2]

    @property
    def signed(self) -> bool:
        return any(kind in (19, 29) for kind, _, _ in self.options())


@dataclass
class Frame:
    vlans: tuple[int, ...]
    l3: int
    l4: int
    end: int
    protocol: int
    src: bytes
    dst: bytes
    fragment_at: int | None = None


def open_ip(data: bytes, at: int, limit: int, vlans: tuple[int, ...] = ()) -> Frame | None:
    """An IP packet as wire.py makes it, which `limit` may cut."""
    if data[at] >> 4 == 4:
        field16 = int.from_bytes(data[at + 6 : at + 8]) & 0x3FFF
        size = int.from_bytes(data[at + 2 : at + 4])
        l4 = at + (data[at] & 15) * 4
        return Frame(vlans, at, l4, min(limit, at + size), data[at + 9], data[at + 12 : at + 16],
                     data[at + 16 : at + 20], (field16 & 0x1FFF) * 8 if field16 else None)  # fmt: skip
    frame = Frame(vlans, at, at + 40, min(limit, at + 40 + int.from_bytes(data[at + 4 : at + 6])), data[at + 6],
                  data[at + 8 : at + 24], data[at + 24 : at + 40])  # fmt: skip
    while frame.protocol in (0, 43, 60, 44):
        if frame.protocol == 44:
            frame.fragment_at = int.from_bytes(data[frame.l4 + 2 : frame.l4 + 4]) & 0xFFF8
            size = 8
        else:
            size = (data[frame.l4 + 1] + 1) * 8
        frame.protocol = data[frame.l4]
        frame.l4 += size
    return frame


def open_frame(data: bytes, vnet_len: int) -> Frame | None:
    at, vlans = vnet_len + 12, []
    while data[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        vlans.append(int.from_bytes(data[at + 2 : at + 4]) & 0xFFF)
        at += 4
    if data[at : at + 2] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    return open_ip(data, at + 2, len(data), tuple(vlans))


@dataclass
class Syn:
    isn: int
    ack: int | None
    active: bool
    tsval: int | None
    wscale: int | None
    at: int
    used_by: int | None = None  # of the primary's: the secondary's number that it has been joined with


@dataclass
class Flow:
    p: Syn | None = None
    p_before: Syn | None = None
    s: Syn | None = None
    shift: int | None = None
    ts_shift: int | None = None
    p_wscale: int | None = None
    p_scale: int = 0
    s_scale: int = 0
    unscaled: bool = False
    client_scale: int | None = None
    p_ts: int = 0
    p_ts_at: int = 0
    floored: bool = False
    s_ts: int = 0
    s_next: int = 0
    beyond: bool = False
    answered: bool = False
    signed: bool = False
    s_ack: int | None = None
    c_ack: int | None = None
    c_window: int = 0
    c_next: int = 0
    s_fin: int | None = None
    c_fin: int | None = None
    s_fin_acked: bool = False
    c_fin_acked: bool = False
    reset: bool = False
    used_at: int = 0
    inherited: bool = False
    unplaced: bool = False
    unproven: bool = False

    def closed(self) -> bool:
        return self.reset or (self.s_fin_acked and self.c_fin_acked)


def scale(value: int | None) -> int:
    return min(value or 0, 14)


@dataclass
class Model:
    flows: dict[Key, Flow] = field(default_factory=dict)
    taken_over: bool = False
    inherited: dict[Key, Flow] = field(default_factory=dict)

    # ------------------------------------------------------------------ the rules that mutants break

    def together(self, p: Syn, s: Syn) -> bool:
        if p.active != s.active or (p.ack is not None and s.ack is not None and p.ack != s.ack):
            return False
        return not p.active or p.used_by in (None, s.isn)

    def may_infer(self, flow: Flow, seg: Segment) -> bool:
        s = flow.s
        if s is None or flow.beyond or not seg.flags & ACK or seg.flags & RST:
            return False
        answers_syn = s.ack is None
        if bool(seg.flags & SYN) != answers_syn or not (s.ack is None or 0 <= diff(seg.seq, s.ack) <= 65535):
            return False
        return self.taken_over or seg.ack == (s.isn + 1) % 2**32

    def least_tsval(self, flow: Flow, now: int) -> int:
        return flow.p_ts + (now - flow.p_ts_at) // MS + 200

    def echo(self, flow: Flow, value: int) -> int:
        return flow.s_ts if diff(value, flow.s_ts) > 0 else value

    def window(self, flow: Flow, seg: Segment) -> int:
        if seg.flags & SYN or flow.unscaled:
            return seg.window
        return min(seg.window << flow.s_scale >> flow.p_scale, 65535)

    def echoes(self, seg: Segment) -> bool:
        """Whether the ACK number, and with it TSecr, means anything."""
        return seg.there - seg.at <= 13 or bool(seg.data[seg.at + 13] & ACK)

    def sack_edges(self, at: int, size: int) -> list[int]:
        return list(range(at + 2, at + size - 3, 4))

    def is_partial(self, data: bytes, vnet_len: int, at: int) -> bool:
        return bool(vnet_len and data[0] & 1 and int.from_bytes(data[6:8], "little") + vnet_len == at)

    def is_damaged(self, seg: Segment, vnet_len: int) -> bool:
        """The VM will not take it. What devices have left to others, or checked, and fragments can't be told."""
        data = seg.data
        if seg.fragment or self.is_partial(data, vnet_len, seg.at) or (vnet_len and (data[0] & 2 or data[1])):
            return False
        pseudo = seg.src + seg.dst + struct.pack("!II", seg.end - seg.at, 6)
        return ones_sum(pseudo + data[seg.at : seg.end]) % 65535 != 0

    def opens_anew(self, syn: Syn | None, seg: Segment) -> bool:
        if syn is None or syn.isn != seg.seq:
            return True
        return bool(seg.flags & ACK) and syn.ack not in (None, seg.ack)

    def missed_a_mark(self, flow: Flow, seg: Segment, base: int) -> bool:
        assert flow.shift is not None
        if flow.c_ack is None or flow.shift == base or seg.flags & (SYN | RST):
            return False
        radius = NEAR if flow.client_scale is None else max(NEAR, flow.c_window)
        shifted = abs(diff(seg.seq + flow.shift, flow.c_ack)) <= radius or abs(diff(seg.seq, flow.s_next)) <= NEAR
        return not shifted and abs(diff(seg.seq + base, flow.c_ack)) <= radius

    def is_belied(self, flow: Flow, seg: Segment, by_vm: bool) -> bool:
        """An inherited flow whose ports are another connection's by now. Proves it, if it is not."""
        if not flow.unproven or not flow.shift or not seg.flags & ACK or seg.flags & (SYN | RST):
            return False
        vm, client = (seg.seq, flow.c_ack) if by_vm else (None if flow.unplaced else flow.s_next, seg.ack)
        if vm is None or client is None:
            return False
        if abs(diff(vm + flow.shift, client)) <= NEAR:
            flow.unproven = False
            return False
        ours, theirs = (seg.ack, flow.c_next) if by_vm else (seg.seq, flow.s_ack)
        return abs(diff(vm, client)) <= NEAR and theirs is not None and abs(diff(ours, theirs)) <= NEAR

    def voids(self, flow: Flow, seg: Segment) -> bool:
        """Whether a SYN of the primary's, in the client's numbers, is of another connection than the inherited one."""
        assert flow.shift is not None
        own = copy.copy(seg)
        own.seq = (seg.seq - flow.shift) % 2**32
        return self.opens_anew(flow.s, own)

    def is_wanted(self, flow: Flow) -> bool:
        """By the next rewriter."""
        return (flow.shift is not None and not flow.signed and not flow.closed()
                and bool(flow.shift or flow.ts_shift or flow.p_scale != flow.s_scale))  # fmt: skip

    def handed_on(self, flow: Flow, then: int, now: int) -> Flow:
        """What of it is known still to the next rewriter."""
        assert flow.s is not None
        age = max(0, -(-(now - flow.p_ts_at) // MS)) * MS
        return Flow(s=replace(flow.s, ack=flow.s.ack), shift=flow.shift, ts_shift=flow.ts_shift, p_wscale=flow.p_wscale,
                    p_scale=flow.p_scale, s_scale=flow.s_scale, unscaled=flow.unscaled, client_scale=flow.client_scale,
                    p_ts=flow.p_ts, p_ts_at=then - age, beyond=flow.beyond, answered=flow.answered, s_fin=flow.s_fin,
                    c_fin=flow.c_fin, s_fin_acked=flow.s_fin_acked, c_fin_acked=flow.c_fin_acked,
                    inherited=True, unplaced=True, unproven=True)  # fmt: skip

    def find(self, key: Key) -> Flow | None:
        return self.flows.get(key) or self.inherited.get(key)

    def home(self, flow: Flow) -> dict[Key, Flow]:
        return self.inherited if flow.inherited else self.flows

    def told_apart(self, key: Key, flow: Flow, seg: Segment) -> Flow | None:
        if flow.inherited:
            if not self.is_belied(flow, seg, by_vm=True):
                return flow
            del self.inherited[key]
            return None
        below = self.inherited.get(key)
        if flow.shift is None or not self.missed_a_mark(flow, seg, 0 if below is None else below.shift or 0):
            return flow
        del self.flows[key]
        return below

    def bounded(self, flow: Flow) -> bool:
        return not flow.unplaced

    def has_no_number(self, flow: Flow, seg: Segment) -> bool:
        return seg.flags & (RST | ACK) == RST | ACK and seg.seq == 0 and (flow.s_next != 0 or flow.unplaced)

    # ------------------------------------------------------------------ entry points

    def learn(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> None:
        self.expire(now)
        seg = self.segment(data, vnet_len)
        if seg is None or seg.cut or not seg.flags & SYN:
            return
        key = self.key(nic, seg, True)
        below = self.inherited.get(key)
        if below is not None and self.voids(below, seg):
            del self.inherited[key]
        flow = self.find(key)
        if flow is None and self.taken_over:
            return
        flow = flow or self.flows.setdefault(key, Flow())
        flow.used_at = now
        fresh = self.opens_anew(flow.p, seg)
        before = flow.p
        flow.p = self.heard(flow.p, seg, now)
        if fresh:
            flow.p_before = before
        self.join(flow)
        known = flow.shift is not None and flow.s is not None and (seg.seq - flow.s.isn) % 2**32 == flow.shift
        if not fresh and known and seg.tsval is not None and diff(seg.tsval, flow.p_ts) > 0:
            flow.p_ts, flow.p_ts_at = seg.tsval, now

    def output(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]:
        self.expire(now)
        seg = self.segment(data, vnet_len)
        if seg is None:
            return self.quote(data, vnet_len, nic, outward=True)
        key = self.key(nic, seg, True)
        flow = self.find(key)
        if seg.cut:
            return self.drop_cut(flow), data
        if seg.flags & SYN:
            flow = self.secondary_opens(key, flow, seg, now)
        if flow is not None:
            flow = self.told_apart(key, flow, seg)
        if flow is None:
            return NONE, data
        self.vm_sends(flow, seg)
        if self.taken_over and flow.ts_shift is not None and not flow.floored and seg.tsval is not None:
            behind = diff(self.least_tsval(flow, now), seg.tsval + flow.ts_shift)
            flow.ts_shift += max(behind, 0)
            flow.floored = True
        if self.taken_over and seg.flags & SYN:
            self.announces(flow, seg)
        flow.used_at = now
        return self.finish(flow, seg, vnet_len, outward=True)

    def input(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]:
        self.expire(now)
        seg = self.segment(data, vnet_len)
        if seg is None:
            return self.quote(data, vnet_len, nic, outward=False)
        key = self.key(nic, seg, False)
        flow = self.find(key)
        if seg.cut:
            return self.drop_cut(flow), data
        if flow is None or self.is_damaged(seg, vnet_len):
            return NONE, data
        if self.is_belied(flow, seg, by_vm=False):
            del self.inherited[key]
            return NONE, data
        if flow.shift is None and self.may_infer(flow, seg):
            assert flow.s is not None
            ts = seg.tsecr if seg.tsval is not None else None
            self.settle(flow, Syn((seg.ack - 1) % 2**32, None, False, ts, flow.s.wscale, now))
        self.recall(flow, seg)
        self.vm_receives(flow, seg, now)
        flow.used_at = now
        return self.finish(flow, seg, vnet_len, outward=False)

    def mark(self) -> None:
        self.flows.clear()

    def takeover(self, now: int) -> None:
        self.taken_over = True
        self.expire(now)
        for key in self.flows:
            self.inherited.pop(key, None)

    def export(self, now: int) -> list[tuple[Key, Flow]]:
        both = self.inherited | self.flows
        return [(key, self.handed_on(flow, 0, now)) for key, flow in both.items() if self.is_wanted(flow)]

    def inherit(self, table: list[tuple[Key, Flow]], then: int) -> None:
        for key, flow in table:
            self.inherited[key] = replace(flow, p_ts_at=flow.p_ts_at + then)

    # ------------------------------------------------------------------ flows

    def expire(self, now: int) -> None:
        for flows in (self.flows, self.inherited):
            old = [key for key, flow in flows.items() if flow.closed() and now - flow.used_at >= 60_000 * MS]
            for key in old:
                del flows[key]

    def segment(self, data: bytes, vnet_len: int) -> Segment | None:
        frame = open_frame(data, vnet_len)
        if frame is None or frame.protocol != 6 or frame.fragment_at:
            return None
        return Segment(frame.l4, frame.end, frame.src, frame.dst, frame.vlans, data, frame.end,
                       frame.fragment_at is not None)  # fmt: skip

    def key(self, nic: int, seg: Segment, from_vm: bool) -> Key:
        if from_vm:
            return nic, seg.vlans, seg.src, seg.sport, seg.dst, seg.dport
        return nic, seg.vlans, seg.dst, seg.dport, seg.src, seg.sport

    def heard(self, syn: Syn | None, seg: Segment, now: int) -> Syn:
        ack = seg.ack if seg.flags & ACK else None
        if syn is None or self.opens_anew(syn, seg):
            return Syn(seg.seq, ack, ack is None, seg.tsval, seg.wscale, now)
        return replace(syn, ack=syn.ack if ack is None else ack, active=syn.active or ack is None)

    def join(self, flow: Flow) -> None:
        p, s = flow.p, flow.s
        if flow.answered or p is None or s is None or not self.together(p, s):
            return
        anew = flow.shift is not None
        if flow.shift == (p.isn - s.isn) % 2**32:
            return
        self.settle(flow, p)
        p.used_by = None if anew else s.isn  # of an older attempt's SYN it may not have been meant

    def settle(self, flow: Flow, p: Syn) -> None:
        s = flow.s
        assert s is not None
        flow.shift = (p.isn - s.isn) % 2**32
        flow.ts_shift = None
        if p.tsval is not None and s.tsval is not None and flow.shift:
            flow.ts_shift = p.tsval - s.tsval
        flow.floored = False
        flow.p_ts, flow.p_ts_at = p.tsval or 0, p.at
        flow.p_wscale = p.wscale
        flow.p_scale, flow.s_scale = scale(p.wscale), scale(s.wscale)

    def recall(self, flow: Flow, seg: Segment) -> None:
        """A SYN cookie of the primary's that is not its last."""
        old, s = flow.p_before, flow.s
        if flow.shift is None or flow.answered or old is None or s is None or s.active or not seg.flags & ACK:
            return
        if self.together(old, s) and seg.ack == (old.isn + 1) % 2**32 and (old.isn - s.isn) % 2**32 != flow.shift:
            self.settle(flow, old)

    def secondary_opens(self, key: Key, flow: Flow | None, seg: Segment, now: int) -> Flow | None:
        if flow is None:
            if self.taken_over:
                return None
            flow = self.flows.setdefault(key, Flow())
        if flow.inherited and not self.taken_over and self.opens_anew(flow.s, seg):
            flow = self.flows.setdefault(key, Flow())
        if self.opens_anew(flow.s, seg):
            same_client = flow.s is not None and flow.s.ack is not None and seg.flags & ACK and flow.s.ack == seg.ack
            s = self.heard(None, seg, now)
            flow = Flow(p=flow.p, p_before=flow.p_before, s=s, client_scale=flow.client_scale, s_next=seg.seq,
                        s_ts=seg.tsval or 0, inherited=flow.inherited)  # fmt: skip
            self.home(flow)[key] = flow
            self.join(flow)
            if self.taken_over and flow.shift is None and not same_client:
                del self.home(flow)[key]
                return None
        else:
            flow.s = self.heard(flow.s, seg, now)
            self.join(flow)
        return flow

    def announces(self, flow: Flow, seg: Segment) -> None:
        """An option that only one of the two VMs has can't be rewritten: the client goes by what it gets now."""
        if flow.shift is not None and not flow.answered and (seg.wscale is None) != (flow.p_wscale is None):
            flow.p_wscale, flow.p_scale = seg.wscale, flow.s_scale

    def vm_sends(self, flow: Flow, seg: Segment) -> None:
        flow.signed |= seg.signed
        copied = flow.s is None and flow.p is not None and not seg.flags & (SYN | RST)
        if copied and flow.p is not None and abs(diff(seg.seq, flow.p.isn)) <= NEAR:
            flow.p.used_by = flow.p.isn
        flow.reset = bool(seg.flags & RST)
        if flow.reset:
            return
        end = (seg.seq + seg.length) % 2**32
        if flow.unplaced and flow.unproven:
            flow.c_ack = None
        if flow.unplaced or diff(end, flow.s_next) > 0:
            flow.s_next = end
        flow.beyond |= seg.length > bool(seg.flags & SYN)
        if seg.flags & FIN and not seg.fragment:
            flow.s_fin = end
        if seg.tsval is not None and (flow.unplaced or diff(seg.tsval, flow.s_ts) > 0):
            flow.s_ts = seg.tsval
        flow.unplaced = False
        if seg.flags & ACK and (flow.s_ack is None or diff(seg.ack, flow.s_ack) > 0):
            if flow.s_ack is None or diff(seg.ack, flow.c_next) > 0:
                flow.c_next = seg.ack
            flow.s_ack = seg.ack
            flow.c_fin_acked = flow.c_fin == seg.ack

    def vm_receives(self, flow: Flow, seg: Segment, now: int) -> None:
        if seg.flags & SYN:
            flow.client_scale = scale(seg.wscale)
            if seg.flags & ACK and flow.s is not None and flow.s.active:
                flow.unscaled = seg.wscale is None
        if flow.shift is None or flow.s is None:
            return
        mapped = (seg.ack - flow.shift) % 2**32
        if seg.flags & RST:
            if flow.s_ack is not None:
                flow.reset |= seg.seq in (flow.s_ack, flow.c_next)
            else:
                flow.reset |= bool(seg.flags & ACK) and mapped == (flow.s.isn + 1) % 2**32
            return
        if not seg.flags & ACK:
            return
        if flow.unplaced:
            flow.c_ack = seg.ack
            flow.c_next = (seg.seq + seg.length) % 2**32
            if seg.flags & FIN and not seg.fragment:
                flow.c_fin = flow.c_next
            return
        if flow.answered:
            credible = -max(NEAR, flow.c_window) <= diff(mapped, flow.s_next) <= 65535
        else:
            credible = 0 < (mapped - flow.s.isn) % 2**32 <= (flow.s_next - flow.s.isn) % 2**32
        if not credible:
            return
        echoes = not self.taken_over and seg.tsval is not None and flow.ts_shift is not None
        if echoes and diff(seg.tsecr, flow.p_ts) > 0:
            flow.p_ts, flow.p_ts_at = seg.tsecr, now
        if not flow.answered:
            flow.answered, flow.reset = True, False
        if flow.c_ack is None or diff(seg.ack, flow.c_ack) >= 0:
            client_scale = 14 if flow.client_scale is None else flow.client_scale
            flow.c_ack = seg.ack
            flow.c_window = seg.window << (0 if seg.flags & SYN else client_scale)
            flow.s_fin_acked = flow.s_fin is not None and diff(mapped, flow.s_fin) >= 0
        end = (seg.seq + seg.length) % 2**32
        if flow.s_ack is not None and (beyond := diff(end, flow.s_ack)) > 0:
            if beyond <= 1 << 20 and diff(end, flow.c_next) > 0:
                flow.c_next = end
            if beyond <= NEAR and seg.flags & FIN and not seg.fragment:
                flow.c_fin = end

    # ------------------------------------------------------------------ bytes

    def drop_cut(self, flow: Flow | None) -> int:
        if flow is None or flow.shift is None or flow.signed or (not flow.shift and flow.p_scale == flow.s_scale):
            return NONE
        return DROP

    def edits(self, flow: Flow, seg: Segment, by_vm: bool, outward: bool) -> dict[int, int]:
        """The 32-bit fields that become other ones, by offset."""
        assert flow.shift is not None
        sign = 1 if outward else -1
        out = {}
        if by_vm:
            out[seg.at + 4] = sign * flow.shift
        elif self.echoes(seg):
            out[seg.at + 8] = sign * flow.shift
        options = seg.options() if seg.there - seg.at > 20 else []
        for kind, at, size in options:
            if kind == 5 and not by_vm:
                out |= dict.fromkeys(self.sack_edges(at, size), sign * flow.shift)
            elif kind == 8 and size == 10 and flow.ts_shift is not None and by_vm:
                out[at + 2] = sign * flow.ts_shift
            elif kind == 8 and size == 10 and flow.ts_shift is not None and self.echoes(seg):
                out[at + 6] = sign * flow.ts_shift
        new = {at: (num(seg.data, at) + add) % 2**32 for at, add in out.items() if at + 4 <= seg.there}
        if not outward and not by_vm and self.bounded(flow):
            for kind, at, size in options:
                if (kind, size) == (8, 10) and at + 6 in new:
                    new[at + 6] = self.echo(flow, new[at + 6])
        return new

    def finish(self, flow: Flow, seg: Segment, vnet_len: int, outward: bool) -> tuple[int, bytes]:
        if flow.shift is None or seg.signed or (outward and self.has_no_number(flow, seg)):
            return NONE, seg.data
        new = bytearray(seg.data)
        for at, value in self.edits(flow, seg, outward, outward).items():
            new[at : at + 4] = value.to_bytes(4)
        if outward:
            new[seg.at + 14 : seg.at + 16] = self.window(flow, seg).to_bytes(2)
            place = seg.option(3, 3)
            if self.taken_over and seg.flags & SYN and place is not None and flow.p_wscale is not None:
                new[place + 2] = flow.p_wscale
        if not self.is_partial(seg.data, vnet_len, seg.at):
            self.fix(seg.data, new, seg.at, seg.at + seg.header, seg.at + 16)
        return (DONE if bytes(new) != seg.data else NONE), bytes(new)

    def quote(self, data: bytes, vnet_len: int, nic: int, outward: bool) -> tuple[int, bytes]:
        frame = open_frame(data, vnet_len)
        errors = {1: (3, 4, 5, 11, 12), 58: range(128)}
        if frame is None or frame.fragment_at is not None or data[frame.l4] not in errors.get(frame.protocol, ()):
            return NONE, data
        inner = open_ip(data, frame.l4 + 8, frame.end)
        if inner is None or inner.protocol != 6 or inner.end - inner.l4 < 8:
            return NONE, data
        seg = Segment(inner.l4, inner.end, inner.src, inner.dst, frame.vlans, data)
        flow = self.find(self.key(nic, seg, from_vm=not outward))
        if flow is None or flow.shift is None or flow.signed:
            return NONE, data
        new = bytearray(data)
        for at, value in self.edits(flow, seg, not outward, outward).items():
            new[at : at + 4] = value.to_bytes(4)
        if seg.there - seg.at >= 18:
            self.fix(data, new, seg.at, seg.there, seg.at + 16)
        if not self.is_partial(data, vnet_len, frame.l4):
            self.fix(data, new, frame.l4, frame.end, frame.l4 + 2)
        return (DONE if bytes(new) != data else NONE), bytes(new)

    def fix(self, old: bytes, new: bytearray, start: int, end: int, at: int) -> None:
        """The checksum at `at` covers [start, end): what it was, and the difference, modulo 65,535."""
        if bytes(new[start:end]) == old[start:end]:
            return
        difference = ones_sum(bytes(new[start:end])) - ones_sum(old[start:end])
        csum = (int.from_bytes(new[at : at + 2]) - difference) % 65535
        new[at : at + 2] = csum.to_bytes(2)
