"""A lock kept as a blob that is replaced: for places that cannot tell that a holder died.

The blob says who holds it, and is replaced every minute by a thread of the holder. Whoever has watched it
stand still for five minutes of its own clock takes it over. It is free where it says `holder: null`.
A holder that was passed over learns it before its next write.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.blobs import BlobChanged, BlobExists, BlobMissing, holder_words
from runner.errors import StateChanged, StateError, StateLocked

HEARTBEAT_S = 60.0
TAKEOVER_S = 300.0


class Cells(Protocol):
    """What a lease needs of a blob store; see `Blobs`."""

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        ...

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        ...

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""
        ...


@dataclass(slots=True)
class _Held:
    name: str
    holder: Any
    version: str
    renewed_at: float
    """When the last replacement that succeeded was begun."""
    beat: int = 0
    lost: str = ""
    """Who has it now, where it was lost."""
    ended: threading.Event = field(default_factory=threading.Event)
    mutex: threading.Lock = field(default_factory=threading.Lock)


def steady_s() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Leases:
    """The locks of one blob store; each thread that takes one counts as a process of its own."""

    def __init__(
        self,
        cells: Cells,
        label: str,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        takeover_s: float = TAKEOVER_S,
        clock: Callable[[], float] = steady_s,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`label` stands before a lock's name in messages; `clock` gives seconds from anywhere."""
        self._cells = cells
        self._label = label
        self._heartbeat_s = heartbeat_s
        self._takeover_s = takeover_s
        self._clock = clock
        self._sleep = sleep
        self._held: dict[str, _Held] = {}

    @contextmanager
    def hold(self, name: str, holder: bytes, timeout_s: float) -> Iterator[None]:
        """See `Blobs.lock`."""
        held = self._acquire(name, holder, timeout_s)
        self._held[name] = held
        beats = threading.Thread(target=self._beat_on, args=(held,), name=f"lease-{name}", daemon=True)
        beats.start()
        try:
            yield
        finally:
            held.ended.set()
            del self._held[name]
            self._release(held)
            beats.join()

    def check(self) -> None:
        """Make sure that every lock held here is still held. For use before each write.

        Raises StateChanged where one was lost, StateError where it cannot be told.
        """
        for held in list(self._held.values()):
            with held.mutex:
                # After a sleep of the machine nothing is known until the lock itself was asked.
                if not held.lost and self._clock() - held.renewed_at >= self._takeover_s / 2:
                    self._renew(held)
                if held.lost:
                    raise StateChanged(
                        f"the lock {self._label}{held.name} was lost: {held.lost}; nothing was written since",
                        hint="run the command again: what is in flight will be found",
                    )

    def holder(self, name: str) -> bytes | None:
        """See `Blobs.read_lock`: what the blob says, whether its holder lives or not."""
        found = self._look(name)
        return None if found is None or found[1] is None else _words(found[1])

    def free(self, name: str, holder: bytes) -> bool:
        """See `Blobs.free_lock`."""
        while True:
            found = self._look(name)
            if found is None or found[1] is None or _words(found[1]) != holder:
                return False
            with suppress(BlobChanged):
                # A holder that lives moves it meanwhile.
                self._cells.replace(name, _body(None, 0), found[0])
                return True

    # ------------------------------------------------------------ taking and giving back

    def _acquire(self, name: str, holder: bytes, timeout_s: float) -> _Held:
        said = _value(holder)
        deadline = self._clock() + timeout_s
        watched, since = "", 0.0
        while True:
            begun = self._clock()
            found = self._look(name)
            version, present = found or ("", None)
            if present is not None and version != watched:
                watched, since = version, self._clock()
            if present is None or begun - since >= self._takeover_s:
                taken = self._clock()
                with suppress(BlobExists, BlobChanged):
                    body = _body(said, 0)
                    new = (
                        self._cells.replace(name, body, version) if found else self._cells.create(name, body)
                    )
                    return _Held(name, said, new, taken)
                # Somebody was quicker; look who.
                continue
            if begun >= deadline:
                raise self._locked(name, present)
            look_s = max(self._heartbeat_s / 30, 0.01)
            self._sleep(min(look_s, max(deadline - begun, 0.01)))

    def _release(self, held: _Held) -> None:
        with held.mutex, suppress(StateError):
            # One that cannot be given back is passed over by others in time.
            if not held.lost:
                self._cells.replace(held.name, _body(None, 0), held.version)

    def _locked(self, name: str, present: Any) -> StateLocked:
        id_ = present.get("id") if isinstance(present, dict) else None
        return StateLocked(
            f"{self._label}{name} is locked by {holder_words(_words(present))}",
            hint="wait for it to end, or give it time with --lock-timeout: a holder that shows no life for"
            f" {self._takeover_s:g} s is passed over"
            + (f"; one that is known to be gone at once with gbrun force-unlock SPEC {id_}" if id_ else ""),
        )

    # ------------------------------------------------------------ showing life

    def _beat_on(self, held: _Held) -> None:
        pause_s = self._heartbeat_s
        while not held.ended.wait(pause_s):
            with held.mutex:
                if held.ended.is_set() or held.lost:
                    return
                try:
                    self._renew(held)
                    pause_s = self._heartbeat_s
                except StateError:
                    pause_s = self._heartbeat_s / 6

    def _renew(self, held: _Held) -> None:
        begun = self._clock()
        try:
            held.version = self._cells.replace(held.name, _body(held.holder, held.beat + 1), held.version)
        except BlobChanged:
            found = self._look(held.name)
            present = found[1] if found else None
            held.lost = f"{holder_words(_words(present))} holds it now" if present else "it was freed by hand"
            return
        held.beat += 1
        held.renewed_at = begun

    # ------------------------------------------------------------ the blob

    def _look(self, name: str) -> tuple[str, Any] | None:
        """Version and holder (None: free) of a lock; None where there is no blob."""
        try:
            data, version = self._cells.read(name)
        except BlobMissing:
            return None
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        # What cannot be read is held by somebody unknown until it has stood still for long enough.
        return version, body["holder"] if isinstance(body, dict) and "holder" in body else ""


def _value(holder: bytes) -> Any:
    """What a holder says as a JSON value that is not null."""
    try:
        said = json.loads(holder)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else holder.decode("utf-8", "replace")


def _words(value: Any) -> bytes:
    return json.dumps(value).encode() if isinstance(value, dict) else str(value).encode()


def _body(holder: Any, beat: int) -> bytes:
    return json.dumps({"holder": holder, "beat": beat}).encode() + b"\n"
