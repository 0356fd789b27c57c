# SPDX-License-Identifier: Apache-2.0
"""The etcd arbiter against real etcd servers: frozen, killed, exchanged, with TLS and users; and liars."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from arbiter_world import MemoryEtcd

from coloproxy.arbiter import Arbiter, Claim, EtcdArbiter, EtcdOptions, Ruling, Verdict
from coloproxy.arbiter.claim import Host
from coloproxy.errors import EtcdError, MisuseError
from coloproxy.testbed.etcd import Certificates, Etcd, loopback_members
from coloproxy.testbed.programs import find_program

WON, LOST, UNKNOWN = Verdict.WON, Verdict.LOST, Verdict.UNKNOWN
PATIENCE = 60.0  # s, of what must happen

real = pytest.mark.skipif(
    find_program("etcd") is None or find_program("etcdctl") is None,
    reason="NO etcd HERE: the real one was NOT tested (tools/requirements.py fetches it)",
)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, count: int = 1, certificates: Certificates | None = None
) -> AsyncIterator[list[Etcd]]:
    members = loopback_members(count)
    servers = [Etcd(one, members, directory / one.name, certificates=certificates) for one in members]
    try:
        for server in servers:
            await server.start()
        for server in servers:
            await server.wait_ready(PATIENCE)
        yield servers
    finally:
        for server in servers:
            await server.kill()


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Etcd]:
    async with cluster(tmp_path) as (server,):
        yield server


@contextlib.asynccontextmanager
async def arbiter(*servers: Etcd, **more: Any) -> AsyncIterator[EtcdArbiter]:
    one = EtcdArbiter(EtcdOptions(tuple(server.url for server in servers), **more))
    checked: Arbiter = one
    try:
        yield one
    finally:
        await checked.close()


def by(host: Host, generation: int, pair: str = "web") -> Claim:
    return Claim(pair, host, "primary" if host == "a" else "secondary", generation)


async def until(question: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await question():  # noqa: ASYNC110 -- another process's doing
            await asyncio.sleep(0.05)


def told(ruling: Ruling) -> tuple[Verdict, str | None, int | None]:
    return ruling.verdict, ruling.owner, ruling.generation


@real
async def test_from_the_first_generation_on(etcd: Etcd) -> None:
    async with arbiter(etcd) as a, arbiter(etcd) as b:
        assert told(await a.owner("web")) == (UNKNOWN, None, 0)
        assert told(await b.claim(by("b", 2))) == (UNKNOWN, None, 0)  # nothing on record: it could be another etcd
        assert await a.record("web", "a", 1)
        assert await a.record("web", "a", 1)
        assert not await b.record("web", "b", 1)
        assert told(await b.owner("web")) == (UNKNOWN, "a", 1)
        assert told(await b.claim(by("b", 2))) == (WON, "b", 2)
        assert told(await a.claim(by("a", 2))) == (LOST, "b", 2)
        assert not await a.record("web", "a", 1)
        assert not await a.record("web", "a", 2)
        assert told(await b.claim(by("b", 2))) == (WON, "b", 2)
        assert await a.record("web", "a", 3)  # b has handed over to a
        assert told(await b.claim(by("b", 3))) == (LOST, "a", 3)
        assert told(await a.owner("web")) == (UNKNOWN, "a", 3)
    async with arbiter(etcd) as again:
        assert told(await again.claim(by("a", 3))) == (WON, "a", 3)
        assert "earlier claim" in (await again.claim(by("a", 3))).reason
        assert told(await again.claim(by("b", 1, "shop"))) == (WON, "b", 1)  # the very first may be claimed


NAMES = ("web", "a/b", "web/alive/a", "Überweisung ✓", "\n", "?>~", "x" * 500, '{"', "..", "a\\b", "\U0001f4be")


@real
async def test_names_of_pairs_and_the_keys(etcd: Etcd) -> None:
    async with arbiter(etcd, prefix="/colo é") as a:
        for generation, pair in enumerate(NAMES, 2):
            assert await a.record(pair, "a", generation - 1)
            assert told(await a.claim(by("a", generation, pair))) == (WON, "a", generation)
            read = await etcd.ctl("get", "--print-value-only", f"/colo é/{pair}/owner")
            held = json.loads(read.check().stdout)
            assert (held["generation"], held["host"], len(held["claim"])) == (generation, "a", 16)
        for generation, pair in enumerate(NAMES, 2):
            assert told(await a.owner(pair)) == (UNKNOWN, "a", generation)
    keys = (await etcd.ctl("get", "--prefix", "--keys-only", "")).stdout.decode()
    assert keys.count("/owner\n") == len(NAMES)


@real
async def test_both_at_once_again_and_again(etcd: Etcd) -> None:
    async with arbiter(etcd) as a, arbiter(etcd) as b:
        assert await a.record("web", "a", 1)
        for generation in range(2, 52):
            rulings = await asyncio.gather(
                a.claim(by("a", generation)), b.claim(by("b", generation)), a.claim(by("a", generation))
            )
            owner = rulings[0].owner
            assert [told(ruling) for ruling in rulings] == [
                (WON if host == owner else LOST, owner, generation) for host in ("a", "b", "a")
            ]


@real
async def test_frozen_and_thawed(etcd: Etcd) -> None:
    """A request that was accepted while it was frozen is carried out later: who asks again is told so."""
    async with arbiter(etcd, deadline_s=0.5) as a, arbiter(etcd, deadline_s=30.0) as b:
        assert await a.record("web", "a", 1)
        await etcd.freeze()
        ruling = await a.claim(by("a", 2))
        assert told(ruling) == (UNKNOWN, None, None)
        assert f"{etcd.url}/v3/kv/range: no answer within" in ruling.reason
        assert not await a.record("web", "a", 2)
        etcd.thaw()
        first = await b.claim(by("b", 2))
        async with arbiter(etcd, deadline_s=30.0) as patient:
            second = await patient.claim(by("a", 2))
        assert sorted([first.verdict.value, second.verdict.value]) == ["lost", "won"]
        assert (first.owner, first.generation) == (second.owner, second.generation)


@real
async def test_killed_and_started_again(etcd: Etcd) -> None:
    async with arbiter(etcd, deadline_s=0.5) as a, arbiter(etcd, deadline_s=30.0) as patient:
        assert await a.record("web", "a", 1)
        assert told(await a.claim(by("a", 2))) == (WON, "a", 2)
        await etcd.kill()
        ruling = await a.claim(by("a", 2))
        assert told(ruling) == (UNKNOWN, None, None)
        assert f"{etcd.url}/v3/kv/range: " in ruling.reason
        await etcd.start()
        assert told(await patient.claim(by("b", 2))) == (LOST, "a", 2)  # waits for it, within its deadline
        assert told(await patient.claim(by("a", 2))) == (WON, "a", 2)


@real
async def test_three_members(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as servers:
        one, two, three = servers
        async with arbiter(*servers, deadline_s=30.0, attempt_s=1.0) as a, arbiter(*servers, deadline_s=1.0) as b:
            assert await a.record("web", "a", 1)
            await one.freeze()  # the first that is asked; the leader perhaps
            assert told(await a.claim(by("a", 2))) == (WON, "a", 2)
            await two.freeze()  # no majority: the third can't tell
            assert told(await b.claim(by("b", 2))) == (UNKNOWN, None, None)
            assert told(await b.owner("web")) == (UNKNOWN, None, None)
            one.thaw()
            two.thaw()
            await three.kill()
            async with arbiter(*servers, deadline_s=30.0, attempt_s=1.0) as patient:
                assert told(await patient.claim(by("b", 2))) == (LOST, "a", 2)


@real
async def test_another_cluster(tmp_path: Path) -> None:
    async with cluster(tmp_path / "x") as (right,), cluster(tmp_path / "y") as (wrong,):
        async with arbiter(right, wrong, deadline_s=4.0) as a, arbiter(wrong) as w:
            assert await a.record("web", "a", 1)
            assert told(await w.claim(by("b", 2))) == (UNKNOWN, None, 0)  # not on record there
            assert await w.record("web", "a", 1)
            await right.kill()
            ruling = await a.claim(by("a", 2))
            assert told(ruling) == (UNKNOWN, None, None)
            assert f"{wrong.url}/v3/kv/range: it is of another cluster: header.cluster_id is " in ruling.reason
        async with arbiter(wrong, cluster_id=4711, deadline_s=2.0) as pinned:
            assert "not 4711" in (await pinned.claim(by("b", 2))).reason


@real
async def test_liveness_for_people(etcd: Etcd) -> None:
    async with arbiter(etcd, alive_ttl_s=1) as a, arbiter(etcd) as b:
        assert await b.alive("web") == {}
        with pytest.raises(MisuseError, match="can't hold"):
            a.keep_alive("web", "a", {"since": object()})
        a.keep_alive("web", "a", {"role": "primary", "host": "x"})
        with pytest.raises(MisuseError):
            a.keep_alive("web", "a")
        there = {"a": {"role": "primary", "host": "a"}}

        async def is_there() -> bool:
            return await b.alive("web") == there

        await until(is_there)
        for lease in json.loads((await etcd.ctl("lease", "list", "--write-out=json")).stdout)["leases"]:
            (await etcd.ctl("lease", "revoke", f"{lease['id']:x}")).check()
        assert await b.alive("web") == {}
        await until(is_there)  # with a new lease
        await etcd.kill()
        with pytest.raises(EtcdError, match="/v3/kv/range"):
            await b.alive("web")
        await etcd.start()
        await etcd.wait_ready(PATIENCE)
        await until(is_there)
    async with arbiter(etcd) as b:
        assert await b.alive("web") == {}  # it has said good-bye


@real
async def test_liveness_ends_with_who_is_gone(etcd: Etcd) -> None:
    """No good-bye: the lease ends. It also holds on for longer than its time to live, while it is kept alive."""
    async with arbiter(etcd) as b:
        gone = EtcdArbiter(EtcdOptions((etcd.url,), alive_ttl_s=1))
        gone.keep_alive("web", "b")

        async def is_there() -> bool:
            return "b" in await b.alive("web")

        async def is_gone() -> bool:
            return not await is_there()

        await until(is_there)
        etcd_key = json.loads((await etcd.ctl("get", "-w=json", "coloproxy/web/alive/b")).stdout)["kvs"][0]
        assert etcd_key["lease"] != 0
        task = gone._alive._task if gone._alive else None
        assert task is not None
        task.cancel()
        await until(is_gone)
        await gone.close()


# ------------------------------------------------------------------ TLS and users


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Certificates, Certificates]:
    """Ours, and a stranger's."""

    def issue(name: str) -> Certificates:
        ca = trustme.CA()
        cert = ca.issue_cert("127.0.0.1", common_name="coloproxy")
        files = Certificates(*(tmp_path / f"{name}-{part}.pem" for part in ("ca", "cert", "key")))
        ca.cert_pem.write_to_path(files.ca)
        cert.private_key_pem.write_to_path(files.key)
        for part in cert.cert_chain_pems:
            part.write_to_path(files.cert, append=True)
        return files

    return issue("ours"), issue("strange")


def files(one: Certificates) -> dict[str, str]:
    return {"ca": str(one.ca), "cert": str(one.cert), "key": str(one.key)}


@real
async def test_tls(tmp_path: Path, certificates: tuple[Certificates, Certificates]) -> None:
    ours, strange = certificates
    async with cluster(tmp_path, 1, ours) as (server,):
        async with arbiter(server, **files(ours)) as a:
            assert await a.record("web", "a", 1)
            assert told(await a.claim(by("a", 2))) == (WON, "a", 2)
        for wrong, words in (
            (files(ours) | {"ca": str(strange.ca)}, "CERTIFICATE_VERIFY_FAILED"),
            (files(strange) | {"ca": str(ours.ca)}, f"{server.url}/v3/kv/range: "),
            ({"ca": str(ours.ca)}, f"{server.url}/v3/kv/range: "),
        ):
            async with arbiter(server, deadline_s=2.0, **wrong) as a:
                ruling = await a.claim(by("a", 2))
                assert told(ruling) == (UNKNOWN, None, None)
                assert words in ruling.reason


def test_certificates_that_cant_be_used(tmp_path: Path, certificates: tuple[Certificates, Certificates]) -> None:
    ours, strange = certificates
    (tmp_path / "junk").write_text("junk")
    for change in ({"ca": "/none"}, {"key": str(strange.key)}, {"cert": str(tmp_path / "junk")}):
        with pytest.raises(MisuseError, match="certificates"):
            EtcdArbiter(EtcdOptions(("https://127.0.0.1:1",), **(files(ours) | change)))  # type: ignore[arg-type]


@real
async def test_users(etcd: Etcd) -> None:
    for line in (
        "user add root:top",
        "user grant-role root root",
        "role add colo",
        "role grant-permission colo --prefix=true readwrite coloproxy/",
        "user add colo:geheim",
        "user grant-role colo colo",
        "user add other:geheim",
        "auth enable",
    ):
        (await etcd.ctl(*line.split())).check()
    async with arbiter(etcd, user="colo", password="geheim", alive_ttl_s=3) as a:
        assert await a.record("web", "a", 1)
        a.keep_alive("web", "a")

        async def is_there() -> bool:
            return "a" in await a.alive("web")

        await until(is_there)
        await etcd.kill()  # it forgets its tokens
        await etcd.start()
        await until(is_there)
        assert told(await a.claim(by("a", 2))) == (WON, "a", 2)
        (await etcd.ctl("--user=root:top", "user", "add", "third:x")).check()  # the tokens are of an old revision
        assert told(await a.claim(by("a", 3))) == (WON, "a", 3)
    for wrong, words in (
        ({}, "user name is empty"),
        ({"user": "colo", "password": "false"}, "authenticate: HTTP status 400: etcdserver: authentication failed"),
        ({"user": "other", "password": "geheim"}, "HTTP status 403: etcdserver: permission denied"),
    ):
        async with arbiter(etcd, deadline_s=2.0, **wrong) as b:
            ruling = await b.claim(by("b", 4))
            assert told(ruling) == (UNKNOWN, None, None)
            assert words in ruling.reason
            assert "geheim" not in ruling.reason


@real
async def test_users_that_it_doesnt_know(etcd: Etcd) -> None:
    async with arbiter(etcd, user="colo", password="geheim", deadline_s=2.0) as a:
        assert "authentication is not enabled" in (await a.claim(by("a", 1))).reason


# ------------------------------------------------------------------ liars, over real sockets

HEADER = '"header": {"cluster_id": "7", "member_id": "1", "revision": "9", "raft_term": "2"}'


def reply(body: str | bytes, status: str = "200 OK") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "disconnected"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "disconnected|illegal status line"),
        (reply(""), "is no JSON: ''"),
        (reply("<html>hello"), "is no JSON: '<html>hello'"),
        (reply(b"\xff\xfe"), "is no JSON"),
        (reply(b"[" * 60_000), "is no JSON"),
        (reply("[]"), "the answer is no object"),
        (reply("{}"), "header is no object: None"),
        (reply('{"header": {}}'), "header.cluster_id is missing"),
        (reply('{"header": {"cluster_id": "x"}}'), "header.cluster_id is no number: 'x'"),
        (reply('{"header": {"cluster_id": "7", "revision": []}}'), "header.revision is no number"),
        (reply(f'{{{HEADER}, "kvs": 7}}'), "answer.kvs is no list: 7"),
        (reply(b"x" * 70_000), "longer than 65536 bytes"),
        (reply("no", "404 Not Found"), "HTTP status 404: 'no'"),
        (reply('{"error": "etcdserver: no leader\\n", "code": 14}', "503 Unavailable"), "503: etcdserver: no leader?"),
        (reply('{"error": 7}', "500 X"), "HTTP status 500: '{\"error\": 7}'"),
        (reply("", "301 Moved\r\nLocation: http://192.0.2.1/"), "HTTP status 301"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "incomplete|without sending complete|closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "decompressing|gzip|header"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk"),
    ],
)
async def test_bad_answers_name_the_endpoint_and_the_place(data: bytes, words: str) -> None:
    """It is asked again; then the answer before has been judged for certain."""
    asked = 0
    again = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            asked += 1
            if asked == 2:
                again.set()
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        one = EtcdArbiter(EtcdOptions((url,), deadline_s=PATIENCE))
        task = asyncio.create_task(one.claim(by("a", 1)))
        async with asyncio.timeout(PATIENCE):
            await again.wait()
        await one.close()
        ruling = await task
    assert told(ruling) == (UNKNOWN, None, None)
    assert f"{url}/v3/kv/range: " in ruling.reason
    assert any(word in ruling.reason for word in words.split("|")), ruling.reason


async def test_one_that_trickles_is_not_waited_for() -> None:
    """Each byte comes in good time, the answer never does; the next endpoint is asked."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        one = EtcdArbiter(EtcdOptions((url,), deadline_s=0.3))
        ruling = await one.claim(by("a", 1))
        await one.close()
        assert told(ruling) == (UNKNOWN, None, None)
        assert "no answer within" in ruling.reason


async def test_an_etcd_that_has_gone_back_in_time() -> None:
    """Restored from a backup: what was won since is not in it."""
    now = MemoryEtcd()
    backup = MemoryEtcd()
    one = EtcdArbiter(EtcdOptions(("http://x",), deadline_s=0.2), now)
    assert await one.record("web", "a", 1)
    backup.entries = dict(now.entries)
    backup.revision = now.revision
    assert told(await one.claim(by("a", 2))) == (WON, "a", 2)
    now.entries, now.revision = backup.entries, backup.revision
    ruling = await one.claim(by("a", 2))
    assert told(ruling) == (UNKNOWN, None, None)
    assert "its data are older than they were: header.revision is 2, and was 3" in ruling.reason


async def test_a_key_that_somebody_else_has_written_stays() -> None:
    etcd = MemoryEtcd()
    one = EtcdArbiter(EtcdOptions(("http://x",), deadline_s=0.2), etcd)
    assert await one.record("web", "a", 1)
    etcd.entries[b"coloproxy/web/owner"].value = b"mine"
    ruling = await one.claim(by("a", 2))
    assert told(ruling) == (UNKNOWN, None, None)
    assert "the key coloproxy/web/owner holds no JSON" in ruling.reason
    assert not await one.record("web", "a", 2)
    assert etcd.entries[b"coloproxy/web/owner"].value == b"mine"


@real
async def test_closed_while_it_is_asked(etcd: Etcd) -> None:
    one = EtcdArbiter(EtcdOptions((etcd.url,), deadline_s=1000.0, attempt_s=2.0))
    assert await one.record("web", "a", 1)
    await etcd.freeze()
    task = asyncio.create_task(one.claim(by("a", 2)))
    await asyncio.sleep(0.1)  # so that it waits for an answer; either way it must end
    await one.close()
    ruling = await task
    assert told(ruling) == (UNKNOWN, None, None)


async def test_closed() -> None:
    one = EtcdArbiter(EtcdOptions(("http://127.0.0.1:1",), deadline_s=0.1))
    await one.close()
    await one.close()
    assert "closed" in (await one.claim(by("a", 1))).reason


async def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        one = EtcdArbiter(EtcdOptions(("http://127.0.0.1:1",), deadline_s=0.2))
        assert (await one.claim(by("a", 1))).verdict is UNKNOWN
        await one.close()
    assert asked == []
