"""Proto JSON messages of the API: names, types and nothing more. Pure.

`messages.json` is the table. `check` turns a parsed body into its canonical form (camelCase names,
unset fields left out, numbers as numbers) or raises `Problem`. Rules that need more than a field's
type stand in `rules.py`. It does not know HTTP, files or jobs.

Source: google-genai 3.4.0 (what its Developer API converters send) and the aiplatform v1beta1
discovery document, reduced to the Developer API; read 2026-11-21.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import orjson

Check = Callable[[Any], Any]
_REMEMBERED = 64


class Problem(Exception):
    """A body that the service would not take.

    `path` leads to the place, outermost step first; names are as they were sent. `unknown` is the
    field name where the problem is a field that does not exist.
    """

    def __init__(self, message: str, *, unknown: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.unknown = unknown
        self.path: list[str | int] = []


def check(name: str, body: Any) -> Any:
    """The canonical form of a message. Raises Problem."""
    try:
        return _MESSAGES[name](body)
    except RecursionError:
        raise Problem("message is nested too deeply") from None


def dotted(path: list[str | int]) -> str:
    """A path as the service writes it: `generation_config.response_schema.properties[a]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.startswith("["):
            text += step
        else:
            text += "." + _snake(step)
    return text.lstrip(".")


def kind_of(value: Any) -> str:
    """How a value begins in JSON text, as parser messages name it."""
    if isinstance(value, dict):
        return "'{'"
    if isinstance(value, list):
        return "'['"
    if isinstance(value, str):
        return "'\"'"
    return f"'{json.dumps(value)[0]}'"


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)


def _invalid(value: Any, wanted: str) -> Problem:
    return Problem(f"invalid value {json.dumps(value, ensure_ascii=False)[:80]}; expected {wanted}")


def _string(value: Any) -> Any:
    if type(value) is str:
        return value
    raise _invalid(value, "a string")


def _bool(value: Any) -> Any:
    if type(value) is bool:
        return value
    raise _invalid(value, "a boolean")


def _float(value: Any) -> Any:
    if type(value) is float or type(value) is int:
        return value
    if type(value) is str:
        try:
            return float(value)
        except ValueError:
            pass
    raise _invalid(value, "a number")


def _integer(bits: int) -> Check:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def convert(value: Any) -> Any:
        number: int | None = None
        if type(value) is int:
            number = value
        elif (type(value) is float and value.is_integer()) or (
            type(value) is str and re.fullmatch(r"-?[0-9]{1,19}", value)
        ):
            number = int(value)
        if number is None or not low <= number <= high:
            raise _invalid(value, f"a {bits}-bit integer")
        return number

    return convert


def _bytes(value: Any) -> Any:
    if type(value) is not str:
        raise _invalid(value, "a base64 string")
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(value, "a base64 string") from None
    return value


def _any(value: Any) -> Any:
    return value


def _struct(value: Any) -> Any:
    if type(value) is dict:
        return value
    raise Problem(f"unexpected character: {kind_of(value)}; expected '{{'")


def _enum(values: list[str]) -> Check:
    known = {name: name for name in values}
    known.update({name.lower(): name for name in values})

    def convert(value: Any) -> Any:
        if type(value) is str and value in known:
            return known[value]
        if type(value) is int and 0 <= value < len(values):
            return values[value]
        raise _invalid(value, "one of " + ", ".join(values[1:] or values))

    return convert


def _repeated(one: Check) -> Check:
    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise Problem(f"unexpected character: {kind_of(value)}; expected '['")
        out: list[Any] = []
        try:
            # Item by item, so that after a failure the length says which one it was.
            out.extend(map(one, value))
        except Problem as problem:
            problem.path.insert(0, len(out))
            raise
        return out

    return convert


def _map(one: Check) -> Check:
    def convert(value: Any) -> Any:
        out = {}
        name = ""
        try:
            for name, item in _struct(value).items():
                out[name] = one(item)
        except Problem as problem:
            if name:
                problem.path.insert(0, f"[{name}]")
            raise
        return out

    return convert


def _message(fields: dict[str, tuple[str, Check]]) -> Check:
    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise Problem(f"unexpected character: {kind_of(value)}; expected '{{'")
        out = {}
        for name, item in value.items():
            field = fields.get(name)
            if field is None:
                raise Problem(f"no such field: '{name}'", unknown=name)
            if item is None:
                continue
            if field[0] in out:
                raise Problem(f"field '{field[0]}' is given twice")
            try:
                out[field[0]] = field[1](item)
            except Problem as problem:
                problem.path.insert(0, name)
                raise
        return out

    return convert


def _remembered(one: Check) -> Check:
    """The same check for a value that a whole file repeats, such as its schema; the result is shared."""
    known: dict[bytes, Any] = {}

    def convert(value: Any) -> Any:
        try:
            key = orjson.dumps(value)
        except orjson.JSONEncodeError:
            return one(value)
        found = known.get(key)
        if found is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            found = known[key] = one(value)
        return found

    return convert


def _load() -> dict[str, Check]:
    table = json.loads(resources.files(__package__).joinpath("messages.json").read_bytes())
    scalars: dict[str, Check] = {
        "string": _string, "bool": _bool, "bytes": _bytes, "any": _any, "struct": _struct,
        "float": _float, "int32": _integer(32), "int64": _integer(64),
    }  # fmt: skip
    enums = {name: _enum(values) for name, values in table["enums"].items()}
    # Messages refer to each other in circles, so each one is made before any field is.
    fields: dict[str, dict[str, tuple[str, Check]]] = {name: {} for name in table["messages"]}
    messages = {name: _message(entries) for name, entries in fields.items()}

    def check_of(kind: str) -> Check:
        if kind.startswith("["):
            return _repeated(check_of(kind[1:-1]))
        if kind.startswith("{"):
            return _map(check_of(kind[1:-1]))
        if kind.startswith("enum:"):
            return enums[kind[5:]]
        return scalars.get(kind) or messages[kind]

    for name, entries in table["messages"].items():
        for field, kind in entries.items():
            one = check_of(kind)
            if field == "responseSchema":
                one = _remembered(one)
            fields[name][field] = (field, one)
            fields[name][_snake(field)] = (field, one)
    return messages


_MESSAGES = _load()
