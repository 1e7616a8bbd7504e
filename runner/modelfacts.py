"""What is known of models: the dated table that gbrun ships."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson


@functools.cache
def table() -> Mapping[str, Any]:
    """The whole table: `as_of`, `models`, `prices`, `families`."""
    found: Mapping[str, Any] = orjson.loads((Path(__file__).parent / "data" / "models.json").read_bytes())
    return found


def facts(model: str) -> Mapping[str, Any] | None:
    """What is known of a model; None for one that is not in the table."""
    models: Mapping[str, Any] = table()["models"]
    if model in models:
        found: Mapping[str, Any] = models[model]
        return found
    return next(
        (found for name, found in models.items() if "*" in name and fnmatch.fnmatchcase(model, name)), None
    )


def cost_usd(model: str, usage: Mapping[str, int], *, batch: bool) -> float | None:
    """What these tokens (prompt, output, thoughts) cost at the table's price; None where it has none.

    Of a model that another one answers for, the other's price. Cached input counts in full, long prompts
    and media are not told apart.
    """
    name = (facts(model) or {}).get("answered_by", model)
    price = table()["prices"]["usd_per_million"].get(name)
    if price is None:
        return None
    output = usage.get("output", 0) + usage.get("thoughts", 0)
    full = (usage.get("prompt", 0) * price[0] + output * price[1]) / 1_000_000
    return float(full / 2 if batch else full)
