"""What a plan asks of the past, and the walk along its rows beside that of the inputs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from itertools import islice, repeat
from typing import Any, Protocol

from runner.model import Batch, Entry, Stored
from runner.planspool import twice
from runner.rowtable import Glance, KnownRow


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
        self._ahead: list[Glance] = []
        """Rows that were taken from the cursor and not passed; the next is the last."""
        self._seen = bytearray(history.row_count)

    def all_alike(
        self, batch: Batch, ordinal: int, components: str, final: frozenset[str]
    ) -> Mapping[str, int] | None:
        """Pass inputs that all look as they did, from this ordinal on, under these components, with outcomes
        that are `final`: how many there are of each. None where one does not, and then none is passed.

        Compared as wholes, since nearly all rows of nearly all plans are such rows.
        """
        count = len(batch.keys)
        ahead = [*reversed(self._ahead), *islice(self._cursor, max(count - len(self._ahead), 0))]
        ordinals, outcomes = range(ordinal, ordinal + count), [glance[3] for glance in ahead]
        looks = zip(ordinals, batch.keys, repeat(components), outcomes, batch.signatures)
        if len(ahead) != count or not final.issuperset(outcomes) or ahead != list(looks):
            self._ahead = ahead[::-1]
            return None
        self._ahead.clear()
        self._seen[ordinal : ordinal + count] = b"\x01" * count
        return Counter(outcomes)

    def alike(self, entry: Entry, ordinal: int, components: str, final: Container[str]) -> str | None:
        """Pass one input that looks as it did, where its outcome is `final`: that outcome, None where not."""
        head = self._head()
        if (
            head is None
            or head[1] != entry.key
            or head[4] != entry.signature
            or head[0] != ordinal
            or head[2] != components
            or head[3] not in final
        ):
            return None
        self._ahead.pop()
        self._seen[ordinal] = 1
        return head[3]

    def _head(self) -> Glance | None:
        if not self._ahead:
            self._ahead.extend(islice(self._cursor, 1))
        return self._ahead[-1] if self._ahead else None

    def match(self, key: str) -> KnownRow | None:
        """The row of this key. Rows usually come in the order they had, so look there first.

        Raises InputUnreadable for a key that was asked for before.
        """
        found = self._history.row(key) if self._seen else None
        if found is None:
            return None
        head = self._head()
        if head is not None and found.ordinal == head[0]:
            self._ahead.pop()
        elif head is not None and found.ordinal > head[0]:
            self._cursor = self._history.glances(found.ordinal + 1)
            self._ahead.clear()
        if self._seen[found.ordinal]:
            raise twice(key)
        self._seen[found.ordinal] = 1
        return found

    def unseen(self) -> Iterator[KnownRow]:
        """Those that no input asked for."""
        if self._seen.count(0):
            yield from (row for row in self._history.rows() if not self._seen[row.ordinal])
