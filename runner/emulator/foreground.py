"""The emulator as a program: one ready line on stdout, then answers until it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from runner.emulator import faults, server
from runner.errors import UsageInvalid


def run(dir: Path, port: int, faults_path: Path | None, *, parent_pipe: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or with `parent_pipe` until stdin ends.

    Prints `{"url":...,"pid":...}` once requests are answered.

    Raises:
        UsageInvalid: the fault file is wrong, the port is taken or the folder cannot be written.
    """
    plan = faults.load(faults_path) if faults_path else None
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        running = server.serve(dir, port, plan)
    except OSError as error:
        raise UsageInvalid(f"cannot serve {dir} on port {port}: {error.strerror or error}") from error
    try:
        sys.stdout.write(json.dumps({"url": running.url, "pid": os.getpid()}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        if parent_pipe:
            threading.Thread(target=_await_end_of_stdin, args=(stop,), daemon=True).start()
        stop.wait()
    finally:
        running.close()


def _await_end_of_stdin(stop: threading.Event) -> None:
    # A pipe ends when its writer dies, however it dies: no orphan outlives a killed parent.
    while os.read(0, 4096):
        pass
    stop.set()
