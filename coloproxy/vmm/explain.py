# SPDX-License-Identifier: Apache-2.0
"""QEMU's events and exit in words: what happened, and whether somebody wanted it. Pure; by QEMU 7.2's qapi/*.json."""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping
from typing import Final


class Cause(enum.Enum):
    """Who ended the VM, or began it anew."""

    GUEST = "guest"
    """The guest's own doing: it was powered off, or rebooted."""
    OPERATOR = "operator"
    """Somebody on the host: QMP quit, a signal, a closed window."""
    FAULT = "fault"
    """Nobody wanted it: a panic, an error of the host, a crash."""


# qapi/run-state.json, ShutdownCause.
_SHUTDOWN: Final[Mapping[str, tuple[Cause, str]]] = {
    "none": (Cause.FAULT, "no reason given"),
    "host-error": (Cause.FAULT, "QEMU met an error that it can't go on after"),
    "host-qmp-quit": (Cause.OPERATOR, "quit, by QMP"),
    "host-qmp-system-reset": (Cause.OPERATOR, "system_reset, by QMP"),
    "host-signal": (Cause.OPERATOR, "a signal to QEMU (SIGTERM, SIGINT or SIGHUP)"),
    "host-ui": (Cause.OPERATOR, "its window was closed"),
    "guest-shutdown": (Cause.GUEST, "the guest was shut down from inside"),
    "guest-reset": (Cause.GUEST, "the guest rebooted"),
    "guest-panic": (Cause.FAULT, "the guest's kernel panicked"),
    "subsystem-reset": (Cause.GUEST, "a part of the machine was reset"),
    "snapshot-load": (Cause.OPERATOR, "a snapshot is being loaded"),
}

# qapi/run-state.json, RunState.
_STATUS: Final[Mapping[str, str]] = {
    "colo": "stands still for a checkpoint",
    "debug": "stopped by a debugger",
    "finish-migrate": "stands still at the end of a copy to another host",
    "guest-panicked": "stopped: the guest's kernel panicked",
    "inmigrate": "waits for, or takes in, another host's copy",
    "internal-error": "stopped: QEMU met an internal error",
    "io-error": "stopped: a disk error",
    "paused": "stopped by an operator",
    "postmigrate": "stopped: the VM has been copied to another host",
    "prelaunch": "not yet started",
    "preconfig": "not yet built",
    "restore-vm": "a snapshot is being loaded",
    "running": "runs",
    "save-vm": "a snapshot is being made",
    "shutdown": "shut down, but QEMU still runs",
    "suspended": "suspended by the guest",
    "watchdog": "stopped by its watchdog",
}

# qapi/migration.json, COLOExitReason.
_COLO_EXIT: Final[Mapping[str, str]] = {
    "none": "no reason given",
    "request": "as requested (x-colo-lost-heartbeat)",
    "error": "an error, most often the loss of the other side",
    "processing": "in progress",
}


def shutdown_cause(data: Mapping[str, object]) -> Cause:
    """Who is behind a SHUTDOWN or RESET event. A reason that we don't know: the guest or a fault, as `guest` says."""
    known = _SHUTDOWN.get(str(data.get("reason")))
    if known is not None:
        return known[0]
    return Cause.GUEST if data.get("guest") is True else Cause.FAULT


def explain_status(status: str) -> str:
    """What `query-status` says. Tells an operator's `stop` from a checkpoint, both of which send STOP."""
    return _STATUS.get(status, f"in state {status}")


def explain_event(name: str, data: Mapping[str, object], status: str | None = None) -> str | None:
    """An event in words; None for one that says nothing about the VM's health.

    status: the run state that `query-status` answered after the event, where it is known. STOP without it can't be
    told from a checkpoint.
    """
    reason = str(data.get("reason", "none"))
    match name:
        case "SHUTDOWN":
            return f"shut down: {_shutdown(reason)}"
        case "RESET":
            return f"reset: {_shutdown(reason)}"
        case "POWERDOWN":
            return "the guest was asked to power off (system_powerdown)"
        case "STOP":
            return explain_status(status) if status else "stopped, by an operator or for a checkpoint"
        case "RESUME":
            return "runs"
        case "SUSPEND" | "SUSPEND_DISK":
            return "suspended by the guest"
        case "WAKEUP":
            return "woken up"
        case "GUEST_PANICKED" | "GUEST_CRASHLOADED":
            what = "panicked" if name == "GUEST_PANICKED" else "panicked, and now runs its crash kernel"
            return f"the guest's kernel {what}; action: {data.get('action', 'none')}"
        case "WATCHDOG":
            return f"the guest's watchdog expired; action: {data.get('action', 'none')}"
        case "BLOCK_IO_ERROR":
            return _block_io_error(data)
        case "QUORUM_REPORT_BAD":
            error = f": {data['error']}" if data.get("error") else ""
            return f"a copy of a disk failed: {data.get('type')} on {data.get('node-name')}{error}"
        case "QUORUM_FAILURE":
            return f"no copy of the disk {data.get('reference')} could be used"
        case "BLOCK_JOB_ERROR":
            return f"disk job {data.get('device')}: {data.get('operation')} failed; action: {data.get('action')}"
        case "COLO_EXIT":
            return f"COLO ended on the {data.get('mode')}: {_COLO_EXIT.get(reason, reason)}"
        case "MIGRATION" if data.get("status") in ("failed", "cancelled"):
            return f"the copy to the other host {data.get('status')}"
        case "MEMORY_FAILURE":
            return f"a memory error in the {data.get('recipient')}; action: {data.get('action')}"
    return None


def explain_exit(status: int | None, shutdown: Mapping[str, object] | None) -> tuple[Cause, str]:
    """Why QEMU ended: (who is behind it, in words).

    status: exit status, -N for signal N, None if not known.
    shutdown: data of the SHUTDOWN event that came before, None if none did. An adopted QEMU's end is explained by it
    alone; without it the end counts as a crash.
    """
    if shutdown is not None and status in (0, None):
        return shutdown_cause(shutdown), _shutdown(str(shutdown.get("reason", "none")))
    if status is None:
        return Cause.FAULT, "it ended without a word: a crash, or SIGKILL (by hand, or want of memory)"
    if status < 0:
        name = _signal(-status)
        if -status == signal.SIGKILL:
            return Cause.FAULT, f"killed by {name}: by hand, by us, or for want of memory (the kernel's log knows)"
        return Cause.FAULT, f"crashed with {name}"
    if status == 0:
        return Cause.OPERATOR, "it ended by itself, with exit status 0"
    return Cause.FAULT, f"it gave up with exit status {status}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shutdown(reason: str) -> str:
    known = _SHUTDOWN.get(reason)
    return known[1] if known is not None else reason


def _block_io_error(data: Mapping[str, object]) -> str:
    where = data.get("node-name") or data.get("device") or "?"
    why = "no space left on the host" if data.get("nospace") is True else str(data.get("reason", "unknown"))
    match data.get("action"):
        case "stop":
            then = "the VM is stopped"
        case "report":
            then = "the guest was told"
        case _:
            then = "ignored"
    return f"disk {where}: {data.get('operation')} failed: {why}; {then}"
