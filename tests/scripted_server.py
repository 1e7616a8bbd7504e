"""A server on loopback that answers exactly as a test says, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Call:
    method: str
    path: str
    """Without the query."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    claimed_length: int | None = None
    """A Content-Length that is not the body's."""
    reset: bool = False
    """Cut the connection instead of answering."""
    hang_s: float = 0.0


def answer(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {k.replace("_", "-"): v for k, v in headers.items()})


def refusal(code: int, status: str, message: str) -> Reply:
    return answer({"error": {"code": code, "message": message, "status": status}}, code)


class Service:
    """A server on loopback, its script, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: Callable[[Call], Reply] = lambda _: Reply()
        self.released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True

            def serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                url = urlsplit(self.path)
                call = Call(
                    self.command,
                    url.path,
                    parse_qs(url.query),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                )
                service.calls.append(call)
                reply = service.script(call)
                if reply.hang_s:
                    service.released.wait(reply.hang_s)
                if reply.reset:
                    # Linger 0: the client sees a reset, not an orderly end.
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                claimed = len(reply.body) if reply.claimed_length is None else reply.claimed_length
                self.send_header("Content-Length", str(claimed))
                self.end_headers()
                self.wfile.write(reply.body)
                self.close_connection = claimed != len(reply.body)

            do_GET = do_POST = do_DELETE = serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def posts(self) -> int:
        return sum(call.method == "POST" for call in self.calls)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
