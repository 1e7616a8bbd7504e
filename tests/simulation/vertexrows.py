"""What comes back of a job on Vertex: rows that echo their requests, in no order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .faults import Faults
from .service import Fate, some
from .shape import answer

_STATUS = {
    3: "Bad Request: " + json.dumps({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}),
    8: "Too Many Requests: "
    + json.dumps({"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}}),
    14: "Service Unavailable",
}
"""google.rpc code -> what a row says of it."""


def rows_of(faults: Faults, lines: Sequence[Mapping[str, Any]], fate: Fate) -> list[tuple[str, bytes]]:
    """Rows, each with the key that it answers, empty where it answers none."""
    rng = faults.rng
    by_key = {line["key"]: line for line in lines}
    out: list[dict[str, Any]] = []
    keyless = bool(fate.errors) and faults.take("keyless_errors")
    for key, line in by_key.items():
        if key in fate.errors:
            row = _row(line, status=_STATUS[fate.errors[key]])
            if keyless:
                del row["key"]
            out.append(row)
        elif key in fate.answered:
            out.append(_row(line, **answer(line)))
    if out and faults.take("duplicate_rows"):
        out.append(rng.choice(out))
        # An error beside an answer must not take its place.
        out += [_row(by_key[key], status=_STATUS[14]) for key in some(rng, fate.ok)]
    rng.shuffle(out)
    rows = [(row["key"] if "response" in row else "", json.dumps(row).encode()) for row in out]
    if faults.take("noise_rows"):
        noise = [b"null", b"{", json.dumps(_row({"key": "r0", "request": {}}, response={})).encode(), b""]
        rows[rng.randint(0, len(rows)) :] += [("", text) for text in noise]
    return rows


def _row(line: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    """A row: siblings of the request are echoed, and the request, with nulls."""
    request = {name: line["request"][name] for name in sorted(line["request"], reverse=True)}
    return {
        "status": "",
        "processed_time": "2026-11-21T10:00:00.000+00:00",
        "key": line["key"],
        "request": {**request, "labels": None},
        **said,
    }
