# SPDX-License-Identifier: Apache-2.0
"""The `command` checkpoint back end: a program stops, copies and resumes the VMs; docs/checkpoint-command.md.

What is decided when is the controller's (command_checkpoint.py); this carries it out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from .checkpoint_actions import EngineAlone, EngineCommit, EngineStop
from .command_checkpoint import Action, CommandController, Do, Step
from .engine_events import Committed, EngineEvent, PeerAttached, PeerLost, Port
from .errors import MisuseError
from .events import CheckpointWanted
from .guide import Epochs, Tell, cause_of
from .program import run_program

log = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]
"""Raises what it likes where it fails: the checkpoint then fails, or after the commit another one is wanted."""


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The checkpoint command.

    Attributes:
        command: the program and its arguments; `take` or `resume` is put behind them.
        vm: its COLOPROXY_VM.
        timeout_s: for each run, and for each hook; then it has failed.
        grace_s: from SIGTERM to SIGKILL, when a run takes too long or the service ends.
        min_interval_s: from a commit to the next `take`.
        initial: "checkpoint": output passes until a first checkpoint has made the secondary the primary's copy.
            "assume-equal": both are equal when the secondary is first there, the operator says; compared from then on.
    """

    command: tuple[str, ...]
    vm: str = "vm"
    timeout_s: float = 60.0
    grace_s: float = 2.0
    min_interval_s: float = 0.02
    initial: Literal["checkpoint", "assume-equal"] = "checkpoint"

    def check(self) -> None:
        """Raises MisuseError for what can't work."""
        if not self.command or not self.command[0]:
            raise MisuseError("the checkpoint command is empty")
        if any("\0" in word for word in (*self.command, self.vm)):
            raise MisuseError("the checkpoint command, or the VM's name, has a NUL in it")
        if self.timeout_s <= 0 or self.grace_s < 0 or self.min_interval_s < 0:
            raise MisuseError("the checkpoint command's times must be above 0")


class CommandGuide:
    """A Guide (guide.py) whose epochs end by a program's checkpoints.

    before_commit: awaited when both VMs stand, before the engine reads its sockets to the end: what the VMs have said
        must be in them when it returns.
    after_commit: awaited when the engine has committed, before the VMs go on.
    """

    def __init__(
        self, options: CommandOptions, tell: Tell, before_commit: Hook | None = None, after_commit: Hook | None = None
    ) -> None:
        options.check()
        self._options = options
        self._tell = tell
        self._hooks = {Step.BEFORE_COMMIT: before_commit, Step.AFTER_COMMIT: after_commit}
        self._engine: Epochs | None = None
        self._controller = self._new_controller()
        self._begun = False  # the secondary has been there
        self._given_up: list[Do] = []  # of engines before: what lets the VMs go on
        self._job: Do | None = None
        self._changed = asyncio.Event()
        self._working: asyncio.Task[str | None] | None = None

    # ---------------------------------------------------------------- Guide

    def begin(self, engine: Epochs) -> None:
        if (left := self._controller.unfinished()) is not None:
            self._given_up.append(left)
        if self._working is not None:
            self._working.cancel()
        self._engine, self._job = engine, None
        self._controller = self._new_controller()
        self._changed.set()

    def on_engine(self, event: EngineEvent) -> None:
        now = time.monotonic_ns()
        match event:
            case PeerAttached(port=Port.SECONDARY_IN):
                self.secondary_is_there()
            case PeerLost(port=Port.SECONDARY_IN):
                self._perform(self._controller.on_secondary_lost())
            case CheckpointWanted():
                self._perform(self._controller.want(cause_of(event), now, event.epoch))
            case Committed():
                self._perform(self._controller.on_committed(event.released_frames, event.released_bytes, now))
            case _:
                pass

    async def run(self) -> None:
        try:
            while True:
                await self._turn()
        finally:
            await self._let_go()

    def primary_is_gone(self) -> bool:
        return True

    def protected(self) -> bool:
        return self._controller.protected

    # ------------------------------------------------------------- operator

    def want(self, cause: str) -> None:
        """Somebody wants a checkpoint that begins after this call."""
        self._perform(self._controller.want(cause, time.monotonic_ns()))

    def alone(self, reason: str) -> None:
        """There is no secondary any more, somebody has decided: releases everything, until `secondary_is_there`."""
        self._perform(self._controller.alone(reason))

    def secondary_is_there(self) -> None:
        """Protection is to begin (again); the engine's PeerAttached of secondary_in says so too."""
        now = time.monotonic_ns()
        if self._options.initial == "assume-equal" and not self._begun:
            self._perform(self._controller.assume_equal(now))
        self._begun = True
        self._perform(self._controller.on_secondary(now))

    # -------------------------------------------------------------- actions

    def _new_controller(self) -> CommandController:
        return CommandController(round(self._options.min_interval_s * 1e9))

    def _perform(self, actions: list[Action]) -> None:
        """In the order given, synchronously; a step is left to `run`."""
        engine = self._engine
        assert engine is not None
        for action in actions:
            match action:
                case EngineStop():
                    engine.checkpoint_stop()
                case EngineCommit(resumed_ns):
                    engine.checkpoint_commit(resumed_ns)
                case EngineAlone():
                    engine.alone()
                case Do():
                    assert self._job is None
                    self._job = action
                case _:
                    self._tell(action)
        self._changed.set()

    async def _turn(self) -> None:
        """One step to its end; or waits for one, or for the controller's deadline."""
        await self._resume_given_up()
        self._changed.clear()
        if self._job is None:
            due = self._controller.deadline()
            wait = None if due is None else max(due - time.monotonic_ns(), 0) / 1e9
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                self._perform(self._controller.tick(time.monotonic_ns()))
            return
        job, controller = self._job, self._controller
        self._working = asyncio.create_task(self._carry_out(job), name=f"checkpoint {job.step.value}")
        try:
            await asyncio.wait([self._working])
        finally:
            done, self._working = self._working, None
            if not done.done():
                done.cancel()
                await asyncio.wait([done])
        if controller is not self._controller:
            return  # of an engine that is no more
        self._job = None
        self._perform(controller.on_end(job.step, done.result(), time.monotonic_ns()))

    async def _carry_out(self, job: Do) -> str | None:
        """Returns why it failed, None: it did not."""
        if job.step in self._hooks:
            hook = self._hooks[job.step]
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    if hook is not None:
                        await hook()
            except TimeoutError:
                return "it took too long"
            except Exception as error:
                log.debug("%s", job.step.value, exc_info=error)
                return str(error) or repr(error)
            return None
        return await self._run(job, self._options.timeout_s)

    async def _run(self, job: Do, timeout_s: float) -> str | None:
        environment = {
            "COLOPROXY_VM": self._options.vm,
            "COLOPROXY_REASON": job.reason.replace("\0", ""),
            "COLOPROXY_EPOCH": str(job.epoch),
        }
        if job.step is Step.RESUME:
            environment["COLOPROXY_RESULT"] = "committed" if job.committed else "failed"
        ended = await run_program(
            [*self._options.command, job.step.value],
            environment,
            timeout_s=timeout_s,
            grace_s=self._options.grace_s,
            on_line=lambda stream, line: log.info("%s: %s: %s", job.step.value, stream, line),
        )
        return ended.failure

    # ------------------------------------------------------------------ end

    async def _resume_once(self, job: Do) -> None:
        if (failure := await self._run(job, self._options.timeout_s)) is not None:
            log.error("the checkpoint command could not resume the VMs: %s", failure)

    async def _resume_given_up(self) -> None:
        while self._given_up:
            await self._resume_once(self._given_up[0])
            self._given_up.pop(0)

    async def _let_go(self) -> None:
        """This ends: no VM is left standing still, if the program can help it."""
        if (left := self._controller.unfinished()) is not None:
            log.warning("a checkpoint was in progress (%s): resuming the VMs", self._controller.phase.value)
            self._given_up.append(left)
        await self._resume_given_up()
