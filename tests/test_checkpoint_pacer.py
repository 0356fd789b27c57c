# SPDX-License-Identifier: Apache-2.0
"""The checkpoint policy around a real engine, by a real clock, and with real guests: whether, not when."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coloproxy import reports
from coloproxy.address import parse_address
from coloproxy.checkpoint_pacer import Pacer, activity_of
from coloproxy.checkpoint_policy import PERIOD, QUIET, PolicyOptions
from coloproxy.command_guide import CommandGuide, CommandOptions
from coloproxy.engine import Engine
from coloproxy.engine_events import Port
from coloproxy.errors import MisuseError
from coloproxy.options import CompareOptions
from coloproxy.reports import Report
from coloproxy.testbed import PairOptions, VmPair, coloproxy_compare, missing
from coloproxy.testbed.pair_toml import PairFile
from coloproxy.testbed.tap_pair import TapOptions, TapPair

MS = 1_000_000
DEADLINE = 30.0
ADAPTIVE = PolicyOptions("adaptive", quiet=MS)


def committed(number: int) -> Report:
    return reports.CheckpointCommitted(number, (QUIET,), MS, 5 * MS, 6 * MS)


async def wishes_of(options: PolicyOptions, *heard: Report) -> asyncio.Queue[str]:
    """What a pacer beside an engine without traffic wishes for when it has heard that."""
    wishes: asyncio.Queue[str] = asyncio.Queue()
    with Engine() as engine:
        engine.start()
        pacer = Pacer(options, lambda: activity_of(engine.counters()), wishes.put_nowait)
        for report in heard:
            pacer.on_report(report)
        if options.is_idle or isinstance(heard[-1], reports.Alone | reports.QmpLost):
            assert pacer._timer is None  # it will never wake up
            return wishes
        async with asyncio.timeout(DEADLINE):
            wishes.put_nowait(await wishes.get())
        assert pacer._timer is None  # one wish at a time
        pacer.on_report(committed(1))
        assert pacer._timer is not None
        status = pacer.status()
        assert status["policy"] == options.mode
        assert sum(status["wanted"].values()) == 1
        pacer.rest()
        assert pacer._timer is None
    return wishes


@pytest.mark.parametrize("first", [reports.Protected(None), committed(1)], ids=["protected", "committed"])
@pytest.mark.parametrize(
    ("options", "cause"), [(ADAPTIVE, QUIET), (PolicyOptions(period=MS, min_interval=0), PERIOD)], ids=[QUIET, PERIOD]
)
async def test_it_wishes_for_one(options: PolicyOptions, cause: str, first: Report) -> None:
    wishes = await wishes_of(options, first)
    assert (wishes.qsize(), wishes.get_nowait()) == (1, cause)


@pytest.mark.parametrize("last", [reports.Alone("r"), reports.QmpLost("r")], ids=lambda report: report.name)
async def test_none_without_a_secondary(last: Report) -> None:
    assert (await wishes_of(ADAPTIVE, reports.Protected(None), last)).empty()


async def test_fixed_does_nothing() -> None:
    assert (await wishes_of(PolicyOptions(), reports.Protected(None))).empty()


async def test_what_the_engine_sees_is_activity() -> None:
    with Engine() as engine:
        engine.start()
        ours, theirs = socket.socketpair()
        engine.attach(Port.PRIMARY_IN, theirs)
        before = activity_of(engine.counters())
        frame = b"\xff" * 12 + b"\x88\xb5" + bytes(46)
        ours.sendall(len(frame).to_bytes(4, "big") + frame)
        async with asyncio.timeout(DEADLINE):
            while activity_of(engine.counters()) == before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        ours.close()


async def test_a_command_takes_checkpoints_by_the_period_and_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = tmp_path / "checkpoint"
    script.write_text(f'#!/bin/sh\n[ "$1" = resume ] || echo "$COLOPROXY_REASON" >> {log}\n')
    script.chmod(0o755)
    told: asyncio.Queue[Report] = asyncio.Queue()

    def tell(report: Report) -> None:
        pacer.on_report(report)
        told.put_nowait(report)

    with Engine() as engine:
        guide = CommandGuide(CommandOptions((str(script),), initial="assume-equal"), tell)
        pacer = Pacer(PolicyOptions(period=10 * MS, min_interval=0), lambda: activity_of(engine.counters()), guide.want)
        loop = asyncio.get_running_loop()
        loop.add_reader(engine.event_fd, lambda: [guide.on_engine(event) for event in engine.events()])
        guide.begin(engine)
        engine.start()
        running = asyncio.create_task(guide.run())
        guide.secondary_is_there()
        causes: list[tuple[str, ...]] = []
        async with asyncio.timeout(DEADLINE):
            while len(causes) < 3:
                report = await told.get()
                if isinstance(report, reports.CheckpointCommitted):
                    causes.append(report.causes)
        pacer.rest()
        running.cancel()
        await asyncio.wait([running])
        loop.remove_reader(engine.event_fd)
    assert causes == [(PERIOD,)] * 3
    assert log.read_text().splitlines()[:3] == [PERIOD] * 3


def test_adaptive_needs_somebody_who_makes_checkpoints() -> None:
    addresses = {name: parse_address(f"127.0.0.1:{port}", name) for name, port in (("p", 1), ("s", 2), ("o", 3))}
    options = CompareOptions(addresses["p"], addresses["s"], addresses["o"], policy=ADAPTIVE)
    with pytest.raises(MisuseError, match="--checkpoint-policy adaptive needs --qmp"):
        options.check()


def test_the_command_line_refuses_it_too() -> None:
    argv = [sys.executable, "-P", "-m", "coloproxy", "compare", "--primary-in", "127.0.0.1:1", "--secondary-in"]
    argv += ["127.0.0.1:2", "--outdev", "127.0.0.1:3", "--checkpoint-policy", "adaptive"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2
    assert "--checkpoint-policy adaptive needs --qmp" in done.stderr


REAL_GUESTS = pytest.mark.skipif(bool(missing()), reason="this machine lacks what the test bed needs")


@pytest.mark.e2e
@REAL_GUESTS
async def test_real_guests_in_a_lull_get_a_checkpoint_that_says_so(tmp_path: Path) -> None:
    journal = tmp_path / "events.jsonl"
    command = coloproxy_compare("--json-events", str(journal), "--checkpoint-policy", "adaptive")
    async with VmPair(PairOptions(command, keep_logs=tmp_path, large_bytes=100_000)) as pair:
        await pair.start_colo()
        until, found = time.monotonic() + DEADLINE, []
        while len(found) < 3:
            assert time.monotonic() < until, journal.read_text()
            await asyncio.sleep(0.05)
            lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]] if journal.exists() else []
            found = [r for r in lines if r["event"] == "checkpoint-committed" and r["causes"] == [QUIET]]
        assert all(record["stop_to_resume_ns"] > 0 for record in found)
        assert (await pair.client.get("/hello.txt")).strip()


@pytest.mark.e2e
@REAL_GUESTS
async def test_coloproxy_run_does_the_same_and_shows_it(tmp_path: Path) -> None:
    file = PairFile(checkpoint={"back_end": "qmp", "policy": "adaptive", "budget": 7})
    async with TapPair(TapOptions(file=file, keep_logs=tmp_path, large_bytes=100_000)) as pair:
        await pair.start_colo()
        primary = pair.proxies["primary"]
        await primary.until(
            "a checkpoint in a lull",
            lambda vm: vm["last_checkpoint"] is not None and vm["last_checkpoint"]["causes"] == [QUIET],
            DEADLINE,
        )
        vm = await primary.vm_status()
        assert vm["checkpoint_policy"]["policy"] == "adaptive"
        assert vm["checkpoint_policy"]["wanted"][QUIET] >= 1
        assert vm["checkpoint_policy"]["spent_ms"] > 0
        assert (await pair.client.get("/hello.txt")).strip()
