"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """`90s`, `5m`, `2h`; a bare number is seconds. The value is seconds as float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 90s, 5m or 2h", param, ctx)
        factors = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
        return float(match[1]) * factors[match[2]]


def spec_options(function: F) -> F:
    """SPEC and what says how to read it."""
    for option in reversed(
        (
            click.argument("spec", type=click.Path(path_type=Path)),
            click.option(
                "--state", type=click.Path(path_type=Path), help="State folder instead of the spec's."
            ),
            click.option("--backend", help="Backend instead of the spec's: local or gemini."),
        )
    ):
        function = option(function)
    return function


def pick_spec(given: dict[str, Any]) -> dict[str, Any]:
    """The values of `spec_options`, for `Job.open`."""
    return {name: given[name] for name in ("spec", "state", "backend")}
