# SPDX-License-Identifier: Apache-2.0
"""One standstill of the guest, and what the RESUME at its end means.

What QEMU 7.2 shows of a checkpoint (migration/colo.c): STOP, MIGRATION_PASS (with the capability `events`), RESUME.
There is no event that says "committed", so RESUME is taken for a commit only with proof:
  - a MIGRATION_PASS came since STOP, or `query-status`, sent at STOP, said "colo" (run state of a checkpoint only),
    or MIGRATION `colo` came (the first one); and
  - no COLO_EXIT came since (that leaves the states in which a RESUME can be a commit).
Proof of the contrary needs both: the capability `events` is on, so a checkpoint would have shown a MIGRATION_PASS,
and `query-status` named another run state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .checkpoint_states import IN_COLO, Input, State

CHECKPOINT_RUN_STATES: Final = frozenset({"colo", "finish-migrate"})
NO_PROOF: Final = frozenset({None, "running"})  # not answered, or too late


@dataclass(slots=True)
class Pause:
    """From STOP (or MIGRATION `colo`) on. Times in ns.

    at         when it began, by QEMU's timestamp
    seen       when we heard of it
    pass_seen  a MIGRATION_PASS came in it
    run_state  as query-status said during it
    """

    at: int
    seen: int
    pass_seen: bool = False
    run_state: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Proven."""
        return self.pass_seen or self.run_state in CHECKPOINT_RUN_STATES

    @property
    def is_other(self) -> bool:
        """An operator's stop, a shutdown, ... as far as query-status tells."""
        return self.run_state not in NO_PROOF and not self.is_checkpoint


def meaning_of_resume(state: State, pause: Pause | None, *, events_on: bool) -> Input:
    """Commit, none, or doubt. `events_on`: the migration capability, as far as we know."""
    if state is State.ENTERING:
        return Input.RESUME_COMMIT
    if pause is None:
        return Input.RESUME_DOUBT
    if state in IN_COLO and pause.is_checkpoint:
        return Input.RESUME_COMMIT
    return Input.RESUME_PLAIN if events_on and pause.is_other else Input.RESUME_DOUBT
