"""What a spec says, as frozen values. Pure: no effects, nothing of Google's."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from runner import bqtable, gcsuri
from runner.gcsuri import GcsUri
from runner.model import Json

if TYPE_CHECKING:
    from runner.marks import Mark, Place


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A Jinja template and the place where the user wrote it."""

    text: str
    path: str
    """File that holds the text, relative to the spec's folder, with `/`."""
    line: int
    """1-based line of `path` on which the first line of `text` stands."""
    column: int = 1
    """1-based column of `path` at which each line of `text` begins."""


class FilesSource(msgspec.Struct, frozen=True, kw_only=True):
    """Files found by a glob below the spec's folder."""

    glob: str
    exclude: tuple[str, ...] = ()
    encoding: str = "utf-8"
    on_bad_row: str = "fail"
    """`fail` stops the plan, `skip` reports the row as `bad_input`."""


class BigQuerySource(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a table in BigQuery, or of what a query gives; one of the two is empty."""

    id: Template
    """Gives the key of a row."""
    table: str = ""
    """`project.dataset.table`."""
    query: str = ""
    project: str | None = None
    """Where the reading is billed; None for the table's own, or the environment's."""
    on_bad_row: str = "fail"


Source = FilesSource | BigQuerySource


class BackendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which service, and how patiently to talk to it."""

    type: str
    """`local`, `gemini` or `vertex`."""
    like: str = "gemini"
    """`local` only: the service that the emulator stands for, `gemini` or `vertex`."""
    project: str | None = None
    """`vertex` only, as are the two below; None where nothing says so yet."""
    location: str | None = None
    """A region, a multi-region or `global`."""
    staging_uri: str | None = None
    """`gs://bucket/folder` for what is uploaded and for what comes back."""
    mode: str = "batch"
    """`batch` or `direct`: jobs at the service, or synchronous calls."""
    base_url: str | None = None
    api_version: str = "v1beta"
    poll_interval_s: float | None = None
    """None: the backend's own default."""
    request_timeout_s: float = 120.0
    settle_s: float = 120.0
    stall_after_s: float = 86400.0
    faults: str | None = None
    """`local` only: absolute path of a fault file for the emulator."""
    paid: bool = True
    """False for `local` and for a loopback endpoint: no money can be spent there."""

    @property
    def protocol(self) -> str:
        """How requests are written and jobs are made: `gemini` or `vertex`."""
        return self.like if self.type == "local" else self.type


class ShardLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one JSONL file may hold."""

    max_requests: int
    max_bytes: int


class Guards(msgspec.Struct, frozen=True, kw_only=True):
    """Rules that stop a run before it spends or removes."""

    min_rows: int = 1
    max_removed_ratio: float = 0.2


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """How many failures are accepted, and how often a request is tried."""

    max_ratio: float = 0.0
    max_attempts: int = 3
    """Finished jobs per request."""
    retry: tuple[str, ...] = ("transient", "missing")
    """Outcome classes that are sent again as they were."""
    remedies: Mapping[str, Mapping[str, Json]] = {}
    """Outcome class -> settings of generation_config to send it again with; `x2` is a factor."""
    repair: bool = False
    """Whether JSON that is not quite JSON is mended by a library."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """How many answers per row, and what becomes of them."""

    count: int = 1
    aggregate: str = "all"
    """`all`, `first`, `majority` or `mean`."""
    min_ok: int | None = None
    """How many must be ok for the row to be, None for all."""

    @property
    def needed(self) -> int:
        """How many must be ok."""
        return self.count if self.min_ok is None else self.min_ok


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of a destination, as the spec names it."""

    name: str
    path: str
    """The JSONPath (RFC 9535) over the record that gives its values."""


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """One file, object or table that the records go to."""

    path: str
    """As written: relative to the spec's folder, or absolute; or `gs://bucket/name`, or
    `bq://project.dataset.table`."""
    include: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    """Empty where the record or its schema says what is written."""

    @property
    def is_table(self) -> bool:
        """Whether it is a table in BigQuery."""
        return self.path.startswith(bqtable.SCHEME)

    @property
    def is_object(self) -> bool:
        """Whether it is an object in Cloud Storage."""
        return self.path.startswith(gcsuri.SCHEME)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine."""
        return not (self.is_table or self.is_object)

    @property
    def suffix(self) -> str:
        """`.jsonl`, `.csv`, `.parquet` or `.sqlite`; empty for a table."""
        return "" if self.is_table else Path(self.path).suffix

    @property
    def errors_path(self) -> str:
        """Where failures go if this is the first destination: beside it, `<stem>.errors.jsonl`, or the
        table `<table>_errors`."""
        if self.is_table:
            return f"{self.path}_errors"
        if self.is_object:
            return f"{self.path.removesuffix(self.suffix)}.errors.jsonl"
        path = Path(self.path)
        return (path.parent / f"{path.stem}.errors.jsonl").as_posix()


DEFAULT_ENV = "default"
"""What `${env}` and `env` in templates are where no environment is chosen."""


class Values(msgspec.Struct, frozen=True):
    """The variables that a spec was loaded with."""

    values: Mapping[str, Json]
    """Those that have a value."""
    declared: frozenset[str]
    sensitive: frozenset[str]
    secrets: frozenset[str]
    """Every text that any source gave for a sensitive variable, also those that another one overrode."""
    secret_lines: frozenset[tuple[str, int]]
    """(file, line) of what was written for a sensitive variable."""


class Origin(msgspec.Struct, frozen=True):
    """Where the values of a loaded spec were written."""

    marks: Mapping[Place, Mark]
    """Also of what stands in other files: the schema's keywords lie below `output_schema`, the texts
    of template files at `prompt.text` and `system_instruction.text`."""
    used: frozenset[str]
    """Variables that the spec itself uses, as `${var.NAME}`."""
    known: Values
    """The variables, with what must be kept out of messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A validated spec: what the user asked for, with defaults filled in.

    `generation_config` and the other request parts keep google-genai's snake_case names.
    """

    path: Path
    """The spec's file, absolute. Never part of an artefact."""
    name: str
    env: str | None = None
    """The chosen environment, None without one."""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    backend: BackendSpec
    state: Path
    """The state folder, absolute; what this machine keeps of a state that lies at `state_uri`."""
    state_uri: GcsUri | None = None
    """Where the state lies, None where it lies in `state`."""
    inputs: tuple[Source, ...]
    allow_outside: bool = False
    task: str = "generate_content"
    model: str
    prompt: Template
    system_instruction: Template | None = None
    generation_config: Mapping[str, Json] = field(default_factory=dict)
    embed_content_config: Mapping[str, Json] = field(default_factory=dict)
    """Without `title` and `normalize`."""
    dimensions: int | None = None
    """Of the vectors that are expected; None where neither the spec nor what is known of the model says."""
    title: Template | None = None
    """Title of the document to embed."""
    normalize: bool = False
    """Whether vectors are scaled to length 1."""
    safety_settings: tuple[Json, ...] = ()
    tools: tuple[Json, ...] = ()
    tool_config: Json = None
    cached_content: str | None = None
    extra_body: Mapping[str, Json] = field(default_factory=dict)
    variables: Mapping[str, Json] = field(default_factory=dict)
    """`var.NAME` of the templates, resolved."""
    sensitive: frozenset[str] = frozenset()
    """Names of variables whose values are never printed or stored."""
    output_schema: Mapping[str, Json] | None = None
    samples: Samples = field(default_factory=Samples)
    destinations: tuple[Destination, ...]
    shards: ShardLimits
    max_jobs: int = 10
    max_enqueued_tokens: int | None = None
    """Estimated input tokens of all jobs in flight, None for no limit."""
    guards: Guards = field(default_factory=Guards)
    failures: Failures = field(default_factory=Failures)
    cleanup: str = "inputs"
    """`inputs`, `all` or `keep`."""
    prevent_destroy: bool = False
    """Whether a state that this spec was applied to is not to be destroyed."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """1-based line of each top-level key in `path`, for the plan's view."""
    origin: Origin | None = field(default=None, compare=False, repr=False)
    """Where every value was written, for lints; None in a spec that was not loaded from a file."""
    named: str = field(default="", compare=False)
    """The spec's file as the user named it; empty stands for its bare name."""

    @property
    def invocation(self) -> str:
        """What follows `gbrun COMMAND` to mean this spec, from where the user is."""
        words = [self.named or self.path.name, *(("--env", self.env) if self.env else ())]
        return shlex.join(words)

    def shown(self, path: str) -> str:
        """A path relative to the spec's folder, as it is from where the user is."""
        return posixpath.normpath(PurePosixPath(self.named).parent / path)

    @property
    def folder(self) -> Path:
        """The folder that relative paths are relative to."""
        return self.path.parent
