"""Errors of single rows: what the service says of one, as the outcome of its request. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from runner import answer_json
from runner.model import Answer, Json, Outcome

MAX_MESSAGE_CHARS = 500
"""Of what is told of an answer that is no good."""
_MAX_STATUS_CHARS = 100_000
_TRANSIENT_CODES = frozenset({1, 2, 4, 8, 9, 10, 13, 14, 408, 429, 500, 502, 503, 504})
"""google.rpc codes; HTTP codes of the same meaning have not been seen in rows, but cost nothing to know."""
_RPC_CODES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
    10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
    15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _RPC_CODES.items()}
_OF_HTTP = {
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    408: 4,
    409: 10,
    429: 8,
    499: 1,
    500: 13,
    501: 12,
    503: 14,
    504: 4,
}
"""HTTP status to google.rpc code. Source: googleapis google/rpc/code.proto."""
_OF_PHRASE = {
    "Bad Request": 3,
    "Too Many Requests": 8,
    "Internal Server Error": 13,
    "Service Unavailable": 14,
}


def rpc_code(number: int) -> str:
    """The name of a google.rpc code."""
    return _RPC_CODES.get(number, f"CODE_{number}")


def answer(key: str, error: Mapping[str, Json]) -> Answer:
    """The outcome of a request by its error: `code` (UNKNOWN where there is none), `message`."""
    number = error.get("code")
    number = number if isinstance(number, int) else 2
    outcome = Outcome.TRANSIENT if number in _TRANSIENT_CODES else Outcome.REJECTED
    message = _words(error.get("message")) or "the service gave no message"
    return Answer(
        request_id=key,
        outcome=outcome,
        code=rpc_code(number),
        message=message[:MAX_MESSAGE_CHARS],
        raw=dict(error),
    )


def of_status(status: Json) -> dict[str, Json]:
    """The error in a Vertex row's `status`: `Bad Request: {"error": {"code": 400, ...}}`, or words alone.

    Its code is one of google.rpc, as in rows of the Developer API. Source: rows of live jobs, 2026-09.
    """
    text = status if isinstance(status, str) else json.dumps(status)
    words, _, rest = text.partition(": ")
    try:
        body = answer_json.parse(rest.encode())
    except (ValueError, RecursionError):
        body = None
    said = body.get("error") if isinstance(body, dict) else None
    said = said if isinstance(said, dict) else {}
    name = _words(said.get("status")) or words.upper().replace(" ", "_")
    number = said.get("code")
    code = _NUMBERS.get(name) or _OF_HTTP.get(number if isinstance(number, int) else 0)
    message = _words(said.get("message")) or text
    return {"code": code or _OF_PHRASE.get(words, 2), "message": message, "status": text[:_MAX_STATUS_CHARS]}


def _words(value: Json) -> str:
    return value if isinstance(value, str) else ""
