"""The backend that a spec, the command line or the environment chooses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from runner import gcsuri, response_schema, shape
from runner.errors import Diagnostic
from runner.marks import Place
from runner.model import Json
from runner.specmodel import BackendSpec, ShardLimits, Spec
from runner.specpaths import SpecPaths
from runner.tree import Tree
from runner.units import seconds

KINDS = ("local", "gemini", "vertex")
TOKEN_LABEL = "gbrun_token"
"""Label of every job on Vertex: the token of its attempt."""
_DURATIONS = ("poll_interval_s", "request_timeout_s", "settle_s", "stall_after_s")
_OF_VERTEX = {
    "project": "GOOGLE_CLOUD_PROJECT",
    "location": "GOOGLE_CLOUD_LOCATION",
    "staging_uri": "GBRUN_STAGING_URI",
}
"""Settings of `vertex`, and what stands in for one that the spec does not have. The first two are read as
google-genai reads them."""
_PROJECT = r"(?:[a-z0-9.-]+:)?[a-z0-9][a-z0-9-]{0,62}"
_LOCATION = r"[a-z][a-z0-9-]{0,62}"
_MAX_LABELS = 63
"""One of the 64 that a resource may have is gbrun's."""

_CEILINGS = {
    # 2 GB per input file. It names no number of requests; this one keeps a shard's files and a lost job at a
    # size that can be handled. Source: Gemini API documentation, read 2026-11-21.
    ("gemini", "generate_content"): ShardLimits(max_requests=1_000_000, max_bytes=2_000_000_000),
    ("gemini", "embed_content"): ShardLimits(max_requests=1_000_000, max_bytes=2_000_000_000),
    # Source: Vertex AI documentation, batch prediction for Gemini and for embeddings, read 2026-11-21.
    ("vertex", "generate_content"): ShardLimits(max_requests=200_000, max_bytes=1_000_000_000),
    ("vertex", "embed_content"): ShardLimits(max_requests=1_000_000, max_bytes=1_000_000_000),
}


def ceilings(protocol: str, task: str) -> ShardLimits:
    """What a service takes in one job."""
    return _CEILINGS[protocol, task]


def choose(
    tree: Tree, paths: SpecPaths, environ: Mapping[str, str], override: str | None
) -> BackendSpec | None:
    """The backend; None after reporting that none is chosen or that it cannot be.

    `override` (`--backend`) wins over the spec; where neither names one, `environ` decides as it does
    for google-genai. Settings of the spec are kept when its type is the chosen one. What the override
    needs and nothing says is left for whoever connects: checking a spec for another backend asks for none.
    """
    value = tree.get("backend")
    if value is not None and not tree.sound("backend"):
        return None
    settings = dict(value) if isinstance(value, Mapping) else {"type": value} if value else {}
    if override is not None and override not in KINDS:
        message = f'backend must be one of {", ".join(KINDS)}; it is "{override}"'
        hint = shape.suggest(override, KINDS)
        tree.add((), Diagnostic(code="GB104", message=message, path="--backend", hint=hint))
        return None
    foreign = override is not None and settings.get("type") != override
    if foreign:
        settings = {"type": override}
    kind = settings.get("type") or _from_environment(tree, environ)
    if kind is None:
        return None
    _only(tree, settings, kind)
    if kind == "vertex":
        _vertex(tree, settings, environ, required=not foreign)
    is_local = kind == "local"
    faults = paths.existing_file(("backend", "faults")) if is_local and "faults" in settings else None
    variable = "GOOGLE_VERTEX_BASE_URL" if kind == "vertex" else "GOOGLE_GEMINI_BASE_URL"
    base_url = None if is_local else settings.get("base_url") or environ.get(variable) or None
    for key in _DURATIONS:
        if key in settings:
            settings[key] = _seconds(tree, ("backend", key), settings[key])
    try:
        loopback = _is_loopback(base_url)
    except ValueError as error:
        place: Place = ("backend", "base_url") if "base_url" in settings else ()
        tree.problem(place, "GB106", f'"{base_url}" is not an address of a service: {error}')
        return None
    settings.update(
        type=kind,
        base_url=base_url,
        faults=None if faults is None else str(faults),
        paid=not is_local and not loopback,
    )
    if kind == "vertex":
        settings.setdefault("api_version", "v1beta1")
    made = BackendSpec(**settings)
    if made.protocol == "vertex":
        _labels(tree)
    return made


def _only(tree: Tree, settings: Mapping[str, Any], kind: str) -> None:
    """Report settings that go with another backend."""
    if kind == "local" and "base_url" in settings:
        message = '"base_url" does not go with the backend local, which starts its own emulator'
        hint = "use `type: gemini` or `type: vertex` with it"
        tree.problem(("backend", "base_url"), "GB502", message, hint, key=True)
    own = {"faults": "local", "like": "local", **dict.fromkeys(_OF_VERTEX, "vertex")}
    for key, owner in own.items():
        if key in settings and kind != owner:
            hint = "remove it"
            if kind == "local" and owner == "vertex":
                hint = "remove it; `like: vertex` has the emulator stand for Vertex, and needs none"
            message = f'"{key}" goes only with the backend {owner}'
            tree.problem(("backend", key), "GB502", message, hint, key=True)


def _vertex(tree: Tree, settings: dict[str, Any], environ: Mapping[str, str], *, required: bool) -> None:
    """Fill in project, location and staging_uri, and report what is missing or cannot be one."""
    for key, variable in _OF_VERTEX.items():
        written = key in settings
        text = settings.get(key) or environ.get(variable) or None
        settings[key] = text
        needed = required and not (key == "staging_uri" and settings.get("mode") == "direct")
        if text is None:
            if needed:
                place: Place = ("backend", "type") if tree.get("backend", "type") else ("backend",)
                message = f'the backend vertex needs "{key}"'
                hint = f"write it into `backend`, or set {variable}"
                tree.problem(place if tree.get("backend") else (), "GB101", message, hint)
            continue
        wrong = _wrong(key, text)
        if wrong:
            where = ("backend", key) if written else ()
            name = f'"{key}"' if written else variable
            tree.problem(where, "GB106", f'{name} {wrong[0]}; it is "{text}"', wrong[1])


def _wrong(key: str, text: str) -> tuple[str, str] | None:
    """What is wrong with a setting of Vertex, in words that follow its name, and what to do."""
    if key == "project" and not re.fullmatch(_PROJECT, text):
        return "must be the id of a Google Cloud project", "gcloud projects list shows them"
    if key == "location" and not re.fullmatch(_LOCATION, text):
        return "must be a location of Vertex AI", "such as us-central1, europe-west4, us, eu or global"
    if key == "staging_uri":
        try:
            gcsuri.parse(text)
        except ValueError as error:
            return f"{error}", "write gs://bucket/folder"
    return None


def _labels(tree: Tree) -> None:
    """Report labels that a job on Vertex cannot have.

    Source: https://cloud.google.com/vertex-ai/docs/general/labels, requirements; read 2026-11-21.
    """
    labels = tree.get("labels")
    if not isinstance(labels, Mapping) or not tree.sound("labels"):
        return
    if len(labels) > _MAX_LABELS:
        message = f'"labels" must be at most {_MAX_LABELS} on Vertex; there are {len(labels)}'
        tree.problem(("labels",), "GB105", message, key=True)
    for key, value in labels.items():
        place: Place = ("labels", key)
        if key == TOKEN_LABEL:
            tree.problem(
                place, "GB106", f'the label "{key}" is gbrun\'s own', "choose another name", key=True
            )
        elif not _is_label(key) or not key[:1].isalpha():
            words = "lower-case letters, digits, `-` and `_`, at most 63, beginning with a letter"
            tree.problem(place, "GB106", f'name "{key}" of a label must be {words} on Vertex', key=True)
        elif not _is_label(str(value)):
            words = "lower-case letters, digits, `-` and `_`, at most 63"
            tree.problem(place, "GB106", f'the label "{key}" must be {words} on Vertex; it is "{value}"')


def check_importer(tree: Tree, spec: Spec) -> None:
    """Report what the importer of Vertex would not take of this spec's requests."""
    from runner import importer

    for place, depth, value in _constants(spec):
        for problem in importer.problems(value, place, depth):
            key = isinstance(problem.place[-1], str)
            tree.problem(problem.place, "GB503", problem.message, problem.hint, key=key)


def _constants(spec: Spec) -> Iterator[tuple[Place, int, Json]]:
    """What is the same in all requests: where it was written, how deep it stands in a line, its value."""
    from runner import importer

    written: dict[str, Json] = {
        "generation_config": spec.generation_config,
        "tools": spec.tools,
        "tool_config": spec.tool_config,
        "safety_settings": spec.safety_settings,
        "embed_content_config": spec.embed_content_config,
    }
    for key, value in importer.rewritten(written).items():
        if value not in ((), [], {}):
            yield (key,), 2, value
    if spec.output_schema is not None:
        lowered, _ = response_schema.lower(spec.output_schema)
        if lowered:
            yield ("output_schema",), 3, lowered
    extra = importer.rewritten(spec.extra_body)
    if extra:
        yield ("extra_body",), 1, extra


def _is_label(text: str) -> bool:
    return len(text) <= 63 and text == text.lower() and all(c.isalnum() or c in "-_" for c in text)


def _from_environment(tree: Tree, environ: Mapping[str, str]) -> str | None:
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        if environ.get(name, "").lower() in ("true", "1"):
            return "vertex"
    if environ.get("GOOGLE_API_KEY") or environ.get("GEMINI_API_KEY"):
        return "gemini"
    if tree.partial:
        return None
    message = "no backend is chosen: the spec has none, and the environment has no API key"
    hint = "write `backend: local` (free, on this machine), or set GEMINI_API_KEY for `backend: gemini`"
    tree.problem((), "GB501", message, f"{hint}, or write `backend: {{type: vertex, ...}}`")
    return None


def _seconds(tree: Tree, place: Place, value: Any) -> float:
    duration = seconds(value)
    shape.check_bounds(tree, place, duration, "s")
    return duration


def _is_loopback(base_url: str | None) -> bool:
    """Raises ValueError for what is not an address with a host."""
    if base_url is None:
        return False
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("it must begin with http:// or https:// and name a host")
    if parts.port == 0:
        raise ValueError("port 0 cannot be reached")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
