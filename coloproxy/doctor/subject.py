# SPDX-License-Identifier: Apache-2.0
"""What of a pair's file the checks are about."""

from __future__ import annotations

import dataclasses

from coloproxy.pair.files import file_problems
from coloproxy.pair.model import Pair

from .check import Finding, Port, Subject, check, fail, ok


def of_pair(pair: Pair, base: Subject) -> Subject:
    """`base` with what the file says."""
    link = pair.link
    primary = pair.role == "primary"
    ports = [Port("link", "tcp", link.secondary.host, link.secondary.port, ours=not primary)]
    if pair.process.metrics is not None:
        metrics = pair.process.metrics
        ports.append(Port("metrics", "tcp", metrics.host or "127.0.0.1", metrics.port, ours=True))
    return dataclasses.replace(
        base,
        peer=base.peer or ((link.secondary.host if primary else link.primary) or None),
        ports=(*base.ports, *ports),
        control_socket=pair.control_socket,
        needs_raw=any(nic.vm.kind == "packet" for vm in pair.vms for nic in vm.nics),
        file_problems=tuple(file_problems(pair)),
    )


@check("files", "what the pair's file names: keys, rules, directories")
def files(subject: Subject) -> list[Finding]:
    if subject.file_problems is None:
        return []
    if not subject.file_problems:
        return [ok("all are there, and secrets are secret")]
    return [fail(problem, "see docs/configuration.md") for problem in subject.file_problems]
