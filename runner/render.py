"""A row and the spec's templates become a request: its id and its exact line. Pure.

The id is the digest of what the user asked for, in gbrun's own canonical form (sorted keys,
UTF-8), not of what the service is sent: a change in how gbrun lowers a schema never re-runs
a row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from runner import response_schema
from runner.model import BadRow, Json, Request, Row, Spec
from runner.sandbox import CompiledTemplate, Fields, TemplateFailed
from runner.sealing import sealed

IDENTITY_VERSION = 1
"""Part of every id. A new version would re-run everything, so it needs aliases first."""

COMPONENTS = (
    "model",
    "prompt",
    "system_instruction",
    "output_schema",
    "generation_config",
    "tools",
    "tool_config",
    "safety_settings",
    "cached_content",
    "extra_body",
    "variables",
    "env",
    "task",
)
"""The parts of a spec that can change a request, in the order in which a plan names them."""


def digest(value: Json) -> str:
    """16 hex digits that stand for a JSON value in the state."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class Renderer:
    """Turns rows into requests for one spec. Holds compiled templates; one thread only."""

    def __init__(self, spec: Spec) -> None:
        """Compile the templates and everything of the request that is the same for all rows.

        Raises TemplateFailed for a template that does not compile.
        """
        spec = sealed_spec(spec)
        self._spec = spec
        self._prompt = CompiledTemplate(spec.prompt.text)
        self._system = CompiledTemplate(spec.system_instruction.text) if spec.system_instruction else None
        self._variables = Fields("var", spec.variables)
        self._identity, self._line = self._skeletons()
        self.components = self._components()
        """Component name -> digest; what a plan compares to tell why a row runs again."""

    def request(self, row: Row) -> Request | BadRow:
        """The request of a row, or why this row cannot be one (its data breaks the template)."""
        values = {"input": Fields("input", row.fields), "var": self._variables, "env": self._spec.env}
        try:
            template = self._spec.prompt
            prompt = _json_text(self._prompt.render(values))
            system = b""
            if self._system is not None and self._spec.system_instruction is not None:
                template = self._spec.system_instruction
                system = _json_text(self._system.render(values))
        except TemplateFailed as error:
            line = template.line + max(error.line, 1) - 1
            return BadRow(row.key, "template", error.message, template.path, line)
        except orjson.JSONEncodeError:
            return BadRow(row.key, "surrogate", "holds a lone surrogate, which is not text")
        request_id = "r" + hashlib.sha256(self._identity.fill(prompt, system)).hexdigest()[:32]
        return Request(request_id, self._line.fill(request_id.encode(), prompt, system))

    def _skeletons(self) -> tuple[_Skeleton, _Skeleton]:
        spec = self._spec
        prompt, system, key = _Hole("prompt"), _Hole("system"), _Hole("key")
        contents = [{"parts": [{"text": prompt}], "role": "user"}]
        identity: dict[str, Any] = {
            "idv": IDENTITY_VERSION,
            "task": spec.task,
            "model": spec.model,
            "contents": contents,
            "generation_config": dict(spec.generation_config),
            "output_schema": response_schema.ordered(spec.output_schema),
            "tools": list(spec.tools),
            "tool_config": spec.tool_config,
            "safety_settings": list(spec.safety_settings),
            "cached_content": spec.cached_content,
            "extra_body": dict(spec.extra_body),
        }
        config = {_camel(key): _camel_keys(value) for key, value in spec.generation_config.items()}
        if spec.output_schema is not None:
            config["responseMimeType"] = "application/json"
            lowered, _ = response_schema.lower(spec.output_schema)
            if lowered:
                config["responseSchema"] = lowered
        body: dict[str, Any] = {
            "contents": contents,
            "generationConfig": config,
            "tools": list(spec.tools),
            "toolConfig": spec.tool_config,
            "safetySettings": list(spec.safety_settings),
            "cachedContent": spec.cached_content,
        }
        if self._system is not None:
            identity["system_instruction"] = system
            body["systemInstruction"] = {"parts": [{"text": system}]}
        body = _merged(_present(body), spec.extra_body)
        return (
            _Skeleton(_present(identity), (prompt, system)),
            _Skeleton({"key": key, "request": body}, (key, prompt, system), newline=True),
        )

    def _components(self) -> Mapping[str, str]:
        spec = self._spec
        used = self._prompt.names | (self._system.names if self._system else frozenset())
        values = {
            "model": spec.model,
            "prompt": spec.prompt.text,
            "system_instruction": spec.system_instruction.text if spec.system_instruction else None,
            "output_schema": response_schema.ordered(spec.output_schema),
            "generation_config": spec.generation_config,
            "tools": list(spec.tools),
            "tool_config": spec.tool_config,
            "safety_settings": list(spec.safety_settings),
            "cached_content": spec.cached_content,
            "extra_body": spec.extra_body,
            "variables": {n: v for n, v in spec.variables.items() if ("var", n) in used},
            "env": spec.env,
            "task": spec.task,
        }
        return {name: digest(values[name]) for name in COMPONENTS}


def sealed_spec(spec: Spec) -> Spec:
    """The spec with a mark in the place of every sensitive value, so that no artefact holds one."""
    secrets = secrets_of(spec)
    if not secrets:
        return spec
    parts = {
        name: sealed(getattr(spec, name), secrets, spec.name)
        for name in ("variables", "tools", "tool_config", "extra_body", "cached_content")
    }
    return replace(spec, **{**parts, "tools": tuple(parts["tools"])})


def secrets_of(spec: Spec) -> dict[str, str]:
    """Sensitive values by variable name."""
    return {name: str(spec.variables[name]) for name in sorted(spec.sensitive & spec.variables.keys())}


class _Hole(str):
    """A place in a skeleton that is filled per row."""

    __slots__ = ()


class _Skeleton:
    """Constant JSON with holes, encoded once; filling it is a join of bytes.

    Byte-equal to encoding the whole value with sorted keys each time.
    """

    def __init__(self, value: Json, holes: tuple[_Hole, ...], *, newline: bool = False) -> None:
        nonce = 0
        while True:
            marks = {str(hole): f"gbrun-hole-{nonce}-{hole}" for hole in holes}
            data = orjson.dumps(_with_marks(value, marks), option=orjson.OPT_SORT_KEYS)
            found = re.split(b'"gbrun-hole-%d-([a-z]+)"' % nonce, data)
            names = [name.decode() for name in found[1::2]]
            if sorted(names) == sorted(_holes(value)):
                break
            nonce += 1
        order = [str(hole) for hole in holes]
        self._constant = [*found[0::2]]
        if newline:
            self._constant[-1] += b"\n"
        self._order = [order.index(name) for name in names]
        self._quoted = [name == "key" for name in names]

    def fill(self, *values: bytes) -> bytes:
        """The JSON with its holes filled: texts as encoded JSON strings, a key as bare ASCII."""
        pieces = [self._constant[0]]
        for position, constant, quoted in zip(self._order, self._constant[1:], self._quoted, strict=True):
            pieces.append(b'"%b"' % values[position] if quoted else values[position])
            pieces.append(constant)
        return b"".join(pieces)


def _holes(value: Json) -> list[str]:
    if isinstance(value, _Hole):
        return [str(value)]
    if isinstance(value, Mapping):
        return [hole for item in value.values() for hole in _holes(item)]
    if isinstance(value, (list, tuple)):
        return [hole for item in value for hole in _holes(item)]
    return []


def _with_marks(value: Json, marks: Mapping[str, str]) -> Json:
    if isinstance(value, _Hole):
        return marks[str(value)]
    if isinstance(value, Mapping):
        return {key: _with_marks(item, marks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_marks(item, marks) for item in value]
    return value


def _json_text(text: str) -> bytes:
    return orjson.dumps(text)


def _present(values: Mapping[str, Json]) -> dict[str, Json]:
    return {k: v for k, v in values.items() if v is not None and v != {} and v != []}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _camel_keys(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {_camel(key): _camel_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_camel_keys(item) for item in value]
    return value


def _merged(base: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = _merged(out[key], value)
        else:
            out[key] = value
    return out
