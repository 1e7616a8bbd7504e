"""Which files are inputs, in which order, under which keys, and what is read of them."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import globs, inputs
from runner.errors import InputUnreadable
from runner.model import BadRow, Batch, Entry, Row
from runner.specmodel import Destination, FilesSource


def write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def keys(folder: Path, glob: str = "**/*", exclude: tuple[str, ...] = (), **spec: Any) -> list[str]:
    source = FilesSource(glob=glob, exclude=exclude)
    return [e.key for e in inputs.entries(make_spec(folder, inputs=(source,), **spec))]


def read(folder: Path, key: str, encoding: str = "utf-8") -> Row | BadRow:
    source = FilesSource(glob=key, encoding=encoding)
    spec = make_spec(folder, inputs=(source,))
    return inputs.read(spec, Entry(key, 0, str(folder / key)))


# ---------------------------------------------------------------- globs

TREE = [
    "a.txt",
    "b.md",
    "d/a.txt",
    "d/e/a.txt",
    "d/e/f/b.txt",
    "d.txt",
    "[x].txt",
    "é.txt",
    "da/x1.txt",
    "da/x2.txt",
]


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), dict.fromkeys(TREE, "x"))
        yield Path(folder)


@pytest.mark.parametrize(
    ("glob", "exclude", "expected"),
    [
        ("*.txt", (), ["[x].txt", "a.txt", "d.txt", "é.txt"]),
        ("*", (), ["[x].txt", "a.txt", "b.md", "d.txt", "é.txt"]),
        ("a.txt", (), ["a.txt"]),
        ("d/a.txt", (), ["d/a.txt"]),
        ("gone/*.txt", (), []),
        ("gone.txt", (), []),
        ("?.txt", (), ["a.txt", "d.txt", "é.txt"]),
        ("[ab].*", (), ["a.txt", "b.md"]),
        ("[!ab].txt", (), ["d.txt", "é.txt"]),
        ("[c-e].txt", (), ["d.txt"]),
        ("d/*.txt", (), ["d/a.txt"]),
        ("d/**/*.txt", (), ["d/a.txt", "d/e/a.txt", "d/e/f/b.txt"]),
        ("d/**", (), ["d/a.txt", "d/e/a.txt", "d/e/f/b.txt"]),
        ("**/a.txt", (), ["a.txt", "d/a.txt", "d/e/a.txt"]),
        ("**/e/**/*.txt", (), ["d/e/a.txt", "d/e/f/b.txt"]),
        ("*/*.txt", (), ["d/a.txt", "da/x1.txt", "da/x2.txt"]),
        ("d*/x?.txt", (), ["da/x1.txt", "da/x2.txt"]),
        ("**/*.txt", ("d/**", "[!d]*"), ["d.txt", "da/x1.txt", "da/x2.txt"]),
        ("**/*.txt", ("**/*.txt",), []),
        ("**/*", ("**/?.txt", "é*"), ["[x].txt", "b.md", "da/x1.txt", "da/x2.txt"]),
        ("x**.txt", (), []),
        ("da/x*", ("*1*",), ["da/x1.txt", "da/x2.txt"]),
        ("./d/*.txt", (), ["d/a.txt"]),
        ("A.TXT", (), []),
    ],
)
def test_globs(tree: Path, glob: str, exclude: tuple[str, ...], expected: list[str]) -> None:
    found = keys(tree, glob, exclude)

    assert found == expected
    if not glob.startswith("./"):
        assert [k for k in expected if not globs.matches(glob, k)] == []


def test_a_bracket_is_matched_by_a_set_of_it(tree: Path) -> None:
    assert keys(tree, "[[]x].txt") == ["[x].txt"]


def test_a_range_never_matches_a_slash() -> None:
    assert not globs.matches("a[+-0]b", "a/b")


# ---------------------------------------------------------------- order and keys

NAMES = st.text("aAbz.-_ 0é中\u0301/", min_size=1, max_size=4).filter(lambda n: not n.startswith((".", "/")))
PATHS = st.lists(
    st.lists(NAMES.filter(lambda n: "/" not in n), min_size=1, max_size=3).map("/".join), max_size=12
)


@given(PATHS)
@settings(deadline=None)
def test_keys_come_sorted_by_code_point(paths: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for path in paths:
            try:
                write(folder, {path: "x"})
            except OSError:
                continue  # a file where a folder should be
        found = keys(folder)
        on_disk = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]

        assert found == sorted(found)
        assert found == sorted(unicodedata.normalize("NFC", name) for name in on_disk)
    finally:
        shutil.rmtree(folder)


def test_sources_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["b.txt", "a.md", "c.txt"], "x"))
    spec = make_spec(tmp_path, inputs=(FilesSource(glob="*.txt"), FilesSource(glob="*.md")))

    assert [(e.key, e.source) for e in inputs.entries(spec)] == [("b.txt", 0), ("c.txt", 0), ("a.md", 1)]


def test_entries_tell_how_a_file_looks(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "four"})
    (entry,) = inputs.entries(make_spec(tmp_path))
    stat = (tmp_path / "a.txt").stat()

    assert entry.signature == (4, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


DECOMPOSED = unicodedata.normalize("NFD", "café.txt")


def test_keys_are_composed(tmp_path: Path) -> None:
    write(tmp_path, {DECOMPOSED: "x", f"{DECOMPOSED}.d/{DECOMPOSED}": "y"})

    assert keys(tmp_path) == ["café.txt", "café.txt.d/café.txt"]
    assert [
        r.fields["name"]
        for e in inputs.entries(make_spec(tmp_path))
        if isinstance(r := inputs.read(make_spec(tmp_path), e), Row)
    ] == ["café.txt", "café.txt"]


@pytest.mark.parametrize("glob", ["café.txt", "caf?.txt", "*é.txt"])
def test_globs_match_keys_however_the_disk_spells_them(tmp_path: Path, glob: str) -> None:
    write(tmp_path, {DECOMPOSED: "x"})

    assert keys(tmp_path, glob) == ["café.txt"]


# ---------------------------------------------------------------- what is never an input


def test_hidden_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys([".a.txt", ".git/b.txt", "c/.d/e.txt", "c/f.txt", "c/.g.txt"], "x"))

    assert keys(tmp_path) == ["c/f.txt"]
    assert keys(tmp_path, "**/.*") == []


def test_state_and_destination(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a.txt", "st/state.json", "out/out.jsonl", "out/b.txt"], "x"))
    spec = {"state": tmp_path / "st", "destinations": (Destination(path="out/out.jsonl"),)}

    assert keys(tmp_path, **spec) == ["a.txt", "out/b.txt"]
    assert keys(tmp_path, "**/*.jsonl", **spec) == []


def test_state_and_destination_below_a_folder_that_is_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", dict.fromkeys(["a.txt", "st/state.json", "out.jsonl"], "x"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder = tmp_path / "link"

    assert keys(folder, state=folder / "st") == ["a.txt"]


def test_the_errors_file_of_the_last_run(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a.jsonl", "out.jsonl", "out.errors.jsonl"], "x"))

    assert keys(tmp_path, "*.jsonl", ("out.jsonl",)) == ["a.jsonl"]


@pytest.mark.parametrize("glob", ["st/*.json", "st/rows/*", ".hidden/*.txt"])
def test_a_glob_that_names_the_state_or_a_hidden_folder(tmp_path: Path, glob: str) -> None:
    write(tmp_path, dict.fromkeys(["st/state.json", "st/rows/1", ".hidden/a.txt"], "x"))

    assert keys(tmp_path, glob, state=tmp_path / "st") == []


# ---------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    write(tmp_path, {"in/a.txt": "a", "in/deep/b.txt": "b", "outside/c.txt": "c"})
    return tmp_path / "in"


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused_unless_allowed(linked: Path, name: str) -> None:
    outside = linked.parent / "outside"
    (linked / "z").symlink_to(outside / "c.txt" if name == "file" else outside)
    with pytest.raises(InputUnreadable, match="z is a link that leaves") as caught:
        keys(linked)
    assert "allow_outside" in caught.value.hint

    found = keys(linked, allow_outside=True)
    assert found == ["a.txt", "deep/b.txt", "z" if name == "file" else "z/c.txt"]


@pytest.mark.parametrize(("glob", "exclude"), [("**/*", ("z.txt",)), ("**/*", ("z.*",)), ("a.txt", ())])
def test_a_link_that_is_no_input_is_no_problem(linked: Path, glob: str, exclude: tuple[str, ...]) -> None:
    (linked / "z.txt").symlink_to(linked.parent / "outside" / "c.txt")

    assert "a.txt" in keys(linked, glob, exclude)


def test_links_inside_the_folder_are_followed(linked: Path) -> None:
    (linked / "y.txt").symlink_to("a.txt")
    (linked / "z").symlink_to("deep")

    assert keys(linked) == ["a.txt", "deep/b.txt", "y.txt", "z/b.txt"]


def test_loops_of_links_end(linked: Path) -> None:
    (linked / "deep" / "up").symlink_to("..")
    (linked / "deep" / "self").symlink_to(".")
    (linked / "other").symlink_to("deep")

    assert keys(linked) == ["a.txt", "deep/b.txt", "other/b.txt"]


@pytest.mark.parametrize("target", ["gone.txt", "z.txt"])
def test_a_link_to_nothing_or_itself_is_a_row_that_cannot_be_read(linked: Path, target: str) -> None:
    (linked / "z.txt").symlink_to(target)
    (linked / "z.md").symlink_to(target)
    spec = make_spec(linked, inputs=(FilesSource(glob="**/*.txt"),))

    assert [entry.key for entry in inputs.entries(spec)] == ["a.txt", "deep/b.txt", "z.txt"]
    found = inputs.read(spec, list(inputs.entries(spec))[-1])
    assert isinstance(found, BadRow)
    assert found.code == "unreadable"
    assert found.message.startswith(f"is a link to '{target}' that cannot be read: ")


def test_a_pipe_is_no_input(linked: Path) -> None:
    os.mkfifo(linked / "p.txt")

    assert keys(linked) == ["a.txt", "deep/b.txt"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(linked: Path) -> None:
    spec = make_spec(linked, inputs=(FilesSource(glob="*.txt"),))
    entry = next(inputs.entries(spec))
    (linked / "a.txt").unlink()
    os.mkfifo(linked / "a.txt")

    assert inputs.read(spec, entry) == BadRow("a.txt", "unreadable", "is not a regular file")


@pytest.mark.parametrize("exclude", ["skip/**", "skip/**/*", "s*/**"])
def test_an_excluded_folder_is_not_looked_into(linked: Path, exclude: str) -> None:
    (linked / "deep" / "skip").mkdir()
    (linked / "deep" / "skip" / "c.txt").write_text("c")
    (linked / "skip").symlink_to(linked.parent / "outside")

    assert keys(linked, "**/*", (exclude,)) == ["a.txt", "deep/b.txt", "deep/skip/c.txt"]
    with pytest.raises(InputUnreadable, match=r"skip is a link that leaves"):
        keys(linked, "**/*", ("skip/*",))


def test_folders_too_deep_to_be_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(250):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    with pytest.raises(InputUnreadable, match="lies more than 200 folders deep"):
        keys(tmp_path, "**/*")
    assert keys(tmp_path, "**/*", ("d/**",)) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_is_an_error(linked: Path) -> None:
    (linked / "deep").chmod(0)
    try:
        with pytest.raises(InputUnreadable, match="cannot list deep:"):
            keys(linked)
    finally:
        (linked / "deep").chmod(0o700)


def test_a_file_that_vanishes_during_the_walk(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a", "b.txt": "b"})
    spec = make_spec(tmp_path)
    walk = inputs.entries(spec)
    assert next(walk).key == "a.txt"
    (tmp_path / "b.txt").unlink()
    with suppress(InputUnreadable):
        for entry in walk:
            found = inputs.read(spec, entry)
            assert isinstance(found, BadRow)
            assert found.code == "unreadable"


def test_a_file_that_vanishes_within_a_batch_spoils_no_other(tmp_path: Path) -> None:
    write(tmp_path, {f"{n:03}.txt": "x" for n in range(300)})
    walk = inputs.found(make_spec(tmp_path))
    first = next(walk)
    assert isinstance(first, Batch)
    assert len(first.keys) == 250
    (tmp_path / "270.txt").unlink()
    found = {entry.key: entry for batch in walk for entry in batch}

    assert len(found) == 50
    assert [key for key, entry in found.items() if entry.signature is None] == ["270.txt"]
    assert found["299.txt"].path == str(tmp_path / "299.txt")


def test_a_walk_that_is_left_off_leaves_no_folder_open(tmp_path: Path) -> None:
    write(tmp_path, {"a/b/c/d.txt": "x", "a/b/c/e.txt": "y"})
    before = os.listdir("/dev/fd")
    walk = inputs.found(make_spec(tmp_path))
    next(batch for batch in walk if list(batch))
    assert len(os.listdir("/dev/fd")) > len(before)
    del walk

    assert len(os.listdir("/dev/fd")) == len(before)


def test_a_name_that_is_not_text_is_refused_or_made_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"folder\xff")).mkdir()
    with pytest.raises(InputUnreadable, match=r"b'.*\\xff.*' is not UTF-8"):
        keys(tmp_path)


def test_a_name_that_is_not_text_is_no_problem_where_it_is_no_input(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a", "skip/b.txt": "b"})
    for name in (b"\xff.md", b"skip/\xff.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")

    assert keys(tmp_path, "**/*.txt", ("skip/**",)) == ["a.txt"]


# ---------------------------------------------------------------- reading


def test_what_a_template_sees_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"d/My Note.MD": "one\r\ntwo\u2028\n"})
    found = read(tmp_path, "d/My Note.MD")

    assert isinstance(found, Row)
    assert dict(found.fields) == {
        "text": "one\r\ntwo\u2028\n",
        "path": "d/My Note.MD",
        "name": "My Note.MD",
        "stem": "My Note",
        "suffix": ".MD",
        "mime_type": "text/markdown",
    }


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"", "utf-8", ""),
        (codecs.BOM_UTF8 + b"a", "utf-8", "a"),
        (codecs.BOM_UTF8 + codecs.BOM_UTF8 + b"a", "utf-8", "\ufeffa"),
        (codecs.BOM_UTF16_LE + "né".encode("utf-16-le"), "utf-16", "né"),
        (codecs.BOM_UTF16_BE + "né".encode("utf-16-be"), "utf-16", "né"),
        ("né".encode("latin-1"), "latin-1", "né"),
        (b"\x80", "cp1252", "€"),
    ],
)
def test_text_is_decoded_and_a_byte_order_mark_dropped(
    tmp_path: Path, data: bytes, encoding: str, text: str
) -> None:
    write(tmp_path, {"a.txt": data})
    found = read(tmp_path, "a.txt", encoding)

    assert isinstance(found, Row)
    assert found.fields["text"] == text


@pytest.mark.parametrize(
    ("data", "encoding", "code", "words"),
    [
        (b"ab\xe9cd", "utf-8", "encoding", "is not utf-8: byte 0xe9 at offset 2"),
        (b"x" * 70_000 + b"\xff", "utf-8", "encoding", "byte 0xff at offset 70,000"),
        (b"\xed\xa0\x80", "utf-8", "encoding", "byte 0xed at offset 0"),
        ("é".encode(), "ascii", "encoding", "is not ascii: byte 0xc3"),
        (b"ab\0cd", "utf-8", "nul_byte", "holds a NUL character at offset 2"),
        ("ab".encode("utf-16-le"), "utf-8", "nul_byte", "at offset 1"),
    ],
)
def test_what_is_no_text_is_a_bad_row(
    tmp_path: Path, data: bytes, encoding: str, code: str, words: str
) -> None:
    write(tmp_path, {"a.txt": data})
    found = read(tmp_path, "a.txt", encoding)

    assert isinstance(found, BadRow)
    assert (found.key, found.code) == ("a.txt", code)
    assert words in found.message


def test_a_file_that_is_gone_is_a_bad_row(tmp_path: Path) -> None:
    found = read(tmp_path, "gone.txt")

    assert isinstance(found, BadRow)
    assert (found.code, found.message) == ("unreadable", "cannot be read: No such file or directory")


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "x", "b.txt": "x", "c.txt": codecs.BOM_UTF8 + b"x"})
    a, b, c = (read(tmp_path, name) for name in ("a.txt", "b.txt", "c.txt"))

    assert isinstance(a, Row)
    assert isinstance(b, Row)
    assert isinstance(c, Row)
    assert a.digest == b.digest != c.digest


@given(
    st.sampled_from(["**/*.txt", "**/*", "**/*é.txt", "**/*.[ab]", "**/*a/*.txt", "*.txt", "a/**"]),
    st.lists(
        st.sampled_from(["a", "b.txt", "xe\u0301.txt", "x.b", "a\nb.txt", "c.txt.gz"]), min_size=1, max_size=3
    ),
)
def test_the_fast_way_of_matching_is_the_other(glob: str, parts: list[str]) -> None:
    key = unicodedata.normalize("NFC", "/".join(parts))
    assert bool(globs.test(glob)(key)) == globs.matches(glob, key)
