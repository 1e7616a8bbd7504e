"""The emulator as an object: an HTTP server and a worker over one folder, on loopback only."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import traceback
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from runner.emulator.database import Database
from runner.emulator.faults import FaultPlan
from runner.emulator.files import Files
from runner.emulator.handler import Handler
from runner.emulator.jobs import Jobs
from runner.emulator.service import Service
from runner.emulator.worker import Worker


class HttpServer(ThreadingHTTPServer):
    """One thread per connection; knows the open ones, to end them with itself."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, service: Service) -> None:
        self.service = service
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        super().__init__(("127.0.0.1", port), Handler)

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


class Server:
    """A running emulator; `close` ends it and leaves the folder for the next one."""

    def __init__(self, folder: Path, port: int, plan: FaultPlan) -> None:
        self._database = Database(folder)
        files = Files(self._database, plan.timing.file_ttl_s)
        jobs = Jobs(self._database)
        self._worker = Worker(self._database, files, jobs)
        try:
            self._http = HttpServer(port, Service(self._database, files, jobs, plan, self._worker.wake))
        except OSError:
            self._database.close()
            raise
        self.url = f"http://{self._http.netloc}"
        """Base URL, without a trailing slash."""
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name="emulator-http", daemon=True
        )
        self._worker.start()
        self._thread.start()

    def close(self) -> None:
        """Stop answering and computing; unfinished jobs are taken up by the next process."""
        self._http.shutdown()
        self._thread.join()
        self._http.end_connections()
        self._http.server_close()
        self._worker.stop()
        self._database.close()


def serve(dir: Path, port: int, faults: FaultPlan | None) -> Server:
    """Start an emulator on `127.0.0.1:port` (0: any free port) in background threads.

    Raises:
        OSError: the port is taken, or the folder cannot be written.
    """
    return Server(dir, port, faults or FaultPlan())
