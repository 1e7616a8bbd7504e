"""The frozen values that travel through gbrun, without the spec's. Pure: no effects, nothing of Google's.

Units stand in names: `byte_count`, `timeout_s`. Times are UTC seconds since the epoch
(`..._at`), taken from the clock that the executor was given.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

Json = Any
"""A value that JSON can hold."""


BYTES_PER_TOKEN = 3
"""Bytes of UTF-8 text per token, for estimates that are rather too high: English has about four."""

# ---------------------------------------------------------------- rows and requests


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One input found, not yet read. Made fast, because there is one per file of a first plan."""

    key: str
    """Stable name, NFC, with `/`."""
    source: int
    """Index into `Spec.inputs`."""
    path: str
    """Local path to read, empty where the row is here already."""
    signature: tuple[int, int, int, int] | None = None
    """(byte size, mtime_ns, ctime_ns, inode), or None where it was not looked up; of a row that is here
    already, its digest in the first and the last."""
    row: Row | BadRow | None = None
    """The row, where finding it is reading it."""


class Batch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Files of one folder in the order of their keys, in columns: what compares them never looks at one."""

    source: int
    """Index into `Spec.inputs`."""
    folder: str
    """Where they lie; their path is this, `/` and their name."""
    names: Sequence[str]
    keys: Sequence[str]
    signatures: Sequence[tuple[int, int, int, int] | None]

    def __iter__(self) -> Iterator[Entry]:
        """The files one by one."""
        for name, key, signature in zip(self.names, self.keys, self.signatures, strict=True):
            yield Entry(key, self.source, f"{self.folder}/{name}", signature)


class Row(msgspec.Struct, frozen=True):
    """One input, read."""

    key: str
    fields: Mapping[str, Json]
    """What templates see as `input`."""
    digest: str
    """SHA-256 of the input's bytes, hex; of a table's row, of its canonical JSON."""


class BadRow(msgspec.Struct, frozen=True):
    """An input that cannot become a request; never sent, free."""

    key: str
    code: str
    message: str
    path: str = ""
    """The template's file, where the template broke on this row's data."""
    line: int = 0
    """1-based line of `path`."""


class Request(msgspec.Struct, frozen=True):
    """One GenerateContentRequest."""

    request_id: str
    """`r` and 32 hex digits: the digest of what the user asked for."""
    line: bytes
    """The JSONL line, with its newline."""


class Wanted(msgspec.Struct, frozen=True):
    """The address of one request within a row, and the request that fills it."""

    part: int
    sample: int
    request_id: str


class PlannedShard(msgspec.Struct, frozen=True, kw_only=True):
    """Requests packed into one JSONL file, spooled on disk, ready to upload."""

    shard_id: str
    """SHA-256 of the file's bytes, hex."""
    path: Path
    request_count: int
    byte_count: int


# ---------------------------------------------------------------- outcomes


class Outcome(enum.StrEnum):
    """What became of a request; the order is the precedence of a row's class."""

    OK = "ok"
    INVALID = "invalid"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    BLOCKED = "blocked"
    REJECTED = "rejected"
    TRANSIENT = "transient"
    MISSING = "missing"
    BAD_INPUT = "bad_input"


class ResponseRef(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Where a response line lies: `responses/<token>.<part>.jsonl.gz`. As JSON an array, in this order."""

    part: int
    member: int
    """Byte offset of the gzip member in the file."""
    offset: int
    """Byte offset of the line in the uncompressed member."""
    length: int
    """Bytes of the line without its newline."""


class Stored(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    gc=False,
    rename={"request_id": "id", "token": "attempt"},
):
    """The latest outcome of a request, as the state keeps it: these fields are a line of an outcomes part,
    where names and order count, and what is empty is left out.
    """

    request_id: str
    outcome: Outcome
    token: str
    """The attempt it came from."""
    jobs: int
    """Finished jobs that contained the request."""
    ref: ResponseRef | None = None
    """None where no line came back."""
    code: str = ""
    message: str = ""
    usage: Mapping[str, int] = {}
    model_version: str = ""
    response_id: str = ""
    """The service's name of the answer, for its support."""
    finish_reason: str = ""
    accepted: bool = False
    """A person took the outcome as final: it is not tried again."""
    remedied_by: str = ""
    """Id of the request whose answer stands for this one's."""
    remedy: Mapping[str, Json] = {}
    """How that one differs from the request that was rendered: names of generationConfig, as sent."""
    remedies: str = ""
    """What this one changes of the request that it stands for, in words; empty where it stands for none."""

    def retryable(self, classes: Collection[str]) -> bool:
        """Whether the spec wants this class sent again, and nobody said that it need not."""
        return self.outcome in classes and not self.accepted


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A response line, judged against the spec."""

    request_id: str
    outcome: Outcome
    code: str = ""
    message: str = ""
    value: Json = None
    """The parsed object where a schema is asked for, else None."""
    dumped: bytes = b""
    """The value as a line of JSON, where judging it took that anyway."""
    text: str = ""
    parts: tuple[Json, ...] = ()
    """Parts that are not text (calls, media), where there are any."""
    raw: Json = None
    """The text or error kept for the errors file."""
    repaired: str = ""
    """How JSON was recovered (`fence`, `prose`), empty where it was strict."""
    usage: Mapping[str, int] = {}
    model_version: str = ""
    response_id: str = ""
    """The service's name of the answer, for its support."""
    finish_reason: str = ""


# ---------------------------------------------------------------- the plan


class Action(enum.StrEnum):
    """What a plan does with a row."""

    IN_FLIGHT = "in_flight"
    UNCHANGED = "unchanged"
    REUSED = "reused"
    FAILED = "failed"
    RETRY = "retry"
    RERUN = "rerun"
    NEW = "new"
    REMOVED = "removed"


class Change(msgspec.Struct, frozen=True):
    """One row of a plan."""

    action: Action
    key: str
    request_ids: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    """Component names for a rerun (`prompt`, `input`), codes for retries and failures."""
    was: str = ""
    """The key this row had before a rename."""
    same_as: str = ""
    """Another key that wants the same request."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose destinations are written, so that objects and tables of others stay as they are."""

    lineage: str = ""
    written: frozenset[str] = frozenset()
    """Destinations that this state wrote before."""
    takes_over: bool = False
    """Whether those of others may be replaced."""

    def may_replace(self, path: str, lineage: str) -> bool:
        """Whether what lies at a destination and says that it is of this lineage (empty: nobody's) may go."""
        ours = lineage == self.lineage or (not lineage and path in self.written)
        return ours or self.takes_over


NOBODY = Owner()
"""For files, which carry no owner."""
ALTERED = ("", 0)
"""What is seen of a destination that does not hold what it says of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What the destinations were written from, and what was written."""

    rows: str
    """The rows snapshot."""
    outcome_count: int
    """How many outcome segments there were."""
    judge: str
    """Digest of everything that turns a stored response into a record."""
    files: Mapping[str, tuple[str, int]]
    """Destination path as in the spec -> (SHA-256 hex, byte size)."""


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """The state a plan was made from; equal bases give equal plans for equal inputs."""

    lineage: str = ""
    serial: int = 0
    attempts: str = ""
    """Digest of every attempt and its state."""
    rows: str = ""
    outcome_count: int = 0
    export: Export | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an apply will do, and why. What is printed is what is executed."""

    basis: Basis
    spec_digest: str
    judge_digest: str
    components_id: str
    components: Mapping[str, str]
    row_count: int
    counts: Mapping[Action, int]
    reasons: Mapping[tuple[Action, tuple[str, ...]], int]
    """How many rows share an action and its reasons."""
    samples: Mapping[Action, tuple[Change, ...]]
    failed: Mapping[str, int]
    """Rows that failed for good, per outcome."""
    shards: tuple[PlannedShard, ...]
    rows_path: Path | None
    """SQLite file with every row and change; None where all rows are those of the snapshot."""
    reexport: tuple[str, ...]
    """Why the destinations have to be written again though no row changes; empty where not."""
    live_tokens: frozenset[str]
    """Live attempts that hold a wanted request."""
    superseded_count: int
    """Requests in flight that no row wants any more."""
    refusals: tuple[str, ...]
    """Guards that stop this plan, as sentences."""
    prior_row_count: int
    plan_id: str

    @property
    def request_count(self) -> int:
        """Requests to send."""
        return sum(shard.request_count for shard in self.shards)

    @property
    def byte_count(self) -> int:
        """Bytes to upload."""
        return sum(shard.byte_count for shard in self.shards)

    @property
    def has_changes(self) -> bool:
        """Whether an apply would do anything."""
        quiet = {Action.UNCHANGED, Action.FAILED}
        moved = any(count for action, count in self.counts.items() if action not in quiet)
        return moved or bool(self.reexport) or bool(self.shards)


# ---------------------------------------------------------------- attempts and jobs


class JobState(enum.StrEnum):
    """gbrun's own view of a remote job."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partially_succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    """One that this version has no name for; only in listings, where most jobs are not ours."""

    @property
    def terminal(self) -> bool:
        """Whether the job will not change any more."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {JobState.SUCCEEDED, JobState.PARTIAL, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the service shows it."""

    job_name: str
    """The service's name, `batches/...`."""
    display_name: str
    """Ours: the token, for jobs of gbrun."""
    state: JobState
    model: str = ""
    output_name: str = ""
    """What holds the responses: a file, or the job itself where they are inline; empty until there is one."""
    error_code: int = 0
    """google.rpc code of a failed job, 0 where there is none."""
    error_message: str = ""
    create_time: str = ""
    end_time: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    """`request`, `successful`, `failed`, `pending` as the service reports them; not to be trusted."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file at the service."""

    name: str
    sha256: str
    """Hex digest of the file's bytes, empty where the service did not say."""


class AttemptState(enum.StrEnum):
    """The life of one submission.

    prepared -> posting -> submitted -> terminal -> collected -> cleaned,
    or an end without a job: void, refused, abandoned.
    """

    PREPARED = "prepared"
    POSTING = "posting"
    SUBMITTED = "submitted"
    TERMINAL = "terminal"
    COLLECTED = "collected"
    CLEANED = "cleaned"
    VOID = "void"
    """Never posted: its owner died, or another run took over."""
    REFUSED = "refused"
    """The service refused the create call, or the job failed before it ran a single row."""
    ABANDONED = "abandoned"
    """Posted, and no job was found for it."""

    @property
    def live(self) -> bool:
        """Whether money may still be at stake: a job exists or may exist, its output not yet stored."""
        return self in _LIVE


_LIVE = frozenset(
    {AttemptState.PREPARED, AttemptState.POSTING, AttemptState.SUBMITTED, AttemptState.TERMINAL}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One submission of one shard, named by its token."""

    token: str
    shard_id: str
    number: int
    state: AttemptState
    model: str
    request_count: int
    byte_count: int
    created_at: float
    task: str = "generate_content"
    upload_name: str = ""
    posted_at: float = 0.0
    """When this state made the job, or tried to; 0 for a job of another state that was imported."""
    deferred_until: float = 0.0
    """Not to be posted again before; 0 where the service did not push back."""
    deferrals: int = 0
    job_name: str = ""
    job_state: JobState | None = None
    output_name: str = ""
    adopted: bool = False
    clean_listings: int = 0
    """Full listings, since the settle time, that did not show the token."""
    error: str = ""
    error_code: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Requests per outcome, once collected."""
    strays: Mapping[str, int] = field(default_factory=dict)
    """Lines that answered nothing that was asked: `null`, `duplicate`, `extra`, ..."""


# ---------------------------------------------------------------- the state's root


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The root of the state: small, and the only part that is replaced at every step."""

    lineage: str
    """32 hex digits, drawn once when the state was created."""
    serial: int
    name: str
    env: str | None
    spec_digest: str
    principal: str
    rows: str = ""
    """Name of the newest rows snapshot, empty before the first finished apply."""
    outcomes: tuple[str, ...] = ()
    """Names of the outcome segments, oldest first."""
    export: Export | None = None
    last_apply_at: float = 0.0
