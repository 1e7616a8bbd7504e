"""`backend: local`: the Gemini backend, talking to an emulator that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from runner.backends import Backend
from runner.backends.gemini import GeminiBackend


class Emulator(Protocol):
    """A running emulator."""

    @property
    def url(self) -> str:
        """Where it listens."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class LocalBackend(GeminiBackend):
    """The real client against an emulator process, which ends with it."""

    poll_interval_s = 0.1
    notice = "backend local: no model was called; the answers are the emulator's"

    def __init__(self, emulator: Emulator, request_timeout_s: float) -> None:
        super().__init__(
            api_key="local", base_url=emulator.url, api_version="v1beta", request_timeout_s=request_timeout_s
        )
        # Its port is another one each time; its jobs are in a folder that stays.
        self.principal = "local"
        self._emulator = emulator

    def close(self) -> None:
        """See `Backend.close`; ends the emulator process."""
        try:
            super().close()
        finally:
            self._emulator.close()


def start(folder: Path, faults: Path | None, request_timeout_s: float) -> Backend:
    """Start an emulator that keeps its files and jobs in `folder`, and a backend that uses it.

    `faults` is a fault file for the emulator. Raises `BackendError` where it does not start.
    """
    from runner.emulator import process

    emulator = process.start(folder, faults)
    try:
        return LocalBackend(emulator, request_timeout_s)
    except BaseException:
        emulator.close()
        raise
