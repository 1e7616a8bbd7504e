"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


class Setting(click.ParamType[tuple[str, str]]):
    """`name=value`."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The pair."""
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            # Without the value itself, which may be a secret.
            self.fail("write it as name=value", param, ctx)
        return name, text


class Key(click.ParamType[str]):
    """The key of a row: text in UTF-8."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The key."""
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail("a key is UTF-8, and this is not", param, ctx)
        return str(value)


_SPEC_OPTIONS = (
    # Whether it can be read is found out by reading it, and told as for every file of a spec.
    click.argument("spec", type=click.Path(path_type=Path, readable=False)),
    click.option("--env", help="Environment of the spec."),
    click.option("--var", "variables", type=Setting(), multiple=True, help="Value of a variable."),
    click.option(
        "--var-file",
        "variable_files",
        type=click.Path(path_type=Path, readable=False),
        multiple=True,
        help="YAML or JSON file of variables.",
    ),
    click.option("--state", help="Folder or gs://bucket/folder of the state, instead of the spec's."),
    click.option("--backend", help="Backend instead of the spec's: local, gemini or vertex."),
    click.option("--allow-python", is_flag=True, help="Run the module of a pydantic model that SPEC names."),
)
_SELECTION_OPTIONS = (
    click.option("--target", multiple=True, metavar="GLOB", help="Only rows whose key matches."),
    click.option(
        "--replace", multiple=True, metavar="GLOB", help="Run these rows again, whatever is stored."
    ),
    click.option(
        "--retry",
        type=click.Choice(["none", "transient", "all"]),
        default="transient",
        show_default=True,
        help="Failures to take up again.",
    ),
    click.option("--no-stat-cache", is_flag=True, help="Read every input, also those that look unchanged."),
)


def spec_options(function: F) -> F:
    """SPEC and what says how to read it; collected into one argument `given`."""
    return _with(function, _SPEC_OPTIONS)


def selection_options(function: F) -> F:
    """What narrows a plan."""
    return _with(function, _SELECTION_OPTIONS)


def pick_spec(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `spec_options`, as arguments of `spec.load`."""
    return {
        "path": given["spec"],
        "env": given["env"],
        "variables": dict(given["variables"]),
        "variable_files": given["variable_files"],
        "state": given["state"],
        "backend": given["backend"],
        "allow_python": given["allow_python"],
    }


def _with(function: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        function = option(function)
    return function
