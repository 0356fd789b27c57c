# SPDX-License-Identifier: Apache-2.0
"""`coloproxy demo`: a real pair of VMs, protected, its primary killed in mid-download.

scenario.py is what happens, view.py what is shown of it, journal.py reads the proxy's own events as they come.
"""

from __future__ import annotations

from coloproxy.demo.scenario import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
