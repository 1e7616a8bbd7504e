"""What came back for an attempt, stored byte for byte and joined with what was sent.

Joins by key only. The first ok line of a request wins; a request without a line is `missing`.
Every request that was sent gets exactly one outcome, so the counts always add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from runner import parts, remedies
from runner.model import Answer, Attempt, JobState, Outcome, ResponseRef, Stored
from runner.remedies import Remedy
from runner.results import Judge, Stray
from runner.rowerrors import rpc_code

if TYPE_CHECKING:
    # It writes files, and this runs inside other engines too.
    from runner.recordspool import AttemptRecords

ATTEMPT_ERROR_CODES = frozenset({3, 5, 7, 9, 16})
"""google.rpc codes of a failed job that mean import, bucket or rights: no row is to blame."""
JOB_CANCELLED = "JOB_CANCELLED"
_STRANGER = b"stranger"


class History(Protocol):
    """What is asked of earlier attempts."""

    def stored_among(self, request_ids: Sequence[str]) -> Mapping[str, Stored]:
        """The latest outcomes of these requests, of those that have any."""
        ...

    def answered(self, request_id: str) -> Stored | None:
        """The latest outcome of what stands for a request."""
        ...

    def remedied(self, request_id: str) -> Stored | None:
        """The failure that a request remedies."""
        ...


@dataclass(frozen=True, slots=True)
class Ingested:
    """The outcomes of an attempt's requests."""

    lines: tuple[bytes, ...]
    """Lines of an outcomes part, in the order of the requests."""
    outcomes: Mapping[str, int]
    strays: Mapping[str, int]
    usage: Mapping[str, int]
    """Tokens: prompt, cached, output, thoughts."""
    again: Mapping[str, Remedy | None]
    """Requests that may end better in another attempt and have one left: None to send them as they are."""


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
        history: History,
        again: Callable[[Stored], tuple[bool, Remedy | None]] = lambda stored: (False, None),
        records: AttemptRecords | None = None,
    ) -> None:
        """`sent` are the lines of the attempt's shard; `again` says whether a failure is to be sent
        again, and how; `records` takes the record of each answer that counts."""
        self._records = records
        self._history = history
        self._again_for = again
        self._again: dict[str, Remedy | None] = {}
        self._attempt = attempt
        self._judge = judge
        self._found: dict[str, bytes | None] = {parts.request_id(line): None for line in sent}
        self._before = history.stored_among(list(self._found))
        self._others: dict[str, Outcome] = {}
        """Classes of answers that are not ok."""
        self._strays: Counter[str] = Counter()
        self._usage: dict[str, int] = {}

    def line(self, line: bytes, ref: ResponseRef) -> None:
        """Take one response line, whatever it holds."""
        answer = self._judge.line(line)
        if isinstance(answer, Stray):
            if line.strip():
                self._strays[answer.what] += 1
            return
        request_id = answer.request_id
        before = self._found.get(request_id, _STRANGER)
        ok = answer.outcome is Outcome.OK
        if before is not None:
            self._strays["extra" if before is _STRANGER else "duplicate"] += 1
            if not ok or request_id not in self._others:
                return
            del self._others[request_id]
        if not ok:
            self._others[request_id] = answer.outcome
        usage = self._usage
        for kind, count in answer.usage.items():
            usage[kind] = usage.get(kind, 0) + count
        self._found[request_id] = self._outcome(answer, ref)

    def finish(self) -> Ingested:
        """The outcomes, with `missing` for what did not come back."""
        code, message = _why_missing(self._attempt)
        whole = failed_as_a_whole(self._attempt)
        lines: list[bytes] = []
        for request_id, line in self._found.items():
            if line is None and whole:
                continue
            if line is None:
                answer = Answer(request_id=request_id, outcome=Outcome.MISSING, code=code, message=message)
                line = self._outcome(answer, None)
                self._others[request_id] = Outcome.MISSING
            lines.append(line)
        if self._records is not None:
            self._records.seal(self._found)
        ok_count = len(lines) - len(self._others)
        others = Counter(map(str, self._others.values()))
        return Ingested(
            lines=tuple(lines),
            outcomes={"ok": ok_count, **others} if ok_count else {**others},
            strays=dict(self._strays),
            usage=self._usage,
            again=self._again,
        )

    def _outcome(self, answer: Answer, ref: ResponseRef | None) -> bytes:
        before = self._before.get(answer.request_id)
        remedied = self._history.remedied(answer.request_id)
        earlier = before or remedied
        stored = Stored(
            request_id=answer.request_id,
            outcome=answer.outcome,
            token=self._attempt.token,
            code=answer.code,
            message=answer.message,
            jobs=1 + (earlier.jobs if earlier else 0),
            ref=ref,
            usage=answer.usage,
            model_version=answer.model_version,
            response_id=answer.response_id,
            finish_reason=answer.finish_reason,
            remedies=remedies.told(remedied.remedy) if remedied else "",
        )
        if self._again:
            self._again.pop(stored.request_id, None)
        if answer.outcome is Outcome.OK:
            if self._records is not None and before is not None and before.outcome is Outcome.OK:
                self._records.displace(before.token)
            if self._records is not None and remedied is None:
                self._records.add(answer)
            return parts.dump_outcome(stored)
        if before is not None and self._is_answered(answer.request_id):
            # A replacement that failed never displaces an answer that was paid for.
            return parts.dump_outcome(structs.replace(before, jobs=stored.jobs))
        # A job that someone cancelled is not started again behind their back.
        again, remedy = (False, None) if stored.code == JOB_CANCELLED else self._again_for(stored)
        if again:
            self._again[stored.request_id] = remedy
        if remedy is not None:
            stored = structs.replace(stored, remedied_by=remedy.request_id, remedy=remedy.settings)
        elif before is not None and before.remedied_by:
            # It failed in a second job; what was sent in its place still stands for it.
            stored = structs.replace(stored, remedied_by=before.remedied_by, remedy=before.remedy)
        return parts.dump_outcome(stored)

    def _is_answered(self, request_id: str) -> bool:
        answered = self._history.answered(request_id)
        return answered is not None and answered.outcome is Outcome.OK


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
