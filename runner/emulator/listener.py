"""The port that the emulator answers at, on loopback only."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from runner.emulator.service import Service


class HttpServer(ThreadingHTTPServer):
    """One thread per connection; knows the open ones, to end them with itself."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, service: Service, handler: type[BaseHTTPRequestHandler]) -> None:
        self.service = service
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        super().__init__(("127.0.0.1", port), handler)

    @property
    def netloc(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Bind without asking a name server for the name of this machine, as the base class does."""
        TCPServer.server_bind(self)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        with self._lock:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go away at any time; anything else is a bug and is shown."""
        if not self._closing and not isinstance(sys.exception(), OSError):
            traceback.print_exc(file=sys.stderr)

    def end_connections(self) -> None:
        """Hang up on everyone."""
        self._closing = True
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
