"""Response lines become answers, answers become records. Pure.

A line is judged by its key alone, never by its place. Nothing that comes back can stop a run:
whatever a line holds, it ends in an outcome. jsonschema-rs alone decides what is valid.

Source: shapes of output lines in https://ai.google.dev/gemini-api/docs/batch-api and recorded answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec
import orjson

from runner import answer_json, rowerrors, validator
from runner.model import Answer, Json, Outcome
from runner.specmodel import Spec
from runner.validator import Validator

JUDGE_VERSION = 4
"""Rises when the same stored response would be judged differently."""

_BLOCKED_REASONS = frozenset(
    {
        "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR",
    }
)  # fmt: skip
_MAX_RAW_BYTES = 100_000
"""Of a line that cannot be read; all of it is stored, this much is told."""
_KEY = re.compile(rb'"key"\s*:\s*"(r[0-9a-f]{32})"')
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)
"""Brackets, and whole strings, so that brackets inside of them do not count."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A line that answers no request: `null`, no object, or no key."""

    what: str


class Judge:
    """Judges response lines against what a spec asks for."""

    def __init__(
        self,
        output_schema: Mapping[str, Json] | None,
        repair: bool = False,
        *,
        embeds: bool = False,
        dimensions: int | None = None,
    ) -> None:
        """Compile the schema; `repair` is the spec's `failures.repair`.

        With `embeds` answers are vectors, of this many `dimensions` where it is known.
        """
        self._validator = validator.compiled(output_schema) if output_schema is not None else None
        self._repair = repair
        self._embeds = embeds
        self._dimensions = dimensions

    @classmethod
    def of(cls, spec: Spec) -> Judge:
        """The judge of a spec's answers."""
        return cls(
            spec.output_schema,
            spec.failures.repair,
            embeds=spec.task == "embed_content",
            dimensions=spec.dimensions,
        )

    def line(self, line: bytes) -> Answer | Stray:
        """What a response line says about the request it names."""
        answer = None if self._embeds else self._text(line)
        return self._line(line) if answer is None else answer

    def _text(self, line: bytes) -> Answer | None:
        """The answer of a line that is as nearly all are, a key and a text that the model ended by itself and
        that is good: what `_line` gives for it, only faster. None for every other."""
        try:
            plain = _DECODER.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        response = plain.response
        parts = response.candidates[0].content.parts if response.candidates else ()
        if not parts or not plain.key:
            return None
        text = parts[0].text
        if len(parts) > 1 or parts[0].thought:
            text = "".join([part.text for part in parts if not part.thought])
        value, dumped = None, b""
        if self._validator is not None:
            try:
                value = _decode(text)
                if not self._validator.is_valid(value):
                    return None
                # Refuses what is nested too deep, which costs far less than to count brackets.
                dumped = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
            except (ValueError, RecursionError, TypeError):
                return None
        counts = response.usageMetadata
        usage: dict[str, int] = {}
        if counts.promptTokenCount:
            usage["prompt"] = counts.promptTokenCount
        if counts.cachedContentTokenCount:
            usage["cached"] = counts.cachedContentTokenCount
        if counts.candidatesTokenCount:
            usage["output"] = counts.candidatesTokenCount
        if counts.thoughtsTokenCount:
            usage["thoughts"] = counts.thoughtsTokenCount
        return Answer(
            request_id=plain.key,
            outcome=Outcome.OK,
            value=value,
            dumped=dumped,
            text=text,
            usage=usage,
            model_version=response.modelVersion,
            response_id=response.responseId,
            finish_reason="STOP",
        )

    def _line(self, line: bytes) -> Answer | Stray:
        try:
            body = answer_json.parse(line)
        except (ValueError, RecursionError):
            return _unreadable(line)
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
        if isinstance(error, str) and error:
            error = {"message": error}
        if isinstance(error, dict):
            return rowerrors.answer(key, error)
        if body.get("status"):
            return rowerrors.answer(key, rowerrors.of_status(body["status"]))
        response = body.get("response")
        if not isinstance(response, dict):
            return Answer(
                request_id=key, outcome=Outcome.TRANSIENT, code="EMPTY", message="neither response nor error"
            )
        return self._vector(key, response) if self._embeds else self._response(key, response)

    def _vector(self, key: str, response: Mapping[str, Json]) -> Answer:
        """Source: https://ai.google.dev/gemini-api/docs/batch-api, embedding responses, read 2026-11-21."""
        embedding = response.get("embedding")
        values = embedding.get("values") if isinstance(embedding, dict) else None
        common: dict[str, Any] = {
            "request_id": key,
            "usage": _tokens({"prompt": response.get("tokenCount")}) or _usage(response.get("usageMetadata")),
            "model_version": _text(response.get("modelVersion")),
            "response_id": _text(response.get("responseId")),
        }
        if not isinstance(values, list) or not values:
            message = "the model gave no vector"
            return Answer(outcome=Outcome.TRANSIENT, code="EMPTY", message=message, **common)
        if not all(map(_is_double, values)):
            message = "the vector holds something that is no number, or too large for one"
            return Answer(outcome=Outcome.UNPARSEABLE, code="NOT_NUMBERS", message=message, **common)
        if self._dimensions is not None and len(values) != self._dimensions:
            message = f"the vector has {len(values):,} dimensions, and {self._dimensions:,} were expected"
            return Answer(outcome=Outcome.INVALID, code="DIMENSIONS", message=message, **common)
        return Answer(outcome=Outcome.OK, value=values, **common)

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
            "response_id": _text(response.get("responseId")),
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
        if self._validator is None:
            return Answer(outcome=Outcome.OK, text=text, parts=others, **common)
        return self._judged(self._validator, text, others, common)

    def _judged(
        self, validator: Validator, text: str, others: tuple[Json, ...], common: dict[str, Any]
    ) -> Answer:
        found = answer_json.extract_json(text, repair=self._repair) if text.strip() else None
        if found is None:
            what = "the answer is not JSON" if text.strip() else "the answer has no text"
            return Answer(
                outcome=Outcome.UNPARSEABLE, code="NOT_JSON", message=what, raw=text, parts=others, **common
            )
        value, repaired = found
        try:
            messages = [
                f"/{'/'.join(map(str, error.instance_path))}: {error.message}"
                for error in islice(validator.iter_errors(value), 5)
            ]
        except ValueError as error:
            # Values that no other JSON reader would take either, such as half a surrogate pair.
            messages = [f"/: {error}"]
        if messages:
            message = "; ".join(messages)[: rowerrors.MAX_MESSAGE_CHARS]
            return Answer(
                outcome=Outcome.INVALID, code="SCHEMA", message=message, raw=text, repaired=repaired, **common
            )
        return Answer(outcome=Outcome.OK, value=value, text=text, repaired=repaired, **common)


class _Part(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    text: str
    thought: bool = False
    thoughtSignature: str = ""


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part]


class _Candidate(msgspec.Struct, gc=False):
    content: _Content
    finishReason: Literal["STOP"]


_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Usage(msgspec.Struct, gc=False):
    promptTokenCount: _Count = 0
    cachedContentTokenCount: _Count = 0
    candidatesTokenCount: _Count = 0
    thoughtsTokenCount: _Count = 0


class _Response(msgspec.Struct, gc=False):
    candidates: list[_Candidate]
    usageMetadata: _Usage
    modelVersion: str = ""
    responseId: str = ""
    promptFeedback: msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct, gc=False):
    key: str
    response: _Response
    error: msgspec.UnsetType = msgspec.UNSET
    status: Literal[""] = ""


_DECODER = msgspec.json.Decoder(_Line)
_decode = msgspec.json.Decoder().decode


def _is_double(value: Json) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 1023
    return isinstance(value, float)


def _unreadable(line: bytes) -> Answer | Stray:
    """What a line that is no JSON says: nothing where it was cut off, else that an answer is no good.

    A whole line was paid for, and would come back the same: it is the outcome of the request it names.
    """
    keys = set(_KEY.findall(line))
    if len(keys) != 1 or not _is_whole(line):
        return Stray("unreadable")
    message = "the line that came back cannot be read: not UTF-8, nested too deep, or not JSON"
    return Answer(
        request_id=keys.pop().decode(),
        outcome=Outcome.UNPARSEABLE,
        code="UNREADABLE_LINE",
        message=message,
        raw=line[:_MAX_RAW_BYTES].decode(errors="replace"),
    )


def _is_whole(line: bytes) -> bool:
    """Whether the line is one object, all of whose brackets are closed at its very end."""
    line = line.strip()
    depth = 0
    for found in _BRACKETS.finditer(line):
        char = found.group()
        depth += (char in b"{[") - (char in b"}]") if len(char) == 1 else 0
        if depth <= 0:
            return found.end() == len(line)
    return False


def dump_line(body: Json) -> bytes:
    """A JSON line with its newline; the standard library writes what orjson does not: whole numbers of more
    than 64 bits, and half a surrogate pair, as an escape."""
    try:
        return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def without_echo(line: bytes) -> bytes:
    """A line, without its newline, and without the request that Vertex sends back beside its answer.

    Of a line that cannot be read, what stands before the request.
    """
    if b'"request"' not in line:
        return line
    try:
        body = answer_json.parse(line)
    except (ValueError, RecursionError):
        return line.partition(b'"request"')[0]
    if not isinstance(body, dict):
        return line
    return dump_line({key: value for key, value in body.items() if key != "request"}).removesuffix(b"\n")


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
    return _tokens({name: usage.get(field) for name, field in names.items()})


def _tokens(counts: Mapping[str, Json]) -> dict[str, int]:
    """The counts that are whole numbers above 0; int64 may come as text."""
    out = {}
    for name, value in counts.items():
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53:
            out[name] = value
    return out


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""
