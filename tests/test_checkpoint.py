# SPDX-License-Identifier: Apache-2.0
"""The checkpoint controller: tables of QMP events in, actions out; an integer clock (1 unit = 1 ms here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coloproxy import reports
from coloproxy.checkpoint import Controller
from coloproxy.checkpoint_actions import (
    ON_DEMAND_ONLY,
    Action,
    EngineAbort,
    EngineAlone,
    EngineCommit,
    EngineStop,
    SendCommand,
    Timing,
)
from coloproxy.checkpoint_probe import QUESTIONS
from coloproxy.checkpoint_states import IN_COLO, STANDING, TRANSITIONS, State
from coloproxy.reports import Report
from coloproxy.run.checkpoints import Checkpoints

MS = 1_000_000
TIMING = Timing()
PARAMETER = ("migrate-set-parameters", {"x-checkpoint-delay": ON_DEMAND_ONLY})

RUNNING = {"status": "running", "running": True}
PAUSED = {"status": "paused", "running": False}
IN_CHECKPOINT = {"status": "colo", "running": False}


class Bench:
    """A controller with a clock and a QEMU that answers what the test says."""

    def __init__(self, timing: Timing = TIMING) -> None:
        self.now = 1000 * MS
        self.controller = Controller(timing)
        self.commands: list[SendCommand] = []
        self.engine: list[Action] = []
        self.reports: list[Report] = []
        self.take(self.controller.start())

    def take(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, SendCommand):
                self.commands.append(action)
            elif isinstance(action, Report):
                self.reports.append(action)
            else:
                self.engine.append(action)
        return actions

    @property
    def state(self) -> State:
        return self.controller.state

    def wait(self, ms: float) -> None:
        """Lets time pass, with each tick at its deadline."""
        end = self.now + round(ms * MS)
        for _ in range(10_000):
            due = self.controller.deadline()
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.take(self.controller.tick(self.now))
        raise AssertionError("the controller's deadline does not advance")

    def event(self, name: str, *, at: int | None = None, **data: object) -> list[Action]:
        return self.take(self.controller.on_event(name, data, self.now if at is None else at, self.now))

    def answer(self, name: str, value: object) -> None:
        """Answers the oldest unanswered command of that name."""
        for command in self.commands:
            if command.name == name:
                self.commands.remove(command)
                self.take(self.controller.on_reply(command.token, value, self.now))
                return
        raise AssertionError(f"{name} was not sent: {self.commands}")

    def probe(
        self,
        status: Mapping[str, object],
        migration: str | None = None,
        mode: str = "none",
        events: bool = True,
    ) -> None:
        """Answers the last round of questions."""
        answers: dict[str, object] = {
            "query-status": status,
            "query-migrate": {} if migration is None else {"status": migration},
            "query-colo-status": {"mode": mode, "last-mode": "none", "reason": "none"},
            "query-migrate-capabilities": [{"capability": "events", "state": events}],
        }
        asked = [command for command in self.commands if command.name in QUESTIONS][-len(QUESTIONS) :]
        self.commands.clear()
        for command in asked:
            self.take(self.controller.on_reply(command.token, answers[command.name], self.now))

    def connect(self, **answers: Any) -> None:
        self.take(self.controller.on_connected(self.now))
        self.probe(**answers)

    def sent(self) -> list[tuple[str, Mapping[str, object] | None]]:
        """Commands since the last look."""
        sent = [(command.name, command.arguments) for command in self.commands]
        self.commands.clear()
        return sent

    def did(self) -> list[Action]:
        """Engine calls since the last look."""
        did, self.engine = self.engine, []
        return did

    def told(self, kind: type[Report]) -> list[Any]:
        """Reports of one kind since the last look; the others are forgotten too."""
        told = [report for report in self.reports if isinstance(report, kind)]
        self.reports.clear()
        return told


def idle(timing: Timing = TIMING) -> Bench:
    bench = Bench(timing)
    bench.connect(status=RUNNING)
    bench.sent(), bench.did(), bench.reports.clear()
    assert bench.state is State.IDLE
    return bench


def protected(timing: Timing = TIMING) -> Bench:
    bench = idle(timing)
    bench.event("STOP")
    bench.event("MIGRATION_PASS", pass_=3)
    bench.event("MIGRATION", status="colo")
    bench.wait(40)
    bench.event("RESUME")
    bench.wait(100)
    bench.sent(), bench.did(), bench.reports.clear()
    assert bench.state is State.PROTECTED
    return bench


# ---------------------------------------------------------------- beginning


def test_everything_is_held_until_qmp_has_told() -> None:
    bench = Bench()
    assert bench.did() == [EngineStop()]
    bench.take(bench.controller.on_connected(bench.now))
    assert bench.did() == []
    assert sorted(name for name, _ in bench.sent()) == sorted(QUESTIONS)


def test_not_in_colo_lets_everything_pass_and_prepares() -> None:
    bench = Bench()
    bench.did()
    bench.connect(status=RUNNING, events=False)
    assert bench.did() == [EngineAlone()]
    events_on = {"capabilities": [{"capability": "events", "state": True}]}
    assert bench.sent() == [("migrate-set-capabilities", events_on), PARAMETER]
    assert bench.state is State.IDLE


def test_the_period_is_qemus_own() -> None:
    bench = Bench(Timing(checkpoint_delay_ms=500))
    bench.connect(status=RUNNING)
    assert bench.sent() == [("migrate-set-parameters", {"x-checkpoint-delay": 500})]


def test_protection_begins_at_resume_after_migration_colo() -> None:
    bench = idle()
    bench.event("MIGRATION", status="active")
    bench.event("MIGRATION_PASS", pass_=1)
    assert bench.did() == []
    bench.event("STOP")
    assert bench.did() == [EngineStop()]
    bench.event("MIGRATION_PASS", pass_=2)
    bench.event("MIGRATION", status="colo")
    assert bench.did() == []
    bench.wait(50)
    bench.event("RESUME", at=bench.now - 2 * MS)
    assert bench.did() == [EngineCommit(bench.now - 2 * MS)]
    assert bench.told(reports.Protected) == [reports.Protected(48 * MS)]
    assert bench.state is State.PROTECTED


def test_a_guest_started_with_S_has_no_stop() -> None:
    bench = Bench()
    bench.connect(status={"status": "prelaunch", "running": False})
    bench.did()
    bench.event("MIGRATION", status="colo")
    bench.event("RESUME")
    assert [type(action) for action in bench.did()] == [EngineCommit]
    assert bench.state is State.PROTECTED


def test_a_migration_that_fails_is_no_commit() -> None:
    bench = idle()
    bench.event("STOP")
    bench.event("MIGRATION_PASS", pass_=2)
    bench.event("MIGRATION", status="failed")
    bench.event("RESUME")
    assert EngineCommit not in map(type, bench.did())
    bench.probe(RUNNING, "failed")
    assert bench.state is State.IDLE
    assert bench.did() == [EngineAlone()]


def test_entering_that_ends_in_colo_exit_goes_alone() -> None:
    bench = idle()
    bench.event("STOP")
    bench.event("MIGRATION", status="colo")
    bench.event("COLO_EXIT", mode="primary", reason="error")
    assert bench.did() == [EngineStop(), EngineAlone()]
    bench.event("RESUME")
    assert EngineCommit not in map(type, bench.did())


def test_entering_that_hangs_is_reported_and_qemu_asked() -> None:
    bench = idle()
    bench.event("STOP")
    bench.event("MIGRATION", status="colo")
    bench.sent()
    bench.wait(3000)
    (report,) = bench.told(reports.Unanswered)
    assert report.since_ns == 3000 * MS
    assert bench.sent() == [("query-migrate", None)]
    bench.wait(1000)
    assert len(bench.told(reports.Unanswered)) == 1


# ------------------------------------------------------- what a RESUME means

STOP_S: tuple[str, dict[str, object]] = ("STOP", {})
RESUME_S: tuple[str, dict[str, object]] = ("RESUME", {})
PASS_S: tuple[str, dict[str, object]] = ("MIGRATION_PASS", {"pass": 9})
EXIT_S: tuple[str, dict[str, object]] = ("COLO_EXIT", {"mode": "primary", "reason": "error"})

# name, what comes from STOP on (a mapping is the answer to query-status), the engine's part, the state after
MEANINGS: list[tuple[str, list[Any], list[type], State]] = [
    ("pass seen", [STOP_S, PASS_S, RESUME_S], [EngineStop, EngineCommit], State.PROTECTED),
    ("status colo", [STOP_S, IN_CHECKPOINT, RESUME_S], [EngineStop, EngineCommit], State.PROTECTED),
    ("both", [STOP_S, IN_CHECKPOINT, PASS_S, RESUME_S], [EngineStop, EngineCommit], State.PROTECTED),
    ("operator", [STOP_S, PAUSED, RESUME_S], [EngineStop, EngineAbort], State.PROTECTED),
    ("operator, then checkpoint", [STOP_S, PAUSED, PASS_S, RESUME_S], [EngineStop, EngineCommit], State.PROTECTED),
    ("status unanswered", [STOP_S, RESUME_S], [EngineStop], State.HELD),
    ("status too late", [STOP_S, RUNNING, RESUME_S], [EngineStop], State.HELD),
    ("failed", [STOP_S, PASS_S, EXIT_S, RESUME_S], [EngineStop, EngineAlone, EngineStop], State.PROBING),
    ("failed, unresumed", [STOP_S, IN_CHECKPOINT, EXIT_S], [EngineStop, EngineAlone], State.IDLE),
    ("exit while running", [EXIT_S], [EngineAlone], State.IDLE),
    ("pass before the stop", [PASS_S, STOP_S, PAUSED, RESUME_S], [EngineStop, EngineAbort], State.PROTECTED),
    ("second stop", [STOP_S, STOP_S, PASS_S, RESUME_S], [EngineStop, EngineCommit], State.PROTECTED),
    ("a resume without stop", [RESUME_S], [EngineStop], State.HELD),
]


@pytest.mark.parametrize(("steps", "engine", "after"), [row[1:] for row in MEANINGS], ids=[row[0] for row in MEANINGS])
def test_meaning_of_a_resume(steps: list[Any], engine: list[type], after: State) -> None:
    bench = protected()
    for step in steps:
        if isinstance(step, tuple):
            bench.event(step[0], **step[1])
        else:
            bench.answer("query-status", step)
        bench.wait(1)
    assert [type(action) for action in bench.did()] == engine
    assert bench.state is after


def test_an_answer_of_the_last_standstill_proves_nothing() -> None:
    bench = protected()
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.event("RESUME")
    bench.event("STOP")
    bench.did()
    bench.answer("query-status", IN_CHECKPOINT)  # the first STOP's
    bench.answer("query-status", PAUSED)
    bench.event("RESUME")
    assert bench.did() == [EngineAbort()]


def test_without_the_events_capability_a_plain_resume_proves_nothing() -> None:
    bench = Bench()
    bench.connect(status=RUNNING, migration="colo", mode="primary", events=False)
    bench.event("STOP")
    bench.answer("query-status", IN_CHECKPOINT)
    bench.event("RESUME")
    assert bench.state is State.PROTECTED
    bench.did(), bench.sent()
    bench.event("STOP")
    bench.answer("query-status", PAUSED)
    bench.event("RESUME")
    assert bench.did() == [EngineStop()]  # held: an operator's stop may have hidden a checkpoint
    assert bench.sent() == [PARAMETER]
    assert bench.state is State.HELD


def test_an_operators_stop_outside_colo() -> None:
    bench = idle()
    bench.event("STOP")
    bench.answer("query-status", PAUSED)
    bench.event("RESUME")
    assert bench.did() == [EngineStop(), EngineAbort()]
    assert bench.state is State.IDLE


def test_a_resume_outside_colo_in_doubt_is_asked_about() -> None:
    bench = idle()
    bench.event("STOP")
    bench.event("RESUME")  # query-status unanswered; MIGRATION events may be off
    assert bench.did() == [EngineStop()]
    bench.probe(RUNNING, "colo", "primary")
    assert bench.state is State.HELD
    assert bench.did() == []


# ------------------------------------------------------------- resume's time

RESUMED: list[tuple[str, Callable[[int, int], int | None], Callable[[int, int], int]]] = [
    ("as told", lambda stop, now: now - 3, lambda stop, now: now - 3),
    ("before the stop", lambda stop, now: stop - 5 * MS, lambda stop, now: stop),
    ("in the future", lambda stop, now: now + 60_000 * MS, lambda stop, now: now),
    ("untold", lambda stop, now: None, lambda stop, now: stop),
]


@pytest.mark.parametrize(("told", "expected"), [row[1:] for row in RESUMED], ids=[row[0] for row in RESUMED])
def test_time_of_the_commit(told: Callable[[int, int], int | None], expected: Callable[[int, int], int]) -> None:
    bench = protected()
    stop = bench.now
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.wait(20)
    bench.did()
    bench.take(bench.controller.on_event("RESUME", {}, told(stop, bench.now), bench.now))
    assert bench.did() == [EngineCommit(expected(stop, bench.now))]


# ------------------------------------------------------------------ requests


def test_many_wants_make_one_request() -> None:
    bench = protected()
    for cause in ("payload", "fin", "payload"):
        bench.take(bench.controller.want(cause, bench.now))
    assert bench.sent() == [PARAMETER]
    bench.wait(10)
    bench.event("STOP", at=bench.now - MS)
    bench.event("MIGRATION_PASS")
    bench.wait(30)
    bench.event("RESUME")
    (done,) = bench.told(reports.CheckpointCommitted)
    assert done == reports.CheckpointCommitted(1, ("payload", "fin"), 9 * MS, 31 * MS, 40 * MS)
    bench.sent()
    bench.wait(10_000)
    assert bench.sent() == []


def test_a_lost_request_is_sent_again() -> None:
    bench = protected()
    bench.take(bench.controller.want("payload", bench.now))
    bench.wait(249)
    assert bench.sent() == [PARAMETER]
    bench.wait(1)
    assert bench.sent() == [PARAMETER]
    bench.wait(250)
    assert bench.sent() == [PARAMETER]
    assert [report.attempt for report in bench.told(reports.CheckpointAsked)] == [1, 2, 3]


def test_nothing_is_asked_while_the_guest_stands_still() -> None:
    bench = protected()
    bench.event("STOP")
    bench.answer("query-status", IN_CHECKPOINT)
    bench.take(bench.controller.want("payload", bench.now))
    bench.wait(2000)
    assert bench.sent() == []
    bench.event("RESUME")
    bench.wait(2000)
    assert bench.sent() == []  # the commit contained what was wanted


async def test_what_is_wanted_while_colo_begins_is_in_what_begins_it() -> None:
    """No checkpoint follows, so `ctl checkpoint --wait` has to wait for the epoch, not for a checkpoint."""
    bench, history = idle(), Checkpoints(0)
    bench.event("STOP")
    bench.event("MIGRATION", status="colo")
    assert bench.state is State.ENTERING
    bench.take(bench.controller.want("the operator's wish", bench.now))
    begins = history.next()
    assert not begins.done()
    bench.event("RESUME")
    for report in bench.reports:
        history.hear(report)
    assert begins.done() and history.count == 0
    bench.sent()
    bench.wait(2000)
    assert bench.sent() == []


def test_a_want_survives_a_stop_that_was_no_checkpoint() -> None:
    bench = protected()
    bench.event("STOP")
    bench.answer("query-status", PAUSED)
    bench.take(bench.controller.want("payload", bench.now))
    bench.wait(500)
    assert bench.sent() == []
    bench.event("RESUME")
    assert bench.sent() == [PARAMETER]


def test_a_want_of_an_epoch_that_has_ended_is_satisfied() -> None:
    bench = protected()
    epoch = bench.controller.epoch
    bench.take(bench.controller.want("payload", bench.now, epoch - 1))
    assert bench.sent() == []
    bench.take(bench.controller.want("payload", bench.now, epoch))
    assert bench.sent() == [PARAMETER]


def test_minimum_distance() -> None:
    bench = protected(Timing(min_interval=200 * MS))
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.event("RESUME")
    bench.sent()
    bench.take(bench.controller.want("payload", bench.now))
    bench.wait(199)
    assert bench.sent() == []
    bench.wait(1)
    assert bench.sent() == [PARAMETER]


def test_outside_colo_nothing_is_asked() -> None:
    bench = idle()
    bench.take(bench.controller.want("limit-frames", bench.now))
    bench.wait(1000)
    assert bench.sent() == []


def test_no_stop_is_reported_and_tried_on() -> None:
    bench = protected()
    bench.take(bench.controller.want("payload", bench.now))
    bench.wait(2999)
    assert bench.told(reports.Unanswered) == []
    bench.sent()
    bench.wait(1)
    (report,) = bench.told(reports.Unanswered)
    assert report.since_ns == 3000 * MS
    assert report.attempts >= 12
    bench.wait(1000)
    assert [r.since_ns for r in bench.told(reports.Unanswered)] == [4000 * MS]
    assert PARAMETER in bench.sent()


def test_no_resume_is_reported_and_qemu_asked() -> None:
    bench = protected()
    bench.event("STOP")
    bench.answer("query-status", IN_CHECKPOINT)
    bench.wait(3000)
    assert [r.what for r in bench.told(reports.Unanswered)] == ["no RESUME after STOP"]
    bench.answer("query-migrate", {"status": "completed"})
    assert bench.did()[-1] == EngineAlone()
    assert bench.state is State.IDLE


def test_an_operators_stop_may_last() -> None:
    bench = protected()
    bench.event("STOP")
    bench.answer("query-status", PAUSED)
    assert len(bench.told(reports.OperatorStopped)) == 1
    bench.wait(60_000)
    assert bench.told(reports.Unanswered) == []


# ------------------------------------------------------------------ COLO ends


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_migration_that_leaves_colo_ends_it(status: str) -> None:
    bench = protected()
    bench.event("MIGRATION", status=status)
    assert bench.did() == [EngineAlone()]
    assert len(bench.told(reports.Alone)) == 1
    bench.event("COLO_EXIT", mode="primary", reason="request")
    assert bench.did() == []


def test_a_failed_checkpoint_is_reported_with_its_cause() -> None:
    bench = protected()
    bench.take(bench.controller.want("payload", bench.now))
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.wait(70)
    bench.event("COLO_EXIT", mode="primary", reason="error")
    (failed,) = bench.told(reports.CheckpointFailed)
    assert failed == reports.CheckpointFailed("COLO_EXIT, reason error", ("payload",), 70 * MS)


def test_the_secondarys_exit_is_not_ours() -> None:
    bench = protected()
    bench.event("COLO_EXIT", mode="secondary", reason="error")
    assert bench.did() == []
    assert bench.state is State.PROTECTED


@pytest.mark.parametrize("name", ["SHUTDOWN", "RESET", "GUEST_PANICKED", "QUORUM_REPORT_BAD"])
def test_events_that_are_told(name: str) -> None:
    bench = protected()
    bench.event(name, guest=True)
    assert bench.told(reports.QemuEvent) == [reports.QemuEvent(name, "guest=True")]
    assert bench.did() == []


# ----------------------------------------------------------- QMP gone and back


def test_qmp_gone_and_back_in_colo() -> None:
    bench = protected()
    bench.take(bench.controller.on_lost("closed"))
    assert bench.did() == [EngineStop()]
    bench.wait(5000)
    assert bench.sent() == []
    bench.connect(status=RUNNING, migration="colo", mode="primary")
    assert bench.did() == []
    assert bench.sent() == [PARAMETER]
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.event("RESUME")
    assert bench.did() == [EngineCommit(bench.now)]
    assert bench.state is State.PROTECTED


def test_qmp_back_in_mid_checkpoint() -> None:
    bench = protected()
    bench.take(bench.controller.on_lost("closed"))
    bench.connect(status=IN_CHECKPOINT, migration="colo", mode="primary")
    assert bench.state is State.HELD_STOPPED
    assert bench.sent() == []
    bench.event("RESUME")
    assert [type(action) for action in bench.did()] == [EngineStop, EngineCommit]


def test_qmp_back_while_the_operator_has_stopped_the_guest() -> None:
    bench = protected()
    bench.take(bench.controller.on_lost("closed"))
    bench.connect(status=PAUSED, migration="colo", mode="primary")
    bench.did()
    bench.event("RESUME")
    assert bench.did() == []
    assert bench.state is State.HELD
    assert bench.sent() == [PARAMETER]


def test_qmp_back_and_colo_has_ended() -> None:
    bench = protected()
    bench.take(bench.controller.on_lost("closed"))
    bench.did()
    bench.connect(status=RUNNING, migration="completed")
    assert bench.did() == [EngineAlone()]
    assert len(bench.told(reports.Alone)) == 1


def test_qmp_back_is_a_secondarys() -> None:
    bench = protected()
    bench.take(bench.controller.on_lost("closed"))
    bench.did()
    bench.connect(status=RUNNING, migration="colo", mode="secondary")
    assert bench.did() == []
    assert bench.state is State.PROBING
    bench.wait(500)
    bench.probe(RUNNING, "colo", "primary")
    assert bench.state is State.HELD


def test_the_proxy_was_restarted_while_in_colo() -> None:
    bench = Bench()
    bench.connect(status=RUNNING, migration="colo", mode="primary")
    assert bench.did() == [EngineStop()]
    assert bench.sent() == [PARAMETER]
    (asked,) = bench.told(reports.CheckpointAsked)
    assert asked.causes[0].startswith("restart")
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.event("RESUME")
    assert [type(action) for action in bench.did()] == [EngineCommit]


def test_a_want_outlives_a_lost_qmp() -> None:
    bench = protected()
    bench.take(bench.controller.want("payload", bench.now))
    bench.take(bench.controller.on_lost("closed"))
    bench.connect(status=RUNNING, migration="colo", mode="primary")
    bench.event("STOP")
    bench.event("MIGRATION_PASS")
    bench.event("RESUME")
    (done,) = bench.told(reports.CheckpointCommitted)
    assert done.causes[0] == "payload"


def test_an_event_while_asking_makes_the_answers_old() -> None:
    bench = Bench()
    bench.take(bench.controller.on_connected(bench.now))
    old = list(bench.commands)
    bench.event("RESUME")
    for command in old:  # all of the first round
        bench.take(bench.controller.on_reply(command.token, {"status": "none"}, bench.now))
    assert bench.state is State.PROBING
    bench.probe(RUNNING, "colo", "primary")
    assert bench.state is State.HELD


def test_a_question_that_fails_is_asked_again() -> None:
    bench = Bench()
    bench.take(bench.controller.on_connected(bench.now))
    command = next(c for c in bench.commands if c.name == "query-migrate")
    bench.take(bench.controller.on_failure(command.token, "no answer within 1 s", bench.now))
    assert len(bench.told(reports.Trouble)) == 1
    bench.commands.clear()
    bench.wait(500)
    bench.probe(RUNNING)
    assert bench.state is State.IDLE


def test_a_qemu_without_query_colo_status() -> None:
    bench = Bench()
    bench.take(bench.controller.on_connected(bench.now))
    for command in list(bench.commands):
        if command.name == "query-colo-status":
            bench.take(bench.controller.on_failure(command.token, "CommandNotFound", bench.now))
        else:
            bench.take(bench.controller.on_reply(command.token, {"status": "colo", "running": True}, bench.now))
    assert bench.state is State.HELD


# --------------------------------------------------------------- properties


def test_the_table_is_complete_in_its_states() -> None:
    reached = {after for _, after in TRANSITIONS.values()} | {State.BLIND}
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)


EVENTS = st.sampled_from(
    [
        ("STOP", {}),
        ("RESUME", {}),
        ("MIGRATION_PASS", {"pass": 1}),
        ("MIGRATION", {"status": "colo"}),
        ("MIGRATION", {"status": "failed"}),
        ("COLO_EXIT", {"mode": "primary", "reason": "error"}),
    ]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("event"), EVENTS),
        st.tuples(st.just("want"), st.just(None)),
        st.tuples(st.just("wait"), st.integers(0, 400)),
        st.tuples(st.just("lost"), st.just(None)),
        st.tuples(st.just("connect"), st.just(None)),
        st.tuples(st.just("answer"), st.sampled_from(["running", "paused", "colo"])),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_whatever_comes_the_engine_is_told_only_what_was_proven(steps: list[tuple[str, Any]]) -> None:
    """Random schedules against a slow restatement of the rules.

    Invariant 1: a COMMIT has its proof since the last STOP (or is COLO's first RESUME).
    Invariant 2: while blind, probing or held the engine is stopped: its last call is STOP.
    Invariant 3: nothing is asked while the guest stands still.
    Invariant 4: the commit's time lies between the stop and now.
    """
    bench = Bench()
    controller = bench.controller
    last_engine: Action = EngineStop()
    proof = standing = False
    stop_at = 0
    for kind, what in steps:
        before = bench.state
        commands_before = len(bench.commands)
        if kind == "event":
            name, data = what
            if name == "STOP" and not standing:
                standing, proof, stop_at = True, False, bench.now
            elif name == "MIGRATION_PASS" or data.get("status") == "colo":
                proof = proof or standing or data.get("status") == "colo"
            elif name == "COLO_EXIT" or data.get("status") == "failed":
                proof = False
            bench.take(controller.on_event(name, data, bench.now, bench.now))
        elif kind == "want":
            bench.take(controller.want("want", bench.now))
        elif kind == "wait":
            bench.wait(what)
        elif kind == "lost":
            bench.take(controller.on_lost("lost"))
            bench.commands.clear()
            commands_before = 0
        elif kind == "connect":
            bench.take(controller.on_connected(bench.now))
        elif bench.commands:
            command = bench.commands.pop(0)
            commands_before -= 1
            value: object = {"status": what, "running": what == "running", "mode": "none"}
            if what == "colo" and command.name == "query-status":
                proof = proof or standing or before is State.PROBING
            if command.name == "query-migrate-capabilities":
                value = [{"capability": "events", "state": True}]
            bench.take(controller.on_reply(command.token, value, bench.now))
        for action in bench.did():
            if isinstance(action, EngineCommit):
                assert proof, "a commit without proof"
                assert action.resumed_ns <= bench.now
                assert action.resumed_ns >= stop_at or not standing
            last_engine = action
        if kind == "event" and what[0] == "RESUME":
            standing = proof = False
        if bench.state in {State.BLIND, State.PROBING, State.HELD, State.HELD_STOPPED} | STANDING:
            assert isinstance(last_engine, EngineStop), (bench.state, last_engine)
        asked = [c for c in bench.commands[commands_before:] if c.name == "migrate-set-parameters"]
        if before in STANDING and bench.state in STANDING and before in IN_COLO:
            assert not asked
