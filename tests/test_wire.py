# SPDX-License-Identifier: Apache-2.0
"""wire.py builds the frames that scapy 2.8 builds (its bytes are here as literals), and the model reads them back."""

from __future__ import annotations

import pytest
import wire
from model.packet import Cls, parse
from wire import Noise, Options, Path

NOISE = Noise(ip_id=7, ttl=63, tos=2, window=500, tsval=1, tsecr=2)
BINDING = Options(mss=1460, wscale=7, sack_ok=True, timestamps=True)

SCAPY = {
    "TCP": (
        wire.tcp(Path(), 1000, 2000, wire.ACK | wire.PSH, b"hello", noise=NOISE),
        "5254000000c152540012345608004502002d000700003f0667c00a0000010a00000200509c40000003e80000"
        "07d0501801f4adb6000068656c6c6f",
    ),
    "a SYN-ACK with options, in a VLAN": (
        wire.tcp(Path(vlans=(7,)), 2**32 - 1, 1, wire.SYN | wire.ACK, b"", BINDING, NOISE),
        "5254000000c152540012345681000007080045020040000700003f0667ad0a0000010a00000200509c40ffff"
        "ffff00000001b01201f47d650000020405b404020101080a0000000100000002030307010101",
    ),
    "UDP in two VLANs": (
        wire.udp(Path(vlans=(7, 9)), b"abc", NOISE),
        "5254000000c152540012345688a800078100000908004502001f000700003f1167c30a0000010a00000200509c40000b8ae2616263",
    ),
    "TCP over IPv6": (
        wire.tcp(Path.v6(), 5, 6, wire.ACK, b"abc", noise=NOISE),
        "5254000000c152540012345686dd602000000017063ffd000000000000000000000000000001fd0000000000"
        "0000000000000000000200509c400000000500000006501001f452db0000616263",
    ),
    "UDP behind extension headers": (
        wire.udp(Path.v6(extensions=(0, 60)), b"abc", NOISE),
        "5254000000c152540012345686dd60200000001b003ffd000000000000000000000000000001fd0000000000"
        "000000000000000000023c00010400000000110001040000000000509c40000ba4e0616263",
    ),
    "ICMP echo": (
        wire.echo_reply(Path(), 77, 3, b"ping", NOISE),
        "5254000000c1525400123456080045020020000700003f0167d20a0000010a000002000020df004d000370696e67",
    ),
    "ICMPv6 echo": (
        wire.echo_reply(Path.v6(), 77, 3, b"ping", NOISE),
        "5254000000c152540012345686dd60200000000c3a3ffd000000000000000000000000000001fd0000000000"
        "000000000000000000028100a593004d000370696e67",
    ),
    "a first fragment": (
        wire.fragments(wire.udp(Path(), bytes(range(40))), (24,))[0],
        "5254000000c152540012345608004500002c004d2000401146720a0000010a00000200509c400030d1690001"
        "02030405060708090a0b0c0d0e0f",
    ),
    "a last fragment": (
        wire.fragments(wire.udp(Path(), bytes(range(40))), (24,))[1],
        "5254000000c152540012345608004500002c004d00034011666f0a0000010a00000210111213141516171819"
        "1a1b1c1d1e1f2021222324252627",
    ),
    "a first fragment over IPv6": (
        wire.fragments(wire.udp(Path.v6(), bytes(range(40))), (32,))[0],
        "5254000000c152540012345686dd6000000000282c40fd000000000000000000000000000001fd0000000000"
        "00000000000000000002110000010000004d00509c400030eb67000102030405060708090a0b0c0d0e0f1011"
        "121314151617",
    ),
    "a last fragment over IPv6": (
        wire.fragments(wire.udp(Path.v6(), bytes(range(40))), (32,))[1],
        "5254000000c152540012345686dd6000000000182c40fd000000000000000000000000000001fd0000000000"
        "00000000000000000002110000200000004d18191a1b1c1d1e1f2021222324252627",
    ),
    "ARP": (
        wire.arp(),
        "ffffffffffff525400123456080600010800060400015254001234560a0000010000000000000a000002",
    ),
}


@pytest.mark.parametrize("name", SCAPY)
def test_frames_are_scapys(name: str) -> None:
    frame, expected = SCAPY[name]
    assert frame.hex() == expected


def test_the_model_reads_what_was_written() -> None:
    packet = parse(wire.tcp(Path.v6(vlans=(7,)), 2**32 - 1, 5, wire.SYN | wire.ACK, b"x", BINDING, NOISE))
    assert (packet.cls, packet.key.family, packet.key.vlans) == (Cls.TCP, 6, (7,))
    assert (packet.seq, packet.ack, packet.syn, packet.acks, packet.body) == (2**32 - 1, 5, True, True, b"x")
    assert packet.options.mss == 1460
    assert packet.options.wscale == 7
    assert packet.options.sack_ok
    assert packet.timestamps == (1, 2)
    assert packet.checksums_ok


@pytest.mark.parametrize("path", [Path(), Path(vlans=(1, 2)), Path.v6(), Path.v6(extensions=(0, 43, 60))], ids=str)
def test_a_flipped_bit_spoils_the_checksum(path: Path) -> None:
    frame = wire.tcp(path, 1, 2, wire.ACK, b"abc")
    l4 = parse(frame).l4
    for at in range(l4 + 4, len(frame)):
        if at in (l4 + 12, l4 + 13):
            continue  # the header's length and the flags
        spoiled = bytearray(frame)
        spoiled[at] ^= 0x10
        assert not parse(bytes(spoiled)).checksums_ok, at


def test_partial_and_spoilt_checksums() -> None:
    assert parse(wire.with_vnet(wire.tcp(Path(), 1, 2, partial=True), 12, 1)).checksums_ok
    assert not parse(wire.with_vnet(wire.tcp(Path(), 1, 2), 12, 1)).checksums_ok
    assert not parse(wire.tcp(Path(), 1, 2, spoil_checksum=True)).checksums_ok
