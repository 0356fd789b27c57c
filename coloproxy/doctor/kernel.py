# SPDX-License-Identifier: Apache-2.0
"""The kernel: devices, sockets and rights that the data path needs. Looked at by using them, in a process that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from typing import Final

from coloproxy.run.privileges import CAPABILITIES

from .check import Finding, Subject, check, fail, ok, warn

_TUNGETFEATURES: Final = 0x800454CF
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_VNET_HDR: Final = 0x4000
_SIOCBRADDBR: Final = 0x89A0
_ETH_P_ALL: Final = 3


@check("tun", "/dev/net/tun, for TAPs")
def tun(subject: Subject) -> Iterator[Finding]:
    path = subject.root / "dev/net/tun"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield fail(f"there is no {path}", "modprobe tun")
        return
    if not stat.S_ISCHR(mode):
        yield fail(f"{path} is no device", "modprobe tun")
        return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        yield fail(f"{path}: {error.strerror}", "run as root, or let udev give it mode 0666")
        return
    try:
        features = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))[0]
    finally:
        os.close(fd)
    lacking = [
        name
        for name, flag in (("TAP", _IFF_TAP), ("multi-queue", _IFF_MULTI_QUEUE), ("virtio-net headers", _IFF_VNET_HDR))
        if not features & flag
    ]
    if lacking:
        yield fail(f"the tun driver lacks {', '.join(lacking)}", "use a kernel of 3.8 or later")
    elif not mode & stat.S_IWOTH:
        yield warn(
            f"{path} has mode {stat.S_IMODE(mode):04o}: with process.user a TAP that is lost could not be opened again",
            "chmod 0666 (what udev gives it); making a TAP needs CAP_NET_ADMIN all the same",
        )
    else:
        yield ok(f"{path} has mode {stat.S_IMODE(mode):04o}, and all that is needed")


@check("capabilities", "rights of this process")
def capabilities(subject: Subject) -> Iterator[Finding]:
    text = (subject.root / "proc/self/status").read_text()
    effective = next((int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:")), 0)
    have = {name for number, name in enumerate(CAPABILITIES) if effective >> number & 1}
    if "NET_ADMIN" not in have:
        yield fail("CAP_NET_ADMIN is missing: no TAP can be made", "run as root, or by systemd's unit")
    elif subject.needs_raw and "NET_RAW" not in have:
        yield fail('CAP_NET_RAW is missing: kind = "packet" needs it', "run as root, or by systemd's unit")
    elif "NET_RAW" not in have:
        yield warn("CAP_NET_RAW is missing", 'only NICs of kind = "packet" need it')
    else:
        yield ok("CAP_NET_ADMIN and CAP_NET_RAW")


@check("bridge", "the kernel's bridge")
def bridge(subject: Subject) -> Iterator[Finding]:
    """A request with a bad name is refused before anything is made, and otherwise than where there are no bridges."""
    if (subject.root / "sys/module/bridge").exists():
        yield ok("the bridge is loaded")
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, _SIOCBRADDBR, b"a/b\0".ljust(64, b"\0"))
        except OSError as error:
            if error.errno in (errno.ENOPKG, errno.ENOTTY, errno.ENODEV, errno.EOPNOTSUPP):
                yield fail("the kernel has no bridge", "modprobe bridge")
                return
            if error.errno == errno.EPERM:
                yield warn("can't be told without CAP_NET_ADMIN", "run doctor as root")
                return
    yield ok("the kernel has bridges")


@check("packet-sockets", 'packet sockets, for NICs of kind = "packet"')
def packet_sockets(subject: Subject) -> Iterator[Finding]:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)).close()
    except PermissionError:
        if subject.needs_raw:
            yield fail("may not be opened", "run as root, or by systemd's unit with CAP_NET_RAW")
        return
    except OSError as error:
        yield (fail if subject.needs_raw else warn)(f"the kernel has none: {error.strerror}", "CONFIG_PACKET is needed")
        return
    yield ok("can be opened")


@check("namespaces", "network namespaces")
def namespaces(subject: Subject) -> Iterator[Finding]:
    path = subject.root / "proc/self/ns/net"
    if path.is_symlink():
        yield ok("the kernel has them")
    else:
        yield warn("the kernel has none", "`netns` in pair.toml and the test bed need CONFIG_NET_NS")


@check("memory", "room for the guest's RAM")
def memory(subject: Subject) -> Iterator[Finding]:
    fields = {}
    for line in (subject.root / "proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        fields[key] = int(rest.split()[0]) << 10
    available, total = fields["MemAvailable"], fields["MemTotal"]
    need = 2 * (subject.ram_bytes or 0) + (512 << 20)
    text = f"{available >> 20} MiB of {total >> 20} MiB are available"
    if available < need:
        yield warn(
            text,
            f"the secondary keeps the guest's RAM twice, and coloproxy up to 512 MiB of frames: {need >> 20} MiB",
        )
    else:
        yield ok(text)
