"""Judged answers become records: one answer or several samples of a row, as one JSON line. Pure."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from runner.model import Answer, Json, Outcome, Stored
from runner.results import dump_line
from runner.specmodel import Spec

OK = Outcome.OK
_PRECEDENCE = {outcome: place for place, outcome in enumerate(Outcome)}
_ABSENT = b""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a row: its outcome, and what came back where anything did."""

    stored: Stored
    answer: Answer | None

    @property
    def outcome(self) -> Outcome:
        """Its class as it is judged now."""
        return self.answer.outcome if self.answer is not None else self.stored.outcome


def row_class(outcomes: Sequence[str], needed: int) -> str:
    """The class of a row from those of its requests: ok where `needed` are, else the first that is not;
    empty while one has none."""
    if "" in outcomes:
        return ""
    broken = [Outcome(name) for name in outcomes if name != OK]
    if len(outcomes) - len(broken) >= needed:
        return OK
    return min(broken, key=_PRECEDENCE.__getitem__)


def body(answer: Answer, spec: Spec) -> dict[str, Json]:
    """The fields of a record from one ok answer, without its key."""
    out = _said(answer, spec)
    return {**out, "_repaired": answer.repaired} if answer.repaired else out


def line(answer: Answer, spec: Spec) -> bytes:
    """`body` as a line."""
    value = answer.value
    if answer.dumped and isinstance(value, dict) and "_key" not in value and not answer.repaired:
        return answer.dumped
    return dump_line(body(answer, spec))


def _said(answer: Answer, spec: Spec) -> dict[str, Json]:
    if spec.task == "embed_content":
        return {"embedding": unit(answer.value) if spec.normalize else answer.value}
    if spec.output_schema is None:
        return {"text": answer.text, "parts": list(answer.parts)} if answer.parts else {"text": answer.text}
    if not isinstance(answer.value, dict):
        return {"value": answer.value}
    if "_key" in answer.value:
        # The row's key stands there.
        return {name: value for name, value in answer.value.items() if name != "_key"}
    return answer.value


def combined(samples: Sequence[Sample], spec: Spec) -> dict[str, Json]:
    """The fields of the record of a row that is ok, over all its samples."""
    good = [(_said(_answer(sample), spec), _notes(sample)) for sample in samples if sample.outcome is OK]
    if len(samples) == 1:
        return good[0][0] | good[0][1]
    match spec.samples.aggregate:
        case "all":
            told = iter([found | notes for found, notes in good])
            return {"samples": [next(told) if sample.outcome is OK else None for sample in samples]}
        case "first":
            return good[0][0] | good[0][1]
        case how:
            notes: defaultdict[str, list[str]] = defaultdict(list)
            for _, said in good:
                for name, words in said.items():
                    notes[name].append(words)
            together = {name: ", ".join(dict.fromkeys(words)) for name, words in notes.items()}
            return _agreed([found for found, _ in good], mean=how == "mean") | together


def _agreed(bodies: Sequence[Mapping[str, Json]], *, mean: bool) -> dict[str, Json]:
    """The commonest value of each field, the first of equals, and how many of the answers have it.

    With `mean`, a field that is a number in all answers becomes their average, if that is one too.
    """
    names = list(dict.fromkeys(name for found in bodies for name in found))
    out: dict[str, Json] = {}
    agreement: dict[str, float] = {}
    for name in names:
        values: list[Json] = [found[name] for found in bodies if name in found]
        if mean and len(values) == len(bodies) and (average := _mean(values)) is not None:
            out[name] = average
            continue
        texts = [_canonical(found[name]) if name in found else _ABSENT for found in bodies]
        most = max(dict.fromkeys(texts), key=texts.count)
        agreement[name] = texts.count(most) / len(texts)
        if most != _ABSENT:
            out[name] = bodies[texts.index(most)][name]
    if agreement:
        out["_agreement"] = agreement
    return out


def unit(vector: Sequence[float]) -> list[float]:
    """The vector scaled to length 1; one of length 0 stays as it is."""
    try:
        length = math.sqrt(math.fsum(value * value for value in vector))
    except OverflowError:
        length = math.inf
    if math.isinf(length) or (not length and any(vector)):
        # The squares are beyond what a double holds.
        largest = max(map(abs, vector))
        return unit([value / largest for value in vector])
    return [value / length for value in vector] if length else list(vector)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of the angle between two vectors of the same length, 0 where one has no length."""
    return math.fsum(a * b for a, b in zip(unit(one), unit(other), strict=True))


def meta(stored: Sequence[Stored]) -> dict[str, Json]:
    """Where a record came from: values of its one request, lists over its samples, tokens summed up."""
    fields: list[dict[str, Json]] = [
        {
            "_request_id": one.request_id,
            "_attempt": one.token,
            "_model_version": one.model_version,
            "_response_id": one.response_id,
            "_usage": dict(one.usage),
            "_finish_reason": one.finish_reason,
        }
        for one in stored
    ]
    if len(fields) == 1:
        return fields[0]
    out: dict[str, Json] = {name: [found[name] for found in fields] for name in fields[0]}
    usage: dict[str, int] = {}
    for found in fields:
        for kind, count in found["_usage"].items():
            usage[kind] = usage.get(kind, 0) + count
    out["_usage"] = usage
    return out


def record(key: str, found: bytes) -> bytes:
    """A record as a JSON line, `_key` first; `found` is the line of an object with all the rest."""
    head = b'{"_key":' + orjson.dumps(key)
    return head + found[1:] if found.startswith(b"{}") else head + b"," + found[1:]


def failed(key: str, samples: Sequence[Sample], spec: Spec) -> tuple[str, bytes]:
    """The class of a row that is not ok, and its line for the errors file, with all that was paid for."""
    broken = [sample for sample in samples if sample.outcome is not OK]
    worst = min(broken, key=lambda sample: _PRECEDENCE[sample.outcome])
    raw = _raw(worst)
    if len(samples) > 1:
        raw = [
            _said(_answer(s), spec) | _notes(s)
            if s.outcome is OK
            else {"outcome": s.outcome, "code": _code(s), "raw": _raw(s)}
            for s in samples
        ]
    message = worst.answer.message if worst.answer is not None else worst.stored.message
    line = failure(key, worst.outcome, _code(worst), message, worst.stored.jobs, raw)
    return worst.outcome, line


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


def _answer(sample: Sample) -> Answer:
    assert sample.answer is not None
    return sample.answer


def _raw(sample: Sample) -> Json:
    return sample.answer.raw if sample.answer is not None else None


def _code(sample: Sample) -> str:
    return sample.answer.code if sample.answer is not None else sample.stored.code


def _notes(sample: Sample) -> dict[str, str]:
    """What a record says of how its answer came to be."""
    notes = {"_repaired": _answer(sample).repaired, "_remedied": sample.stored.remedies}
    return {name: words for name, words in notes.items() if words}


def _mean(values: Sequence[Json]) -> float | None:
    """The average of numbers; None where something is no number, or the numbers are too large for one."""
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    if len(set(values)) == 1:
        average: float = values[0]
        return average
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return None


def _canonical(value: Json) -> bytes:
    """The same bytes for values that are equal as JSON, where 1 and 1.0 are one number."""
    value = _same_numbers(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return json.dumps(value, sort_keys=True).encode()


def _same_numbers(value: Json) -> Json:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_same_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _same_numbers(item) for name, item in value.items()}
    return value
