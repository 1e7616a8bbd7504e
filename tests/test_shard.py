"""Requests packed into files: order, limits, every request exactly once, the same digest twice."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model import PlannedShard, Request
from runner.shard import ShardWriter
from runner.specmodel import ShardLimits

LINES = st.lists(st.integers(1, 40), max_size=30).map(
    lambda sizes: [f"{n:04d}".encode() + b"x" * size + b"\n" for n, size in enumerate(sizes)]
)
LIMITS = st.builds(ShardLimits, max_requests=st.integers(1, 6), max_bytes=st.integers(45, 150))


def pack(folder: Path, lines: Sequence[bytes], limits: ShardLimits) -> tuple[PlannedShard, ...]:
    writer = ShardWriter(folder, limits)
    for number, line in enumerate(lines):
        request = Request(f"r{number}", line)
        assert writer.fits(request)
        writer.add(request)
    return writer.finish()


@given(LINES, LIMITS)
def test_packing(lines: list[bytes], limits: ShardLimits) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        shards = pack(Path(one), lines, limits)
        contents = [shard.path.read_bytes() for shard in shards]

        assert b"".join(contents) == b"".join(lines)
        for shard, content in zip(shards, contents, strict=True):
            assert shard.shard_id == hashlib.sha256(content).hexdigest() == shard.path.stem
            assert (shard.byte_count, shard.request_count) == (len(content), content.count(b"\n"))
            assert 0 < shard.request_count <= limits.max_requests
            assert shard.byte_count <= limits.max_bytes
        # Greedy: the first line of a shard would not have fitted into the one before.
        for before, content in zip(shards, contents[1:], strict=False):
            first = content.split(b"\n")[0] + b"\n"
            assert (
                before.request_count == limits.max_requests
                or before.byte_count + len(first) > limits.max_bytes
            )
        assert [s.shard_id for s in pack(Path(two), lines, limits)] == [s.shard_id for s in shards]


@given(LINES, LINES, LIMITS)
def test_appended_rows_leave_all_shards_but_the_last_alone(
    lines: list[bytes], more: list[bytes], limits: ShardLimits
) -> None:
    more = [b"new" + line for line in more if len(line) + 3 <= limits.max_bytes]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        before = [s.shard_id for s in pack(Path(one), lines, limits)]
        after = [s.shard_id for s in pack(Path(two), [*lines, *more], limits)]

    whole = max(len(before) - 1, 0)
    assert after[:whole] == before[:whole]


def test_nothing_makes_no_shard(tmp_path: Path) -> None:
    assert pack(tmp_path, [], ShardLimits(max_requests=1, max_bytes=10)) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_a_request_over_the_limit_by_itself_does_not_fit(tmp_path: Path, size: int, fits: bool) -> None:
    writer = ShardWriter(tmp_path, ShardLimits(max_requests=5, max_bytes=10))

    assert writer.fits(Request("r", b"x" * size)) is fits
