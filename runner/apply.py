"""Walks a plan through a store and a backend: one effect, then one save.

The executor decides nothing: `decide` says what comes next, the plan says what is wanted. A
process that dies at any point leaves a state from which the next apply goes on.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from runner import collection, decide, finish, parts, principal, rowtable, submission
from runner.backends import Backend
from runner.clock import Clock, clock_text
from runner.decide import Policy, Situation
from runner.errors import BackendError, PlanStale, StateError, StateLocked
from runner.index import Index
from runner.ledger import Ledger
from runner.model import Json, Plan, State
from runner.recordspool import RecordSpool
from runner.results import Judge
from runner.run import Event, Run
from runner.specmodel import Spec
from runner.store import Store

_RELOCK_TIMEOUT_S = 600.0
_SWITCH_S = 0.0005
_SLICE_S = 0.25
"""Longest sleep between two looks at whether to stop."""
_OUTAGE_FIRST_S = 5.0
_OUTAGE_MAX_S = 300.0
_OUTAGES_WITHOUT_WAIT = 3
"""Passing faults in a row after which a run that does not wait gives up."""
_BY_PLAN = (decide.Prepare, decide.Repack, decide.Done)
"""Steps that are right only as long as the plan is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an apply ended."""

    complete: bool
    """Whether every wanted request has its outcome and the destinations are written."""
    stopped: bool = False
    in_flight: int = 0
    """Requests in live attempts."""
    unsent: int = 0
    """Requests planned, but not submitted."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Requests collected in this run, per outcome."""
    usage: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows per outcome, once the destinations are written."""
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    """What the service refused, in its own words."""
    quarantined: tuple[str, ...] = ()
    """Tokens of submissions that need a person."""


class Stop:
    """Set from a signal handler; looked at between two steps."""

    def __init__(self) -> None:
        self.requested = False


class Apply:
    """One run of a plan. Create it, call `run` once."""

    def __init__(
        self,
        *,
        spec: Spec,
        resolved: Json,
        plan: Plan,
        store: Store,
        index: Index,
        backend: Backend,
        clock: Clock,
        policy: Policy,
        new_lineage: Callable[[], str],
        on_event: Callable[[Event], None],
        stop: Stop,
        lock_timeout_s: float = 0.0,
        overwrite: bool = False,
    ) -> None:
        """`overwrite` takes tables of other owners over."""
        self._resolved = resolved
        self._overwrite = overwrite
        self._plan = plan
        self._new_lineage = new_lineage
        self._stop = stop
        self._lock_timeout_s = lock_timeout_s
        self._disturbed = False
        """Whether another run changed the state since the plan was made."""
        self._outages = 0
        """Passing faults in a row."""
        self._outage_until = 0.0
        self._spool: sqlite3.Connection | None = None
        """The plan's rows, where it has any that differ."""
        self._run = Run(
            spec=spec,
            store=store,
            index=index,
            ledger=Ledger(store),
            backend=backend,
            clock=clock,
            policy=policy,
            judge=Judge.of(spec),
            on_event=on_event,
            scratch=Path(),
            wanted=set(plan.live_tokens),
            wants=self._wants,
            shards={shard.shard_id: shard for shard in plan.shards},
            todo=[shard.shard_id for shard in plan.shards],
        )

    def run(self) -> Result:
        """Carry the plan out as far as the policy says.

        Raises:
            StateLocked, PlanStale (the state moved since the plan), StateError, BackendError. Where the
            state cannot be written any more, the hint says which jobs go on at the service.
        """
        try:
            with (
                tempfile.TemporaryDirectory(prefix="gbrun-") as scratch,
                _shared_with_threads(),
                closing(RecordSpool(self._run.spec)) as held,
            ):
                self._run.scratch, self._run.records = Path(scratch), held
                if self._plan.rows_path is not None:
                    self._spool = rowtable.planned(self._plan.rows_path)
                return self._walk()
        except StateLocked:
            raise
        except StateError as error:
            running = [a.job_name or a.token for a in self._run.ledger.attempts.values() if a.state.live]
            if running:
                error.hint = (
                    f"{len(running)} job(s) go on at the service ({', '.join(running[:3])}"
                    f"{', ...' if len(running) > 3 else ''}); mend the cause and apply again: they are found"
                )
            raise
        finally:
            if self._spool is not None:
                self._spool.close()

    def _walk(self) -> Result:
        run = self._run
        with ExitStack() as held:
            held.enter_context(self._lock(self._lock_timeout_s))
            self._begin()
            while True:
                if self._stop.requested:
                    return self._result(complete=False, stopped=True)
                now = run.clock.now()
                step: decide.Step = (
                    decide.Sleep(self._outage_until)
                    if now < self._outage_until
                    else decide.decide(self._situation(), run.policy, now)
                )
                if self._disturbed and isinstance(step, _BY_PLAN):
                    # Another run may have sent, or finished, what this plan still wants to send.
                    raise PlanStale(
                        "another run changed the state while this one was waiting", hint="plan again"
                    )
                if isinstance(step, decide.Done):
                    # A run that only collects must not present an unsubmitted plan as its result.
                    if step.complete and (run.policy.submit or not self._plan.shards):
                        return self._finish()
                    return self._result(complete=False)
                if isinstance(step, decide.Sleep):
                    held.close()
                    self._sleep_until(step.until_s)
                    held.enter_context(self._lock(_RELOCK_TIMEOUT_S))
                    self._reload()
                    continue
                self._perform(step)

    def _wants(self, request_id: str) -> bool:
        """Whether some row of the plan waits for a request."""
        return self._spool is not None and rowtable.wants(self._spool, request_id)

    # ------------------------------------------------------------ beginning, sleeping, ending

    def _begin(self) -> None:
        run, ledger = self._run, self._run.ledger
        ledger.open()
        if ledger.basis() != self._plan.basis:
            raise PlanStale("the state has moved on since this plan was made", hint="plan again")
        if ledger.exists:
            live = any(attempt.state.live for attempt in ledger.attempts.values())
            warning = principal.check(ledger.state.principal, run.backend.principal, live=live)
            if warning:
                run.event("principal", "", warning)
            if run.policy.submit:
                run.store.keep_history(ledger.state)
        else:
            ledger.state = State(
                lineage=self._new_lineage(),
                serial=0,
                name=run.spec.name,
                env=run.spec.env,
                spec_digest=self._plan.spec_digest,
                principal=run.backend.principal,
            )
        # A state that never submitted anything has no jobs to be found.
        run.surveyed = not ledger.attempts
        run.store.put_spec(self._plan.spec_digest, self._resolved)
        if run.policy.submit or not ledger.exists:
            ledger.save(
                replace(ledger.state, spec_digest=self._plan.spec_digest, principal=run.backend.principal)
            )
        if run.policy.submit and self._spool is not None:
            self._note(self._spool)

    def _note(self, spool: sqlite3.Connection) -> None:
        """Store what the plan found out about outcomes: those it judged again, and those that its requests
        are to remedy, before any of these is sent."""
        run = self._run
        found = {parts.load_outcome(line).request_id: line for line in rowtable.rejudged(spool)}
        links = list(rowtable.links(spool))
        if not found and not links:
            return
        run.index.sync(run.ledger.state, run.ledger.attempts.values())
        for of, request_id, settings in links:
            failed = run.index.stored(of)
            if failed is not None:
                found[of] = parts.dump_outcome(
                    structs.replace(failed, remedied_by=request_id, remedy=settings)
                )
        run.remedies |= {request_id for _, request_id, _ in links}
        # A segment of no attempt: it has no token, and adds nothing to what was sent.
        name = run.store.put_outcomes("", {}, found.values())
        run.ledger.save(replace(run.ledger.state, outcomes=(*run.ledger.state.outcomes, name)))

    def _reload(self) -> None:
        ledger = self._run.ledger
        before = ledger.state.spec_digest
        self._disturbed |= ledger.reload()
        if ledger.state.spec_digest != before and self._run.policy.submit:
            raise PlanStale(
                "another run applied another version of the spec while this one was waiting;"
                " nothing more was submitted",
                hint="plan again; what is in flight will be collected",
            )

    def _sleep_until(self, until_s: float) -> None:
        clock = self._run.clock
        while not self._stop.requested:
            left = until_s - clock.now()
            if left <= 0:
                return
            clock.sleep(min(left, _SLICE_S))

    def _lock(self, timeout_s: float) -> AbstractContextManager[None]:
        operation = "apply" if self._run.policy.submit else "wait"
        return self._run.store.lock(operation, clock_text(self._run.clock.now()), timeout_s)

    def _situation(self) -> Situation:
        run = self._run
        planned = run.shards.get(run.todo[0]) if run.todo else None
        return Situation(
            attempts=tuple(run.ledger.attempts.values()),
            mine=frozenset(run.mine),
            wanted=frozenset(run.wanted),
            todo=len(run.todo),
            looked_at=run.looked_at,
            quarantined=frozenset(run.quarantined),
            halted=bool(run.errors),
            to_retry=len(run.again),
            surveyed=run.surveyed,
            next_tokens=decide.estimated_tokens(planned.byte_count) if planned is not None else 0,
        )

    def _result(self, *, complete: bool, stopped: bool = False) -> Result:
        run = self._run
        live = [a for a in run.ledger.attempts.values() if a.state.live]
        unsent = [run.shards[shard_id] for shard_id in run.todo if shard_id in run.shards]
        return Result(
            complete=complete,
            stopped=stopped,
            in_flight=sum(a.request_count for a in live),
            unsent=sum(shard.request_count for shard in unsent),
            sent=dict(run.sent),
            usage=dict(run.usage),
            errors=tuple(run.errors),
            quarantined=tuple(sorted(run.quarantined)),
        )

    def _finish(self) -> Result:
        """Write the rows snapshot and the destinations; the root names both at once."""
        run, ledger = self._run, self._run.ledger
        run.index.sync(ledger.state, ledger.attempts.values())
        with ExitStack() as held:
            done = finish.write(
                run.spec,
                self._plan,
                ledger.state,
                run.store,
                run.index,
                held,
                overwrite=self._overwrite,
                fresh=run.records,
            )
            # The root first: killed in between, the next plan sees that the files are not there yet.
            ledger.save(replace(done.state, last_apply_at=run.clock.now()))
            done.written.place()
        done.absorb()
        result = self._result(complete=True)
        return replace(result, rows=done.written.rows, files=done.written.files)

    # ------------------------------------------------------------ steps

    def _perform(self, step: decide.Step) -> None:
        run, attempts = self._run, self._run.ledger.attempts
        try:
            match step:
                case decide.Void(token):
                    submission.void(run, attempts[token])
                case decide.Survey():
                    submission.survey(run)
                case decide.Prepare():
                    submission.prepare(run)
                case decide.Post(token):
                    submission.post(run, attempts[token])
                case decide.Find(token):
                    submission.find(run, attempts[token])
                case decide.Poll(token):
                    collection.poll(run, attempts[token])
                case decide.Collect(token):
                    collection.collect(run, attempts[token])
                case decide.Clean(token):
                    collection.clean(run, attempts[token])
                case decide.Repack():
                    collection.repack(run)
                case _:
                    raise AssertionError(step)
        except BackendError as error:
            self._outage(error)
        else:
            self._outages = 0

    def _outage(self, error: BackendError) -> None:
        """A passing fault of the service: said, waited out, and tried again for as long as it lasts."""
        policy = self._run.policy
        if not error.transient or (not policy.wait and self._outages >= _OUTAGES_WITHOUT_WAIT):
            raise error
        longest = max(policy.poll_interval_s, _OUTAGE_FIRST_S)
        delay = min(policy.poll_interval_s * 2.0 ** min(self._outages, 64), longest * 10, _OUTAGE_MAX_S)
        self._outages += 1
        self._outage_until = self._run.clock.now() + delay
        self._run.event("outage", "", f"{error.message}; next try in {delay:.0f} s")


@contextmanager
def _shared_with_threads() -> Iterator[None]:
    """Let the thread that packs what is stored have the interpreter soon: it asks for it several times per
    megabyte, and would wait 5 ms each time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
