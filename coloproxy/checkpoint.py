# SPDX-License-Identifier: Apache-2.0
"""The checkpoint controller: a sans-I/O state machine between QEMU's QMP, the comparator and the engine.

It takes QMP events and replies, the comparator's wishes and the time (integer ns, CLOCK_MONOTONIC), and returns a
list of actions in the order in which they must be carried out. States and transitions: checkpoint_states.py.

What a RESUME proves: checkpoint_pause.py. Where it proves nothing the output stays held, and a checkpoint settles it.

A checkpoint is asked for by setting x-checkpoint-delay. QEMU loses that silently while one runs; so it is sent only
while the guest runs, and again when no STOP follows soon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from . import reports
from .checkpoint_actions import (
    Action,
    EngineAbort,
    EngineAlone,
    EngineCommit,
    EngineStop,
    SendCommand,
    Timing,
)
from .checkpoint_pause import Pause, meaning_of_resume
from .checkpoint_probe import QUESTIONS, Probe, text_of
from .checkpoint_request import Request
from .checkpoint_states import IN_COLO, MAY_ASK, STANDING, TRANSITIONS, Do, Input, State

COLO_END_STATUS: Final = frozenset({"completed", "failed", "cancelled"})
# Each of these, while questions are on their way, may have made the answers old.
PROBE_AGAIN: Final = frozenset({"STOP", "RESUME", "MIGRATION", "COLO_EXIT"})
TOLD_EVENTS: Final = frozenset(
    {"SHUTDOWN", "RESET", "POWERDOWN", "SUSPEND", "WAKEUP", "WATCHDOG", "GUEST_PANICKED", "QUORUM_REPORT_BAD"}
)

WHY_RESTART: Final = "restart: QEMU was in COLO before this proxy"
WHY_AWAY: Final = "QMP was away, a checkpoint may have committed unseen"
WHY_BEGAN: Final = "COLO began unseen"
WHY_DOUBT: Final = "the guest resumed without proof of a checkpoint"


_Then = Callable[[object, int], None]


class Controller:
    """One per QEMU. Every method returns the actions to carry out, before anything else is done."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing if timing is not None else Timing()
        self.state = State.BLIND
        self.checkpoints = 0  # committed so far
        self.epoch = 0  # of the comparator, which counts commits and alones from 0
        self._out: list[Action] = []
        self._tokens = 0
        self._waiting: dict[int, tuple[str, _Then]] = {}
        self._request = Request()
        self._pause: Pause | None = None
        self._probe: Probe | None = None
        self._probe_at: int | None = None  # when to ask the questions again
        self._events_on = False  # migration capability `events`, as far as we know
        self._alarm_at: int | None = None  # next "QEMU does not answer"
        self._was_in_colo = False
        self._wrong_side_told = False
        self._why_held = WHY_RESTART

    # ------------------------------------------------------------- inputs

    def start(self) -> list[Action]:
        """To be called once, before frames move: until QMP has told what QEMU does, everything is held."""
        self._out.append(EngineStop())
        return self._take()

    def on_connected(self, now: int) -> list[Action]:
        """QMP is there and negotiated; the commands returned go to this connection."""
        if self._move(Input.CONNECTED):
            self._begin_probe(now)
        return self._take()

    def on_lost(self, reason: str) -> list[Action]:
        """QMP is gone. Replies that are due will not come."""
        before = self.state
        self._waiting.clear()
        self._probe = self._probe_at = self._pause = self._alarm_at = None
        self._events_on = False
        if self._move(Input.LOST):
            self._request.send_afresh()
            if before in IN_COLO:
                self._was_in_colo = True
                self._why_held = WHY_AWAY
            elif before is not State.PROBING:
                self._why_held = WHY_BEGAN
            self._out.append(reports.QmpLost(reason))
        return self._take()

    def on_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> list[Action]:
        """A QMP event. `at`: QEMU's own timestamp on our monotonic clock, None if it gave none."""
        match name:
            case "STOP":
                self._on_stop(_not_after(at, now), now)
            case "RESUME":
                self._on_resume(at, now)
            case "MIGRATION_PASS":
                if self._pause is not None:
                    self._pause.pass_seen = True
            case "MIGRATION":
                self._on_migration(text_of(data, "status"), _not_after(at, now), now)
            case "COLO_EXIT":
                self._on_colo_exit(data, now)
            case _ if name in TOLD_EVENTS:
                self._out.append(reports.QemuEvent(name, _listed(data)))
            case _:
                pass
        if self.state is State.PROBING and name in PROBE_AGAIN:
            self._begin_probe(now)
        return self._take()

    def on_reply(self, token: int, value: object, now: int) -> list[Action]:
        """The return value of a SendCommand."""
        entry = self._waiting.pop(token, None)
        if entry is not None:
            entry[1](value, now)
        return self._take()

    def on_failure(self, token: int, error: str, now: int) -> list[Action]:
        """A SendCommand was refused, or not answered in time."""
        entry = self._waiting.pop(token, None)
        if entry is None:
            return self._take()
        name, then = entry
        if name == "query-colo-status" and self._probe is not None:  # a QEMU without it: query-migrate suffices
            then({}, now)
            return self._take()
        self._out.append(reports.Trouble(f"QMP command {name} failed: {error}"))
        if name in QUESTIONS and self.state is State.PROBING:
            self._probe = None
            self._probe_at = now + self.timing.probe_retry
        return self._take()

    def want(self, cause: str, now: int, epoch: int | None = None) -> list[Action]:
        """The comparator (with its `epoch`) or the operator wants a checkpoint. Many wants make one request.

        A want of an epoch that has ended is satisfied already. Outside COLO there is nobody to be made equal.
        """
        if self.state in {State.IDLE, State.IDLE_STOPPED} or (epoch is not None and epoch < self.epoch):
            return self._take()
        self._request.remember(cause)
        self._ask(now)
        return self._take()

    def tick(self, now: int) -> list[Action]:
        """Call at `deadline()` or later."""
        if self._probe_at is not None and now >= self._probe_at:
            self._begin_probe(now)
        self._ask(now)
        if self._alarm_at is not None and now >= self._alarm_at:
            self._alarm(now)
        return self._take()

    def deadline(self) -> int | None:
        """When `tick` wants to be called next, None: not before another input."""
        sending = self._request.next_sending(self.timing) if self.state in MAY_ASK else None
        return min((t for t in (self._probe_at, self._alarm_at, sending) if t is not None), default=None)

    # ------------------------------------------------------- transitions

    def _take(self) -> list[Action]:
        actions, self._out = self._out, []
        return actions

    def _move(self, what: Input, resumed: int = 0) -> bool:
        """Applies the table. False: the input changes nothing in this state."""
        entry = TRANSITIONS.get((self.state, what))
        if entry is None:
            return False
        do, self.state = entry
        match do:
            case Do.STOP:
                self._out.append(EngineStop())
            case Do.COMMIT:
                self.epoch += 1
                self._out.append(EngineCommit(resumed))
            case Do.ABORT:
                self._out.append(EngineAbort())
            case Do.ALONE:
                self.epoch += 1
                self._out.append(EngineAlone())
            case Do.NOTHING:
                pass
        return True

    def _send(self, name: str, then: _Then, arguments: Mapping[str, object] | None = None) -> None:
        self._tokens += 1
        self._waiting[self._tokens] = (name, then)
        self._out.append(SendCommand(self._tokens, name, arguments))

    # ------------------------------------------------------ STOP and RESUME

    def _on_stop(self, when: int, now: int) -> None:
        if not self._move(Input.STOP):
            return
        self._pause = pause = Pause(when, now)
        self._alarm_at = self._first_alarm(now) if self.state in IN_COLO else None
        self._send("query-status", lambda value, _: self._on_stop_status(pause, value))

    def _on_stop_status(self, pause: Pause, value: object) -> None:
        if pause is not self._pause or self.state not in STANDING:
            return  # the answer of a standstill that is over
        pause.run_state = text_of(value, "status")
        if pause.is_other:
            self._alarm_at = None
            self._out.append(reports.OperatorStopped(text_of(value, "status")))

    def _on_resume(self, at: int | None, now: int) -> None:
        """`at` is trusted within reason: not before the stop, not after now. Unknown: the earliest, for a commit
        dated early has frames compared once more, one dated late would release what it does not contain."""
        before, pause = self.state, self._pause
        earliest = pause.at if pause is not None else 0
        resumed = max(earliest, min(earliest if at is None else at, now))
        stood = resumed - pause.at if pause is not None else None
        kind = meaning_of_resume(before, pause, events_on=self._events_on)
        if not self._move(kind, resumed):
            return
        self._pause = self._alarm_at = None
        match self.state:
            case State.PROTECTED if kind is Input.RESUME_COMMIT:
                self._committed(before, pause, resumed, now)
            case State.PROTECTED | State.IDLE:
                self._out.append(reports.OperatorResumed(stood))
                self._ask(now)
            case State.HELD:
                if kind is Input.RESUME_DOUBT:
                    self._why_held = WHY_DOUBT
                else:
                    self._out.append(reports.OperatorResumed(stood))
                self._hold(now)
            case _:  # PROBING: on_event begins the questions
                self._why_held = WHY_BEGAN

    def _committed(self, before: State, pause: Pause | None, resumed: int, now: int) -> None:
        stood = resumed - pause.at if pause is not None else None
        if before is State.ENTERING:
            self._out.append(reports.Protected(stood))
        else:
            self.checkpoints += 1
            asked = self._request.sent_at
            self._out.append(
                reports.CheckpointCommitted(
                    number=self.checkpoints,
                    causes=tuple(self._request.causes),
                    asked_to_stop_ns=max(0, pause.at - asked) if pause is not None and asked is not None else None,
                    stop_to_resume_ns=stood,
                    total_ns=max(0, resumed - asked) if asked is not None else None,
                )
            )
            if before is State.HELD_STOPPED:
                self._out.append(reports.Protected(stood))
        self._request.forget()  # whatever was wanted is contained in it
        self._request.not_before = now + self.timing.min_interval

    # ------------------------------------------------- COLO begins and ends

    def _on_migration(self, status: str, when: int, now: int) -> None:
        if status == "colo":
            if self._move(Input.COLO_BEGINS):
                self._events_on = True  # or this event would not have come
                if self._pause is None:
                    self._pause = Pause(when, now)
                self._alarm_at = self._first_alarm(now)
                self._out.append(reports.Entering())
        elif status in COLO_END_STATUS:
            if self.state in IN_COLO:
                self._end_colo(f"migration {status}", now)
            else:
                self._out.append(reports.QemuEvent("MIGRATION", status))

    def _on_colo_exit(self, data: Mapping[str, object], now: int) -> None:
        if data.get("mode", "primary") == "primary":
            self._end_colo(f"COLO_EXIT, reason {text_of(data, 'reason')}", now)
        else:
            self._out.append(reports.QemuEvent("COLO_EXIT", _listed(data)))

    def _end_colo(self, reason: str, now: int) -> None:
        before, pause, causes = self.state, self._pause, tuple(self._request.causes)
        if not self._move(Input.COLO_ENDS):
            return
        if before in {State.STOPPED, State.HELD_STOPPED} and pause is not None and not pause.is_other:
            self._out.append(reports.CheckpointFailed(reason, causes, now - pause.at))
        self._now_alone(reason)

    def _now_alone(self, reason: str) -> None:
        self._request.forget()
        self._pause = self._alarm_at = None
        self._was_in_colo = False
        self._out.append(reports.Alone(reason))

    # ------------------------------------------------------------- probing

    def _begin_probe(self, now: int) -> None:
        """Asks all questions. A round that is under way is forgotten."""
        probe = self._probe = Probe()
        self._probe_at = None
        self._alarm_at = self._alarm_at or self._first_alarm(now)

        def ask(question: str) -> None:
            def then(value: object, at: int) -> None:
                if self._probe is probe and probe.answer(question, value):
                    self._probe = None
                    self._end_probe(probe, at)

            self._send(question, then)

        for question in QUESTIONS:
            ask(question)

    def _end_probe(self, probe: Probe, now: int) -> None:
        self._alarm_at = None
        if probe.is_secondary:
            if not self._wrong_side_told:
                self._wrong_side_told = True
                self._out.append(reports.Trouble("this QMP is a secondary's: give the primary's; holding all output"))
            self._probe_at = now + self.timing.probe_retry
            return
        self._wrong_side_told = False
        self._events_on = probe.events_on
        self._out.append(reports.QmpConnected(probe.in_colo, probe.run_state))
        if probe.in_colo and probe.running:
            self._move(Input.PROBED_IN_RUNNING)
            self._hold(now)
        elif probe.in_colo:
            self._move(Input.PROBED_IN_STOPPED)
            self._pause = Pause(now, now, run_state=probe.run_state)
            self._alarm_at = self._first_alarm(now)
            self._out.append(reports.Held(self._why_held))
        else:
            self._move(Input.PROBED_OUT)
            if self._was_in_colo:
                self._now_alone(f"QEMU says that COLO has ended: migration {probe.migration}")
            self._request.forget()
            self._prepare()
            if not probe.running and self._move(Input.STOP):  # its event was before our time
                self._pause = Pause(now, now, run_state=probe.run_state)

    def _prepare(self) -> None:
        """Outside COLO: switches MIGRATION events on, and QEMU's period to ours while that asks for nothing yet."""
        if not self._events_on:

            def switched_on(_value: object, _now: int) -> None:
                self._events_on = True

            capabilities = [{"capability": "events", "state": True}]
            self._send("migrate-set-capabilities", switched_on, {"capabilities": capabilities})
        self._send("migrate-set-parameters", _nothing_more, self._delay())

    # ------------------------------------------------------------ requests

    def _delay(self) -> dict[str, object]:
        return {"x-checkpoint-delay": self.timing.checkpoint_delay_ms}

    def _hold(self, now: int) -> None:
        """The guest runs and its output is held: a checkpoint at once, whatever the minimum interval."""
        self._out.append(reports.Held(self._why_held))
        if not self._events_on:
            self._out.append(
                reports.Trouble("migration capability `events` is off: commits are recognised by query-status alone")
            )
        self._request.remember(self._why_held)
        self._request.not_before = now
        self._request.last_sent = None
        self._ask(now)

    def _ask(self, now: int) -> None:
        due = self._request.next_sending(self.timing)
        if self.state not in MAY_ASK or due is None or now < due:
            return
        self._request.mark_sent(now)
        self._alarm_at = self._alarm_at or self._first_alarm(now)
        self._send("migrate-set-parameters", _nothing_more, self._delay())
        self._out.append(reports.CheckpointAsked(tuple(self._request.causes), self._request.attempts))

    # ------------------------------------------------ QEMU does not answer

    def _first_alarm(self, now: int) -> int:
        return now + self.timing.deadline * self.timing.patience

    def _alarm(self, now: int) -> None:
        self._alarm_at = None
        pause, sent_at = self._pause, self._request.sent_at
        patience = self.timing.deadline * self.timing.patience
        if self.state is State.PROBING:
            report = reports.Unanswered("the questions after connecting", patience, 0)
        elif self.state in MAY_ASK and sent_at is not None:
            report = reports.Unanswered("no STOP for a checkpoint", now - sent_at, self._request.attempts)
        elif self.state is State.ENTERING and pause is not None:
            what = "no first RESUME in COLO (does the secondary's replication start?)"
            report = reports.Unanswered(what, now - pause.seen, 0)
        elif self.state in STANDING and pause is not None and not pause.is_other:
            report = reports.Unanswered("no RESUME after STOP", now - pause.seen, 0)
        else:
            return
        self._out.append(report)
        self._alarm_at = now + self.timing.deadline
        if self.state is not State.PROBING:
            self._send("query-migrate", self._on_poll)

    def _on_poll(self, value: object, now: int) -> None:
        status = text_of(value, "status")
        if self.state in IN_COLO and status != "colo":
            self._end_colo(f"QEMU says that COLO has ended: migration {status}", now)


def _nothing_more(_value: object, _now: int) -> None:
    """For commands whose return value says nothing."""


def _not_after(at: int | None, now: int) -> int:
    return now if at is None else min(at, now)


def _listed(data: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in data.items())
