"""`python -m runner.cli` is `gbrun`."""

from runner.cli import main

main()
