"""The compressed parts of the state: read as streams or at random, and never believed when damaged."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from builders import make_stored
from hypothesis import given
from hypothesis import strategies as st

from runner import parts
from runner.errors import StateUnreadable
from runner.model import Outcome, ResponseRef

LINES = [
    b'{"a":1}',
    b"",
    "sep \u2028 \u0085 \x0b \x0c \x1c \r end".encode(),
    b"\xff\xfe\x00",
    b"x" * 300,
    b"last",
]


def packed(chunks: list[bytes]) -> tuple[bytes, list[tuple[bytes, ResponseRef]]]:
    seen: list[tuple[bytes, ResponseRef]] = []
    data = b"".join(parts.pack_responses(chunks, 4, lambda line, ref: seen.append((line, ref))))
    return data, seen


def unpacked(data: bytes) -> list[bytes]:
    return [content for _, content in parts.members(io.BytesIO(data), "p")]


def told_after(line_bytes: int) -> int:
    """How many lines of this size are read before the first of them is told."""
    read: list[int] = []
    first: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(6):
            read.append(number)
            yield b"x" * line_bytes + b"\n"

    for _ in parts.pack_responses(chunks(), 1, lambda line, ref: first.append(len(read))):
        pass
    assert len(first) == 6
    return first[0]


def test_members_are_packed_ahead_but_long_lines_are_not_held_beside_each_other() -> None:
    assert told_after(parts.MEMBER_BYTES) == 3
    assert told_after(3 * parts.MEMBER_BYTES) == 1


@pytest.fixture
def small_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MEMBER_BYTES", 64)


# ---------------------------------------------------------------- lines

CHUNKS = st.lists(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b""])).map(b"".join)
)


@given(CHUNKS)
def test_lines_end_at_the_newline_byte_and_nowhere_else(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()

    assert list(parts.split_lines(chunks)) == expected
    data = b"".join(parts.compress([whole]))
    assert list(parts.read_lines(io.BytesIO(data), "p")) == expected


def test_a_part_is_one_member_that_gzip_reads() -> None:
    data = b"".join(parts.compress(line + b"\n" for line in LINES))

    assert gzip.decompress(data).split(b"\n")[:-1] == LINES
    assert list(parts.read_lines(io.BytesIO(data), "p")) == LINES
    assert len(unpacked(data)) == 1


def test_the_same_content_has_the_same_bytes() -> None:
    lines = [f"{n}\n".encode() for n in range(50_000)]
    one, two = b"".join(parts.compress(lines)), b"".join(parts.compress(iter(lines)))

    assert one == two
    assert one[4:8] == b"\0\0\0\0"  # no time in the header
    assert packed([b"".join(lines)])[0] == packed([b"".join(lines[:7]), b"".join(lines[7:])])[0]


def test_a_part_of_no_lines_is_read_as_none() -> None:
    assert list(parts.read_lines(io.BytesIO(b"".join(parts.compress([]))), "p")) == []


def test_lines_of_several_members_are_read_as_one_stream() -> None:
    data = b"".join(b"".join(parts.compress([half])) for half in (b"a\nb", b"c\nd\n"))

    assert list(parts.read_lines(io.BytesIO(data), "p")) == [b"a", b"bc", b"d"]


def test_long_lines_pass_the_read_buffer() -> None:
    lines = [b"x" * 700_000, b"y", b"z" * 300_000]
    data = b"".join(parts.compress(line + b"\n" for line in lines))

    assert list(parts.read_lines(io.BytesIO(data), "p")) == lines


# ---------------------------------------------------------------- responses, read at random


@pytest.mark.usefixtures("small_members")
def test_each_line_is_found_by_its_place() -> None:
    data, seen = packed([b"\n".join(LINES)])

    assert [line for line, _ in seen] == LINES
    assert len(unpacked(data)) > 1
    for line, ref in seen:
        member = parts.unpack_member(data[ref.member :], "p")
        assert (ref.part, ref.length) == (4, len(line))
        assert member[ref.offset : ref.offset + ref.length] == line


@given(st.lists(st.binary(max_size=90).map(lambda b: b.replace(b"\n", b"")), max_size=12), st.integers(1, 50))
def test_places_hold_for_any_lines_and_chunks(lines: list[bytes], step: int) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    before = parts.MEMBER_BYTES
    parts.MEMBER_BYTES = 64
    try:
        data, seen = packed([whole[i : i + step] for i in range(0, len(whole), step)])
    finally:
        parts.MEMBER_BYTES = before
    at = dict(parts.members(io.BytesIO(data), "p"))

    assert b"".join(at.values()) == whole
    assert [line for line, _ in seen] == lines
    for line, ref in seen:
        assert at[ref.member][ref.offset : ref.offset + ref.length] == line
    for content in list(at.values())[:-1]:
        assert len(content) >= 64
        assert content.endswith(b"\n")


def test_a_member_is_closed_at_a_mebibyte() -> None:
    data, seen = packed([b"x" * 400_000 + b"\n" for _ in range(7)])

    assert [len(content) for content in unpacked(data)] == [1_200_003, 1_200_003, 400_001]
    assert len(seen) == 7


# ---------------------------------------------------------------- damage


def test_a_part_cut_at_any_byte_is_refused() -> None:
    data = b"".join(parts.compress(line + b"\n" for line in LINES))
    for end in range(len(data)):
        with pytest.raises(StateUnreadable, match="rows/1"):
            list(parts.read_lines(io.BytesIO(data[:end]), "rows/1"))


@pytest.mark.usefixtures("small_members")
def test_responses_cut_at_any_byte_give_whole_members_or_are_refused() -> None:
    data, _ = packed([b"\n".join(LINES)])
    whole = unpacked(data)
    edges = [offset for offset, _ in parts.members(io.BytesIO(data), "p")]
    for end in range(len(data)):
        if end in edges:
            assert unpacked(data[:end]) == whole[: edges.index(end)]
        else:
            with pytest.raises(StateUnreadable, match="ends too early"):
                unpacked(data[:end])


@pytest.mark.parametrize("back", [1, 8, 9, 20])
def test_a_member_that_is_cut_off_is_refused(back: int) -> None:
    data, _ = packed([b"some words that are kept\n" * 3 + b"\n".join(LINES)])

    with pytest.raises(StateUnreadable):
        parts.unpack_member(data[:-back], "p")


def test_an_edited_byte_is_refused_or_does_not_matter() -> None:
    data = b"".join(parts.compress(line + b"\n" for line in LINES))
    for position in range(len(data)):
        for change in (0x01, 0x80):
            edited = bytearray(data)
            edited[position] ^= change
            try:
                assert list(parts.read_lines(io.BytesIO(edited), "p")) == LINES, position
            except StateUnreadable:
                continue


@pytest.mark.parametrize("more", [b"\0", b"garbage", zlib.compress(b"x")])
def test_what_follows_the_last_member_is_refused(more: bytes) -> None:
    data = b"".join(parts.compress([b"a\n"])) + more
    for read in (parts.read_lines, parts.members):
        with pytest.raises(StateUnreadable):
            list(read(io.BytesIO(data), "p"))


@pytest.mark.parametrize("data", [b"", b"{}", b"\x1f\x8b"])
def test_what_is_no_part_is_refused(data: bytes) -> None:
    with pytest.raises(StateUnreadable):
        list(parts.read_lines(io.BytesIO(data), "p"))


# ---------------------------------------------------------------- outcomes

COUNT = st.integers(0, 2**53)
STORED = st.builds(
    make_stored,
    st.text(max_size=8),
    st.sampled_from(Outcome),
    token=st.text(max_size=8),
    code=st.text(max_size=8),
    message=st.text(max_size=20),
    jobs=st.integers(0, 9),
    ref=st.none() | st.builds(ResponseRef, part=COUNT, member=COUNT, offset=COUNT, length=COUNT),
    usage=st.dictionaries(st.sampled_from(["prompt", "cached", "output", "thoughts"]), COUNT),
    model_version=st.text(max_size=8),
    finish_reason=st.text(max_size=8),
)


@given(STORED)
def test_outcomes_round_trip(stored: Any) -> None:
    line = parts.dump_outcome(stored)

    assert parts.load_outcome(line) == stored
    assert line.count(b"\n") == 1
