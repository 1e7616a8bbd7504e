"""What reaches the user's eyes: errors, notices, progress, colours. Effects on stdout and stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from runner import __version__
from runner.errors import GbrunError, SpecInvalid

if TYPE_CHECKING:
    from runner.run import Event

_COLOURS = {
    "+": "green", "~": "yellow", "!": "yellow", "-": "red", "x": "red", "=": None, "…": "cyan"
}  # fmt: skip


_INVISIBLE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""What moves a cursor, colours, rings, or turns the direction of writing; line ends are looked at apart."""


def visible(text: str) -> str:
    """The text with an escape in the place of all that a terminal would obey instead of showing.

    Names of files, documents and answers may hold such characters.
    """
    if text.isprintable():
        return text
    return re.sub(_INVISIBLE, lambda match: match[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """As `visible`, with line ends as escapes too."""
    return visible(text).replace("\n", "\\n")


def show_error(error: GbrunError, *, as_json: bool) -> None:
    """A failure in the user's words, with its hint; a spec's problems one by one.

    With `as_json` the problems of a spec and of rows are on stdout too, as events.
    """
    from runner import diagnostics, events
    from runner.plan import RowsUnreadable

    if as_json and isinstance(error, (SpecInvalid, RowsUnreadable)):
        show_json([events.version(), *map(diagnostics.json_object, error.diagnostics)])
    if isinstance(error, SpecInvalid):
        click.echo(diagnostics.text(error.diagnostics), err=True, nl=False)
        return
    if isinstance(error, RowsUnreadable):
        click.echo(diagnostics.text(error.diagnostics), err=True)
        if error.count > len(error.rows):
            click.echo(f"... and {error.count - len(error.rows):,} more\n", err=True)
    click.echo(f"Error: {visible(error.message)}", err=True)
    if error.hint:
        click.echo(f"\nhint: {visible(error.hint)}", err=True)


def show_bug(error: BaseException, arguments: Sequence[str]) -> None:
    """A bug: one line and the place of a log; the log holds the traceback."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="gbrun-bug-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"gbrun {__version__} {json.dumps(_without_values(arguments))}\nPython {sys.version}\n")
        traceback.print_exception(error, file=log)
    click.echo(
        f"Error: a bug in gbrun {__version__}: {type(error).__name__}: {error}\n\n"
        f"hint: report it with the log {log.name}",
        err=True,
    )


def _without_values(arguments: Sequence[str]) -> list[str]:
    """The command line without the values of variables, which may be secret."""
    out: list[str] = []
    for argument in arguments:
        if argument.startswith("--var=") or (out and out[-1] == "--var"):
            name = argument.removeprefix("--var=").partition("=")[0]
            argument = f"{'--var=' if argument.startswith('--var=') else ''}{name}=..."
        out.append(argument)
    return out


def show_event(event: Event) -> None:
    """One event on stderr, as a line."""
    click.echo(in_one_line(f"{event.kind:<10} {event.token}  {event.text}"), err=True)


def show_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Lines of a view, coloured by the symbol in front where there is a terminal."""
    for line in map(in_one_line, lines):
        mark = line.strip()[:1]
        colour = _COLOURS.get(mark) if line.startswith("  ") else None
        click.echo(click.style(line, fg=colour) if colour and colours(err) else line, err=err)


def show_json(lines: Iterable[dict[str, Any]]) -> None:
    """JSON lines on stdout. Bytes of a path that are no UTF-8 are shown as escapes."""
    if sys.stdout is None:
        return
    out = sys.stdout.buffer
    for line in lines:
        out.write(_json(line) + b"\n")
    out.flush()


def _json(line: dict[str, Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(line)
    except TypeError:
        plain = {key: visible(value) if isinstance(value, str) else value for key, value in line.items()}
        return orjson.dumps(plain)


def colours(err: bool) -> bool:
    """Whether to colour: a terminal, and nobody said no."""
    stream = sys.stderr if err else sys.stdout
    return stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")


_ALWAYS_TOLD = frozenset(
    {"refused", "ambiguous", "quarantined", "duplicate", "stranger", "late", "stalled", "principal"}
)


class Progress:
    """What happens during an apply, on stderr: plain lines, or a live line on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = None
        self._jobs: dict[str, str] = {}
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
            self._live = self._console.status("starting")
            self._live.start()

    def event(self, kind: str, token: str, text: str) -> None:
        """Show one event."""
        if self._quiet and kind not in _ALWAYS_TOLD:
            return
        line = in_one_line(f"{kind:<10} {token}  {text}" if token else f"{kind:<10} {text}")
        # Where the terminal has gone, the run goes on: what it does is in the state.
        with suppress(OSError):
            self._show(kind, token, text, line)

    def _show(self, kind: str, token: str, text: str, line: str) -> None:
        if self._live is None:
            click.echo(line, err=True)
            return
        self._console.print(line, markup=False, emoji=False)
        self._jobs[token] = "done" if kind == "collected" else text.split(":")[0] if kind == "job" else kind
        running = [word for word in self._jobs.values() if word != "done"]
        done = len(self._jobs) - len(running)
        self._live.update(f"{done} job(s) collected, {len(running)} on the way")

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
