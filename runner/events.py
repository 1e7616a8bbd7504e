"""Plans and runs as JSON lines for programs. Pure; the schema is schemas/events.v1.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from runner import __version__
from runner.model import Change, Json, Plan

if TYPE_CHECKING:
    from runner.apply import Result
    from runner.run import Event

FORMAT = 1


def version() -> dict[str, Json]:
    """The first line of every stream."""
    return {"type": "version", "format": FORMAT, "gbrun": __version__}


def changes(found: Iterable[Change]) -> Iterator[dict[str, Json]]:
    """One line per row that is not unchanged (or per row, where those are asked for too)."""
    for change in found:
        line: dict[str, Json] = {
            "type": "change",
            "action": str(change.action),
            "key": change.key,
            "request_ids": list(change.request_ids),
            "reasons": list(change.reasons),
        }
        if change.was:
            line["was"] = change.was
        if change.same_as:
            line["same_as"] = change.same_as
        yield line


def plan(made: Plan) -> Iterator[dict[str, Json]]:
    """The lines that follow the changes: re-exports, shards, the summary."""
    for reason in made.reexport:
        yield {"type": "change", "action": "re-export", "key": "", "request_ids": [], "reasons": [reason]}
    for shard in made.shards:
        yield {
            "type": "shard",
            "shard": shard.shard_id,
            "state": "planned",
            "requests": shard.request_count,
            "byte_count": shard.byte_count,
        }
    yield {
        "type": "summary",
        "counts": {str(action): count for action, count in made.counts.items()},
        "requests": made.request_count,
        "shards": len(made.shards),
        "byte_count": made.byte_count,
        "has_changes": made.has_changes,
        "refusals": list(made.refusals),
        "plan_id": made.plan_id,
    }


def event(happened: Event) -> dict[str, Json]:
    """Something that happened to an attempt."""
    return {
        "type": "shard",
        "attempt": happened.token,
        "state": happened.kind,
        "message": happened.text,
        **({"outcomes": dict(happened.data)} if happened.data else {}),
    }


def result(got: Result) -> dict[str, Json]:
    """The last line of an apply: both ledgers."""
    return {
        "type": "summary",
        "complete": got.complete,
        "outcomes": dict(got.rows),
        "sent": dict(got.sent),
        "usage": dict(got.usage),
        "in_flight": got.in_flight,
        "unsent": got.unsent,
        "errors": list(got.errors),
        "files": _files(got.files),
    }


def _files(files: Mapping[str, tuple[str, int]]) -> dict[str, Json]:
    return {path: {"sha256": sha256, "byte_count": size} for path, (sha256, size) in files.items()}
