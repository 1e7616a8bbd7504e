"""One request line to the lines that come back for it, with the row rules of its job."""

from __future__ import annotations

from typing import Any

import orjson

from runner.emulator.faults import FILE_KINDS
from runner.emulator.jobs import Job
from runner.emulator.messages import check
from runner.emulator.replies import Attempt, DigestOf, Replies
from runner.emulator.wire import embeds


class Rows:
    """Turns the request lines of one job into response lines."""

    def __init__(self, job: Job, digest_of: DigestOf, attempt: Attempt) -> None:
        names = ("EmbedRow", "InlinedEmbedRequest") if embeds(job.model) else ("Row", "InlinedRequest")
        self._message = names[0] if job.input_file else names[1]
        self._label = "key" if job.input_file else "metadata"
        self._replies = Replies(
            model=job.model,
            rules=[rule for rule in job.row_rules if rule.kind not in FILE_KINDS],
            seed=job.seed,
            work=job.id,
            digest_of=digest_of,
            attempt=attempt,
        )

    def cancelled(self, line: bytes) -> list[bytes]:
        """The line for a row that did not run before the job was cancelled."""
        return [self._line(check(self._message, orjson.loads(line)), {"error": {"code": 1}})]

    def answer(self, line: bytes, index: int) -> tuple[list[bytes], bool]:
        """The lines that come back, mostly one, and whether the row succeeded."""
        row = check(self._message, orjson.loads(line))
        reply = self._replies.reply(row["request"], index=index, key=row.get("key"))
        if reply.kind == "missing":
            return [], False
        if reply.kind == "null_line":
            return [b"null\n"], False
        if reply.error is not None:
            return [self._line(row, {"error": reply.error})], False
        lines = [self._line(row, {"response": reply.response})]
        if reply.kind == "duplicate":
            lines *= 2
        if reply.kind == "extra_line":
            unasked = {"key": f"unasked-{reply.mark.hex()}"}
            lines.append(self._line(unasked, {"response": reply.response}))
        return lines, True

    def _line(self, row: dict[str, Any], body: dict[str, Any]) -> bytes:
        if self._label not in row:
            return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
        label = {self._label: row[self._label]}
        return orjson.dumps({**label, **body}, option=orjson.OPT_APPEND_NEWLINE)
