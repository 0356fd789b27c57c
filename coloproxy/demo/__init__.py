# SPDX-License-Identifier: Apache-2.0
"""`coloproxy demo`: real VMs, whose hosts die while clients are served.

nodes.py is what happens by default, `coloproxy node` on two hosts; pair.py is one failover in either attach; acts.py is
what they have in common. view.py is what is shown, nodes_board.py the nodes' part of it, journal.py reads coloproxy's
own events as they come.
"""

from __future__ import annotations

from coloproxy.demo.acts import DemoOptions
from coloproxy.demo.show import run_demo

__all__ = ["DemoOptions", "run_demo"]
