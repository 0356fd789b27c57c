# SPDX-License-Identifier: Apache-2.0
"""One metric: where in a status its numbers stand, and how they are called.

A reader takes a status (of a node, or of a VM in it) and gives samples: the values of the family's own labels, and a
number; or a histogram, as coloproxy/histogram.py has it. What a status does not have gives no sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Kind = Literal["gauge", "counter", "histogram"]
Sample = tuple[tuple[str, ...], Any]
Reader = Callable[[Mapping[str, Any]], Iterable[Sample]]

PREFIX = "coloproxy_"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric.

    Attributes:
        name: without the prefix, and without `_total` of counters.
        help: a line; with the unit where the name has none.
        read: see the module.
        labels: those that tell its own samples apart.
    """

    kind: Kind
    name: str
    help: str
    read: Reader
    labels: tuple[str, ...] = ()

    def collect(self, statuses: Iterable[tuple[tuple[str, ...], Mapping[str, Any]]], common: tuple[str, ...]) -> Metric:
        """The metric, of statuses each with the values of the labels `common`."""
        labels = (*common, *self.labels)
        match self.kind:
            case "gauge":
                gauge = GaugeMetricFamily(PREFIX + self.name, self.help, labels=labels)
                for key, value in self._samples(statuses):
                    gauge.add_metric(key, value)
                return gauge
            case "counter":
                counter = CounterMetricFamily(PREFIX + self.name, self.help, labels=labels)
                for key, value in self._samples(statuses):
                    counter.add_metric(key, value)
                return counter
            case "histogram":
                histogram = HistogramMetricFamily(PREFIX + self.name, self.help, labels=labels)
                for key, value in self._samples(statuses):
                    buckets, total = _cumulative(value)
                    histogram.add_metric(key, buckets, total)
                return histogram

    def _samples(self, statuses: Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]) -> Iterator[Sample]:
        for before, status in statuses:
            for values, number in self.read(status):
                yield (*before, *values), number


def _cumulative(value: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float | None]:
    """Prometheus's buckets: seconds, each with all that lies at or below it."""
    buckets: list[tuple[str, float]] = []
    so_far = 0
    for bound_ms, count in value["histogram"]:
        so_far += count
        if bound_ms is not None:
            buckets.append((repr(bound_ms / 1000), so_far))
    buckets.append(("+Inf", so_far))
    total = value.get("sum_ms")
    return buckets, None if total is None else total / 1000


# ------------------------------------------------------------------ readers


def at(status: object, *path: str) -> Any:
    """What stands there, None if nothing does."""
    for key in path:
        if not isinstance(status, Mapping):
            return None
        status = status.get(key)
    return status


def number(value: object, scale: float = 1) -> float | None:
    """A finite number or a truth value; None for anything else."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value) if scale == 1 else float(value) * scale
    return None


def one(*path: str, scale: float = 1) -> Reader:
    """A number."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        value = number(at(status, *path), scale)
        if value is not None:
            yield (), value

    return read


def by_key(*path: str, scale: float = 1) -> Reader:
    """A mapping's numbers, with its keys as the label."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        values = at(status, *path)
        for key, item in values.items() if isinstance(values, Mapping) else ():
            value = number(item, scale)
            if value is not None:
                yield (str(key),), value

    return read


def by_side(*path: str) -> Reader:
    """A pair of numbers: primary, secondary."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        values = at(status, *path)
        if isinstance(values, list) and len(values) == 2:
            for side, item in zip(("primary", "secondary"), values, strict=True):
                value = number(item)
                if value is not None:
                    yield (side,), value

    return read


def state(known: tuple[str, ...], *path: str) -> Reader:
    """One sample for each known state, 1 for the present one. A state that is not known is called `other`."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        present = at(status, *path)
        if isinstance(present, str):
            for name in known:
                yield (name,), int(name == present)
            yield ("other",), int(present not in known)

    return read


def distribution(*path: str) -> Reader:
    """A histogram."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        value = at(status, *path)
        if isinstance(value, Mapping) and isinstance(value.get("histogram"), list):
            yield (), value

    return read


def each(path: tuple[str, ...], label: str, reader: Reader) -> Reader:
    """For a list of mappings: what the reader finds in each, behind the value of its `label`."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        items = at(status, *path)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping):
                for labels, value in reader(item):
                    yield (str(item.get(label)), *labels), value

    return read


def each_of(path: tuple[str, ...], reader: Reader) -> Reader:
    """For a mapping of mappings: what the reader finds in each, behind its key."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        items = at(status, *path)
        for key, item in items.items() if isinstance(items, Mapping) else ():
            if isinstance(item, Mapping):
                for labels, value in reader(item):
                    yield (str(key), *labels), value

    return read
