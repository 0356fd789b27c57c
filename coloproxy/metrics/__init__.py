# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: a status, read as numbers. docs/observability.md has the list."""

from __future__ import annotations

from .collector import StatusCollector
from .server import DEFAULT_LIMITS, Limits, MetricsServer

__all__ = ["DEFAULT_LIMITS", "Limits", "MetricsServer", "StatusCollector"]
