"""One request and its answer as bytes: what all routes read and send, and faults that happen on the wire.

Source: request lines and headers of google-genai 3.4.0, recorded on loopback.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import orjson

from runner.emulator import wire
from runner.emulator.faults import HttpRule
from runner.emulator.listener import HttpServer
from runner.emulator.wire import ApiError

MAX_BODY_BYTES = 20 << 20
"""Largest body other than an upload's chunk; inline batches live under it."""


class Dropped(Exception):
    """The connection is to end here, without an answer."""


class Exchange(BaseHTTPRequestHandler):
    """One connection, and the request on it."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server_version = "gbrun-emulator"
    sys_version = ""
    unread = 0
    """Bytes of the request's body that nobody has read."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stdout and stderr belong to the program around."""

    def before(self, rule: HttpRule | None) -> None:
        """Faults that strike before any work."""
        if rule is None:
            return
        if rule.kind == "reset":
            raise Dropped
        if rule.kind == "http_429":
            raise wire.quota()
        if rule.kind == "http_5xx":
            raise ApiError(rule.status or 503, "The service is currently unavailable.")
        if rule.kind == "slow":
            time.sleep(rule.delay_s or 0)

    def reply(self, body: Any, rule: HttpRule | None, **headers: str) -> None:
        """Answer with 200, unless the answer is to be lost."""
        if rule and rule.kind == "lost_reply":
            raise Dropped
        self.send(body, 200, **headers)

    def body(self, largest: int = MAX_BODY_BYTES) -> bytes:
        """The request's body. Raises ApiError 400 for one that is too large."""
        if self.unread > largest:
            raise ApiError(400, f"Request payload size exceeds the limit: {largest} bytes.")
        count, self.unread = self.unread, 0
        return self.rfile.read(count)

    def send(self, body: Any, status: int, **headers: str) -> None:
        """Answer with JSON, or with nothing where the body is None."""
        data = b"" if body is None else orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.unread:
            # What was not read would be taken for the next request.
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def drop(self, *, abruptly: bool = True) -> None:
        """End the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            if abruptly:
                # No lingering: the client sees a reset, as when a load balancer dies.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def base_url(self) -> str:
        """The server as this client reached it, so that addresses in answers lead back here."""
        return f"http://{self.headers.get('Host') or self.server.netloc}"
