# SPDX-License-Identifier: Apache-2.0
"""Reads a status as Prometheus metrics when it is asked, so nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from coloproxy import __version__

from .families import NODE, VM


class StatusCollector(Collector):
    """For a prometheus_client registry.

    Args:
        status: gives what the control socket's `status` gives: of `coloproxy run` (with "vms") or of a node (with
            "vm"). Called once a scrape, in whatever thread asks.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing: a registry must not ask for a status before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = dict(self._status())
        pair = str(status.get("pair"))
        host = str(status.get("host", status.get("role")))
        vms = [vm for vm in status.get("vms") or [status.get("vm")] if isinstance(vm, Mapping)]
        if "host" in status:  # a node; the state of `coloproxy run` is that of its VMs
            status["node_state"] = status.get("state")
        info = InfoMetricFamily("coloproxy", "This coloproxy.", labels=("pair", "host"))
        info.add_metric((pair, host), {"version": __version__})
        yield info
        of_node = [((pair, host), status)]
        of_vms = [((pair, str(vm.get("name"))), vm) for vm in vms]
        for family in NODE:
            yield family.collect(of_node, ("pair", "host"))
        for family in VM:
            yield family.collect(of_vms, ("pair", "vm"))
