"""JSON text with the flaws that models give it: near to JSON, and none. Pure.

Source: answers of models as collected in the issues of libraries that repair them; what comes most often.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import orjson


def flawed(text: str, flaw: str | None) -> str:
    """The object or array of `text` with a flaw, one of `FLAWS`; without one the text's bytes choose it.

    What has no place for the flaw, such as keys, gets a trailing comma. Any other text stays as it is, and
    so does an empty object or array.
    """
    value = _value(text)
    if not isinstance(value, dict | list) or not value:
        return text
    names = sorted(FLAWS)
    found = FLAWS[flaw or names[zlib.crc32(text.encode()) % len(names)]](value)
    return found if _value(found) is None else _trailing_comma(value)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _trailing_comma(value: Any) -> str:
    body = orjson.dumps(value).decode()
    return f"{body[:-1]},{body[-1]}"


def _single_quotes(value: Any) -> str:
    return _written(value, key=_single_quoted, text=_single_quoted)


def _comments(value: Any) -> str:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return body.replace("\n", "  // as asked\n", 1)


def _unquoted_keys(value: Any) -> str:
    return _written(value, key=lambda name: name if name.isidentifier() else _dumped(name), text=_dumped)


def _python(value: Any) -> str:
    return repr(value)


def _written(value: Any, *, key: Callable[[str], str], text: Callable[[str], str]) -> str:
    if isinstance(value, dict):
        members = (f"{key(name)}: {_written(inner, key=key, text=text)}" for name, inner in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_written(inner, key=key, text=text) for inner in value)}]"
    return text(value) if isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _single_quoted(text: str) -> str:
    inner = _dumped(text)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{inner}'"


FLAWS: dict[str, Callable[[Any], str]] = {
    "comments": _comments,
    "python": _python,
    "single_quotes": _single_quotes,
    "trailing_comma": _trailing_comma,
    "unquoted_keys": _unquoted_keys,
}
