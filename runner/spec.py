"""A spec's YAML file -> Spec. Every problem is found in one run and names its file, line and column.

Reads the spec, the spec it extends, variable files, prompt and schema files; writes nothing, asks nobody,
and runs nothing but the module of a pydantic model where it may. Relative paths are relative to the spec's
folder and stay inside it unless the spec says `allow_outside: true`.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct, structs

from runner import (
    backendspec,
    bigqueryspec,
    bqtable,
    destinationspec,
    gcsuri,
    globs,
    layers,
    outputschema,
    shape,
    statespec,
    taskspec,
    templates,
    yamlfile,
)
from runner.errors import Diagnostic, SpecInvalid
from runner.marks import Place
from runner.model import BYTES_PER_TOKEN, Json
from runner.sealing import seal, sealed
from runner.specmodel import (
    BackendSpec,
    Failures,
    FilesSource,
    Guards,
    Origin,
    Samples,
    ShardLimits,
    Source,
    Spec,
    Values,
)
from runner.specpaths import SpecPaths
from runner.tree import Tree
from runner.units import byte_count
from runner.variables import fill, redact, resolve

_SHELL = re.compile(r"^~/|(?<!\[)\{[^/{}]*,[^/{}]*\}")
MAX_REQUESTS = 50_000
"""Default for `shards.max_requests`."""
MAX_SHARD_BYTES = 1_500_000_000
"""Default for `shards.max_bytes`; the Developer API takes files of 2 GB."""


def load(
    path: Path,
    *,
    environ: Mapping[str, str],
    env: str | None = None,
    variables: Mapping[str, Json] = {},
    variable_files: Sequence[Path] = (),
    backend: str | None = None,
    state: str | Path | None = None,
    allow_python: bool = False,
) -> Spec:
    """The spec in a file, checked and with its defaults filled in.

    `env` chooses one of the spec's environments. `variables` (`--var`) win over `variable_files`,
    those over `GBRUN_VAR_x` in `environ`, those over the environment's values and the defaults.
    `backend` and `state` replace what the spec says. `environ` also decides the backend where
    neither names one. `allow_python` lets the spec name a pydantic model, whose module is then run.

    Raises:
        SpecInvalid: the spec or a file it names has problems; all of them are in it, in the order
            of the file.
        UsageInvalid: `state` cannot be a place.
    """
    tree = layers.stack(path)
    known = _variables(tree, environ, env, variables, variable_files)
    shape.check(tree)
    spec = _Builder(path, tree, environ, env, backend, state, known, allow_python).spec()
    if spec is not None:
        destinationspec.check_tables(tree, spec)
        outputschema.check_samples(tree, spec)
        if spec.backend.protocol == "vertex" and spec.backend.mode == "batch":
            backendspec.check_importer(tree, spec)
    if tree.found or spec is None:
        found = [redact(problem, known) for problem in tree.found]
        raise SpecInvalid(_ordered(found, path.as_posix()))
    return spec


def _variables(
    tree: Tree,
    environ: Mapping[str, str],
    env: str | None,
    given: Mapping[str, Json],
    files: Sequence[Path],
) -> Values:
    """Choose the environment, give every variable its value and fill the spec with them."""
    chosen = layers.choose(tree, env) if env is not None else {}
    documents = [yamlfile.read(path, path.as_posix()) for path in files]
    known = resolve(tree, env=env, chosen=chosen, environ=environ, files=documents, given=given)
    fill(tree, known, env)
    return known


def _ordered(found: Sequence[Diagnostic], main: str) -> list[Diagnostic]:
    """Diagnostics without repetitions: the spec's own file first, each file from top to bottom."""
    # What an environment overrides is checked in its place and then where it was written, which tells more.
    seen = {(d.path, d.line, d.column, d.code, d.message): d for d in found}
    return sorted(seen.values(), key=lambda d: (d.path != main, d.path, d.line, d.column, d.code, d.message))


class _Builder:
    """Makes the Spec's parts from values of the right shape, and checks what shape cannot tell."""

    def __init__(
        self,
        path: Path,
        tree: Tree,
        environ: Mapping[str, str],
        env: str | None,
        backend: str | None,
        state: str | Path | None,
        variables: Values,
        allow_python: bool,
    ) -> None:
        self.paths = SpecPaths(path, tree)
        self.tree = tree
        self.environ = environ
        self.env = env
        self.backend_override = backend
        self.state_override = state
        self.variables = variables
        self.allow_python = allow_python

    def spec(self) -> Spec | None:
        """The Spec, or None where a part of it could not be made."""
        get, sound = self.tree.get, self.tree.sound
        name = get("name") if sound("name") else None
        backend = backendspec.choose(self.tree, self.paths, self.environ, self.backend_override)
        state, state_uri = statespec.choose(
            self.tree, self.paths, self.state_override, name=name, env=self.env, backend=backend
        )
        inputs = self._inputs()
        destinations = destinationspec.read(self.tree, self.paths, inputs)
        prompt = templates.read(self.tree, self.paths, "prompt")
        system_instruction = templates.read(self.tree, self.paths, "system_instruction")
        title = taskspec.title(self.tree, self.paths)
        for place, template in (
            (("prompt",), prompt),
            (("system_instruction",), system_instruction),
            (("embed_content_config", "title"), title),
        ):
            templates.check_sensitive(self.tree, place, template, self.variables.sensitive)
        embedding, normalize = taskspec.embedding(self.tree)
        samples, failures = taskspec.samples(self.tree), taskspec.failures(self.tree)
        taskspec.check_task(self.tree)
        output_schema = outputschema.read(self.tree, self.paths, allow_python=self.allow_python)
        shards = self._shards(backend)
        if name is None or backend is None or state is None or prompt is None or self.tree.found:
            return None
        guards = get("guards") or {}
        return Spec(
            path=self.paths.path,
            named=self.paths.named,
            name=name,
            env=self.env,
            description=get("description") or "",
            labels=get("labels") or {},
            backend=backend,
            state=state,
            state_uri=state_uri,
            inputs=inputs,
            allow_outside=self.paths.allow_outside,
            task=get("task") or "generate_content",
            model=get("model").removeprefix("models/"),
            prompt=prompt,
            system_instruction=system_instruction,
            generation_config=_generation_config(get("generation_config") or {}),
            embed_content_config=embedding,
            dimensions=taskspec.dimensions(self.tree, embedding),
            title=title,
            normalize=normalize,
            safety_settings=tuple(get("safety_settings") or ()),
            tools=tuple(get("tools") or ()),
            tool_config=get("tool_config"),
            cached_content=get("cached_content"),
            extra_body=get("extra_body") or {},
            variables=self.variables.values,
            sensitive=self.variables.sensitive,
            output_schema=output_schema,
            samples=samples,
            destinations=destinations,
            shards=shards,
            max_jobs=get("concurrency", "max_jobs") or 10,
            max_enqueued_tokens=get("concurrency", "max_enqueued_tokens"),
            guards=Guards(**guards),
            failures=failures,
            cleanup=get("cleanup") or "inputs",
            prevent_destroy=get("lifecycle", "prevent_destroy") or False,
            lines=self._lines(),
            origin=Origin(self.tree.marks, frozenset(self.tree.used), self.variables),
        )

    def _lines(self) -> dict[str, int]:
        """Lines of the keys that stand in the spec's own file, not in one it extends."""
        marks, main = self.tree.marks, self.tree.marks[()].source
        return {key: marks[(key,)].key_line for key in self.tree.value if marks[(key,)].source is main}

    # ------------------------------------------------------------ inputs

    def _inputs(self) -> tuple[Source, ...]:
        value = self.tree.get("inputs")
        places: list[Place] = (
            [("inputs", i) for i in range(len(value))] if isinstance(value, list) else [("inputs",)]
        )
        found = [self._source(place) for place in places if self.tree.sound(*place)]
        return tuple(source for source in found if source is not None)

    def _source(self, place: Place) -> Source | None:
        value = self.tree.get(*place)
        if isinstance(value, str):
            self._glob(place, value)
            return FilesSource(glob=_clean_glob(value))
        if "bigquery" in value:
            return bigqueryspec.source(self.tree, self.paths, place)
        files = value["files"]
        exclude, encoding = files.get("exclude", ()), files.get("encoding", "utf-8")
        self._glob((*place, "files", "glob"), files["glob"])
        self._encoding((*place, "files", "encoding"), encoding)
        for index, pattern in enumerate([exclude] if isinstance(exclude, str) else exclude):
            step = () if isinstance(exclude, str) else (index,)
            self._compiles((*place, "files", "exclude", *step), pattern)
        return FilesSource(
            glob=_clean_glob(files["glob"]),
            exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
            encoding=encoding,
            on_bad_row=value.get("on_bad_row", "fail"),
        )

    def _glob(self, place: Place, glob: str) -> None:
        if "://" in glob:
            self.tree.problem(place, "GB107", *shape.not_built(f'an input at "{glob}"'))
        elif glob.endswith("/") or (not globs.has_wildcard(glob) and self.paths.is_folder(glob)):
            message = f'"{glob}" names a folder, not files'
            hint = f'write "{glob.rstrip("/")}/**/*" for all files below it'
            self.tree.problem(place, "GB205", message, hint)
        elif _SHELL.search(glob):
            message = f'"{glob}" is written for a shell: neither {{a,b}} nor ~ stands for anything here'
            hint = "list several globs, or write the folder out; [{] is a literal {"
            self.tree.problem(place, "GB205", message, hint)
        else:
            parts = glob.split("/")
            wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
            if ".." in parts[wild:]:
                message = f'"{glob}" has ".." after a wildcard'
                self.tree.problem(place, "GB205", message, "name the folder itself")
            elif self._compiles(place, glob):
                self.paths.inside(place, "/".join(parts[:wild]) or ("/" if glob.startswith("/") else "."))

    def _compiles(self, place: Place, glob: str) -> bool:
        try:
            globs.compile_glob(glob)
        except re.error:
            message = f'"{glob}" is not a glob: a range in [...] cannot be read'
            self.tree.problem(place, "GB205", message)
            return False
        return True

    def _encoding(self, place: Place, encoding: str) -> None:
        try:
            # Some codecs turn bytes into bytes (`zip`); only those that make text can read a row.
            is_text = codecs.lookup(encoding)._is_text_encoding
        except (LookupError, ValueError):
            is_text = False
        if not is_text:
            message = f'"{encoding}" is not a text encoding that Python knows'
            self.tree.problem(place, "GB204", message, "for example utf-8, utf-16, cp1252, latin-1")

    def _shards(self, backend: BackendSpec | None) -> ShardLimits:
        task = self.tree.get("task") if self.tree.sound("task") else None
        ceiling = backendspec.ceilings(backend.protocol if backend else "gemini", task or "generate_content")
        most = min(MAX_SHARD_BYTES, ceiling.max_bytes)
        if self.tree.sound("shards", "max_bytes"):
            most = byte_count(self.tree.get("shards", "max_bytes"))
            shape.check_bounds(self.tree, ("shards", "max_bytes"), most, "bytes")
            self._under("max_bytes", most, ceiling.max_bytes)
        tokens = self.tree.get("concurrency", "max_enqueued_tokens")
        if isinstance(tokens, int):
            # A shard over the limit could never be submitted.
            most = min(most, tokens * BYTES_PER_TOKEN)
        max_requests = self.tree.get("shards", "max_requests") or MAX_REQUESTS
        self._under("max_requests", max_requests, ceiling.max_requests)
        return ShardLimits(max_requests=max_requests, max_bytes=most)

    def _under(self, key: str, value: Json, ceiling: int) -> None:
        """Report a limit above the service's own."""
        if self.tree.sound("shards", key) and isinstance(value, int) and value > ceiling:
            message = f'"{key}" must be at most {ceiling:,}, the service\'s own limit; it is {value:,}'
            self.tree.problem(("shards", key), "GB105", message)


def _clean_glob(glob: str) -> str:
    return glob.removeprefix("./")


def _generation_config(config: Mapping[str, Json]) -> Mapping[str, Json]:
    """The config with `thinking_level` in the service's capitals, so that `low` and `LOW` are one."""
    thinking = config.get("thinking_config")
    if isinstance(thinking, Mapping) and isinstance(thinking.get("thinking_level"), str):
        level = thinking["thinking_level"].upper()
        return {**config, "thinking_config": {**thinking, "thinking_level": level}}
    return config


_ADDED: tuple[tuple[tuple[str, ...], Json], ...] = (
    (("prevent_destroy",), False),
    (("backend", "mode"), "batch"),
    (("backend", "like"), "gemini"),
    (("backend", "project"), None),
    (("backend", "location"), None),
    (("backend", "staging_uri"), None),
    (("embed_content_config",), {}),
    (("title",), None),
    (("normalize",), False),
    (("samples",), structs.asdict(Samples())),
    (("failures", "retry"), Failures().retry),
    (("failures", "remedies"), {}),
    (("failures", "repair"), False),
)
"""Fields that were added to the spec since its first version, with their defaults."""


def resolved(spec: Spec) -> dict[str, Json]:
    """The spec as JSON: defaults filled in, texts and schema inline, nothing of this machine.

    Equal for two checkouts of the same files. Holds no absolute path and no sensitive value: a digest
    stands in its place, salted with the spec's and the variable's name.
    """
    folder = str(spec.folder)
    values = {
        field.name: _plain(getattr(spec, field.name)) for field in fields(spec) if field.name != "origin"
    }
    # Where the spec and its state lie is this machine's affair; `dimensions` follows from the rest.
    for key in ("path", "named", "lines", "state", "state_uri", "sensitive", "dimensions"):
        del values[key]
    for place, default in _ADDED:
        # Where a key of a later version is left out, the digest stays what it was.
        holder = values[place[0]] if len(place) == 2 else values
        if holder[place[-1]] == default:
            del holder[place[-1]]
    if spec.backend.faults is not None:
        values["backend"]["faults"] = _portable(spec.backend.faults, folder)
    if not spec.backend.paid:
        # The port of a loopback service changes from run to run.
        values["backend"]["base_url"] = None
    # Not the place of a template: a comment above the prompt must not make another spec.
    values["prompt"] = spec.prompt.text
    if spec.system_instruction is not None:
        values["system_instruction"] = spec.system_instruction.text
    if spec.title is not None:
        values["title"] = spec.title.text
    for source in values["inputs"]:
        if "id" in source:
            source["id"] = source["id"]["text"]
    for destination in values["destinations"]:
        if not destination["path"].startswith((bqtable.SCHEME, gcsuri.SCHEME)):
            destination["path"] = _portable(os.path.join(folder, destination["path"]), folder)
        if not destination["columns"]:
            del destination["columns"]
    secrets = {name: str(spec.variables[name]) for name in sorted(spec.sensitive & spec.variables.keys())}
    plain: dict[str, Json] = sealed(values, secrets, spec.name)
    plain["variables"].update({name: seal(name, secret, spec.name) for name, secret in secrets.items()})
    return plain


def _plain(value: Any) -> Json:
    """A copy of a part of a spec, with objects as mappings."""
    if isinstance(value, Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return list(map(_plain, value)) if isinstance(value, list) else value


def _portable(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def digest(spec: Spec) -> str:
    """32 hex digits that stand for the resolved spec."""
    data = orjson.dumps(resolved(spec), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:32]
