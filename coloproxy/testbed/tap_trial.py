# SPDX-License-Identifier: Apache-2.0
"""One failover of a pair of namespaces in the middle of transfers, from nothing to nothing."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .client import Transfer
from .errors import DeadlineError
from .namespaces import Cut, NamespaceOptions, NamespacePair
from .pair_toml import PairFile
from .proxies import divergences, fail_over, protect

RATE: Final = 3_000_000
"""Bytes a second of each transfer: slow enough for the cut to come in the middle."""
OFFLOADED_BYTES: Final = 30_000_000
"""A good size of a transfer with offloads: super-frames come in still larger bursts."""
_PROGRESS_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a client does."""

    upload: bool
    ipv6: bool

    def __str__(self) -> str:
        return f"{'upload' if self.upload else 'download'} over IPv{6 if self.ipv6 else 4}"


ALL_KINDS: Final = tuple(Kind(upload, ipv6) for upload in (False, True) for ipv6 in (False, True))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one transfer went."""

    kind: Kind
    kept: bool
    """The same connection, every byte, the right digest."""
    stall: float
    """The longest time without a byte, in seconds."""
    text: str


async def failover_trial(
    options: NamespaceOptions,
    how: Cut,
    *,
    kinds: Sequence[Kind] = ALL_KINDS,
    seed: int | str = 1,
    file: PairFile | None = None,
) -> list[Outcome]:
    """Protect the pair, begin all transfers, cut the primary's host off somewhere in the first third, take over.

    Each transfer is of `options.large_bytes`.  Raises DeadlineError if the cut can't be made in the middle, or if the
    VMs differed before it: the secondary has no copy of the primary's state then, and must not be blamed.
    """
    rng = random.Random(seed)
    body = rng.randbytes(options.large_bytes)
    async with NamespacePair(options) as bed:
        proxies = await protect(bed, file, services=("nginx", "upload"))
        transfers: list[tuple[Kind, Transfer]] = []
        for kind in kinds:
            if kind.upload:
                transfer = await bed.client.upload(body, rate=RATE, ipv6=kind.ipv6)
            else:
                transfer = await bed.client.download(rate=RATE, ipv6=kind.ipv6)
            transfers.append((kind, transfer))
        at = rng.randrange(options.large_bytes // 20, options.large_bytes // 3)
        for _, transfer in transfers:
            await transfer.reached(at, deadline=_PROGRESS_SECONDS)
        status = await proxies["primary"].vm_status()
        if count := divergences(status):
            raise DeadlineError(f"the VMs differed {count} times before the cut: {status['comparator']}")
        if ended := [str(kind) for kind, transfer in transfers if not transfer.running]:
            raise DeadlineError(f"too late for a cut, these have ended: {', '.join(ended)}")
        await fail_over(bed, proxies["secondary"], how)
        want = {False: bed.content.large_sha256, True: hashlib.sha256(body).hexdigest()}
        return list(await asyncio.gather(*(_outcome(kind, each, at, want[kind.upload]) for kind, each in transfers)))


async def _outcome(kind: Kind, transfer: Transfer, at: int, want: str) -> Outcome:
    if not await transfer.ended(_PATIENCE_SECONDS):
        text = f"cut behind {at / 1e6:.1f} MB; no byte since {transfer.bytes / 1e6:.1f} MB"
        return Outcome(kind, False, transfer.stalled, text)
    result = await transfer.result(_PROGRESS_SECONDS)
    kept = result.returncode == 0 and result.sha256 == want and result.connections == 1
    text = f"cut behind {at / 1e6:.1f} MB; {result.bytes} bytes, longest stall {result.longest_stall:.2f} s"
    if not kept:
        text += f"; curl {result.returncode} {result.error}, sha256 {'right' if result.sha256 == want else 'WRONG'}"
    return Outcome(kind, kept, result.longest_stall, text)
