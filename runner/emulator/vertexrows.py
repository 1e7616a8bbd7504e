"""Request lines on Vertex to the rows that come back, and to the objects that hold them.

Rows come in another order than they went in, in several files; each echoes its request with its keys in
another order and with nulls, and says in `status` whether it failed. What is answered is what the Developer
API answers to the same request.

Source: rows and folders of live jobs, 2026-09.
"""

from __future__ import annotations

import http
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from runner.emulator import rules, wire
from runner.emulator.faults import FILE_KINDS
from runner.emulator.gcs import Objects
from runner.emulator.gcswire import Conditions
from runner.emulator.jobs import Job
from runner.emulator.messages import Problem, check
from runner.emulator.replies import Attempt, DigestOf, Replies
from runner.emulator.wire import ApiError

_LEAST_LINES, _MOST_LINES = 2, 500
"""Of one object."""
_MOST_BYTES = 8 << 20


class VertexRows:
    """Turns the request lines of one job into rows."""

    def __init__(self, job: Job, keys_are_numbers: bool, digest_of: DigestOf, attempt: Attempt) -> None:
        self._model = job.model
        self._keys_are_numbers = keys_are_numbers
        # The same whenever the job is computed.
        self._processed = wire.timestamp(job.created_ns, 3)[:-1] + "+00:00"
        self._replies = Replies(
            model=job.model,
            rules=[rule for rule in job.row_rules if rule.kind not in FILE_KINDS],
            seed=job.seed,
            work=job.id,
            digest_of=digest_of,
            attempt=attempt,
        )

    def cancelled(self, line: bytes) -> list[bytes]:
        """Rows that did not run before the job was cancelled do not come back."""
        return []

    def answer(self, line: bytes, index: int) -> tuple[list[bytes], bool]:
        """The lines that come back, mostly one, and whether the row succeeded."""
        row = orjson.loads(line)
        key = row.get("key")
        try:
            request = canonical(row.get("request"), self._model)
        except ApiError as error:
            return [self._line(row, error, None)], False
        reply = self._replies.reply(request, index=index, key=key if isinstance(key, str) else None)
        if reply.kind == "missing":
            return [], False
        if reply.kind == "null_line":
            return [b"null\n"], False
        if reply.error is not None:
            refused = wire.of_rpc(reply.error["code"], reply.error["message"])
            return [self._line(row, refused, None)], False
        lines = [self._line(row, None, reply.response)]
        if reply.kind == "duplicate":
            lines *= 2
        if reply.kind == "extra_line":
            unasked = {"key": f"unasked-{reply.mark.hex()}", "request": row["request"]}
            lines.append(self._line(unasked, None, reply.response))
        return lines, True

    def _line(self, row: dict[str, Any], error: ApiError | None, response: dict[str, Any] | None) -> bytes:
        siblings = {name: value for name, value in row.items() if name != "request"}
        if self._keys_are_numbers and "key" in siblings:
            siblings["key"] = orjson.loads(str(siblings["key"]).lstrip("0") or "0")
        body: dict[str, Any] = {"status": "" if error is None else _status(error)}
        body |= {"processed_time": self._processed, **siblings, "request": _echoed(row.get("request"))}
        if response is not None:
            body["response"] = response
        return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def canonical(body: Any, model: str) -> dict[str, Any]:
    """The canonical form of a request, as the Developer API would have it. Raises ApiError 400."""
    try:
        if wire.embeds(model):
            found = check("VertexEmbedRequest", body)
            config = found.pop("embedContentConfig", {})
            config.pop("autoTruncate", None)
            request: dict[str, Any] = {**found, **config}
            rules.embedding(request, model)
            request["content"].pop("role", None)
            return request
        request = check("GenerateContentRequest", body)
        request.pop("labels", None)
        for index, content in enumerate(request.get("contents", ())):
            if content.get("role") not in ("user", "model"):
                problem = Problem("Please use a valid role: user, model.")
                problem.path = ["contents", index, "role"]
                raise problem
        rules.request(request)
        if "systemInstruction" in request:
            request["systemInstruction"].pop("role", None)
    except Problem as problem:
        raise wire.bad_body(problem) from None
    return request


def publish(objects: Objects, job: Job, folder: str, rows: Path) -> None:
    """Put a job's rows below `folder` (`gs://bucket/...`), in the place of what was there.

    A bucket that is gone by then loses them.
    """
    bucket, _, name = folder.removeprefix("gs://").partition("/")
    try:
        for record in list(objects.list(bucket, f"{name}/", "", "")):
            objects.delete(bucket, record["name"], Conditions(), None)
        for number, data in enumerate(_files(rows), 1):
            wanted = {"name": f"{name}/predictions_{number:04}.jsonl"}
            objects.put(bucket, wanted, data, Conditions())
    except ApiError:
        return


def _files(rows: Path) -> Iterator[bytes]:
    with rows.open("rb") as lines:
        total = sum(1 for _ in lines)
        most = min(_MOST_LINES, max(_LEAST_LINES, total // 3))
        lines.seek(0)
        held: list[bytes] = []
        size = 0
        for line in lines:
            held.append(line)
            size += len(line)
            if len(held) >= most or size >= _MOST_BYTES:
                yield b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)


def _status(error: ApiError) -> str:
    try:
        phrase = http.HTTPStatus(error.http_status).phrase
    except ValueError:
        phrase = "Client Closed Request"
    return f"{phrase}: {orjson.dumps(error.body()).decode()}"


def _echoed(value: Any) -> Any:
    if isinstance(value, dict):
        out = {name: _echoed(value[name]) for name in sorted(value, reverse=True)}
        return {**out, "fileData": None} if "text" in out else out
    if isinstance(value, list):
        return [_echoed(item) for item in value]
    return value
