"""Jobs of the account become attempts of a state: which of this spec's requests each of them holds.

A job whose token names a shard of the spec as it stands holds that shard. Of any other job that
has ended, the output says by its keys which requests it answers. Memory is flat: lines are kept
on disk and looked up by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from runner import parts, rowtable, statefile
from runner.errors import UsageInvalid
from runner.model import Attempt, AttemptState, Job, PlannedShard
from runner.run import Run

_SCHEMA = """
CREATE TABLE line (place INTEGER PRIMARY KEY, id TEXT UNIQUE, shard INTEGER, at INTEGER, length INTEGER);
CREATE TABLE chosen (place INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a job."""

    job: Job
    attempt: Attempt | None
    """None where it was not taken in."""
    why: str
    """In words: what it was taken in as, or why not."""


def by_lineage(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """The jobs that carry a token, by the beginning of their lineage, in the order of their tokens."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        parsed = statefile.parse_token(job.display_name)
        if parsed is not None:
            found.setdefault(parsed.lineage, []).append(job)
    return {
        lineage: sorted(found[lineage], key=lambda job: (job.create_time, job.display_name, job.job_name))
        for lineage in sorted(found)
    }


def choose(found: Mapping[str, Sequence[Job]], wanted: str | None) -> str:
    """The lineage to take in. Raises UsageInvalid where that is not clear, and lists what there is."""
    if wanted is not None and wanted[:8] in found:
        return wanted[:8]
    listed = "".join(f"\n  {lineage}  {len(jobs):,} job(s){_dates(jobs)}" for lineage, jobs in found.items())
    if wanted is not None:
        raise UsageInvalid(f"no job of the account is of lineage {wanted!r}; there is:{listed or ' none'}")
    if not found:
        raise UsageInvalid(
            "no job of the account carries a name of gbrun, so there is nothing to rebuild a state from",
            hint="is this the key and the backend that the jobs were made with?",
        )
    if len(found) > 1:
        raise UsageInvalid(
            f"the account has jobs of {len(found)} lineages:{listed}", hint="choose one with --lineage"
        )
    return next(iter(found))


class Adoption:
    """Takes jobs into the state of a run, which must have its root, saved or not."""

    def __init__(
        self, run: Run, planned: Sequence[PlannedShard], answered: Callable[[str], bool], folder: Path
    ) -> None:
        """`planned` hold every request of the spec; `answered` says which need no other answer."""
        self._run = run
        self._planned = {shard.shard_id[:16]: shard for shard in planned}
        self._answered = answered
        self._lines = _Lines(planned, folder)

    def close(self) -> None:
        """Close what lies on disk."""
        self._lines.close()

    def take(self, job: Job) -> Taken:
        """Make an attempt of a job, where it holds requests of this spec."""
        known = next((a for a in self._run.ledger.attempts.values() if a.job_name == job.job_name), None)
        if known is not None:
            return Taken(job, known, f"is known already as {known.token}")
        shard, why = self._shard(job)
        if shard is None:
            return Taken(job, None, why)
        self._run.store.put_shard(shard.shard_id, shard.path)
        attempt = self._attempt(job, shard)
        self._run.ledger.create(attempt)
        return Taken(job, attempt, why)

    def _shard(self, job: Job) -> tuple[PlannedShard | None, str]:
        parsed = statefile.parse_token(job.display_name)
        planned = self._planned.get(parsed.shard) if parsed else None
        if planned is not None and not any(self._answered(key) for key in _keys_of(planned.path)):
            return planned, f"holds {planned.request_count:,} request(s) of this spec"
        if not job.state.terminal:
            return None, f"is {job.state} and no shard of this spec as it stands; import it once it has ended"
        if not job.output_name:
            return None, f"is {job.state} and has no output"
        keys = (key for key in _answer_keys(self._run.backend.output(job)) if not self._answered(key))
        shard = self._lines.pick(keys)
        if shard is None:
            return None, "answers no request of this spec that is still open"
        return shard, f"answers {shard.request_count:,} request(s) of this spec"

    def _attempt(self, job: Job, shard: PlannedShard) -> Attempt:
        lineage = self._run.ledger.state.lineage
        now = self._run.clock.now()
        parsed = statefile.parse_token(job.display_name)
        of_lineage = parsed is not None and parsed.lineage == lineage[:8]
        attempts = self._run.ledger.attempts
        number = 1 + max(
            (a.number for a in attempts.values() if a.shard_id[:16] == shard.shard_id[:16]), default=0
        )
        own = statefile.token(lineage, shard.shard_id, parsed.number if parsed else number)
        if own == job.display_name and own not in attempts and parsed is not None:
            number = parsed.number
        return Attempt(
            token=statefile.token(lineage, shard.shard_id, number),
            shard_id=shard.shard_id,
            number=number,
            state=AttemptState.SUBMITTED,
            model=job.model or self._run.spec.model,
            task=self._run.spec.task,
            request_count=shard.request_count,
            byte_count=shard.byte_count,
            created_at=now,
            posted_at=now if of_lineage else 0.0,
            job_name=job.job_name,
            job_state=job.state,
            adopted=True,
        )


class _Lines:
    """The request lines of shards, found by id."""

    def __init__(self, shards: Sequence[PlannedShard], folder: Path) -> None:
        self._shards = shards
        self._folder = folder
        self._count = 0
        self._db = rowtable.scratch(folder / "lines.sqlite")
        self._db.executescript(_SCHEMA)
        with rowtable.transaction(self._db):
            self._db.executemany(
                "INSERT OR IGNORE INTO line (id, shard, at, length) VALUES (?, ?, ?, ?)", self._all()
            )

    def close(self) -> None:
        self._db.close()

    def pick(self, keys: Iterable[str]) -> PlannedShard | None:
        """A shard of the lines with these keys, in the order of the spec; None where there are none."""
        with rowtable.transaction(self._db):
            self._db.execute("DELETE FROM chosen")
            self._db.executemany(
                "INSERT OR IGNORE INTO chosen SELECT place FROM line WHERE id = ?", ((key,) for key in keys)
            )
        self._count += 1
        path = self._folder / f"picked-{self._count}.jsonl"
        hasher, request_count, byte_count = hashlib.sha256(), 0, 0
        with path.open("wb") as out:
            for line in self._chosen():
                hasher.update(line)
                out.write(line)
                request_count += 1
                byte_count += len(line)
        if not request_count:
            return None
        return PlannedShard(
            shard_id=hasher.hexdigest(), path=path, request_count=request_count, byte_count=byte_count
        )

    def _all(self) -> Iterator[tuple[str, int, int, int]]:
        for number, shard in enumerate(self._shards):
            at = 0
            with shard.path.open("rb") as lines:
                for line in lines:
                    yield parts.request_id(line), number, at, len(line)
                    at += len(line)

    def _chosen(self) -> Iterator[bytes]:
        query = "SELECT at, length FROM chosen JOIN line USING (place) WHERE shard = ? ORDER BY place"
        for number, shard in enumerate(self._shards):
            with shard.path.open("rb") as lines:
                for at, length in self._db.execute(query, (number,)):
                    lines.seek(at)
                    yield lines.read(length)


def _keys_of(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for line in lines:
            yield parts.request_id(line)


def _answer_keys(chunks: Iterable[bytes]) -> Iterator[str]:
    """The keys of response lines; a line without one, or that cannot be read, is passed over."""
    for line in parts.split_lines(chunks):
        try:
            body = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(body, dict):
            continue
        # Answers that were kept inside their job carry the key where the request did.
        inline = body.get("key") is None and isinstance(body.get("metadata"), dict)
        holder = body["metadata"] if inline else body
        if isinstance(holder.get("key"), str):
            yield holder["key"]


def _dates(jobs: Sequence[Job]) -> str:
    times = sorted(job.create_time for job in jobs if job.create_time)
    return f", made {times[0]} to {times[-1]}" if times else ""
