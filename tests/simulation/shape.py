"""Small jobs to live through: documents in memory, a spec for them, and the answers of the model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.model import Entry, Row
from runner.render import Renderer
from runner.specmodel import (
    BackendSpec,
    Destination,
    Failures,
    FilesSource,
    ShardLimits,
    Spec,
    Template,
)

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ENOUGH_TOKENS = 200
RECORDS = "records.jsonl"
ERRORS = "records.errors.jsonl"
SPEC_DIGEST = "5" * 16
JUDGE_DIGEST = "7" * 16


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the requests and the records of a life."""

    shards: int
    per_shard: int
    schema: bool
    identical: bool
    """Whether some documents stand there twice."""
    remedied: bool = False
    """Whether some answers are cut until more tokens are allowed, and the spec has a remedy for it."""
    vertex: bool = False
    """Whether the service is Vertex, and not the Developer API."""

    def texts(self) -> Mapping[str, str]:
        """Key -> text, in input order."""
        return _texts(self)

    def entries(self) -> Iterator[Entry]:
        """The inputs, never known by their looks."""
        return (Entry(key, 0, key) for key in self.texts())

    def read(self, entry: Entry) -> Row:
        """One input."""
        return _row(entry.key, self.texts()[entry.key])


@functools.cache
def _texts(shape: Shape) -> Mapping[str, str]:
    count = shape.shards * shape.per_shard
    found = {f"{number:02}.txt": f"document {number}" for number in range(count)}
    if shape.identical:
        # Between the others, so that a shard's order is not the order of the rows.
        found |= {f"{number:02}b.txt": f"document {number}" for number in range(0, count, 3)}
    return dict(sorted(found.items()))


@functools.cache
def _row(key: str, text: str) -> Row:
    return Row(key, {"text": text, "path": key, "name": key}, hashlib.sha256(text.encode()).hexdigest())


def make_spec(folder: Path, shape: Shape, *, max_attempts: int, max_jobs: int, cleanup: str) -> Spec:
    """The spec of a life; its destination lies in `folder`."""
    return Spec(
        path=folder / "spec.yaml",
        name="life",
        backend=BackendSpec(type="local", like="vertex" if shape.vertex else "gemini", paid=False),
        state=folder / "state",
        inputs=(FilesSource(glob="*.txt"),),
        model="model",
        prompt=Template(text="Read: {{ input.text }}", path="spec.yaml", line=1),
        output_schema=SCHEMA if shape.schema else None,
        destinations=(Destination(path=RECORDS),),
        shards=ShardLimits(max_requests=shape.per_shard, max_bytes=1_000_000),
        failures=Failures(
            max_ratio=1.0,
            max_attempts=3 if shape.remedied else max_attempts,
            remedies={"truncated": {"max_output_tokens": "x2"}} if shape.remedied else {},
        ),
        generation_config={"max_output_tokens": ENOUGH_TOKENS // 2} if shape.remedied else {},
        max_jobs=max_jobs,
        cleanup=cleanup,
    )


@functools.cache
def renderer(shape: Shape) -> Renderer:
    """The renderer; pure, so lives share it."""
    return Renderer(make_spec(Path("/"), shape, max_attempts=1, max_jobs=1, cleanup=""))


def is_cut(line: Mapping[str, Any]) -> bool:
    """Whether the answer to a request ends at its limit of tokens."""
    request = line["request"]
    allowed = request.get("generationConfig", {}).get("maxOutputTokens", ENOUGH_TOKENS)
    return bool(allowed < ENOUGH_TOKENS and _number(request) % 3 == 0)


def _number(request: Mapping[str, Any]) -> int:
    text = request["contents"][0]["parts"][0]["text"]
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)


def answer(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the model answers: told by the document alone, and another one for every document."""
    request = line["request"]
    number = _number(request)
    has_schema = "responseSchema" in request.get("generationConfig", {})
    said = json.dumps({"n": number}) if has_schema else f"it says {number}"
    reason = "MAX_TOKENS" if is_cut(line) else "STOP"
    return {
        "response": {
            "candidates": [{"content": {"parts": [{"text": said}], "role": "model"}, "finishReason": reason}],
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
            "modelVersion": "model-1",
        }
    }
