"""The backend that a spec, the command line or the environment chooses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from runner import shape
from runner.errors import Diagnostic
from runner.marks import Place
from runner.model import BackendSpec
from runner.specpaths import SpecPaths
from runner.tree import Tree
from runner.units import seconds

KINDS = ("local", "gemini")
_DURATIONS = ("poll_interval_s", "request_timeout_s", "settle_s", "stall_after_s")


def choose(
    tree: Tree, paths: SpecPaths, environ: Mapping[str, str], override: str | None
) -> BackendSpec | None:
    """The backend; None after reporting that none is chosen or that it cannot be.

    `override` (`--backend`) wins over the spec; where neither names one, `environ` decides as it does
    for google-genai. Settings of the spec are kept when its type is the chosen one.
    """
    value = tree.get("backend")
    if value is not None and not tree.sound("backend"):
        return None
    settings = dict(value) if isinstance(value, Mapping) else {"type": value} if value else {}
    if override is not None and override not in KINDS:
        _refuse(tree, override)
        return None
    if override is not None and settings.get("type") != override:
        settings = {"type": override}
    kind = settings.get("type") or _from_environment(tree, environ)
    if kind is None:
        return None
    is_local = kind == "local"
    if is_local and "base_url" in settings:
        message = '"base_url" does not go with the backend local, which starts its own emulator'
        tree.problem(("backend", "base_url"), "GB502", message, "use `type: gemini` with it", key=True)
    if not is_local and "faults" in settings:
        message = '"faults" goes only with the backend local'
        tree.problem(("backend", "faults"), "GB502", message, "remove it", key=True)
    faults = paths.existing_file(("backend", "faults")) if is_local and "faults" in settings else None
    base_url = None if is_local else settings.get("base_url") or environ.get("GOOGLE_GEMINI_BASE_URL") or None
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
    return BackendSpec(**settings)


def _refuse(tree: Tree, override: str) -> None:
    code, message = "GB104", f'backend must be one of {", ".join(KINDS)}; it is "{override}"'
    hint = shape.suggest(override, KINDS)
    if override == "vertex":
        code = "GB107"
        message, hint = shape.not_built('backend "vertex"')
    tree.add((), Diagnostic(code=code, message=message, path="--backend", hint=hint))


def _from_environment(tree: Tree, environ: Mapping[str, str]) -> str | None:
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        if environ.get(name, "").lower() in ("true", "1"):
            message, _ = shape.not_built(f'the backend "vertex", which {name} chooses,')
            tree.problem((), "GB107", message, "write `backend: local` or `backend: gemini`")
            return None
    if environ.get("GOOGLE_API_KEY") or environ.get("GEMINI_API_KEY"):
        return "gemini"
    message = "no backend is chosen: the spec has none, and the environment has no API key"
    hint = "write `backend: local` (free, on this machine), or set GEMINI_API_KEY for `backend: gemini`"
    tree.problem((), "GB501", message, f"{hint}; `vertex` is not built yet")
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
