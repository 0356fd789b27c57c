# SPDX-License-Identifier: Apache-2.0
"""The C core, by its Python face, as an implementation that run.py can drive."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import wire

from coloproxy import Comparator, Side
from coloproxy.comparator import Emitted, Frame, Released
from coloproxy.events import Divergence, FlowId, LimitHit
from coloproxy.events import Tolerated as TolerationEvent
from model.packet import Cls, Key
from model.verdict import (
    NEVER,
    Action,
    Cause,
    Config,
    Discard,
    Diverged,
    Emit,
    Event,
    Limit,
    Reason,
    Release,
    Tolerated,
    Want,
)


def _address(family: int, text: str) -> bytes:
    return ipaddress.ip_address(text).packed if family else bytes.fromhex(text.replace(":", ""))


def _key(flow: FlowId | None) -> Key | None:
    if flow is None:
        return None
    src, dst = _address(flow.family, flow.source), _address(flow.family, flow.destination)
    return Key(Cls(flow.frame_class), flow.family, flow.protocol, flow.ethertype, flow.vlans, src, dst,
               flow.source_port, flow.destination_port, flow.nic)  # fmt: skip


def _frame(data: bytes) -> Frame:
    return Frame(bytes(data), wire.vnet_len(data), wire.nic_of(data))


class Core:
    def __init__(self, config: Config) -> None:
        self.comparator = Comparator(
            max_flows=config.max_flows,
            max_frames=config.max_frames,
            max_bytes=config.max_bytes,
            max_flow_frames=config.max_flow_frames,
            max_flow_bytes=config.max_flow_bytes,
            max_fragments=config.max_fragments,
            reorder_frames=config.reorder_frames,
            compare_timeout=config.compare_timeout,
            reorder_window=config.reorder_window,
            gap_window=config.gap_window,
            keep_gap=config.keep_gap,
            any_scale=config.any_scale,
            rules=config.rules,
        )
        self.names: list[int] = []  # of the frames taken, by their number

    def feed(self, side: int, frames: Sequence[tuple[int, bytes]], now: int) -> int:
        batch = [_frame(data) for _, data in frames]
        taken = self.comparator.feed(Side(side), batch, now)
        self.names += [name for name, _ in frames[:taken]]
        return taken

    def feed_both(
        self, primary: Sequence[tuple[int, bytes]], secondary: Sequence[tuple[int, bytes]], now: int
    ) -> tuple[int, int]:
        batches = [[_frame(data) for _, data in side] for side in (primary, secondary)]
        taken = self.comparator.feed_both(batches[0], batches[1], now)
        self.names += [name for name, _ in (*primary, *secondary)]  # those that were not taken have numbers too
        return taken

    def take(self) -> tuple[list[Action], list[Event]]:
        actions: list[Action] = []
        for action in self.comparator.actions():
            if isinstance(action, Emitted):
                actions.append(Emit(action.data, action.vnet_len, action.nic))
            elif isinstance(action, Released):
                actions.append(Release(self.names[action.frame], action.data, Reason(action.reason)))
            else:
                actions.append(Discard(self.names[action.frame], Reason(action.reason)))
        events: list[Event] = []
        for event in self.comparator.events():
            cause = Cause(event.cause)
            if isinstance(event, Divergence):
                events.append(Diverged(cause, event.epoch, _key(event.flow), event.offset, event.context,
                                       event.primary, event.secondary))  # fmt: skip
            elif isinstance(event, TolerationEvent):
                key = _key(event.flow)
                assert key is not None
                events.append(Tolerated(event.rule, event.epoch, key, event.offset, event.context,
                                        event.primary, event.secondary))  # fmt: skip
            elif isinstance(event, LimitHit):
                events.append(Limit(cause, event.epoch))
            else:
                events.append(Want(cause, event.epoch))
        return actions, events

    def deadline(self) -> int:
        deadline = self.comparator.deadline
        return NEVER if deadline is None else deadline

    def tick(self, now: int) -> None:
        self.comparator.tick(now)

    def stop(self, now: int) -> None:
        self.comparator.stop(now)

    def commit(self, resumed: int, now: int) -> None:
        self.comparator.commit(resumed, now)

    def abort(self, now: int) -> None:
        self.comparator.abort(now)

    def alone(self, now: int) -> None:
        self.comparator.alone(now)
