"""Names, times and error bodies as the service writes them. Pure, apart from ids and the clock.

Source: recorded Developer API bodies (operations, error envelopes), 2025-06 to 2026-09.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from runner.emulator.messages import Problem, dotted

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_MODEL = re.compile(r"(?:models/)?((?:gemini|gemma)-[a-z0-9][a-z0-9.-]*)")
_RETIRED = re.compile(r"gemini-(?:1\.0|1\.5|2\.0-flash)|gemini-pro$|gemini-pro-vision$")
FILE_ID_LENGTH = 40
"""Characters of a file id that files.get and files.delete take; ids of batch outputs have 42."""
FILE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
STATUS = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    411: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status to google.rpc status."""
_RPC = {
    1: (499, "CANCELLED"), 2: (500, "UNKNOWN"), 3: (400, "INVALID_ARGUMENT"), 4: (504, "DEADLINE_EXCEEDED"),
    5: (404, "NOT_FOUND"), 6: (409, "ALREADY_EXISTS"), 7: (403, "PERMISSION_DENIED"),
    8: (429, "RESOURCE_EXHAUSTED"), 9: (400, "FAILED_PRECONDITION"), 10: (409, "ABORTED"),
    11: (400, "OUT_OF_RANGE"), 12: (501, "UNIMPLEMENTED"), 13: (500, "INTERNAL"), 14: (503, "UNAVAILABLE"),
    15: (500, "DATA_LOSS"), 16: (401, "UNAUTHENTICATED"),
}  # fmt: skip
"""google.rpc code to HTTP status and name. Source: googleapis google/rpc/code.proto."""


@dataclass
class ApiError(Exception):
    """An answer other than 200; `details` holds google.rpc error details."""

    http_status: int
    message: str
    details: list[dict[str, Any]] = field(default_factory=list)
    status: str = ""
    """The google.rpc status where it is not the usual one of `http_status`."""

    def body(self) -> dict[str, Any]:
        """The envelope that the service sends."""
        error: dict[str, Any] = {
            "code": self.http_status,
            "message": self.message,
            "status": self.status or STATUS.get(self.http_status, "UNKNOWN"),
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}


def not_found() -> ApiError:
    """What every missing batch and output is answered with."""
    return ApiError(404, "Requested entity was not found.")


def of_rpc(code: int, message: str) -> ApiError:
    """What a synchronous call answers where a batch's row would have this google.rpc code."""
    http_status, status = _RPC[code]
    return ApiError(http_status, message, status=status)


def bad_body(problem: Problem) -> ApiError:
    """The service's words for a request body that it cannot parse or refuses."""
    place = dotted(problem.path)
    if problem.unknown:
        text = f'Invalid JSON payload received. Unknown name "{problem.unknown}"'
        text += f" at '{place}': Cannot find field." if place else ": Cannot find field."
    else:
        text = f"* {place}: {problem.message}\n" if place else problem.message
    violation = {"field": place, "description": text}
    kind = "type.googleapis.com/google.rpc.BadRequest"
    return ApiError(400, text, [{"@type": kind, "fieldViolations": [violation]}])


def quota() -> ApiError:
    """A 429 as it is seen live: a Help detail and no RetryInfo."""
    url = "https://ai.google.dev/gemini-api/docs/rate-limits"
    link = {"description": "Learn more about Gemini API quotas", "url": url}
    message = (
        "You exceeded your current quota, please check your plan and billing details. "
        f"For more information on this error, head to: {url}. "
    )
    return ApiError(429, message, [{"@type": "type.googleapis.com/google.rpc.Help", "links": [link]}])


def model_name(model: str, version: str, method: str) -> str:
    """`models/...` of a model that exists. Raises ApiError 404 for every other one.

    The emulator takes every gemini- and gemma- name but those that were shut down; `-latest`
    aliases exist on v1beta only. A model that embeds does nothing else, and no other does.
    """
    found = _MODEL.fullmatch(model)
    name = found[1] if found else ""
    known = bool(name) and not _RETIRED.match(name) and embeds(name) == ("embed" in method.lower())
    if not known or (name.endswith("-latest") and version == "v1"):
        shown = model if model.startswith("models/") else f"models/{model}"
        raise ApiError(
            404,
            f"{shown} is not found for API version {version}, or is not supported for {method}. "
            "Call ModelService.ListModels to see the list of available models and their supported methods.",
        )
    return f"models/{name}"


def embeds(model: str) -> bool:
    """Whether a model makes embeddings."""
    return "embedding" in model


def new_id(length: int) -> str:
    """A random id of lower-case letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def now_ns() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


def timestamp(time_ns: int, digits: int = 9) -> str:
    """A UTC time such as `2026-01-06T11:09:11.943530657Z`."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{rest:09d}"[: len(stamp) + 1 + digits] + "Z"


def page_token(position: int) -> str:
    """An opaque token for the page after `position`."""
    return base64.urlsafe_b64encode(b"p%d" % position).decode()


def page_position(token: str) -> int:
    """The position in a page token. Raises ApiError 400 for a token that was never given out."""
    try:
        text = base64.urlsafe_b64decode(token).decode()
        if text.startswith("p"):
            return int(text[1:])
    except ValueError:
        pass
    raise ApiError(400, "The page token is invalid.")
