# SPDX-License-Identifier: Apache-2.0
"""An arbiter that decides, and a fence that makes sure."""

from __future__ import annotations

import asyncio

from .claim import Arbiter, Claim, Host, Ruling, Verdict


class Both:
    """WON needs both: the arbiter's word first, then the other host off.

    A host that the arbiter hasn't named never shoots, so two live hosts don't shoot each other. Where the arbiter can't
    tell, the fence is not asked instead: the other may have won, and clients been told things that only it knows.
    """

    def __init__(self, fence: Arbiter, arbiter: Arbiter) -> None:
        self._fence = fence
        self._arbiter = arbiter

    async def claim(self, claim: Claim) -> Ruling:
        first = await self._arbiter.claim(claim)
        if first.verdict is not Verdict.WON:
            return first
        second = await self._fence.claim(claim)
        verdict = Verdict.WON if second.verdict is Verdict.WON else Verdict.UNKNOWN
        reason = f"{first.reason}; {second.reason}"
        return Ruling(verdict, first.owner, first.generation, reason, first.seconds + second.seconds)

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        return await self._arbiter.record(pair, host, generation)

    async def owner(self, pair: str) -> Ruling:
        return await self._arbiter.owner(pair)

    async def close(self) -> None:
        await asyncio.gather(self._fence.close(), self._arbiter.close())
