# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the test bed.

TestbedError (a ColoproxyError)
 +-- RequirementError    the machine lacks something (root, a package, /dev/net/tun)
 +-- GuestError          the guest image can't be built
 +-- NetworkError        a namespace, link or bridge can't be set up
 +-- ProcessError        a child process failed to start or ended too early
 +-- MonitorError        QEMU refused a QMP command, or its monitor went away
 +-- DeadlineError       something took longer than its deadline; the message names it
"""

from __future__ import annotations

from ..errors import ColoproxyError


class TestbedError(ColoproxyError):
    """Base of every error that the test bed raises on purpose."""

    __test__ = False  # the name begins with "Test", but pytest must not collect it


class RequirementError(TestbedError):
    """The machine lacks something that the test bed needs."""


class GuestError(TestbedError):
    """The guest image can't be built."""


class NetworkError(TestbedError):
    """A namespace, link, bridge or TAP can't be set up or changed."""


class ProcessError(TestbedError):
    """A child process couldn't be started, or ended when it should have kept running."""


class MonitorError(TestbedError):
    """QEMU refused a QMP command, or its monitor went away."""


class DeadlineError(TestbedError):
    """Something took longer than its deadline."""
