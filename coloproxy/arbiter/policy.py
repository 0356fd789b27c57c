# SPDX-License-Identifier: Apache-2.0
"""No arbiter: the operator has said beforehand which loss he prefers."""

from __future__ import annotations

from typing import Literal

from ..errors import MisuseError
from .claim import Claim, Host, Ruling, Verdict, check_name, check_pair

OnPartition = Literal["primary", "stop"]


class PolicyArbiter:
    """on_partition = "primary": the primary goes on, and the secondary never takes over by itself. "stop": neither.

    Its answer depends on nothing but the claim, so it is the same whenever it is asked for. It keeps nothing.
    """

    def __init__(self, on_partition: OnPartition) -> None:
        if on_partition not in ("primary", "stop"):
            raise MisuseError(f"on_partition is 'primary' or 'stop', not {on_partition!r}")
        self._on_partition = on_partition

    async def claim(self, claim: Claim) -> Ruling:
        if self._on_partition == "stop":
            return Ruling(Verdict.UNKNOWN, None, None, 'on_partition = "stop": the operator decides', 0.0)
        if claim.role == "primary":
            why = 'on_partition = "primary": the primary goes on'
            return Ruling(Verdict.WON, claim.host, claim.generation, why, 0.0)
        why = 'on_partition = "primary": the primary may be going on, so the secondary must not'
        return Ruling(Verdict.LOST, None, None, why, 0.0)

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        check_name(pair, host, generation)
        return True

    async def owner(self, pair: str) -> Ruling:
        check_pair(pair)
        return Ruling(Verdict.UNKNOWN, None, None, "there is no arbiter that would know", 0.0)

    async def close(self) -> None:
        return None
