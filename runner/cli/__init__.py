"""The command line: parse, wire, call, print, exit.

Commands are imported when they are used, so that `gbrun --help` loads next to nothing.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence
from gc import freeze, set_threshold
from typing import Any

import click

from runner import __version__
from runner.errors import Exit, GbrunError

COMMANDS = {
    "init": "Write a commented spec that works at once.",
    "validate": "Check a spec and everything it names.",
    "fmt": "Lay a spec out in the usual order, keeping its comments.",
    "schema": "Print a JSON Schema: of specs, of --json events.",
    "render": "Print the exact request of a row.",
    "test": "Ask a few rows at once and show what comes of them.",
    "plan": "Show what an apply would do, and why.",
    "apply": "Carry a plan out: submit, wait, collect, write the records.",
    "status": "Show what is in flight.",
    "wait": "Wait for what is in flight and collect it; submit nothing.",
    "cancel": "Cancel what is in flight, keeping what comes back.",
    "reconcile": "Hold the state against all jobs of the account.",
    "import": "Take jobs of the account into the state.",
    "destroy": "Delete what was made at the service; put the state aside.",
    "export": "Write the destinations again from stored answers.",
    "show": "Show the last apply, or the story of one row.",
    "state": "Look into the state, or change it by hand.",
    "lock": "Show who holds the lock of a state.",
    "force-unlock": "Free a lock that nobody holds any more.",
    "gc": "Delete parts of a state that nothing refers to.",
    "emulator": "Run the local emulator of both services.",
}

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MODULES = {"import": "import_job"}
"""Commands whose module cannot have their name."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = _MODULES.get(cmd_name) or cmd_name.replace("-", "_")
        module = importlib.import_module(f"runner.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gbrun")
def group() -> None:
    """Declarative batch runs on the Gemini Batch API and Vertex AI: plan, apply, and never pay twice."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code of `errors.Exit`."""
    # Nearly all that is made here is freed by counting; looking for cycles takes a tenth of a long plan.
    set_threshold(100_000, 50, 100)
    code = run(argv)
    # What is left ends with the process, and need not be looked through once more.
    freeze()
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Nothing but a bug gives a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = group.main(args=arguments, prog_name="gbrun", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        return Exit.INTERRUPTED
    except click.ClickException as error:
        return _usage(error)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        sys.stderr.close()
        return Exit.ERROR
    except GbrunError as error:
        from runner.cli import terminal

        terminal.show_error(error, as_json="--json" in arguments)
        return error.exit_code
    except OSError as error:
        from runner.cli import terminal

        if error.errno not in _FULL:
            terminal.show_bug(error, arguments)
            return Exit.BUG
        return _full(error)
    except Exception as error:
        from runner.cli import terminal

        terminal.show_bug(error, arguments)
        return Exit.BUG
    return int(code) if isinstance(code, int) else Exit.CONVERGED


def _full(error: OSError) -> int:
    where = f" (writing {error.filename})" if error.filename else ""
    click.echo(f"Error: {error.strerror}{where}\n\nhint: make room and run it again", err=True)
    # What is left in the buffer would fail once more while Python ends.
    sys.stdout = None
    return Exit.ERROR


def _usage(error: click.ClickException) -> int:
    import difflib

    error.show()
    words: Any = getattr(error, "message", "")
    if isinstance(error, click.UsageError) and "No such command" in str(words):
        wanted = str(words).split("'")[1]
        near = difflib.get_close_matches(wanted, COMMANDS, n=1)
        if near:
            click.echo(f"hint: did you mean `gbrun {near[0]}`?", err=True)
    return Exit.USAGE
