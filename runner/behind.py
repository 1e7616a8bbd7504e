"""Work that another thread does, one piece after the other, while its caller makes the next piece.

It pays where the work hands the interpreter back for long: writing, hashing and packing of a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")


class Behind(Generic[T]):
    """At most one piece of work at a time. The thread is made for the first one."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[T] | None = None

    def begin(self, work: Callable[[], T]) -> T | None:
        """Begin a piece of work as soon as the one before has ended, and return what `end` returns."""
        if self._thread is None:
            # Small runs need none.
            from concurrent.futures import ThreadPoolExecutor

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="gbrun-behind")
        before = self.end()
        self._last = self._thread.submit(work)
        return before

    def end(self) -> T | None:
        """Wait for what was begun; what it gave, or None where nothing was. Raises what it raised, once."""
        last, self._last = self._last, None
        return None if last is None else last.result()

    def close(self) -> None:
        """Wait for what was begun, whatever becomes of it, and end the thread."""
        self._last = None
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
