"""The files and folders that a spec names: where they are, and whether they lie inside its folder."""

from __future__ import annotations

import os
from pathlib import Path

from runner import yamlfile
from runner.marks import Place, Source
from runner.shape import not_built
from runner.tree import Tree


class SpecPaths:
    """Turns paths as written into paths of this machine; what is wrong goes to the tree's problems."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self.path = Path(os.path.abspath(path))
        self.folder = str(self.path.parent)
        self.allow_outside = tree.get("allow_outside") is True
        self._tree = tree
        self._shown_folder = path.parent
        self.named = path.as_posix()
        """The spec's file as the user named it."""

    def inside(self, place: Place, written: str) -> Path | None:
        """The absolute path; None after reporting that it cannot be one or leads out of the folder."""
        if "\0" in written:
            self._tree.problem(place, "GB202", "a path cannot hold a NUL character")
            return None
        if "://" in written:
            self._tree.problem(place, "GB107", *not_built(f'a path like "{written}"'))
            return None
        joined = os.path.join(self.folder, written)
        real, root = os.path.realpath(joined), os.path.realpath(self.folder)
        if not self.allow_outside and not _is_below(real, root):
            how = "through a link" if _is_below(os.path.normpath(joined), self.folder) else "of the spec"
            message = f'"{written}" leads out of the folder {how}'
            self._tree.problem(place, "GB202", message, "move it inside, or set `allow_outside: true`")
            return None
        return Path(os.path.normpath(joined))

    def is_folder(self, written: str) -> bool:
        """Whether the path is that of a folder."""
        return "\0" not in written and os.path.isdir(os.path.join(self.folder, written))

    def existing_file(self, place: Place) -> Path | None:
        """The file whose path is the value at `place`; None after reporting that there is none."""
        written = self._tree.get(*place)
        path = self.inside(place, written)
        if path is not None and not path.is_file():
            self._tree.problem(place, "GB201", f'"{written}" does not exist')
            return None
        return path

    def data(self, place: Place, written: str) -> bytes | None:
        """The bytes of a file; None after reporting why it cannot be read."""
        path = self.inside(place, written)
        if path is None:
            return None
        try:
            return yamlfile.read_bytes(path)
        except yamlfile.FileProblem as problem:
            code = "GB201" if problem.code == "GB001" else problem.code
            self._tree.problem(place, code, f'"{written}" {problem.message}')
            return None

    def text(self, place: Place, written: str) -> tuple[str, Source] | None:
        """The text of a file and its lines; None after reporting why it cannot be read."""
        data = self.data(place, written)
        if data is None:
            return None
        text, source, problems = yamlfile.decode(data, self.shown(written))
        for found in problems:
            self._tree.add(place, found)
        return None if problems else (text, source)

    def shown(self, written: str) -> str:
        """A path in messages: below the folder as the user gave it, so that it can be opened from here."""
        return Path(os.path.normpath(self._shown_folder / written)).as_posix()

    def relative(self, path: str) -> str:
        """A path relative to the spec's folder, with `/`."""
        return Path(os.path.relpath(path, self.folder)).as_posix()


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
