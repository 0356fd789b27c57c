# SPDX-License-Identifier: Apache-2.0
"""A program of its own: packets in on standard input, their layers and fields out on standard output.

It alone imports scapy, which is GPL and belongs to the extra ``coloproxy[report]``. It is run by its file name in a
process of its own (see coloproxy.report.decode), since the bytes are a stranger's and scapy's dissectors promise
neither to end nor to spare memory: this process has limits on both and may be killed at any moment. So what is found
is written packet by packet, a line of JSON each:
``{"layers": [[name, [[field, value], ...]], ...], "note": null or a sentence}``.

Input: ``{"packets": [hex, ...]}``. Exit status 3: no scapy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import sys
from typing import Any

NO_SCAPY = 3
_MEMORY = 1 << 30
_CPU_S = 20
_MAX_FIELDS = 400
_MAX_VALUE = 20_000
_MAX_DEPTH = 3

_HTTP_START = re.compile(rb"(HTTP/1\.[01] |(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE) [^\r\n]* HTTP/1\.)")

# RFC 8446, sections 5.1 and 4; TLS by scapy itself needs the `cryptography` package even to read a header.
_TLS_RECORDS = {20: "change_cipher_spec", 21: "alert", 22: "handshake", 23: "application_data", 24: "heartbeat"}
_TLS_VERSIONS = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_TLS_HANDSHAKES = {
    0: "hello_request",
    1: "client_hello",
    2: "server_hello",
    4: "new_session_ticket",
    8: "encrypted_extensions",
    11: "certificate",
    12: "server_key_exchange",
    13: "certificate_request",
    14: "server_hello_done",
    15: "certificate_verify",
    16: "client_key_exchange",
    20: "finished",
    22: "certificate_status",
    24: "key_update",
}

Layer = tuple[str, list[tuple[str, str]]]


def _shown(value: bytes) -> str:
    """Text as it stands where it is text, escapes elsewhere."""
    return repr(value)[2:-1] if isinstance(value, bytes) else str(value)


def tls_records(data: bytes) -> list[Layer]:
    """The records that `data` begins with; none if it does not look like TLS."""
    layers: list[Layer] = []
    at = 0
    while len(data) - at >= 5 and len(layers) < 8:
        kind, version = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if kind not in _TLS_RECORDS or version not in _TLS_VERSIONS or length > (1 << 14) + 2048:
            break
        body = data[at + 5 : at + 5 + length]
        fields = [("type", _TLS_RECORDS[kind]), ("version", _TLS_VERSIONS[version]), ("length", str(length))]
        if len(body) < length:
            fields.append(("captured", f"{len(body)} bytes, the rest is in other segments"))
        if kind == 22:
            fields += _handshake(body)
        elif kind == 21 and len(body) == 2:
            fields += [("alert level", str(body[0])), ("alert", str(body[1]))]
        layers.append(("TLS record", fields))
        at += 5 + length
    return layers


def _handshake(body: bytes) -> list[tuple[str, str]]:
    if len(body) < 4 or body[0] not in _TLS_HANDSHAKES or int.from_bytes(body[1:4], "big") > len(body) + (1 << 16):
        return [("handshake", "encrypted")]
    fields = [("handshake", _TLS_HANDSHAKES[body[0]]), ("handshake length", str(int.from_bytes(body[1:4], "big")))]
    if body[0] in (1, 2) and len(body) >= 39:
        version = int.from_bytes(body[4:6], "big")
        fields += [("hello version", _TLS_VERSIONS.get(version, f"0x{version:04x}")), ("random", body[6:38].hex())]
        session = body[39 : 39 + body[38]]
        fields.append(("session id", session.hex()))
        after = body[39 + body[38] :]
        if body[0] == 2 and len(after) >= 2:
            fields.append(("cipher suite", f"0x{after[:2].hex()}"))
    return fields


class _Fields:
    """Collects a layer's fields, flat, with a limit over the whole packet."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.out: list[tuple[str, str]] = []

    def add(self, name: str, value: str) -> None:
        if self.room > 0:
            self.out.append((name[:200], value[:_MAX_VALUE]))
        self.room -= 1

    def packet(self, layer: Any, prefix: str, depth: int) -> None:
        """All fields of `layer` alone, without its payload."""
        for field in layer.fields_desc:
            if self.room <= 0:
                return
            try:
                if hasattr(field, "_evalcond") and not field._evalcond(layer):
                    continue  # a field that this packet does not have
                value = layer.getfieldval(field.name)
                if value is None or (isinstance(value, (list, dict, tuple)) and not value):
                    continue
                self.value(layer, field, prefix + field.name, value, depth)
            except Exception as error:  # one field that can't be shown must not hide the others
                self.add(prefix + field.name, f"({type(error).__name__} in scapy)")

    def value(self, layer: Any, field: Any, name: str, value: Any, depth: int) -> None:
        if hasattr(value, "fields_desc"):
            value = [value]
        if isinstance(value, dict):
            for key, entry in value.items():
                self.add(f"{name.removesuffix('Unknown_Headers')}{_shown(key)}", _shown(entry))
        elif isinstance(value, list) and all(hasattr(entry, "fields_desc") for entry in value):
            for i, entry in enumerate(value):
                if depth >= _MAX_DEPTH:
                    self.add(f"{name}[{i}]", entry.summary())
                else:
                    self.packet(entry, f"{name}[{i}] ", depth + 1)
        elif isinstance(value, bytes):
            self.add(name, _shown(value))
        else:
            self.add(name, str(field.i2repr(layer, value)))


def dissect(data: bytes, ether: Any, http: Any) -> dict[str, Any]:
    """The layers of one frame, and a note if something went wrong on the way."""
    layers: list[Layer] = []
    room = _MAX_FIELDS
    tried_http = False
    following = ether(data)
    while following:  # the empty payload behind the last layer is false
        layer, following = following, following.payload
        name = str(layer.name)
        if name == "Raw" and layers and layers[-1][0] == "TCP":
            raw = bytes(layer.load)
            if records := tls_records(raw):
                return {"layers": layers + records, "note": None}
            if not tried_http and _HTTP_START.match(raw):  # on a port that scapy does not know for it
                tried_http, following = True, http(raw)
                continue
        if name.startswith("HTTP 1"):
            continue  # a wrapper without fields of its own
        fields = _Fields(room)
        fields.packet(layer, "", 0)
        room = fields.room
        if fields.out:
            layers.append((name, fields.out))
        if room <= 0:
            return {"layers": layers, "note": f"Only the first {_MAX_FIELDS} fields are shown."}
    return {"layers": layers, "note": None}


def main() -> int:
    """Reads all, writes a line a packet."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    packets = json.load(sys.stdin)["packets"]
    logging.getLogger("scapy").setLevel(logging.CRITICAL)
    with contextlib.suppress(Exception):  # one layer that can't be loaded must not cost all: see below
        import scapy.layers.all  # noqa: F401  dissectors register themselves by port
    try:
        from scapy.config import conf
        from scapy.layers.http import HTTP
        from scapy.layers.l2 import Ether
    except ImportError as error:
        print(error, file=sys.stderr)
        return NO_SCAPY
    conf.contribs["http"]["auto_compression"] = False  # a few bytes of gzip may unfold to gigabytes
    conf.contribs["http"]["auto_chunk"] = False
    conf.debug_dissector = False
    for packet in packets:
        try:
            answer = dissect(bytes.fromhex(packet), Ether, HTTP)
        except Exception as error:
            answer = {"layers": [], "note": f"scapy can't decode this packet: {type(error).__qualname__}."}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
