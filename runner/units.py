"""Durations and sizes as people write them. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction

_DURATION = r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|d)"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kKMG])(i)?)?B"
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}


def seconds(value: float | str) -> float:
    """Seconds of a duration: a number is seconds already, a text is like `90s`, `5m`, `2h`, `1d`.

    Raises:
        ValueError: neither of the two.
    """
    if isinstance(value, (int, float)):
        return float(value)
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", value):
        return float(value)
    match = re.fullmatch(_DURATION, value)
    if match is None:
        raise ValueError(f'"{value}" is not a duration; write 90, 90s, 5m or 2h')
    return float(_exactly(match[1]) * _SECONDS[match[2]])


def byte_count(value: int | str) -> int:
    """Bytes of a size: a number is bytes already, `50MB` counts in 1000s and `14 MiB` in 1024s.

    Raises:
        ValueError: neither of the two.
    """
    if isinstance(value, int):
        return value
    match = re.fullmatch(_SIZE, value)
    if match is None:
        raise ValueError(f'"{value}" is not a size; write bytes, 50MB or 14 MiB')
    base = 1024 if match[3] else 1000
    return int(_exactly(match[1]) * base ** _POWER[match[2] or ""])


def _exactly(number: str) -> Fraction:
    from fractions import Fraction

    return Fraction(number)
