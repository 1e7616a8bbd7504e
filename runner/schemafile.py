"""The JSON Schemas that gbrun ships, found from a checkout and from an installed wheel."""

from __future__ import annotations

from pathlib import Path


def schema_path(name: str) -> Path:
    """The file of a shipped schema, such as `spec.v1.json`.

    Raises:
        FileNotFoundError: gbrun is not installed completely.
    """
    here = Path(__file__).resolve().parent
    # In a wheel the schemas lie inside the package, in a checkout (also an editable one) beside it.
    for folder in (here / "schemas", here.parent / "schemas"):
        path = folder / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"schema {name} is not part of this installation of gbrun")
