"""`gbrun emulator`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("emulator")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; 0 picks one.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".gbrun/emulator"),
    show_default=True,
    help="Where jobs and files are kept.",
)
@click.option("--faults", type=click.Path(path_type=Path, dir_okay=False), help="A fault file.")
def command(port: int, folder: Path, faults: Path | None) -> None:
    """Run the local emulator of the Gemini Batch API, of Vertex AI and of their storage until interrupted.

    It speaks the services' protocols on loopback; no model is called, answers are derived from the
    requests.
    """
    from runner.emulator import foreground

    click.echo("The answers are the emulator's; no model is called. Ctrl-C ends it.", err=True)
    foreground.run(folder, port, faults)
