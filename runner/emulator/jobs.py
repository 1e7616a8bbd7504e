"""Batch jobs: their records, their files and the steps of their life.

PENDING until `starts_at`, then RUNNING under a claim that the computing process renews; a claim that
is not renewed any more (kill -9) is free for any other process, which begins again. Whoever finishes
puts the output in place by rename and then ends the job. Nothing here computes an answer.

Source: cancel before the start ends CANCELLED with error 13, cancel after it may end SUCCEEDED with
error 1 on the rows that did not run: recorded operations, 2026-07 to 2026-09.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from runner.emulator import wire
from runner.emulator.database import Database
from runner.emulator.faults import RowRule

_CLAIM_S = 2.0
CANCELLED_MESSAGE = "Batch was cancelled."
ON_VERTEX = "input_file LIKE 'gs://%'"
"""Which records of the table are jobs on Vertex, in SQL."""


class Ending(msgspec.Struct, frozen=True):
    """How a job is to end."""

    state: str = "SUCCEEDED"
    code: int = 0
    message: str = ""
    partial: float | None = None
    """Share of rows that come back, None: all; 0: there is no output."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job's record; names as in the table `jobs`."""

    seq: int
    id: str
    display_name: str
    model: str
    input_file: str
    """`files/...`, empty for inline requests; `gs://...` on Vertex."""
    state: str
    created_ns: int
    updated_ns: int
    ended_ns: int
    starts_at: float
    started_at: float
    running_s: float
    rows: int
    ok: int
    failed: int
    seed: int
    row_rules: tuple[RowRule, ...]
    ending: Ending
    computed: bool
    output: bool
    cancelled: bool
    kept_rows: int
    """Rows answered before a cancellation, -1 where that is for the computing process to say."""
    claim: str
    claimed_until: float

    @property
    def on_vertex(self) -> bool:
        """Whether the job was made on Vertex."""
        return self.input_file.startswith("gs://")

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.state not in ("PENDING", "RUNNING")


class Jobs:
    """The Batch API's records over one folder."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folder = database.folder / "jobs"
        self._folder.mkdir(exist_ok=True)

    def create(
        self,
        *,
        model: str,
        display_name: str,
        source: Path | Iterable[bytes],
        input_file: str,
        rows: int,
        pending_s: float,
        running_s: float,
        seed: int,
        row_rules: list[RowRule],
        ending: Ending,
        job_id: str = "",
    ) -> Job:
        """Record a job; `source` is the uploaded file, or the lines of its requests.

        Raises:
            FileNotFoundError: the uploaded file was deleted in between.
        """
        job_id = job_id or wire.new_id(36)
        if isinstance(source, Path):
            # A second name for the same bytes: the upload may be deleted while the job waits.
            os.link(source, self.input_path(job_id))
        else:
            with self.input_path(job_id).open("wb") as stream:
                stream.writelines(source)
        now = wire.now_ns()
        record = {
            "id": job_id,
            "display_name": display_name,
            "model": model,
            "input_file": input_file,
            "state": "PENDING",
            "created_ns": now,
            "updated_ns": now,
            "ended_ns": 0,
            "starts_at": now / 1e9 + pending_s,
            "started_at": 0.0,
            "running_s": running_s,
            "rows": rows,
            "ok": 0,
            "failed": 0,
            "seed": seed,
            "row_rules": msgspec.json.encode(row_rules),
            "ending": msgspec.json.encode(ending),
            "computed": 0,
            "output": 0,
            "cancelled": 0,
            "kept_rows": -1,
            "claim": "",
            "claimed_until": 0.0,
        }
        with self._database.write() as connection:
            connection.execute(
                f"INSERT INTO jobs ({', '.join(record)}) VALUES ({', '.join('?' * len(record))})",
                tuple(record.values()),
            )
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """A job. Raises ApiError 404."""
        found = self._database.rows("SELECT * FROM jobs WHERE id = ?", job_id)
        if not found:
            raise wire.not_found()
        return _job(found[0])

    def list(self, after: int, limit: int) -> tuple[list[Job], int]:
        """Jobs of the Developer API, newest first, below position `after` (0: from the newest); the next
        position or 0."""
        records = self._database.rows(
            f"SELECT * FROM jobs WHERE seq < ? AND NOT ({ON_VERTEX}) ORDER BY seq DESC LIMIT ?",
            after or 1 << 62,
            limit + 1,
        )
        jobs = [_job(record) for record in records[:limit]]
        return jobs, jobs[-1].seq if len(records) > limit else 0

    def cancel(self, job_id: str) -> None:
        """Ask for a cancellation; nothing happens to a job that has ended."""
        job = self.get(job_id)
        now = time.time()
        with self._database.write() as connection:
            ending = Ending(state="CANCELLED", code=13, message=CANCELLED_MESSAGE, partial=0.0)
            connection.execute(
                "UPDATE jobs SET state = 'CANCELLED', ended_ns = ?1, updated_ns = ?1, ending = ?2, "
                "cancelled = 1 WHERE id = ?3 AND state = 'PENDING'",
                (wire.now_ns(), msgspec.json.encode(ending), job_id),
            )
            # Still at work: the computing process sees the mark when it renews its claim.
            connection.execute(
                "UPDATE jobs SET cancelled = 1, running_s = 0 "
                "WHERE id = ? AND state = 'RUNNING' AND computed = 0",
                (job_id,),
            )
            share = (now - job.started_at) / job.running_s if job.running_s else 1.0
            connection.execute(
                "UPDATE jobs SET cancelled = 1, running_s = 0, computed = 0, kept_rows = ?, "
                "claimed_until = 0 WHERE id = ? AND state = 'RUNNING' AND computed = 1",
                (int(job.rows * min(1.0, share)), job_id),
            )

    def delete(self, job_id: str) -> None:
        """Delete a job and its output, whatever its state. Raises ApiError 404."""
        self.get(job_id)
        with self._database.write() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        for path in (self.input_path(job_id), self.output_path(job_id)):
            path.unlink(missing_ok=True)

    def on_vertex(self, after: int) -> Iterator[Job]:
        """All jobs on Vertex below position `after`, newest first."""
        query = f"SELECT * FROM jobs WHERE {ON_VERTEX} AND seq < ? ORDER BY seq DESC"
        for record in self._database.rows(query, after):
            yield _job(record)

    # ------------------------------------------------------------ the worker's side

    def claim(self) -> Job | None:
        """Take a job that is due and that nobody computes; it is RUNNING from here on."""
        now = time.time()
        due = (
            "SELECT id FROM jobs WHERE state IN ('PENDING', 'RUNNING') AND computed = 0 "
            "AND starts_at <= ?1 AND claimed_until <= ?1 ORDER BY seq LIMIT 1"
        )
        if not self._database.rows(due, now):
            return None
        with self._database.write() as connection:
            found = connection.execute(due, (now,)).fetchone()
            if not found:
                return None
            connection.execute(
                "UPDATE jobs SET started_at = ?, updated_ns = ? WHERE id = ? AND state = 'PENDING'",
                (now, wire.now_ns(), found["id"]),
            )
            connection.execute(
                "UPDATE jobs SET state = 'RUNNING', claim = ?, claimed_until = ? WHERE id = ?",
                (secrets.token_hex(8), now + _CLAIM_S, found["id"]),
            )
        return self.get(found["id"])

    def renew(self, job: Job) -> Job | None:
        """Keep a claim; the job as it is now, None where it was deleted or taken over."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET claimed_until = ? WHERE id = ? AND claim = ?",
                (time.time() + _CLAIM_S, job.id, job.claim),
            )
        found = self._database.rows("SELECT * FROM jobs WHERE id = ? AND claim = ?", job.id, job.claim)
        return _job(found[0]) if found else None

    def release(self, job: Job) -> None:
        """Give a claim back unfinished, so that another process need not wait for its end."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET claimed_until = 0 WHERE id = ? AND claim = ?", (job.id, job.claim)
            )

    def computed(self, job: Job, ok: int, failed: int, output: Path | None) -> None:
        """Put a job's output in place and note that only its time has to pass."""
        if output:
            os.replace(output, self.output_path(job.id))
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET computed = 1, ok = ?, failed = ?, output = ? WHERE id = ? AND claim = ?",
                (ok, failed, output is not None, job.id, job.claim),
            )
            if not connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone():
                self.output_path(job.id).unlink(missing_ok=True)

    def fail(self, job: Job) -> None:
        """Let a job end as FAILED, without output."""
        ending = Ending(state="FAILED", code=13, message="Internal error encountered.", partial=0.0)
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET computed = 1, ending = ? WHERE id = ? AND claim = ?",
                (msgspec.json.encode(ending), job.id, job.claim),
            )

    def settle(self) -> float:
        """End what is computed and has run its time; the time at which something is due next."""
        now = time.time()
        open_jobs = self._database.rows("SELECT * FROM jobs WHERE state IN ('PENDING', 'RUNNING')")
        due = now + 3600
        for record in open_jobs:
            if not record["computed"]:
                due = min(due, max(record["starts_at"], record["claimed_until"]))
            elif record["started_at"] + record["running_s"] > now:
                due = min(due, record["started_at"] + record["running_s"])
            else:
                ended = wire.now_ns()
                with self._database.write() as connection:
                    connection.execute(
                        # Recorded operations were updated some nanoseconds before they ended.
                        "UPDATE jobs SET state = ?, ended_ns = ?, updated_ns = ? "
                        "WHERE id = ? AND state = 'RUNNING' AND computed = 1",
                        (_job(record).ending.state, ended, ended - 41, record["id"]),
                    )
        return due

    def input_path(self, job_id: str) -> Path:
        """Where a job's request lines are."""
        return self._folder / f"{job_id}.in"

    def output_path(self, job_id: str) -> Path:
        """Where a job's output is, once there is one."""
        return self._folder / f"{job_id}.out"

    def scratch_path(self, job: Job) -> Path:
        """A file for the holder of a claim to write to."""
        return self._folder / f"{job.id}.{job.claim}.tmp"


def _job(record: Any) -> Job:
    values = dict(record)
    values["row_rules"] = tuple(msgspec.json.decode(values["row_rules"], type=list[RowRule]))
    values["ending"] = msgspec.json.decode(values["ending"], type=Ending)
    for flag in ("computed", "output", "cancelled"):
        values[flag] = bool(values[flag])
    return Job(**values)
