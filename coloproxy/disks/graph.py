# SPDX-License-Identifier: Apache-2.0
"""What QEMU's block layer looks like now: asked each time, for QEMU outlives us and nothing is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coloproxy.errors import DiskError, QmpError

from .model import Kind, Monitor

STEP_S: Final = 5.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Edge:
    """A child of a node or of a device."""

    parent: str
    name: str
    child: str


@dataclass(frozen=True, slots=True)
class Job:
    """A block job."""

    ident: str
    status: str
    """As QEMU's JobStatus."""
    offset: int
    """Bytes of the copy that are done."""
    length: int
    """Bytes of the copy; grows as the guest writes."""
    error: str | None


class Blocks:
    """The block layer of one QEMU; each step has a deadline.

    step_s: seconds for a step. A step that isn't answered may still be done by QEMU later: after Kind.DEADLINE, yank,
    ask what is there, and go on from that.
    """

    def __init__(self, monitor: Monitor, step_s: float = STEP_S) -> None:
        self._monitor = monitor
        self.step_s = step_s

    async def run(self, command: str, **arguments: object) -> object:
        """A command; underscores of argument names stand for dashes. Raises DiskError."""
        return await self.send(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    async def send(self, command: str, given: Mapping[str, object], *, out_of_band: bool = False) -> object:
        """A command with its arguments as they are. Raises DiskError."""
        try:
            async with asyncio.timeout(self.step_s):
                return await self._monitor.execute(command, given or None, out_of_band=out_of_band)
        except TimeoutError as error:
            raise DiskError(Kind.DEADLINE, f"{command} {given}: no answer within {self.step_s:g} s") from error
        except QmpError as error:
            kind = Kind.DEADLINE if "no answer within" in str(error) else Kind.QEMU
            raise DiskError(kind, f"{command} {given}: {error}") from error

    async def nodes(self) -> dict[str, Mapping[str, object]]:
        """Named nodes, by name."""
        return {str(n["node-name"]): n for n in _list(await self.run("query-named-block-nodes", flat=True))}

    async def edges(self) -> list[Edge]:
        """All parent-child relations."""
        graph = await self.run("x-debug-query-block-graph")
        assert isinstance(graph, Mapping)
        names = {node["id"]: str(node["name"]) for node in _list(graph["nodes"])}
        return [Edge(names[e["parent"]], str(e["name"]), names[e["child"]]) for e in _list(graph["edges"])]

    async def exports(self) -> set[str]:
        """Ids of the block exports."""
        return {str(export["id"]) for export in _list(await self.run("query-block-exports"))}

    async def jobs(self) -> dict[str, Job]:
        """All jobs that have a name; a commit of QEMU's own has none and isn't here."""
        made: dict[str, Job] = {}
        for job in _list(await self.run("query-jobs")):
            ident = str(job["id"])
            error = job.get("error")
            done, whole = int(str(job["current-progress"])), int(str(job["total-progress"]))
            made[ident] = Job(ident, str(job["status"]), done, whole, None if error is None else str(error))
        return made

    async def run_state(self) -> str:
        """QEMU's RunState, such as "running", "paused", "colo", "io-error"."""
        answer = await self.run("query-status")
        assert isinstance(answer, Mapping)
        return str(answer["status"])

    async def delete_nodes(self, *names: str) -> None:
        """Deletes those of the nodes that exist, in this order."""
        for name in names:
            if name in await self.nodes():  # asked each time: one may go with the one before
                await self.run("blockdev-del", node_name=name)

    async def end_jobs(self, *idents: str) -> None:
        """Ends these jobs, finished or not, and forgets them."""
        for ident in idents:
            job = (await self.jobs()).get(ident)
            if job is None:
                continue
            if job.status != "concluded":
                await self.run("block-job-cancel", device=ident, force=True)
                await self.wait_jobs({ident}, lambda job: job.status == "concluded", self.step_s)
            await self.run("job-dismiss", id=ident)

    async def wait_jobs(self, idents: set[str], wanted: Callable[[Job], bool], deadline_s: float) -> dict[str, Job]:
        """Waits until all these jobs are as wanted. Raises DiskError if one is missing or the time is up."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    jobs = await self.jobs()
                    if idents - jobs.keys():
                        raise DiskError(Kind.STATE, f"job {', '.join(sorted(idents - jobs.keys()))} is gone")
                    if all(wanted(jobs[ident]) for ident in idents):
                        return {ident: jobs[ident] for ident in idents}
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise DiskError(Kind.DEADLINE, f"{', '.join(sorted(idents))}: not there within {deadline_s:g} s") from error


def _list(value: object) -> list[Mapping[str, object]]:
    assert isinstance(value, list)
    return value
