"""The thread that computes due jobs, one at a time, with flat memory.

Any number of processes may run one over the same folder: a claim decides who computes, and since
answers depend on requests alone it does no harm when two do. It decides nothing about a job that
its record does not say.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Iterator
from pathlib import Path

from runner.emulator import vertex, vertexrows
from runner.emulator.database import Database
from runner.emulator.files import Files
from runner.emulator.gcs import Objects
from runner.emulator.jobs import Job, Jobs
from runner.emulator.rows import Rows
from runner.emulator.vertexrows import VertexRows

_LOOK_S = 0.25
"""How often to look for jobs that other processes created, in seconds."""
_RENEW_S = 0.4
_ROWS_BETWEEN_LOOKS = 64


class _Abandoned(Exception):
    """The job is no longer this worker's, or the process ends."""


class Worker:
    """Computes jobs until it is told to stop."""

    def __init__(self, database: Database, files: Files, jobs: Jobs) -> None:
        self._database = database
        self._files = files
        self._jobs = jobs
        self._objects = Objects(database)
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="emulator-worker", daemon=True)

    def start(self) -> None:
        """Begin to look for jobs."""
        self._thread.start()

    def wake(self) -> None:
        """Look for jobs now."""
        self._wake.set()

    def stop(self) -> None:
        """Leave what is under way to the next process, and end."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                job = self._jobs.claim()
                if job:
                    self._compute(job)
                due = self._jobs.settle()
            except Exception:
                # A full disk or a locked database: the job is tried again once its claim is over.
                traceback.print_exc(file=sys.stderr)
                due = time.time() + _LOOK_S
            self._wake.wait(min(_LOOK_S, max(0.001, due - time.time())))
            self._wake.clear()

    def _compute(self, job: Job) -> None:
        scratch = self._jobs.scratch_path(job)
        shuffled = scratch.with_suffix(".shuffled.tmp")
        try:
            if job.ending.partial == 0:
                self._jobs.computed(job, 0, 0, None)
                return
            kinds = {rule.kind for rule in job.row_rules}
            ok, failed, ends = self._write(job, scratch)
            output = scratch
            if "shuffled" in kinds or job.on_vertex:
                _shuffle(scratch, shuffled, ends, job.seed)
                output = shuffled
            if "half_line" in kinds and len(ends):
                _cut_last_line(output)
            if job.on_vertex:
                folder = vertex.output_folder(job, vertex.job_body(self._database, job))
                vertexrows.publish(self._objects, job, folder, output)
            self._jobs.computed(job, ok, failed, output)
        except _Abandoned:
            self._jobs.release(job)
        except FileNotFoundError:
            # Deleting a job takes its files away under the worker.
            if self._jobs.renew(job):
                raise
        except (OSError, sqlite3.Error):
            raise
        except Exception:
            # A bug of the emulator: trying the same rows for ever would look like a busy service.
            traceback.print_exc(file=sys.stderr)
            self._jobs.fail(job)
        finally:
            scratch.unlink(missing_ok=True)
            shuffled.unlink(missing_ok=True)

    def _write(self, job: Job, path: Path) -> tuple[int, int, array[int]]:
        """Answer every row into `path`; how many succeeded and failed, and where each line ends."""
        rows: Rows | VertexRows
        if job.on_vertex:
            as_numbers = bool(vertex.job_body(self._database, job).get("keysAreNumbers"))
            rows = VertexRows(job, as_numbers, self._files.digest_of, self._database.attempt)
        else:
            rows = Rows(job, self._files.digest_of, self._database.attempt)
        limit = job.rows if job.ending.partial is None else round(job.rows * job.ending.partial)
        kept = job.kept_rows if job.cancelled and job.kept_rows >= 0 else job.rows
        counts = [0, 0]
        ends = array("Q")
        place = 0
        renew_at = 0.0
        with self._jobs.input_path(job.id).open("rb") as source, path.open("wb", 1 << 20) as target:
            for index, line in _numbered(source, limit):
                if index % _ROWS_BETWEEN_LOOKS == 0:
                    now = time.monotonic()
                    if now >= renew_at:
                        current = self._jobs.renew(job)
                        if current is None:
                            raise _Abandoned
                        if current.cancelled and job.kept_rows < 0:
                            kept = min(kept, index)
                        renew_at = now + _RENEW_S
                    if self._stopping:
                        raise _Abandoned
                if index >= kept:
                    lines, success = rows.cancelled(line), False
                else:
                    lines, success = rows.answer(line, index)
                if lines or index < kept:
                    counts[not success] += 1
                for out in lines:
                    target.write(out)
                    place += len(out)
                    ends.append(place)
        return counts[0], counts[1], ends


def _numbered(source: Iterator[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    for index, line in enumerate(source):
        if index >= limit:
            return
        yield index, line


def _shuffle(source: Path, target: Path, ends: array[int], seed: int) -> None:
    """Copy lines in an order that depends on the seed alone; only their places are held in memory."""
    order = array("Q", range(len(ends)))
    random.Random(seed).shuffle(order)
    with source.open("rb") as lines, target.open("wb", 1 << 20) as out:
        for index in order:
            start = ends[index - 1] if index else 0
            lines.seek(start)
            out.write(lines.read(ends[index] - start))


def _cut_last_line(path: Path) -> None:
    with path.open("r+b") as stream:
        size = stream.seek(0, 2)
        step = 1 << 16
        start = size - 1
        while start > 0:
            begin = max(0, start - step)
            stream.seek(begin)
            found = stream.read(start - begin).rfind(b"\n")
            if found >= 0:
                start = begin + found + 1
                break
            start = begin
        stream.truncate(start + (size - start) // 2)
