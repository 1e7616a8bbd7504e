"""What is changed when a request is sent again: another request, whose answer stands for the first. Pure.

A remedied request has its own id, made of the first one's and of what was changed. The outcome of the
first names it (`remedied_by`), so lookups find its answer also when the spec no longer has the remedy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec
import orjson

from runner.model import Json, Stored
from runner.specmodel import Spec

MAX_OUTPUT_TOKENS = 65_536
"""No factor goes beyond. Source: output limit of the Gemini 2.5 and 3 models, read 2026-11-21."""
_VERSION = 1
"""Part of every id."""


class Remedy(msgspec.Struct, frozen=True):
    """A request that stands for another."""

    request_id: str
    settings: Mapping[str, Json]
    """What differs from the first request: names of generationConfig, as sent."""


class Aim(msgspec.Struct, frozen=True):
    """The request that a row's address leads to, after all remedies."""

    request_id: str
    stored: Stored | None
    remedy: Remedy | None = None
    """None where it is the very request that was rendered."""
    before: Stored | None = None
    """The failure that it remedies."""

    @property
    def is_new(self) -> bool:
        """Whether the state does not know yet that this request remedies the other."""
        return self.before is not None and self.before.remedied_by != self.request_id


def following(root: str, found: Stored, taken: Mapping[str, Json], spec: Spec) -> Remedy | None:
    """The remedy for this outcome, None where the spec has none or it would change nothing.

    `root` is the id that was rendered, `taken` what earlier remedies changed already.
    """
    settings = dict(taken)
    for name, value in spec.failures.remedies.get(found.outcome, {}).items():
        before = taken.get(_WIRE_NAMES[name], spec.generation_config.get(name))
        new = _raised(value, before) if name == "max_output_tokens" else value
        if new != before:
            settings[_WIRE_NAMES[name]] = new
    if settings == dict(taken) or found.accepted:
        return None
    data = orjson.dumps([_VERSION, root, settings], option=orjson.OPT_SORT_KEYS)
    return Remedy("r" + hashlib.sha256(data).hexdigest()[:32], settings)


def aim(
    root: str,
    stored: Callable[[str], Stored | None],
    live: Callable[[str], str | None],
    spec: Spec,
    *,
    retry: str,
) -> Aim:
    """Where the address of a rendered request leads. `retry` as in a plan's selection."""
    found = Aim(root, stored(root))
    if not spec.failures.remedies and (found.stored is None or not found.stored.remedied_by):
        return found
    while (last := found.stored) is not None and last.remedied_by:
        remedy = Remedy(last.remedied_by, last.remedy)
        after = stored(remedy.request_id)
        unwanted = retry == "none" or last.outcome not in spec.failures.remedies
        used_up = last.jobs >= spec.failures.max_attempts
        if after is None and live(remedy.request_id) is None and (unwanted or used_up):
            # Never sent, and the spec has taken it back, or a second job has used the last attempt.
            return found
        found = Aim(remedy.request_id, after, remedy, last)
    if last is None or retry == "none" or last.jobs >= spec.failures.max_attempts or live(found.request_id):
        return found
    remedied = following(root, last, found.remedy.settings if found.remedy else {}, spec)
    if remedied is None:
        return found
    return Aim(remedied.request_id, stored(remedied.request_id), remedied, last)


def told(settings: Mapping[str, Json]) -> str:
    """What a remedy changes, in words: `maxOutputTokens 2048`."""
    return ", ".join(f"{name} {settings[name]}" for name in sorted(settings))


def line(sent: bytes, remedy: Remedy) -> bytes:
    """The remedied request's line, with its newline, from the line of one that it stands for."""
    body = orjson.loads(sent)
    config = {**body["request"].get("generationConfig", {}), **remedy.settings}
    remedied = {"key": remedy.request_id, "request": {**body["request"], "generationConfig": config}}
    return orjson.dumps(remedied, option=orjson.OPT_SORT_KEYS) + b"\n"


_WIRE_NAMES = {
    "max_output_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
}


def _raised(value: Json, before: Json) -> Json:
    if not isinstance(value, str) or not before:
        return before if isinstance(value, str) else value
    # Where more is asked for than any factor gives, there is nothing to raise.
    return max(before, min(MAX_OUTPUT_TOKENS, int(before * float(value[1:]))))
