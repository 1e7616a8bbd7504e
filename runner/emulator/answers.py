"""A GenerateContentResponse for a request, made from the request alone. Pure.

The same canonical request always gets the same answer: no key, clock, machine or order takes part.
The answer is no model's, and says so: `modelVersion` is `gbrun-emulator`, and text without a schema
begins with `[emulator] `.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import orjson

from runner.emulator import values

MODEL_VERSION = "gbrun-emulator"
MEDIA_TOKENS = 258
CHARS_PER_TOKEN = 4


class Unanswerable(Exception):
    """A request that no answer can be made for: its JSON Schema makes no sense, or it is too deep."""


def digest(request: dict[str, Any]) -> bytes:
    """16 bytes that stand for a canonical request, whatever model it names.

    Raises Unanswerable for one that is too deep.
    """
    try:
        data = orjson.dumps(
            {name: value for name, value in request.items() if name != "model"}, option=orjson.OPT_SORT_KEYS
        )
    except orjson.JSONEncodeError:
        raise Unanswerable("the request is nested too deeply") from None
    return hashlib.blake2b(data, digest_size=16).digest()


def prompt_of(request: dict[str, Any]) -> values.Prompt:
    """The text of the contents, and its last text part."""
    texts = [
        part["text"] for content in request["contents"] for part in content.get("parts", ()) if "text" in part
    ]
    return values.Prompt(
        "\n".join(texts) if len(texts) > 1 else texts[0] if texts else "", texts[-1] if texts else ""
    )


def schema_of(request: dict[str, Any]) -> Any:
    """The schema that the answer must follow, None where there is none."""
    config = request.get("generationConfig", {})
    return config.get("responseSchema") or config.get("responseJsonSchema")


def response(request: dict[str, Any], mark: bytes, prompt: values.Prompt) -> dict[str, Any]:
    """The answer to a canonical request; `mark` is its digest.

    An answer longer than `maxOutputTokens` is cut, with finishReason MAX_TOKENS.

    Raises:
        Unanswerable: the request's JSON Schema makes no sense.
    """
    config = request.get("generationConfig", {})
    seed = int.from_bytes(mark[:8], "big")
    limit = config.get("maxOutputTokens", 1 << 31)
    candidates = []
    spent = 0
    for index in range(config.get("candidateCount", 1)):
        text = _text(request, config, seed + index, prompt)
        finish = "STOP"
        if tokens(text) > limit:
            text = text[: limit * CHARS_PER_TOKEN]
            finish = "MAX_TOKENS"
        spent += tokens(text)
        candidates.append(
            {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": finish, "index": index}
        )
    return {
        "candidates": candidates,
        "usageMetadata": usage(request, prompt, spent),
        "modelVersion": MODEL_VERSION,
        "responseId": base64.urlsafe_b64encode(mark).decode()[:22],
    }


def usage(request: dict[str, Any], prompt: values.Prompt, spent: int) -> dict[str, Any]:
    """Token counts: about one per 4 characters, 258 for each medium; `spent` are the answer's."""
    text_tokens = tokens(prompt.text)
    system = request.get("systemInstruction")
    if system:
        text_tokens += sum(tokens(part.get("text", "")) for part in system["parts"])
    by_modality = {"TEXT": text_tokens}
    for content in request["contents"]:
        for part in content["parts"]:
            medium = part.get("inlineData") or part.get("fileData")
            if medium:
                name = _modality(medium.get("mimeType", ""))
                by_modality[name] = by_modality.get(name, 0) + MEDIA_TOKENS
    total = sum(by_modality.values())
    return {
        "promptTokenCount": total,
        "candidatesTokenCount": spent,
        "totalTokenCount": total + spent,
        "promptTokensDetails": [
            {"modality": name, "tokenCount": count} for name, count in by_modality.items() if count
        ],
    }


def tokens(text: str) -> int:
    """Tokens of a text, by the rule of thumb that the emulator counts with."""
    return -(-len(text) // CHARS_PER_TOKEN)


def _text(request: dict[str, Any], config: dict[str, Any], seed: int, prompt: values.Prompt) -> str:
    schema = schema_of(request)
    if schema is None:
        if config.get("responseMimeType") == "application/json":
            note = {"note": "[emulator] no model was called", "quote": prompt.sentence}
            return orjson.dumps(note).decode()
        return f"[emulator] This is no model's answer. The prompt ends: {prompt.sentence}"
    try:
        # Unsorted on purpose: the service writes properties in the order in which they were sent.
        value = values.maker(orjson.dumps(schema))(seed, prompt, 0)
    except ValueError as error:
        raise Unanswerable(str(error)) from None
    if config.get("responseMimeType") == "text/x.enum" and isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _modality(mime_type: str) -> str:
    kind = mime_type.partition("/")[0].upper()
    if kind in ("AUDIO", "VIDEO"):
        return kind
    # Live usage counts the pages of a PDF as images.
    return "IMAGE" if kind == "IMAGE" or mime_type == "application/pdf" else "DOCUMENT"
