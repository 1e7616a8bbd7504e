"""Vertex AI over HTTP: routes below `projects/P/locations/L`, and who may call them."""

from __future__ import annotations

import re
from typing import Any

import orjson

from runner.emulator import vertex, wire
from runner.emulator.exchange import Exchange
from runner.emulator.wire import ApiError

_PLACE = r"/(?P<version>v1|v1beta1)/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/"
_JOBS = "batchPredictionJobs"
_ROUTES: tuple[tuple[str, re.Pattern[str], str, str], ...] = tuple(
    (method, re.compile(_PLACE + path), name, word)
    for method, path, name, word in (
        ("POST", _JOBS, "create", "create"),
        ("GET", _JOBS, "list", "list"),
        ("GET", rf"{_JOBS}/(?P<job>[0-9]+)", "get", "get"),
        ("DELETE", rf"{_JOBS}/(?P<job>[0-9]+)", "delete", "delete"),
        ("POST", rf"{_JOBS}/(?P<job>[0-9]+):cancel", "cancel", "cancel"),
        ("GET", r"operations/(?P<job>[0-9]+)", "operation", "get"),
        ("POST", r"publishers/google/models/(?P<model>[^/:]+):generateContent", "generate", "generate"),
        ("POST", r"publishers/google/models/(?P<model>[^/:]+):embedContent", "embed", "generate"),
        ("POST", r"publishers/google/models/(?P<model>[^/:]+):countTokens", "count_tokens", "generate"),
    )
)
"""Method, path, the name of what answers, and the word that fault rules use."""


def concerns(path: str) -> bool:
    """Whether a request path belongs to Vertex."""
    return re.match(r"/v1(?:beta1)?/projects/", path) is not None


def answer(exchange: Exchange, path: str, query: dict[str, str]) -> None:
    """Answer one request. Raises ApiError for every answer that is an error."""
    name, word, found = _route(exchange.command, path)
    _check_token(exchange)
    body = exchange.body()
    service = exchange.server.service
    rule = service.plan.strike_http(word, service.tally)
    exchange.before(rule)
    exchange.reply(_call(service.vertex, name, found, query, body), rule)


def _call(
    service: vertex.Vertex, name: str, found: re.Match[str], query: dict[str, str], body: bytes
) -> dict[str, Any]:
    place = found["project"], found["location"]
    match name:
        case "create":
            return service.create(*place, found["version"], _parsed(body))
        case "list":
            return service.list(*place, query)
        case "get":
            return service.get(*place, found["job"])
        case "cancel":
            return service.cancel(*place, found["job"])
        case "delete":
            return service.delete(*place, found["job"])
        case "operation":
            return service.operation(*place, found["job"])
    method = "embedContent" if name == "embed" else "generateContent"
    try:
        model = wire.model_name(found["model"], found["version"], method)
    except ApiError:
        raise vertex.model_gone(*place, found["model"]) from None
    if name == "generate":
        return service.generate(model, _parsed(body))
    if name == "embed":
        return service.embed(model, _parsed(body))
    return service.count_tokens(model, _parsed(body))


def _check_token(exchange: Exchange) -> None:
    scheme, _, token = exchange.headers.get("Authorization", "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    token = token or exchange.headers.get("x-goog-api-key", "")
    if not token or token == "invalid":
        raise ApiError(
            401,
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or "
            "other valid authentication credential.",
            status="UNAUTHENTICATED",
        )


def _route(command: str, path: str) -> tuple[str, str, re.Match[str]]:
    for method, pattern, name, word in _ROUTES:
        found = pattern.fullmatch(path) if method == command else None
        if found:
            return name, word, found
    raise wire.not_found()


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"Invalid JSON payload received. {error.msg} at column {error.colno}.") from None
