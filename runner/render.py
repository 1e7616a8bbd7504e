"""A row and the spec's templates become a request: its id and its exact line. Pure.

The id is the digest of what the user asked for, in gbrun's own canonical form (sorted keys,
UTF-8), not of what the service is sent: a change in how gbrun lowers a schema never re-runs
a row.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from runner import plaintemplate, response_schema
from runner.model import BadRow, Json, Request, Row
from runner.sealing import sealed
from runner.specmodel import DEFAULT_ENV, Spec

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
    "embed_content_config",
    "title",
    "samples",
)
"""The parts of a spec that can change a request, in the order in which a plan names them."""


def digest(value: Json) -> str:
    """16 hex digits that stand for a JSON value in the state."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


class Renderer:
    """Turns rows into requests for one spec. Holds compiled templates; one thread only."""

    def __init__(self, spec: Spec) -> None:
        """Make everything of the request that is the same for all rows.

        Raises TemplateFailed for a template that does not compile.
        """
        spec = sealed_spec(spec)
        self._spec = spec
        # How a request is written for a service; what it is, and so its id, is the same for all.
        self._is_vertex = spec.backend.protocol == "vertex"
        written = {"prompt": spec.prompt, "system": spec.system_instruction, "title": spec.title}
        used = {name: template for name, template in written.items() if template is not None}
        self._templates = list(used.values())
        self._plain = [plaintemplate.parsed(template.text) for template in self._templates]
        self._around = {"var": spec.variables, "env": {"": spec.env or DEFAULT_ENV}}
        holes = [_Hole(name) for name in used]
        identity, body = self._embedding() if spec.task == "embed_content" else self._generating()
        body = _merged(_present(body), spec.extra_body)
        if self._is_vertex:
            from runner import importer

            body = importer.rewritten(body)
        self._line = _Skeleton({"key": _Hole("key"), "request": body}, [_Hole("key"), *holes], newline=True)
        # Sample 0 is the request of a spec without samples: asking for more keeps what there is.
        samples = [{}, *({"sample": number} for number in range(1, spec.samples.count))]
        self._identities = [_Skeleton(_present(identity | sample), holes) for sample in samples]
        self.components = self._components()
        """Component name -> digest; what a plan compares to tell why a row runs again."""

    def requests(self, row: Row) -> tuple[Request, ...] | BadRow:
        """The requests of a row, one per sample, or why it cannot have any (its data breaks a template)."""
        texts = self._texts(row)
        if isinstance(texts, BadRow):
            return texts
        made = []
        for identity in self._identities:
            request_id = "r" + hashlib.sha256(identity.fill(*texts)).hexdigest()[:32]
            made.append(Request(request_id, self._line.fill(request_id.encode(), *texts)))
        return tuple(made)

    def _texts(self, row: Row) -> list[bytes] | BadRow:
        """The templates rendered for a row, as JSON strings."""
        values = {"input": row.fields, **self._around}
        made = []
        for number, plain in enumerate(self._plain):
            text = plain.render(values) if plain is not None else None
            if text is None:
                found = self._by_jinja(row, number)
                if isinstance(found, BadRow):
                    return found
                text = found
            try:
                made.append(orjson.dumps(text))
            except orjson.JSONEncodeError:
                return BadRow(row.key, "surrogate", "holds a lone surrogate, which is not text")
        return made

    @functools.cached_property
    def _by_jinja(self) -> Callable[[Row, int], str | BadRow]:
        """What renders a template of these by Jinja, which is loaded for the first."""
        from runner.sandbox import CompiledTemplate, Fields, TemplateFailed

        compiled = [CompiledTemplate(template.text) for template in self._templates]
        variables, env = Fields("var", self._spec.variables), self._spec.env or DEFAULT_ENV

        def rendered(row: Row, number: int) -> str | BadRow:
            values = {"input": Fields("input", row.fields), "var": variables, "env": env}
            try:
                return compiled[number].render(values)
            except TemplateFailed as error:
                template = self._templates[number]
                line = template.line + max(error.line, 1) - 1
                return BadRow(row.key, "template", error.message, template.path, line)

        return rendered

    def _generating(self) -> tuple[dict[str, Json], dict[str, Json]]:
        """What a request to generate content is told apart by, and what is sent; with holes for texts."""
        spec = self._spec
        contents = [{"parts": [{"text": _Hole("prompt")}], "role": "user"}]
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
        if spec.system_instruction is not None:
            identity["system_instruction"] = _Hole("system")
            body["systemInstruction"] = self._content("system")
        return identity, body

    def _content(self, hole: str) -> dict[str, Json]:
        """A text outside of `contents`; on Vertex every Content has to name its role."""
        role = {"role": "user"} if self._is_vertex else {}
        return {"parts": [{"text": _Hole(hole)}], **role}

    def _embedding(self) -> tuple[dict[str, Json], dict[str, Json]]:
        """The same for a request to embed content.

        Source: https://ai.google.dev/gemini-api/docs/batch-api, embedding requests, and
        https://cloud.google.com/vertex-ai/generative-ai/docs/embeddings/batch-prediction-genai-embeddings,
        read 2026-11-21. A third party reports that Vertex refuses `embed_content_config`: not tried.
        """
        spec = self._spec
        content = {"parts": [{"text": _Hole("prompt")}]}
        identity: dict[str, Any] = {
            "idv": IDENTITY_VERSION,
            "task": spec.task,
            "model": spec.model,
            "contents": [content],
            "embed_content_config": dict(spec.embed_content_config),
            "extra_body": dict(spec.extra_body),
        }
        config: dict[str, Any] = dict(spec.embed_content_config)
        if spec.title is not None:
            identity["title"] = config["title"] = _Hole("title")
        if self._is_vertex:
            return identity, {"content": self._content("prompt"), "embed_content_config": config}
        return identity, {"content": content, **config}

    def _components(self) -> Mapping[str, str]:
        spec = self._spec
        used = frozenset[tuple[str, str]]().union(*(_names(template.text) for template in self._templates))
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
            "variables": {
                n: v for n, v in spec.variables.items() if ("var", n) in used or ("var", "") in used
            },
            "env": spec.env or (DEFAULT_ENV if ("env", "") in used else None),
            "task": spec.task,
        }
        # Parts that specs of earlier versions did not have are told only where they are used.
        if spec.embed_content_config:
            values["embed_content_config"] = spec.embed_content_config
        if spec.title is not None:
            values["title"] = spec.title.text
        if spec.samples.count > 1:
            values["samples"] = [spec.samples.count, spec.samples.needed]
        return {name: digest(values[name]) for name in COMPONENTS if name in values}


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


def _names(text: str) -> frozenset[tuple[str, str]]:
    """What a template reads. Raises TemplateFailed where it does not compile."""
    plain = plaintemplate.parsed(text)
    if plain is not None:
        return plain.names
    from runner.sandbox import CompiledTemplate

    return CompiledTemplate(text).names


class _Hole(str):
    """A place in a skeleton that is filled per row."""

    __slots__ = ()


class _Skeleton:
    """Constant JSON with holes, encoded once; filling it is a join of bytes.

    Byte-equal to encoding the whole value with sorted keys each time.
    """

    def __init__(self, value: Json, holes: Sequence[_Hole], *, newline: bool = False) -> None:
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
