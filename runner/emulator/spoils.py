"""Answers spoiled on purpose: one function from a sound response to what a row rule asks for. Pure.

Source: bodies as reported or recorded: MAX_TOKENS without parts, blocked prompts without candidates,
thoughts before the answer, fields that a client does not know.
"""

from __future__ import annotations

from typing import Any

import orjson

from runner.emulator import answers, nearlyjson, values

_WRONG_TEXT = "not what the schema asks for"


def spoil(
    kind: str, response: dict[str, Any], request: dict[str, Any], flaw: str | None = None
) -> dict[str, Any]:
    """The response changed as the kind of a row rule says; kinds of other sorts change nothing.

    `flaw` is what `nearly_json` does to the text, None to leave it to the text.
    """
    candidate = response["candidates"][0]
    usage = response["usageMetadata"]
    text = candidate["content"]["parts"][0]["text"]
    match kind:
        case "truncated":
            _say(response, text[: len(text) // 2])
            candidate["finishReason"] = "MAX_TOKENS"
        case "max_tokens_no_parts":
            candidate |= {"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}
            _think(usage, usage.pop("candidatesTokenCount") * 4)
        case "fenced":
            _say(response, f"```json\n{text}\n```")
        case "prose":
            _say(response, f"Here is the answer you asked for:\n\n{text}\n\nI hope this helps.")
        case "nearly_json":
            _say(response, nearlyjson.flawed(text, flaw))
        case "blocked_prompt":
            del response["candidates"], usage["candidatesTokenCount"]
            usage["totalTokenCount"] = usage["promptTokenCount"]
            return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **response}
        case "blocked_safety" | "recitation":
            del candidate["content"]
            candidate["finishReason"] = "SAFETY" if kind == "blocked_safety" else "RECITATION"
            if kind == "blocked_safety":
                rating = {
                    "category": "HARM_CATEGORY_DANGEROUS_CONTENT",
                    "probability": "HIGH",
                    "blocked": True,
                }
                candidate["safetyRatings"] = [rating]
            usage["totalTokenCount"] -= usage.pop("candidatesTokenCount")
        case "empty_stop":
            candidate["content"] = {"role": "model"}
            usage["totalTokenCount"] -= usage.pop("candidatesTokenCount")
        case "thought_parts":
            candidate["content"]["parts"].insert(
                0, {"text": "Reading the prompt once more.", "thought": True}
            )
            _think(usage, 133)
        case "invalid_schema":
            schema = answers.schema_of(request)
            if schema is not None:
                _say(response, orjson.dumps(_violating(schema, orjson.loads(text))).decode())
        case "unknown_fields":
            response["emulatorField"] = {"nested": [1, None]}
            candidate["emulatorField"] = "NEW_VALUE"
            usage["serviceTier"] = "standard"
    return response


def spoil_embedding(kind: str, response: dict[str, Any]) -> dict[str, Any]:
    """The same for an embedding."""
    match kind:
        case "empty_embedding":
            # Proto JSON leaves an empty list out.
            response["embedding"] = {}
        case "short_embedding":
            values = response["embedding"]["values"]
            del values[len(values) // 2 :]
        case "unknown_fields":
            response["emulatorField"] = {"nested": [1, None]}
            response["embedding"]["emulatorField"] = "NEW_VALUE"
    return response


def _say(response: dict[str, Any], text: str) -> None:
    response["candidates"][0]["content"]["parts"][0]["text"] = text
    usage = response["usageMetadata"]
    usage["totalTokenCount"] -= usage["candidatesTokenCount"]
    usage["candidatesTokenCount"] = answers.tokens(text)
    usage["totalTokenCount"] += usage["candidatesTokenCount"]


def _think(usage: dict[str, Any], count: int) -> None:
    usage["thoughtsTokenCount"] = count
    usage["totalTokenCount"] = usage["promptTokenCount"] + usage.get("candidatesTokenCount", 0) + count


def _violating(schema: dict[str, Any], value: Any) -> Any:
    """The value with one property of a wrong type, or as a whole of one where it has no properties."""
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value and "type" in child:
                return {**value, name: _wrong(child)}
    return _wrong(schema)


def _wrong(schema: dict[str, Any]) -> Any:
    kinds = values.types_of(schema) if "type" in schema else ["object", "array", "string"]
    if "string" not in kinds:
        return _WRONG_TEXT
    return 12345 if not {"integer", "number"} & set(kinds) else [[_WRONG_TEXT]]
