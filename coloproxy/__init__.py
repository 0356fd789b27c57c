# SPDX-License-Identifier: Apache-2.0
"""coloproxy: everything around an unmodified QEMU that COLO needs."""

from __future__ import annotations

__version__ = "0.1.0"
