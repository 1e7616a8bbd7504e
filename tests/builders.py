"""Values to test with: each builder gives a sound default, and takes what matters as arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from runner import plan, records, rowtable
from runner.blobs.memory import MemoryBlobs
from runner.index import Index
from runner.model import (
    Attempt,
    AttemptState,
    BadRow,
    Basis,
    Batch,
    Entry,
    Export,
    Job,
    JobState,
    Outcome,
    Plan,
    Row,
    State,
    Stored,
)
from runner.parts import dump_outcome
from runner.render import Renderer
from runner.specmodel import BackendSpec, Destination, FilesSource, ShardLimits, Spec, Template
from runner.store import Store

LINEAGE = "0123456789abcdef0123456789abcdef"
FOLDER = Path("/nowhere/specs")


def make_template(text: str = "Sort: {{ input.text }}", path: str = "spec.yaml", line: int = 7) -> Template:
    return Template(text=text, path=path, line=line)


def make_spec(folder: Path = FOLDER, **changes: Any) -> Spec:
    """A spec in `folder`; texts under `prompt` and `system_instruction` become templates."""
    for name in ("prompt", "system_instruction"):
        if isinstance(changes.get(name), str):
            changes[name] = make_template(changes[name])
    values: dict[str, Any] = {
        "path": folder / "spec.yaml",
        "name": "tickets",
        "backend": BackendSpec(type="local", paid=False),
        "state": folder / ".gbrun" / "tickets",
        "inputs": (FilesSource(glob="**/*.txt"),),
        "model": "gemini-3.5-flash-lite",
        "prompt": make_template(),
        "destinations": (Destination(path="out.jsonl"),),
        "shards": ShardLimits(max_requests=1000, max_bytes=1_000_000),
    }
    return Spec(**{**values, **changes})


def make_row(key: str = "a.txt", text: str = "hello", **fields: Any) -> Row:
    found = {"text": text, "path": key, "name": key.rsplit("/", 1)[-1], **fields}
    return Row(key, found, hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest())


def make_attempt(token: str = "gb1-01234567-0123456789abcdef-a1", **changes: Any) -> Attempt:
    values: dict[str, Any] = {
        "token": token,
        "shard_id": "0123456789abcdef" * 4,
        "number": 1,
        "state": AttemptState.SUBMITTED,
        "model": "gemini-3.5-flash-lite",
        "request_count": 2,
        "byte_count": 100,
        "created_at": 1000.0,
    }
    return Attempt(**{**values, **changes})


def make_job(job_name: str = "batches/1", state: JobState = JobState.RUNNING, **changes: Any) -> Job:
    return Job(job_name=job_name, display_name="gb1-01234567-0123456789abcdef-a1", state=state, **changes)


def make_stored(request_id: str = "r1", outcome: Outcome = Outcome.OK, **changes: Any) -> Stored:
    return Stored(**{"request_id": request_id, "outcome": outcome, "token": "t-a1", "jobs": 1, **changes})


class Outcomes(dict[str, Stored]):
    """Outcomes by request id, as a collector asks for them."""

    def stored(self, request_id: str) -> Stored | None:
        return self.get(request_id)

    def stored_among(self, request_ids: Sequence[str]) -> dict[str, Stored]:
        return {found: self[found] for found in request_ids if found in self}

    def answered(self, request_id: str) -> Stored | None:
        found = self.get(request_id)
        return self.get(found.remedied_by, found) if found else None

    def remedied(self, request_id: str) -> Stored | None:
        return next((one for one in self.values() if one.remedied_by == request_id), None)


def make_state(**changes: Any) -> State:
    values: dict[str, Any] = {
        "lineage": LINEAGE,
        "serial": 1,
        "name": "tickets",
        "env": None,
        "spec_digest": "5" * 16,
        "principal": "local",
    }
    return State(**{**values, **changes})


# ---------------------------------------------------------------- lines as the service writes them


def response_body(*parts: Any, finish: str | None = "STOP", **extra: Any) -> dict[str, Any]:
    """The `response` of an output line; texts become text parts."""
    candidate: dict[str, Any] = {
        "content": {"parts": [{"text": p} if isinstance(p, str) else p for p in parts], "role": "model"},
        "index": 0,
    }
    if finish is not None:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": 11,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 19,
        },
        "modelVersion": "gemini-3.5-flash-lite",
        "responseId": "abc",
        **extra,
    }


def ok_line(key: str, *parts: Any, **extra: Any) -> bytes:
    return orjson.dumps({"key": key, "response": response_body(*parts, **extra)})


def error_line(key: str, code: int, message: str = "it broke") -> bytes:
    return orjson.dumps({"key": key, "error": {"code": code, "message": message}})


# ---------------------------------------------------------------- a state that plans are made from


def _found(
    keys: list[str], signatures: Mapping[str, tuple[int, int, int, int]], batch: int
) -> Iterator[Entry | Batch]:
    if not batch:
        yield from (Entry(key, 0, key, signatures.get(key)) for key in keys)
        return
    for at in range(0, len(keys), batch):
        some = keys[at : at + batch]
        signed = [signatures.get(key) for key in some]
        yield Batch(source=0, folder="", names=some, keys=some, signatures=signed)


class Past:
    """A state in memory: plans documents against it, and stores what an apply would leave behind."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.store = Store(MemoryBlobs(), None, "state")
        self.index = Index(self.store)
        self.state: State | None = None
        self.attempts: list[Attempt] = []
        self.read_keys: list[str] = []
        self._plans = 0

    def close(self) -> None:
        self.index.close()

    def plan(
        self,
        documents: Mapping[str, str | BadRow],
        spec: Spec | None = None,
        *,
        signatures: Mapping[str, tuple[int, int, int, int]] | None = None,
        keys: Iterable[str] | None = None,
        destinations: Mapping[str, tuple[str, int] | None] | None = None,
        trusted_before_ns: int = 1 << 60,
        selection: plan.Selection | None = None,
        batch: int = 0,
    ) -> Plan:
        """The plan for documents by key, in the order given; one by one, or so many at once."""
        self.index.sync(self.state, self.attempts)
        self._plans += 1
        workspace = self.workspace / f"plan-{self._plans}"
        workspace.mkdir(parents=True)
        state = self.state
        signatures = signatures or {}
        self.read_keys = []

        def read(entry: Entry) -> Row | BadRow:
            self.read_keys.append(entry.key)
            found = documents[entry.key]
            return make_row(entry.key, found) if isinstance(found, str) else found

        lies: Mapping[str, tuple[str, int] | None] = state.export.files if state and state.export else {}
        made, seen = plan.make(
            spec or make_spec(),
            basis=Basis(
                lineage=state.lineage,
                serial=state.serial,
                attempts=" ".join(f"{a.token}:{a.state}" for a in self.attempts),
                rows=state.rows,
                outcome_count=len(state.outcomes),
                export=state.export,
            )
            if state
            else Basis(),
            spec_digest="5" * 16,
            judge_digest="judge",
            entries=_found(list(keys or documents), signatures, batch),
            read=read,
            renderer=Renderer(spec or make_spec()),
            history=self.index,
            workspace=workspace,
            destinations=lies if destinations is None else destinations,
            trusted_before_ns=trusted_before_ns,
            selection=selection or plan.Selection(),
        )
        self.index.remember(seen)
        return made

    def store_outcomes(self, outcomes: Iterable[Stored]) -> None:
        """Add an outcomes segment to the state."""
        state = self.state or make_state(serial=0)
        name = self.store.put_outcomes("t-a1", {"outcomes": {}}, map(dump_outcome, outcomes))
        self.state = replace(state, serial=state.serial + 1, outcomes=(*state.outcomes, name))

    def launch(self, made: Plan) -> list[Attempt]:
        """Put every shard of a plan in flight."""
        state = self.state = self.state or make_state(serial=1)
        launched = []
        for number, shard in enumerate(made.shards):
            self.store.put_shard(shard.shard_id, shard.path)
            token = f"gb1-{state.lineage[:8]}-{shard.shard_id[:16]}-a{number + 1}"
            launched.append(
                make_attempt(token, shard_id=shard.shard_id, request_count=shard.request_count, number=1)
            )
        self.attempts += launched
        return launched

    def finish(self, made: Plan, outcomes: Mapping[str, Stored] | None = None) -> None:
        """Answer what the plan sends (ok unless said otherwise), write its rows and its export."""
        given = outcomes or {}
        self.store_outcomes(given.get(i) or make_stored(i) for i in request_ids(made))
        self.index.sync(self.state, self.attempts)
        rows = list(spooled(made)) if made.rows_path else list(self.index.rows())
        settled = [r._replace(outcome=self._row_class(r)) for r in rows]
        components: dict[str, Any] = dict(self.index.components)
        components[made.components_id] = {"spec": made.spec_digest, "digests": dict(made.components)}

        def lines() -> Iterator[bytes]:
            yield rowtable.header(components)
            yield from (r.line() for r in sorted(settled, key=lambda r: r.key))

        assert self.state is not None
        name = self.store.put_rows(lines())
        done = Export(
            rows=name,
            outcome_count=len(self.state.outcomes),
            judge="judge",
            files={"out.jsonl": ("d" * 64, 10)},
        )
        self.state = replace(self.state, serial=self.state.serial + 1, rows=name, export=done)
        if made.rows_path is not None:
            db = rowtable.connect(made.rows_path)
            rowtable.settle(db, [(row.outcome, 1) for row in settled])
            db.close()
            self.index.absorb(name, components, made.rows_path)

    def _row_class(self, row: rowtable.KnownRow) -> str:
        if row.problem:
            return Outcome.BAD_INPUT
        classes = [self.index.outcome(request_id) for request_id in row.ids]
        return records.row_class(classes, len(classes))


def request_ids(made: Plan) -> list[str]:
    """The requests that a plan sends, in the order in which they lie in its shards."""
    lines = [line for shard in made.shards for line in shard.path.read_bytes().splitlines()]
    return [orjson.loads(line)["key"] for line in lines]


def spooled(made: Plan) -> Iterator[rowtable.KnownRow]:
    """The rows of a plan that spooled any."""
    assert made.rows_path is not None
    db = rowtable.connect(made.rows_path)
    try:
        yield from rowtable.rows(db)
    finally:
        db.close()


def changes(made: Plan) -> list[tuple[Any, ...]]:
    """A plan's changes as (action, key, reasons, was or same_as), by ordinal."""
    if made.rows_path is None:
        return []
    db = rowtable.connect(made.rows_path)
    try:
        return [(c.action, c.key, c.reasons, c.was or c.same_as) for c in rowtable.changes(db)]
    finally:
        db.close()
