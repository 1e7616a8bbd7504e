"""Wiring: a spec's file becomes its store, index, plan and backend."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from runner import apply, causes, export, index, inputs, ledger, plan, response_schema, results, rowtable
from runner import spec as specfile
from runner.backends import Backend
from runner.blobs.local import LocalBlobs
from runner.causes import Cause
from runner.clock import SystemClock
from runner.decide import Policy
from runner.errors import StateForeign
from runner.globs import Selector
from runner.index import Index
from runner.model import Action, Attempt, Change, Entry, Outcome, Plan, Spec, State
from runner.render import Renderer, digest
from runner.run import Event
from runner.store import Store


class Job:
    """Everything that a command needs for one spec. Use as a context manager."""

    def __init__(self, chosen: Mapping[str, Any], *, writes: bool = False) -> None:
        """Load the spec and open its state; nothing is created unless `writes`.

        `chosen` are arguments of `spec.load`. Raises SpecInvalid, StateUnreadable, StateForeign.
        """
        self.spec: Spec = specfile.load(environ=os.environ, **chosen)
        self.spec_digest = specfile.digest(self.spec)
        self.judge_digest = digest(
            [
                results.JUDGE_VERSION,
                response_schema.ordered(self.spec.output_schema),
                [[d.path, *sorted(d.include)] for d in self.spec.destinations],
            ]
        )
        folder = self.spec.state
        if writes:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state_label = _relative(folder)
        self.store = Store(LocalBlobs(folder), folder, self.state_label)
        self._stack = ExitStack()
        self._workspaces = 0
        self._temporary = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gbrun-")))
        self.index = Index(self.store)
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
                f"{self.state_label} is the state of {self.state.name!r}"
                f" ({self.state.env or 'no environment'}), not of {self.spec.name!r}",
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
        self._workspaces += 1
        workspace = self._temporary / f"plan-{self._workspaces}"
        workspace.mkdir()
        with self.index.reading():
            made, signatures = plan.make(
                self.spec,
                basis=ledger.basis(self.state, (attempt for attempt, _ in self.attempts)),
                spec_digest=self.spec_digest,
                judge_digest=self.judge_digest,
                entries=inputs.entries(self.spec) if stat_cache else _unseen(inputs.entries(self.spec)),
                read=lambda entry: inputs.read(self.spec, entry),
                renderer=Renderer(self.spec),
                history=self.index,
                workspace=workspace,
                destinations=export.look(self.spec),
                trusted_before_ns=index.trusted_before_ns(),
                selection=plan.Selection(
                    target=Selector("--target", target) if target else None,
                    replace=Selector("--replace", replace) if replace else None,
                    retry=retry,
                ),
            )
        if signatures:
            self.index.remember(signatures)
        return made

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
        db = rowtable.connect(made.rows_path)
        try:
            yield from rowtable.rows(db)
        finally:
            db.close()

    def changes(self, made: Plan, *, unchanged: bool = False) -> Iterator[Change]:
        """The rows of a plan that are not unchanged, or all of them."""
        if made.rows_path is not None:
            db = rowtable.connect(made.rows_path)
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
        settings = self.spec.backend
        started: Backend
        if settings.type == "local":
            from runner.backends import local

            faults = Path(settings.faults) if settings.faults else None
            started = local.start(self.spec.state / "emulator", faults, settings.request_timeout_s)
        else:
            from runner.backends import gemini

            started = gemini.from_environment(settings, os.environ)
        self._stack.callback(started.close)
        from runner.backends.retry import RetryingBackend

        return RetryingBackend(started)

    def run(
        self,
        made: Plan,
        backend: Backend,
        *,
        submit: bool,
        wait: bool,
        stop: apply.Stop,
        on_event: Callable[[Event], None],
        lock_timeout_s: float,
        max_jobs: int | None = None,
        retry: str = "transient",
    ) -> apply.Result:
        """Carry a plan out."""
        settings = self.spec.backend
        policy = Policy(
            max_jobs=max_jobs or self.spec.max_jobs,
            poll_interval_s=settings.poll_interval_s or backend.poll_interval_s,
            request_timeout_s=settings.request_timeout_s,
            settle_s=settings.settle_s,
            max_enqueued_tokens=self.spec.max_enqueued_tokens,
            retry=retry != "none",
            stall_after_s=settings.stall_after_s,
            submit=submit,
            wait=wait,
            cleanup=self.spec.cleanup,
        )
        return apply.Apply(
            spec=self.spec,
            resolved=specfile.resolved(self.spec),
            plan=made,
            store=self.store,
            index=self.index,
            backend=backend,
            clock=SystemClock(),
            policy=policy,
            new_lineage=lambda: uuid.uuid4().hex,
            on_event=on_event,
            stop=stop,
            lock_timeout_s=lock_timeout_s,
        ).run()

    def export(self, made: Plan) -> export.Written:
        """Write the destinations from what is stored, for the rows of a plan."""
        return export.write(
            self.spec,
            self.store,
            lambda: self.rows(made),
            self.index.stored,
            self.index.live,
            self._temporary,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _unseen(found: Iterator[Entry]) -> Iterator[Entry]:
    """Entries that look like nothing known, so that every input is read."""
    return (Entry(entry.key, entry.source, entry.path) for entry in found)


def _relative(path: Path) -> str:
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()
