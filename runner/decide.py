"""What an apply does next, given what it sees. Pure: no clock, no store, no backend.

The executor shows a situation, performs the one step that comes back, and asks again. All of
it can therefore be run against a simulated service with a hand-moved clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.model import BYTES_PER_TOKEN, Attempt, AttemptState, Job, JobState

FIND_GAP_S = 5.0
"""Seconds between two full listings that look for the same token."""
CLEAN_LISTINGS = 2
"""Full listings without the token that it takes to believe that no job was made."""
_DEFER_FIRST_S = 60.0
_DEFER_MAX_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How an apply goes about it; fixed for its length."""

    max_jobs: int
    poll_interval_s: float
    request_timeout_s: float
    settle_s: float
    max_enqueued_tokens: int | None = None
    """Estimated input tokens of all jobs in flight, None for no limit."""
    retry: bool = True
    """Whether requests that ended in something passing go into another job of this run."""
    stall_after_s: float = 86400.0
    """How long a job may be pending before it is pointed out."""
    submit: bool
    """False where only what is in flight is to be collected."""
    wait: bool
    """False where the run ends once everything that can start has started."""
    cleanup: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision may depend on."""

    attempts: tuple[Attempt, ...]
    mine: frozenset[str]
    """Tokens of attempts that this run created and is still driving."""
    wanted: frozenset[str]
    """Tokens whose requests some row wants; the others are collected when they happen to be done."""
    todo: int
    """Shards that have no attempt yet."""
    looked_at: Mapping[str, float]
    """When each token was last polled or searched for."""
    quarantined: frozenset[str]
    """Tokens that need a person."""
    halted: bool
    """Whether the service refused something: nothing more is submitted."""
    next_tokens: int = 0
    """Estimated input tokens of the next shard without an attempt."""
    surveyed: bool = True
    """Whether this run has seen the list of all jobs."""
    to_retry: int = 0
    """Requests whose last outcome was a passing one, with attempts left."""


@dataclass(frozen=True, slots=True)
class Void:
    """Give up a submission of another run that was never posted."""

    token: str


@dataclass(frozen=True, slots=True)
class Find:
    """Look through all jobs for one that may have been made for this token."""

    token: str


@dataclass(frozen=True, slots=True)
class Collect:
    """Store what a finished job brought."""

    token: str


@dataclass(frozen=True, slots=True)
class Clean:
    """Delete what is no longer needed at the service."""

    token: str


@dataclass(frozen=True, slots=True)
class Poll:
    """Look at a job."""

    token: str


@dataclass(frozen=True, slots=True)
class Post:
    """Create the job of an attempt that is prepared."""

    token: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Look through all jobs once for those that carry this state's name and are not known to it."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Begin an attempt for the next shard."""


@dataclass(frozen=True, slots=True)
class Repack:
    """Put the requests that may end better next time into new shards."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Nothing to do before this time."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to do in this run; `complete` where every wanted request has its outcome."""

    complete: bool


Step = Void | Survey | Find | Collect | Clean | Poll | Post | Prepare | Repack | Sleep | Done


def decide(situation: Situation, policy: Policy, now: float) -> Step:
    """The next step. The same situation, policy and time always give the same step."""
    by_state: dict[AttemptState, list[Attempt]] = {}
    for attempt in situation.attempts:
        by_state.setdefault(attempt.state, []).append(attempt)
    prepared = by_state.get(AttemptState.PREPARED, [])
    posting = [a for a in by_state.get(AttemptState.POSTING, []) if a.token not in situation.quarantined]
    submitted = by_state.get(AttemptState.SUBMITTED, [])

    for attempt in prepared:
        if attempt.token not in situation.mine:
            return Void(attempt.token)
    if policy.submit and not situation.surveyed:
        return Survey()
    times: list[float] = []
    for attempt in posting:
        if _waits_for_quota(attempt):
            continue
        due = _find_due(attempt, situation, policy)
        if due <= now:
            return Find(attempt.token)
        times.append(due)
    for attempt in by_state.get(AttemptState.TERMINAL, []):
        return Collect(attempt.token)
    if policy.cleanup != "keep":
        for attempt in by_state.get(AttemptState.COLLECTED, []):
            return Clean(attempt.token)

    blocked = False
    if policy.submit and not situation.halted:
        for attempt in prepared:
            return Post(attempt.token)
        deferred = [a for a in posting if _waits_for_quota(a)]
        for attempt in deferred:
            if attempt.deferred_until <= now:
                return Post(attempt.token)
            times.append(attempt.deferred_until)
        # Creates are serial: behind a submission whose end is unknown, or that has to wait, none follows.
        room = len(submitted) < policy.max_jobs and _fits(submitted, situation, policy)
        if situation.todo and room and not posting:
            return Prepare()
        blocked = bool(situation.todo) and not room

    waiting = [a for a in submitted if a.token in situation.wanted]
    for attempt in submitted:
        due = situation.looked_at.get(attempt.token, 0.0) + policy.poll_interval_s
        if due <= now:
            return Poll(attempt.token)
        # Jobs that nobody wants are waited for only where they take the place of others.
        if attempt.token in situation.wanted or blocked:
            times.append(due)
    unsent = situation.todo if policy.submit and not situation.halted else 0
    if not waiting and not unsent and not times:
        if situation.to_retry and policy.retry and policy.submit and not situation.halted:
            return Repack()
        stuck = bool(situation.todo) or bool(posting) or bool(situation.quarantined)
        return Done(complete=not stuck and not situation.halted)
    if not policy.wait or not times:
        return Done(complete=False)
    return Sleep(min(times))


def estimated_tokens(byte_count: int) -> int:
    """Input tokens that a JSONL file of this size may have, rather too many than too few."""
    return -(-byte_count // BYTES_PER_TOKEN)


def _fits(submitted: list[Attempt], situation: Situation, policy: Policy) -> bool:
    if policy.max_enqueued_tokens is None or not submitted:
        return True
    enqueued = sum(estimated_tokens(attempt.byte_count) for attempt in submitted)
    return enqueued + situation.next_tokens <= policy.max_enqueued_tokens


def defer_until(attempt: Attempt, now: float) -> float:
    """When to post again after a 429: minutes, doubling to a quarter of an hour."""
    return now + min(_DEFER_FIRST_S * float(2**attempt.deferrals), _DEFER_MAX_S)


# ---------------------------------------------------------------- an ambiguous submission


@dataclass(frozen=True, slots=True)
class Adopt:
    """This job is the attempt's; the others were made for the same token and are cancelled."""

    job: Job
    others: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class NotFound:
    """Not found in this listing; `clean_listings` is the count to record."""

    clean_listings: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """No job was made: the shard may be submitted once more."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """No job was found for the second time, or it cannot be known: a person has to look."""


_FURTHEST = (
    JobState.SUCCEEDED,
    JobState.PARTIAL,
    JobState.RUNNING,
    JobState.PAUSED,
    JobState.PENDING,
    JobState.UNKNOWN,
    JobState.CANCELLING,
    JobState.EXPIRED,
    JobState.FAILED,
    JobState.CANCELLED,
)


def resolve(
    attempt: Attempt,
    found: tuple[Job, ...],
    *,
    control: bool,
    knows_a_job: bool,
    abandoned_before: bool,
    policy: Policy,
    now: float,
) -> Adopt | NotFound | Abandon | Quarantine:
    """What a full listing says about an attempt that was posted with an unknown end.

    `control` says that the listing can be trusted: it showed a job known to exist, or, where none
    is known (`knows_a_job` False), our upload is still there.
    """
    if found:
        best, *others = sorted(found, key=lambda job: (_FURTHEST.index(job.state), job.job_name))
        return Adopt(best, tuple(others))
    settled = now >= attempt.posted_at + _settle_s(policy, knows_a_job)
    if settled and not control and not knows_a_job:
        # The upload has gone, so nothing can tell any more whether the listing is to be trusted.
        return Quarantine()
    if not settled or not control:
        return NotFound(attempt.clean_listings)
    if attempt.clean_listings + 1 < CLEAN_LISTINGS:
        return NotFound(attempt.clean_listings + 1)
    return Quarantine() if abandoned_before else Abandon()


def _settle_s(policy: Policy, knows_a_job: bool) -> float:
    return policy.request_timeout_s + policy.settle_s * (1 if knows_a_job else 2)


def _find_due(attempt: Attempt, situation: Situation, policy: Policy) -> float:
    looked = situation.looked_at.get(attempt.token)
    return 0.0 if looked is None else looked + max(FIND_GAP_S, policy.poll_interval_s)


def _waits_for_quota(attempt: Attempt) -> bool:
    return attempt.deferred_until > 0.0
