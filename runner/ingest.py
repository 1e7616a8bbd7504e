"""What came back for an attempt, stored byte for byte and joined with what was sent.

Joins by key only. The first ok line of a request wins; a request without a line is `missing`.
Every request that was sent gets exactly one outcome, so the counts always add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import orjson

from runner import parts
from runner.model import Answer, Attempt, JobState, Outcome, ResponseRef, Stored
from runner.results import Judge, Stray, rpc_code

ATTEMPT_ERROR_CODES = frozenset({3, 5, 7, 9, 16})
"""google.rpc codes of a failed job that mean import, bucket or rights: no row is to blame."""
JOB_CANCELLED = "JOB_CANCELLED"


@dataclass(frozen=True, slots=True)
class Ingested:
    """The outcomes of an attempt's requests."""

    lines: tuple[bytes, ...]
    """Lines of an outcomes part, in the order of the requests."""
    outcomes: Mapping[str, int]
    strays: Mapping[str, int]
    usage: Mapping[str, int]
    """Tokens: prompt, cached, output, thoughts."""
    retryable: frozenset[str]
    """Requests that may end better in another attempt, and have one left."""
    unanswered: int
    """Requests without a line that get no outcome because the attempt itself failed."""


def failed_as_a_whole(attempt: Attempt) -> bool:
    """Whether the job failed for a reason that none of its rows is to blame for."""
    return attempt.job_state is JobState.FAILED and attempt.error_code in ATTEMPT_ERROR_CODES


class Collector:
    """Collects the response lines of one attempt as they stream by."""

    def __init__(
        self,
        attempt: Attempt,
        judge: Judge,
        sent: Iterable[bytes],
        stored: Callable[[str], Stored | None],
        max_attempts: int = 1,
    ) -> None:
        """`sent` are the lines of the attempt's shard; `stored` gives a request's latest outcome."""
        self._max_attempts = max_attempts
        self._retryable: set[str] = set()
        self._attempt = attempt
        self._judge = judge
        self._stored = stored
        self._found: dict[str, bytes | None] = {orjson.loads(line)["key"]: None for line in sent}
        self._classes: dict[str, Outcome] = {}
        self._strays: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()

    def line(self, line: bytes, ref: ResponseRef) -> None:
        """Take one response line, whatever it holds."""
        if not line.strip():
            return
        answer = self._judge.line(line)
        if isinstance(answer, Stray):
            self._strays[answer.what] += 1
            return
        request_id = answer.request_id
        if request_id not in self._found:
            self._strays["extra"] += 1
            return
        before = self._classes.get(request_id)
        if before is not None:
            self._strays["duplicate"] += 1
            if before is Outcome.OK or answer.outcome is not Outcome.OK:
                return
        self._classes[request_id] = answer.outcome
        self._usage.update(answer.usage)
        self._found[request_id] = self._outcome(answer, ref)

    def finish(self) -> Ingested:
        """The outcomes, with `missing` for what did not come back."""
        code, message = _why_missing(self._attempt)
        whole = failed_as_a_whole(self._attempt)
        lines: list[bytes] = []
        counts: Counter[str] = Counter()
        unanswered = 0
        for request_id, line in self._found.items():
            if line is None and whole:
                unanswered += 1
                continue
            if line is None:
                answer = Answer(request_id=request_id, outcome=Outcome.MISSING, code=code, message=message)
                line = self._outcome(answer, None)
                counts[Outcome.MISSING] += 1
            else:
                counts[self._classes[request_id]] += 1
            if line:
                lines.append(line)
        outcomes = {str(name): count for name, count in counts.items()}
        return Ingested(
            lines=tuple(lines),
            outcomes=outcomes,
            strays=dict(self._strays),
            usage=dict(self._usage),
            retryable=frozenset(self._retryable),
            unanswered=unanswered,
        )

    def _outcome(self, answer: Answer, ref: ResponseRef | None) -> bytes:
        before = self._stored(answer.request_id)
        stored = Stored(
            request_id=answer.request_id,
            outcome=answer.outcome,
            token=self._attempt.token,
            code=answer.code,
            message=answer.message,
            jobs=1 + (before.jobs if before else 0),
            ref=ref,
            usage=answer.usage,
            model_version=answer.model_version,
            finish_reason=answer.finish_reason,
        )
        if before is not None and before.outcome is Outcome.OK and answer.outcome is not Outcome.OK:
            # A replacement that failed never displaces an answer that was paid for.
            stored = replace(before, jobs=stored.jobs)
        self._retryable.discard(stored.request_id)
        # A job that someone cancelled is not started again behind their back.
        if stored.retryable and stored.jobs < self._max_attempts and stored.code != JOB_CANCELLED:
            self._retryable.add(stored.request_id)
        return parts.dump_outcome(stored)


def _why_missing(attempt: Attempt) -> tuple[str, str]:
    state = attempt.job_state
    if state is JobState.EXPIRED:
        return "JOB_EXPIRED", "the job expired before this request was answered"
    if state is JobState.CANCELLED:
        return JOB_CANCELLED, "the job was cancelled before this request was answered"
    if state is JobState.FAILED:
        code = rpc_code(attempt.error_code) if attempt.error_code else "JOB_FAILED"
        return code, f"the job failed: {attempt.error or 'the service gave no reason'}"
    return "NO_LINE", "the job ended without a line for this request"
