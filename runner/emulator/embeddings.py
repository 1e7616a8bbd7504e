"""An EmbedContentResponse for a request, made from the request alone. Pure.

A text's vector is the sum of its words' vectors, and a word's is hashed from the word and its runs of
letters, so texts that share words or stems are near to each other and others are not. No meaning is
known: synonyms are as far apart as any two words. Whole numbers up to the last step, so that every
machine gets the same digits.

The first entries of a vector carry most of it, as those of the service do: a vector cut to its first
dimensions still finds what the whole one finds.

Source: 3072 dimensions, cut ones of gemini-embedding-001 not normalised, those of gemini-embedding-2
normalised, longer texts cut without a word: https://ai.google.dev/gemini-api/docs/embeddings, read
2026-11-21.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from runner.emulator import answers
from runner.emulator.answers import Unanswerable

DIMENSIONS = 3072
"""Of a whole vector."""
_LEVELS = (64, 256, 1024, DIMENSIONS)
"""Every feature has its places among the first so many entries, for each of these."""
_PLACES_PER_LEVEL = 2
_DIGITS = 7
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|\w+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_SHORT = 3
_SHORT_WEIGHT, _WORD_WEIGHT, _RUN_WEIGHT = 1, 3, 1
_RUN_LENGTHS = (3, 4)
_LONGEST_WORD = 64
_TASK_WEIGHT = 2

Spread = tuple[tuple[int, int], ...]
"""(place, addend) pairs of a vector that is zero elsewhere."""


def response(request: dict[str, Any], model: str) -> dict[str, Any]:
    """The answer of `model` (`models/...`) to a canonical request, in the form of a batch's lines.

    Raises:
        Unanswerable: there is nothing to embed.
    """
    text = text_of(request)
    media = _media_of(request)
    if not text and not media:
        raise Unanswerable("EmbedContentRequest.content contains an empty Part.")
    newer = _is_newer(model)
    token_limit = 8192 if newer else 2048
    text = text[: token_limit * answers.CHARS_PER_TOKEN]
    features = [*_words(request.get("title", "")), *_words(text), *media]
    # Texts without a single word, such as a smiley, are told apart as a whole.
    sums = _sums(Counter(features or [text]))
    if not newer and "taskType" in request:
        for place, addend in _spread(f"task {request['taskType']}"):
            sums[place] += addend * _TASK_WEIGHT
    size = request.get("outputDimensionality", DIMENSIONS)
    length = math.sqrt(sum([value * value for value in (sums[:size] if newer else sums)])) or 1.0
    values = [round(value / length, _DIGITS) for value in sums[:size]]
    count = answers.tokens(text) + len(media) * answers.MEDIA_TOKENS
    return {"embedding": {"values": values}, "tokenCount": str(count)}


def text_of(request: dict[str, Any]) -> str:
    """The text of the content."""
    return "\n".join([part["text"] for part in request["content"]["parts"] if part.get("text")])


def takes_media(model: str) -> bool:
    """Whether a model embeds more than text."""
    return _is_newer(model)


def _is_newer(model: str) -> bool:
    return not model.endswith("gemini-embedding-001")


def _media_of(request: dict[str, Any]) -> list[str]:
    """Features that stand for media: only equal ones are near."""
    media = [part.get("inlineData") or part.get("fileData") for part in request["content"]["parts"]]
    return [f"media {found.get('data') or found.get('fileUri')}" for found in media if found]


def _words(text: str) -> Iterator[str]:
    """Lower-case words; scripts without spaces come as pairs of characters."""
    for word in _WORD.findall(text.casefold()):
        if _UNSPACED.match(word) and len(word) > 2:
            yield from map("".join, itertools.pairwise(word))
        else:
            yield word[:_LONGEST_WORD]


def _sums(counts: Counter[str]) -> list[int]:
    sums = [0] * DIMENSIONS
    for word, count in counts.items():
        # What stands there four times says more than what stands there once, but not four times more.
        factor = count.bit_length()
        for place, addend in _word_spread(word):
            sums[place] += addend * factor
    return sums


@functools.lru_cache(maxsize=1 << 15)
def _word_spread(word: str) -> Spread:
    """The vector of one word: itself, and the runs of letters in it."""
    total: Counter[int] = Counter()
    short = len(word) <= _SHORT and word.isascii() and word.isalpha()
    weight = _SHORT_WEIGHT if short else _WORD_WEIGHT
    for place, addend in _spread(f"word {word}"):
        total[place] += addend * weight
    edged = f"<{word}>"
    for size in () if len(word) <= _SHORT else _RUN_LENGTHS:
        for start in range(len(edged) - size + 1):
            for place, addend in _spread(edged[start : start + size]):
                total[place] += addend * _RUN_WEIGHT
    return tuple(total.items())


@functools.lru_cache(maxsize=1 << 15)
def _spread(feature: str) -> Spread:
    """A feature's own places, each with +1 or -1."""
    bits = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "surrogatepass")).digest(), "big")
    found = []
    for level in _LEVELS:
        for _ in range(_PLACES_PER_LEVEL):
            found.append(((bits >> 1) % level, 1 if bits & 1 else -1))
            bits >>= 33
    return tuple(found)
