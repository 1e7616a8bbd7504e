"""A strict walk of Google's discovery document: every field known, every value of its type."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import googleapiclient

DOCUMENT = "aiplatform.v1beta1.json"
PREFIX = "GoogleCloudAiplatformV1beta1"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


@functools.cache
def schemas() -> dict[str, Any]:
    path = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents" / DOCUMENT
    return dict(json.loads(path.read_bytes())["schemas"])


def differences(name: str, body: Any) -> list[str]:
    """Where a body leaves the schema of this name, with or without the document's prefix."""
    known = schemas()
    schema = known.get(f"{PREFIX}{name}") or known[name]
    return _object(schema, body, "$")


def _object(schema: dict[str, Any], body: Any, place: str) -> list[str]:
    if not isinstance(body, dict):
        return [f"{place}: {body!r} is no object"]
    found = []
    for name, value in body.items():
        field = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if field is None:
            found.append(f"{place}.{name}: unknown")
        else:
            found += _value(field, value, f"{place}.{name}")
    return found


def _value(field: dict[str, Any], value: Any, place: str) -> list[str]:
    if "$ref" in field:
        return _object(schemas()[field["$ref"]], value, place)
    kind, form = field.get("type"), field.get("format", "")
    if kind == "any":
        return []
    if kind == "array":
        if not isinstance(value, list):
            return [f"{place}: {value!r} is no list"]
        return [
            line for n, item in enumerate(value) for line in _value(field["items"], item, f"{place}[{n}]")
        ]
    if kind == "object":
        return _object(field, value, place)
    good = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
    }[str(kind)]
    if good and "enum" in field:
        good = value in field["enum"]
    if good and form == "int64":
        good = re.fullmatch(r"-?\d{1,19}", str(value)) is not None
    if good and form == "google-datetime":
        good = _TIME.fullmatch(value) is not None
    return [] if good else [f"{place}: {value!r} is no {form or kind}"]
