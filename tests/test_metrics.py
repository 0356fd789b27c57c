# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: nothing of a status is left out, and a real client reads them over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pair_files import PAIR
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from statuses import node_status, run_status, vm_status

from coloproxy.address import Address
from coloproxy.errors import AddressError
from coloproxy.journal import Journal
from coloproxy.metrics import Limits, MetricsServer, StatusCollector
from coloproxy.metrics.families import NODE, VM
from coloproxy.pair import load
from coloproxy.reports import CheckpointCommitted, CheckpointFailed, Protected
from coloproxy.run.primary import PrimaryVm
from coloproxy.testbed.programs import find_program

DEADLINE = 20.0
PROMTOOL = find_program("promtool") or Path("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL.exists(), reason="no promtool (tools/requirements.py fetches it)")
IDENTITY = {"pid", "uptime_s", "at_s"}  # that are not worth a metric, or change from call to call
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text_of(status: Mapping[str, Any]) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(lambda: status))
    return generate_latest(registry).decode()


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Of the one sample of that name that has these labels, among others."""
    (got,) = [v for (n, have), v in found.items() if n == name and labels.items() <= dict(have).items()]
    return got


class Numbering:
    """Puts a different number in the place of each: what comes out tells where it came from."""

    def __init__(self) -> None:
        self.given: dict[int, str] = {}

    def of(self, value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            return {
                key: item if key in IDENTITY | {"histogram"} else self.of(item, f"{path}.{key}")
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.of(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = 1_000_003 + 1000 * len(self.given)
            self.given[number] = path
            return number
        return value


def with_rare_parts(vm: dict[str, Any]) -> dict[str, Any]:
    """What a status has only once something has happened."""
    if "comparator" in vm:
        vm["last_checkpoint"] = {
            "causes": ["payload"],
            "stop_to_resume_ms": 12.5,
            "total_ms": 20.25,
            "released_frames": 17,
            "at_s": 3.5,
        }
        vm["handed_over_ms"] = 1.5
        vm["checkpoints_by_cause"] = {"payload": 3, "qemu": 4}
        for key in ("class_in", "divergences", "limits"):
            vm["comparator"][key] = {"tcp": 1, "gap": 2}
    vm["link"]["rtt_ms"] = 0.5
    return vm


def document(kind: str, directory: Path) -> dict[str, Any]:
    if kind == "node":
        return node_status(vm=with_rare_parts(vm_status(directory, "primary")))
    status = run_status(directory, "primary" if kind == "primary" else "secondary")
    status["refusals"] = {"key": 3, "crowded": 5}
    status["vms"] = [with_rare_parts(vm) for vm in status["vms"]]
    return status


@pytest.mark.parametrize("kind", ["primary", "secondary", "node"])
def test_every_number_of_a_status_is_a_metric(kind: str, tmp_path: Path) -> None:
    numbering = Numbering()
    status = numbering.of(document(kind, tmp_path))
    found = set(samples(text_of(status)).values())
    # Sums of others; histograms have their own test; when something was is for people and the journal.
    derived = {".checkpoints", "sum_ms", ".count", ".histogram", ".at"}
    missing = {
        path
        for number, path in numbering.given.items()
        if not found & {number, number / 1000} and not any(path.endswith(end) for end in derived)
    }
    assert not missing
    assert len(numbering.given) > 60


def test_histograms(tmp_path: Path) -> None:
    status = document("node", tmp_path)
    status["vm"]["pauses"] = {"count": 6, "sum_ms": 71.5, "histogram": [[1.0, 2], [25.0, 3], [None, 1]]}
    found = samples(text_of(status))
    name = "coloproxy_checkpoint_pause_seconds"
    assert [value(found, f"{name}_bucket", le=le) for le in ("0.001", "0.025", "+Inf")] == [2, 5, 6]
    assert (value(found, f"{name}_count"), value(found, f"{name}_sum")) == (6, 0.0715)
    heartbeat = "coloproxy_heartbeat_rtt_seconds_bucket"
    assert value(found, heartbeat, path="link", le="0.001") == 9900
    assert value(found, heartbeat, path="clients", le="+Inf") == 9991
    for reason in ("matched", "committed"):
        assert value(found, "coloproxy_release_latency_seconds_count", reason=reason) == 0


def test_states_are_one_of_all_known(tmp_path: Path) -> None:
    found = samples(text_of(document("node", tmp_path)))
    states = {dict(labels)["state"]: v for (n, labels), v in found.items() if n == "coloproxy_node_state"}
    assert len(states) == 14 and sum(states.values()) == 1 and states["protected"] == 1
    assert value(found, "coloproxy_node_role", role="primary") == 1
    assert value(found, "coloproxy_vm_state", state="unprotected") == 1
    assert value(found, "coloproxy_comparator_mode", mode="alone") == 1
    strange = samples(text_of(node_status(state="levitating")))
    assert value(strange, "coloproxy_node_state", state="other") == 1
    assert not [v for (n, labels), v in strange.items() if n == "coloproxy_vm_state"]


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"pair": "web", "host": "a", "state": "down"},
        node_status(peer=None, heartbeat=None, arbiter=None, qemu=None, disks=None),
        node_status(since_s=None, disks=[None, {"name": None, "size": "big", "resync": {"rate": float("nan")}}]),
        {"pair": "web", "role": "primary", "state": "protected", "vms": [{"name": "web"}, None]},
    ],
)
def test_a_status_with_holes_gives_what_there_is(status: dict[str, Any]) -> None:
    found = samples(text_of(status))
    assert value(found, "coloproxy_info") == 1


def test_names_labels_and_their_number(tmp_path: Path) -> None:
    names = [family.name for family in (*NODE, *VM)]
    assert len(names) == len(set(names))
    found = samples(text_of(document("primary", tmp_path)))
    assert 150 < len(found) / 2 < 300  # of a VM; docs/observability.md says so
    for family in (*NODE, *VM):
        assert family.help.endswith("."), family.name
    assert {label for _, labels in found for label, _ in labels} <= {
        "pair", "host", "vm", "version", "state", "role", "kind", "cause", "side", "class", "reason", "port", "nic",
        "mode", "le",
    }  # fmt: skip


@needs_promtool
@pytest.mark.parametrize("kind", ["primary", "secondary", "node"])
def test_promtool_finds_nothing_to_complain_of(kind: str, tmp_path: Path) -> None:
    text = text_of(document(kind, tmp_path))
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -------------------------------------------------------------------- HTTP


@contextlib.asynccontextmanager
async def serving(limits: Limits, status: Any = node_status, address: str = "") -> AsyncIterator[tuple[str, int]]:
    server = MetricsServer(Address(connect=False, host=address), status, limits)
    server.open()
    server.start()
    try:
        yield server.where
    finally:
        await server.close()


def get(where: tuple[str, int], path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    client = http.client.HTTPConnection(*where, timeout=DEADLINE)
    with contextlib.closing(client):
        client.request(method, path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


async def ask(where: tuple[str, int], path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    return await asyncio.to_thread(get, where, path, method)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::1"])
async def test_over_http(host: str) -> None:
    threads: list[str] = []

    def status() -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return node_status()

    async with serving(Limits(), status, host) as where:
        assert where[0] == (host or "127.0.0.1")
        code, text = await ask(where)
        assert (code, value(samples(text), "coloproxy_node_generation")) == (200, 7)
        assert threads == [threading.main_thread().name]  # where the status changes, not where HTTP is spoken
        assert (await ask(where, "/"))[0] == 404
        assert (await ask(where, method="POST"))[0] == 405
        assert (await ask(where))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        await ask(where)


async def test_an_address_that_is_taken_is_a_clear_error() -> None:
    async with serving(Limits()) as where:
        second = MetricsServer(Address(connect=False, port=where[1]), node_status)
        with pytest.raises(AddressError, match=rf"metrics: can't listen on 127\.0\.0\.1:{where[1]}: .*in use"):
            second.open()
        await second.close()


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("192.0.2.1", "Cannot assign requested address|can't be|not an address"),
        ("no.such.host.invalid", "metrics: can't listen"),
    ],
)
async def test_an_address_that_is_not_ours_is_a_clear_error(host: str, what: str) -> None:
    with pytest.raises(AddressError, match=what):
        MetricsServer(Address(connect=False, host=host, port=9811), node_status).open()


def connect(where: tuple[str, int]) -> socket.socket:
    return socket.create_connection(where, timeout=DEADLINE)


async def test_clients_that_say_nothing_hold_nobody_up_and_are_few() -> None:
    async with serving(Limits(clients=3)) as where:
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(connect(where)) for _ in range(2)]
            assert (await ask(where))[0] == 200
            silent += [stack.enter_context(connect(where)) for _ in range(2)]
            # Served in order: the third took the last place, so the fourth is closed.
            assert await asyncio.to_thread(silent[-1].recv, 1) == b""


async def test_a_client_that_says_nothing_is_closed() -> None:
    async with serving(Limits(client_s=0.05)) as where:
        with connect(where) as silent:
            assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_a_client_that_says_a_letter_now_and_then_keeps_no_place() -> None:
    """Each letter comes in time; the request as a whole does not."""

    def drip(client: socket.socket) -> bool:
        client.settimeout(0.05)
        for _ in range(int(DEADLINE / 0.05)):
            try:
                client.sendall(b"G")
                if client.recv(1) == b"":
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
        return False

    async with serving(Limits(clients=1, client_s=DEADLINE, request_s=0.3)) as where:
        with connect(where) as slow:
            assert await asyncio.to_thread(drip, slow)


async def test_a_status_that_does_not_come() -> None:
    def status() -> dict[str, Any]:
        raise TimeoutError

    async with serving(Limits(), status) as where:
        code, text = await ask(where)
        assert (code, text) == (503, "coloproxy does not answer\n")


async def test_a_loop_that_hangs() -> None:
    async with serving(Limits(status_s=0.05)) as where:
        answers: list[tuple[int, str]] = []
        thread = threading.Thread(target=lambda: answers.append(get(where)))
        thread.start()
        thread.join(DEADLINE)  # in the loop, which can't give a status meanwhile
        assert answers == [(503, "coloproxy does not answer\n")]


# --------------------------------------------------- dashboard and alert rules

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"
FUNCTIONS = {"histogram_quantile", "rate", "increase", "sum", "max", "min", "by", "le", "on", "or", "and", "unless",
             "changes", "group_left", "ignoring", "absent", "clamp_min", "time", "offset", "without", "avg", "topk",
             "resets", "bool", "delta", "count"}  # fmt: skip


def metric_names(directory: Path) -> set[str]:
    """All names that a scrape can have."""
    names: set[str] = set()
    for kind in ("primary", "secondary", "node"):
        text = text_of(document(kind, directory))
        names |= {name for name, _ in samples(text)}
    return names


def names_in(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - FUNCTIONS


def labels_in(expression: str) -> set[str]:
    return set(re.findall(r"[{,]\s*([a-z_]+)\s*[=!]~?", expression))


def expressions(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_the_dashboard(tmp_path: Path) -> None:
    board = json.loads((PACKAGING / "grafana" / "coloproxy.json").read_text(encoding="utf-8"))
    known = metric_names(tmp_path)
    seen = 0
    for title, expression in expressions(board):
        assert names_in(expression) <= known, title
        assert labels_in(expression) <= {"pair", "instance", "state", "reason", "side"}, title
        seen += 1
    assert seen > 15
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    assert board["schemaVersion"] >= 36 and board["uid"] == "coloproxy"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "pair"}


def rules() -> list[dict[str, str]]:
    """Of the file, without a YAML parser: one `key: value` a line, as it is written."""
    found: list[dict[str, str]] = []
    for line in (PACKAGING / "prometheus" / "alerts.yml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("- alert: "):
            found.append({"alert": text.removeprefix("- alert: ")})
        elif found and text.split(":")[0] in ("expr", "for", "severity", "summary", "description"):
            key, _, rest = text.partition(": ")
            found[-1][key] = rest
    return found


def test_alert_rules_name_metrics_that_exist(tmp_path: Path) -> None:
    known = metric_names(tmp_path)
    assert len(rules()) > 8
    for rule in rules():
        assert names_in(rule["expr"]) and names_in(rule["expr"]) <= known | {"up"}, rule["alert"]
        assert {"for", "severity", "summary", "description"} <= set(rule), rule["alert"]


def test_each_alert_rule_is_tested_loud_and_quiet() -> None:
    """promtool says nothing of a rule that no case names."""
    text = (PACKAGING / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    cases = re.findall(r"alertname: (\w+)(?:, |\n +)exp_alerts:( \[\])?", text)
    assert len(cases) == text.count("alertname:")  # none is written in a way that is not seen here
    names = {rule["alert"] for rule in rules()}
    assert {name for name, quiet in cases if not quiet} == names
    assert {name for name, quiet in cases if quiet} == names


@needs_promtool
@pytest.mark.parametrize(
    "command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]], ids=["check", "test"]
)
def test_alert_rules_by_promtool(command: list[str]) -> None:
    done = subprocess.run(
        [PROMTOOL, *command], cwd=PACKAGING / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------- documentation

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "observability.md"


def table() -> str:
    """The metrics, as docs/observability.md has them."""
    parts = []
    for title, families in (("Of a node", NODE), ("Of a VM", VM)):
        rows = [
            f"| `{family.name}` | {family.kind} | {', '.join(f'`{each}`' for each in family.labels)} | {family.help} |"
            for family in families
        ]
        parts.append("\n".join([f"**{title}**", "", "| name | kind | labels | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def test_the_documented_metrics_are_those_that_there_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (inside,) = re.findall(r"<!-- metrics: .*? -->\n\n(.*?)\n\n<!-- end of metrics -->", text, re.DOTALL)
    assert inside == table()


# ------------------------------------------------------------ what is counted


def test_checkpoints_are_counted_as_they_are_told(tmp_path: Path) -> None:
    file = tmp_path / "pair.toml"
    file.write_text(PAIR)
    pair = load(file, "primary")
    vm = PrimaryVm(pair, pair.vms[0], Journal(None), pytest.fail)
    for report in (
        Protected(300_000_000),
        CheckpointCommitted(1, ("payload in TCP 10.0.0.2:80", "fin"), 1, 12_000_000, 20_000_000),
        CheckpointCommitted(2, (), None, 8_000_000, None),
        CheckpointCommitted(3, ("the operator's wish",), None, None, 30_000_000),
        CheckpointFailed("no", ("payload",), None),
    ):
        vm.hear(report)
    status = vm.status()
    vm.path.close()
    assert status["checkpoints_by_cause"] == {"payload": 1, "qemu": 1, "request": 1}
    assert (status["checkpoints"], status["checkpoints_failed"]) == (3, 1)
    assert (status["pauses"]["count"], status["pauses"]["sum_ms"]) == (3, 320)
    assert (status["durations"]["count"], status["durations"]["sum_ms"]) == (2, 50)
    found = samples(text_of({"pair": "web", "role": "primary", "vms": [status]}))
    assert value(found, "coloproxy_checkpoint_pause_seconds_bucket", le="0.01") == 1
    assert value(found, "coloproxy_checkpoint_pause_seconds_bucket", le="0.025") == 2
    assert value(found, "coloproxy_checkpoints_failed_total") == 1
