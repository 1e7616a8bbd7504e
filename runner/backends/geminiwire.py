"""The Developer API's JSON, read and written. Pure.

Jobs are read from raw JSON. The SDK's `BatchJob` drops `error`, `done`, `batchStats` and
`response`, so a failed job would have no reason and no counts, and it turns a state it does not
know into a warning.
Source: google-genai 3.4.0, batches.py `_BatchJob_from_mldev`, read 2026-11-21.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import BackendError
from runner.model import Job, JobState, Json

GONE = {403, 404}
"""What a missing file answers: 404, or 403 "or it may not exist".
Source: recorded replies of the service, 2026-09."""
TRANSIENT = {408, 429, 500, 502, 503, 504}
STATES = {
    "QUEUED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "UPDATING": JobState.RUNNING,
    "PAUSED": JobState.PAUSED,
    "CANCELLING": JobState.CANCELLING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "PARTIALLY_SUCCEEDED": JobState.PARTIAL,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "EXPIRED": JobState.EXPIRED,
}
"""After `BATCH_STATE_` or `JOB_STATE_`. Source: google-genai 3.4.0 types.JobState, and recorded
replies of the service, read 2026-11-21."""
_LINE_BREAK = re.compile(r"[\r\n]\s*")
_RPC_CODES = {400: 3, 403: 7, 404: 5}


# ---------------------------------------------------------------- calls


def model_path(model: str) -> str:
    """`models/...`"""
    return model if "/" in model else f"models/{model}"


def create_call(task: str, upload_name: str, display_name: str) -> tuple[str, dict[str, Json]]:
    """(method, body) that makes a job of an uploaded file.

    Source: what google-genai 3.4.0 sends, recorded; for embeddings it spells the file's field so.
    """
    if task == "embed_content":
        method, field = "asyncBatchEmbedContent", "file_name"
    else:
        method, field = "batchGenerateContent", "fileName"
    return method, {"batch": {"inputConfig": {field: upload_name}, "displayName": display_name}}


def answer_call(task: str, model: str, request: Mapping[str, Json]) -> tuple[str, dict[str, Json]]:
    """(method, body) that asks one request of a batch file synchronously."""
    if task == "embed_content":
        return "embedContent", {"model": model_path(model), **request}
    return "generateContent", dict(request)


def response_line(key: str, kind: str, text: str) -> bytes:
    """A line of a batch's output, `kind` being `response` or `error`; `text` is its JSON object, verbatim.

    Raises ValueError where it is none.
    """
    if not _is_object(text):
        raise ValueError(f"the reply is not an object: {text[:200]}")
    # Replies come in several lines. A break inside a string is an escape, so none of these is.
    return f'{{"key":{json.dumps(key)},"{kind}":{_LINE_BREAK.sub("", text)}}}\n'.encode()


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        # Whole as far as that can be told: numbers without end, nested without end. Whoever reads the line
        # says what becomes of it.
        return text.lstrip().startswith("{") and text.rstrip().endswith("}")


# ---------------------------------------------------------------- refusals


def problem(what: str, http_status: int, details: Json) -> BackendError:
    """The service's refusal in its own words; `status` stays empty where it sent no status body."""
    said = error_of(details)
    other = details.get("message") if isinstance(details, dict) else ""
    status = str(said.get("status") or "")
    message = str(said.get("message") or other or "").strip()[:2000]
    hint = ""
    if http_status in (401, 403) or _is_about_the_key(said):
        hint = "check that GOOGLE_API_KEY or GEMINI_API_KEY holds a key of the right project"
    return BackendError(
        f"{what}: {message or 'no reason given'} ({' '.join([str(http_status), status]).strip()})",
        hint=hint,
        status=status,
        http_status=http_status,
        transient=http_status in TRANSIENT,
    )


def row_error(http_status: int, details: Json, request: Mapping[str, Json]) -> dict[str, Json] | None:
    """The error of a row, where the refusal of a synchronous call is about its request alone.

    That is an invalid argument (but for the API key), and a file that the request refers to and that
    is not there. None for everything else, such as a model that does not exist.
    """
    said = error_of(details)
    message = str(said.get("message") or "")
    if http_status == 400:
        own = said.get("status") == "INVALID_ARGUMENT" and not _is_about_the_key(said)
    elif http_status == 403:
        own = "or it may not exist" in message and _refers_to_a_file(request)
    else:
        own = http_status == 404 and bool(said) and "models/" not in message and _refers_to_a_file(request)
    if not own:
        return None
    return {"code": _RPC_CODES[http_status], "message": message, "status": said.get("status")}


def error_of(details: Json) -> Mapping[str, Json]:
    """The service's `error` object in a reply, empty where there is none."""
    body = details.get("error") if isinstance(details, dict) else None
    return body if isinstance(body, dict) else {}


def _is_about_the_key(said: Mapping[str, Json]) -> bool:
    return "API_KEY_INVALID" in json.dumps(said.get("details") or "")


def _refers_to_a_file(request: Mapping[str, Json]) -> bool:
    text = json.dumps(request)
    return '"fileData"' in text or '"file_data"' in text


# ---------------------------------------------------------------- jobs


def read_job(operation: Mapping[str, Any], *, listed: bool = False) -> Job:
    """The job of an operation. Raises `BackendError` for a state that gbrun does not know, unless it is
    one of those `listed`."""
    meta = operation.get("metadata") or {}
    word = str(meta.get("state") or "").rpartition("STATE_")[2]
    if word not in STATES and not listed:
        raise BackendError(
            f"the job {operation['name']} is in a state that is not known here: {word or '(none)'}",
            hint="look for a newer version of gbrun",
        )
    error = operation.get("error") or {}
    output = _output(operation)
    inline = operation["name"] if "inlinedResponses" in output else ""
    stats = meta.get("batchStats") or {}
    counts = {
        name: int(stats[field])
        for name, field in (
            ("request", "requestCount"),
            ("successful", "successfulRequestCount"),
            ("failed", "failedRequestCount"),
            ("pending", "pendingRequestCount"),
        )
        if field in stats
    }
    return Job(
        job_name=operation["name"],
        display_name=str(meta.get("displayName") or ""),
        state=STATES.get(word, JobState.UNKNOWN),
        model=str(meta.get("model") or "").removeprefix("models/"),
        output_name=str(output.get("responsesFile") or inline),
        error_code=int(error.get("code") or 0),
        error_message=str(error.get("message") or ""),
        create_time=str(meta.get("createTime") or ""),
        end_time=str(meta.get("endTime") or ""),
        counts=counts,
    )


def inline_lines(operation: Mapping[str, Any]) -> Iterator[bytes]:
    """The answers inside an operation as the lines of an output file; keys stay in `metadata`.

    In ASCII: an answer may hold half a surrogate pair, which has no bytes in UTF-8.
    """
    for entry in _output(operation)["inlinedResponses"].get("inlinedResponses") or []:
        yield json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _output(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    return (operation.get("metadata") or {}).get("output") or operation.get("response") or {}


# ---------------------------------------------------------------- files


def sha256_of(text: str) -> str:
    """The hex digest that a `sha256Hash` stands for, empty where it cannot be read.

    The field is bytes in JSON, so base64, and has been seen as base64 of the hex text too.
    """
    candidates = [text.encode()]
    try:
        padded = text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4)
        candidates.append(base64.b64decode(padded, validate=True))
    except (binascii.Error, ValueError):
        pass
    if re.fullmatch(r"[0-9a-fA-F]{128}", text):
        candidates.append(bytes.fromhex(text))
    for candidate in candidates:
        if len(candidate) == 32:
            return candidate.hex()
        if re.fullmatch(rb"[0-9a-fA-F]{64}", candidate):
            return candidate.decode().lower()
    return ""
