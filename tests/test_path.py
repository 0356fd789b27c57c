# SPDX-License-Identifier: Apache-2.0
"""The data path on real devices: TAPs on a bridge, packet sockets on a veth, in a namespace of each test's own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any, Final

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from coloproxy.errors import MisuseError, NativeError
from coloproxy.path.path import EventKind, Neighbour, Path, PathEvent, Place, Role, WireKind
from coloproxy.path.tls import Transport
from coloproxy.run import announce, devices
from coloproxy.testbed.leftovers import new_name
from coloproxy.testbed.net import batch, ip

PATIENCE: Final = 20.0  # seconds after which a test is stuck; nothing that passes waits for it
OURS: Final = 0x88B5  # ethertype of all test frames: an experimental one
CLIENT: Final = b"\x02\0\0\0\0\x01"
VM: Final = b"\x02\0\0\0\0\x02"
ALL: Final = b"\xff" * 6

LACKS: Final = [what for what in ("ip", "bridge") if shutil.which(what) is None]
needs_devices = pytest.mark.skipif(
    os.geteuid() != 0 or not FilePath("/dev/net/tun").exists() or bool(LACKS),
    reason=f"needs root, /dev/net/tun, ip(8) and bridge(8) {LACKS}",
)


def frame(number: int, *, source: bytes = CLIENT, to: bytes = ALL, tags: bytes = b"", size: int = 60) -> bytes:
    return (to + source + tags + struct.pack("!HI", OURS, number)).ljust(size, b"\x5a")


def number_of(data: bytes) -> int | None:
    """None: it isn't one of ours."""
    if len(data) < 18 or data[12:14] != OURS.to_bytes(2):
        return None
    return int.from_bytes(data[14:18])


def until(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.001)


class Stream:
    """The far end of a stream of frames. tagged: a second word before each, with the NIC and a header's length."""

    def __init__(self, sock: socket.socket, *, tagged: bool = False) -> None:
        sock.settimeout(PATIENCE)
        self._sock = sock
        self._tagged = tagged

    def send(self, data: bytes, nic: int = 0, vnet_len: int = 0) -> None:
        word = struct.pack("!I", nic << 24 | vnet_len) if self._tagged else b""
        self._sock.sendall(len(data).to_bytes(4) + word + data)

    def receive(self) -> bytes:
        """The next frame; the second word is dropped."""
        length = int.from_bytes(self._exactly(4))
        if self._tagged:
            self._exactly(4)
        return self._exactly(length)

    def ours(self) -> bytes:
        """The next frame of a test's; the kernel sends some of its own."""
        while number_of(data := self.receive()) is None:
            pass
        return data

    def next(self) -> int:
        return int.from_bytes(self.ours()[14:18])

    def is_silent(self) -> bool:
        return not select.select([self._sock], [], [], 0)[0]

    def close(self) -> None:
        self._sock.close()

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._sock.recv(length - len(data))
            assert more, "the stream ended"
            data += more
        return data


class Cable:
    """One end of a veth as a program sees it that reads and writes raw frames, VLAN tags put back."""

    def __init__(self, interface: str, netns: str) -> None:
        self._sock = socket.socket(fileno=devices.open_packet(interface, netns, vnet_hdr=False))
        self._sock.setblocking(True)
        self._sock.settimeout(PATIENCE)

    def send(self, data: bytes) -> None:
        self._sock.send(data)

    def receive(self) -> bytes:
        data, control, _, _ = self._sock.recvmsg(70000, socket.CMSG_SPACE(20))
        for _, _, value in control:
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", value[:20])
            if status & 0x10:
                data = data[:12] + struct.pack("!HH", tpid if status & 0x40 else 0x8100, tci) + data[12:]
        return data

    def ours(self) -> bytes:
        while number_of(data := self.receive()) is None:
            pass
        return data

    def next(self) -> int:
        return int.from_bytes(self.ours()[14:18])

    def numbers(self) -> list[int]:
        """Of the frames of ours that are there now."""
        found: list[int] = []
        while select.select([self._sock], [], [], 0)[0]:
            if (number := number_of(self.receive())) is not None:
                found.append(number)
        return found

    def close(self) -> None:
        self._sock.close()


@dataclass
class End:
    """A path of either role, its VM's far end, and of a primary the comparator's far ends."""

    path: Path
    vm: Stream | None = None
    comparator: dict[Place, Stream] = field(default_factory=dict)
    tap: devices.TapDevice | None = None
    carrier: int = -1

    def set_open(self, *, is_open: bool) -> None:
        devices.set_carrier(self.carrier, "tap", on=is_open)

    def wait(self, kind: EventKind) -> PathEvent:
        end = time.monotonic() + PATIENCE
        while True:
            for event in self.path.events():
                if event.kind is kind:
                    return event
            ready = select.select([self.path.event_fd], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"no {kind!r} came"

    def counter(self, place: str, name: str) -> int:
        return int(self.path.counters()[place][0][name])


@dataclass
class Bed:
    netns: str
    client: Cable
    stack: contextlib.ExitStack

    def end(self, role: Role, tap: str, *, queues: int = 1, vnet_hdr: bool = False) -> End:
        """A path whose TAP is on the bridge, closed."""
        end = End(self.stack.enter_context(Path(role)))
        end.tap = devices.open_tap(tap, queues=queues, vnet_hdr=vnet_hdr, netns=self.netns)
        end.carrier = os.dup(end.tap.fds[0])
        self.stack.callback(os.close, end.carrier)
        devices.set_up_tap(tap, mtu=1500, bridge="br0", netns=self.netns)
        for fd in end.tap.fds:
            end.path.attach(Place.CLIENT, fd, WireKind.FRAMES, vnet_len=end.tap.vnet_len)
        end.vm = self.stream(end, Place.VM, WireKind.STREAM)
        for place in (Place.PRIMARY_IN, Place.SECONDARY_IN, Place.OUTDEV):
            if role is Role.PRIMARY:
                end.comparator[place] = self.stream(end, place, WireKind.TAGGED)
        end.path.start()
        return end

    def stream(self, end: End, place: Place, kind: WireKind) -> Stream:
        ours, theirs = socket.socketpair()
        end.path.attach(place, ours.detach(), kind)
        far = Stream(theirs, tagged=kind is WireKind.TAGGED)
        self.stack.callback(far.close)
        return far

    def fdb(self, port: str) -> list[str]:
        """The addresses that the bridge has learnt behind that port."""
        out = subprocess.run(
            ["bridge", "-n", self.netns, "-j", "fdb", "show", "br", "br0", "dynamic"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        return [entry["mac"] for entry in json.loads(out.stdout or "[]") if entry["ifname"] == port]

    def opened(self, end: End, probe: int) -> None:
        """Opens its TAP, until a frame of the VM's gets out: the bridge hears of carriers when it likes."""
        end.set_open(is_open=True)
        until(lambda: self.client.numbers() or self._probe(end, probe), "the TAP never opened")

    def _probe(self, end: End, probe: int) -> bool:
        end.path.inject(0, frame(probe, source=VM))
        return False


@pytest.fixture
def bed() -> Iterator[Bed]:
    """A bridge br0; the client's end of a veth on it is c1."""
    name = new_name()
    with contextlib.ExitStack() as stack:
        ip(["netns", "add", name])
        stack.callback(ip, ["netns", "delete", name])
        subprocess.run(
            ["ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"],
            check=True,
        )
        batch(
            name,
            [
                "link add br0 type bridge mcast_snooping 0",
                "link set br0 up",
                "link add c0 type veth peer name c1",
                "link set c0 master br0",
                "link set c0 up",
                "link set c1 up",
            ],
        )
        client = Cable("c1", name)
        stack.callback(client.close)
        yield Bed(name, client, stack)


def join(primary: End, secondary: End) -> None:
    """The two paths' link, and epochs that count."""
    one, other = socket.socketpair()
    primary.path.link_attach(Transport(one, None, server=False), restart=True)
    secondary.path.link_attach(Transport(other, None, server=True), restart=True)
    primary.path.sync(7)
    secondary.path.answer(7)
    primary.wait(EventKind.SYNCED)
    primary.path.accept()


@needs_devices
def test_mirror_in_order_and_once_and_a_closed_tap(bed: Bed) -> None:
    primary, secondary = bed.end(Role.PRIMARY, "tapp"), bed.end(Role.SECONDARY, "taps")
    assert primary.vm is not None and secondary.vm is not None
    join(primary, secondary)
    bed.opened(primary, 1)
    wanted = list(range(100, 400))
    for number in wanted:
        bed.client.send(frame(number))
    assert [primary.vm.next() for _ in wanted] == wanted
    assert [secondary.vm.next() for _ in wanted] == wanted

    # Both VMs say the same; nothing of the secondary's gets out, by whatever way.
    for number in range(500, 520):
        primary.vm.send(frame(number, source=VM))
        secondary.vm.send(frame(number, source=VM))
        assert primary.comparator[Place.PRIMARY_IN].next() == number
        assert primary.comparator[Place.SECONDARY_IN].next() == number
        primary.comparator[Place.OUTDEV].send(frame(number, source=VM))
        assert bed.client.next() == number
    sent = secondary.counter("client", "frames_out")
    secondary.path.inject(0, frame(600, source=b"\x02\0\0\0\0\x77"))
    until(lambda: secondary.counter("client", "frames_out") == sent + 1, "not written")
    primary.comparator[Place.OUTDEV].send(frame(601, source=VM))
    assert bed.client.next() == 601
    assert bed.fdb("taps") == []
    assert VM.hex(":") in bed.fdb("tapp")
    assert secondary.counter("client", "frames_in") == 0
    assert primary.vm.is_silent() and secondary.vm.is_silent()  # no frame came back


@needs_devices
def test_a_frame_with_the_vms_own_address_is_a_reflection(bed: Bed) -> None:
    primary = bed.end(Role.PRIMARY, "tapp")
    assert primary.vm is not None
    bed.opened(primary, 1)
    primary.vm.send(frame(2, source=VM))
    assert primary.comparator[Place.PRIMARY_IN].next() == 2
    bed.client.send(frame(3, source=VM))
    bed.client.send(frame(4))
    assert primary.vm.next() == 4
    assert primary.path.counters()["reflected"] == 1


@needs_devices
def test_takeover_and_what_is_announced(bed: Bed) -> None:
    primary, secondary = bed.end(Role.PRIMARY, "tapp"), bed.end(Role.SECONDARY, "taps")
    assert primary.vm is not None and secondary.vm is not None
    join(primary, secondary)
    bed.opened(primary, 1)
    until(lambda: VM.hex(":") in bed.fdb("tapp"), "the bridge has not learnt the way")
    # The VM says who it is.
    secondary.vm.send(bytes(Ether(src=VM.hex(":"), dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=VM.hex(":"), psrc="10.0.0.9")))
    secondary.vm.send(frame(2, source=VM))
    primary.comparator[Place.SECONDARY_IN].receive()
    assert primary.comparator[Place.SECONDARY_IN].next() == 2
    known = secondary.path.neighbours()
    assert [place.address for place in known] == [ip_address("10.0.0.9"), None]

    primary.set_open(is_open=False)
    secondary.path.takeover()
    bed.opened(secondary, 3)
    for place in announce.places_of(known, 0, None, ["fd00::9"], [100]):
        secondary.path.inject(0, announce.frame_of(place))
    secondary.path.inject(0, frame(4, source=VM))
    heard: list[Any] = []
    while number_of(data := bed.client.receive()) != 4:
        if number_of(data) is None:
            heard.append(Ether(data))
    assert all(packet.src == VM.hex(":") for packet in heard)
    assert {kind_of(packet) for packet in heard} == {
        ("arp 10.0.0.9", None), ("na fd00::9", None), ("na fd00::9", 100), ("rarp", None), ("rarp", 100),
    }  # fmt: skip
    until(lambda: VM.hex(":") in bed.fdb("taps"), "the bridge has not learnt the new way")
    bed.client.send(frame(5, to=VM))
    assert secondary.vm.next() == 5
    secondary.vm.send(frame(6, source=VM))
    assert bed.client.next() == 6
    with pytest.raises(MisuseError):
        secondary.path.takeover()


def kind_of(packet: Any) -> tuple[str, int | None]:
    vlan = packet[Dot1Q].vlan if Dot1Q in packet else None
    if ICMPv6ND_NA in packet:
        advertisement = packet[ICMPv6ND_NA]
        assert (advertisement.O, advertisement.S, packet[IPv6].hlim) == (1, 0, 255)
        assert packet[ICMPv6NDOptDstLLAddr].lladdr == packet.src
        return f"na {advertisement.tgt}", vlan
    # scapy dissects RARP's body as ARP only by its ethertype
    last = packet[Dot1Q].type if vlan is not None else packet.type
    if last == 0x8035:
        return "rarp", vlan
    assert packet[ARP].psrc == packet[ARP].pdst
    return f"arp {packet[ARP].psrc}", vlan


@needs_devices
def test_several_queues(bed: Bed) -> None:
    primary = bed.end(Role.PRIMARY, "tapp", queues=2)
    assert primary.vm is not None and primary.tap is not None and len(primary.tap.fds) == 2
    bed.opened(primary, 1)
    # By flow: UDP of many ports, so that the kernel uses both queues.
    flows = [udp(port) for port in range(64) for _ in range(3)]
    for data in flows:
        bed.client.send(data)
    heard: list[bytes] = []
    while len(heard) < len(flows):
        if (data := primary.vm.receive())[6:12] == CLIENT:
            heard.append(data)
    assert sorted(heard) == sorted(flows)
    primary.comparator[Place.OUTDEV].send(frame(2, source=VM))
    assert bed.client.next() == 2


def udp(port: int) -> bytes:
    packet = Ether(src=CLIENT.hex(":"), dst=VM.hex(":")) / IP(src="10.0.0.1", dst="10.0.0.9")
    return bytes(packet / UDP(sport=1000 + port, dport=53) / Raw(bytes(18)))


@needs_devices
def test_a_tap_with_virtio_headers_before_a_vm_without(bed: Bed) -> None:
    primary = bed.end(Role.PRIMARY, "tapp", vnet_hdr=True)
    assert primary.vm is not None
    bed.opened(primary, 1)  # injected without a header
    bed.client.send(frame(2, size=1514))
    assert primary.vm.ours() == frame(2, size=1514)
    for vnet_len in (0, 10, 12):
        primary.comparator[Place.OUTDEV].send(bytes(vnet_len) + frame(3, source=VM, size=1514), vnet_len=vnet_len)
        assert bed.client.ours() == frame(3, source=VM, size=1514)


@needs_devices
def test_a_tap_that_is_deleted_is_lost_once(bed: Bed) -> None:
    """Its descriptor has a duplicate, as in the program: for the carrier."""
    primary = bed.end(Role.PRIMARY, "tapp")
    bed.opened(primary, 1)
    batch(bed.netns, ["link delete tapp"])
    event = primary.wait(EventKind.LOST)
    assert (event.place, event.reason) == (Place.CLIENT, os.strerror(errno.EBADFD))
    assert primary.path.counters()["client"][0]["connected"] == 0
    assert primary.path.events() == []
    with pytest.raises(MisuseError):
        primary.path.inject(0, frame(2))
    again = devices.open_tap("tapp", netns=bed.netns)
    primary.path.attach(Place.CLIENT, again.fds[0], WireKind.FRAMES)
    devices.set_up_tap("tapp", mtu=1500, bridge="br0", netns=bed.netns)
    os.dup2(again.fds[0], primary.carrier)
    bed.opened(primary, 3)


TAGS: Final = {
    "none": b"",
    "one": b"\x81\0\xe0\x64",
    "priority": b"\x81\0\xa0\0",
    "service": b"\x88\xa8\0\x64",
    "two": b"\x88\xa8\0\x64\x81\0\0\xc8",
    "two alike": b"\x81\0\0\x64\x81\0\0\xc8",
}


@needs_devices
@pytest.mark.parametrize("vnet_hdr", [False, True], ids=["plain", "vnet"])
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
def test_vlan_tags_on_a_packet_socket(bed: Bed, tags: bytes, vnet_hdr: bool) -> None:
    """The kernel takes the outermost tag of what is received off the frame: the path puts it back."""
    batch(bed.netns, ["link add v0 type veth peer name v1", "link set v0 up", "link set v1 up"])
    vm = Cable("v1", bed.netns)
    vnet_len = 10 if vnet_hdr else 0
    with Path(Role.PRIMARY) as path:
        end = End(path)
        path.attach(
            Place.VM, devices.open_packet("v0", bed.netns, vnet_hdr=vnet_hdr), WireKind.PACKET, vnet_len=vnet_len
        )
        comparator = bed.stream(end, Place.PRIMARY_IN, WireKind.TAGGED)
        tap = devices.open_tap("tapp", netns=bed.netns)
        end.carrier = os.dup(tap.fds[0])
        bed.stack.callback(os.close, end.carrier)
        devices.set_up_tap("tapp", mtu=1500, bridge="br0", netns=bed.netns)
        path.attach(Place.CLIENT, tap.fds[0], WireKind.FRAMES)
        path.start()
        # Whoever sends by a packet socket has room for one tag of 802.1Q beyond the MTU, and for no other.
        longest = 1518 if tags[:2] == b"\x81\0" and len(tags) == 4 else 1514
        for size in (60, longest):
            data = frame(1, source=VM, tags=tags, size=size)
            vm.send(data)
            while (heard := comparator.receive()[vnet_len:])[6:12] != VM:  # the kernel's own noise
                pass
            assert heard == data
        bed.opened(end, 2)
        for size in (60, longest):  # and the other way
            data = frame(3, tags=tags, size=size)
            bed.client.send(data)
            while (heard := vm.receive())[6:12] != CLIENT:
                pass
            assert heard == data
    vm.close()


# ------------------------------------------------------------------ without devices


def test_neighbours_and_their_vlans() -> None:
    ours, theirs = socket.socketpair()
    with Path(Role.SECONDARY) as path:
        path.attach(Place.VM, ours.detach(), WireKind.STREAM)
        path.start()
        far = Stream(theirs)
        mac = VM.hex(":")
        for packet in (
            Ether(src=mac) / ARP(hwsrc=mac, psrc="10.0.0.9"),
            Ether(src=mac) / Dot1AD(vlan=5) / Dot1Q(vlan=6) / ARP(hwsrc=mac, psrc="10.0.0.9"),
            Ether(src=mac) / IPv6(src="fd00::9", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="fd00::9")
            / ICMPv6NDOptDstLLAddr(lladdr=mac),
        ):  # fmt: skip
            far.send(bytes(packet))
        until(lambda: path.counters()["vm"][0]["frames_in"] == 3, "not read")
        assert path.neighbours() == [
            Neighbour(0, VM, ip_address("10.0.0.9"), ()),
            Neighbour(0, VM, ip_address("10.0.0.9"), (5, 6)),
            Neighbour(0, VM, ip_address("fd00::9"), ()),
            Neighbour(0, VM, None, ()),
        ]
        far.close()


@pytest.mark.parametrize(
    "fields",
    [{"nics": 0}, {"nics": 17}, {"nics": 256}, {"stall_timeout": 0}, {"link": {"send_bytes": 1}}, {"max_flows": -1}],
    ids=str,
)
def test_configurations_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        Path(Role.PRIMARY, **fields)


def test_misuse() -> None:
    with Path(Role.PRIMARY) as path:
        path.start()
        with pytest.raises(MisuseError):
            path.start()
        with pytest.raises(MisuseError):
            path.takeover()
        with pytest.raises(MisuseError):
            path.sync(0)
        with pytest.raises(MisuseError):
            path.control(b"no session")
        with FilePath(__file__).open("rb") as file, pytest.raises(NativeError):
            path.attach(Place.VM, file.fileno(), WireKind.FRAMES)
        assert path.events() == []
        path.stop()
        path.stop()
    with pytest.raises(MisuseError):
        path.counters()
