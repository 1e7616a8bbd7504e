"""Wiring: a spec's file becomes its store, index, plan and backend."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from runner import causes, export, index, inputs, ledger, plan, response_schema, results, rowtable
from runner import spec as specfile
from runner.backends import Backend
from runner.blobs.local import LocalBlobs
from runner.blobs.memory import MemoryBlobs
from runner.causes import Cause
from runner.clock import SystemClock, clock_text
from runner.errors import StateError, StateForeign
from runner.gcsuri import GcsUri
from runner.globs import Selector
from runner.index import Index
from runner.model import Action, Attempt, Basis, Change, Entry, Outcome, Plan, State
from runner.plan import Selection, Signature
from runner.render import Renderer, digest
from runner.specmodel import Spec
from runner.store import Store


class Job:
    """Everything that a command needs for one spec. Use as a context manager."""

    def __init__(self, chosen: Mapping[str, Any], *, writes: bool = False) -> None:
        """Load the spec and open its state; nothing is created unless `writes`.

        `chosen` are arguments of `spec.load`. Raises SpecInvalid, StateUnreadable, StateForeign.
        """
        self.spec: Spec = specfile.load(environ=os.environ, **chosen)
        self.spec_digest = specfile.digest(self.spec)
        samples = self.spec.samples
        self.judge_digest = digest(
            [
                results.JUDGE_VERSION,
                response_schema.ordered(self.spec.output_schema),
                [
                    [d.path, *sorted(d.include), *([[c.name, c.path] for c in d.columns])]
                    for d in self.spec.destinations
                ],
                *(["repair"] if self.spec.failures.repair else []),
                *(["samples", samples.aggregate, samples.needed] if samples.count > 1 else []),
                *(["normalize"] if self.spec.normalize else []),
            ]
        )
        folder = self.spec.state
        if writes:
            _make(folder)
        self.store = open_store(self.spec)
        self.state_label = self.store.label
        self._stack = ExitStack()
        self._workspaces = 0
        self._backend: Backend | None = None
        self._temporary = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gbrun-")))
        self.index = Index(self.store, check=writes)
        self._stack.callback(self.index.close)
        self.state: State | None = None
        self.attempts: list[tuple[Attempt, str]] = []
        try:
            self.refresh()
        except BaseException:
            self._stack.close()
            raise

    def refresh(self) -> None:
        """Read the state again and bring the index up to it."""
        self.state, _ = self.store.load()
        self.attempts = self.store.attempts() if self.state else []
        if self.state is not None and (self.state.name, self.state.env) != (self.spec.name, self.spec.env):
            raise StateForeign(
                f"{self.state_label} is the state of {self.state.name!r} ({_env(self.state.env)}),"
                f" not of {self.spec.name!r} ({_env(self.spec.env)})",
                hint="name another folder with `state:` or --state",
            )
        self.index.sync(self.state, [attempt for attempt, _ in self.attempts])

    def plan(
        self,
        *,
        target: Sequence[str] = (),
        replace: Sequence[str] = (),
        retry: str = "transient",
        stat_cache: bool = True,
    ) -> Plan:
        """A plan from the state as it was read last, with a spool that lives as long as the job.

        `target` and `replace` are globs over keys. Raises InputUnreadable, and UsageInvalid for a
        glob that matches nothing.
        """
        basis = ledger.basis(self.state, (attempt for attempt, _ in self.attempts))
        exported = self.state.export if self.state is not None else None
        if exported is not None and exported.judge != self.judge_digest:
            from runner import judged

            self.index.rejudge(judged.again(self.spec, self.store))
        selection = Selection(
            target=Selector("--target", target) if target else None,
            replace=Selector("--replace", replace) if replace else None,
            retry=retry,
        )
        try:
            made, signatures = self._plan(self.index, basis, selection, stat_cache)
        except sqlite3.DatabaseError:
            # Only a cache: made anew, and the plan with it.
            self.index.rebuild(self.state, [attempt for attempt, _ in self.attempts])
            made, signatures = self._plan(self.index, basis, selection, stat_cache)
        if signatures:
            self.index.remember(signatures)
        return made

    def plan_anew(self) -> Plan:
        """A plan as if there were no state: every request of the spec, packed as for a first apply."""
        empty = Index(Store(MemoryBlobs(), None, self.state_label))
        try:
            empty.sync(None, ())
            return self._plan(empty, Basis(), Selection(), True)[0]
        finally:
            empty.close()

    def _plan(
        self, known: Index, basis: Basis, selection: Selection, stat_cache: bool
    ) -> tuple[Plan, list[tuple[str, Signature]]]:
        with known.reading():
            return plan.make(
                self.spec,
                basis=basis,
                spec_digest=self.spec_digest,
                judge_digest=self.judge_digest,
                entries=inputs.found(self.spec) if stat_cache else _unseen(inputs.entries(self.spec)),
                read=lambda entry: inputs.read(self.spec, entry),
                renderer=Renderer(self.spec),
                history=known,
                workspace=self.workspace(),
                destinations=export.look(self.spec, basis.lineage),
                trusted_before_ns=index.trusted_before_ns(),
                selection=selection,
            )

    def workspace(self) -> Path:
        """An empty folder that lives as long as the job."""
        self._workspaces += 1
        folder = self._temporary / f"work-{self._workspaces}"
        folder.mkdir()
        return folder

    def record_spec(self, lock_timeout_s: float) -> None:
        """Note that this spec was applied, where an apply has nothing else to do."""
        if self.state is None or self.state.spec_digest == self.spec_digest:
            return
        with self.store.lock("apply", clock_text(SystemClock().now()), lock_timeout_s):
            kept = ledger.Ledger(self.store)
            kept.open()
            self.store.put_spec(self.spec_digest, specfile.resolved(self.spec))
            kept.save(dataclasses.replace(kept.state, spec_digest=self.spec_digest))

    def causes(self, made: Plan) -> list[Cause]:
        """What changed in the spec, for a plan that reruns rows because of it."""
        digests = {str(known["spec"]) for known in self.index.components.values()} - {self.spec_digest}
        before = [found for name in sorted(digests) if (found := self.store.spec(name)) is not None]
        return causes.find(self.spec, made, before, specfile.resolved(self.spec))

    def rows(self, made: Plan) -> Iterator[rowtable.KnownRow]:
        """Every row of a plan, in input order."""
        if made.rows_path is None:
            yield from self.index.rows()
            return
        db = rowtable.planned(made.rows_path)
        try:
            yield from rowtable.rows(db)
        finally:
            db.close()

    def changes(self, made: Plan, *, unchanged: bool = False) -> Iterator[Change]:
        """The rows of a plan that are not unchanged, or all of them."""
        if made.rows_path is not None:
            db = rowtable.planned(made.rows_path)
            try:
                yield from rowtable.changes(db)
                rest = rowtable.unchanged(db) if unchanged else ()
                yield from (self._settled(row) for row in rest)
            finally:
                db.close()
        elif unchanged:
            yield from (self._settled(row) for row in self.index.rows())

    def _settled(self, row: rowtable.KnownRow) -> Change:
        ids = tuple(wanted.request_id for wanted in row.wanted)
        if row.outcome in ("", Outcome.OK):
            return Change(Action.UNCHANGED, row.key, ids)
        return Change(Action.FAILED, row.key, ids, (row.outcome,))

    def backend(self) -> Backend:
        """The service, connected; closed with the job."""
        if self._backend is not None:
            return self._backend
        settings = self.spec.backend
        started: Backend
        if settings.type == "local":
            from runner.backends import local

            faults = Path(settings.faults) if settings.faults else None
            started = local.start(
                self.spec.state / "emulator",
                faults,
                settings.request_timeout_s,
                like=settings.like,
                labels=self.spec.labels,
            )
        elif settings.type == "vertex":
            from runner.backends import vertex

            started = vertex.from_environment(settings, self.spec.labels, os.environ)
        else:
            from runner.backends import gemini

            started = gemini.from_environment(settings, os.environ)
        from runner.backends.retry import RetryingBackend

        self._backend = RetryingBackend(started)
        if settings.mode == "direct":
            from runner.backends.direct import DirectBackend

            self._backend = DirectBackend(self._backend, self.spec.state / "direct")
        self._stack.callback(self._backend.close)
        return self._backend

    def export(self, made: Plan, *, overwrite: bool = False) -> export.Written:
        """Write the destinations from what is stored, for the rows of a plan, and place them.

        `overwrite` takes objects and tables of other owners over.
        """
        from runner import finish

        assert self.state is not None
        with ExitStack() as held:
            written = export.write(
                self.spec,
                self.store,
                self.rows(made),
                self.index.answered_among,
                self.index.in_flight,
                held,
                owner=finish.owned(self.state, overwrite=overwrite),
            )
            written.prepare()
            written.place()
        return written

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def open_store(spec: Spec) -> Store:
    """The store of a spec's state; nothing is read or created yet."""
    return store_at(spec.state_uri or spec.state, spec.state)


def store_at(place: Path | GcsUri, cache_folder: Path | None) -> Store:
    """The store of the state in a folder or a bucket; `cache_folder` may hold an index of it here."""
    if isinstance(place, Path):
        return Store(LocalBlobs(place), cache_folder, _relative(place))
    from runner.blobs.gcs import GcsBlobs

    return Store(GcsBlobs(place), cache_folder, str(place))


def state_of(chosen: Mapping[str, Any]) -> tuple[Spec, Store]:
    """The spec and its store, for what must work with a state that cannot be read."""
    spec = specfile.load(environ=os.environ, **chosen)
    return spec, open_store(spec)


def _unseen(found: Iterator[Entry]) -> Iterator[Entry]:
    """Entries that look like nothing known, so that every input is read."""
    return (Entry(entry.key, entry.source, entry.path, None, entry.row) for entry in found)


def _env(env: str | None) -> str:
    return f"environment {env!r}" if env else "no environment"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StateError(
            f"the state folder {folder} cannot be made: {error.strerror}",
            hint="name another one with `state:` or --state",
        ) from error


def _relative(path: Path) -> str:
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()
