"""`backend: local`: a backend of Google's services, talking to an emulator that is started for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from runner.backends import Backend
from runner.backends.gemini import GeminiBackend
from runner.backends.vertex import VertexBackend

_NOTICE = "backend local: no model was called; the answers are the emulator's"
_BUCKET = "gbrun-local"


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
    notice = _NOTICE

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


class LocalVertexBackend(VertexBackend):
    """The same for Vertex, with a project, a location and a bucket of the emulator's."""

    poll_interval_s = 0.1
    notice = _NOTICE

    def __init__(self, emulator: Emulator, request_timeout_s: float, labels: Mapping[str, str]) -> None:
        from google.oauth2.credentials import Credentials

        super().__init__(
            project="local",
            location="us-central1",
            staging_uri=f"gs://{_BUCKET}/staging",
            credentials=Credentials(token="local"),  # type: ignore[no-untyped-call]
            base_url=emulator.url,
            storage_url=emulator.url,
            api_version="v1beta1",
            request_timeout_s=request_timeout_s,
            labels=labels,
            listing_gap_s=0.02,
        )
        self.principal = "vertex:localhost:local/us-central1"
        self._emulator = emulator
        self._storage.make_bucket(_BUCKET)

    def close(self) -> None:
        """See `Backend.close`; ends the emulator process."""
        try:
            super().close()
        finally:
            self._emulator.close()


def start(
    folder: Path,
    faults: Path | None,
    request_timeout_s: float,
    *,
    like: str = "gemini",
    labels: Mapping[str, str] = {},
) -> Backend:
    """Start an emulator that keeps its files and jobs in `folder`, and a backend that uses it.

    `like` says which service it is to stand for, `faults` is a fault file for it. Raises `BackendError`
    where it does not start.
    """
    from runner.emulator import process

    emulator = process.start(folder, faults)
    try:
        if like == "vertex":
            return LocalVertexBackend(emulator, request_timeout_s, labels)
        return LocalBackend(emulator, request_timeout_s)
    except BaseException:
        emulator.close()
        raise
