"""Response lines become answers, answers become records. Pure.

A line is judged by its key alone, never by its place. Nothing that comes back can stop a run:
whatever a line holds, it ends in an outcome. jsonschema-rs alone decides what is valid.

Source: shapes of output lines in https://ai.google.dev/gemini-api/docs/batch-api and recorded answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from runner.model import Answer, Json, Outcome

JUDGE_VERSION = 1
"""Rises when the same stored response would be judged differently."""

_TRANSIENT_CODES = frozenset({1, 2, 4, 8, 9, 10, 13, 14, 408, 429, 500, 502, 503, 504})
"""google.rpc codes; HTTP codes of the same meaning have not been seen in rows, but cost nothing to know."""
_BLOCKED_REASONS = frozenset(
    {
        "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR",
    }
)  # fmt: skip
_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\r?\n?(.*?)```", re.DOTALL)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)
"""Brackets, and whole strings, so that brackets inside of them do not count."""
_RPC_CODES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
    10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
    15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip
_MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Stray:
    """A line that answers no request: `null`, no object, or no key."""

    what: str


def rpc_code(number: int) -> str:
    """The name of a google.rpc code."""
    return _RPC_CODES.get(number, f"CODE_{number}")


class Judge:
    """Judges response lines against one output schema."""

    def __init__(self, output_schema: Mapping[str, Json] | None) -> None:
        """Compile the schema, offline: a `$ref` never leaves it."""
        self._errors: Callable[[Json], Iterator[Any]] | None = None
        if output_schema is not None:
            import jsonschema_rs

            validator = jsonschema_rs.validator_for(dict(output_schema), validate_formats=True, offline=True)
            self._errors = validator.iter_errors

    def line(self, line: bytes) -> Answer | Stray:
        """What a response line says about the request it names."""
        try:
            body = _parse(line)
        except (ValueError, RecursionError):
            return Stray("unreadable")
        if body is None:
            return Stray("null")
        if not isinstance(body, dict):
            return Stray("not an object")
        key = body.get("key")
        if key is None and isinstance(body.get("metadata"), dict):
            key = body["metadata"].get("key")
        if not isinstance(key, str) or not key:
            return Stray("no key")
        error = body.get("error")
        if isinstance(error, dict):
            return _row_error(key, error)
        response = body.get("response")
        if not isinstance(response, dict):
            return Answer(
                request_id=key, outcome=Outcome.TRANSIENT, code="EMPTY", message="neither response nor error"
            )
        return self._response(key, response)

    def _response(self, key: str, response: Mapping[str, Json]) -> Answer:
        candidates = response.get("candidates")
        candidate = candidates[0] if isinstance(candidates, list) and candidates else None
        candidate = candidate if isinstance(candidate, dict) else {}
        reason = candidate.get("finishReason")
        reason = reason if isinstance(reason, str) else ""
        text, others, any_part = _content(candidate.get("content"))
        common: dict[str, Any] = {
            "request_id": key,
            "usage": _usage(response.get("usageMetadata")),
            "model_version": _text(response.get("modelVersion")),
            "finish_reason": reason,
        }
        feedback = response.get("promptFeedback")
        block = feedback.get("blockReason") if isinstance(feedback, dict) else None
        if block and not text:
            return Answer(
                outcome=Outcome.BLOCKED, code=_text(block), message="the prompt was blocked", **common
            )
        if reason == "MAX_TOKENS":
            message = "the answer was cut at max_output_tokens"
            return Answer(outcome=Outcome.TRUNCATED, code=reason, message=message, raw=text, **common)
        if reason in _BLOCKED_REASONS:
            message = f"the answer was stopped: {reason}"
            return Answer(outcome=Outcome.BLOCKED, code=reason, message=message, raw=text, **common)
        if not text and not others and not any_part:
            if reason in ("", "STOP", "FINISH_REASON_UNSPECIFIED"):
                message = "the model stopped without an answer"
                code = "EMPTY" if reason else "NO_CANDIDATES"
                return Answer(outcome=Outcome.TRANSIENT, code=code, message=message, **common)
            message = f"no answer, finish reason {reason}"
            return Answer(outcome=Outcome.BLOCKED, code=reason, message=message, **common)
        if self._errors is None:
            return Answer(outcome=Outcome.OK, text=text, parts=others, **common)
        return self._judged(text, others, common)

    def _judged(self, text: str, others: tuple[Json, ...], common: dict[str, Any]) -> Answer:
        assert self._errors is not None
        found = extract_json(text) if text.strip() else None
        if found is None:
            what = "the answer is not JSON" if text.strip() else "the answer has no text"
            return Answer(
                outcome=Outcome.UNPARSEABLE, code="NOT_JSON", message=what, raw=text, parts=others, **common
            )
        value, repaired = found
        try:
            messages = [
                f"/{'/'.join(map(str, error.instance_path))}: {error.message}"
                for _, error in zip(range(5), self._errors(value), strict=False)
            ]
        except ValueError as error:
            # Values that no other JSON reader would take either, such as half a surrogate pair.
            messages = [f"/: {error}"]
        if messages:
            message = "; ".join(messages)[:_MAX_MESSAGE_CHARS]
            return Answer(
                outcome=Outcome.INVALID, code="SCHEMA", message=message, raw=text, repaired=repaired, **common
            )
        return Answer(outcome=Outcome.OK, value=value, text=text, repaired=repaired, **common)


def extract_json(text: str) -> tuple[Json, str] | None:
    """The JSON value of an answer and how it was found: strictly (""), in a `fence`, or in `prose`.

    None where there is none; a value that is cut off is never completed. Only an object or an
    array counts as found in prose, since any sentence may hold a number.
    """
    text = text.removeprefix("\ufeff").strip()
    try:
        return _parse(text.encode()), ""
    except (ValueError, RecursionError):
        pass
    for match in _FENCE.finditer(text):
        if _is_open_at(text, match.start()):
            # Inside a value that was begun before it.
            break
        try:
            return _parse(match.group(1).strip().encode()), "fence"
        except (ValueError, RecursionError):
            continue
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
    at = _next_open(text, 0)
    while at >= 0:
        try:
            value, _end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            # What stands inside a value that cannot be read is not the answer: go on behind it.
            at = _next_open(text, _close_of(text, at))
            continue
        if value in ({}, []):
            at = _next_open(text, at + 1)
            continue
        return value, "prose"
    return None


def _is_open_at(text: str, place: int) -> bool:
    """Whether a bracket before `place` is still open there."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        if match.end() > place:
            # A string that reaches over the place was begun before it.
            return depth > 0
        char = match.group()
        depth = max(0, depth + (char in "{[") - (char in "}]"))
    return depth > 0


def _close_of(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`, the text's end where none does."""
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        char = match.group()
        depth += (char in "{[") - (char in "}]")
        if depth == 0:
            return match.start()
    return len(text)


def record_tail(answer: Answer, *, has_schema: bool, meta: Mapping[str, Json] | None = None) -> bytes:
    """The record of an ok answer as JSON without its key: what follows `{"_key":...,`."""
    body: dict[str, Json] = {}
    if has_schema:
        if isinstance(answer.value, dict):
            body.update(answer.value)
            # The row's key stands there.
            body.pop("_key", None)
        else:
            body["value"] = answer.value
    else:
        body["text"] = answer.text
        if answer.parts:
            body["parts"] = list(answer.parts)
    if answer.repaired:
        body["_repaired"] = answer.repaired
    if meta is not None:
        body.update(meta)
    return dump_line(body)[1:]


def record(key: str, tail: bytes) -> bytes:
    """A record as a JSON line, `_key` first."""
    head = b'{"_key":' + orjson.dumps(key)
    return head + tail if tail.startswith(b"}") else head + b"," + tail


def failure(key: str, outcome: str, code: str, message: str, attempts: int, raw: Json) -> bytes:
    """A line of the errors file."""
    return dump_line(
        {
            "_key": key,
            "outcome": outcome,
            "code": code,
            "message": message,
            "attempts": attempts,
            "raw": raw,
        }
    )


def dump_line(body: Json) -> bytes:
    """A JSON line with its newline; values that orjson refuses are written by the standard library."""
    try:
        return orjson.dumps(body) + b"\n"
    except orjson.JSONEncodeError:
        return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _parse(data: bytes) -> Json:
    # msgspec, since orjson rounds whole numbers of more than 64 bits.
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        # It refuses half a surrogate pair, which JSON allows; NaN and infinities stay refused.
        return json.loads(data.decode(), parse_constant=_refuse_constant, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _row_error(key: str, error: Mapping[str, Json]) -> Answer:
    number = error.get("code")
    number = number if isinstance(number, int) else 2
    outcome = Outcome.TRANSIENT if number in _TRANSIENT_CODES else Outcome.REJECTED
    message = _text(error.get("message")) or "the service gave no message"
    return Answer(
        request_id=key,
        outcome=outcome,
        code=rpc_code(number),
        message=message[:_MAX_MESSAGE_CHARS],
        raw=dict(error),
    )


def _content(content: Json) -> tuple[str, tuple[Json, ...], bool]:
    """(text of all parts that are not thoughts, parts that are not text, whether there was any part)."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return "", (), False
    texts: list[str] = []
    others: list[Json] = []
    for part in parts:
        if not isinstance(part, dict) or part.get("thought") is True:
            continue
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif part:
            others.append(part)
    return "".join(texts), tuple(others), bool(parts)


def _usage(usage: Json) -> dict[str, int]:
    if not isinstance(usage, dict):
        return {}
    names = {
        "prompt": "promptTokenCount",
        "cached": "cachedContentTokenCount",
        "output": "candidatesTokenCount",
        "thoughts": "thoughtsTokenCount",
    }
    out = {}
    for name, field in names.items():
        value = usage.get(field)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53:
            out[name] = value
    return out


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _next_open(text: str, start: int) -> int:
    found = [at for at in (text.find("{", start), text.find("[", start)) if at >= 0]
    return min(found, default=-1)
