"""Where a spec's state lies: a folder of this machine, or a folder of a bucket and a cache for it here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runner import gcsuri
from runner.errors import UsageInvalid
from runner.gcsuri import GcsUri
from runner.specmodel import BackendSpec
from runner.specpaths import SpecPaths
from runner.tree import Tree


def choose(
    tree: Tree,
    paths: SpecPaths,
    override: str | Path | None,
    *,
    name: str | None,
    env: str | None,
    backend: BackendSpec | None,
) -> tuple[Path | None, GcsUri | None]:
    """The folder of this machine, and the address where the state itself lies elsewhere.

    `override` stands in place of the spec's `state`. The folder is None where it depends on what is wrong;
    what is wrong with `state` goes to the tree's problems. Raises UsageInvalid for an override that is wrong.
    """
    if override is not None:
        return _given(override, Path(paths.folder), name)
    written = tree.get("state")
    if written is None:
        if name is None or backend is None:
            return None, None
        suffix = "" if backend.paid else "-local"
        return Path(paths.folder) / ".gbrun" / name / ((env or "default") + suffix), None
    if not tree.sound("state"):
        return None, None
    if not written.startswith(gcsuri.SCHEME):
        return paths.inside(("state",), written), None
    try:
        uri = gcsuri.parse(written)
    except ValueError as error:
        tree.problem(("state",), "GB106", f'"{written}" {error}', "write gs://bucket/folder")
        return None, None
    return cache(Path(paths.folder), name, uri), uri


def _given(override: str | Path, folder: Path, name: str | None) -> tuple[Path | None, GcsUri | None]:
    place = parse(override, "--state")
    return (place, None) if isinstance(place, Path) else (cache(folder, name, place), place)


def parse(written: str | Path, option: str) -> Path | GcsUri:
    """A place as it is given on the command line; folders are absolute then. Raises UsageInvalid."""
    text = str(written)
    if isinstance(written, str) and "://" in text:
        try:
            return gcsuri.parse(text)
        except ValueError as error:
            raise UsageInvalid(f'{option} "{text}" {error}', hint="write gs://bucket/folder") from error
    if not text or "\0" in text:
        raise UsageInvalid(f"{option} {text!r} is no folder", hint="name a folder, or gs://bucket/folder")
    return Path(os.path.abspath(written))


def cache(folder: Path, name: str | None, uri: GcsUri) -> Path | None:
    """What this machine keeps of a state that lies elsewhere: an index, a local backend's emulator."""
    if name is None:
        return None
    digest = hashlib.sha256(str(uri).encode()).hexdigest()
    return folder / ".gbrun" / name / f"cache-{digest[:12]}"
