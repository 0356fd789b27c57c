# SPDX-License-Identifier: Apache-2.0
"""What is asked of an arbiter, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from ..errors import MisuseError

Host = Literal["a", "b"]
Role = Literal["primary", "secondary"]
HOSTS: tuple[Host, Host] = ("a", "b")


@dataclass(frozen=True, slots=True)
class Claim:
    """A host wants to be the only owner of the truth.

    Only a host that has the state may claim: a primary that was protected, or a secondary that stood by, since this
    very generation began and without a restart of its VM since. A host that comes up again with an old disk must not:
    an arbiter can't see what the disk holds.

    Attributes:
        pair: its name.
        host: that claims.
        role: it has at present.
        generation: the one to be won: the present one + 1.
    """

    pair: str
    host: Host
    role: Role
    generation: int

    def __post_init__(self) -> None:
        """Raises MisuseError for what no arbiter could decide."""
        check_name(self.pair, self.host, self.generation)
        if self.role not in ("primary", "secondary"):
            raise MisuseError(f"a claim needs a role, not {self.role!r}")


class Verdict(Enum):
    """How a claim has ended."""

    WON = "won"  # it is the owner: it may go on alone
    LOST = "lost"  # it must not, ever, with what it has
    UNKNOWN = "unknown"  # it must not now; to ask again is right


@dataclass(frozen=True, slots=True)
class Ruling:
    """An answer.

    Attributes:
        verdict: of a claim. A mere question (`Arbiter.owner`) is never WON: it is UNKNOWN, whatever it has found.
        owner: "a" or "b", if that is known.
        generation: that `owner` has; 0: nobody is on record; None: not known.
        reason: for people.
        seconds: that it took.
    """

    verdict: Verdict
    owner: str | None
    generation: int | None
    reason: str
    seconds: float


class Arbiter(Protocol):
    """Decides who goes on. Methods keep a deadline of their own, and raise nothing but MisuseError."""

    async def claim(self, claim: Claim) -> Ruling:
        """Idempotent: who has won wins again, also after its restart. Never WON for two hosts at one generation.

        UNKNOWN where it can't be told in time. That doesn't mean that nothing was won: it may turn out by asking again,
        and the other host may be told meanwhile that it has lost.
        """

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        """The owner says where it stands: at the very start, or after a handover that the peer declared.

        Never lowers, never overwrites another owner of the same or a higher generation.

        Returns:
            True: it is on record, or this arbiter keeps none. False: it is not, or that can't be told.
        """

    async def owner(self, pair: str) -> Ruling:
        """Asks only."""

    async def close(self) -> None:
        """Lets go of connections and tasks. Idempotent."""


def check_name(pair: str, host: str, generation: int) -> None:
    """Raises MisuseError for a pair, a host or a generation that can't be."""
    check_pair(pair)
    if host not in HOSTS:
        raise MisuseError(f"a host is 'a' or 'b', not {host!r}")
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 < generation < 2**63:
        raise MisuseError(f"a generation is a number from 1 on, not {generation!r}")


def check_pair(pair: str) -> None:
    """Raises MisuseError for a name that no pair can have."""
    try:
        if not pair or "\0" in pair or not pair.encode():
            raise MisuseError(f"a pair can't be called {pair!r}")
    except UnicodeEncodeError as error:
        raise MisuseError(f"a pair can't be called {pair!r}: {error}") from error
