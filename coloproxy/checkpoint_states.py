# SPDX-License-Identifier: Apache-2.0
"""The states of the checkpoint controller and every legal transition between them, in one table.

A transition names the engine's part in it. The rule behind the table: whenever it is not known whether the primary
and the secondary are at the same epoch, the engine holds (STOP), and only proof lets it go on.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    # No QMP: checkpoints could commit unseen, COLO could begin or end. The engine holds everything.
    BLIND = auto()
    # QMP is there; asking whether QEMU is in COLO. The engine holds everything; events make us ask again.
    PROBING = auto()
    # Not in COLO: there is no secondary, the engine passes everything (ALONE).
    IDLE = auto()
    # Not in COLO and the guest stands still: an operator's stop, or the last phase of a migration that may become
    # COLO. The engine keeps what it reads.
    IDLE_STOPPED = auto()
    # MIGRATION `colo` came: the secondary loads the last state. The RESUME to come begins protection.
    ENTERING = auto()
    # In COLO, the guest runs, frames are compared. Checkpoints may be asked for.
    PROTECTED = auto()
    # In COLO, the guest stands still, for a checkpoint or an operator. Nothing may be asked: it would be lost.
    STOPPED = auto()
    # In COLO, the guest runs, but commits may have been missed: the engine holds everything, a checkpoint is asked
    # for at once, and its commit gives a known base.
    HELD = auto()
    # As HELD, and the guest stands still. A proven commit begins (or resumes) protection.
    HELD_STOPPED = auto()


class Input(Enum):
    CONNECTED = auto()  # QMP is there
    LOST = auto()  # QMP is gone
    PROBED_OUT = auto()  # QEMU says: not in COLO
    PROBED_IN_RUNNING = auto()  # QEMU says: in COLO, and the guest runs
    PROBED_IN_STOPPED = auto()  # QEMU says: in COLO, and the guest stands still
    STOP = auto()  # event STOP
    COLO_BEGINS = auto()  # event MIGRATION `colo`
    COLO_ENDS = auto()  # COLO_EXIT, MIGRATION completed/failed/cancelled, or QEMU says so when asked
    RESUME_COMMIT = auto()  # event RESUME, with proof that a checkpoint has committed
    RESUME_PLAIN = auto()  # event RESUME, with proof that none has
    RESUME_DOUBT = auto()  # event RESUME, without proof of either


class Do(Enum):
    """The engine's part."""

    NOTHING = auto()
    STOP = auto()
    COMMIT = auto()
    ABORT = auto()
    ALONE = auto()


# An input that is not in the table changes nothing in that state.
TRANSITIONS: dict[tuple[State, Input], tuple[Do, State]] = {
    (State.BLIND, Input.CONNECTED): (Do.NOTHING, State.PROBING),
    (State.PROBING, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.PROBING, Input.PROBED_OUT): (Do.ALONE, State.IDLE),
    (State.PROBING, Input.PROBED_IN_RUNNING): (Do.NOTHING, State.HELD),
    (State.PROBING, Input.PROBED_IN_STOPPED): (Do.NOTHING, State.HELD_STOPPED),
    (State.IDLE, Input.LOST): (Do.STOP, State.BLIND),
    (State.IDLE, Input.STOP): (Do.STOP, State.IDLE_STOPPED),
    (State.IDLE, Input.COLO_BEGINS): (Do.STOP, State.ENTERING),  # a guest started with -S: there is no STOP
    (State.IDLE, Input.RESUME_DOUBT): (Do.STOP, State.PROBING),  # -S again, and MIGRATION events may be off
    (State.IDLE_STOPPED, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.IDLE_STOPPED, Input.COLO_BEGINS): (Do.NOTHING, State.ENTERING),
    (State.IDLE_STOPPED, Input.RESUME_PLAIN): (Do.ABORT, State.IDLE),
    (State.IDLE_STOPPED, Input.RESUME_DOUBT): (Do.NOTHING, State.PROBING),
    (State.ENTERING, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.ENTERING, Input.COLO_ENDS): (Do.ALONE, State.IDLE),
    (State.ENTERING, Input.RESUME_COMMIT): (Do.COMMIT, State.PROTECTED),
    (State.PROTECTED, Input.LOST): (Do.STOP, State.BLIND),
    (State.PROTECTED, Input.STOP): (Do.STOP, State.STOPPED),
    (State.PROTECTED, Input.COLO_ENDS): (Do.ALONE, State.IDLE),
    (State.PROTECTED, Input.RESUME_DOUBT): (Do.STOP, State.HELD),  # a STOP was missed: should not happen
    (State.STOPPED, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.STOPPED, Input.COLO_ENDS): (Do.ALONE, State.IDLE),
    (State.STOPPED, Input.RESUME_COMMIT): (Do.COMMIT, State.PROTECTED),
    (State.STOPPED, Input.RESUME_PLAIN): (Do.ABORT, State.PROTECTED),
    (State.STOPPED, Input.RESUME_DOUBT): (Do.NOTHING, State.HELD),
    (State.HELD, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.HELD, Input.STOP): (Do.NOTHING, State.HELD_STOPPED),
    (State.HELD, Input.COLO_ENDS): (Do.ALONE, State.IDLE),
    (State.HELD_STOPPED, Input.LOST): (Do.NOTHING, State.BLIND),
    (State.HELD_STOPPED, Input.COLO_ENDS): (Do.ALONE, State.IDLE),
    (State.HELD_STOPPED, Input.RESUME_COMMIT): (Do.COMMIT, State.PROTECTED),
    (State.HELD_STOPPED, Input.RESUME_PLAIN): (Do.NOTHING, State.HELD),
    (State.HELD_STOPPED, Input.RESUME_DOUBT): (Do.NOTHING, State.HELD),
}

# In these, a running guest may be asked for a checkpoint.
MAY_ASK = frozenset({State.PROTECTED, State.HELD})
# In these, QEMU is in COLO as far as we know.
IN_COLO = frozenset({State.ENTERING, State.PROTECTED, State.STOPPED, State.HELD, State.HELD_STOPPED})
# In these, the guest stands still and a RESUME is due.
STANDING = frozenset({State.IDLE_STOPPED, State.ENTERING, State.STOPPED, State.HELD_STOPPED})
