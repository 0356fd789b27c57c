# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench`: what a primary and a secondary VM put out, made up; any comparator driven by it, and measured.

policies.py is `coloproxy bench policies`: real guests.
"""

from __future__ import annotations
