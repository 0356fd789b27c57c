# SPDX-License-Identifier: Apache-2.0
"""Control of a running coloproxy: the socket, and `coloproxy ctl`."""

from __future__ import annotations

from .client import ControlClient, ask
from .server import ControlServer, Handler, Limits

__all__ = ["ControlClient", "ControlServer", "Handler", "Limits", "ask"]
