"""What an apply would do, and why: rows against what the state knows. Decides, never acts.

Rows stream through; what has to be kept is spooled into the workspace. The planner sees
lookups, never a store or a backend.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import structs

from runner import badrows, reexport, remedies, rowtable
from runner.errors import Diagnostic, InputUnreadable
from runner.globs import Selector
from runner.history import History, PriorRows
from runner.model import Action, BadRow, Basis, Batch, Change, Entry, Outcome, Plan, Request, Row, Wanted
from runner.planspool import PlanSpool
from runner.remedies import Aim
from runner.render import digest
from runner.rowclass import Verdict, judge_row, rerun_reasons
from runner.rowtable import KnownRow
from runner.shard import ShardWriter
from runner.specmodel import Spec

Signature = tuple[int, int, int, int]
"""(byte size, mtime_ns, ctime_ns, inode) of an input file."""
SAMPLE_COUNT = 3
_BAD_ROWS_SHOWN = 20
_BAD_ROWS_SOUGHT = 100
"""Bad rows that stop the plan at once, without a look at the other inputs."""


class Rendering(Protocol):
    """What the planner asks of the renderer."""

    components: Mapping[str, str]

    def requests(self, row: Row) -> tuple[Request, ...] | BadRow:
        """The requests of a row, one per sample, or why there are none."""
        ...


class RowsUnreadable(InputUnreadable):
    """Rows that cannot become requests, where the spec says that this stops the plan."""

    def __init__(self, rows: Sequence[BadRow], count: int, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(
            f"{count} input(s) cannot be turned into requests"
            + (", and the others were not looked at" if count >= _BAD_ROWS_SOUGHT else ""),
            hint="mend or exclude them, or set `on_bad_row: skip` beside the source",
        )
        self.rows = tuple(rows)
        self.diagnostics = tuple(diagnostics)
        """One per row of `rows`."""
        self.count = count


class Selection(msgspec.Struct, frozen=True):
    """Which rows a plan is narrowed to, and which of them run again whatever is stored."""

    target: Selector | None = None
    replace: Selector | None = None
    retry: str = "transient"
    """Failures taken up again: `none`, `transient` (those that may pass) or `all`."""


EVERYTHING = Selection()


def make(
    spec: Spec,
    *,
    basis: Basis,
    spec_digest: str,
    judge_digest: str,
    entries: Iterable[Entry | Batch],
    read: Callable[[Entry], Row | BadRow],
    renderer: Rendering,
    history: History,
    workspace: Path,
    destinations: Mapping[str, tuple[str, int] | None],
    trusted_before_ns: int,
    selection: Selection = EVERYTHING,
) -> tuple[Plan, list[tuple[str, Signature]]]:
    """The plan, and how unchanged inputs that had to be read look now.

    `workspace` is an empty folder for the spool; `destinations` says what lies at each
    destination now (digest and size, None for nothing). A file that changed after
    `trusted_before_ns` is read again next time, since it may change without looking different.

    Raises:
        InputUnreadable: two inputs share a key, or (RowsUnreadable) rows cannot be sent.
    """
    planner = _Planner(spec, renderer, history, workspace, read, selection, trusted_before_ns)
    try:
        for entry in planner.unlike(entries):
            planner.add(entry)
        planner.finish_rows()
        return planner.plan(basis, spec_digest, judge_digest, destinations), planner.signatures
    finally:
        planner.close()


class _Planner:
    def __init__(
        self,
        spec: Spec,
        renderer: Rendering,
        history: History,
        workspace: Path,
        read: Callable[[Entry], Row | BadRow],
        selection: Selection,
        trusted_before_ns: int,
    ) -> None:
        self._spec = spec
        self._renderer = renderer
        self._history = history
        self._read = read
        self._selection = selection
        self._trusted_before_ns = trusted_before_ns
        self._moved = False
        """Whether a row stands at another place than before."""
        self._failed_anew = False
        """Whether a row failed for good that had not, or otherwise."""
        self._components = dict(renderer.components)
        self._components_id = digest(self._components)
        self._spool = PlanSpool(workspace / "plan.sqlite", history.rows)
        self._writer = ShardWriter(workspace, spec.shards)
        self._prior = PriorRows(history)
        self._settled = history.settled
        self._quick = self._settled and selection == EVERYTHING
        """Whether a row that looks as it did needs no further look."""
        self._retry_all = selection.retry == "all"
        open_classes = {*spec.failures.retry, *spec.failures.remedies}
        self._final = frozenset(outcome.value for outcome in Outcome) - open_classes
        """Row classes that need no look at the requests to be called settled."""
        self._ordinal = 0
        self._counts: Counter[Action] = Counter()
        self._failed: Counter[str] = Counter()
        self._tokens: set[str] = set()
        self._bad: list[BadRow] = []
        self._bad_count = 0
        self._lost = 0
        """Rows with a record that cannot be used any more: their record leaves the destination too."""
        self._hash = hashlib.sha256()
        self.signatures: list[tuple[str, Signature]] = []

    # ------------------------------------------------------------ one row

    def unlike(self, found: Iterable[Entry | Batch]) -> Iterator[Entry]:
        """The inputs that need a closer look; passed are those that look as they did, where nothing else can
        have changed for them.

        Most rows of most plans end here: nothing is read, looked up or written down.
        """
        for one in found:
            if not self._quick or self._spool.begun:
                yield from one if isinstance(one, Batch) else (one,)
                continue
            passed = None
            if isinstance(one, Batch):
                passed = self._prior.all_alike(one, self._ordinal, self._components_id, self._final)
            if passed is None:
                yield from self._unlike(one if isinstance(one, Batch) else (one,))
                continue
            for outcome, count in passed.items():
                self._settle(outcome, count)
                self._ordinal += count

    def _unlike(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            outcome = None
            if not self._spool.begun:
                outcome = self._prior.alike(entry, self._ordinal, self._components_id, self._final)
            if outcome is None:
                yield entry
            else:
                self._settle(outcome)
                self._ordinal += 1

    def add(self, entry: Entry) -> None:
        prior = self._prior.match(entry.key)
        if self._selection.target is not None and not self._selection.target.matches(entry.key):
            self._keep(prior)
            return
        replaced = self._selection.replace is not None and self._selection.replace.matches(entry.key)
        if (
            prior is not None
            and prior.signature is not None
            and prior.signature == entry.signature
            and prior.components == self._components_id
            and not prior.problem
        ):
            if self._settled and prior.outcome in self._final and not replaced and not self._retry_all:
                self._same(prior)
                return
            self._wanted(entry, prior, prior.wanted, prior.input, {}, replaced)
            return
        row = self._read(entry)
        if isinstance(row, BadRow):
            self._bad_row(entry, prior, row)
            return
        requests = self._renderer.requests(row)
        if isinstance(requests, BadRow):
            self._bad_row(entry, prior, requests)
            return
        if not self._writer.fits(requests[0]):
            size = f"{len(requests[0].line):,} bytes"
            bad = BadRow(entry.key, "too_large", f"its request has {size}, over shards.max_bytes")
            self._bad_row(entry, prior, bad)
            return
        wanted = tuple(Wanted(0, sample, request.request_id) for sample, request in enumerate(requests))
        known = {request.request_id: request for request in requests}
        self._wanted(entry, prior, wanted, row.digest, known, replaced)

    def _wanted(
        self,
        entry: Entry,
        prior: KnownRow | None,
        wanted: tuple[Wanted, ...],
        input_digest: str,
        requests: Mapping[str, Request],
        replaced: bool,
    ) -> None:
        text = rowtable.dump_wanted(wanted)
        history = self._history
        same_requests = prior is not None and prior.requests == text

        def why() -> tuple[str, ...]:
            return self._why(prior, input_digest)

        retry = self._selection.retry
        aims = {
            w.request_id: Aim(w.request_id, None)
            if replaced
            else remedies.aim(w.request_id, history.stored, history.live, self._spec, retry=retry)
            for w in wanted
        }
        found = aims.values()
        for one in found:
            if one.is_new and one.before is not None and one.remedy is not None:
                self._spool.link(self._ordinal, one.before.request_id, one.remedy)
            rejudged = history.rejudged(one.request_id)
            if rejudged is not None:
                self._spool.rejudge(self._ordinal, rejudged)
        verdict = judge_row(
            [structs.replace(w, request_id=aims[w.request_id].request_id) for w in wanted],
            {one.request_id: one.stored for one in found},
            {one.request_id: history.live(one.request_id) for one in found},
            known=prior is not None,
            same_requests=same_requests,
            why=why,
            failures=self._spec.failures,
            needed=self._spec.samples.needed if len(wanted) > 1 else None,
            remedied={one.request_id: one.before for one in found if one.before is not None},
            replaced=replaced,
            retry=retry,
        )
        if verdict.live:
            self._tokens.update(verdict.live)
            self._spool.want_live(self._ordinal, (one.request_id for one in found))
        if verdict.pending and not requests:
            requests = self._rendered(entry, aims)
        same_as = ""
        if verdict.pending:
            same_as = self._pend(entry.key, verdict.pending, aims, requests)
        elif verdict.action is Action.REUSED and prior is None:
            same_as = history.key_of(text) or ""
        now = KnownRow(
            self._ordinal,
            entry.key,
            input_digest,
            self._components_id,
            text,
            verdict.outcome,
            "",
            self._trusted(entry.signature),
        )
        self._record(prior, now, verdict, same_as)

    def _trusted(self, signature: Signature | None) -> Signature | None:
        if signature is None or max(signature[1], signature[2]) > self._trusted_before_ns:
            return None
        return signature

    def _why(self, prior: KnownRow | None, input_digest: str) -> tuple[str, ...]:
        assert prior is not None
        before = self._history.components.get(prior.components, {}).get("digests", {})
        return rerun_reasons(before, self._components, same_input=prior.input == input_digest)

    def _rendered(self, entry: Entry, aims: Mapping[str, Aim]) -> dict[str, Request]:
        """The requests of a row that is known by its signature, so was not read, and has to be sent."""
        row = self._read(entry)
        fresh = row if isinstance(row, BadRow) else self._renderer.requests(row)
        if isinstance(fresh, BadRow) or {request.request_id for request in fresh} != set(aims):
            raise InputUnreadable(f"{entry.key} changed while the plan was made", hint="plan again")
        return {request.request_id: request for request in fresh}

    def _pend(
        self, key: str, pending: Sequence[str], aims: Mapping[str, Aim], requests: Mapping[str, Request]
    ) -> str:
        """Put requests into the shards once; the key that wanted one of them before, if another did."""
        same_as = ""
        for root, one in aims.items():
            if one.request_id not in pending:
                continue
            request = requests[root]
            if one.remedy is not None:
                request = Request(one.request_id, remedies.line(request.line, one.remedy))
            wanted_by = self._spool.pend(self._ordinal, request.request_id, key)
            if not wanted_by:
                self._writer.add(request)
            elif wanted_by != key:
                same_as = wanted_by
        return same_as

    def _bad_row(self, entry: Entry, prior: KnownRow | None, bad: BadRow) -> None:
        self._bad_count += 1
        if self._spec.inputs[entry.source].on_bad_row != "skip":
            if len(self._bad) < _BAD_ROWS_SHOWN:
                self._bad.append(bad)
            if self._bad_count >= _BAD_ROWS_SOUGHT:
                # A template that fails on every row would be tried, up to its limits, on each of them.
                self._raise_bad_rows()
            return
        self._lost += prior is not None and prior.outcome == Outcome.OK
        now = KnownRow(
            self._ordinal,
            entry.key,
            "",
            self._components_id,
            "[]",
            Outcome.BAD_INPUT,
            rowtable.dump_problem(bad),
            None,
        )
        self._record(prior, now, Verdict(Action.FAILED, (bad.code,), outcome=Outcome.BAD_INPUT), "")

    def _raise_bad_rows(self) -> None:
        found = [badrows.diagnose(self._spec, bad) for bad in self._bad]
        raise RowsUnreadable(self._bad, self._bad_count, found)

    def _same(self, prior: KnownRow) -> None:
        self._settle(prior.outcome)
        self._moved |= prior.ordinal != self._ordinal
        if self._spool.begun or prior.ordinal != self._ordinal:
            self._spool.add(prior._replace(ordinal=self._ordinal))
        self._ordinal += 1

    def _settle(self, outcome: str, count: int = 1) -> None:
        if outcome == Outcome.OK:
            self._counts[Action.UNCHANGED] += count
        else:
            self._counts[Action.FAILED] += count
            self._failed[outcome] += count

    def _keep(self, prior: KnownRow | None) -> None:
        """A row outside the target: as it was exported last, or not there yet."""
        if prior is not None:
            if prior.outcome and prior.outcome not in self._final:
                self._counts[Action.UNCHANGED] += 1
                self._spool.add(prior._replace(ordinal=self._ordinal))
                self._ordinal += 1
                return
            self._same(prior)

    def _record(self, prior: KnownRow | None, now: KnownRow, verdict: Verdict, same_as: str) -> None:
        self._counts[verdict.action] += 1
        self._moved |= prior is not None and prior.ordinal != now.ordinal
        if verdict.action is Action.FAILED:
            self._failed[verdict.outcome] += 1
        still = (
            verdict.action in (Action.UNCHANGED, Action.FAILED) and prior is not None and _alike(prior, now)
        )
        self._failed_anew |= verdict.action is Action.FAILED and not still
        unmoved = prior is not None and prior.ordinal == now.ordinal and not self._spool.begun
        if unmoved and prior is not None and _alike(prior, now):
            if now.signature is not None and prior.signature != now.signature:
                self.signatures.append((now.key, now.signature))
            self._ordinal += 1
            return
        self._spool.add(now)
        self._ordinal += 1
        if verdict.action is not Action.UNCHANGED and not still:
            self._spool.change(now, verdict.action, verdict.reasons, same_as)

    # ------------------------------------------------------------ the end

    def finish_rows(self) -> None:
        if self._bad:
            self._raise_bad_rows()
        target = self._selection.target
        for gone in self._prior.unseen():
            if target is not None and not target.matches(gone.key):
                self._keep(gone)
            else:
                self._counts[Action.REMOVED] += 1
                self._spool.change(gone._replace(ordinal=self._ordinal), Action.REMOVED)
        for selector in (target, self._selection.replace):
            if selector is not None:
                selector.check()
        self._spool.flush()
        if self._counts[Action.REMOVED]:
            self._spool.pair_renames(self._pair)

    def _pair(self, appeared: Change, components: str) -> Change | None:
        if self._history.row(appeared.key) is not None:
            return None
        self._counts[Action.REMOVED] -= 1
        if appeared.action is not Action.NEW:
            return appeared
        self._counts[Action.NEW] -= 1
        self._counts[Action.RERUN] += 1
        before = self._history.components.get(components, {}).get("digests", {})
        reasons = rerun_reasons(before, self._components, same_input=True)
        return Change(Action.RERUN, appeared.key, appeared.request_ids, reasons)

    def plan(
        self,
        basis: Basis,
        spec_digest: str,
        judge_digest: str,
        destinations: Mapping[str, tuple[str, int] | None],
    ) -> Plan:
        shards = self._writer.finish()
        reasons: Counter[tuple[Action, tuple[str, ...]]] = Counter()
        samples: dict[Action, list[Change]] = {}
        for change in self._spool.changes():
            reasons[change.action, change.reasons] += 1
            if len(samples.setdefault(change.action, [])) < SAMPLE_COUNT:
                samples[change.action].append(change)
            self._hash.update(f"{change.action} {change.key} {change.request_ids}\n".encode())
        plan = Plan(
            basis=basis,
            spec_digest=spec_digest,
            judge_digest=judge_digest,
            components_id=self._components_id,
            components=self._components,
            row_count=self._ordinal,
            counts={action: self._counts[action] for action in Action if self._counts[action]},
            reasons=dict(reasons),
            samples={action: tuple(found) for action, found in samples.items()},
            failed=dict(self._failed),
            shards=shards,
            rows_path=self._spool.path if self._spool.begun else None,
            reexport=reexport.causes(
                basis, judge_digest, destinations, moved=self._moved, failed_anew=self._failed_anew
            ),
            live_tokens=frozenset(self._tokens),
            superseded_count=self._history.live_count - self._spool.wanted_live_count(),
            refusals=self._refusals(),
            prior_row_count=self._history.row_count,
            plan_id="",
        )
        return structs.replace(plan, plan_id=_plan_id(plan, self._hash.hexdigest()))

    def close(self) -> None:
        self._spool.close()
        self._writer.close()

    def _refusals(self) -> tuple[str, ...]:
        guards = self._spec.guards
        out = []
        bad = f", {self._bad_count:,} of them unusable" if self._bad_count else ""
        if self._ordinal - self._bad_count < guards.min_rows and self._selection.target is None:
            out.append(
                f"guards.min_rows is {guards.min_rows:,}, and the inputs give {self._ordinal:,} row(s){bad}"
            )
        removed, before = self._counts[Action.REMOVED] + self._lost, self._history.row_count
        if before and removed / before > guards.max_removed_ratio:
            lost = f", {self._lost:,} of them because they cannot be used any more" if self._lost else ""
            out.append(
                f"{removed:,} of {before:,} rows would be removed, {removed / before:.0%}{lost};"
                f" guards.max_removed_ratio is {guards.max_removed_ratio:g}"
            )
        return tuple(out)


def _alike(prior: KnownRow, now: KnownRow) -> bool:
    settled = (prior.outcome == now.outcome) or (not prior.outcome and not now.outcome)
    return (prior.requests, prior.input, prior.components, prior.problem) == (
        now.requests,
        now.input,
        now.components,
        now.problem,
    ) and settled


def _plan_id(plan: Plan, changes: str) -> str:
    content = [
        plan.spec_digest,
        plan.basis.lineage,
        plan.basis.serial,
        plan.basis.attempts,
        [shard.shard_id for shard in plan.shards],
        changes,
        list(plan.reexport),
    ]
    return digest(content)
