# SPDX-License-Identifier: Apache-2.0
"""The options of `coloproxy compare`, parsed."""

from __future__ import annotations

from dataclasses import dataclass, field

from .address import Address
from .checkpoint_actions import ON_DEMAND_ONLY, Timing
from .checkpoint_policy import PolicyOptions
from .command_guide import CommandOptions
from .engine import Engine
from .errors import MisuseError
from .recording import RecordOptions, RingOptions, next_number
from .rules import NO_RULES, Rules


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """As on the command line; units are in the names. None: the engine's default, or not wanted.

    out_redirector  the filter-redirector to revive: its id, "auto" to find it, "none" never to
    linger_s        at the end, for released frames that outdev has not taken yet
    """

    primary_in: Address
    secondary_in: Address
    outdev: Address
    notify_dev: Address | None = None
    qmp: Address | None = None
    checkpoint_command: CommandOptions | None = None
    vnet_hdr_support: bool = False
    compare_timeout_ms: int = 3000
    gap_timeout_ms: int = 50
    expired_scan_cycle_ms: int = 1000
    max_queue_size: int | None = None
    max_flow_bytes: int | None = None
    max_flows: int | None = None
    max_fragments: int | None = None
    max_frames: int | None = None
    max_bytes: int | None = None
    keep_gap: bool = False
    rules: Rules = NO_RULES
    timing: Timing = field(default_factory=Timing)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    out_redirector: str = "auto"
    stats_interval_s: float | None = None
    json_events: str | None = None
    linger_s: float = 1.0
    record: RecordOptions | None = None
    record_ring: RingOptions | None = None

    def check(self) -> None:
        """Raises MisuseError for what can't work together."""
        if self.record is not None:
            self.record.check()
        if self.record_ring is not None:
            self.record_ring.check()
        if self.qmp is not None and self.notify_dev is not None:
            raise MisuseError("--qmp and --notify-dev: use one of them; a commit must be told by one side only")
        if self.checkpoint_command is not None:
            if self.qmp is not None or self.notify_dev is not None:
                raise MisuseError("--checkpoint-command: not together with --qmp or --notify-dev; one alone may commit")
            if self.timing.checkpoint_delay_ms != ON_DEMAND_ONLY:
                raise MisuseError("--checkpoint-period needs --qmp")
            if self.keep_gap:
                raise MisuseError("--keep-gap: not with --checkpoint-command, at whose commit both VMs stand still")
            self.checkpoint_command.check()
        elif self.qmp is None and self.notify_dev is None and not self.policy.is_idle:
            raise MisuseError("--checkpoint-policy adaptive needs --qmp, --checkpoint-command or --notify-dev")
        places: dict[str, str] = {}
        for option, address in (
            ("--primary-in", self.primary_in),
            ("--secondary-in", self.secondary_in),
            ("--outdev", self.outdev),
            ("--notify-dev", self.notify_dev),
        ):
            if address is None or (address.path is None and address.port == 0):
                continue
            other = places.setdefault(str(address), option)
            if other != option:
                raise MisuseError(f"{other} and {option}: both are {address}")

    def engine(self, *, again: bool = False) -> Engine:
        """An engine by these options, that records if that is wanted. Raises MisuseError.

        Args:
            again: it follows another one of this service, whose recording stays as it is.
        """
        engine = self._engine()
        if self.record is not None or self.record_ring is not None:
            number = 0 if self.record is None else next_number(self.record, opened=again)
            engine.record(self.record, number, ring=self.record_ring)
        return engine

    def _engine(self) -> Engine:
        return Engine(
            vnet_hdr=self.vnet_hdr_support,
            compare_timeout=self.compare_timeout_ms * 1_000_000,
            gap_window=self.gap_timeout_ms * 1_000_000,
            max_flow_frames=self.max_queue_size,
            max_flow_bytes=self.max_flow_bytes,
            max_flows=self.max_flows,
            max_fragments=self.max_fragments,
            max_frames=self.max_frames,
            max_bytes=self.max_bytes,
            keep_gap=self.keep_gap,
            rules=self.rules,
        )
