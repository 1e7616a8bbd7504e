"""A canonical request to its response or error, the same in a batch and at a synchronous call.

Effects: none of its own; it asks for digests of uploaded files and counts attempts through the
functions it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runner.emulator import answers, embeddings, spoils
from runner.emulator.faults import RowRule, rule_name
from runner.emulator.wire import embeds

DigestOf = Callable[[str], str | None]
"""SHA-256 of the upload behind a URI, empty for other places, None for an upload that is gone."""
Attempt = Callable[[str, bytes, str], int]
"""Notes that a rule met a request in a job or call; the how-manieth such one this is."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request gets; one of `response` and `error` is there."""

    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    kind: str = ""
    """The kind of the row rule that struck."""
    mark: bytes = b""
    """The request's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """Answers the requests of one job, or of one call."""

    model: str
    """`models/...`"""
    rules: Sequence[RowRule]
    seed: int
    work: str
    """The job's id, or the call's."""
    digest_of: DigestOf
    attempt: Attempt

    def reply(self, request: dict[str, Any], *, index: int = 0, key: str | None = None) -> Reply:
        """The reply to a canonical request that `rules.asked` let through."""
        embedding = embeds(self.model)
        contents = [request["content"]] if embedding else request["contents"]
        gone = _pin_files(contents, self.digest_of)
        if gone:
            name = gone.rpartition("/")[2]
            message = f"You do not have permission to access the File {name} or it may not exist."
            return _refused(7, message)
        try:
            mark = answers.digest(request)
            prompt = None if embedding else answers.prompt_of(request)
            text = prompt.text if prompt else embeddings.text_of(request)
            rule = self._struck(index, key, mark, text) if self.rules else None
            kind = rule.kind if rule else ""
            if rule and kind == "row_error":
                return _refused(rule.code or 13, rule.message or "Internal error encountered.", kind)
            if prompt is None:
                response = spoils.spoil_embedding(kind, embeddings.response(request, self.model))
            else:
                response = answers.response(request, mark, prompt)
                if rule:
                    response = spoils.spoil(kind, response, request, rule.flaw)
        except answers.Unanswerable as error:
            return _refused(3, str(error))
        return Reply(response=response, kind=kind, mark=mark)

    def _struck(self, index: int, key: str | None, mark: bytes, text: str) -> RowRule | None:
        for rule in self.rules:
            if not rule.takes(self.seed, index, key, mark, text):
                continue
            limit = rule.first_attempts
            if limit is None or self.attempt(rule_name(rule), mark, self.work) <= limit:
                return rule
        return None


def _refused(code: int, message: str, kind: str = "") -> Reply:
    return Reply(error={"code": code, "message": message}, kind=kind)


def _pin_files(contents: list[dict[str, Any]], digest_of: DigestOf) -> str:
    """Put digests in the place of upload addresses, which differ from run to run; the first that is gone."""
    for content in contents:
        for part in content["parts"]:
            data = part.get("fileData")
            if data and "fileUri" in data:
                digest = digest_of(data["fileUri"])
                if digest is None:
                    return str(data["fileUri"])
                if digest:
                    data["fileUri"] = f"sha256:{digest}"
    return ""
