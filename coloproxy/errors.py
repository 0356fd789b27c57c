# SPDX-License-Identifier: Apache-2.0
"""The exception tree.

ColoproxyError
 +-- MisuseError         the caller broke a rule of the API, or gave an unusable option
 |    +-- AddressError   an ADDR that can't be used
 |    +-- RulesError     a rules file that can't be used
 |    +-- ConfigError    a pair's file that can't be used; holds all that is wrong with it
 +-- PeerError           another program broke a protocol (framing, QMP, notify)
 |    +-- QmpError       QEMU refused a command, answered nonsense, or not in time
 |    +-- TableError     an exported table of connections that can't be imported
 |    +-- LinkError      whoever is at the link's other end was refused, or has refused us
 |    +-- EtcdError      etcd can't be reached, refused a request, or answered nonsense
 |    +-- ControlError   what was said on the control socket breaks its protocol
 |         +-- ControlUnreachable   nobody answers there
 |         +-- ControlRefused       the answer is an error
 +-- DeviceError         a network device that can't be made, opened or set up
 +-- VmmError            QEMU's process can't be started, adopted, reached or ended
 |    +-- VmmBusy        one runs already where one was to be started
 |    +-- VmmExited      it has ended; holds its exit status
 +-- DiskError           a disk image that can't be used, or a step of its replication that failed
 +-- CaptureError        a capture that can't be read or used; names the file and the packet
 +-- LimitError          a limit given at creation is reached
 +-- NativeError         the C core reported a failure (want of memory, a system call)
"""

from __future__ import annotations

from collections.abc import Sequence


class ColoproxyError(Exception):
    """Anything that coloproxy raises on purpose."""


class MisuseError(ColoproxyError):
    """The caller broke a rule of the API, or gave an option that can't be used."""


class AddressError(MisuseError):
    """An ADDR that can't be parsed, resolved, bound or reached."""


class RulesError(MisuseError):
    """A rules file that can't be read, or has a mistake."""


class ConfigError(MisuseError):
    """A pair's file that can't be read, or has mistakes.

    Attributes:
        problems: one line each, with file, line and key; all of them, in the file's order.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PeerError(ColoproxyError):
    """Another program broke a protocol."""


class QmpError(PeerError):
    """QEMU refused a command, answered nonsense, or did not answer in time."""


class TableError(PeerError):
    """A table of inherited connections that makes no sense, or does not fit here; nothing of it was imported."""


class LinkError(PeerError):
    """Whoever is at the other end of the link between two coloproxies was refused, or has refused us.

    Attributes:
        kind: one of coloproxy.path.refusals.Kind, for counters.
        text: the reason, in words that an operator can act on.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class EtcdError(PeerError):
    """No etcd endpoint answered in time, or one refused a request or answered nonsense; names the endpoint."""


class ControlError(PeerError):
    """What was said on the control socket breaks its protocol."""


class ControlUnreachable(ControlError):
    """Nobody listens on the control socket, it may not be used, or no answer came in time."""


class ControlRefused(ControlError):
    """A command on the control socket was answered by an error.

    Attributes:
        kind: one of the classes in coloproxy.control.protocol, such as "refused".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class DeviceError(ColoproxyError):
    """A TAP, an interface or a bridge that can't be made, opened or set up."""


class VmmError(ColoproxyError):
    """QEMU's process can't be started, adopted, reached or ended."""


class VmmBusy(VmmError):
    """A QEMU runs already where one was to be started: it may be adopted."""


class VmmExited(VmmError):
    """QEMU has ended while something was expected of it.

    Attributes:
        status: its exit status, -N if signal N ended it; None: not known, for it was not our child.
    """

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status = status


class DiskError(ColoproxyError):
    """A disk image that can't be used, or a step of its replication that failed.

    Attributes:
        kind: one of coloproxy.disks.model.Kind, for counters and for who must decide what to do next.
        text: the reason, in words that an operator can act on.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class CaptureError(ColoproxyError):
    """A packet capture that can't be read or used.

    Attributes:
        path: the file.
        packet: number of the packet in it, from 1 as Wireshark counts; None: the file as a whole.
        what: what is wrong.
    """

    def __init__(self, path: object, packet: int | None, what: str) -> None:
        super().__init__(f"{path}: {what}" if packet is None else f"{path}: packet {packet}: {what}")
        self.path = str(path)
        self.packet = packet
        self.what = what


class LimitError(ColoproxyError):
    """A limit given at creation is reached."""


class NativeError(ColoproxyError):
    """The C core reported a failure."""
