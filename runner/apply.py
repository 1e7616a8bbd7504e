"""Walks a plan through a store and a backend: one effect, then one save.

The executor decides nothing: `decide` says what comes next, the plan says what is wanted. A
process that dies at any point leaves a state from which the next apply goes on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

from runner import decide, finish, statefile
from runner.backends import Backend
from runner.blobs import BlobExists
from runner.clock import Clock
from runner.decide import Policy, Situation
from runner.errors import (
    BackendError,
    PlanStale,
    StateChanged,
    SubmissionDeferred,
    SubmissionRefused,
    SubmissionUnknown,
)
from runner.index import Index
from runner.ingest import Collector, failed_as_a_whole
from runner.ledger import Ledger
from runner.model import (
    Attempt,
    AttemptState,
    Job,
    JobState,
    Json,
    Plan,
    Request,
    Spec,
    State,
)
from runner.results import Judge
from runner.shard import ShardWriter
from runner.store import Store

_RELOCK_TIMEOUT_S = 600.0
_SLICE_S = 0.25
"""Longest sleep between two looks at whether to stop."""
_OUTAGE_FIRST_S = 5.0
_OUTAGE_MAX_S = 300.0
_OUTAGES_WITHOUT_WAIT = 3
"""Passing faults in a row after which a run that does not wait gives up."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for whoever watches."""

    kind: str
    """`submitted`, `adopted`, `job`, `collected`, `refused`, `deferred`, `ambiguous`, `outage`, ..."""
    token: str
    text: str
    data: Mapping[str, Json] = field(default_factory=dict)


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
    ) -> None:
        self._spec = spec
        self._resolved = resolved
        self._plan = plan
        self._store = store
        self._index = index
        self._backend = backend
        self._clock = clock
        self._policy = policy
        self._new_lineage = new_lineage
        self._on_event = on_event
        self._stop = stop
        self._lock_timeout_s = lock_timeout_s
        self._judge = Judge(spec.output_schema)
        self._ledger = Ledger(store)
        self._mine: set[str] = set()
        self._uploads: dict[str, str] = {}
        self._wanted: set[str] = set(plan.live_tokens)
        self._shards = {shard.shard_id: shard for shard in plan.shards}
        self._todo: list[str] = list(self._shards)
        self._retry: set[str] = set()
        self._scratch: Path
        self._looked_at: dict[str, float] = {}
        self._quarantined: set[str] = set()
        self._errors: list[str] = []
        self._sent: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()
        self._outages = 0
        """Passing faults in a row."""
        self._outage_until = 0.0

    def run(self) -> Result:
        """Carry the plan out as far as the policy says.

        Raises:
            StateLocked, PlanStale (the state moved since the plan), StateError, BackendError.
        """
        with ExitStack() as kept, ExitStack() as held:
            self._scratch = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="gbrun-")))
            held.enter_context(self._lock(self._lock_timeout_s))
            self._begin()
            while True:
                if self._stop.requested:
                    return self._result(complete=False, stopped=True)
                now = self._clock.now()
                step: decide.Step = (
                    decide.Sleep(self._outage_until)
                    if now < self._outage_until
                    else decide.decide(self._situation(), self._policy, now)
                )
                if isinstance(step, decide.Done):
                    if step.complete and self._policy_allows_finish():
                        return self._finish()
                    return self._result(complete=False)
                if isinstance(step, decide.Sleep):
                    held.close()
                    self._sleep_until(step.until_s)
                    held.enter_context(self._lock(_RELOCK_TIMEOUT_S))
                    self._reload()
                    continue
                self._perform(step)

    # ------------------------------------------------------------ beginning, sleeping, ending

    def _begin(self) -> None:
        ledger = self._ledger
        ledger.open()
        if ledger.basis() != self._plan.basis:
            raise PlanStale("the state has moved on since this plan was made", hint="plan again")
        if not ledger.exists:
            ledger.state = State(
                lineage=self._new_lineage(),
                serial=0,
                name=self._spec.name,
                env=self._spec.env,
                spec_digest=self._plan.spec_digest,
                principal=self._backend.principal,
            )
        elif self._policy.submit:
            self._store.keep_history(ledger.state)
        self._store.put_spec(self._plan.spec_digest, self._resolved)
        if self._policy.submit or not ledger.exists:
            ledger.save(
                replace(ledger.state, spec_digest=self._plan.spec_digest, principal=self._backend.principal)
            )

    def _reload(self) -> None:
        before = self._ledger.state.spec_digest
        self._ledger.reload()
        if self._ledger.state.spec_digest != before and self._policy.submit:
            raise PlanStale(
                "another run applied another version of the spec while this one was waiting;"
                " nothing more was submitted",
                hint="plan again; what is in flight will be collected",
            )

    def _sleep_until(self, until_s: float) -> None:
        while not self._stop.requested:
            left = until_s - self._clock.now()
            if left <= 0:
                return
            self._clock.sleep(min(left, _SLICE_S))

    def _situation(self) -> Situation:
        return Situation(
            attempts=tuple(self._ledger.attempts.values()),
            mine=frozenset(self._mine),
            wanted=frozenset(self._wanted),
            todo=len(self._todo),
            looked_at=self._looked_at,
            quarantined=frozenset(self._quarantined),
            halted=bool(self._errors),
            to_retry=len(self._retry),
        )

    def _policy_allows_finish(self) -> bool:
        """A run that only collects must not present an unsubmitted plan as its result."""
        return self._policy.submit or not self._plan.shards

    def _result(self, *, complete: bool, stopped: bool = False) -> Result:
        live = [a for a in self._ledger.attempts.values() if a.state.live]
        counts = {shard.shard_id: shard.request_count for shard in self._shards.values()}
        return Result(
            complete=complete,
            stopped=stopped,
            in_flight=sum(a.request_count for a in live),
            unsent=sum(counts.get(shard_id, 0) for shard_id in self._todo),
            sent=dict(self._sent),
            usage=dict(self._usage),
            errors=tuple(self._errors),
            quarantined=tuple(sorted(self._quarantined)),
        )

    # ------------------------------------------------------------ steps

    def _perform(self, step: decide.Step) -> None:
        try:
            match step:
                case decide.Void(token):
                    self._ledger.replace(self._ledger.attempts[token], state=AttemptState.VOID)
                case decide.Prepare():
                    self._prepare()
                case decide.Repack():
                    self._repack()
                case decide.Post(token):
                    self._post(self._ledger.attempts[token])
                case decide.Find(token):
                    self._find(self._ledger.attempts[token])
                case decide.Poll(token):
                    self._poll(self._ledger.attempts[token])
                case decide.Collect(token):
                    self._collect(self._ledger.attempts[token])
                case decide.Clean(token):
                    self._clean(self._ledger.attempts[token])
                case _:
                    raise AssertionError(step)
        except BackendError as error:
            self._outage(error)
        else:
            self._outages = 0

    def _outage(self, error: BackendError) -> None:
        """A passing fault of the service: said, waited out, and tried again for as long as it lasts."""
        if not error.transient or (not self._policy.wait and self._outages >= _OUTAGES_WITHOUT_WAIT):
            raise error
        longest = max(self._policy.poll_interval_s, _OUTAGE_FIRST_S)
        delay = min(self._policy.poll_interval_s * 2.0**self._outages, longest * 10, _OUTAGE_MAX_S)
        self._outages += 1
        self._outage_until = self._clock.now() + delay
        self._event("outage", "", f"{error.message}; next try in {delay:.0f} s")

    def _prepare(self) -> None:
        shard_id = self._todo[0]
        planned = self._shards.get(shard_id)
        numbers = [a.number for a in self._ledger.attempts.values() if a.shard_id[:16] == shard_id[:16]]
        if planned is not None:
            self._store.put_shard(shard_id, planned.path)
            request_count, byte_count = planned.request_count, planned.byte_count
        else:
            former = next(a for a in self._ledger.attempts.values() if a.shard_id == shard_id)
            request_count, byte_count = former.request_count, former.byte_count
        number = max(numbers, default=0) + 1
        attempt = Attempt(
            token=statefile.token(self._ledger.state.lineage, shard_id, number),
            shard_id=shard_id,
            number=number,
            state=AttemptState.PREPARED,
            model=self._spec.model,
            request_count=request_count,
            byte_count=byte_count,
            created_at=self._clock.now(),
        )
        try:
            self._ledger.create(attempt)
        except BlobExists as error:
            raise StateChanged(
                f"another run has begun {attempt.token}", hint="wait for it, then plan again"
            ) from error
        self._todo.pop(0)
        self._mine.add(attempt.token)
        self._wanted.add(attempt.token)

    def _repack(self) -> None:
        """Pack what is to be retried, in the order in which it was sent first."""
        folder = tempfile.mkdtemp(dir=self._scratch)
        writer = ShardWriter(Path(folder), self._spec.shards)
        waiting, self._retry = self._retry, set()
        adopted = sorted(a.shard_id for a in self._ledger.attempts.values() if a.token in self._wanted)
        for shard_id in list(dict.fromkeys([*self._shards, *adopted])):
            for line in self._store.shard_lines(shard_id) if waiting else ():
                request_id = orjson.loads(line)["key"]
                if request_id in waiting:
                    waiting.discard(request_id)
                    writer.add(Request(request_id, line + b"\n"))
        for shard in writer.finish():
            self._shards[shard.shard_id] = shard
            self._todo.append(shard.shard_id)
            self._event("retry", "", f"{shard.request_count:,} requests go into another job")

    def _post(self, attempt: Attempt) -> None:
        if attempt.token not in self._uploads:
            self._uploads[attempt.token] = self._upload(attempt)
        attempt = self._ledger.replace(
            attempt,
            state=AttemptState.POSTING,
            upload_name=self._uploads[attempt.token],
            posted_at=self._clock.now(),
            deferred_until=0.0,
        )
        try:
            job = self._backend.create(
                model=attempt.model, upload_name=attempt.upload_name, display_name=attempt.token
            )
        except SubmissionDeferred as error:
            until = decide.defer_until(attempt, self._clock.now())
            self._ledger.replace(
                attempt, deferred_until=until, deferrals=attempt.deferrals + 1, error=error.message
            )
            self._event("deferred", attempt.token, f"{error.message}; posted again at {_clock_text(until)}")
        except SubmissionRefused as error:
            self._ledger.replace(attempt, state=AttemptState.REFUSED, error=error.message)
            self._errors.append(error.message)
            self._event("refused", attempt.token, error.message)
        except SubmissionUnknown as error:
            self._ledger.replace(attempt, error=error.message)
            self._looked_at[attempt.token] = 0.0
            self._event("ambiguous", attempt.token, f"{error.message}; looking for the job")
        else:
            self._submitted(attempt, job, adopted=False)

    def _upload(self, attempt: Attempt) -> str:
        hasher = hashlib.sha256()
        with tempfile.NamedTemporaryFile(prefix="gbrun-", suffix=".jsonl") as file:
            for line in self._store.shard_lines(attempt.shard_id):
                hasher.update(line + b"\n")
                file.write(line + b"\n")
            file.flush()
            upload = self._backend.upload(Path(file.name), name=attempt.token, sha256=hasher.hexdigest())
        return upload.name

    def _submitted(self, attempt: Attempt, job: Job, *, adopted: bool) -> None:
        attempt = self._ledger.replace(
            attempt,
            state=AttemptState.SUBMITTED,
            job_name=job.job_name,
            job_state=job.state,
            adopted=adopted,
            error="",
        )
        self._wanted.add(attempt.token)
        self._looked_at[attempt.token] = self._clock.now()
        kind = "adopted" if adopted else "submitted"
        self._event(kind, attempt.token, f"{attempt.request_count:,} requests as {job.job_name}")
        if job.state.terminal:
            self._looked_at[attempt.token] = 0.0

    def _find(self, attempt: Attempt) -> None:
        """Look for the job of a submission whose end is unknown (a lost reply, or a dead run)."""
        known = {a.job_name for a in self._ledger.attempts.values() if a.job_name and a.state.live}
        found: list[Job] = []
        saw_known = False
        for job in self._backend.jobs():
            saw_known |= job.job_name in known
            if job.display_name == attempt.token:
                found.append(job)
        control = saw_known if known else self._backend.upload_exists(attempt.upload_name)
        verdict = decide.resolve(
            attempt,
            tuple(found),
            control=control,
            knows_a_job=bool(known),
            abandoned_before=any(
                a.state is AttemptState.ABANDONED
                for a in self._ledger.attempts.values()
                if a.shard_id == attempt.shard_id
            ),
            policy=self._policy,
            now=self._clock.now(),
        )
        self._looked_at[attempt.token] = self._clock.now()
        match verdict:
            case decide.Adopt(job, others):
                for other in others:
                    self._backend.cancel(other.job_name)
                    self._event("duplicate", attempt.token, f"{other.job_name} is a second job; cancelled")
                self._submitted(attempt, job, adopted=True)
            case decide.NotFound(clean_listings):
                if clean_listings != attempt.clean_listings:
                    self._ledger.replace(attempt, clean_listings=clean_listings)
            case decide.Abandon():
                self._ledger.replace(attempt, state=AttemptState.ABANDONED)
                self._event("abandoned", attempt.token, "no job was made; submitted once more")
                self._wanted.discard(attempt.token)
                if self._policy.submit:
                    self._todo.insert(0, attempt.shard_id)
            case decide.Quarantine():
                self._quarantined.add(attempt.token)
                self._event("quarantined", attempt.token, "no job was found for the second time")

    def _poll(self, attempt: Attempt) -> None:
        job = self._backend.get(attempt.job_name)
        self._looked_at[attempt.token] = self._clock.now()
        if job.state is not attempt.job_state or job.state.terminal:
            state = AttemptState.TERMINAL if job.state.terminal else attempt.state
            self._ledger.replace(
                attempt,
                state=state,
                job_state=job.state,
                output_name=job.output_name,
                error=job.error_message,
                error_code=job.error_code,
            )
            words = f": {job.error_message}" if job.error_message else ""
            self._event("job", attempt.token, f"{job.state.replace('_', ' ')}{words}")

    def _collect(self, attempt: Attempt) -> None:
        """Store what came back, then its outcomes, then the root that names them."""
        self._index.sync(self._ledger.state, self._ledger.attempts.values())
        summary = self._index.ingested(attempt.token)
        if summary is None:
            collector = Collector(
                attempt,
                self._judge,
                self._store.shard_lines(attempt.shard_id),
                self._index.stored,
                self._spec.failures.max_attempts,
            )
            if attempt.output_name:
                self._download(attempt, collector)
            got = collector.finish()
            summary = {"outcomes": got.outcomes, "strays": got.strays, "usage": got.usage}
            name = self._store.put_outcomes(attempt.token, summary, got.lines)
            self._ledger.save(replace(self._ledger.state, outcomes=(*self._ledger.state.outcomes, name)))
            if attempt.token in self._wanted:
                self._retry |= got.retryable
        attempt = replace(attempt, outcomes=summary["outcomes"], strays=summary["strays"])
        self._sent.update(summary["outcomes"])
        self._usage.update(summary["usage"])
        if failed_as_a_whole(attempt):
            words = f"the job of {attempt.token} failed: {attempt.error}"
            self._errors.append(words)
        self._ledger.replace(attempt, state=AttemptState.COLLECTED)
        self._event(
            "collected", attempt.token, _counts_text(attempt.outcomes, attempt.strays), dict(attempt.outcomes)
        )

    def _download(self, attempt: Attempt, collector: Collector) -> None:
        job = Job(
            job_name=attempt.job_name,
            display_name=attempt.token,
            state=attempt.job_state or JobState.SUCCEEDED,
            output_name=attempt.output_name,
        )
        self._store.put_responses(attempt.token, self._backend.output(job), collector.line)

    def _clean(self, attempt: Attempt) -> None:
        if attempt.upload_name:
            self._backend.delete_upload(attempt.upload_name)
        if self._policy.cleanup == "all":
            self._backend.delete(attempt.job_name)
        self._ledger.replace(attempt, state=AttemptState.CLEANED)

    def _finish(self) -> Result:
        """Write the rows snapshot and the destinations; the root names both at once."""
        ledger = self._ledger
        self._index.sync(ledger.state, ledger.attempts.values())
        done = finish.write(self._spec, self._plan, ledger.state, self._store, self._index)
        ledger.save(replace(done.state, last_apply_at=self._clock.now()))
        done.absorb()
        result = self._result(complete=True)
        return replace(result, rows=done.written.rows, files=done.written.files)

    # ------------------------------------------------------------ helpers

    def _lock(self, timeout_s: float) -> ExitStack:
        stack = ExitStack()
        operation = "apply" if self._policy.submit else "wait"
        stack.enter_context(self._store.lock(operation, _clock_text(self._clock.now()), timeout_s))
        return stack

    def _event(self, kind: str, token: str, text: str, data: Mapping[str, Json] | None = None) -> None:
        self._on_event(Event(kind, token, text, data or {}))


def _clock_text(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _counts_text(outcomes: Mapping[str, int], strays: Mapping[str, int]) -> str:
    text = ", ".join(f"{count:,} {name}" for name, count in outcomes.items()) or "nothing came back"
    if strays:
        text += (
            f" (besides: {', '.join(f'{count:,} {name}' for name, count in sorted(strays.items()))} lines)"
        )
    return text
