"""Requests packed into JSONL files under limits. The packing is pure; one writer spools it.

Greedy and in order: the same requests and limits give the same files, whatever the machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from runner.model import PlannedShard, Request
from runner.specmodel import ShardLimits


class ShardWriter:
    """Packs requests into files in a folder of its own; each is named by its digest when full."""

    def __init__(self, folder: Path, limits: ShardLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._request_count = 0
        self._byte_count = 0
        self._shards: list[PlannedShard] = []

    def fits(self, request: Request) -> bool:
        """Whether the request alone stays under the limits; one that does not is never sent."""
        return len(request.line) <= self._limits.max_bytes

    def add(self, request: Request) -> None:
        """Append a request to the open shard, or to a new one where it would not fit."""
        size = len(request.line)
        if self._request_count and (
            self._request_count >= self._limits.max_requests
            or self._byte_count + size > self._limits.max_bytes
        ):
            self._close()
        if self._file is None:
            self._file = (self._folder / "open.jsonl").open("wb")
        self._file.write(request.line)
        self._hash.update(request.line)
        self._request_count += 1
        self._byte_count += size

    def finish(self) -> tuple[PlannedShard, ...]:
        """Close the last shard and return all, in order."""
        if self._request_count:
            self._close()
        return tuple(self._shards)

    def close(self) -> None:
        """Close a shard that was begun and is not wanted any more."""
        if self._file is not None:
            self._file.close()

    def _close(self) -> None:
        assert self._file is not None
        self._file.close()
        shard_id = self._hash.hexdigest()
        path = self._folder / f"{shard_id}.jsonl"
        (self._folder / "open.jsonl").rename(path)
        self._shards.append(
            PlannedShard(
                shard_id=shard_id, path=path, request_count=self._request_count, byte_count=self._byte_count
            )
        )
        self._file, self._hash = None, hashlib.sha256()
        self._request_count = self._byte_count = 0
