"""The state's root and its attempts as bytes, and back. Pure.

Every file carries a digest of its own content, so that a truncated or edited one is refused
instead of being believed. `VERSION` rises when the meaning of a file changes; older versions
are upgraded while reading, newer ones are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import orjson

from runner.errors import StateUnreadable
from runner.model import Attempt, AttemptState, Export, JobState, State

VERSION = 1


def dump_state(state: State) -> bytes:
    """The root as indented JSON with its version and digest."""
    return _dump("state", asdict(state))


def load_state(data: bytes, name: str) -> State:
    """The root. Raises StateUnreadable naming `name` and what is wrong with it."""
    body = _load("state", data, name)
    try:
        export = body.pop("export")
        files = export and {path: (sha, size) for path, (sha, size) in export.pop("files").items()}
        return State(
            **_known(State, {**body, "outcomes": tuple(body["outcomes"])}, {"export"}),
            export=Export(**export, files=files) if export else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateUnreadable(f"{name} is not a state of gbrun: {error}") from error


class Moved(NamedTuple):
    """What stands in the place of a root that was moved."""

    to: str
    """Where the state is now, for people."""
    lineage: str
    serial: int
    """Of the root when it was moved."""


def dump_moved(moved: Moved) -> bytes:
    """The note in the form of a root: whoever takes it for one refuses it."""
    return _dump("moved", moved._asdict())


def load_moved(data: bytes, name: str) -> Moved | None:
    """The note, None for anything else. Raises StateUnreadable for one that was edited."""
    if b'"moved"' not in data:
        return None
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or body.get("kind") != "moved":
        return None
    try:
        return Moved(**_load("moved", data, name))
    except TypeError as error:
        raise StateUnreadable(f"{name} is not a note of gbrun: {error}") from error


def dump_attempt(attempt: Attempt) -> bytes:
    """An attempt as indented JSON with its version and digest."""
    body = asdict(attempt)
    if attempt.task == "generate_content":
        # A field of a later version: where it says nothing new, earlier ones still read the file.
        del body["task"]
    return _dump("attempt", body)


def load_attempt(data: bytes, name: str) -> Attempt:
    """An attempt. Raises StateUnreadable naming `name` and what is wrong with it."""
    body = _load("attempt", data, name)
    try:
        body["state"] = AttemptState(body["state"])
        body["job_state"] = JobState(body["job_state"]) if body["job_state"] else None
        return Attempt(**_known(Attempt, body, set()))
    except (KeyError, TypeError, ValueError) as error:
        raise StateUnreadable(f"{name} is not an attempt of gbrun: {error}") from error


def token(lineage: str, shard_id: str, number: int) -> str:
    """The name of one submission: `gb1-<lineage8>-<shard_id16>-a<N>`, at most 40 characters."""
    return f"gb1-{lineage[:8]}-{shard_id[:16]}-a{number}"


class TokenParts(NamedTuple):
    """What a token says: the beginnings of lineage and shard id, and the number of the attempt."""

    lineage: str
    shard: str
    number: int


def parse_token(text: str) -> TokenParts | None:
    """The parts of a token, None for a text that is none."""
    match = re.fullmatch(r"gb1-([0-9a-f]{8})-([0-9a-f]{16})-a([1-9][0-9]{0,5})", text)
    return TokenParts(match[1], match[2], int(match[3])) if match else None


def _dump(kind: str, body: Mapping[str, Any]) -> bytes:
    content = {"version": VERSION, "kind": kind, **body}
    return orjson.dumps({**content, "digest": _digest(content)}, option=orjson.OPT_INDENT_2) + b"\n"


def _load(kind: str, data: bytes, name: str) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StateUnreadable(f"{name} is truncated or not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("kind") != kind:
        raise StateUnreadable(f"{name} is not gbrun's {kind} file")
    version = body.get("version")
    if version != VERSION:
        raise StateUnreadable(
            f"{name} has format version {version!r}; this gbrun reads version {VERSION}",
            hint="use the gbrun that wrote it, or a newer one",
        )
    if body.pop("digest", None) != _digest(body):
        raise StateUnreadable(f"{name} was edited or damaged: its digest does not match its content")
    del body["version"], body["kind"]
    return body


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _known(type_: type, body: Mapping[str, Any], apart: set[str]) -> dict[str, Any]:
    names = {field.name for field in fields(type_)} - apart
    unknown = set(body) - names - apart
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    return {name: body[name] for name in names if name in body}
