# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench`: what a primary and a secondary VM put out, made up; any comparator driven by it, and measured."""

from __future__ import annotations
