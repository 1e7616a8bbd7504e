"""Declared misbehaviour: what a fault file may say, and which request, job or row it hits.

A fault file is YAML or JSON:

    seed: 7                               # which rows a ratio hits; default 0
    timing: {pending_s: 0.05, running_s: 0, file_ttl_s: 172800}
    http: [{on: create, kind: lost_reply, times: 1}]
    jobs: [{kind: expired, every: 3}]
    rows: [{kind: row_error, code: 13, ratio: 0.1, first_attempts: 1}]

`http` rules count the requests that `on` names: create, upload, get, list, download, delete, cancel,
generate (every synchronous call), storage (every call of Cloud Storage), storage_write (those that send
an object), storage_read (downloads of objects). `jobs` rules count created jobs. Of the events a rule
counts, `skip` lets the first ones pass, `every` takes each n-th after that (default 1), `times` is how
often it strikes at all. Counts are kept in the emulator's folder, so a restart does not begin again;
they belong to the rule's text.

| http kind | what happens | options |
|---|---|---|
| lost_reply | the work is done, the connection is dropped without an answer | |
| reset | the connection is dropped before the work | |
| http_429, http_5xx | refused before the work; an upload at its start | status (http_5xx: 503) |
| slow | answered late | delay_s |
| cut_body | half of a download, then the connection drops | |
| no_file | an upload's last answer lacks `file` | |

| jobs kind | what happens | options |
|---|---|---|
| failed | ends FAILED with a google.rpc code | code (13), message, partial |
| expired | ends EXPIRED | partial |
| cancelled | ends CANCELLED, as if someone else had asked | partial |
| partially_succeeded | ends PARTIALLY_SUCCEEDED | partial |
| stuck_pending | stays PENDING | seconds |

`partial` is the share of rows, from the first on, whose answers are there all the same (default 0:
no output at all).

| rows kind | what comes back | options |
|---|---|---|
| row_error | `{"error": {"code", "message"}}` | code (13), message |
| missing | no line | |
| duplicate | the line twice | |
| null_line | `null` in its place | |
| extra_line | the line, and one with a key that nobody asked for | |
| truncated | half of the text, MAX_TOKENS | |
| max_tokens_no_parts | MAX_TOKENS without parts | |
| fenced, prose | the text in a ```json fence, or with sentences around it | |
| nearly_json | an object or array that no strict reader takes | flaw |
| blocked_prompt | promptFeedback and no candidates | |
| blocked_safety, recitation | SAFETY or RECITATION without content | |
| empty_stop | STOP without parts | |
| thought_parts | a thought before the answer | |
| invalid_schema | JSON that violates the schema | |
| unknown_fields | fields that no client knows yet | |
| empty_embedding | an embedding without values | |
| short_embedding | an embedding with half of its values | |
| shuffled | all lines in another order | times, every, skip: of jobs |
| half_line | the file ends in the middle of its last line | times, every, skip: of jobs |

`flaw` is trailing_comma, single_quotes, comments, unquoted_keys or python (its literals and quotes);
without it the answer's text decides. Text without a schema, and a single value, stay as they are.

A row rule has at most one selector: `ratio` (by seed and request content alone), `every` (with
`skip`; by place in the file), `keys` or `match` (text that the prompt contains); without one it hits
every row. `first_attempts: n` spares a request once n jobs with that request were hit. The first
rule that hits a row wins. Kinds that change lines rather than answers leave inline jobs alone; kinds
that change text leave embeddings alone, and the other way round. A synchronous call is hit as a row
would be, unless its rule is about lines, keys or places; row_error answers it with the HTTP status of
its code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from runner.errors import UsageInvalid

Count = Annotated[int, Meta(ge=1)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=604800)]
Code = Annotated[int, Meta(ge=1, le=16)]
Tally = Callable[[str], int]
"""Counts an event under a name and says how many there were before."""

FILE_KINDS = frozenset({"shuffled", "half_line"})
LINE_KINDS = FILE_KINDS | {"missing", "duplicate", "null_line", "extra_line"}
_EMBEDDING_KINDS = frozenset({"empty_embedding", "short_embedding"})
_ENDING_EARLY = ("failed", "expired", "cancelled", "partially_succeeded")
_KINDS_OF_ONE = {"cut_body": ("download", "storage_read"), "no_file": ("upload",)}
_KINDS_OF_BOTH = LINE_KINDS | {"row_error", "unknown_fields"}
_R = TypeVar("_R", bound="_Counted")
_SELECTORS = ("ratio", "every", "keys", "match")


class _Counted(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    times: Count | None = None
    every: Count = 1
    skip: Annotated[int, Meta(ge=0)] = 0

    def strikes(self, before: int) -> bool:
        """Whether the rule takes the event that had `before` others ahead of it."""
        turn, rest = divmod(before - self.skip, self.every)
        return turn >= 0 and rest == 0 and (self.times is None or turn < self.times)


class HttpRule(_Counted, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of `http`."""

    on: Literal[
        "create", "upload", "get", "list", "download", "delete", "cancel", "generate", "storage",
        "storage_write", "storage_read",
    ]  # fmt: skip
    kind: Literal["lost_reply", "reset", "http_429", "http_5xx", "slow", "cut_body", "no_file"]
    status: Annotated[int, Meta(ge=500, le=599)] | None = None
    delay_s: Seconds | None = None


class JobRule(_Counted, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of `jobs`."""

    kind: Literal["failed", "expired", "cancelled", "partially_succeeded", "stuck_pending"]
    code: Code | None = None
    message: str | None = None
    partial: Ratio | None = None
    seconds: Seconds | None = None


class RowRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of `rows`."""

    kind: Literal[
        "row_error", "missing", "duplicate", "null_line", "extra_line", "truncated", "max_tokens_no_parts",
        "fenced", "prose", "nearly_json", "blocked_prompt", "blocked_safety", "recitation", "empty_stop",
        "thought_parts", "invalid_schema", "unknown_fields", "empty_embedding", "short_embedding",
        "shuffled", "half_line",
    ]  # fmt: skip
    ratio: Ratio | None = None
    every: Count | None = None
    skip: Annotated[int, Meta(ge=0)] = 0
    keys: list[str] | None = None
    match: str | None = None
    first_attempts: Count | None = None
    code: Code | None = None
    message: str | None = None
    flaw: Literal["trailing_comma", "single_quotes", "comments", "unquoted_keys", "python"] | None = None
    times: Count | None = None

    def takes(self, seed: int, index: int, key: str | None, mark: bytes, text: str) -> bool:
        """Whether the rule's selector takes a row; `mark` is the request's digest."""
        if self.ratio is not None:
            chance = hashlib.blake2b(f"{seed} {self.kind} {self.match}".encode() + mark, digest_size=6)
            return int.from_bytes(chance.digest(), "big") < self.ratio * (1 << 48)
        if self.every is not None:
            return index >= self.skip and (index - self.skip) % self.every == 0
        if self.keys is not None:
            return key in self.keys
        return self.match is None or self.match in text


class Timing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long things take, in seconds."""

    pending_s: Seconds = 0.05
    """From create to RUNNING."""
    running_s: Seconds = 0.0
    """RUNNING lasts at least this long, and as long as the work takes."""
    file_ttl_s: Annotated[float, Meta(gt=0)] = 172800.0
    """Life of an upload. Source: https://ai.google.dev/gemini-api/docs/files, 48 hours."""


class FaultPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole fault file."""

    seed: int = 0
    timing: Timing = Timing()
    http: list[HttpRule] = []
    jobs: list[JobRule] = []
    rows: list[RowRule] = []

    def strike_http(self, operation: str, tally: Tally, *, uploading: str = "") -> HttpRule | None:
        """Count a request for every rule that concerns it; the first rule that strikes.

        An upload has two moments, `start` (where it is refused) and `end` (where everything else
        befalls it), so that one upload counts once for each rule.
        """

        def concerns(rule: HttpRule) -> bool:
            refusal = rule.kind in ("http_429", "http_5xx")
            return rule.on == operation and (not uploading or refusal == (uploading == "start"))

        return _first(self.http, concerns, tally)

    def strike_job(self, tally: Tally) -> JobRule | None:
        """Count a job for every rule; the first rule that strikes."""
        return _first(self.jobs, lambda rule: True, tally)

    def rows_for_job(self, tally: Tally, *, inline: bool, embeds: bool) -> list[RowRule]:
        """The row rules that hold for a new job; rules on whole files are counted and decided here."""
        chosen = []
        for rule in self.rows:
            if (inline and rule.kind in LINE_KINDS) or not _fits(rule, embeds=embeds):
                continue
            if rule.kind in FILE_KINDS:
                counted = _Counted(times=rule.times, every=rule.every or 1, skip=rule.skip)
                if not counted.strikes(tally(_name(rule))):
                    continue
            chosen.append(rule)
        return chosen

    def rows_for_call(self, *, embeds: bool) -> list[RowRule]:
        """The row rules that hold for a synchronous call, which has no key and no place in a file."""
        return [
            rule
            for rule in self.rows
            if rule.kind not in LINE_KINDS and _fits(rule, embeds=embeds)
            if rule.every is None and rule.keys is None
        ]


def _fits(rule: RowRule, *, embeds: bool) -> bool:
    return rule.kind in _KINDS_OF_BOTH or (rule.kind in _EMBEDDING_KINDS) == embeds


def rule_name(rule: RowRule) -> str:
    """What the attempts of a row rule are counted under."""
    return _name(rule)


def load(path: Path) -> FaultPlan:
    """Read and check a fault file.

    Raises:
        UsageInvalid: unreadable, or not a fault file; the message names the file and the key.
    """
    # Imported here: most runs have no fault file, and start faster without it.
    import yaml

    try:
        # The base loader keeps every scalar a string: the key `on` would become a boolean otherwise.
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UsageInvalid(f"cannot read the fault file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageInvalid(f"the fault file {path} is not YAML: {error}") from error
    try:
        if not isinstance(document, dict | None) and document != "":
            raise UsageInvalid(f"{path}: the top level must be a mapping")
        plan = msgspec.convert(document or {}, FaultPlan, strict=False)
    except msgspec.ValidationError as error:
        raise UsageInvalid(f"{path}: {str(error).replace('`$.', '`')}") from error
    for problem in _problems(plan):
        raise UsageInvalid(f"{path}: {problem}")
    return plan


def _problems(plan: FaultPlan) -> list[str]:
    """What the types cannot say, such as an option that its kind does not have."""
    found = []
    for index, http in enumerate(plan.http):
        place = f"http[{index}]"
        found += _only(place, "status", http.status, http.kind, ("http_5xx",))
        found += _only(place, "delay_s", http.delay_s, http.kind, ("slow",))
        if http.kind == "slow" and http.delay_s is None:
            found.append(f"{place}: kind slow needs delay_s")
        for kind, operations in _KINDS_OF_ONE.items():
            if http.kind == kind and http.on not in operations:
                found.append(f"{place}.on: kind {kind} is for {' and '.join(operations)} only")
    for index, job in enumerate(plan.jobs):
        place = f"jobs[{index}]"
        found += _only(place, "code", job.code, job.kind, ("failed",))
        found += _only(place, "message", job.message, job.kind, ("failed",))
        found += _only(place, "partial", job.partial, job.kind, _ENDING_EARLY)
        found += _only(place, "seconds", job.seconds, job.kind, ("stuck_pending",))
        if job.kind == "stuck_pending" and job.seconds is None:
            found.append(f"{place}: kind stuck_pending needs seconds")
    for index, row in enumerate(plan.rows):
        place = f"rows[{index}]"
        found += _only(place, "code", row.code, row.kind, ("row_error",))
        found += _only(place, "message", row.message, row.kind, ("row_error",))
        found += _only(place, "flaw", row.flaw, row.kind, ("nearly_json",))
        given = [name for name in _SELECTORS if getattr(row, name) is not None]
        if row.kind in FILE_KINDS:
            wrong = [name for name in given if name != "every"]
            wrong += ["first_attempts"] if row.first_attempts is not None else []
            found += [f"{place}.{name}: {row.kind} concerns whole files" for name in wrong]
        else:
            if len(given) > 1:
                found.append(f"{place}: give one of {', '.join(given)}")
            if row.times is not None:
                found.append(f"{place}.times: only shuffled and half_line have it; see first_attempts")
            if row.skip and row.every is None:
                found.append(f"{place}.skip: goes with every")
    return found


def _only(place: str, option: str, value: object, kind: str, kinds: tuple[str, ...]) -> list[str]:
    if value is None or kind in kinds:
        return []
    return [f"{place}.{option}: kind {kind} has no {option}"]


def _first(rules: list[_R], concerns: Callable[[_R], bool], tally: Tally) -> _R | None:
    chosen = None
    for rule in rules:
        if concerns(rule) and rule.strikes(tally(_name(rule))) and chosen is None:
            chosen = rule
    return chosen


def _name(rule: Struct) -> str:
    return f"{type(rule).__name__} {msgspec.json.encode(rule).decode()}"
