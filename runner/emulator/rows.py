"""One request line to the lines that come back for it, with the row rules of its job.

Effects: none of its own; it asks for digests of uploaded files and counts attempts through the
functions it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from runner.emulator import answers, spoils
from runner.emulator.faults import FILE_KINDS, RowRule, rule_name
from runner.emulator.jobs import Job
from runner.emulator.messages import check

DigestOf = Callable[[str], str | None]
"""SHA-256 of the upload behind a URI, empty for other places, None for an upload that is gone."""
Attempt = Callable[[str, bytes, str], int]
"""Notes that a rule met a request in a job; the how-manieth such job this is."""
_MENTIONS_FILE = re.compile(rb'"file(?:Data|_data)"')


class Rows:
    """Turns the request lines of one job into response lines."""

    def __init__(self, job: Job, digest_of: DigestOf, attempt: Attempt) -> None:
        self._job = job
        self._message = "Row" if job.input_file else "InlinedRequest"
        self._label = "key" if job.input_file else "metadata"
        self._rules = [(rule, rule_name(rule)) for rule in job.row_rules if rule.kind not in FILE_KINDS]
        self._digest_of = digest_of
        self._attempt = attempt

    def cancelled(self, line: bytes) -> bytes:
        """The line for a row that did not run before the job was cancelled."""
        return self._line(check(self._message, orjson.loads(line)), {"error": {"code": 1}})

    def answer(self, line: bytes, index: int) -> tuple[list[bytes], bool]:
        """The lines that come back, mostly one, and whether the row succeeded."""
        row = check(self._message, orjson.loads(line))
        request = row["request"]
        if _MENTIONS_FILE.search(line):
            gone = _pin_files(request, self._digest_of)
            if gone:
                return [self._line(row, {"error": {"code": 7, "message": _gone_message(gone)}})], False
        try:
            mark = answers.digest(request)
        except answers.Unanswerable as error:
            return [self._line(row, {"error": {"code": 3, "message": str(error)}})], False
        prompt = answers.prompt_of(request)
        rule = self._struck(index, row.get("key"), mark, prompt.text) if self._rules else None
        kind = rule.kind if rule else ""
        if kind == "missing":
            return [], False
        if kind == "null_line":
            return [b"null\n"], False
        if rule and kind == "row_error":
            message = rule.message or "Internal error encountered."
            return [self._line(row, {"error": {"code": rule.code or 13, "message": message}})], False
        try:
            response = answers.response(request, mark, prompt)
        except answers.Unanswerable as error:
            return [self._line(row, {"error": {"code": 3, "message": str(error)}})], False
        if kind:
            response = spoils.spoil(kind, response, request)
        lines = [self._line(row, {"response": response})]
        if kind == "duplicate":
            lines *= 2
        if kind == "extra_line":
            lines.append(self._line({"key": f"unasked-{mark.hex()}"}, {"response": response}))
        return lines, True

    def _line(self, row: dict[str, Any], body: dict[str, Any]) -> bytes:
        if self._label not in row:
            return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
        label = {self._label: row[self._label]}
        return orjson.dumps({**label, **body}, option=orjson.OPT_APPEND_NEWLINE)

    def _struck(self, index: int, key: str | None, mark: bytes, text: str) -> RowRule | None:
        for rule, name in self._rules:
            if not rule.takes(self._job.seed, index, key, mark, text):
                continue
            if rule.first_attempts is None or self._attempt(name, mark, self._job.id) <= rule.first_attempts:
                return rule
        return None


def _pin_files(request: dict[str, Any], digest_of: DigestOf) -> str:
    """Put digests in the place of upload addresses, which differ from run to run; the first that is gone."""
    for content in request["contents"]:
        for part in content["parts"]:
            data = part.get("fileData")
            if data and "fileUri" in data:
                digest = digest_of(data["fileUri"])
                if digest is None:
                    return str(data["fileUri"])
                if digest:
                    data["fileUri"] = f"sha256:{digest}"
    return ""


def _gone_message(uri: str) -> str:
    name = uri.rpartition("/")[2]
    return f"You do not have permission to access the File {name} or it may not exist."
