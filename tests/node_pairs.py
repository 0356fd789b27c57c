# SPDX-License-Identifier: Apache-2.0
"""What the tests of `coloproxy node` with real VMs share: a small pair with an etcd, from nothing to protected."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_guest import PROGRAMS
from coloproxy.testbed.node_net import HOSTS
from coloproxy.testbed.node_toml import NodeFile, etcd_arbiter
from coloproxy.testbed.requirements import missing

_LACKS = ", ".join(item.what for item in missing(PROGRAMS))
_LOGS = os.environ.get("COLOPROXY_TEST_LOGS")

MARKS = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(_LACKS), reason=f"this machine lacks {_LACKS}"),
    pytest.mark.asyncio(loop_scope="module"),
]
KEEP_LOGS = Path(_LOGS) if _LOGS else None
LONG = 120.0  # seconds; for a busy machine
LARGE_BYTES = 16_000_000
BUSY_LINK = {"keepalive": "100ms", "timeout": "5s"}


def small_pair(*, node: dict[str, Any] | None = None, tables: dict[str, Any] | None = None, **more: Any) -> NodeOptions:
    """With an etcd; a busy machine must not look like a dead one.

    node: more of [node]. tables: more of NodeFile. more: of NodeOptions.
    """
    file = NodeFile(node={"arbiter": etcd_arbiter(), **(node or {})}, heartbeat={"timeout": "2s"}, **(tables or {}))
    return NodeOptions(file=file, arbiter=True, large_bytes=LARGE_BYTES, disk_mebibytes=64, keep_logs=KEEP_LOGS, **more)


@contextlib.asynccontextmanager
async def running(given: NodeOptions) -> AsyncIterator[NodeBed]:
    """From two hosts and one image to protected."""
    async with NodeBed(given) as bed:
        for host in HOSTS:
            await bed.start_node(host)
        await bed.protected(LONG)
        await bed.serves(LONG)
        yield bed
