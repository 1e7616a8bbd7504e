"""The emulator as an object: an HTTP server and a worker over one folder, on loopback only."""

from __future__ import annotations

import threading
from pathlib import Path

from runner.emulator.database import Database
from runner.emulator.faults import FaultPlan
from runner.emulator.files import Files
from runner.emulator.handler import Handler
from runner.emulator.jobs import Jobs
from runner.emulator.listener import HttpServer
from runner.emulator.service import Service
from runner.emulator.worker import Worker


class Server:
    """A running emulator; `close` ends it and leaves the folder for the next one."""

    def __init__(self, folder: Path, port: int, plan: FaultPlan) -> None:
        self._database = Database(folder)
        files = Files(self._database, plan.timing.file_ttl_s)
        jobs = Jobs(self._database)
        self._worker = Worker(self._database, files, jobs)
        try:
            service = Service(self._database, files, jobs, plan, self._worker.wake)
            self._http = HttpServer(port, service, Handler)
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
