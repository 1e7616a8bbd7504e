"""The state, kept in a blob store: root, attempts, immutable parts, lock.

Parts are written before the root that names them, and the root is replaced only where it is
still the one that was read. Nothing here decides what to do; see `apply`.

    state.json                    the root
    rows/<n>.jsonl.gz             key -> wanted requests, one per finished apply
    outcomes/<n>.jsonl.gz         request -> outcome, append-only segments
    specs/<digest>.json           resolved specs that were applied
    shards/<shard_id>.jsonl.gz    what was submitted
    attempts/<token>.json         one per submission
    responses/<token>.<n>.jsonl.gz  what came back, byte for byte
    lock.json, history/           holder; old roots
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import orjson

from runner import parts, statefile
from runner.blobs import BlobChanged, BlobExists, BlobMissing, Blobs
from runner.errors import StateChanged, StateForeign, StateUnreadable
from runner.model import Attempt, AttemptState, Json, ResponseRef, State, Stored

ROOT = "state.json"
LOCK = "lock.json"
HISTORY_COUNT = 20
_MEMBER_READ_BYTES = 1 << 19
"""Bytes to read of a member whose compressed size is not known: most have less."""


class Store:
    """One spec's state. All errors are StateError or its children."""

    def __init__(self, blobs: Blobs, cache_folder: Path | None, label: str) -> None:
        """`cache_folder` is where a local index may live, None for nowhere; `label` is for messages."""
        self.blobs = blobs
        self.cache_folder = cache_folder
        self.label = label
        self._ended: dict[str, tuple[Attempt, str]] = {}

    # ------------------------------------------------------------ root

    def load(self) -> tuple[State | None, str]:
        """The root and its version; (None, "") where there is no state yet.

        Raises StateUnreadable, naming the newest root of the history that can be read, and
        StateForeign where the state was moved to another place.
        """
        try:
            data, version = self.blobs.read(ROOT)
        except BlobMissing:
            return None, ""
        moved = statefile.load_moved(data, f"{self.label}/{ROOT}")
        if moved is not None:
            raise StateForeign(
                f"{self.label} is closed: the state was moved to {moved.to} at serial {moved.serial}",
                hint="name that place with `state:` or --state, or bring it back with"
                f" gbrun state migrate SPEC --from {moved.to}",
            )
        try:
            return statefile.load_state(data, f"{self.label}/{ROOT}"), version
        except StateUnreadable as error:
            good = self._newest_good_root()
            hint = f"the newest good one is {self.label}/{good}" if good else error.hint
            raise StateUnreadable(error.message, hint=hint) from error

    def save(self, state: State, version: str) -> str:
        """Replace the root that has `version` ("" creates it) and return the new version.

        Raises StateChanged where someone else replaced it.
        """
        data = statefile.dump_state(state)
        try:
            if not version:
                return self.blobs.create(ROOT, data)
            return self.blobs.replace(ROOT, data, version)
        except (BlobExists, BlobChanged) as error:
            raise StateChanged(
                f"{self.label}/{ROOT} was replaced by another run", hint="plan again"
            ) from error

    def keep_history(self, state: State) -> None:
        """Keep this root in history/, with at most the last 20."""
        name = f"history/{state.serial:08d}.json"
        if not self.blobs.exists(name):
            self.blobs.create(name, statefile.dump_state(state))
        for old in list(self.blobs.list("history/"))[:-HISTORY_COUNT]:
            self.blobs.delete(old)

    def history(self) -> Iterator[tuple[str, State, str]]:
        """Each old root as (name, root, version), oldest first. Raises StateUnreadable."""
        for name in list(self.blobs.list("history/")):
            data, version = self.blobs.read(name)
            yield name, statefile.load_state(data, f"{self.label}/{name}"), version

    def lock(self, operation: str, now: str, timeout_s: float) -> AbstractContextManager[None]:
        """Hold the state's lock for a block. Raises StateLocked naming the holder."""
        import os
        import secrets
        import socket

        holder = {
            "id": secrets.token_hex(4),
            "operation": operation,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": now,
        }
        return self.blobs.lock(LOCK, orjson.dumps(holder) + b"\n", timeout_s)

    def lock_holder(self) -> dict[str, Json] | None:
        """What the holder of the lock says of itself; None where nobody holds it."""
        words = self.blobs.read_lock(LOCK)
        return None if words is None else _holder(words)

    def free_lock(self, id_: str) -> bool:
        """Free the lock of this holder, which is gone; False where a lock ends with its process."""
        words = self.blobs.read_lock(LOCK)
        return words is not None and _holder(words).get("id") == id_ and self.blobs.free_lock(LOCK, words)

    # ------------------------------------------------------------ attempts

    def attempts(self) -> list[tuple[Attempt, str]]:
        """Every attempt with its version, by token."""
        found = []
        for name in self.blobs.list("attempts/"):
            if name in self._ended:
                found.append(self._ended[name])
                continue
            try:
                data, version = self.blobs.read(name)
            except BlobMissing:
                continue
            attempt = statefile.load_attempt(data, f"{self.label}/{name}")
            found.append((attempt, version))
            if attempt.state in (AttemptState.CLEANED, AttemptState.VOID):
                self._ended[name] = found[-1]
        return found

    def create_attempt(self, attempt: Attempt) -> str:
        """Create the attempt exclusively. Raises BlobExists where someone else owns the token."""
        return self.blobs.create(f"attempts/{attempt.token}.json", statefile.dump_attempt(attempt))

    def replace_attempt(self, attempt: Attempt, version: str) -> str:
        """Replace the attempt if it still has `version`. Raises StateChanged."""
        name = f"attempts/{attempt.token}.json"
        try:
            return self.blobs.replace(name, statefile.dump_attempt(attempt), version)
        except BlobChanged as error:
            raise StateChanged(
                f"{self.label}/{name} was changed by another run", hint="plan again"
            ) from error

    # ------------------------------------------------------------ parts

    def put_spec(self, digest: str, resolved: Json) -> None:
        """Keep a resolved spec; one that is there already is the same."""
        self._create_if_absent(
            f"specs/{digest}.json",
            [orjson.dumps(resolved, option=orjson.OPT_INDENT_2)],
        )

    def spec(self, digest: str) -> Json | None:
        """A resolved spec, None where it is not known."""
        try:
            return orjson.loads(self.blobs.read(f"specs/{digest}.json")[0])
        except BlobMissing:
            return None

    def put_shard(self, shard_id: str, path: Path) -> None:
        """Keep a spooled shard file; one that is there already is the same."""
        name = f"shards/{shard_id}.jsonl.gz"
        if not self.blobs.exists(name):
            with path.open("rb") as lines:
                self._create_if_absent(name, parts.compress(lines))

    def put_shard_rest(self, shard_id: str, lines: Iterable[bytes]) -> str:
        """Keep what a purge leaves of a shard, and return its name.

        Never under the shard's own name: that stands for all that was submitted.
        """
        number = self._next_number(f"shards/{shard_id}.")
        name = f"shards/{shard_id}.{number}.jsonl.gz"
        self.blobs.create_from(name, parts.compress(lines))
        return name

    def shard_name(self, shard_id: str) -> str:
        """Where a shard lies: as it was submitted, else what the last purge left of it."""
        name = f"shards/{shard_id}.jsonl.gz"
        if self.blobs.exists(name):
            return name
        left = self._next_number(f"shards/{shard_id}.") - 1
        return f"shards/{shard_id}.{left}.jsonl.gz" if left else name

    def shard_lines(self, shard_id: str) -> Iterator[bytes]:
        """The lines of a shard as they were submitted, without newlines."""
        return self._lines(self.shard_name(shard_id))

    def put_rows(self, lines: Iterable[bytes]) -> str:
        """Write a rows snapshot and return its name."""
        return self._append("rows", lines)

    def put_outcomes(self, token: str, summary: Json, outcomes: Iterable[bytes]) -> str:
        """Write the outcomes segment of an attempt, with what to say about it, and return its name."""
        header = orjson.dumps({"version": 1, "token": token, "summary": summary}) + b"\n"

        def lines() -> Iterator[bytes]:
            yield header
            yield from outcomes

        return self.put_segment(lines())

    def put_segment(self, lines: Iterable[bytes]) -> str:
        """Write an outcomes segment of which the first line is its header, and return its name."""
        return self._append("outcomes", lines)

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a part; the first of a rows or outcomes part is its header."""
        return self._lines(name)

    def put_responses(
        self, token: str, chunks: Iterable[bytes], on_line: Callable[[bytes, ResponseRef], None]
    ) -> None:
        """Keep what came back for an attempt, telling `on_line` each line and its place."""
        part = self._next_number(f"responses/{token}.")
        self.blobs.create_from(response_name(token, part), parts.pack_responses(chunks, part, on_line))

    def response(self, stored: Stored) -> bytes | None:
        """The response line behind an outcome, None where no line came back."""
        if stored.ref is None:
            return None
        ref = stored.ref
        data = self.response_member(stored.token, ref.part, ref.member)
        return data[ref.offset : ref.offset + ref.length]

    def response_member(self, token: str, part: int, member: int) -> bytes:
        """The uncompressed bytes of the member that begins at this offset of a response file."""
        name = response_name(token, part)
        length = _MEMBER_READ_BYTES
        while True:
            data = self.blobs.read_range(name, member, length)
            found = parts.unpack_member(data, name, cut=len(data) == length)
            if found is not None:
                return found
            # A member is at most its uncompressed size plus gzip's overhead; one long line may be all of it.
            length *= 4

    def response_members(self, token: str, part: int) -> Iterator[tuple[int, bytes]]:
        """The members of one response file as (offset, uncompressed bytes), in order."""
        name = response_name(token, part)
        with self.blobs.open(name) as stream:
            yield from parts.members(stream, name)

    # ------------------------------------------------------------ helpers

    def _lines(self, name: str) -> Iterator[bytes]:
        try:
            stream = self.blobs.open(name)
        except BlobMissing as error:
            raise StateUnreadable(f"{self.label}/{name} is missing, though the state refers to it") from error
        with stream:
            yield from parts.read_lines(stream, f"{self.label}/{name}")

    def _append(self, kind: str, lines: Iterable[bytes]) -> str:
        number = self._next_number(f"{kind}/")
        name = f"{kind}/{number}.jsonl.gz"
        self.blobs.create_from(name, parts.compress(lines))
        return name

    def _next_number(self, prefix: str) -> int:
        # Numbers left behind by a crash are never used again, so a part is never overwritten.
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        numbers = [int(m.group(1)) for n in self.blobs.list(prefix) if (m := pattern.match(n))]
        return max(numbers, default=0) + 1

    def _create_if_absent(self, name: str, chunks: Iterable[bytes]) -> None:
        try:
            self.blobs.create_from(name, chunks)
        except BlobExists:
            return

    def _newest_good_root(self) -> str:
        for name in sorted(self.blobs.list("history/"), reverse=True):
            try:
                statefile.load_state(self.blobs.read(name)[0], name)
            except (StateUnreadable, BlobMissing):
                continue
            return name
        return ""


def _holder(words: bytes) -> dict[str, Json]:
    try:
        said = orjson.loads(words)
    except orjson.JSONDecodeError:
        # It has the lock and has not said who it is yet.
        said = None
    return said if isinstance(said, dict) else {}


def response_name(token: str, part: int) -> str:
    """Where the `part`-th download of an attempt's output lies."""
    return f"responses/{token}.{part}.jsonl.gz"
