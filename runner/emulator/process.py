"""The emulator in a child process that dies with its parent. Imports no part of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import runner
from runner.errors import BackendError

_READY_S = 20.0
_END_S = 5.0
_TAIL_BYTES = 4000


class EmulatorProcess:
    """A running child; a context manager."""

    def __init__(self, child: subprocess.Popen[bytes], url: str) -> None:
        self._child = child
        self.url = url
        """Base URL, without a trailing slash."""
        self.pid = child.pid

    def close(self) -> None:
        """End the child; safe to repeat."""
        _end(self._child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(dir: Path, faults: Path | None) -> EmulatorProcess:
    """Start an emulator over `dir` on a free port; it may share the folder with others.

    Raises:
        BackendError: it did not come up within 20 seconds; the message ends with what it said.
    """
    command = [sys.executable, "-P", "-m", "runner.emulator", "--dir", str(dir), "--parent-pipe"]
    if faults:
        command += ["--faults", str(faults)]
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C is for the parent, which still has work to save.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,
        )
        line = _ready_line(child)
        try:
            return EmulatorProcess(child, json.loads(line)["url"])
        except (ValueError, KeyError):
            _end(child)
            errors.seek(max(0, errors.seek(0, 2) - _TAIL_BYTES))
            said = errors.read().decode("utf-8", "replace").strip()
            raise BackendError(f"the local emulator did not start: {said or 'it said nothing'}") from None


def _ready_line(child: subprocess.Popen[bytes]) -> bytes:
    """The first line of the child's stdout, empty where it ends or does not come in time."""
    stdout: IO[bytes] | None = child.stdout
    assert stdout is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(_READY_S)
    if reader.is_alive():
        child.kill()
        reader.join()
        return b""
    return lines[0]


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin and not child.stdin.closed:
        child.stdin.close()
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout:
        child.stdout.close()


def _environment() -> dict[str, str]:
    """This environment, but with the child finding the same `runner` and nothing else of PYTHON*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(Path(runner.__file__).resolve().parent.parent)}
