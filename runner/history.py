"""What a plan asks of the past, and the walk along its rows beside that of the inputs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Any, Protocol

from runner.model import Entry, Outcome, Stored
from runner.planspool import twice
from runner.rowtable import Glance, KnownRow

OK = str(Outcome.OK)


class History(Protocol):
    """What the planner asks of the past."""

    @property
    def components(self) -> Mapping[str, Mapping[str, Any]]:
        """Components id -> {spec, digests} of the sets that rows refer to."""
        ...

    @property
    def settled(self) -> bool:
        """Whether the outcomes in the rows are the newest, with nothing in flight."""
        ...

    @property
    def row_count(self) -> int:
        """Rows of the last finished apply."""
        ...

    @property
    def live_count(self) -> int:
        """Requests in flight."""
        ...

    def rows(self, from_ordinal: int = 0) -> Iterator[KnownRow]:
        """Rows of the last finished apply, by ordinal."""
        ...

    def glances(self, from_ordinal: int = 0) -> Iterator[Glance]:
        """The same, as far as it takes to see that nothing changed."""
        ...

    def row(self, key: str) -> KnownRow | None:
        """One of them."""
        ...

    def key_of(self, requests: str) -> str | None:
        """A key of the last finished apply that wanted exactly these requests."""
        ...

    def stored(self, request_id: str) -> Stored | None:
        """The latest outcome of a request."""
        ...

    def rejudged(self, request_id: str) -> Stored | None:
        """The outcome of a request where it is judged otherwise than it was stored."""
        ...

    def live(self, request_id: str) -> str | None:
        """The token of the live attempt that holds a request."""
        ...


class PriorRows:
    """The rows of the last finished apply, walked in their order while inputs come in theirs."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._cursor = history.glances()
        self._head = next(self._cursor, None)
        self._seen = bytearray(history.row_count)

    def pass_alike(
        self, entries: Iterator[Entry], ordinal: int, components: str, final: Container[str]
    ) -> tuple[Entry | None, int, Counter[str]]:
        """Pass the inputs that look as they did under these components, with an outcome that is `final`.

        The first that does not (None at the end), the ordinal it gets, and how many rows were passed per
        outcome.
        """
        cursor, head = self._cursor, self._head
        first, closer = ordinal, None
        passed: Counter[str] = Counter()
        ok = 0
        for entry in entries:
            if (
                head is None
                or head[1] != entry.key
                or head[4] != entry.signature
                or head[0] != ordinal
                or head[2] != components
                or head[3] not in final
            ):
                closer = entry
                break
            if head[3] == OK:
                ok += 1
            else:
                passed[head[3]] += 1
            head = next(cursor, None)
            ordinal += 1
        passed[OK] += ok
        self._seen[first:ordinal] = b"\x01" * (ordinal - first)
        self._head = head
        return closer, ordinal, passed

    def match(self, key: str) -> KnownRow | None:
        """The row of this key. Rows usually come in the order they had, so look there first.

        Raises InputUnreadable for a key that was asked for before.
        """
        found = self._history.row(key) if self._seen else None
        if found is None:
            return None
        head = self._head
        if head is not None and found.ordinal == head[0]:
            self._head = next(self._cursor, None)
        elif head is not None and found.ordinal > head[0]:
            self._cursor = self._history.glances(found.ordinal + 1)
            self._head = next(self._cursor, None)
        if self._seen[found.ordinal]:
            raise twice(key)
        self._seen[found.ordinal] = 1
        return found

    def unseen(self) -> Iterator[KnownRow]:
        """Those that no input asked for."""
        if self._seen.count(0):
            yield from (row for row in self._history.rows() if not self._seen[row.ordinal])
