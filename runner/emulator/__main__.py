"""`python -m runner.emulator`: what `process.start` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.emulator import foreground
from runner.errors import GbrunError


def main() -> int:
    """Parse the command line and serve; the exit code."""
    parser = argparse.ArgumentParser(prog="runner.emulator", description="Gemini batch emulator on loopback")
    parser.add_argument("--dir", type=Path, required=True, help="folder that keeps files and jobs")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1, 0 for any")
    parser.add_argument("--faults", type=Path, help="fault file")
    parser.add_argument("--parent-pipe", action="store_true", help="end when stdin ends")
    options = parser.parse_args()
    try:
        foreground.run(options.dir, options.port, options.faults, parent_pipe=options.parent_pipe)
    except GbrunError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
