# SPDX-License-Identifier: Apache-2.0
"""Arbiters without etcd and without fences, and what etcd's decides by: tables."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coloproxy.arbiter import Arbiter, Both, Claim, CommandArbiter, CommandOptions, EtcdOptions, PolicyArbiter, Verdict
from coloproxy.arbiter.claim import Host, Role
from coloproxy.arbiter.etcd_record import (
    NOBODY,
    Malformed,
    Owner,
    decide_claim,
    decide_record,
    encode,
    owner_key,
    read_owner,
    read_set,
    set_owner,
)
from coloproxy.errors import MisuseError

WON, LOST, UNKNOWN = Verdict.WON, Verdict.LOST, Verdict.UNKNOWN
A2 = Claim("web", "a", "primary", 2)


# ------------------------------------------------------------------ claims


@pytest.mark.parametrize(
    ("pair", "host", "role", "generation"),
    [
        ("", "a", "primary", 1),
        ("we\0b", "a", "primary", 1),
        ("we\ud800b", "a", "primary", 1),
        ("web", "c", "primary", 1),
        ("web", "", "primary", 1),
        ("web", "a", "witness", 1),
        ("web", "a", "primary", 0),
        ("web", "a", "primary", -1),
        ("web", "a", "primary", True),
        ("web", "a", "primary", 1.5),
        ("web", "a", "primary", 2**63),
    ],
)
def test_a_claim_that_cant_be(pair: str, host: Any, role: Any, generation: Any) -> None:
    with pytest.raises(MisuseError):
        Claim(pair, host, role, generation)


# ------------------------------------------------------------------ the stated policy


@pytest.mark.parametrize(
    ("on_partition", "host", "role", "verdict"),
    [
        ("primary", "a", "primary", WON),
        ("primary", "b", "primary", WON),
        ("primary", "a", "secondary", LOST),
        ("primary", "b", "secondary", LOST),
        ("stop", "a", "primary", UNKNOWN),
        ("stop", "b", "secondary", UNKNOWN),
    ],
)
async def test_policy(on_partition: Any, host: Host, role: Role, verdict: Verdict) -> None:
    arbiter: Arbiter = PolicyArbiter(on_partition)
    for _ in range(2):
        ruling = await arbiter.claim(Claim("web", host, role, 7))
        assert ruling.verdict is verdict
        assert (ruling.owner, ruling.generation) == ((host, 7) if verdict is WON else (None, None))
    assert await arbiter.record("web", host, 7)
    assert (await arbiter.owner("web")).verdict is UNKNOWN
    await arbiter.close()


def test_a_policy_that_isnt_one() -> None:
    with pytest.raises(MisuseError, match="secondary"):
        PolicyArbiter("secondary")  # type: ignore[arg-type]


# ------------------------------------------------------------------ a command


def script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport os, sys, signal, subprocess, time, json\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ("sys.exit(0)", WON, "says so"),
        ("print('not you', file=sys.stderr); sys.exit(1)", LOST, "not you"),
        ("sys.exit(2)", UNKNOWN, "exit code 2"),
        ("sys.exit(255)", UNKNOWN, "exit code 255"),
        ("os.kill(os.getpid(), signal.SIGKILL)", UNKNOWN, "signal 9"),
        ("os.kill(os.getpid(), signal.SIGHUP)", UNKNOWN, "signal 1"),  # as a number it would be "lost"
    ],
)
async def test_command(tmp_path: Path, text: str, verdict: Verdict, words: str) -> None:
    arbiter: Arbiter = CommandArbiter(CommandOptions((script(tmp_path / "decide", text),)))
    ruling = await arbiter.claim(A2)
    assert ruling.verdict is verdict
    assert words in ruling.reason
    assert (ruling.owner, ruling.generation) == (("a", 2) if verdict is WON else (None, None))
    assert await arbiter.record("web", "a", 2)
    assert (await arbiter.owner("web")).verdict is UNKNOWN
    await arbiter.close()


async def test_what_the_command_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = (
        "told = {k: v for k, v in os.environ.items() if k.startswith('COLO_')}\n"
        f"json.dump([sys.argv[1:], told], open({str(out)!r}, 'w'))"
    )
    arbiter = CommandArbiter(CommandOptions((script(tmp_path / "decide", text), "x y", "")))
    await arbiter.claim(Claim("my web=1\n", "b", "secondary", 12))
    environment = {"COLO_PAIR": "my web=1\n", "COLO_HOST": "b", "COLO_ROLE": "secondary", "COLO_GENERATION": "12"}
    assert json.loads(out.read_text()) == [["x y", ""], environment]


async def test_a_command_that_isnt_there(tmp_path: Path) -> None:
    ruling = await CommandArbiter(CommandOptions((str(tmp_path / "none"),))).claim(A2)
    assert ruling.verdict is UNKNOWN
    assert "No such file" in ruling.reason


async def test_a_command_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    """It traps SIGTERM, and would exit with 0 then: that isn't a yes either."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = (
        f"subprocess.Popen(['sleep', '1000'], stdout=open({str(fifo)!r}, 'w'))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready', flush=True)\ntime.sleep(1000)"
    )
    ruling = await CommandArbiter(CommandOptions((script(tmp_path / "decide", text),), deadline_s=1.5)).claim(A2)
    assert ruling.verdict is UNKNOWN
    assert "too long" in ruling.reason
    os.set_blocking(held, True)
    assert await asyncio.to_thread(os.read, held, 1) == b""  # nobody has it open any more
    os.close(held)


async def test_a_claim_that_is_cancelled_leaves_no_command(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    os.mkfifo(out)
    text = f"print(os.getpid(), file=open({str(out)!r}, 'w'), flush=True)\ntime.sleep(1000)"
    arbiter = CommandArbiter(CommandOptions((script(tmp_path / "decide", text),), deadline_s=100.0))
    task = asyncio.create_task(arbiter.claim(A2))
    pid = int(await asyncio.to_thread(out.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "options",
    [CommandOptions(()), CommandOptions(("",)), CommandOptions(("x", "a\0b")), CommandOptions(("x",), deadline_s=0)],
)
def test_command_options_that_cant_work(options: CommandOptions) -> None:
    with pytest.raises(MisuseError):
        CommandArbiter(options)


# ------------------------------------------------------------------ both


@pytest.mark.parametrize(
    ("arbiter", "fence", "verdict", "shots"),
    [
        (0, 0, WON, 1),
        (0, 1, UNKNOWN, 1),
        (0, 2, UNKNOWN, 1),
        (1, 0, LOST, 0),
        (2, 0, UNKNOWN, 0),
    ],
)
async def test_both(tmp_path: Path, arbiter: int, fence: int, verdict: Verdict, shots: int) -> None:
    shot = tmp_path / "shot"
    first = CommandArbiter(CommandOptions(("/bin/sh", "-c", f"exit {arbiter}")))
    second = CommandArbiter(CommandOptions(("/bin/sh", "-c", f"echo x >>{shot}; exit {fence}")))
    both: Arbiter = Both(second, first)
    ruling = await both.claim(A2)
    assert ruling.verdict is verdict
    assert (shot.read_text().count("x") if shot.exists() else 0) == shots
    assert await both.record("web", "a", 2)
    assert (await both.owner("web")).verdict is UNKNOWN
    await both.close()


# ------------------------------------------------------------------ etcd's decisions

A1, AT_A2, AT_B2, AT_B3 = (Owner(g, h, "x", 5) for g, h in ((1, "a"), (2, "a"), (2, "b"), (3, "b")))


@pytest.mark.parametrize(
    ("generation", "found", "verdict", "words"),
    [
        (1, NOBODY, None, ""),
        (2, NOBODY, UNKNOWN, "lost its data"),
        (2, A1, None, ""),
        (3, A1, None, ""),  # nobody had recorded generation 2
        (2, AT_A2, WON, "earlier claim"),
        (2, Owner(2, "a", "mine", 5), WON, "won"),
        (2, AT_B2, LOST, "has won generation 2"),
        (2, Owner(2, "b", "mine", 5), LOST, "has won generation 2"),
        (2, AT_B3, LOST, "is past"),
        (2, Owner(3, "a", "x", 5), LOST, "is past"),
    ],
)
def test_claims_decided(generation: int, found: Owner, verdict: Verdict | None, words: str) -> None:
    decided = decide_claim(Claim("web", "a", "primary", generation), "mine", found)
    assert (decided and decided.verdict) == verdict
    assert decided is None or words in decided.reason


@pytest.mark.parametrize(
    ("generation", "found", "done"),
    [
        (1, NOBODY, None),
        (7, NOBODY, None),
        (2, A1, None),
        (2, AT_A2, True),
        (2, AT_B2, False),
        (2, AT_B3, False),
        (1, AT_A2, False),
        (3, AT_B2, None),
    ],
)
def test_records_decided(generation: int, found: Owner, done: bool | None) -> None:
    assert decide_record("a", generation, found) is done


# ------------------------------------------------------------------ etcd's answers

KEY = owner_key("coloproxy", "web")
GOOD = {"generation": 3, "host": "b", "claim": "c0ffee"}


def kv(held: object, **more: object) -> dict[str, Any]:
    text = held if isinstance(held, bytes) else json.dumps(held).encode()
    return {"key": encode(KEY), "value": encode(text), "create_revision": "2", "mod_revision": "9", **more}


def test_answers_read() -> None:
    assert read_owner({"kvs": [kv(GOOD)], "count": "1"}, KEY, "answer") == Owner(3, "b", "c0ffee", 9)
    assert read_owner({"kvs": [kv(GOOD, mod_revision=9)]}, KEY, "answer") == Owner(3, "b", "c0ffee", 9)
    assert read_owner({}, KEY, "answer") == NOBODY
    assert read_owner({"kvs": []}, KEY, "answer") == NOBODY
    assert read_set({"succeeded": True, "responses": [{"response_put": {}}]}, KEY) is None
    there = {"responses": [{"response_range": {"kvs": [kv(GOOD)]}}]}
    assert read_set(there, KEY) == Owner(3, "b", "c0ffee", 9)
    assert read_set({"responses": [{"response_range": {}}]}, KEY) == NOBODY


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"kvs": {}}, "answer.kvs is no list"),
        ({"kvs": None}, "answer.kvs is no list"),
        ({"kvs": [1]}, r"answer.kvs\[0\] is no object"),
        ({"kvs": [kv(GOOD), kv(GOOD)]}, "has 2 keys"),
        ({"kvs": [kv(GOOD, key=encode(b"coloproxy/shop/owner"))]}, "key is another"),
        ({"kvs": [kv(GOOD, key=7)]}, "key is no base64"),
        ({"kvs": [kv(GOOD, value="%%%")]}, "value is no base64"),
        ({"kvs": [kv(GOOD, value="é")]}, "value is no base64"),
        ({"kvs": [kv(GOOD, mod_revision="nine")]}, "mod_revision is no number"),
        ({"kvs": [kv(GOOD, mod_revision="0")]}, "mod_revision is 0"),
        ({"kvs": [kv(GOOD, mod_revision=True)]}, "mod_revision is no number"),
        ({"kvs": [kv(GOOD, mod_revision="9" * 5000)]}, "mod_revision is no number"),
        ({"kvs": [kv(b"")]}, "coloproxy/web/owner holds no JSON"),
        ({"kvs": [kv(b"\xff")]}, "holds no JSON"),
        ({"kvs": [kv(b"[" * 100_000)]}, "holds no JSON"),
        ({"kvs": [kv(b'{"generation": ' + b"9" * 5000 + b"}")]}, "holds no JSON"),
        ({"kvs": [kv([])]}, "is no object"),
        ({"kvs": [kv({})]}, "holds no generation: None"),
        ({"kvs": [kv(GOOD | {"generation": "3"})]}, "holds no generation"),
        ({"kvs": [kv(GOOD | {"generation": True})]}, "holds no generation"),
        ({"kvs": [kv(GOOD | {"generation": 3.0})]}, "holds no generation"),
        ({"kvs": [kv(GOOD | {"generation": 0})]}, "holds no generation"),
        ({"kvs": [kv(GOOD | {"generation": 2**63})]}, "holds no generation"),
        ({"kvs": [kv(GOOD | {"host": "c"})]}, "holds no host: 'c'"),
        ({"kvs": [kv(GOOD | {"host": ["a"]})]}, "holds no host"),
        ({"kvs": [kv(GOOD | {"claim": None})]}, "holds no claim"),
    ],
)
def test_answers_refused(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read_owner(answer, KEY, "answer")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"succeeded": "true", "responses": [{"response_put": {}}]}, "no truth value"),
        ({"succeeded": True}, "has 0 parts"),
        ({"succeeded": True, "responses": [{"response_range": {}}]}, "no answer to a put"),
        ({"responses": [{"response_put": {}}]}, "no answer to a range"),
        ({"responses": [{"response_range": []}]}, "is no object"),
        ({"responses": [[]]}, "is no object"),
        ({"responses": {}}, "is no list"),
    ],
)
def test_transactions_refused(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read_set(answer, KEY)


def test_a_transaction() -> None:
    """In full: this is what etcd is told, and what an operator reads there."""
    put = {"request_put": {"key": encode(KEY), "value": encode(b'{"generation":2,"host":"a","claim":"1f"}')}}
    look = {"request_range": {"key": encode(KEY)}}
    compare: dict[str, object] = {"key": encode(KEY), "result": "EQUAL", "target": "MOD", "mod_revision": "5"}
    wanted = {"compare": [compare], "success": [put], "failure": [look]}
    assert set_owner(KEY, A1, "a", 2, "1f") == wanted
    compare = {"key": encode(KEY), "result": "EQUAL", "target": "CREATE", "create_revision": "0"}
    assert set_owner(KEY, NOBODY, "a", 2, "1f") == wanted | {"compare": [compare]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"endpoints": ()}, "an endpoint"),
        ({"endpoints": ("192.0.2.1:2379",)}, "192.0.2.1"),
        ({"endpoints": ("ftp://192.0.2.1:2379",)}, "is not like"),
        ({"endpoints": ("http://192.0.2.1:2379/v3",)}, "is not like"),
        ({"endpoints": ("http://u:p@192.0.2.1:2379",)}, "is not like"),
        ({"endpoints": ("http://192.0.2.1:99999",)}, "99999"),
        ({"endpoints": ("http://",)}, "is not like"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "x/"}, "prefix"),
        ({"deadline_s": 0}, "times"),
        ({"attempt_s": 0}, "times"),
        ({"alive_ttl_s": 0}, "times"),
        ({"cert": "c"}, "together"),
        ({"user": "u"}, "together"),
        ({"password": "p"}, "together"),
        ({"ca": "ca.pem"}, "not https"),
    ],
)
def test_etcd_options_that_cant_work(change: dict[str, Any], words: str) -> None:
    make: Callable[..., EtcdOptions] = EtcdOptions
    with pytest.raises(MisuseError, match=words):
        make(**({"endpoints": ("http://192.0.2.1:2379",)} | change)).check()
