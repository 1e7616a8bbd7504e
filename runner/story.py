"""The story of one row: what it asks, what was sent, what came back, how it was judged. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from runner.model import Answer, Attempt, BadRow, Stored
from runner.results import Stray

_MAX_TEXT_LINES = 60
_MAX_LINE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Chapter:
    """One request of the row."""

    request_id: str
    stored: Stored | None
    attempt: Attempt | None
    sent: bytes
    """The request's line as it was submitted, empty where that is not known."""
    response: bytes
    """The response line, empty where none came back."""
    answer: Answer | Stray | None


def tell(key: str, outcome: str, bad: BadRow | None, chapters: Sequence[Chapter]) -> list[str]:
    """The story as lines for a terminal."""
    lines = [f"{key}  {outcome or 'no outcome yet'}"]
    if bad is not None:
        place = f"{bad.path}:{bad.line}: " if bad.path else ""
        lines.append(f"  never sent: {place}{bad.message}  [{bad.code}]")
    for chapter in chapters:
        lines += ["", f"request {chapter.request_id}"]
        lines += _sent(chapter)
        lines += _came_back(chapter)
    return lines


def _sent(chapter: Chapter) -> list[str]:
    lines = []
    attempt, stored = chapter.attempt, chapter.stored
    if attempt is not None:
        job = f"  {attempt.job_name}" if attempt.job_name else ""
        state = f"  {attempt.job_state.replace('_', ' ')}" if attempt.job_state else ""
        lines.append(f"  attempt {attempt.token}{job}{state}")
    if stored is not None and stored.jobs > 1:
        lines.append(f"  finished jobs that contained it: {stored.jobs}")
    return [*lines, *sent_lines(chapter.sent)] if chapter.sent else lines


def sent_lines(sent: bytes) -> list[str]:
    """What a request line asks: its texts and its settings."""
    body = orjson.loads(sent)["request"]
    lines = []
    content = [body["content"]] if "content" in body else body.get("contents", [])
    for name, contents in (
        ("system instruction", [body["systemInstruction"]] if "systemInstruction" in body else []),
        ("prompt", content),
    ):
        texts = [part.get("text", "") for item in contents for part in item.get("parts", [])]
        if texts:
            lines += [f"  {name}:", *quoted("\n".join(texts))]
    config = body.get("generationConfig") or {
        key: value for key, value in body.items() if "content" in body and key != "content"
    }
    if config:
        name = "generationConfig" if "generationConfig" in body else "settings"
        lines.append(f"  {name}: {json.dumps(config, ensure_ascii=False)}")
    return lines


def _came_back(chapter: Chapter) -> list[str]:
    stored, answer = chapter.stored, chapter.answer
    if stored is None:
        return ["  no outcome yet"]
    code = f" {stored.code}" if stored.code else ""
    lines = [f"  outcome: {stored.outcome}{code}"]
    if stored.message:
        lines.append(f"  because: {stored.message}")
    if stored.remedies:
        lines.append(f"  sent in the place of another, with {stored.remedies}")
    if stored.remedied_by:
        settings = json.dumps(stored.remedy, ensure_ascii=False)
        lines.append(f"  remedied by: {stored.remedied_by} with {settings}")
    if stored.accepted:
        lines.append("  accepted: taken as final, not tried again")
    if stored.finish_reason:
        lines.append(f"  finish reason: {stored.finish_reason}")
    if stored.model_version:
        lines.append(f"  model version: {stored.model_version}")
    if stored.usage:
        lines.append("  tokens: " + ", ".join(f"{count:,} {name}" for name, count in stored.usage.items()))
    lines += _told_beside(chapter.response)
    if isinstance(answer, Answer):
        text = answer.text or (answer.raw if isinstance(answer.raw, str) else "")
        if answer.repaired:
            found = (
                "repaired by json_repair" if answer.repaired == "library" else f"found in {answer.repaired}"
            )
            lines.append(f"  JSON {found}")
        if text:
            return [*lines, "  answer:", *quoted(text)]
    if not chapter.response:
        return [*lines, "  no line came back"]
    # A vector, a call, an error, or what nobody can read.
    whole = chapter.response.decode(errors="replace").rstrip("\n")
    cut = f"{whole[:_MAX_LINE_CHARS]}..." if len(whole) > _MAX_LINE_CHARS else whole
    return [*lines, f"  line that came back ({len(chapter.response):,} bytes):", *quoted(cut)]


def _told_beside(response: bytes) -> list[str]:
    """What the service says of an answer besides it: its own id for it, and why a prompt was blocked."""
    try:
        body = orjson.loads(response)
    except orjson.JSONDecodeError:
        return []
    found = body.get("response") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return []
    lines = [f"  response id: {found['responseId']}"] if isinstance(found.get("responseId"), str) else []
    if found.get("promptFeedback"):
        lines.append(f"  prompt feedback: {json.dumps(found['promptFeedback'], ensure_ascii=False)}")
    return lines


def quoted(text: str) -> list[str]:
    """A text as indented lines, its end left out where it is long."""
    lines = text.rstrip("\n").split("\n")
    shown = [f"    {line}" for line in lines[:_MAX_TEXT_LINES]]
    if len(lines) > _MAX_TEXT_LINES:
        shown.append(f"    ... {len(lines) - _MAX_TEXT_LINES:,} more lines")
    return shown
