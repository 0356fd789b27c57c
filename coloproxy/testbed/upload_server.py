# SPDX-License-Identifier: Apache-2.0
"""A web server that takes uploads and says what it received: POST a body, get its size and SHA-256.

Its answer depends on the body alone (no date, no name), so that two of them say the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import socketserver
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

_CHUNK = 1 << 16


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the answer leaves in one piece

    def do_POST(self) -> None:
        """Take a body of Content-Length bytes."""
        left = int(self.headers.get("Content-Length", 0))
        digest, count = hashlib.sha256(), 0
        while left and (data := self.rfile.read(min(left, _CHUNK))):
            digest.update(data)
            count += len(data)
            left -= len(data)
        answer = f"bytes: {count}\nsha256: {digest.hexdigest()}\n".encode()
        self.send_response_only(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is for errors."""


class Server(socketserver.ThreadingTCPServer):
    """IPv4 and IPv6 on one socket."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        """Both versions of IP, whatever net.ipv6.bindv6only says."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    """Serve for ever."""
    parser = argparse.ArgumentParser(prog="upload_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    with Server(("::", parser.parse_args().port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
