# SPDX-License-Identifier: Apache-2.0
"""Metrics, status and the journal of a real pair: two `coloproxy run`, as user nobody, on a bed of namespaces."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from test_metrics import Samples, samples, value

from coloproxy.testbed.namespaces import NamespaceOptions, NamespacePair
from coloproxy.testbed.pair_toml import journal_file
from coloproxy.testbed.process import run
from coloproxy.testbed.proxies import PairFile, fail_over, protect
from coloproxy.testbed.qemu import Role
from coloproxy.testbed.requirements import missing
from coloproxy.testbed.server_programs import PROGRAMS

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")]

LARGE = 4_000_000


async def scrape(bed: NamespacePair, role: Role) -> Samples:
    argv = ["curl", "-sf", "--max-time", "10", "http://127.0.0.1:9811/metrics"]
    return samples((await run(argv, namespace=bed.network.hosts[role])).check().stdout.decode())


async def test_a_pair_is_measured_through_a_failover(tmp_path: Path) -> None:
    file = PairFile(process={"user": "nobody", "metrics": ":9811"})
    async with NamespacePair(NamespaceOptions(large_bytes=LARGE, keep_logs=tmp_path)) as bed:
        os.mknod(bed.directory / "tun", 0o600 | stat.S_IFCHR, os.makedev(10, 200))
        (bed.directory / "tun").chmod(0o666)
        script = f'mount --bind {bed.directory}/tun /dev/net/tun && exec "$@"'
        prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
        proxies = await protect(bed, file, services=["nginx"], prefix=prefix)
        transfer = await bed.client.download()
        assert (await transfer.result(40)).sha256 == bed.content.large_sha256
        await proxies["primary"].ctl("checkpoint", "--reason", "a test", "--wait", "10")

        found = await scrape(bed, "primary")
        assert value(found, "coloproxy_vm_state", state="protected") == 1
        assert value(found, "coloproxy_checkpoints_total", cause="request") == 1
        assert value(found, "coloproxy_checkpoint_duration_seconds_count") == 1
        matched = value(found, "coloproxy_release_latency_seconds_count", reason="matched")
        assert matched == value(found, "coloproxy_released_frames_total", reason="matched") > 100
        # Through the kernel and back no two VMs say the same at the same time.
        assert value(found, "coloproxy_release_latency_seconds_sum", reason="matched") > 0
        assert value(found, "coloproxy_compared_bytes_total") > LARGE
        assert value(found, "coloproxy_link_up") == 1
        there = await scrape(bed, "secondary")
        assert value(there, "coloproxy_vm_state", state="standby") == 1
        assert value(there, "coloproxy_epoch") >= 1

        argv = [sys.executable, "-P", "-m", "coloproxy", "status"]
        for proxy in proxies.values():
            argv += ["--socket", str(proxy.socket)]
        shown = (await run(argv)).check().stdout.decode()
        assert "protected" in shown and "standby" in shown and "request 1" in shown

        await fail_over(bed, proxies["secondary"], "kill")
        there = await scrape(bed, "secondary")
        assert value(there, "coloproxy_vm_state", state="taken-over") == 1
        assert value(there, "coloproxy_nic_open") == 1
        text = journal_file(bed.directory, "secondary").read_text()
        events = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        took_over = next(event for event in events if event["event"] == "took-over")
        assert took_over["reason"] == "the operator's wish"
        changes = [(event["before"], event["after"]) for event in events if event["event"] == "state"]
        assert changes == [("standby", "taken-over")]
        text = journal_file(bed.directory, "primary").read_text()
        first = next(event for event in map(json.loads, text.splitlines()[:-1]) if event["event"] == "state")
        assert (first["before"], first["after"]) == ("unprotected", "protected")
        assert first["reason"]


async def test_an_address_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    async with NamespacePair(NamespaceOptions(large_bytes=LARGE, keep_logs=tmp_path)) as bed:
        await protect(bed, PairFile(process={"metrics": ":9811"}), services=["nginx"])
        config = bed.directory / "pair.toml"
        text = config.read_text().replace("control-primary.sock", "control-2.sock").replace('"tap0"', '"tap9"')
        config.write_text(text)
        argv = [sys.executable, "-P", "-m", "coloproxy", "run", "--role", "primary", "--config", str(config)]
        done = await run(argv, namespace=bed.network.hosts["primary"])
        assert done.returncode == 1
        assert "metrics: can't listen on 127.0.0.1:9811: " in done.stderr.decode()
